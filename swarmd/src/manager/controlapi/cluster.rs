//! The cluster object: read, settings, rotation of join tokens and of the unlock key.

use std::sync::Arc;

use swarm_proto::cluster::ClusterSpec;
use swarm_proto::external_ca::EXTERNAL_CAS_MAX;
use swarm_proto::service::{FieldError, InvalidSpec};
use swarm_proto::{pb, unserved};

use super::error::Error;
use super::filter::Common;
use super::{ControlApi, root_ca, support, version_of};
use crate::ca::root::RootDigest;
use crate::ca::roots;
use crate::ca::token::JoinToken;
use crate::manager::autolock::{self, Rotate};
use crate::manager::store::{Change, Cluster, State};
use crate::manager::{convert, renewal};

impl ControlApi {
    pub(super) async fn get_cluster_by(&self, text: &str) -> Result<pb::GetClusterResponse, Error> {
        let state = self.store.read().await?;
        Ok(pb::GetClusterResponse {
            cluster: Some(shown(&state, named(&state, text)?.as_ref())),
        })
    }

    pub(super) async fn list_clusters_by(
        &self,
        request: pb::ListClustersRequest,
    ) -> Result<pb::ListClustersResponse, Error> {
        let filters = request.filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
            labels: Some(&filters.labels),
        };
        let state = self.store.read().await?;
        let pass = |c: &Arc<Cluster>| {
            let annotations = c.spec.annotations.clone().unwrap_or_default();
            common.pass(&c.id, &annotations.name, &annotations.labels)
        };
        let clusters = state.cluster.iter().filter(|c| pass(c));
        let clusters = clusters.map(|c| shown(&state, c)).collect();
        Ok(pb::ListClustersResponse { clusters })
    }

    pub(super) async fn update_cluster_by(
        &self,
        request: pb::UpdateClusterRequest,
    ) -> Result<pb::UpdateClusterResponse, Error> {
        let expected = version_of(request.cluster_version.as_ref())?;
        let old = named(&self.store.read().await?, &request.cluster_id)?;
        let mut cluster = old.as_ref().clone();
        cluster.meta.version = expected;
        if let Some(spec) = request.spec {
            support::check_size("the cluster", &spec)?;
            check_spec(&spec)?;
            cluster.spec = spec;
            root_ca::decide(&mut cluster, &old, &self.signer, self.clock.now()).await?;
        }
        let rotation = request.rotation.unwrap_or_default();
        rotate_tokens(&mut cluster, &rotation)?;
        decide_unlock_key(&mut cluster, &rotation)?;
        self.write(Change::UpdateCluster(Arc::new(cluster))).await?;
        // The write is applied here: no barrier, which could fail where the write did not.
        let state = self.store.view();
        let written = state.cluster.as_ref();
        Ok(pb::UpdateClusterResponse {
            cluster: written.map(|cluster| shown(&state, cluster)),
        })
    }
}

fn named(state: &State, text: &str) -> Result<Arc<Cluster>, Error> {
    let cluster = state.cluster.clone();
    let cluster = cluster.filter(|c| c.id.to_string() == text);
    cluster.ok_or_else(|| Error::NotFound {
        kind: "cluster",
        name: text.to_owned(),
    })
}

/// The cluster without its secrets, with how far a change of its root is.
fn shown(state: &State, cluster: &Cluster) -> pb::Cluster {
    let mut wire = convert::cluster_to_wire(cluster);
    let root = wire.root_ca.as_mut();
    if let Some(rotation) = root.and_then(|root| root.root_rotation.as_mut()) {
        let left = renewal::waits_for(state);
        rotation.waits_for = left.iter().map(ToString::to_string).collect();
    }
    wire
}

fn rotate_tokens(cluster: &mut Cluster, rotation: &pb::KeyRotation) -> Result<(), Error> {
    let digest = RootDigest::of(&cluster.root_ca.ca_cert);
    let new_token = || {
        let token = JoinToken::generate(digest);
        let token = token.map_err(|e| Error::FailedPrecondition(e.to_string()))?;
        Ok::<_, Error>(token.reveal().to_string())
    };
    let tokens = cluster.root_ca.join_tokens.get_or_insert_default();
    if rotation.worker_join_token {
        tokens.worker = new_token()?;
    }
    if rotation.manager_join_token {
        tokens.manager = new_token()?;
    }
    Ok(())
}

