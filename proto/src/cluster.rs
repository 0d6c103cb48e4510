//! The cluster's spec, parsed: defaults filled in, ready to decide on.
//!
//! The wire form stays the stored one; this is read from it where a setting is needed.

use std::time::Duration;

use crate::external_ca::{EXTERNAL_CAS_MAX, check_url};
use crate::invalid::{Faults, InvalidSpec, shown};
use crate::pb;

/// The name of every cluster.
pub const CLUSTER_NAME: &str = "default";

/// Shortest validity of a node's certificate: renewal needs time to be tried again.
pub const NODE_CERT_EXPIRY_MIN: Duration = Duration::from_secs(3600);

/// Shortest heartbeat period: below, a thousand nodes would keep a manager busy with beats alone.
pub const HEARTBEAT_PERIOD_MIN: Duration = Duration::from_millis(100);
/// Longest heartbeat period: a node is DOWN only after three of them.
pub const HEARTBEAT_PERIOD_MAX: Duration = Duration::from_secs(600);

/// How long a manager may be dead before it is given up as a voter, unless that is set: longer than a reboot, or an upgrade.
pub const DEAD_MANAGER_GRACE: Duration = Duration::from_secs(600);
/// The shortest such time: below, a manager that is restarted would be given up.
pub const DEAD_MANAGER_GRACE_MIN: Duration = Duration::from_secs(5);

/// A valid cluster spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Ended tasks kept per slot; none keeps all.
    pub task_history: Option<u64>,
    /// How often agents give a sign of life.
    pub heartbeat_period: Duration,
    /// How long a node's certificate is valid.
    pub node_cert_expiry: Duration,
    /// Log entries between two snapshots.
    pub snapshot_interval: u64,
    /// Log entries kept after a snapshot.
    pub log_entries_for_slow_followers: u64,
    /// Whether a restarted manager needs the unlock key.
    pub auto_lock_managers: bool,
    /// How long a manager may be dead before it is given up as a voter; none never gives one up.
    pub dead_manager_grace: Option<Duration>,
}

impl Default for ClusterSpec {
    /// SwarmKit's defaults.
    fn default() -> Self {
        Self {
            task_history: Some(5),
            heartbeat_period: Duration::from_secs(5),
            node_cert_expiry: Duration::from_secs(90 * 24 * 3600),
            snapshot_interval: 10_000,
            log_entries_for_slow_followers: 500,
            auto_lock_managers: false,
            dead_manager_grace: Some(DEAD_MANAGER_GRACE),
        }
    }
}

impl TryFrom<&pb::ClusterSpec> for ClusterSpec {
    type Error = InvalidSpec;

    fn try_from(wire: &pb::ClusterSpec) -> Result<Self, InvalidSpec> {
        let mut faults = Faults::default();
        check_name(&mut faults, wire);
        let default = Self::default();
        let raft = wire.raft.unwrap_or_default();
        let or_default = |value: u64, default: u64| if value == 0 { default } else { value };
        let task_history = match &wire.orchestration {
            // Negative keeps all.
            Some(config) => u64::try_from(config.task_history_retention_limit).ok(),
            None => default.task_history,
        };
        let period = wire
            .dispatcher
            .as_ref()
            .and_then(|d| d.heartbeat_period.as_ref());
        let period = faults.duration("dispatcher.heartbeat_period", period);
        let period = period
            .filter(|p| !p.is_zero())
            .unwrap_or(default.heartbeat_period);
        if period < HEARTBEAT_PERIOD_MIN {
            faults.add(
                "dispatcher.heartbeat_period",
                format!("{period:?} is too short; the shortest is {HEARTBEAT_PERIOD_MIN:?}"),
            );
        }
        if period > HEARTBEAT_PERIOD_MAX {
            faults.add(
                "dispatcher.heartbeat_period",
                format!("{period:?} is too long; the longest is {HEARTBEAT_PERIOD_MAX:?}"),
            );
        }
        let expiry = wire
            .ca_config
            .as_ref()
            .and_then(|ca| ca.node_cert_expiry.as_ref());
        let expiry = faults.duration("ca_config.node_cert_expiry", expiry);
        let expiry = expiry.unwrap_or(default.node_cert_expiry);
        if expiry < NODE_CERT_EXPIRY_MIN {
            faults.add(
                "ca_config.node_cert_expiry",
                format!("{expiry:?} is too short; the shortest is one hour"),
            );
        }
        check_external_cas(&mut faults, wire.ca_config.as_ref());
        let grace = faults.duration("raft.dead_manager_grace", raft.dead_manager_grace.as_ref());
        let grace = grace.unwrap_or(DEAD_MANAGER_GRACE);
        if !grace.is_zero() && grace < DEAD_MANAGER_GRACE_MIN {
            faults.add(
                "raft.dead_manager_grace",
                format!("{grace:?} is too short; the shortest is {DEAD_MANAGER_GRACE_MIN:?}, and 0 gives no manager up"),
            );
        }
        faults.finish(Self {
            task_history,
            heartbeat_period: period,
            node_cert_expiry: expiry,
            snapshot_interval: or_default(raft.snapshot_interval, default.snapshot_interval),
            log_entries_for_slow_followers: or_default(
                raft.log_entries_for_slow_followers,
                default.log_entries_for_slow_followers,
            ),
            auto_lock_managers: wire.encryption_config.is_some_and(|e| e.auto_lock_managers),
            dead_manager_grace: (!grace.is_zero()).then_some(grace),
        })
    }
}

