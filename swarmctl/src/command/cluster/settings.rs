//! `swarmctl cluster inspect` and `swarmctl cluster update`.

use std::time::Duration;

use swarm_proto::amount::count;
use swarm_proto::cluster::DEAD_MANAGER_GRACE;
use swarm_proto::pb;

use super::super::session::Session;
use super::{external_ca, unlock};
use crate::cli::{JoinRole, UpdateCluster};
use crate::error::Error;
use crate::render::inspect::Details;
use crate::render::show::Format;
use crate::render::{json, time};
use crate::resolve::{self, cluster_name};
use crate::spec::{DURATION, Problems, SIGNED, wire};

pub(super) async fn inspect(
    session: &mut Session<'_>,
    name: Option<&str>,
    format: &Format,
) -> Result<(), Error> {
    let cluster = resolve::cluster(&mut session.client, name).await?;
    let value = json::value("docker.swarmkit.v1.Cluster", &cluster);
    if !session.print_values(format, std::iter::once(value))? {
        session.print(&details(&cluster).lines())?;
    }
    Ok(())
}

fn details(cluster: &pb::Cluster) -> Details {
    let mut details = Details::default();
    let spec = cluster.spec.clone().unwrap_or_default();
    details.put("ID", cluster.id.as_str());
    details.put("Name", cluster_name(cluster));
    if let Some(annotations) = &spec.annotations {
        details.map("Labels", &annotations.labels);
    }
    let span =
        |duration: Option<&prost_types::Duration>| duration.map(time::span).unwrap_or_default();
    if let Some(orchestration) = &spec.orchestration {
        details.section("Orchestration settings", |details| {
            details.put(
                "Task history entries",
                orchestration.task_history_retention_limit.to_string(),
            );
        });
    }
    details.section("Managers", |details| {
        let grace = spec.raft.as_ref();
        let grace = grace.and_then(|raft| raft.dead_manager_grace.as_ref());
        let shown = match grace {
            None => span(Some(&wire(DEAD_MANAGER_GRACE))),
            Some(none) if (none.seconds, none.nanos) == (0, 0) => "off".to_owned(),
            Some(grace) => span(Some(grace)),
        };
        details.put("Given up as voters when dead for", shown);
    });
    if let Some(dispatcher) = &spec.dispatcher {
        details.section("Dispatcher settings", |details| {
            details.put(
                "Dispatcher heartbeat period",
                span(dispatcher.heartbeat_period.as_ref()),
            );
        });
    }
    if let Some(ca) = &spec.ca_config {
        details.section("Certificate Authority settings", |details| {
            details.put(
                "Certificate validity duration",
                span(ca.node_cert_expiry.as_ref()),
            );
            let external = ca.external_cas.iter();
            let external = external.map(|external| external_ca::shown(external, cluster));
            let external: Vec<String> = external.collect();
            details.put("External CAs", external.join(", "));
        });
    }
    details.section("Encryption at rest", |details| {
        let autolock = if autolock(&spec) { "on" } else { "off" };
        details.put("Autolock", autolock);
    });
    if let Some(root) = &cluster.root_ca {
        details.put("Root CA digest", root.ca_cert_hash.as_str());
        if let Some(rotation) = &root.root_rotation {
            let left = count(rotation.waits_for.len() as u64, "node");
            details.put("Root CA rotation", format!("under way, waits for {left}"));
        }
        if let Some(tokens) = &root.join_tokens {
            details.section("Join tokens", |details| {
                details.put("Worker", tokens.worker.as_str());
                details.put("Manager", tokens.manager.as_str());
            });
        }
    }
    details
}

/// Checked settings; what is absent stays as it is.
pub(super) struct Change {
    history: Option<i64>,
    expiry: Option<Duration>,
    heartbeat: Option<Duration>,
    grace: Option<Duration>,
    external: Option<Vec<pb::ExternalCa>>,
    autolock: Option<bool>,
}

