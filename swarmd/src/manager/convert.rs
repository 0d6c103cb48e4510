//! Stored objects on the wire: how the control API and the dispatcher show them.
//!
//! A stored task carries no spec; it is put together here, at the edge. [`TaskRenderer`] does that
//! for many tasks: what the tasks of one service and spec version share is made once.
//!
//! Pure; nothing here decides anything.

use std::collections::BTreeMap;

use prost::Message as _;
use swarm_proto::id::ServiceId;
use swarm_proto::pb;
use swarm_proto::resources::generic_to_wire;
use swarm_proto::service::Mode;

use super::store::{Cluster, Container, Meta, Node, Service, State, Status, Task, Update};

/// What a task of the control API without a service is called; a service outlives its tasks, so
/// this shows only for a damaged store.
const NO_SERVICE: &str = "";
/// Bytes of a task on the wire beyond what it shares with its siblings: ids, times, status, name.
const TASK_OWN_BYTES: usize = 320;
/// Address pool where none is set (SwarmKit's default).
const DEFAULT_ADDRESS_POOL: &str = "10.0.0.0/8";
/// Prefix length of subnets where none is set (SwarmKit's default).
const DEFAULT_SUBNET_SIZE: u32 = 24;
/// VXLAN port where none is set (IANA's).
const DEFAULT_VXLAN_PORT: u32 = 4789;

/// One task on the wire, for operators.
#[must_use]
pub fn task_to_wire(state: &State, task: &Task) -> pb::Task {
    TaskRenderer::for_operators(state).render(task)
}

/// Puts tasks on the wire, making what siblings share once.
#[derive(Debug)]
pub struct TaskRenderer<'a> {
    state: &'a State,
    templates: BTreeMap<(ServiceId, u64), Template>,
    /// Registry credentials are for the node that runs the task.
    secrets: Secrets,
}

/// Whether registry credentials are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Shown,
    Redacted,
}

#[derive(Debug)]
struct Template {
    /// All that the tasks of one service and spec version have in common.
    task: pb::Task,
    bytes: usize,
}

impl<'a> TaskRenderer<'a> {
    /// For the tasks of one view, as the nodes get them.
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self {
            state,
            templates: BTreeMap::new(),
            secrets: Secrets::Shown,
        }
    }

    /// For the tasks of one view, as operators see them: without registry credentials.
    #[must_use]
    pub fn for_operators(state: &'a State) -> Self {
        Self {
            secrets: Secrets::Redacted,
            ..Self::new(state)
        }
    }

    /// The state the tasks are of.
    pub fn state(&self) -> &'a State {
        self.state
    }

    /// The task on the wire.
    pub fn render(&mut self, task: &Task) -> pb::Task {
        self.render_sized(task).0
    }

    /// The task on the wire, and about how many bytes it takes there.
    pub fn render_sized(&mut self, task: &Task) -> (pb::Task, usize) {
        let template = self
            .templates
            .entry((task.service, task.spec_version))
            .or_insert_with(|| Template::new(self.state, task, self.secrets));
        let mut wire = template.task.clone();
        wire.id = task.id.to_string();
        wire.meta = Some(meta_to_wire(task.meta));
        wire.slot = task.slot;
        wire.node_id = task.node.map(|n| n.to_string()).unwrap_or_default();
        if let Some(service) = &wire.service_annotations {
            wire.annotations = Some(pb::Annotations {
                name: task_name(&service.name, task),
                ..Default::default()
            });
        }
        wire.status = Some(status_to_wire(&task.status));
        wire.desired_state = task.desired.to_wire();
        if let Some(generic) = task.generic.as_deref() {
            wire.assigned_generic_resources = generic_to_wire(generic);
        }
        (wire, template.bytes)
    }
}

/// The name a task goes by.
pub fn task_name(service: &str, task: &Task) -> String {
    let slot = match task.node {
        // Global tasks are told apart by their node, as in SwarmKit.
        Some(node) if task.slot == 0 => node.to_string(),
        Some(_) | None => task.slot.to_string(),
    };
    format!("{service}.{slot}.{}", task.id)
}

