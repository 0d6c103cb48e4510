//! What the operator asked for: flags, then environment, then the config file, then defaults.
//!
//! Every source is read as text first and checked in one place, so all that is wrong is said at
//! once. Names, meanings and defaults of SwarmKit's flags are kept.

mod check;
mod images;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use crate::ca::token::{JoinToken, UnlockKey};
use crate::manager::raft::Epoch;

/// SwarmKit's port.
pub const DEFAULT_PORT: u16 = 4242;
/// What one tick of `--heartbeat-tick` and `--election-tick` is. SwarmKit's is a second, which makes
/// a lost leader cost ten of them; with the default ticks a new one is called for here within half a second.
pub const TICK: Duration = Duration::from_millis(50);

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "swarmd",
    version,
    disable_version_flag = true,
    about = "Runs one node of a cluster: manager, worker, or both",
    after_help = "Examples:\n  \
        swarmd --listen-remote-api 0.0.0.0:4242                        start a new cluster\n  \
        swarmd --join-addr 10.0.0.1:4242 --join-token SWMTKN-1-…       join one\n  \
        swarmd --autolock                                              start one whose managers need a key to start again\n  \
        swarmd --unlock-key-file /media/usb/swarm-key                  start a locked manager\n  \
        swarmd -d ./node-1 --listen-control-api ./node-1/swarm.sock --hostname node-1\n  \
        swarmd --force-new-cluster                                     go on with this manager alone\n  \
        swarmd restore cluster.backup                                  make a cluster from a backup\n  \
        swarmd doctor                                                  say what this host lacks\n  \
        swarmd leave                                                   leave the cluster and empty this node\n\n\
        Stopping swarmd (SIGTERM, SIGINT) leaves its containers running; it adopts them at its next start."
)]
pub struct Cli {
    /// Print the version and exit
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Check the settings, say so, and exit
    #[arg(long)]
    pub check_config: bool,
    /// In a container: work in the mounts of process 1, so that paths, programs and containerd are the host's. Needs the
    /// host's pid namespace and full privileges; without that namespace, process 1 is of the same container
    #[arg(long, env = "SWARMD_HOST_MOUNTS", global = true)]
    pub host_mounts: bool,
    /// Read settings from this YAML file; keys are the long flags without dashes in front
    #[arg(long, env = "SWARMD_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    settings: Settings,
    /// SwarmKit's that are not served.
    #[command(flatten)]
    unserved: Unserved,
    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What swarmd does besides running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stop and remove all tasks of this node, tell the managers, and leave the cluster
    Leave {
        /// Leave even where no manager can be told, or this is the last manager
        #[arg(long, short)]
        force: bool,
    },
    /// Say what this host lacks for these settings, and how to get it
    #[command(
        after_help = "Settings are given as for running: swarmd --engine-addr unix:///run/c.sock doctor\n\n\
        Exit codes: 0 nothing is missing, 1 something is, 2 wrong settings"
    )]
    Doctor,
    /// Say whether the swarmd that runs here does its work: it has a manager to report to and, as a manager, knows the leader
    #[command(
        after_help = "Exit codes: 0 it does, 1 it does not or can't be reached, 2 wrong settings"
    )]
    Healthcheck,
    /// Make this host the only manager of a cluster, from a backup (`swarmctl cluster backup`); swarmd must not run
    #[command(after_help = RESTORE_HELP)]
    Restore {
        /// The backup
        file: PathBuf,
        /// Only check the file to its end, and say what it is of
        #[arg(long)]
        check: bool,
        /// Only show the unlock key of the time of the backup, which opens what is restored from it
        #[arg(long, conflicts_with = "check")]
        show_unlock_key: bool,
    },
    /// Look into the log of a manager that does not run
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory
        dir: PathBuf,
    },
}

const RESTORE_HELP: &str = "\
Examples:
  swarmd restore cluster.backup --state-dir /var/lib/swarmd --advertise-remote-api 10.0.0.9:4242
  swarmd restore --check cluster.backup
  swarmd restore --show-unlock-key cluster.backup

The state directory must be empty. This host becomes a new node, a manager with a certificate of the cluster's own CA; all
nodes, services and tasks of the backup are there, and workers that reach this host keep their containers. Managers of the
backup are none any more: they are told so where they can be reached, and join again after `swarmd leave --force`. With
autolock this host is locked when it starts, and the unlock key of the time of the backup opens it.";

