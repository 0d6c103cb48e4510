//! Tasks: read, list, remove.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_proto::id::{NodeId, ServiceId, TaskId};
use swarm_proto::pb;

use super::ControlApi;
use super::error::Error;
use super::filter::{Common, any_of, has_labels};
use crate::manager::convert;
use crate::manager::store::{Change, State, Task};

impl ControlApi {
    pub(super) async fn get_task_by(&self, text: &str) -> Result<pb::GetTaskResponse, Error> {
        let id = parse(text)?;
        let state = self.store.read().await?;
        let task = state.tasks.get(&id).ok_or_else(|| not_found(id))?;
        let usage = task
            .node
            .zip(self.usages.as_ref())
            .and_then(|(node, usages)| usages.of(node, id));
        Ok(pb::GetTaskResponse {
            task: Some(pb::Task {
                usage,
                ..convert::task_to_wire(&state, task)
            }),
        })
    }

    pub(super) async fn list_tasks_by(
        &self,
        request: pb::ListTasksRequest,
    ) -> Result<pb::ListTasksResponse, Error> {
        let state = self.store.read().await?;
        let filters = request.filters.unwrap_or_default();
        let filter = Filter::new(&state, &filters);
        let mut renderer = convert::TaskRenderer::for_operators(&state);
        let tasks = filter.candidates().into_iter().filter(|t| filter.pass(t));
        let tasks = tasks
            .map(|t| renderer.render(t))
            .filter(|t| has_name(t, &filters))
            .collect();
        Ok(pb::ListTasksResponse { tasks })
    }

    pub(super) async fn remove_task_by(
        &self,
        request: pb::RemoveTaskRequest,
    ) -> Result<pb::RemoveTaskResponse, Error> {
        let id = parse(&request.task_id)?;
        if !self.store.view().tasks.contains_key(&id) {
            return Err(not_found(id));
        }
        self.write(Change::DeleteTasks { tasks: vec![id] }).await?;
        Ok(pb::RemoveTaskResponse {})
    }
}

fn parse(text: &str) -> Result<TaskId, Error> {
    text.parse().map_err(|e| Error::no_such(&e))
}

fn not_found(id: TaskId) -> Error {
    Error::NotFound {
        kind: "task",
        name: id.to_string(),
    }
}

fn has_name(task: &pb::Task, filters: &pb::list_tasks_request::Filters) -> bool {
    let names = Common {
        names: &filters.names,
        name_prefixes: &filters.name_prefixes,
        ..Common::default()
    };
    let name = task.annotations.as_ref().map_or("", |a| a.name.as_str());
    names.pass(&task.id, name, &BTreeMap::new())
}

/// A request's filters over one state.
struct Filter<'a> {
    state: &'a State,
    wire: &'a pb::list_tasks_request::Filters,
    services: Vec<ServiceId>,
    nodes: Vec<NodeId>,
}

impl<'a> Filter<'a> {
    fn new(state: &'a State, wire: &'a pb::list_tasks_request::Filters) -> Self {
        // An id that is no id names no task; the filter stays, and nothing passes it.
        let services = wire
            .service_ids
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let nodes = wire
            .node_ids
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        Self {
            state,
            wire,
            services,
            nodes,
        }
    }

    /// The tasks that an index leads to.
    fn candidates(&self) -> Vec<&'a Arc<Task>> {
        let state = self.state;
        if !self.wire.service_ids.is_empty() {
            self.services
                .iter()
                .flat_map(|id| state.service_tasks(*id))
                .collect()
        } else if !self.wire.node_ids.is_empty() {
            self.nodes
                .iter()
                .flat_map(|id| state.node_tasks(*id))
                .collect()
        } else {
            state.tasks.values().collect()
        }
    }

    fn pass(&self, task: &Task) -> bool {
        let f = self.wire;
        let none = BTreeMap::new();
        let common = Common {
            // Names are put together when a task is rendered; they are looked at then.
            names: &[],
            name_prefixes: &[],
            id_prefixes: &f.id_prefixes,
            labels: None,
        };
        (f.service_ids.is_empty() || self.services.contains(&task.service))
            && (f.node_ids.is_empty() || task.node.is_some_and(|n| self.nodes.contains(&n)))
            && any_of(&f.desired_states, |s| *s == task.desired.to_wire())
            && any_of(&f.runtimes, |r| r == "container")
            && (!f.up_to_date || self.is_up_to_date(task))
            && (f.labels.is_empty() || has_labels(self.labels(task).unwrap_or(&none), &f.labels))
            && common.pass(&task.id, "", &none)
    }

    fn is_up_to_date(&self, task: &Task) -> bool {
        self.state
            .service(task.service)
            .is_some_and(|s| s.spec_version == task.spec_version)
    }

    /// The labels of the task's container.
    fn labels(&self, task: &Task) -> Option<&'a BTreeMap<String, String>> {
        let runtime = self
            .state
            .task_spec(task)?
            .wire
            .task
            .as_ref()?
            .runtime
            .as_ref()?;
        match runtime {
            pb::task_spec::Runtime::Container(container) => Some(&container.labels),
            pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_) => None,
        }
    }
}
