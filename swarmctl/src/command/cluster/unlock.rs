//! `swarmctl cluster unlock-key` and `swarmctl cluster unlock`.

use std::io;

use swarm_proto::{own, pb};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::super::session::Session;
use crate::cli::UnlockKey;
use crate::environment::Secret;
use crate::error::Error;
use crate::render::unlock_key;
use crate::resolve;

pub(super) async fn show_key(session: &mut Session<'_>, flags: &UnlockKey) -> Result<(), Error> {
    if flags.rotate {
        let cluster = resolve::cluster(&mut session.client, None).await?;
        let rotation = pb::KeyRotation {
            manager_unlock_key: true,
            ..Default::default()
        };
        session
            .client
            .update_cluster(cluster, rotation, |_| ())
            .await?;
    }
    let Some(key) = current(session).await? else {
        return Err(Error::Rejected {
            what: "unlock key".to_owned(),
            reason: "there is none, because autolock is off; turn it on with `swarmctl cluster update --autolock`"
                .to_owned(),
        });
    };
    if flags.quiet {
        return session.print(&[key.to_string()]);
    }
    if flags.rotate {
        session.print(&["The unlock key was replaced.".to_owned(), String::new()])?;
    }
    session.print(&explained(&key))
}

/// The key that unlocks managers now; none without autolock.
pub(super) async fn current(session: &mut Session<'_>) -> Result<Option<Zeroizing<String>>, Error> {
    let bytes = session.client.get_unlock_key().await?;
    Ok((!bytes.is_empty()).then(|| unlock_key::text(&bytes)))
}

/// The key, and what to do with it.
pub(super) fn explained(key: &str) -> Vec<String> {
    vec![
        "To unlock a manager after it restarts, run `swarmctl cluster unlock` on its host and give this key:"
            .to_owned(),
        String::new(),
        format!("    {key}"),
        String::new(),
        "Keep it in a safe place that is not on a manager: without it no manager that stops can be started again."
            .to_owned(),
    ]
}

/// Gives the key to the manager on this host.
pub(super) async fn run(session: &mut Session<'_>, secret: &Secret) -> Result<(), Error> {
    let status = session.client.request(own::LocalStatusRequest {});
    let status = session.client.operator().local_status(status).await;
    let status = status
        .map_err(|status| Error::refused_here("ask the local node", status))?
        .into_inner();
    // Before a key is typed for nothing.
    if !status.locked {
        return Err(Error::Rejected {
            what: "unlock".to_owned(),
            reason: format!("this {} is not locked", status.role),
        });
    }
    let secret = secret.clone();
    let read = spawn_blocking(move || secret.read("Enter unlock key: "));
    let read = read
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    let key = read.map_err(|source| Error::Local {
        what: "read the unlock key",
        source,
    })?;
    let message = own::UnlockRequest {
        unlock_key: key.trim().to_owned(),
    };
    let request = session.client.request(message);
    let answer = session.client.operator().unlock(request).await;
    answer.map_err(|status| Error::refused_here("unlock", status))?;
    session.print(&["this manager is unlocked, and starts".to_owned()])
}
