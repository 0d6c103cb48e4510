//! `swarmctl cluster join-token`: the token, and the command line it belongs into.

use swarm_proto::pb;

use super::super::session::Session;
use super::settings::rotation;
use crate::cli::{JoinRole, JoinToken};
use crate::error::Error;
use crate::resolve;

pub(super) async fn run(session: &mut Session<'_>, flags: &JoinToken) -> Result<(), Error> {
    let mut cluster = resolve::cluster(&mut session.client, None).await?;
    if flags.rotate {
        let changed = session
            .client
            .update_cluster(cluster.clone(), rotation(flags.role), |_| ())
            .await?;
        cluster = changed.unwrap_or(cluster);
    }
    let tokens = cluster
        .root_ca
        .as_ref()
        .and_then(|root| root.join_tokens.clone());
    let token = tokens.map(|tokens| match flags.role {
        JoinRole::Worker => tokens.worker,
        JoinRole::Manager => tokens.manager,
    });
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Err(Error::Rejected {
            what: "join token".to_owned(),
            reason: "the manager keeps it to itself; ask on a manager's control socket".to_owned(),
        });
    };
    if flags.quiet {
        return session.print(&[token]);
    }
    let role = match flags.role {
        JoinRole::Worker => "worker",
        JoinRole::Manager => "manager",
    };
    let address = manager_address(session).await?;
    session.print(&[
        format!("To add a {role} to this cluster, run on the host:"),
        String::new(),
        format!("    swarmd --join-addr {address} --join-token {token}"),
        String::new(),
    ])
}

/// The leader's address, else any manager's that can be reached.
async fn manager_address(session: &mut Session<'_>) -> Result<String, Error> {
    let roles = vec![pb::NodeRole::Manager.into()];
    let filters = pb::list_nodes_request::Filters {
        roles,
        ..Default::default()
    };
    let nodes = session.client.list_nodes(filters).await?;
    let managers = nodes.into_iter().filter_map(|node| node.manager_status);
    let best = managers
        .filter(|manager| !manager.addr.is_empty())
        .max_by_key(|manager| (manager.leader, manager.reachability));
    Ok(best.map_or_else(|| "MANAGER:4242".to_owned(), |manager| manager.addr))
}
