//! When an ended task is replaced.

use std::time::Duration;

use crate::invalid::Faults;
use crate::pb;

/// When an ended task is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    /// After which endings.
    pub condition: RestartCondition,
    /// How long to wait first.
    pub delay: Duration,
    /// Most replacements a slot and spec version; zero means no limit.
    pub max_attempts: u64,
    /// Only replacements within this time count; zero means all count.
    pub window: Duration,
}

/// After which endings a task is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCondition {
    /// Never.
    None,
    /// Unless it completed.
    OnFailure,
    /// Always.
    Any,
}

impl Default for RestartPolicy {
    /// SwarmKit's default: any ending, after 5 s, without limit.
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// Absent is the default; a policy without delay has the default's delay.
pub(crate) fn parse(faults: &mut Faults, wire: Option<&pb::RestartPolicy>) -> RestartPolicy {
    use pb::restart_policy::RestartCondition as Wire;
    let default = RestartPolicy::default();
    let Some(wire) = wire else { return default };
    let condition = faults.known(
        "task.restart.condition",
        wire.condition,
        "NONE, ON_FAILURE and ANY",
    );
    let delay = faults.duration("task.restart.delay", wire.delay.as_ref());
    let window = faults.duration("task.restart.window", wire.window.as_ref());
    faults.count("task.restart.max_attempts", wire.max_attempts);
    RestartPolicy {
        condition: match condition {
            Some(Wire::None) => RestartCondition::None,
            Some(Wire::OnFailure) => RestartCondition::OnFailure,
            Some(Wire::Any) | None => RestartCondition::Any,
        },
        delay: delay.unwrap_or(default.delay),
        max_attempts: wire.max_attempts,
        window: window.unwrap_or(default.window),
    }
}