impl Template {
    fn new(state: &State, task: &Task, secrets: Secrets) -> Self {
        let service = state.services.get(&task.service);
        let spec = service.and_then(|s| s.spec_of(task.spec_version));
        let annotations = spec
            .and_then(|s| s.wire.annotations.clone())
            .unwrap_or_else(|| pb::Annotations {
                name: NO_SERVICE.to_owned(),
                ..Default::default()
            });
        let mut task_spec = spec.and_then(|s| s.wire.task.clone());
        if secrets == Secrets::Redacted {
            redact(task_spec.as_mut());
        }
        let log_driver = task_spec
            .as_ref()
            .and_then(|t| t.log_driver.clone())
            .or_else(|| default_log_driver(state));
        let is_job = spec.is_some_and(|s| match s.mode {
            Mode::ReplicatedJob { .. } | Mode::GlobalJob => true,
            Mode::Replicated { .. } | Mode::Global => false,
        });
        let version = pb::Version {
            index: task.spec_version,
        };
        let task = pb::Task {
            spec: task_spec,
            spec_version: Some(version),
            service_id: task.service.to_string(),
            service_annotations: Some(annotations),
            endpoint: spec.and_then(|s| endpoint(s.wire.endpoint.as_ref())),
            log_driver,
            job_iteration: is_job.then_some(version),
            ..Default::default()
        };
        let bytes = task.encoded_len() + TASK_OWN_BYTES;
        Self { task, bytes }
    }
}

fn default_log_driver(state: &State) -> Option<pb::Driver> {
    let spec = &state.cluster.as_ref()?.spec;
    spec.task_defaults.as_ref()?.log_driver.clone()
}

fn endpoint(spec: Option<&pb::EndpointSpec>) -> Option<pb::Endpoint> {
    let spec = spec?;
    Some(pb::Endpoint {
        spec: Some(spec.clone()),
        ports: spec.ports.clone(),
        virtual_ips: Vec::new(),
    })
}

/// Version and times of an object.
#[must_use]
pub fn meta_to_wire(meta: Meta) -> pb::Meta {
    pb::Meta {
        version: Some(pb::Version {
            index: meta.version,
        }),
        created_at: meta.created_at.to_wire(),
        updated_at: meta.updated_at.to_wire(),
    }
}

/// Where a task is.
#[must_use]
pub fn status_to_wire(status: &Status) -> pb::TaskStatus {
    let container = status.container.as_deref();
    pb::TaskStatus {
        timestamp: status.at.to_wire(),
        state: status.state.to_wire(),
        message: status.message.to_string(),
        err: status.err.to_string(),
        runtime_status: container.map(runtime_status),
        port_status: container
            .filter(|c| !c.ports.is_empty())
            .map(|c| pb::PortStatus {
                ports: c.ports.to_vec(),
            }),
        applied_by: String::new(),
        applied_at: status.applied_at.to_wire(),
    }
}

fn runtime_status(container: &Container) -> pb::task_status::RuntimeStatus {
    pb::task_status::RuntimeStatus::Container(pb::ContainerStatus {
        container_id: container.id.to_string(),
        pid: container.pid,
        exit_code: container.exit_code,
    })
}

/// A node, with what the cluster keeps of it as a manager. `manager_status` is left out: only consensus knows it.
#[must_use]
pub fn node_to_wire(node: &Node, cluster: Option<&Cluster>) -> pb::Node {
    let note = cluster.and_then(|cluster| cluster.managers.get(&node.id));
    let retired = note.and_then(|note| note.retired.as_ref());
    let retired = retired.filter(|retired| retired.done);
    // For the node itself, which begins anew under another number. A worker has none to give up.
    let manages = node.desired_role == pb::NodeRole::Manager;
    let gone = retired.filter(|retired| manages || !retired.demoted);
    let retired = retired.filter(|retired| !retired.demoted);
    pb::Node {
        retired_at: retired.and_then(|retired| retired.at.to_wire()),
        retired_reason: retired.map_or_else(String::new, |retired| retired.reason.clone()),
        retired_raft_id: gone.map_or(0, |retired| retired.raft_id),
        id: node.id.to_string(),
        meta: Some(meta_to_wire(node.meta)),
        spec: Some(pb::NodeSpec {
            annotations: Some(node.annotations.clone()),
            desired_role: node.desired_role.into(),
            membership: node.membership.into(),
            availability: node.availability.into(),
            manager_addresses: note.map_or_else(Vec::new, |note| note.addresses.clone()),
        }),
        description: node.description.as_deref().cloned(),
        status: Some(pb::NodeStatus {
            state: node.status.state.into(),
            message: node.status.message.clone(),
            addr: node.status.addr.clone(),
        }),
        certificate: Some(node.certificate.clone()),
        role: node.role.into(),
        ..Default::default()
    }
}

