//! What this program asks a running swarmd, over its control socket: to leave, and whether it does its work.

use std::path::Path;
use std::time::Duration;

use swarm_proto::pb::health_check_response::ServingStatus;
use swarm_proto::{amount, own, pb};
use tonic::transport::Channel;

/// A swarmd that has not said how it is within this time is not well. Answers take milliseconds; container engines give
/// a health check seconds.
const HEALTH_MAX: Duration = Duration::from_secs(3);

async fn connect(socket: &Path, remedy: &str) -> Result<Channel, String> {
    let path = socket.to_owned();
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .map_err(|_| format!("can't reach swarmd at {}: {remedy}", socket.display()))
}

/// Has the swarmd at the socket leave its cluster, and says what that did.
pub(crate) async fn leave(socket: &Path, force: bool) -> Result<String, String> {
    let remedy = "a node leaves while its swarmd runs; start it, or name its socket with --listen-control-api";
    let channel = connect(socket, remedy).await?;
    let mut client = own::operator_client::OperatorClient::new(channel);
    let left = client
        .leave(own::LeaveRequest { force })
        .await
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let tasks = amount::count(left.removed_tasks, "task");
    let told = match left.acknowledged {
        true => String::new(),
        false => format!(
            "; no manager has agreed ({}): `swarmctl node demote` and `swarmctl node rm` of this node on a manager make it forgotten",
            left.reason
        ),
    };
    Ok(format!("left the cluster, {tasks} removed{told}"))
}

/// How the swarmd at the socket is; an error where it does not do its work.
pub(crate) async fn health(socket: &Path) -> Result<String, String> {
    let asked = tokio::time::timeout(HEALTH_MAX, ask_health(socket)).await;
    asked.unwrap_or_else(|_| {
        let shown = socket.display();
        Err(format!(
            "swarmd at {shown} does not answer: no answer within {HEALTH_MAX:?}; its log says more"
        ))
    })
}

async fn ask_health(socket: &Path) -> Result<String, String> {
    let remedy = "start it, or name its socket with --listen-control-api";
    let channel = connect(socket, remedy).await?;
    let mut operator = own::operator_client::OperatorClient::new(channel.clone());
    let node = operator.local_status(own::LocalStatusRequest {}).await;
    let node = node
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    if !node.fenced.is_empty() {
        return Err(node.fenced);
    }
    let mut leader = true;
    if node.role == "manager" {
        let request = pb::HealthCheckRequest {
            service: String::new(),
        };
        let answer = pb::health_client::HealthClient::new(channel)
            .check(request)
            .await;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        leader = answer.into_inner().status() == ServingStatus::Serving;
    }
    judge(&node, leader)
}

/// A node does its work where it has a manager to report to and, as a manager, knows the leader.
fn judge(node: &own::LocalStatusResponse, leader: bool) -> Result<String, String> {
    let tasks = amount::count(node.tasks, "task");
    if node.locked {
        return Err(
            "this manager is locked: run `swarmctl cluster unlock` on this host".to_owned(),
        );
    }
    if !leader {
        return Err(format!(
            "this manager knows no leader; {tasks} go on: see that more than half of the managers run, and reach each other"
        ));
    }
    if node.manager_addr.is_empty() {
        return Err(format!(
            "this {} is not connected to a manager; {tasks} go on: see that managers run, and can be reached from here",
            node.role
        ));
    }
    Ok(format!(
        "{}, connected to {}, {tasks}",
        node.role, node.manager_addr
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_well_with_a_manager_and_a_leader() {
        let mut node = own::LocalStatusResponse {
            role: "manager".to_owned(),
            tasks: 2,
            ..Default::default()
        };
        assert!(
            judge(&node, true)
                .unwrap_err()
                .starts_with("this manager is not connected to a manager; 2 tasks go on")
        );
        node.manager_addr = "10.0.0.1:4242".to_owned();
        assert_eq!(
            judge(&node, true).unwrap(),
            "manager, connected to 10.0.0.1:4242, 2 tasks"
        );
        assert!(
            judge(&node, false)
                .unwrap_err()
                .starts_with("this manager knows no leader")
        );
        node.locked = true;
        assert!(judge(&node, false).unwrap_err().contains("is locked"));
    }

    #[tokio::test]
    async fn a_swarmd_that_is_not_there_is_not_well() {
        let dir = tempfile::tempdir().unwrap();
        let told = health(&dir.path().join("s.sock")).await.unwrap_err();
        assert!(
            told.contains("can't reach swarmd at") && told.contains("start it"),
            "{told}"
        );
    }
}
