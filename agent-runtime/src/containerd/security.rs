//! What a container may do by default: Docker's capabilities, hidden paths and system calls.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use swarm_proto::pb;

use super::seccomp;
use crate::error::Error;

/// Docker's default capabilities.
const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability of Linux 5.9 and later.
const ALL: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Paths of the kernel that a container must not read.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of the kernel that a container must not write.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What one container may do.
#[derive(Debug)]
pub(super) struct Security {
    capabilities: BTreeSet<&'static str>,
    pub no_new_privileges: bool,
    pub seccomp: Option<Value>,
    pub selinux_label: Option<String>,
    /// The host's AppArmor profile is not wanted.
    pub apparmor_disabled: bool,
}

impl Security {
    /// Reads it from the spec. Unknown capabilities and what this host can't do are errors.
    pub(super) fn read(container: &pb::ContainerSpec) -> Result<Self, Error> {
        let capabilities = capabilities(&container.capability_add, &container.capability_drop)?;
        let privileges = container.privileges.clone().unwrap_or_default();
        if privileges.credential_spec.is_some() {
            return Err(Error::Fatal(
                "credential specs are for Windows containers; remove it from the service"
                    .to_owned(),
            ));
        }
        let seccomp = match &privileges.seccomp {
            None => Some(seccomp::default_profile(&capabilities)),
            Some(options) => match options.mode() {
                pb::privileges::seccomp_opts::SeccompMode::Default => {
                    Some(seccomp::default_profile(&capabilities))
                }
                pb::privileges::seccomp_opts::SeccompMode::Unconfined => None,
                pb::privileges::seccomp_opts::SeccompMode::Custom => {
                    Some(seccomp::custom_profile(&options.profile, &capabilities)?)
                }
            },
        };
        Ok(Self {
            capabilities,
            no_new_privileges: privileges.no_new_privileges,
            seccomp,
            apparmor_disabled: privileges.apparmor.is_some_and(|options| {
                options.mode() == pb::privileges::app_armor_opts::AppArmorMode::Disabled
            }),
            selinux_label: selinux_label(privileges.selinux_context.as_ref()),
        })
    }

    /// `process.capabilities`. A process that is not root has none, as after any exec; the
    /// bounding set is what set-id programs can regain.
    pub(super) fn capabilities(&self, uid: u32) -> Value {
        let held: Vec<&str> = self.capabilities.iter().copied().collect();
        let effective = if uid == 0 { held.clone() } else { Vec::new() };
        json!({ "bounding": held, "effective": effective, "permitted": effective })
    }
}

/// Paths of the kernel that the container does not see, or sees read-only.
pub(super) fn hidden_paths() -> (&'static [&'static str], &'static [&'static str]) {
    (MASKED, READ_ONLY)
}

fn selinux_label(context: Option<&pb::privileges::SeLinuxContext>) -> Option<String> {
    let context = context?;
    let parts = [
        &context.user,
        &context.role,
        &context.r#type,
        &context.level,
    ];
    if context.disable || parts.iter().all(|part| part.is_empty()) {
        return None;
    }
    let or = |given: &str, default: &str| {
        if given.is_empty() {
            default.to_owned()
        } else {
            given.to_owned()
        }
    };
    Some(format!(
        "{}:{}:{}:{}",
        or(&context.user, "system_u"),
        or(&context.role, "system_r"),
        or(&context.r#type, "container_t"),
        or(&context.level, "s0")
    ))
}

/// Drops first, then adds, as Docker does: `drop ALL, add NET_ADMIN` leaves one.
fn capabilities(add: &[String], drop: &[String]) -> Result<BTreeSet<&'static str>, Error> {
    let mut held: BTreeSet<&'static str> = DEFAULT.iter().copied().collect();
    for name in drop {
        if is_all(name) {
            held.clear();
        } else {
            held.remove(known(name)?);
        }
    }
    for name in add {
        if is_all(name) {
            held.extend(ALL);
            for name in drop.iter().filter(|name| !is_all(name)) {
                held.remove(known(name)?);
            }
        } else {
            held.insert(known(name)?);
        }
    }
    Ok(held)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case("cap_all")
}

fn known(name: &str) -> Result<&'static str, Error> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    let found = ALL.iter().find(|known| **known == full);
    found
        .copied()
        .ok_or_else(|| Error::Fatal(format!("capability {name}: Linux has no such capability")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        capabilities(&own(add), &own(drop))
            .unwrap()
            .into_iter()
            .collect()
    }

    #[test]
    fn adds_and_drops_as_docker() {
        assert_eq!(held(&[], &[]), DEFAULT);
        assert_eq!(held(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(held(&["ALL"], &[]), ALL);
        assert!(!held(&["ALL"], &["CAP_SYS_ADMIN"]).contains(&"CAP_SYS_ADMIN"));
        assert!(!held(&[], &["CHOWN"]).contains(&"CAP_CHOWN"));
        assert!(capabilities(&["NOPE".to_owned()], &[]).is_err());
    }

    #[test]
    fn only_root_holds_them_from_the_start() {
        let security = Security::read(&pb::ContainerSpec::default()).unwrap();
        assert_eq!(
            security.capabilities(0)["effective"]
                .as_array()
                .unwrap()
                .len(),
            DEFAULT.len()
        );
        assert_eq!(
            security.capabilities(7)["effective"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        assert_eq!(
            security.capabilities(7)["bounding"]
                .as_array()
                .unwrap()
                .len(),
            DEFAULT.len()
        );
    }
}
