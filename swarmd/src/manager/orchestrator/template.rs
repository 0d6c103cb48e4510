//! Which tasks of an older spec are out of date.
//!
//! A newer spec version alone does not replace a task. Where only the placement changed, a task
//! stays if its node meets the new constraints; where only the credentials of the registry
//! changed, it stays if it has its image.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::service::ServiceSpec;
use swarm_proto::task_state::TaskState;

use crate::manager::scheduler::facts::Facts;
use crate::manager::store::{Service, State, Task};

/// How a service's older specs differ from its current one.
#[derive(Debug)]
pub(crate) struct Templates<'a> {
    service: &'a Service,
    differences: BTreeMap<u64, Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// In what the task is.
    Substance,
    /// At most in these.
    Circumstance { placement: bool, pull: bool },
}

impl<'a> Templates<'a> {
    pub(crate) fn of(service: &'a Service) -> Self {
        let old = service.old_specs.iter();
        let differences = old
            .map(|(version, spec)| (*version, difference(spec, &service.spec)))
            .collect();
        Self {
            service,
            differences,
        }
    }

    /// Whether a task has to be replaced by one of the current spec.
    pub(crate) fn is_outdated(&self, state: &State, task: &Task) -> bool {
        if task.spec_version == self.service.spec_version {
            return false;
        }
        match self.differences.get(&task.spec_version) {
            None | Some(Difference::Substance) => true,
            Some(Difference::Circumstance { placement, pull }) => {
                (*placement && !self.node_suits(state, task)) || (*pull && !has_image(task))
            }
        }
    }

    fn node_suits(&self, state: &State, task: &Task) -> bool {
        let node = task.node.and_then(|id| state.nodes.get(&id));
        let placement = &self.service.spec.task.placement;
        node.is_some_and(|node| placement.constraints_hold(&Facts::of(node).view()))
    }
}

fn has_image(task: &Task) -> bool {
    task.status.state >= TaskState::Ready && task.status.state <= TaskState::Running
}

fn difference(old: &ServiceSpec, new: &ServiceSpec) -> Difference {
    let (old, new) = (&old.wire, &new.wire);
    let substance = |task: &Option<pb::TaskSpec>| {
        let mut task = task.clone().unwrap_or_default();
        let placement = task.placement.take();
        let pull = pull_options(&mut task);
        (task, placement, pull)
    };
    let (old_task, old_placement, old_pull) = substance(&old.task);
    let (new_task, new_placement, new_pull) = substance(&new.task);
    if old_task != new_task || old.endpoint != new.endpoint {
        return Difference::Substance;
    }
    Difference::Circumstance {
        placement: old_placement != new_placement,
        pull: old_pull != new_pull,
    }
}

fn pull_options(task: &mut pb::TaskSpec) -> Option<pb::container_spec::PullOptions> {
    match &mut task.runtime {
        Some(pb::task_spec::Runtime::Container(container)) => container.pull_options.take(),
        Some(pb::task_spec::Runtime::Generic(_) | pb::task_spec::Runtime::Attachment(_)) | None => {
            None
        }
    }
}