/// What `swarmd raft` does.
#[derive(Debug, Subcommand)]
pub enum RaftCommand {
    /// Show what a stopped manager's state directory holds, as JSON; nothing in it is changed
    #[command(after_help = DUMP_HELP)]
    Dump(Dump),
}

/// What is shown.
#[derive(Debug, Clone, Default, Args)]
pub struct Dump {
    /// Show the entries of the log
    #[arg(long)]
    pub entries: bool,
    /// Show the objects, as they are after all entries on disk
    #[arg(long)]
    pub objects: bool,
    /// Only objects of this kind: cluster, node, service or task
    #[arg(long, value_name = "KIND", value_parser = ["cluster", "node", "service", "task"], requires = "objects")]
    pub kind: Option<String>,
    /// Only objects whose ID begins so
    #[arg(long, value_name = "ID", requires = "objects")]
    pub id: Option<String>,
    /// Show CA keys, join tokens, unlock keys and credentials too
    #[arg(long)]
    pub show_secrets: bool,
}

const DUMP_HELP: &str = "\
Examples:
  swarmd raft dump --state-dir /var/lib/swarmd
  swarmd raft dump --objects --kind service
  swarmd raft dump --entries | jq '.entries[-1]'

Exit codes: 0 all could be read, 1 something could not and is named under \"problems\", 2 wrong settings";

/// SwarmKit's flags for what this version has not got: told by name, rather than as unknown.
#[derive(Debug, Clone, Default, Args)]
struct Unserved {
    #[arg(long, hide = true, value_name = "ADDR")]
    listen_debug: Option<String>,
}

impl Unserved {
    fn errors(&self) -> Vec<String> {
        let given = [(
            self.listen_debug.is_some(),
            "listen-debug",
            "there is no debug server",
        )];
        let given = given.into_iter().filter(|(given, ..)| *given);
        given
            .map(|(_, flag, what)| {
                format!("--{flag}: not served by this version: {what}; leave it out")
            })
            .collect()
    }
}

