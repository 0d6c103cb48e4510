//! Restart policy, update and rollback configuration, health check.
//!
//! Where only a part is given for a service that has none yet, the rest is SwarmKit's default, not the
//! wire's zero: a zero condition would mean "never restart".

use std::time::Duration;

use swarm_proto::pb::restart_policy::RestartCondition;
use swarm_proto::pb::update_config::{FailureAction, UpdateOrder};
use swarm_proto::pb::{HealthConfig, RestartPolicy, UpdateConfig};

use super::{DURATION, Form, Problems, UNSIGNED, value};
use crate::cli::{ContainerFlags, RestartFlags, RolloutFlags};

const CONDITION: Form<RestartCondition> = Form {
    accepted: "any, on-failure or none",
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "any" => Ok(RestartCondition::Any),
        "on-failure" | "failure" => Ok(RestartCondition::OnFailure),
        "none" => Ok(RestartCondition::None),
        _ => Err("unknown condition".to_owned()),
    },
};

const UPDATE_ACTION: Form<FailureAction> = Form {
    accepted: "pause, continue or rollback",
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        "rollback" => Ok(FailureAction::Rollback),
        _ => Err("unknown action".to_owned()),
    },
};

const ROLLBACK_ACTION: Form<FailureAction> = Form {
    accepted: "pause or continue",
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        "rollback" => Err("a rollback can't be rolled back".to_owned()),
        _ => Err("unknown action".to_owned()),
    },
};

const ORDER: Form<UpdateOrder> = Form {
    accepted: "stop-first or start-first",
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        _ => Err("unknown order".to_owned()),
    },
};

const RETRIES: Form<i32> = Form {
    accepted: "a whole number from 0 to 2147483647",
    parse: |text| match (UNSIGNED.parse)(text)?.try_into() {
        Ok(retries) => Ok(retries),
        Err(_) => Err("too large".to_owned()),
    },
};

/// The wire's form of a duration.
pub(crate) fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn restart(
    flags: &RestartFlags,
    policy: &mut Option<RestartPolicy>,
    problems: &mut Problems,
) {
    let condition = problems.optional(
        "--restart-condition",
        flags.restart_condition.as_ref(),
        &CONDITION,
    );
    let delay = problems.optional("--restart-delay", flags.restart_delay.as_ref(), &DURATION);
    let attempts = problems.optional(
        "--restart-max-attempts",
        flags.restart_max_attempts.as_ref(),
        &UNSIGNED,
    );
    let window = problems.optional("--restart-window", flags.restart_window.as_ref(), &DURATION);
    if condition.is_none() && delay.is_none() && attempts.is_none() && window.is_none() {
        return;
    }
    let policy = policy.get_or_insert_with(|| RestartPolicy {
        condition: RestartCondition::Any.into(),
        delay: Some(wire(Duration::from_secs(5))),
        ..Default::default()
    });
    if let Some(condition) = condition {
        policy.set_condition(condition);
    }
    policy.delay = delay.map(wire).or(policy.delay);
    policy.max_attempts = attempts.unwrap_or(policy.max_attempts);
    policy.window = window.map(wire).or(policy.window);
}

/// The values of one of the two rollout configurations, still as text.
struct Rollout<'a> {
    prefix: &'static str,
    parallelism: &'a Option<String>,
    delay: &'a Option<String>,
    action: &'a Option<String>,
    monitor: &'a Option<String>,
    ratio: &'a Option<String>,
    order: &'a Option<String>,
}

pub(super) fn update(
    flags: &RolloutFlags,
    config: &mut Option<UpdateConfig>,
    problems: &mut Problems,
) {
    let texts = Rollout {
        prefix: "--update",
        parallelism: &flags.update_parallelism,
        delay: &flags.update_delay,
        action: &flags.update_on_failure,
        monitor: &flags.update_monitor,
        ratio: &flags.update_max_failure_ratio,
        order: &flags.update_order,
    };
    rollout(&texts, &UPDATE_ACTION, config, problems);
}

pub(super) fn rollback(
    flags: &RolloutFlags,
    config: &mut Option<UpdateConfig>,
    problems: &mut Problems,
) {
    let texts = Rollout {
        prefix: "--rollback",
        parallelism: &flags.rollback_parallelism,
        delay: &flags.rollback_delay,
        action: &flags.rollback_on_failure,
        monitor: &flags.rollback_monitor,
        ratio: &flags.rollback_max_failure_ratio,
        order: &flags.rollback_order,
    };
    rollout(&texts, &ROLLBACK_ACTION, config, problems);
}

