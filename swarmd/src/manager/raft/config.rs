//! The figures of consensus: timing, snapshots, limits.

use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy, StepDownPolicy};

use super::disk::Disk;
use super::types::{Member, RaftId};
use crate::seal::Seal;

/// What one manager's consensus needs to know.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This manager's number. Never reused in a cluster.
    pub id: RaftId,
    /// This manager as the others are to know it.
    pub member: Member,
    /// What it says from then on of where it is; an unspecified address is the one it calls from.
    pub says: Vec<String>,
    /// Where `raft/` lies.
    pub state_dir: PathBuf,
    /// On which disk.
    pub disk: Disk,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// When to take a snapshot.
    pub snapshots: SnapshotLimits,
    /// How the key of log and snapshots is kept.
    pub seal: Seal,
}

/// Heartbeats and elections, in ticks as SwarmKit's flags and cluster object have them.
///
/// SwarmKit's tick is a second, so that a lost leader is noticed after ten; ours is 50 ms. A
/// follower calls an election at the latest `election_ticks` after the last sign of life: first the
/// leader's lease of half that time passes, during which no other can be elected, then a random part
/// of the other half. A heartbeat must be answered within its interval, so managers further apart
/// than 50 ms there and back need more heartbeat ticks, and ten times as many election ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The unit of the others.
    pub tick: Duration,
    /// Between heartbeats.
    pub heartbeat_ticks: u32,
    /// Without a leader's sign of life before an election.
    pub election_ticks: u32,
}

impl Timing {
    /// Without a sign of life of the leader an election begins after this at the latest.
    pub(crate) fn election(&self) -> Duration {
        self.tick * self.election_ticks
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            heartbeat_ticks: 1,
            election_ticks: 10,
        }
    }
}

/// When to take a snapshot, and how much log to keep behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Entries since the last snapshot. SwarmKit's `snapshot_interval`.
    pub entries: u64,
    /// Bytes of commands since the last snapshot; bounds the log where entries are large.
    pub bytes: u64,
    /// Entries kept behind a snapshot for slow followers. SwarmKit's `log_entries_for_slow_followers`.
    pub keep_entries: u64,
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self {
            entries: 10_000,
            bytes: 64 << 20,
            keep_entries: 500,
        }
    }
}

/// A configuration that can't work.
#[derive(Debug, thiserror::Error)]
#[error("raft configuration is not usable: {0}")]
pub struct ConfigError(String);

/// Entries in one replication message; bytes are limited by the log reader.
const MESSAGE_ENTRIES: u64 = 1024;
/// Entries that openraft purges at once, at least.
const PURGE_BATCH: u64 = 64;
/// Messages waiting for openraft's core. Proposals are bounded before, see `propose.rs`.
const CORE_QUEUE: u64 = 8192;
/// How long a removed leader keeps serving while its removal spreads, milliseconds.
const STEP_DOWN_MS: u64 = 150;

impl RaftConfig {
    /// The same for openraft, checked.
    ///
    /// # Errors
    /// When the ticks leave no room between heartbeat and election.
    pub(crate) fn openraft(&self) -> Result<Config, ConfigError> {
        let heartbeat = millis(self.timing.tick * self.timing.heartbeat_ticks);
        let lease = millis(self.timing.tick * self.timing.election_ticks) / 2;
        let config = Config {
            cluster_name: "swarm".to_owned(),
            heartbeat_interval: heartbeat,
            election_timeout_min: lease - lease / 5,
            // Also the leader's lease.
            election_timeout_max: lease,
            max_payload_entries: MESSAGE_ENTRIES,
            // Beyond a snapshot interval of lag a snapshot is cheaper than entries.
            replication_lag_threshold: self.snapshots.entries.saturating_mul(2),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshots.entries),
            max_in_snapshot_log_to_keep: self.snapshots.keep_entries,
            purge_batch_size: PURGE_BATCH,
            api_channel_size: Some(CORE_QUEUE),
            backoff: "20ms 40ms 80ms ...1s".to_owned(),
            enable_pre_vote: Some(true),
            // A restarted leader must be elected anew: its committed position on disk is a hint, so
            // without an election it might serve a read older than one it served before.
            enable_leader_restore: Some(false),
            removed_leader_step_down: StepDownPolicy::After(STEP_DOWN_MS),
            ..Config::default()
        };
        config.validate().map_err(|e| ConfigError(e.to_string()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