/// Settings as text, from any source.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Log level: error, warn, info, debug, trace (or a tracing filter such as swarmd=debug) [default: info]
    #[arg(short = 'l', long, env = "SWARMD_LOG_LEVEL", global = true)]
    log_level: Option<String>,
    /// Log format: text or json [default: text]
    #[arg(long, env = "SWARMD_LOG_FORMAT", global = true)]
    log_format: Option<String>,
    /// State directory [default: /var/lib/swarmd]
    #[arg(
        short = 'd',
        long,
        env = "SWARMD_STATE_DIR",
        value_name = "DIR",
        global = true
    )]
    state_dir: Option<String>,
    /// Token to join with; it decides whether this node is a worker or a manager
    #[arg(
        long,
        env = "SWARMD_JOIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    join_token: Option<String>,
    /// File that holds the join token, so that it shows in no process list
    #[arg(long, env = "SWARMD_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<String>,
    /// Managers to join through (host:port, separated by commas). Only needed the first time; later, where managers that
    /// this node knows are not found where they were
    #[arg(long, env = "SWARMD_JOIN_ADDR", value_name = "ADDRS")]
    join_addr: Option<String>,
    /// Go on with this manager alone, from all that its log holds: for a cluster that lost the majority of its managers.
    /// Also gives a manager whose certificate has expired a new one. For one start; the other managers are fenced. A manager
    /// that is fenced itself, or was told this before, needs the epoch that is to end with it, as its log names it
    #[arg(
        long,
        env = "SWARMD_FORCE_NEW_CLUSTER",
        value_name = "EPOCH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    #[serde(default, deserialize_with = "flag_or_epoch")]
    force_new_cluster: Option<String>,
    /// Where a cluster is founded: lock its managers, so that each needs the unlock key when it starts; later:
    /// `swarmctl cluster update --autolock`
    #[arg(long, env = "SWARMD_AUTOLOCK")]
    #[serde(default)]
    autolock: bool,
    /// Where a cluster is founded: external CA that signs node certificates, protocol=cfssl,url=https://…[,cacert=FILE]; its
    /// server and its clients are verified by the cluster's root. Repeatable: asked in this order. Later:
    /// `swarmctl cluster update --external-ca`
    #[arg(long, env = "SWARMD_EXTERNAL_CA", value_name = "CA")]
    #[serde(default)]
    external_ca: Vec<String>,
    /// Key that unlocks this manager; without it a locked one waits for `swarmctl cluster unlock`
    #[arg(
        long,
        env = "SWARMD_UNLOCK_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    unlock_key: Option<String>,
    /// File that holds the unlock key, so that it shows in no process list
    #[arg(long, env = "SWARMD_UNLOCK_KEY_FILE", value_name = "FILE")]
    unlock_key_file: Option<String>,
    /// containerd's socket [default: unix:///run/containerd/containerd.sock]
    #[arg(long, env = "SWARMD_ENGINE_ADDR", value_name = "ADDR")]
    engine_addr: Option<String>,
    /// containerd namespace of this node [default: swarm-NODE_ID]
    #[arg(long, env = "SWARMD_CONTAINERD_NAMESPACE", value_name = "NAME")]
    containerd_namespace: Option<String>,
    /// What runs tasks: containerd, simulated or none [default: containerd]
    #[arg(long, env = "SWARMD_EXECUTOR")]
    executor: Option<String>,
    /// Registry (host or host:port, address or CIDR) to reach over plain HTTP; repeatable
    #[arg(
        long,
        env = "SWARMD_INSECURE_REGISTRY",
        value_delimiter = ',',
        value_name = "REGISTRY"
    )]
    #[serde(default)]
    insecure_registry: Vec<String>,
    /// PEM file with CA certificates that registries are checked against, besides the system's
    #[arg(long, env = "SWARMD_REGISTRY_CA", value_name = "FILE")]
    registry_ca: Option<String>,
    /// Directory with certificates of registries, one directory a registry (host or host:port): *.crt are
    /// CAs, *.cert and *.key a client's [default: /etc/docker/certs.d]
    #[arg(long, env = "SWARMD_REGISTRY_CERTS", value_name = "DIR")]
    registry_certs: Option<String>,
    /// Docker's config.json with credentials or credential helpers of registries, for images whose service
    /// brings none
    #[arg(long, env = "SWARMD_REGISTRY_CONFIG", value_name = "FILE")]
    registry_config: Option<String>,
    /// Mirror that is asked before the registry, REGISTRY=URL, or URL for Docker Hub's; repeatable
    #[arg(
        long,
        env = "SWARMD_REGISTRY_MIRROR",
        value_delimiter = ',',
        value_name = "MIRROR"
    )]
    #[serde(default)]
    registry_mirror: Vec<String>,
    /// Remove images that no task has used for this long; 0 keeps them [default: 7d]
    #[arg(long, env = "SWARMD_IMAGE_GC_AGE", value_name = "DURATION")]
    image_gc_age: Option<String>,
    /// Disk usage in percent from which unused images are removed, oldest first; 100 for never [default: 85]
    #[arg(long, env = "SWARMD_IMAGE_GC_HIGH_THRESHOLD", value_name = "PERCENT")]
    image_gc_high_threshold: Option<String>,
    /// Disk usage in percent down to which they are [default: 80]
    #[arg(long, env = "SWARMD_IMAGE_GC_LOW_THRESHOLD", value_name = "PERCENT")]
    image_gc_low_threshold: Option<String>,
    /// Keep images that were used within this time in any case [default: 2m]
    #[arg(long, env = "SWARMD_IMAGE_MINIMUM_GC_AGE", value_name = "DURATION")]
    image_minimum_gc_age: Option<String>,
    /// Host name that this node reports [default: the system's]
    #[arg(long, env = "SWARMD_HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,
    /// Availability when the node first joins: active, pause or drain [default: active]
    #[arg(long, env = "SWARMD_AVAILABILITY")]
    availability: Option<String>,
    /// Addresses (host:port, best first, separated by commas; DNS names too) that other nodes reach this one at; may change
    /// from start to start [default: as the leader sees it; where a cluster starts, the first address of this host]
    #[arg(
        long,
        env = "SWARMD_ADVERTISE_REMOTE_API",
        value_name = "ADDRS",
        global = true
    )]
    advertise_remote_api: Option<String>,
    /// Address that the manager API listens on [default: 0.0.0.0:4242]
    #[arg(
        long,
        env = "SWARMD_LISTEN_REMOTE_API",
        value_name = "ADDR",
        global = true
    )]
    listen_remote_api: Option<String>,
    /// Path of the local control socket [default: /var/run/swarmd.sock]
    #[arg(
        long,
        env = "SWARMD_LISTEN_CONTROL_API",
        value_name = "PATH",
        global = true
    )]
    listen_control_api: Option<String>,
    /// Address that metrics are served on, for Prometheus, at /metrics [default: none]
    #[arg(long, env = "SWARMD_LISTEN_METRICS", value_name = "ADDR")]
    listen_metrics: Option<String>,
    /// Generic resources of this node: fpga=2,gpu=UUID1,gpu=UUID2
    #[arg(long, env = "SWARMD_GENERIC_NODE_RESOURCES", value_name = "LIST")]
    generic_node_resources: Option<String>,
    /// Labels that this node reports (engine.labels.KEY in constraints): KEY=VALUE; repeatable
    #[arg(
        long,
        env = "SWARMD_ENGINE_LABEL",
        value_delimiter = ',',
        value_name = "KEY=VALUE"
    )]
    #[serde(default)]
    engine_label: Vec<String>,
    /// Raft heartbeat in ticks of 50 ms [default: 1]
    #[arg(long, env = "SWARMD_HEARTBEAT_TICK", value_name = "TICKS")]
    heartbeat_tick: Option<String>,
    /// Raft election timeout in ticks of 50 ms [default: 10]
    #[arg(long, env = "SWARMD_ELECTION_TICK", value_name = "TICKS")]
    election_tick: Option<String>,
}

