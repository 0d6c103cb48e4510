//! Requests to the local swarmd: one method per question a command asks, with errors that name it.

mod dial;
mod wire;

use std::time::Duration;

use swarm_proto::own::images_client::ImagesClient;
use swarm_proto::own::operator_client::OperatorClient;
use swarm_proto::pb;
use swarm_proto::pb::ca_client::CaClient;
use swarm_proto::pb::control_client::ControlClient;
use swarm_proto::pb::watch_client::WatchClient;
use tonic::Code;
use zeroize::Zeroizing;

use crate::environment::Connector;
use crate::error::Error;
pub(crate) use wire::Reads;
use wire::{Staleness, Wire};

/// 100,000 tasks of a few hundred bytes fit; a broken manager can't fill the memory.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Read-modify-write rounds before giving up against other writers.
const WRITE_ATTEMPTS: u32 = 5;

/// The services of the local swarmd.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    control: ControlClient<Wire>,
    ca: CaClient<Wire>,
    operator: OperatorClient<Wire>,
    images: ImagesClient<Wire>,
    watch: WatchClient<Wire>,
    timeout: Option<Duration>,
    wire: Wire,
}

/// Which state an update goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The spec that is sent.
    Spec,
    /// The spec before the current one.
    Previous,
}

/// Whether the manager asks the registry what an image's tag means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolve {
    /// Once, for all tasks.
    Digest,
    /// Each node does.
    Never,
}

impl Client {
    /// Connects to `socket` unless the connector brings its own channel.
    pub(crate) async fn connect(
        connector: Connector,
        socket: &str,
        (timeout, reads): (Option<Duration>, Reads),
    ) -> Result<Self, Error> {
        let channel = match connector {
            Connector::Channel(channel) => channel,
            Connector::Socket => dial::dial(socket).await?,
        };
        let channel = Wire::new(channel, reads);
        Ok(Self {
            control: ControlClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            ca: CaClient::new(channel.clone()),
            operator: OperatorClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            images: ImagesClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            timeout,
            wire: channel,
        })
    }

    /// What the last answer is worth, where it was stale; once.
    pub(crate) fn take_staleness(&self) -> Option<Staleness> {
        self.wire.take_staleness()
    }

    /// The operator service: what SwarmKit's API has no place for.
    pub(crate) fn operator(&mut self) -> &mut OperatorClient<Wire> {
        &mut self.operator
    }

    /// The images of the node.
    pub(crate) fn images(&mut self) -> &mut ImagesClient<Wire> {
        &mut self.images
    }

    /// The watch service.
    pub(crate) fn watch(&mut self) -> &mut WatchClient<Wire> {
        &mut self.watch
    }

