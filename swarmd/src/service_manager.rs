//! What systemd is told where it started this process: ready, how it goes in words, alive, stopping.
//!
//! Ready says that tasks are looked after and the control socket is open, not that a manager answers: after a power cut
//! workers are up before managers, and must not be taken for failed. A node that waits to be let in is not ready.

use std::convert::Infallible;

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::agent::AgentStatus;
use crate::ca::Role;
use crate::clock::Clock;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager can't be told");
    }
}

/// The node is up.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// How it goes, for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The node was told to stop.
pub(crate) fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping; containers keep running"),
    ]);
}

/// Says at half of the time that systemd allows for it that the process's runtime still runs tasks. Never returns.
pub(crate) async fn keep_alive(clock: Clock) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        tell(&[NotifyState::Watchdog]);
        clock.sleep(limit / 2).await;
    }
}

/// Keeps the status true while a node runs. Returns when its agent is gone.
pub(crate) async fn follow(role: Role, mut agent: watch::Receiver<AgentStatus>) {
    loop {
        let text = describe(role, &agent.borrow_and_update());
        status(&text);
        if agent.changed().await.is_err() {
            return;
        }
    }
}

fn describe(role: Role, agent: &AgentStatus) -> String {
    let tasks = swarm_proto::amount::count(agent.tasks as u64, "task");
    match &agent.manager_addr {
        Some(manager) => format!("{role}, connected to {manager}, {tasks}"),
        None => format!("{role}, not connected to a manager; {tasks} go on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_how_it_goes() {
        let mut agent = AgentStatus::default();
        assert_eq!(
            describe(Role::Worker, &agent),
            "worker, not connected to a manager; no tasks go on"
        );
        agent.manager_addr = Some("10.0.0.1:4242".to_owned());
        agent.tasks = 1;
        assert_eq!(
            describe(Role::Manager, &agent),
            "manager, connected to 10.0.0.1:4242, 1 task"
        );
    }
}