/// In a file it is a flag, or the text of an epoch, which may be a bare number.
fn flag_or_epoch<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Flag(bool),
        Number(u64),
        Text(String),
    }
    Ok(Some(match Given::deserialize(from)? {
        Given::Flag(flag) => flag.to_string(),
        Given::Number(number) => number.to_string(),
        Given::Text(text) => text,
    }))
}

/// An order to go on with this manager alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForceNewCluster {
    /// The epoch that is to end with it, where one is named.
    pub ends: Option<Epoch>,
}

/// Valid settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// tracing's filter.
    pub log_level: String,
    /// JSON lines instead of text.
    pub log_json: bool,
    /// Where everything that must survive a restart is.
    pub state_dir: PathBuf,
    /// How to join; none starts a cluster, unless there is one on disk.
    pub join: Option<Join>,
    /// The managers to join through, also when no token was given: a node that has its certificate
    /// needs none.
    pub join_addrs: Vec<String>,
    /// This manager goes on alone, and gives itself a new certificate.
    pub force_new_cluster: Option<ForceNewCluster>,
    /// A cluster that is founded has locked managers.
    pub autolock: bool,
    /// External CAs of a cluster that is founded.
    pub external_cas: Vec<swarm_proto::pb::ExternalCa>,
    /// What unlocks this manager.
    pub unlock_key: Option<UnlockKey>,
    /// containerd's socket.
    pub engine_addr: String,
    /// containerd namespace; none derives it from the node id.
    pub containerd_namespace: Option<String>,
    /// What runs tasks.
    pub executor: ExecutorKind,
    /// How registries are reached.
    pub registries: agent_runtime::registry::Registries,
    /// When unused images go.
    pub collection: agent_runtime::image::Collection,
    /// Host name to report; none asks the system.
    pub hostname: Option<String>,
    /// Availability at first join.
    pub availability: swarm_proto::pb::node_spec::Availability,
    /// Addresses to tell others, best first; none leaves it to them.
    pub advertise_remote_api: Vec<String>,
    /// Where the manager API listens.
    pub listen_remote_api: SocketAddr,
    /// Where the control socket is.
    pub listen_control_api: PathBuf,
    /// Where metrics are served, if they are.
    pub listen_metrics: Option<SocketAddr>,
    /// Generic resources to report.
    pub generic_resources: std::collections::BTreeMap<String, swarm_proto::resources::Generic>,
    /// Labels to report.
    pub engine_labels: std::collections::BTreeMap<String, String>,
    /// Raft heartbeat, in ticks.
    pub heartbeat_ticks: u32,
    /// Raft election timeout, in ticks.
    pub election_ticks: u32,
}

