//! The flags that say what a service is: given whole, and single entries of its lists.
//!
//! Hidden ones ask for what no manager serves yet: they are known, so that the manager says so.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are the help texts, where brackets mark what may be left out"
)]

use clap::Args;

/// What a service is; given whole.
#[derive(Args, Debug, Default)]
pub(crate) struct ServiceFlags {
    /// Name of the service
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label of the service
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Number of tasks
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) replicas: Option<String>,
    /// Most tasks on one node; 0 is no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) replicas_max_per_node: Option<String>,
    /// Most tasks of a job at a time
    #[arg(long, value_name = "N", allow_negative_numbers = true, hide = true)]
    pub(crate) max_concurrent: Option<String>,
    #[command(flatten, next_help_heading = "Container")]
    pub(crate) container: ContainerFlags,
    #[command(flatten, next_help_heading = "Mounts and ports")]
    pub(crate) reach: ReachFlags,
    #[command(flatten, next_help_heading = "Resources and placement")]
    pub(crate) place: PlaceFlags,
    #[command(flatten, next_help_heading = "Restart")]
    pub(crate) restart: RestartFlags,
    #[command(flatten, next_help_heading = "Update and rollback")]
    pub(crate) rollout: RolloutFlags,
}

#[derive(Args, Debug, Default)]
pub(crate) struct ContainerFlags {
    /// Image of the tasks
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Word of the command, in place of the image's entry point; repeat for more words
    #[arg(
        long,
        visible_alias = "entrypoint",
        value_name = "WORD",
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
    /// Argument of the command; repeat for more
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
    /// Environment variable; NAME alone copies the value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Hostname in the container
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User, as NAME|UID[:GROUP|GID]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Supplementary group
    #[arg(long = "group")]
    pub(crate) groups: Vec<String>,
    /// Label of the containers
    #[arg(long = "container-label", value_name = "KEY=VALUE")]
    pub(crate) container_labels: Vec<String>,
    /// Give the container a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) tty: Option<bool>,
    /// Keep stdin open
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) open_stdin: Option<bool>,
    /// Run an init process that reaps children
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) init: Option<bool>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) read_only: Option<bool>,
    /// Signal that stops the container [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Time between the stop signal and SIGKILL [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) stop_grace_period: Option<String>,
    /// Add a capability
    #[arg(
        long = "cap-add",
        visible_alias = "add-capability",
        value_name = "CAPABILITY"
    )]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(
        long = "cap-drop",
        visible_alias = "rm-capability",
        value_name = "CAPABILITY"
    )]
    pub(crate) cap_drop: Vec<String>,
    /// Kernel parameter
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    pub(crate) sysctls: Vec<String>,
    /// Resource limit of the processes
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimits: Vec<String>,
    /// Preference of the kernel to kill it when memory is short, -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) oom_score_adj: Option<String>,
    /// Device of the node, or directory of devices
    #[arg(long = "device", value_name = "PATH[:PATH-INSIDE[:rwm]]")]
    pub(crate) devices: Vec<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,
    /// What runs the containers: runc, crun, or a shim as io.containerd.runsc.v1 [default: runc]
    #[arg(long, value_name = "NAME")]
    pub(crate) runtime: Option<String>,
    /// Line for /etc/hosts
    #[arg(long = "host", value_name = "HOST:IP")]
    pub(crate) hosts: Vec<String>,
    /// Name server
    #[arg(long, value_name = "IP")]
    pub(crate) dns: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// DNS option
    #[arg(long = "dns-option", value_name = "OPTION")]
    pub(crate) dns_options: Vec<String>,
    /// Command that tells whether the container is healthy
    #[arg(long, value_name = "COMMAND")]
    pub(crate) health_cmd: Option<String>,
    /// Time between two health checks
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_interval: Option<String>,
    /// Longest time of one health check
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) health_retries: Option<String>,
    /// Time to start in which failures don't count
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_period: Option<String>,
    /// Time between two health checks while starting
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_interval: Option<String>,
    /// Ignore the health check of the image
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries", "health_start_period", "health_start_interval"])]
    pub(crate) no_healthcheck: bool,
    /// What becomes of the output: json-file (the default), local, journald or none
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Option of the log driver, as max-size=20m or max-file=5
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    pub(crate) log_opts: Vec<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct ReachFlags {
    /// Mount, as type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long = "mount", value_name = "MOUNT")]
    pub(crate) mounts: Vec<String>,
    /// Bind mount
    #[arg(long = "bind", value_name = "SOURCE:TARGET[:ro]")]
    pub(crate) binds: Vec<String>,
    /// Anonymous volume
    #[arg(long = "volume", value_name = "TARGET")]
    pub(crate) volumes: Vec<String>,
    /// File system in memory
    #[arg(long = "tmpfs", value_name = "TARGET[:size=SIZE,mode=MODE,…]")]
    pub(crate) tmpfs: Vec<String>,
    /// Named pipe (Windows)
    #[arg(long = "npipe", value_name = "SOURCE:TARGET", hide = true)]
    pub(crate) npipes: Vec<String>,
    /// Publish a port on the hosts of the tasks, as published=8080,target=80,mode=host[,protocol=udp]
    #[arg(short, long = "publish", value_name = "PORT")]
    pub(crate) publish: Vec<String>,
    /// Publish a port on the hosts of the tasks
    #[arg(
        long,
        value_name = "NAME:TARGET[/PROTOCOL][:PUBLISHED]",
        value_delimiter = ','
    )]
    pub(crate) ports: Vec<String>,
    /// vip or dnsrr
    #[arg(long, value_name = "MODE", hide = true)]
    pub(crate) endpoint_mode: Option<String>,
    /// Network to attach to: host is the host's own network, none has loopback only, bridge is the host's bridge
    #[arg(long = "network", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct PlaceFlags {
    /// Memory to set aside, as 512m
    #[arg(long, visible_alias = "reserve-memory", value_name = "SIZE")]
    pub(crate) memory_reservation: Option<String>,
    /// Most memory, as 1g
    #[arg(long, visible_alias = "limit-memory", value_name = "SIZE")]
    pub(crate) memory_limit: Option<String>,
    /// CPUs to set aside, as 0.5
    #[arg(
        long,
        visible_alias = "reserve-cpu",
        value_name = "CPUS",
        allow_negative_numbers = true
    )]
    pub(crate) cpu_reservation: Option<String>,
    /// Most CPUs, as 1.5
    #[arg(
        long,
        visible_alias = "limit-cpu",
        value_name = "CPUS",
        allow_negative_numbers = true
    )]
    pub(crate) cpu_limit: Option<String>,
    /// Most processes; 0 is no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) limit_pids: Option<String>,
    /// Other resources to set aside, as gpu=2
    #[arg(
        long,
        visible_alias = "generic-resource",
        value_name = "KIND=N",
        value_delimiter = ','
    )]
    pub(crate) generic_resources: Vec<String>,
    /// Nodes that may run the tasks, as node.labels.disk==ssd or node.role!=manager
    #[arg(long = "constraint", value_name = "EXPRESSION")]
    pub(crate) constraints: Vec<String>,
    /// How to spread tasks, as spread=node.labels.rack
    #[arg(long = "placement-pref", value_name = "PREFERENCE")]
    pub(crate) placement_prefs: Vec<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct RestartFlags {
    /// When to replace a task that has ended: any, on-failure or none [default: any]
    #[arg(long, value_name = "CONDITION")]
    pub(crate) restart_condition: Option<String>,
    /// Wait before the replacement starts [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) restart_delay: Option<String>,
    /// Most replacements; 0 is no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) restart_max_attempts: Option<String>,
    /// Time in which replacements are counted; 0 is forever
    #[arg(long, value_name = "DURATION")]
    pub(crate) restart_window: Option<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct RolloutFlags {
    /// Tasks changed at a time; 0 is all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) update_parallelism: Option<String>,
    /// Wait between two of them
    #[arg(long, value_name = "DURATION")]
    pub(crate) update_delay: Option<String>,
    /// pause, continue or rollback
    #[arg(long, visible_alias = "update-failure-action", value_name = "ACTION")]
    pub(crate) update_on_failure: Option<String>,
    /// How long a new task is watched for failure
    #[arg(long, value_name = "DURATION")]
    pub(crate) update_monitor: Option<String>,
    /// Share of tasks that may fail, 0 to 1
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub(crate) update_max_failure_ratio: Option<String>,
    /// stop-first or start-first
    #[arg(long, value_name = "ORDER")]
    pub(crate) update_order: Option<String>,
    /// As --update-parallelism, for rollbacks
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) rollback_parallelism: Option<String>,
    /// As --update-delay, for rollbacks
    #[arg(long, value_name = "DURATION")]
    pub(crate) rollback_delay: Option<String>,
    /// pause or continue
    #[arg(long, visible_alias = "rollback-failure-action", value_name = "ACTION")]
    pub(crate) rollback_on_failure: Option<String>,
    /// As --update-monitor, for rollbacks
    #[arg(long, value_name = "DURATION")]
    pub(crate) rollback_monitor: Option<String>,
    /// As --update-max-failure-ratio, for rollbacks
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub(crate) rollback_max_failure_ratio: Option<String>,
    /// stop-first or start-first
    #[arg(long, value_name = "ORDER")]
    pub(crate) rollback_order: Option<String>,
}