    /// A request that must be answered within the run's timeout.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    pub(crate) async fn list_nodes(
        &mut self,
        filters: pb::list_nodes_request::Filters,
    ) -> Result<Vec<pb::Node>, Error> {
        let request = self.request(pb::ListNodesRequest {
            filters: Some(filters),
        });
        let answer = self.control.list_nodes(request).await;
        Ok(answer
            .map_err(|status| Error::refused("list nodes", status))?
            .into_inner()
            .nodes)
    }

    pub(crate) async fn get_node(&mut self, id: &str) -> Result<Option<pb::Node>, Error> {
        let request = self.request(pb::GetNodeRequest {
            node_id: id.to_owned(),
        });
        found(self.control.get_node(request).await, || {
            format!("get node {id}")
        })
        .map(|answer| answer.and_then(|answer| answer.node))
    }

    pub(crate) async fn remove_node(&mut self, id: &str, force: Force) -> Result<(), Error> {
        let message = pb::RemoveNodeRequest {
            node_id: id.to_owned(),
            force: force == Force::Yes,
        };
        let request = self.request(message);
        let answer = self.control.remove_node(request).await;
        answer
            .map(drop)
            .map_err(|status| Error::refused(format!("remove node {id}"), status))
    }

    pub(crate) async fn list_services(
        &mut self,
        filters: pb::list_services_request::Filters,
    ) -> Result<Vec<pb::Service>, Error> {
        let request = self.request(pb::ListServicesRequest {
            filters: Some(filters),
        });
        let answer = self.control.list_services(request).await;
        Ok(answer
            .map_err(|status| Error::refused("list services", status))?
            .into_inner()
            .services)
    }

    pub(crate) async fn get_service(&mut self, id: &str) -> Result<Option<pb::Service>, Error> {
        let message = pb::GetServiceRequest {
            service_id: id.to_owned(),
            insert_defaults: false,
        };
        let request = self.request(message);
        found(self.control.get_service(request).await, || {
            format!("get service {id}")
        })
        .map(|answer| answer.and_then(|answer| answer.service))
    }

    pub(crate) async fn service_statuses(
        &mut self,
        ids: Vec<String>,
    ) -> Result<Vec<pb::list_service_statuses_response::ServiceStatus>, Error> {
        let request = self.request(pb::ListServiceStatusesRequest { services: ids });
        let answer = self.control.list_service_statuses(request).await;
        let answer = answer.map_err(|status| Error::refused("count tasks of services", status))?;
        Ok(answer.into_inner().statuses)
    }

    pub(crate) async fn create_service(
        &mut self,
        spec: pb::ServiceSpec,
        resolve: Resolve,
    ) -> Result<(pb::Service, Vec<String>), Error> {
        let name = spec
            .annotations
            .as_ref()
            .map(|a| a.name.clone())
            .unwrap_or_default();
        let what = format!("create service {name}");
        let request = self.request(pb::CreateServiceRequest {
            spec: Some(spec),
            resolve_image: resolve == Resolve::Digest,
        });
        let answer = self.control.create_service(request).await;
        let answer = answer
            .map_err(|status| Error::refused(&what, status))?
            .into_inner();
        let service = answer.service.ok_or_else(|| incomplete(what))?;
        Ok((service, answer.warnings))
    }

    pub(crate) async fn remove_service(&mut self, id: &str, name: &str) -> Result<(), Error> {
        let request = self.request(pb::RemoveServiceRequest {
            service_id: id.to_owned(),
        });
        let answer = self.control.remove_service(request).await;
        answer
            .map(drop)
            .map_err(|status| Error::refused(format!("remove service {name}"), status))
    }

    pub(crate) async fn list_tasks(
        &mut self,
        filters: pb::list_tasks_request::Filters,
    ) -> Result<Vec<pb::Task>, Error> {
        let request = self.request(pb::ListTasksRequest {
            filters: Some(filters),
        });
        let answer = self.control.list_tasks(request).await;
        Ok(answer
            .map_err(|status| Error::refused("list tasks", status))?
            .into_inner()
            .tasks)
    }

    pub(crate) async fn get_task(&mut self, id: &str) -> Result<Option<pb::Task>, Error> {
        let request = self.request(pb::GetTaskRequest {
            task_id: id.to_owned(),
        });
        found(self.control.get_task(request).await, || {
            format!("get task {id}")
        })
        .map(|answer| answer.and_then(|answer| answer.task))
    }

    pub(crate) async fn remove_task(&mut self, id: &str) -> Result<(), Error> {
        let request = self.request(pb::RemoveTaskRequest {
            task_id: id.to_owned(),
        });
        let answer = self.control.remove_task(request).await;
        answer
            .map(drop)
            .map_err(|status| Error::refused(format!("remove task {id}"), status))
    }

    pub(crate) async fn list_clusters(
        &mut self,
        filters: pb::list_clusters_request::Filters,
    ) -> Result<Vec<pb::Cluster>, Error> {
        let request = self.request(pb::ListClustersRequest {
            filters: Some(filters),
        });
        let answer = self.control.list_clusters(request).await;
        Ok(answer
            .map_err(|status| Error::refused("list clusters", status))?
            .into_inner()
            .clusters)
    }

    pub(crate) async fn get_cluster(&mut self, id: &str) -> Result<Option<pb::Cluster>, Error> {
        let request = self.request(pb::GetClusterRequest {
            cluster_id: id.to_owned(),
        });
        found(self.control.get_cluster(request).await, || {
            format!("get cluster {id}")
        })
        .map(|answer| answer.and_then(|answer| answer.cluster))
    }

    /// The key that unlocks managers; empty without autolock.
    pub(crate) async fn get_unlock_key(&mut self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let request = self.request(pb::GetUnlockKeyRequest {});
        let answer = self.ca.get_unlock_key(request).await;
        let answer = answer.map_err(|status| Error::refused("get the unlock key", status))?;
        Ok(Zeroizing::new(answer.into_inner().unlock_key))
    }

    /// Changes a node's spec; tries again when somebody else wrote in between. Answers `None` when
    /// `change` finds nothing to do.
    pub(crate) async fn update_node(
        &mut self,
        mut node: pb::Node,
        force: Force,
        change: impl Fn(&mut pb::NodeSpec) -> Result<(), Error>,
    ) -> Result<Option<pb::Node>, Error> {
        let what = format!("update node {}", crate::resolve::node_name(&node));
        for attempt in 1.. {
            let before = node.spec.clone().unwrap_or_default();
            let mut spec = before.clone();
            change(&mut spec)?;
            // By force it may be said again: what it takes may not have been so before.
            if spec == before && force == Force::No {
                return Ok(None);
            }
            let request = self.request(pb::UpdateNodeRequest {
                node_id: node.id.clone(),
                node_version: node.meta.as_ref().and_then(|meta| meta.version),
                spec: Some(spec),
                force: force == Force::Yes,
            });
            match self.control.update_node(request).await {
                Ok(answer) => return Ok(answer.into_inner().node),
                Err(status) if attempt < WRITE_ATTEMPTS && stale(&status) => {
                    node = self.get_node(&node.id).await?.ok_or_else(|| gone(&what))?;
                }
                Err(status) => return Err(Error::refused(what, status)),
            }
        }
        Ok(None)
    }

    /// Changes a service's spec, or goes back to the previous one. As [`Self::update_node`].
    pub(crate) async fn update_service(
        &mut self,
        mut service: pb::Service,
        (target, resolve): (Target, Resolve),
        change: impl Fn(&mut pb::ServiceSpec) -> Result<(), Error>,
    ) -> Result<Option<(pb::Service, Vec<String>)>, Error> {
        let what = format!("update service {}", crate::resolve::service_name(&service));
        let rollback = match target {
            Target::Spec => pb::update_service_request::Rollback::None,
            Target::Previous => pb::update_service_request::Rollback::Previous,
        };
        for attempt in 1.. {
            let before = service.spec.clone().unwrap_or_default();
            let mut spec = before.clone();
            change(&mut spec)?;
            if spec == before && target == Target::Spec {
                return Ok(None);
            }
            let request = self.request(pb::UpdateServiceRequest {
                service_id: service.id.clone(),
                service_version: service.meta.as_ref().and_then(|meta| meta.version),
                spec: Some(spec),
                rollback: rollback.into(),
                resolve_image: resolve == Resolve::Digest,
            });
            match self.control.update_service(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    return Ok(answer.service.map(|service| (service, answer.warnings)));
                }
                Err(status) if attempt < WRITE_ATTEMPTS && stale(&status) => {
                    service = self
                        .get_service(&service.id)
                        .await?
                        .ok_or_else(|| gone(&what))?;
                }
                Err(status) => return Err(Error::refused(what, status)),
            }
        }
        Ok(None)
    }

    /// Changes the cluster's spec or rotates its keys. As [`Self::update_node`].
    pub(crate) async fn update_cluster(
        &mut self,
        mut cluster: pb::Cluster,
        rotation: pb::KeyRotation,
        change: impl Fn(&mut pb::ClusterSpec),
    ) -> Result<Option<pb::Cluster>, Error> {
        let what = format!("update cluster {}", crate::resolve::cluster_name(&cluster));
        for attempt in 1.. {
            let before = cluster.spec.clone().unwrap_or_default();
            let mut spec = before.clone();
            change(&mut spec);
            if spec == before && rotation == pb::KeyRotation::default() {
                return Ok(None);
            }
            let request = self.request(pb::UpdateClusterRequest {
                cluster_id: cluster.id.clone(),
                cluster_version: cluster.meta.as_ref().and_then(|meta| meta.version),
                spec: Some(spec),
                rotation: Some(rotation),
            });
            match self.control.update_cluster(request).await {
                Ok(answer) => return Ok(answer.into_inner().cluster),
                Err(status) if attempt < WRITE_ATTEMPTS && stale(&status) => {
                    cluster = self
                        .get_cluster(&cluster.id)
                        .await?
                        .ok_or_else(|| gone(&what))?;
                }
                Err(status) => return Err(Error::refused(what, status)),
            }
        }
        Ok(None)
    }

    pub(crate) async fn list_networks(
        &mut self,
        filters: pb::list_networks_request::Filters,
    ) -> Result<Vec<pb::Network>, tonic::Status> {
        let message = pb::ListNetworksRequest {
            filters: Some(filters),
            appdata: None,
        };
        let request = self.request(message);
        Ok(self
            .control
            .list_networks(request)
            .await?
            .into_inner()
            .networks)
    }
}

/// Whether a refusal to remove is overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// SwarmKit answers a write against an old version with this text, under a code that has changed over time.
fn stale(status: &tonic::Status) -> bool {
    status.code() == Code::Aborted || status.message().contains("out of sequence")
}

fn gone(what: &str) -> Error {
    Error::Rejected {
        what: what.to_owned(),
        reason: "it was removed meanwhile".to_owned(),
    }
}

fn incomplete(what: String) -> Error {
    Error::Rejected {
        what,
        reason: "the manager answered without the object".to_owned(),
    }
}

/// An answer, or `None` for an object that is not there.
fn found<T>(
    answer: Result<tonic::Response<T>, tonic::Status>,
    what: impl FnOnce() -> String,
) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(Error::refused(what(), status)),
    }
}