/// How to join a cluster.
#[derive(Debug, Clone)]
pub struct Join {
    /// Managers, host:port; never empty.
    pub addrs: Vec<String>,
    /// The token.
    pub token: JoinToken,
}

impl Join {
    /// The first of the managers.
    #[must_use]
    pub fn first(&self) -> &str {
        self.addrs.first().map_or("", String::as_str)
    }
}

/// What runs tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutorKind {
    /// Containers, by containerd.
    Containerd,
    /// Nothing real; for tests and benches.
    Simulated,
    /// No tasks here.
    None,
}

/// Whether the operator wants no colours (<https://no-color.org>).
pub(crate) fn no_colour() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "how text looks is the process's own affair"
    )]
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// All that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Cli {
    /// Checks everything and reports everything that is wrong.
    ///
    /// # Errors
    /// One line a mistake, each naming the flag, the value and the way out.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        let mut errors = self.unserved.errors();
        // A file that can't be read does not hide what else is wrong.
        let file = self.config.as_deref().map(read_file).transpose();
        let file = file.unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        let file = file.unwrap_or_default();
        check::check(self.settings.clone().over(file), errors)
    }
}

fn read_file(path: &Path) -> Result<Settings, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("--config {}: can't be read: {e}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(Settings::default());
    }
    // Without the lines of the file: one of them may be a token.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options)
        .map_err(|e| format!("--config {}: {e}", path.display()))
}

impl Settings {
    /// What is set here, and the rest from `other`.
    fn over(self, other: Self) -> Self {
        let list = |a: Vec<String>, b| if a.is_empty() { b } else { a };
        // One setting in two forms: which of them is given here decides.
        let has_token = self.join_token.is_some() || self.join_token_file.is_some();
        let token = |own: Option<String>, others| if has_token { own } else { others };
        let has_key = self.unlock_key.is_some() || self.unlock_key_file.is_some();
        let key = |own: Option<String>, others| if has_key { own } else { others };
        Self {
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
            state_dir: self.state_dir.or(other.state_dir),
            join_token: token(self.join_token, other.join_token),
            join_token_file: token(self.join_token_file, other.join_token_file),
            join_addr: self.join_addr.or(other.join_addr),
            force_new_cluster: self.force_new_cluster.or(other.force_new_cluster),
            autolock: self.autolock || other.autolock,
            external_ca: list(self.external_ca, other.external_ca),
            unlock_key: key(self.unlock_key, other.unlock_key),
            unlock_key_file: key(self.unlock_key_file, other.unlock_key_file),
            engine_addr: self.engine_addr.or(other.engine_addr),
            containerd_namespace: self.containerd_namespace.or(other.containerd_namespace),
            executor: self.executor.or(other.executor),
            insecure_registry: list(self.insecure_registry, other.insecure_registry),
            registry_ca: self.registry_ca.or(other.registry_ca),
            registry_certs: self.registry_certs.or(other.registry_certs),
            registry_config: self.registry_config.or(other.registry_config),
            registry_mirror: list(self.registry_mirror, other.registry_mirror),
            image_gc_age: self.image_gc_age.or(other.image_gc_age),
            image_gc_high_threshold: self
                .image_gc_high_threshold
                .or(other.image_gc_high_threshold),
            image_gc_low_threshold: self.image_gc_low_threshold.or(other.image_gc_low_threshold),
            image_minimum_gc_age: self.image_minimum_gc_age.or(other.image_minimum_gc_age),
            hostname: self.hostname.or(other.hostname),
            availability: self.availability.or(other.availability),
            advertise_remote_api: self.advertise_remote_api.or(other.advertise_remote_api),
            listen_remote_api: self.listen_remote_api.or(other.listen_remote_api),
            listen_control_api: self.listen_control_api.or(other.listen_control_api),
            listen_metrics: self.listen_metrics.or(other.listen_metrics),
            generic_node_resources: self.generic_node_resources.or(other.generic_node_resources),
            engine_label: list(self.engine_label, other.engine_label),
            heartbeat_tick: self.heartbeat_tick.or(other.heartbeat_tick),
            election_tick: self.election_tick.or(other.election_tick),
        }
    }
}

#[cfg(test)]
mod tests;
