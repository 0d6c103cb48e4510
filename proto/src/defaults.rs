//! What an unset part of a service's spec means, written out.
//!
//! `GetService.insert_defaults` shows it; parsing fills the same values in. A test holds the two
//! together: a spec and its form with defaults parse to the same decisions.

use std::time::Duration;

use crate::pb;
use crate::restart::RestartPolicy;
use crate::time::duration_to_wire;
use crate::update::UpdateConfig;

/// How long a stopped container has before it is killed.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Fills every unset part that has a default. A job has no update config, so it gets none.
pub(crate) fn insert(mut spec: pb::ServiceSpec) -> pb::ServiceSpec {
    use pb::service_spec::Mode;
    let is_job = matches!(
        &spec.mode,
        Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_))
    );
    let task = spec.task.get_or_insert_default();
    if let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime {
        container
            .stop_grace_period
            .get_or_insert_with(|| duration_to_wire(STOP_GRACE_PERIOD));
        container.pull_options.get_or_insert_default();
        container.dns_config.get_or_insert_default();
    }
    task.resources.get_or_insert_default();
    task.placement.get_or_insert_default();
    let restart = task.restart.get_or_insert_with(|| pb::RestartPolicy {
        condition: pb::restart_policy::RestartCondition::Any.into(),
        ..Default::default()
    });
    restart
        .delay
        .get_or_insert_with(|| duration_to_wire(RestartPolicy::default().delay));
    if !is_job {
        insert_update(&mut spec.update);
        insert_update(&mut spec.rollback);
    }
    spec
}

fn insert_update(config: &mut Option<pb::UpdateConfig>) {
    let default = UpdateConfig::default();
    let config = config.get_or_insert_with(|| pb::UpdateConfig {
        parallelism: default.parallelism,
        failure_action: pb::update_config::FailureAction::Pause.into(),
        order: pb::update_config::UpdateOrder::StopFirst.into(),
        ..Default::default()
    });
    config
        .monitor
        .get_or_insert_with(|| duration_to_wire(default.monitor));
}
