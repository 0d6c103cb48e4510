//! How a change of a service's spec is rolled out.

use std::time::Duration;

use crate::invalid::Faults;
use crate::pb;

/// How a change of spec is rolled out.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateConfig {
    /// Slots at a time; zero means all.
    pub parallelism: u64,
    /// Pause between slots.
    pub delay: Duration,
    /// What to do when too many fail.
    pub failure_action: FailureAction,
    /// How long after its start a task still counts as a failed update when it ends.
    pub monitor: Duration,
    /// Failures tolerated, in parts of a million of the slots (the wire's float, rounded: the log
    /// knows no floats).
    pub max_failure_ppm: u32,
    /// Which comes first.
    pub order: UpdateOrder,
}

/// What to do when too many updated tasks fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureAction {
    /// Stop there and wait for the operator.
    Pause,
    /// Go on regardless.
    Continue,
    /// Go back to the previous spec.
    Rollback,
}

/// Which comes first in a slot's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOrder {
    /// Stop the old task, then start the new one.
    StopFirst,
    /// Start the new task, then stop the old one.
    StartFirst,
}

impl Default for UpdateConfig {
    /// SwarmKit's default: one at a time, pause on failure, 5 s of monitoring, stop first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ppm: 0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// Absent is the default; a config without monitor has the default's. `field` is `update` or
/// `rollback`.
pub(crate) fn parse(
    faults: &mut Faults,
    field: &str,
    wire: Option<&pb::UpdateConfig>,
) -> UpdateConfig {
    use pb::update_config::{FailureAction as WireAction, UpdateOrder as WireOrder};
    let default = UpdateConfig::default();
    let Some(wire) = wire else { return default };
    faults.count(format!("{field}.parallelism"), wire.parallelism);
    let action = faults.known(
        format!("{field}.failure_action"),
        wire.failure_action,
        "PAUSE, CONTINUE and ROLLBACK",
    );
    let order = faults.known(
        format!("{field}.order"),
        wire.order,
        "STOP_FIRST and START_FIRST",
    );
    let delay = faults.duration(format!("{field}.delay"), wire.delay.as_ref());
    let monitor = faults.duration(format!("{field}.monitor"), wire.monitor.as_ref());
    UpdateConfig {
        parallelism: wire.parallelism,
        delay: delay.unwrap_or(default.delay),
        failure_action: match action {
            Some(WireAction::Pause) | None => FailureAction::Pause,
            Some(WireAction::Continue) => FailureAction::Continue,
            Some(WireAction::Rollback) => FailureAction::Rollback,
        },
        monitor: monitor.unwrap_or(default.monitor),
        max_failure_ppm: ratio_to_ppm(faults, field, wire.max_failure_ratio),
        order: match order {
            Some(WireOrder::StopFirst) | None => UpdateOrder::StopFirst,
            Some(WireOrder::StartFirst) => UpdateOrder::StartFirst,
        },
    }
}

fn ratio_to_ppm(faults: &mut Faults, field: &str, ratio: f32) -> u32 {
    // Not a number is in no range.
    if !(0.0..=1.0).contains(&ratio) {
        faults.add(
            format!("{field}.max_failure_ratio"),
            format!("{ratio} is not a ratio; give a number from 0 to 1"),
        );
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1,000,000 by the check above"
    )]
    let ppm = (f64::from(ratio) * 1e6).round() as u32;
    ppm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios() {
        for (ratio, ppm) in [(0.0, 0), (0.1, 100_000), (0.333, 333_000), (1.0, 1_000_000)] {
            let mut faults = Faults::default();
            assert_eq!(ratio_to_ppm(&mut faults, "update", ratio), ppm);
            assert!(faults.finish(()).is_ok());
        }
        for ratio in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            let mut faults = Faults::default();
            ratio_to_ppm(&mut faults, "update", ratio);
            let text = faults.finish(()).unwrap_err().to_string();
            assert!(text.starts_with("update.max_failure_ratio: "), "{text}");
        }
    }
}