/// A service.
#[must_use]
pub fn service_to_wire(service: &Service) -> pb::Service {
    let wire = &service.spec.wire;
    let version = pb::Version {
        index: service.spec_version,
    };
    let job_status = match service.spec.mode {
        Mode::ReplicatedJob { .. } | Mode::GlobalJob => Some(pb::JobStatus {
            job_iteration: Some(version),
            last_execution: service.meta.created_at.to_wire(),
        }),
        Mode::Replicated { .. } | Mode::Global => None,
    };
    pb::Service {
        id: service.id.to_string(),
        meta: Some(meta_to_wire(service.meta)),
        spec: Some(for_operators(wire)),
        spec_version: Some(version),
        previous_spec: service
            .previous
            .as_ref()
            .map(|p| for_operators(&p.spec.wire)),
        previous_spec_version: service
            .previous
            .as_ref()
            .map(|p| pb::Version { index: p.version }),
        endpoint: endpoint(wire.endpoint.as_ref()),
        update_status: service.update.as_ref().map(update_to_wire),
        job_status,
        pending_delete: service.removed,
    }
}

/// A spec as operators see it: the registry's credentials stay with the managers and the nodes.
fn for_operators(spec: &pb::ServiceSpec) -> pb::ServiceSpec {
    let mut spec = spec.clone();
    redact(spec.task.as_mut());
    spec
}

fn redact(task: Option<&mut pb::TaskSpec>) {
    if let Some(pb::task_spec::Runtime::Container(container)) =
        task.and_then(|task| task.runtime.as_mut())
    {
        container.pull_options = None;
    }
}

fn update_to_wire(update: &Update) -> pb::UpdateStatus {
    pb::UpdateStatus {
        state: update.state.into(),
        started_at: update.started_at.to_wire(),
        completed_at: update.completed_at.to_wire(),
        message: update.message.clone(),
    }
}

