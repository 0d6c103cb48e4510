//! `swarmctl version`: both sides; that the other side is not there is an answer too.

use swarm_proto::own;

use super::session::{Session, Target};
use crate::environment::Environment;
use crate::error::Error;
use crate::terminal::Terminal;

pub(super) async fn run(
    target: &Target,
    environment: Environment,
    terminal: &mut Terminal,
) -> Result<(), Error> {
    let own_line = format!("swarmctl {}", env!("CARGO_PKG_VERSION"));
    let written = terminal.stdout.line(&own_line);
    written.map_err(|source| Error::Local {
        what: "write to stdout",
        source,
    })?;
    let mut session = match Session::open(target, environment, &mut *terminal).await {
        Ok(session) => session,
        Err(error) => {
            let written = terminal.stdout.line(&format!("swarmd unknown ({error})"));
            return written.map_err(|source| Error::Local {
                what: "write to stdout",
                source,
            });
        }
    };
    let request = session.client.request(own::LocalStatusRequest {});
    let line = match session.client.operator().local_status(request).await {
        Ok(answer) => {
            let status = answer.into_inner();
            let executor = Some(status.executor).filter(|executor| !executor.is_empty());
            let about = [
                status.role,
                status.hostname,
                executor
                    .map(|executor| format!("executor {executor}"))
                    .unwrap_or_default(),
                if status.locked { "locked" } else { "" }.to_owned(),
                if status.fenced.is_empty() {
                    ""
                } else {
                    "fenced"
                }
                .to_owned(),
            ];
            // A node that is still starting does not know all of it.
            let about: Vec<String> = about.into_iter().filter(|part| !part.is_empty()).collect();
            format!("swarmd {} ({})", status.version, about.join(", "))
        }
        Err(status) => format!(
            "swarmd unknown ({})",
            Error::refused("ask the local node", status)
        ),
    };
    session.print(&[line])
}
