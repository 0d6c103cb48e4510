//! Leaving the cluster: an explicit command, never a signal.
//!
//! The managers are told first, so that the tasks run elsewhere before they stop here; then the node
//! is emptied.

use std::time::Duration;

use swarm_proto::own::LeaveClusterRequest;
use swarm_proto::own::membership_client::MembershipClient;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Channel;

use super::worker::Command;
use super::{AgentConfig, Parts, StorageError};

/// Time for one manager to answer; it waits for a write.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Someone asks to leave.
#[derive(Debug)]
pub(super) struct LeaveRequest {
    pub(super) force: bool,
    pub(super) answer: oneshot::Sender<Result<Left, LeaveError>>,
}

/// What leaving did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// How many tasks were stopped and removed.
    pub removed_tasks: u64,
    /// Why no manager knows; absent where one does.
    pub untold: Option<String>,
}

/// Why the node did not leave, or not cleanly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    /// No manager could be told. Nothing was changed.
    #[error(
        "no manager could be told that this node leaves ({0}); repeat when one answers, or force it: the managers then find out by missing heartbeats"
    )]
    NotAcknowledged(String),
    /// The runtime did not let go of something.
    #[error(
        "the node left, but not everything was removed: {0}; repeat the command when the container runtime answers"
    )]
    Runtime(String),
    /// The agent's file.
    #[error("the node left, but its file still names its tasks: {0}")]
    Storage(#[from] StorageError),
    /// The agent is not running (any more).
    #[error("the agent is not running: start swarmd first")]
    NotRunning,
}

impl Parts {
    pub(super) async fn leave(
        &mut self,
        config: &AgentConfig,
        force: bool,
    ) -> Result<Left, LeaveError> {
        let untold = self.tell(config).await.err();
        if let Some(reason) = &untold {
            if !force {
                return Err(LeaveError::NotAcknowledged(reason.clone()));
            }
            tracing::warn!(reason, "this node leaves, and no manager has agreed");
        }
        // No session any more: nothing is assigned while the node is emptied.
        self.sessions.shutdown().await;
        let (answer, done) = oneshot::channel();
        let sent = self.worker.send(Command::Leave(answer)).await;
        sent.map_err(|_| LeaveError::NotRunning)?;
        let removed_tasks = done.await.map_err(|_| LeaveError::NotRunning)??;
        tracing::info!(tasks = removed_tasks, "the node left the cluster");
        Ok(Left {
            removed_tasks,
            untold,
        })
    }

    async fn tell(&self, config: &AgentConfig) -> Result<(), String> {
        let link = self.link.borrow().clone();
        let mut reason = match link {
            Some(link) => match ask(link.channel, config).await {
                Ok(()) => return Ok(()),
                Err(reason) => format!("{}: {reason}", link.addr),
            },
            None => "there is no session with a manager".to_owned(),
        };
        for addr in &config.managers {
            let connecting = config.connector.connect(addr);
            let asked = match config.clock.timeout(REQUEST_LIMIT, connecting).await {
                Ok(Ok(channel)) => ask(channel, config).await,
                Ok(Err(error)) => Err(error.to_string()),
                Err(elapsed) => Err(elapsed.to_string()),
            };
            match asked {
                Ok(()) => return Ok(()),
                Err(error) => reason = format!("{addr}: {error}"),
            }
        }
        Err(reason)
    }
}

async fn ask(channel: Channel, config: &AgentConfig) -> Result<(), String> {
    let mut client = MembershipClient::new(channel);
    let asking = client.leave_cluster(LeaveClusterRequest {});
    match config.clock.timeout(REQUEST_LIMIT, asking).await {
        Ok(Ok(_)) => Ok(()),
        // It is no part of the cluster any more: there is nobody left to tell. A refusal may also be of the manager that
        // was asked, so it has to name this node.
        Ok(Err(status))
            if matches!(status.code(), Code::PermissionDenied | Code::NotFound)
                && status.message().contains(&config.node.id) =>
        {
            Ok(())
        }
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(elapsed) => Err(elapsed.to_string()),
    }
}
