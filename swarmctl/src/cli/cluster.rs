//! `swarmctl cluster …`.

use clap::{Args, Subcommand, ValueEnum};

use super::{Listing, Showing};

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List clusters: always one
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        listing: Listing,
    },
    /// Show the cluster's settings and join tokens
    Inspect {
        /// ID, unique ID prefix, or name [default: the only one]
        cluster: Option<String>,
        #[command(flatten)]
        showing: Showing,
    },
    /// Say how the cluster is: managers, nodes, services, and a verdict
    #[command(after_help = "\
Answers on every node, also where there is no leader; what only the managers know is left out then.
Exits with 0 where the cluster is healthy or degraded (it works, and something needs care), with 4 where it is unavailable.

Examples:
  swarmctl cluster status
  swarmctl cluster status --format '{{.Verdict}}'")]
    Status {
        #[command(flatten)]
        showing: Showing,
    },
    /// Change the cluster's settings; only what is given changes
    #[command(after_help = "\
Examples:
  swarmctl cluster update --taskhistory 3 --certexpiry 720h
  swarmctl cluster update --autolock              (managers need the unlock key when they start)
  swarmctl cluster update --autolock=false        (they need none any more)
  swarmctl cluster update --external-ca protocol=cfssl,url=https://ca.example:8888/api/v1/cfssl/sign
  swarmctl cluster update --external-ca ''        (the managers sign, where they have the root's key)")]
    Update(UpdateCluster),
    /// Print the key that unlocks managers, where autolock is on
    #[command(after_help = "\
Examples:
  swarmctl cluster unlock-key
  swarmctl cluster unlock-key --quiet > /media/usb/swarm-key
  swarmctl cluster unlock-key --rotate            (managers that are down still need the old key once)")]
    UnlockKey(UnlockKey),
    /// Unlock the manager on this host
    #[command(after_help = "\
The key is asked for, and not shown while it is typed; where stdin is no terminal its first line is the key.

Examples:
  swarmctl cluster unlock
  swarmctl cluster unlock < /media/usb/swarm-key")]
    Unlock,
    /// Print the cluster's root certificate, or replace it
    #[command(after_help = "\
Examples:
  swarmctl cluster ca > root.pem
  swarmctl cluster ca --rotate                    (a new root; every node gets a certificate under it)
  swarmctl cluster ca --rotate --ca-cert root.pem --ca-key root.key --cert-expiry 720h
  swarmctl cluster ca --rotate --ca-cert root.pem --external-ca protocol=cfssl,url=https://ca.example:8888/api/v1/cfssl/sign

Nodes trust the old root and the new one until each of them has a certificate under the new one; nothing is interrupted
meanwhile. Nodes that are down hold that up: start them, or remove them. The join tokens are then replaced. Rotating again
before that gives up the change under way for the new one; naming the present root takes it back.

An external CA speaks CFSSL's protocol. Its server's certificate is under the root that it signs under; managers show it
theirs, which while the root changes may still be under the old one. It decides how long certificates last.")]
    Ca(Ca),
    /// Print the command that joins a host to the cluster
    #[command(after_help = "\
Examples:
  swarmctl cluster join-token worker
  swarmctl cluster join-token manager --quiet
  swarmctl cluster join-token worker --rotate     (the old token joins nobody any more)")]
    JoinToken(JoinToken),
    /// Write the whole state of the cluster into one file, secrets included
    #[command(after_help = "\
Examples:
  swarmctl cluster backup /root/cluster.backup
  swarmctl cluster backup - | age -r RECIPIENT > cluster.backup.age
  swarmd restore --check /root/cluster.backup       (is it whole, and what is it of)

The file holds the cluster's CA key, its join tokens and registry credentials in the clear: who has it can join nodes and
read everything. It is written for its owner alone (mode 0600); keep it as you keep keys. `swarmd restore` makes a cluster
from it. Images, volumes and containers are not in it.")]
    Backup(Backup),
}

#[derive(Args, Debug)]
pub(crate) struct Backup {
    /// Where it is written; - for stdout
    pub(crate) file: std::path::PathBuf,
    /// Replace the file if it exists
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UpdateCluster {
    /// ID, unique ID prefix, or name [default: the only one]
    pub(crate) cluster: Option<String>,
    /// Ended tasks kept for each slot; negative keeps all
    #[arg(
        long,
        visible_alias = "task-history-limit",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub(crate) taskhistory: Option<String>,
    /// How long node certificates are valid
    #[arg(long, visible_alias = "cert-expiry", value_name = "DURATION")]
    pub(crate) certexpiry: Option<String>,
    /// How often agents report to their manager
    #[arg(long, visible_alias = "dispatcher-heartbeat", value_name = "DURATION")]
    pub(crate) heartbeatperiod: Option<String>,
    /// How long a manager may be dead before it is given up as a voter; 0 gives none up
    #[arg(long, value_name = "DURATION")]
    pub(crate) dead_manager_grace: Option<String>,
    /// External CA that signs node certificates instead of the managers, protocol=cfssl,url=https://…[,cacert=FILE];
    /// repeatable, asked in this order, in place of all before; an empty one leaves none
    #[arg(long, value_name = "CA")]
    pub(crate) external_ca: Vec<String>,
    /// Replace the join token of a role
    #[arg(long, value_name = "ROLE")]
    pub(crate) rotate_join_token: Option<JoinRole>,
    /// Replace the key that unlocks managers
    #[arg(long)]
    pub(crate) rotate_unlock_key: bool,
    /// Lock managers: one that starts needs the unlock key
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) autolock: Option<bool>,
}

#[derive(Args, Debug)]
pub(crate) struct Ca {
    /// Replace the root, and wait until every node has a certificate under the new one
    #[arg(long)]
    pub(crate) rotate: bool,
    /// The new root certificate, in PEM [default: one is made]
    #[arg(long, value_name = "FILE", requires = "rotate")]
    pub(crate) ca_cert: Option<std::path::PathBuf>,
    /// Its key, in PEM; not needed where an external CA signs
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "ca_cert")]
    pub(crate) ca_key: Option<std::path::PathBuf>,
    /// External CA that signs under the new root, protocol=cfssl,url=https://…; repeatable, in place of all before
    #[arg(long, value_name = "CA", requires = "rotate")]
    pub(crate) external_ca: Vec<String>,
    /// How long node certificates are valid from now on
    #[arg(long, value_name = "DURATION", requires = "rotate")]
    pub(crate) cert_expiry: Option<String>,
    /// Don't wait
    #[arg(short, long, requires = "rotate")]
    pub(crate) detach: bool,
    /// Don't show how far it is
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UnlockKey {
    /// Replace the key first
    #[arg(long)]
    pub(crate) rotate: bool,
    /// Print only the key
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct JoinToken {
    /// What the host becomes
    pub(crate) role: JoinRole,
    /// Replace the token first
    #[arg(long)]
    pub(crate) rotate: bool,
    /// Print only the token
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum JoinRole {
    Worker,
    Manager,
}