/// Single entries of a service's lists.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Single entries")]
pub(crate) struct Edits {
    /// Set a label
    #[arg(long = "label-add", value_name = "KEY=VALUE")]
    pub(crate) labels_add: Vec<String>,
    /// Remove a label
    #[arg(long = "label-rm", value_name = "KEY")]
    pub(crate) labels_rm: Vec<String>,
    /// Set a label of the containers
    #[arg(long = "container-label-add", value_name = "KEY=VALUE")]
    pub(crate) container_labels_add: Vec<String>,
    /// Remove a label of the containers
    #[arg(long = "container-label-rm", value_name = "KEY")]
    pub(crate) container_labels_rm: Vec<String>,
    /// Set an environment variable
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    pub(crate) env_rm: Vec<String>,
    /// Add a constraint
    #[arg(long = "constraint-add", value_name = "EXPRESSION")]
    pub(crate) constraints_add: Vec<String>,
    /// Remove a constraint
    #[arg(long = "constraint-rm", value_name = "EXPRESSION")]
    pub(crate) constraints_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long = "placement-pref-add", value_name = "PREFERENCE")]
    pub(crate) placement_prefs_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long = "placement-pref-rm", value_name = "PREFERENCE")]
    pub(crate) placement_prefs_rm: Vec<String>,
    /// Add a mount, or replace the one at its target
    #[arg(long = "mount-add", value_name = "MOUNT")]
    pub(crate) mounts_add: Vec<String>,
    /// Remove the mount at a target
    #[arg(long = "mount-rm", value_name = "TARGET")]
    pub(crate) mounts_rm: Vec<String>,
    /// Publish a further port
    #[arg(long, value_name = "PORT")]
    pub(crate) publish_add: Vec<String>,
    /// Stop publishing a target port
    #[arg(long, value_name = "TARGET[/PROTOCOL]")]
    pub(crate) publish_rm: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long = "host-add", value_name = "HOST:IP")]
    pub(crate) hosts_add: Vec<String>,
    /// Remove a line from /etc/hosts
    #[arg(long = "host-rm", value_name = "HOST:IP")]
    pub(crate) hosts_rm: Vec<String>,
    /// Attach to a further network
    #[arg(long = "network-add", value_name = "NETWORK")]
    pub(crate) networks_add: Vec<String>,
    /// Detach from a network
    #[arg(long = "network-rm", value_name = "NETWORK")]
    pub(crate) networks_rm: Vec<String>,
}