fn decide_unlock_key(cluster: &mut Cluster, rotation: &pb::KeyRotation) -> Result<(), Error> {
    let rotate = match rotation.manager_unlock_key {
        true => Rotate::Yes,
        false => Rotate::No,
    };
    let decided = autolock::decide(cluster, rotate);
    match decided.map_err(|e| Error::FailedPrecondition(e.to_string()))? {
        true => Ok(()),
        false => Err(Error::FailedPrecondition(
            "cluster: there is no unlock key to rotate, because autolock is off; turn it on with \
             `swarmctl cluster update --autolock`"
                .to_owned(),
        )),
    }
}

/// All that is wrong with a new cluster spec, and what this version does not serve.
fn check_spec(spec: &pb::ClusterSpec) -> Result<(), Error> {
    let external = external_faults(spec);
    ClusterSpec::try_from(spec).map_err(|invalid| invalid.and(external.clone()))?;
    if !external.is_empty() {
        return Err(InvalidSpec(external).into());
    }
    let driver = spec
        .task_defaults
        .as_ref()
        .and_then(|d| d.log_driver.as_ref());
    let unserved = driver.map(|driver| unserved::log_driver("task_defaults.log_driver", driver));
    support::refuse("cluster", unserved.unwrap_or_default())
}

/// What is wrong with external CAs that only who reads certificates sees.
fn external_faults(spec: &pb::ClusterSpec) -> Vec<FieldError> {
    let external = spec.ca_config.iter().flat_map(|ca| &ca.external_cas);
    let external = external.take(EXTERNAL_CAS_MAX).enumerate();
    let fault = |(i, external): (usize, &pb::ExternalCa)| {
        if external.ca_cert.is_empty() {
            return None;
        }
        let reason = roots::authority(&external.ca_cert).err()?;
        Some(FieldError {
            field: format!("ca_config.external_cas[{i}].ca_cert"),
            reason: reason.to_string(),
        })
    };
    external.filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster {
            id: swarm_proto::id::ClusterId::from_raw(1),
            meta: crate::manager::store::Meta::default(),
            spec: pb::ClusterSpec::default(),
            root_ca: pb::RootCa::default(),
            blacklist: std::collections::BTreeMap::new(),
            unlock_keys: Vec::new(),
            managers: std::collections::BTreeMap::new(),
        }
    }

    fn named() -> pb::ClusterSpec {
        let annotations = pb::Annotations {
            name: "default".to_owned(),
            ..Default::default()
        };
        pb::ClusterSpec {
            annotations: Some(annotations),
            ..Default::default()
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let mut spec = named();
        spec.annotations = None;
        spec.ca_config = Some(pb::CaConfig {
            node_cert_expiry: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            ..Default::default()
        });
        spec.dispatcher = Some(pb::DispatcherConfig {
            heartbeat_period: Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
        });
        let external = |url: &str, cert: &str| pb::ExternalCa {
            url: url.to_owned(),
            ca_cert: cert.into(),
            ..Default::default()
        };
        let config = spec.ca_config.get_or_insert_default();
        config.external_cas = vec![
            external("http://ca", ""),
            external("https://ca", "no certificate"),
        ];
        let error = check_spec(&spec).unwrap_err().to_string();
        for field in [
            "name: ",
            "node_cert_expiry",
            "heartbeat_period",
            "external_cas[0].url",
            "external_cas[1].ca_cert: ",
        ] {
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn there_is_nothing_to_rotate_without_autolock() {
        let rotation = pb::KeyRotation {
            manager_unlock_key: true,
            ..Default::default()
        };
        let mut cluster = cluster();
        let error = decide_unlock_key(&mut cluster, &rotation).unwrap_err();
        assert!(error.to_string().contains("autolock is off"), "{error}");
        cluster.spec.encryption_config = Some(pb::EncryptionConfig {
            auto_lock_managers: true,
        });
        decide_unlock_key(&mut cluster, &rotation).unwrap();
        assert_eq!(cluster.unlock_keys.len(), 1);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let mut spec = named();
        assert!(check_spec(&spec).is_ok());
        spec.encryption_config = Some(pb::EncryptionConfig {
            auto_lock_managers: true,
        });
        assert!(check_spec(&spec).is_ok());
        let mut spec = named();
        let driver = pb::Driver {
            name: "syslog".to_owned(),
            ..Default::default()
        };
        spec.task_defaults = Some(pb::TaskDefaults {
            log_driver: Some(driver),
        });
        let error = check_spec(&spec).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("task_defaults.log_driver.name: "), "{text}");
    }
}
