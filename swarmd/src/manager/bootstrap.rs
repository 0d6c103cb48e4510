//! Founding a cluster: root CA, join tokens, the cluster object, and the first node. And starting it
//! anew: a certificate for a manager that has the cluster and no valid one of its own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarm_proto::id::{ClusterId, NodeId};
use swarm_proto::pb;
use swarm_proto::time::{Timestamp, duration_to_wire};

use super::authority::name_roots;
use super::autolock;
use super::caserver::new_node;
use super::signer::{Signer, sign_with_key};
use super::store::{Change, Cluster, Meta};
use super::writer::Store;
use crate::ca::root::new_key_and_csr;
use crate::ca::{JoinToken, NodeIdentity, NodeSubject, Role, RootCa, SecurityConfig, UnlockKey};
use crate::clock::Clock;

/// SwarmKit's defaults for a new cluster.
const TASK_HISTORY: i64 = 5;
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
const CERT_EXPIRY: Duration = Duration::from_secs(2160 * 3600);

/// Why there is no cluster, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A cluster could not be founded.
    #[error("can't found a cluster: {0}")]
    Found(String),
    /// A manager could not certify itself.
    #[error("can't give this manager a new certificate: {0}")]
    Reissue(String),
}

fn because(error: impl std::fmt::Display) -> BootstrapError {
    BootstrapError::Found(error.to_string())
}

/// What the first node of a cluster brings.
#[derive(Debug)]
pub struct Founder {
    /// Its id.
    pub node_id: NodeId,
    /// Whether it takes tasks.
    pub availability: pb::node_spec::Availability,
    /// Managers are to be locked when they start, and this key opens them.
    pub unlock_key: Option<UnlockKey>,
    /// External CAs to ask for certificates; one that names no root signs under the cluster's.
    pub external_cas: Vec<pb::ExternalCa>,
}

/// Makes the cluster and this node's identity, and writes both into the store. The identity is not
/// on disk yet.
///
/// # Errors
/// When there is no randomness, or the log does not take the write.
pub async fn found(
    store: &Store,
    clock: &Clock,
    founder: Founder,
) -> Result<NodeIdentity, BootstrapError> {
    let Founder {
        node_id,
        availability,
        unlock_key,
        external_cas,
    } = founder;
    let now = clock.now();
    let root = RootCa::generate(now).map_err(because)?;
    let mut cluster = cluster(&root, now)?;
    if let Some(key) = &unlock_key {
        cluster.spec.encryption_config = Some(pb::EncryptionConfig {
            auto_lock_managers: true,
        });
        cluster.unlock_keys.push(autolock::entry(key));
    }
    let config = cluster.spec.ca_config.get_or_insert_default();
    config.external_cas = external_cas;
    name_roots(&mut config.external_cas, root.cert_pem().as_bytes());
    let (key, csr) = new_key_and_csr().map_err(because)?;
    let subject = NodeSubject {
        node_id,
        role: Role::Manager,
        cluster_id: cluster.id,
    };
    // Nobody else can have the key of a root that was made just now.
    let signed = sign_with_key(&cluster, &subject, csr.as_bytes(), now);
    let certificate = signed.map_err(|status| because(status.message()))?;
    let pem = String::from_utf8(certificate.certificate.clone()).map_err(because)?;
    let identity = NodeIdentity::from_pem(&pem, &key, root.cert_pem()).map_err(because)?;
    let node = new_node(node_id, Role::Manager, availability, certificate, clock);
    let changes = vec![
        Change::CreateCluster(Arc::new(cluster)),
        Change::CreateNode(Arc::new(node)),
    ];
    let written = store.write(now, changes).await.map_err(because)?;
    for result in written.results {
        result.map_err(because)?;
    }
    Ok(identity)
}

