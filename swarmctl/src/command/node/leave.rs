//! `swarmctl node leave`: the only command about the host itself rather than the cluster.

use swarm_proto::own;

use super::super::session::Session;
use crate::error::Error;

pub(super) async fn run(session: &mut Session<'_>, force: bool) -> Result<(), Error> {
    // Stopping tasks takes their grace periods, so this request has no deadline.
    let request = tonic::Request::new(own::LeaveRequest { force });
    let answer = session.client.operator().leave(request).await;
    let answer = answer
        .map_err(|status| Error::refused("leave the cluster", status))?
        .into_inner();
    let tasks = answer.removed_tasks;
    let tasks = format!("{tasks} task{} removed", if tasks == 1 { "" } else { "s" });
    session.print(&[format!("this node has left the cluster, {tasks}")])?;
    if !answer.acknowledged {
        session.remark(&format!(
            "no manager has acknowledged it: {}. The node shows as DOWN until `swarmctl node rm` is run on a manager; one \
             that was a manager still counts as one until it is demoted",
            answer.reason
        ))?;
    }
    Ok(())
}