fn autolock(spec: &pb::ClusterSpec) -> bool {
    let encryption = spec.encryption_config.as_ref();
    encryption.is_some_and(|encryption| encryption.auto_lock_managers)
}

impl Change {
    pub(super) async fn check(flags: &UpdateCluster) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let history = problems.optional("--taskhistory", flags.taskhistory.as_ref(), &SIGNED);
        let expiry = problems.optional("--certexpiry", flags.certexpiry.as_ref(), &DURATION);
        let heartbeat = problems.optional(
            "--heartbeatperiod",
            flags.heartbeatperiod.as_ref(),
            &DURATION,
        );
        let grace = problems.optional(
            "--dead-manager-grace",
            flags.dead_manager_grace.as_ref(),
            &DURATION,
        );
        let external = external_ca::check(&mut problems, &flags.external_ca);
        let given = [
            &flags.dead_manager_grace,
            &flags.taskhistory,
            &flags.certexpiry,
            &flags.heartbeatperiod,
        ];
        let rotates = flags.rotate_join_token.is_some() || flags.rotate_unlock_key;
        let sets = given.iter().any(|text| text.is_some()) || !flags.external_ca.is_empty();
        if !sets && flags.autolock.is_none() && !rotates {
            problems.push(
                "nothing to change; give --taskhistory, --certexpiry, --heartbeatperiod, --dead-manager-grace, --external-ca, --autolock, --rotate-join-token or --rotate-unlock-key",
            );
        }
        problems.unless_any(())?;
        Ok(Self {
            history,
            expiry,
            heartbeat,
            grace,
            external: external_ca::read(external).await?,
            autolock: flags.autolock,
        })
    }

    fn apply(&self, spec: &mut pb::ClusterSpec) {
        if let Some(history) = self.history {
            spec.orchestration
                .get_or_insert_default()
                .task_history_retention_limit = history;
        }
        if let Some(expiry) = self.expiry {
            spec.ca_config.get_or_insert_default().node_cert_expiry = Some(wire(expiry));
        }
        if let Some(external) = &self.external {
            let config = spec.ca_config.get_or_insert_default();
            config.external_cas.clone_from(external);
        }
        if let Some(heartbeat) = self.heartbeat {
            spec.dispatcher.get_or_insert_default().heartbeat_period = Some(wire(heartbeat));
        }
        if let Some(grace) = self.grace {
            spec.raft.get_or_insert_default().dead_manager_grace = Some(wire(grace));
        }
        if let Some(autolock) = self.autolock {
            spec.encryption_config
                .get_or_insert_default()
                .auto_lock_managers = autolock;
        }
    }
}

pub(super) async fn update(
    session: &mut Session<'_>,
    flags: &UpdateCluster,
    change: &Change,
) -> Result<(), Error> {
    let cluster = resolve::cluster(&mut session.client, flags.cluster.as_deref()).await?;
    let id = cluster.id.clone();
    let was_locked = cluster.spec.as_ref().is_some_and(autolock);
    let rotation = pb::KeyRotation {
        manager_unlock_key: flags.rotate_unlock_key,
        ..flags.rotate_join_token.map(rotation).unwrap_or_default()
    };
    let changed = session
        .client
        .update_cluster(cluster, rotation, |spec| change.apply(spec))
        .await?;
    if changed.is_none() {
        session.remark("no changes detected")?;
    }
    session.print(&[id])?;
    let has_new_key = flags.autolock == Some(true) && !was_locked || flags.rotate_unlock_key;
    if has_new_key && let Some(key) = unlock::current(session).await? {
        // At once: a manager that restarts before the key is known stays locked.
        for line in unlock::explained(&key) {
            session.remark(&line)?;
        }
    }
    Ok(())
}

/// The rotation of one role's token.
pub(super) fn rotation(role: JoinRole) -> pb::KeyRotation {
    pb::KeyRotation {
        worker_join_token: role == JoinRole::Worker,
        manager_join_token: role == JoinRole::Manager,
        manager_unlock_key: false,
    }
}