/// Issues a new certificate to this manager, whatever has become of its old one: with the root key
/// that is in its own log, which nothing but its state directory guards. The identity is not on disk
/// yet.
///
/// # Errors
/// When the log has no cluster, or another one; or does not take the write.
pub async fn reissue(
    store: &Store,
    clock: &Clock,
    old: &NodeIdentity,
) -> Result<NodeIdentity, BootstrapError> {
    fn because(error: impl std::fmt::Display) -> BootstrapError {
        BootstrapError::Reissue(error.to_string())
    }
    let state = store.read().await.map_err(because)?;
    let cluster = state.cluster.filter(|c| c.id == old.cluster_id());
    let cluster = cluster.ok_or_else(|| {
        because("the log is not that of the cluster which its certificate names; restore both from one backup")
    })?;
    let (key, csr) = new_key_and_csr().map_err(because)?;
    let subject = NodeSubject {
        node_id: old.node_id(),
        role: Role::Manager,
        cluster_id: cluster.id,
    };
    let certificate = match sign_with_key(&cluster, &subject, csr.as_bytes(), clock.now()) {
        Ok(signed) => signed,
        Err(no_key) => match asking(old, clock, (&cluster, &subject, csr.as_bytes())).await {
            Ok(signed) => signed,
            Err(reason) if old.check_time(clock.now()).is_ok() => {
                tracing::warn!(
                    reason,
                    "this manager gets no new certificate, and goes on with the one that it has"
                );
                return Ok(old.clone());
            }
            Err(reason) => return Err(because(format!("{}, and {reason}", no_key.message()))),
        },
    };
    let pem = String::from_utf8(certificate.certificate.clone()).map_err(because)?;
    let root = String::from_utf8(cluster.root_ca.ca_cert.clone()).map_err(because)?;
    let identity = NodeIdentity::from_pem(&pem, &key, &root).map_err(because)?;
    let change = Change::SetNodeCertificate {
        id: subject.node_id,
        role: pb::NodeRole::Manager,
        certificate: Box::new(certificate),
    };
    let written = store.write(store.time(clock), vec![change]).await;
    for result in written.map_err(because)?.results {
        result.map_err(because)?;
    }
    Ok(identity)
}

/// The same from an external CA, which is shown the old certificate.
async fn asking(
    old: &NodeIdentity,
    clock: &Clock,
    (cluster, subject, csr): (&Cluster, &NodeSubject, &[u8]),
) -> Result<pb::Certificate, String> {
    let security = SecurityConfig::new(old.clone(), clock.clone()).map_err(|e| e.to_string())?;
    let signer = Signer::new(Arc::new(OnceLock::from(security)), clock.clone());
    let signed = signer.sign(cluster, subject, csr).await;
    signed.map_err(|status| status.message().to_owned())
}

pub(crate) fn cluster(root: &RootCa, now: Timestamp) -> Result<Cluster, BootstrapError> {
    let token = || {
        let token = JoinToken::generate(root.digest()).map_err(because)?;
        Ok::<_, BootstrapError>(token.reveal().to_string())
    };
    Ok(Cluster {
        id: ClusterId::from_raw(super::random_id()),
        meta: Meta {
            created_at: now,
            updated_at: now,
            ..Meta::default()
        },
        spec: pb::ClusterSpec {
            annotations: Some(pb::Annotations {
                name: "default".to_owned(),
                ..Default::default()
            }),
            orchestration: Some(pb::OrchestrationConfig {
                task_history_retention_limit: TASK_HISTORY,
            }),
            dispatcher: Some(pb::DispatcherConfig {
                heartbeat_period: Some(duration_to_wire(HEARTBEAT_PERIOD)),
            }),
            ca_config: Some(pb::CaConfig {
                node_cert_expiry: Some(duration_to_wire(CERT_EXPIRY)),
                ..Default::default()
            }),
            ..Default::default()
        },
        root_ca: pb::RootCa {
            ca_cert: root.cert_pem().as_bytes().to_vec(),
            ca_key: root.key_pem().as_bytes().to_vec(),
            ca_cert_hash: root.digest().to_string(),
            join_tokens: Some(pb::JoinTokens {
                worker: token()?,
                manager: token()?,
            }),
            ..Default::default()
        },
        blacklist: std::collections::BTreeMap::new(),
        unlock_keys: Vec::new(),
        managers: std::collections::BTreeMap::new(),
    })
}