fn check_name(faults: &mut Faults, wire: &pb::ClusterSpec) {
    let annotations = wire.annotations.as_ref();
    let name = annotations.map_or("", |a| a.name.as_str());
    if name != CLUSTER_NAME {
        let reason = format!(
            "{} is not {CLUSTER_NAME:?}, the name of every cluster",
            shown(name)
        );
        faults.add("name", reason);
    }
    if let Some(annotations) = annotations {
        crate::name::labels(faults, "labels", annotations.labels.keys());
    }
}

fn check_external_cas(faults: &mut Faults, ca: Option<&pb::CaConfig>) {
    let given = ca.map_or(&[][..], |ca| &ca.external_cas);
    if given.len() > EXTERNAL_CAS_MAX {
        faults.add(
            "ca_config.external_cas",
            format!("{} of them; give at most {EXTERNAL_CAS_MAX}", given.len()),
        );
    }
    for (i, external) in given.iter().take(EXTERNAL_CAS_MAX).enumerate() {
        let field = format!("ca_config.external_cas[{i}]");
        let _: Option<pb::external_ca::CaProtocol> =
            faults.known(format!("{field}.protocol"), external.protocol, "CFSSL");
        faults.take(format!("{field}.url"), check_url(&external.url));
    }
}

#[cfg(test)]
mod tests {
    use prost_types as wkt;

    use super::*;

    fn named() -> pb::ClusterSpec {
        let annotations = pb::Annotations {
            name: CLUSTER_NAME.to_owned(),
            ..Default::default()
        };
        pb::ClusterSpec {
            annotations: Some(annotations),
            ..Default::default()
        }
    }

    #[test]
    fn unset_parts_have_their_defaults() {
        let spec = ClusterSpec::try_from(&named()).unwrap();
        assert_eq!(spec, ClusterSpec::default());
        let zeros = pb::ClusterSpec {
            dispatcher: Some(pb::DispatcherConfig {
                heartbeat_period: Some(Default::default()),
            }),
            raft: Some(Default::default()),
            ..named()
        };
        assert_eq!(
            ClusterSpec::try_from(&zeros).unwrap(),
            ClusterSpec::default()
        );
    }

    #[test]
    fn history_of_zero_keeps_none_and_negative_keeps_all() {
        for (limit, kept) in [(0, Some(0)), (3, Some(3)), (-1, None)] {
            let config = pb::OrchestrationConfig {
                task_history_retention_limit: limit,
            };
            let wire = pb::ClusterSpec {
                orchestration: Some(config),
                ..named()
            };
            assert_eq!(ClusterSpec::try_from(&wire).unwrap().task_history, kept);
        }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let seconds = |seconds| Some(wkt::Duration { seconds, nanos: 0 });
        let wire = pb::ClusterSpec {
            annotations: None,
            dispatcher: Some(pb::DispatcherConfig {
                heartbeat_period: seconds(601),
            }),
            ca_config: Some(pb::CaConfig {
                node_cert_expiry: seconds(60),
                external_cas: vec![pb::ExternalCa {
                    protocol: 1,
                    url: "http://ca".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let fields: Vec<String> = ClusterSpec::try_from(&wire)
            .unwrap_err()
            .0
            .into_iter()
            .map(|f| f.field)
            .collect();
        assert_eq!(
            fields,
            [
                "name",
                "dispatcher.heartbeat_period",
                "ca_config.node_cert_expiry",
                "ca_config.external_cas[0].protocol",
                "ca_config.external_cas[0].url",
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            use prost::Message as _;
            if let Ok(wire) = pb::ClusterSpec::decode(bytes.as_slice()) {
                let _ = ClusterSpec::try_from(&wire);
            }
            if let Ok(wire) = pb::NodeSpec::decode(bytes.as_slice()) {
                let _ = crate::node::NodeSpec::try_from(wire);
            }
        }
    }
}
