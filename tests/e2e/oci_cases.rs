//! What containers are run with for `oci`: the same options in swarmctl's words and in Docker's.

use swarm_proto::pb;

/// One container: each option is written once if both read it alike.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Options that `swarmctl service create` and `docker run` both have.
    pub(super) both: &'static [&'static str],
    /// Options of `swarmctl service create` alone.
    pub(super) ours: &'static [&'static str],
    /// Those of `docker run` that mean the same.
    pub(super) theirs: &'static [&'static str],
    /// What only SwarmKit's API has.
    pub(super) wire: Option<fn(&mut pb::TaskSpec)>,
    /// Where cgroups are of version 2 the kernel has nothing like it.
    pub(super) only_v1: bool,
}

const PLAIN: Case = Case {
    name: "plain",
    both: &[],
    ours: &[],
    theirs: &[],
    wire: None,
    only_v1: false,
};

/// Docker's file format, as an operator gives it.
pub(super) const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
"syscalls": [{"names": ["keyctl", "add_key"], "action": "SCMP_ACT_ERRNO", "args": [], "comment": "none"},
{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
{"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;

/// Everything that is compared.
pub(super) const CASES: &[Case] = &[
    PLAIN,
    Case {
        name: "user-by-id",
        both: &["--user", "1234:1235"],
        ours: &["--group", "1236"],
        theirs: &["--group-add", "1236"],
        ..PLAIN
    },
    Case {
        name: "user-by-name",
        both: &["--user", "app"],
        ours: &["--group", "extra"],
        theirs: &["--group-add", "extra"],
        ..PLAIN
    },
    Case {
        name: "user-with-capabilities",
        both: &["--user", "app", "--cap-add", "NET_ADMIN"],
        ..PLAIN
    },
    Case {
        name: "environment",
        both: &[
            "--env",
            "A=1",
            "--env",
            "LANG=other",
            "--env",
            "HOME=/tmp",
            "--workdir",
            "/tmp",
            "--hostname",
            "box",
        ],
        ..PLAIN
    },
    Case {
        name: "no-capabilities",
        both: &["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"],
        ..PLAIN
    },
    Case {
        name: "capabilities",
        both: &[
            "--cap-add",
            "NET_ADMIN",
            "--cap-add",
            "SYS_PTRACE",
            "--cap-add",
            "SYS_NICE",
            "--cap-drop",
            "CHOWN",
            "--cap-drop",
            "SYS_CHROOT",
        ],
        ..PLAIN
    },
    // Those that open system calls, as far as Docker Engine of this age knows them and hosts give them.
    Case {
        name: "nearly-privileged",
        both: &[
            "--cap-add",
            "SYS_ADMIN",
            "--cap-add",
            "SYS_TIME",
            "--cap-add",
            "SYS_MODULE",
            "--cap-add",
            "SYS_RAWIO",
            "--cap-add",
            "SYS_PACCT",
            "--cap-add",
            "SYS_BOOT",
            "--cap-add",
            "SYS_TTY_CONFIG",
            "--cap-add",
            "SYSLOG",
            "--cap-add",
            "DAC_READ_SEARCH",
            "--cap-add",
            "AUDIT_CONTROL",
        ],
        ..PLAIN
    },
    Case {
        name: "read-only",
        both: &["--read-only"],
        ..PLAIN
    },
    Case {
        name: "tmpfs",
        both: &[
            "--mount",
            "type=tmpfs,target=/t1",
            "--mount",
            "type=tmpfs,target=/t2,tmpfs-size=1048576,tmpfs-mode=0700",
        ],
        ..PLAIN
    },
    Case {
        name: "binds",
        both: &[
            "--mount",
            "type=bind,source=/usr/share,target=/b1",
            "--mount",
            "type=bind,source=/usr/share,target=/b2,readonly",
            "--mount",
            "type=bind,source=/usr/lib,target=/b1/doc,bind-propagation=private",
        ],
        ..PLAIN
    },
    Case {
        name: "volumes",
        both: &[
            "--mount",
            "type=volume,source=data,target=/v1",
            "--mount",
            "type=volume,source=data,target=/v2,readonly",
            "--mount",
            "type=volume,target=/v3,volume-nocopy",
        ],
        ..PLAIN
    },
    Case {
        name: "ulimits",
        both: &["--ulimit", "nofile=512:1024", "--ulimit", "core=0"],
        ..PLAIN
    },
    Case {
        name: "sysctls",
        both: &[
            "--sysctl",
            "net.core.somaxconn=1024",
            "--sysctl",
            "net.ipv4.ip_unprivileged_port_start=1024",
        ],
        ..PLAIN
    },
    Case {
        name: "processes",
        ours: &["--limit-pids", "100"],
        theirs: &["--pids-limit", "100"],
        ..PLAIN
    },
    Case {
        name: "memory",
        ours: &["--limit-memory", "64m"],
        theirs: &["--memory", "64m"],
        ..PLAIN
    },
    Case {
        name: "swap",
        ours: &["--limit-memory", "64m"],
        theirs: &["--memory", "64m", "--memory-swap", "80m"],
        wire: Some(|task| task.resources.get_or_insert_default().swap_bytes = Some(16 << 20)),
        ..PLAIN
    },
    Case {
        name: "swappiness",
        theirs: &["--memory-swappiness", "10"],
        wire: Some(|task| {
            let resources = task.resources.get_or_insert_default();
            resources.memory_swappiness = Some(10);
        }),
        only_v1: true,
        ..PLAIN
    },
    Case {
        name: "swap-without-limit",
        ours: &["--limit-memory", "64m"],
        theirs: &["--memory", "64m", "--memory-swap", "-1"],
        wire: Some(|task| task.resources.get_or_insert_default().swap_bytes = Some(-1)),
        ..PLAIN
    },
    Case {
        name: "cpus",
        ours: &["--limit-cpu", "0.25"],
        theirs: &["--cpus", "0.25"],
        ..PLAIN
    },
    Case {
        name: "reservations",
        ours: &["--reserve-memory", "32m", "--reserve-cpu", "0.25"],
        theirs: &["--memory-reservation", "32m", "--cpu-shares", "256"],
        ..PLAIN
    },
    Case {
        name: "shared-memory",
        both: &["--shm-size", "16m"],
        ..PLAIN
    },
    Case {
        name: "out-of-memory",
        both: &["--oom-score-adj", "500"],
        ..PLAIN
    },
    Case {
        name: "init",
        both: &["--init"],
        ..PLAIN
    },
    Case {
        name: "terminal",
        both: &["--tty"],
        ..PLAIN
    },
    Case {
        name: "input",
        ours: &["--open-stdin"],
        theirs: &["--interactive"],
        ..PLAIN
    },
    Case {
        name: "devices",
        both: &[
            "--device",
            "/dev/zero:/dev/other:r",
            "--device",
            "/dev/loop-control",
        ],
        ..PLAIN
    },
    Case {
        name: "names",
        both: &[
            "--dns",
            "192.0.2.1",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
        ],
        ours: &["--host", "other:192.0.2.2"],
        theirs: &["--add-host", "other:192.0.2.2"],
        ..PLAIN
    },
    Case {
        name: "no-effect",
        both: &[
            "--stop-signal",
            "SIGINT",
            "--health-cmd",
            "true",
            "--health-interval",
            "1h",
        ],
        ours: &["--container-label", "a=b"],
        theirs: &["--label", "a=b"],
        ..PLAIN
    },
    Case {
        name: "bridge",
        both: &["--network", "bridge"],
        ..PLAIN
    },
    Case {
        name: "host-network",
        both: &["--network", "host"],
        ..PLAIN
    },
    Case {
        name: "no-new-privileges",
        theirs: &["--security-opt", "no-new-privileges"],
        wire: Some(|task| privileges(task).no_new_privileges = true),
        ..PLAIN
    },
    Case {
        name: "no-filter",
        theirs: &["--security-opt", "seccomp=unconfined"],
        wire: Some(|task| seccomp(task).mode = 1),
        ..PLAIN
    },
    Case {
        name: "own-filter",
        theirs: &["--security-opt", "seccomp=/root/profile.json"],
        wire: Some(|task| {
            let seccomp = seccomp(task);
            seccomp.mode = 2;
            seccomp.profile = PROFILE.as_bytes().to_vec();
        }),
        ..PLAIN
    },
];

fn privileges(task: &mut pb::TaskSpec) -> &mut pb::Privileges {
    let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime else {
        unreachable!("every service runs a container");
    };
    container.privileges.get_or_insert_default()
}

fn seccomp(task: &mut pb::TaskSpec) -> &mut pb::privileges::SeccompOpts {
    privileges(task).seccomp.get_or_insert_default()
}