/// The cluster without its secrets: CA keys, signing key, unlock keys, network keys. Join tokens
/// stay, as in SwarmKit: only managers may read the cluster.
#[must_use]
pub fn cluster_to_wire(cluster: &Cluster) -> pb::Cluster {
    let mut spec = cluster.spec.clone();
    if let Some(ca) = &mut spec.ca_config {
        ca.signing_ca_cert.clear();
        ca.signing_ca_key.clear();
    }
    let root = &cluster.root_ca;
    let blacklisted_certificates = cluster.blacklist.iter().map(|(node, until)| {
        let expiry = until.to_wire();
        (node.to_string(), pb::BlacklistedCertificate { expiry })
    });
    pb::Cluster {
        id: cluster.id.to_string(),
        meta: Some(meta_to_wire(cluster.meta)),
        spec: Some(spec),
        root_ca: Some(pb::RootCa {
            ca_key: Vec::new(),
            ca_cert: root.ca_cert.clone(),
            ca_cert_hash: root.ca_cert_hash.clone(),
            join_tokens: root.join_tokens.clone(),
            root_rotation: root
                .root_rotation
                .as_ref()
                .map(|rotation| pb::RootRotation {
                    ca_key: Vec::new(),
                    join_tokens: None,
                    ..rotation.clone()
                }),
            last_forced_rotation: root.last_forced_rotation,
        }),
        blacklisted_certificates: blacklisted_certificates.collect(),
        default_address_pool: vec![DEFAULT_ADDRESS_POOL.to_owned()],
        subnet_size: DEFAULT_SUBNET_SIZE,
        vxlanudp_port: DEFAULT_VXLAN_PORT,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarm_proto::id::{ClusterId, NodeId, TaskId};
    use swarm_proto::resources::Generic;
    use swarm_proto::time::Timestamp;

    use super::super::store::{Change, Entry, NewTask, Placement, apply};
    use super::*;
    use swarm_proto::service::{RestartPolicy, ServiceSpec, TaskPolicy, UpdateConfig};
    use swarm_proto::task_state::TaskState;

    fn spec(image: &str) -> Arc<ServiceSpec> {
        let container = pb::ContainerSpec {
            image: image.to_owned(),
            ..Default::default()
        };
        let wire = pb::ServiceSpec {
            annotations: Some(pb::Annotations {
                name: "web".to_owned(),
                ..Default::default()
            }),
            task: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            ..Default::default()
        };
        Arc::new(ServiceSpec {
            wire: Arc::new(wire),
            name: "web".to_owned(),
            mode: Mode::Replicated { replicas: 2 },
            task: TaskPolicy {
                restart: RestartPolicy::default(),
                ..TaskPolicy::default()
            },
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            ports: Vec::new(),
        })
    }

    #[test]
    fn a_task_gets_the_spec_of_its_own_version() {
        let (service, task) = (ServiceId::from_raw(1), TaskId::from_raw(2));
        let mut state = State::default();
        let mut run = |version, change| {
            let entry = Entry {
                now: Timestamp::from_millis(1000),
                changes: vec![change],
            };
            let applied = apply(&mut state, version, &entry);
            assert_eq!(applied.results, [Ok(())]);
        };
        run(
            1,
            Change::CreateService {
                id: service,
                spec: spec("old"),
            },
        );
        let new = NewTask {
            id: task,
            slot: 7,
            desired: TaskState::Running,
            node: None,
            start_at: Timestamp::ZERO,
            after: None,
            generic: [].into(),
        };
        run(
            2,
            Change::CreateTasks {
                service,
                spec_version: 1,
                tasks: vec![new],
            },
        );
        run(
            3,
            Change::UpdateService {
                id: service,
                expected: 1,
                spec: spec("new"),
            },
        );
        let task = &state.tasks[&task];
        let wire = task_to_wire(&state, task);
        let image = |spec: Option<pb::TaskSpec>| match spec.and_then(|s| s.runtime) {
            Some(pb::task_spec::Runtime::Container(c)) => c.image,
            other => panic!("{other:?}"),
        };
        assert_eq!(image(wire.spec), "old");
        assert_eq!(wire.annotations.unwrap().name, format!("web.7.{}", task.id));
        let service = service_to_wire(&state.services[&service]);
        assert_eq!(image(service.spec.unwrap().task), "new");
        assert_eq!(image(service.previous_spec.unwrap().task), "old");
        assert_eq!(service.previous_spec_version.unwrap().index, 1);
    }

    #[test]
    fn the_cluster_shows_no_secret() {
        let secret = b"SECRET".to_vec();
        let key = pb::EncryptionKey {
            key: secret.clone(),
            ..Default::default()
        };
        let cluster = Cluster {
            id: ClusterId::from_raw(1),
            meta: Meta::default(),
            spec: pb::ClusterSpec {
                ca_config: Some(pb::CaConfig {
                    signing_ca_key: secret.clone(),
                    signing_ca_cert: secret.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            root_ca: pb::RootCa {
                ca_key: secret.clone(),
                ca_cert: b"cert".to_vec(),
                root_rotation: Some(pb::RootRotation {
                    ca_key: secret.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            blacklist: [(NodeId::from_raw(9), Timestamp::from_millis(5))].into(),
            unlock_keys: vec![key],
            managers: std::collections::BTreeMap::new(),
        };
        let bytes = cluster_to_wire(&cluster).encode_to_vec();
        assert!(!bytes.windows(6).any(|w| w == secret));
        assert!(bytes.windows(4).any(|w| w == b"cert"));
    }

    #[test]
    fn generic_resources_keep_their_form() {
        let generic = BTreeMap::from([
            ("gpu".to_owned(), Generic::Names(["a".to_owned()].into())),
            ("ssd".to_owned(), Generic::Count(3)),
        ]);
        let placement = Placement {
            task: TaskId::from_raw(1),
            node: NodeId::from_raw(1),
            generic: generic.clone(),
        };
        let wire = generic_to_wire(&placement.generic);
        let back = swarm_proto::resources::Resources::from_wire(&pb::Resources {
            generic: wire,
            ..Default::default()
        });
        assert_eq!(back.generic, generic);
    }
}