fn rollout(
    texts: &Rollout<'_>,
    actions: &Form<FailureAction>,
    config: &mut Option<UpdateConfig>,
    problems: &mut Problems,
) {
    let flag = |name: &str| format!("{}-{name}", texts.prefix);
    let parallelism =
        problems.optional(&flag("parallelism"), texts.parallelism.as_ref(), &UNSIGNED);
    let delay = problems.optional(&flag("delay"), texts.delay.as_ref(), &DURATION);
    let action = problems.optional(&flag("on-failure"), texts.action.as_ref(), actions);
    let monitor = problems.optional(&flag("monitor"), texts.monitor.as_ref(), &DURATION);
    let ratio = problems.optional(
        &flag("max-failure-ratio"),
        texts.ratio.as_ref(),
        &value::RATIO,
    );
    let order = problems.optional(&flag("order"), texts.order.as_ref(), &ORDER);
    let all = [
        texts.parallelism,
        texts.delay,
        texts.action,
        texts.monitor,
        texts.ratio,
        texts.order,
    ];
    if all.iter().all(|text| text.is_none()) {
        return;
    }
    let config = config.get_or_insert_with(|| UpdateConfig {
        parallelism: 1,
        delay: Some(wire(Duration::ZERO)),
        monitor: Some(wire(Duration::from_secs(5))),
        ..Default::default()
    });
    config.parallelism = parallelism.unwrap_or(config.parallelism);
    config.delay = delay.map(wire).or(config.delay);
    config.monitor = monitor.map(wire).or(config.monitor);
    config.max_failure_ratio = ratio.unwrap_or(config.max_failure_ratio);
    if let Some(action) = action {
        config.set_failure_action(action);
    }
    if let Some(order) = order {
        config.set_order(order);
    }
}

pub(super) fn health(
    flags: &ContainerFlags,
    config: &mut Option<HealthConfig>,
    problems: &mut Problems,
) {
    if flags.no_healthcheck {
        *config = Some(HealthConfig {
            test: vec!["NONE".to_owned()],
            ..Default::default()
        });
        return;
    }
    let interval = problems.optional(
        "--health-interval",
        flags.health_interval.as_ref(),
        &DURATION,
    );
    let timeout = problems.optional("--health-timeout", flags.health_timeout.as_ref(), &DURATION);
    let retries = problems.optional("--health-retries", flags.health_retries.as_ref(), &RETRIES);
    let period = problems.optional(
        "--health-start-period",
        flags.health_start_period.as_ref(),
        &DURATION,
    );
    let start = problems.optional(
        "--health-start-interval",
        flags.health_start_interval.as_ref(),
        &DURATION,
    );
    let any = interval.or(timeout).or(period).or(start).is_some() || retries.is_some();
    if flags.health_cmd.is_none() && !any {
        return;
    }
    let config = config.get_or_insert_with(HealthConfig::default);
    if let Some(command) = &flags.health_cmd {
        config.test = vec!["CMD-SHELL".to_owned(), command.clone()];
    }
    config.interval = interval.map(wire).or(config.interval);
    config.timeout = timeout.map(wire).or(config.timeout);
    config.retries = retries.unwrap_or(config.retries);
    config.start_period = period.map(wire).or(config.start_period);
    config.start_interval = start.map(wire).or(config.start_interval);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_restart_policy_keeps_the_rest() {
        let mut problems = Problems::default();
        let mut policy = None;
        let flags = RestartFlags {
            restart_delay: Some("1s".to_owned()),
            ..Default::default()
        };
        restart(&flags, &mut policy, &mut problems);
        assert_eq!(policy.as_ref().unwrap().condition(), RestartCondition::Any);
        let flags = RestartFlags {
            restart_condition: Some("none".to_owned()),
            ..Default::default()
        };
        restart(&flags, &mut policy, &mut problems);
        let policy = policy.unwrap();
        assert_eq!(policy.condition(), RestartCondition::None);
        assert_eq!(policy.delay, Some(wire(Duration::from_secs(1))));
        assert_eq!(problems, Problems::default());
    }

    #[test]
    fn every_wrong_value_is_named() {
        let mut problems = Problems::default();
        let flags = RolloutFlags {
            rollback_parallelism: Some("-2".to_owned()),
            rollback_on_failure: Some("rollback".to_owned()),
            rollback_order: Some("random".to_owned()),
            ..Default::default()
        };
        rollback(&flags, &mut None, &mut problems);
        assert_eq!(
            problems.to_string(),
            "--rollback-parallelism -2: must not be negative; give a whole number of at least 0\n\
             --rollback-on-failure rollback: a rollback can't be rolled back; give pause or continue\n\
             --rollback-order random: unknown order; give stop-first or start-first"
        );
    }
}
