//! Checks of what a container may do on its node: capabilities, seccomp, AppArmor, credentials.

use crate::invalid::{Faults, shown};
use crate::pb;
use crate::pb::privileges::app_armor_opts::AppArmorMode;
use crate::pb::privileges::credential_spec::Source;
use crate::pb::privileges::seccomp_opts::SeccompMode;
use crate::pb::privileges::{CredentialSpec, SeccompOpts};

/// The capabilities of Linux, without their prefix `CAP_`.
pub const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Stands for every capability.
pub const ALL_CAPABILITIES: &str = "ALL";

pub(crate) fn check(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    let lists = [
        ("capability_add", &spec.capability_add),
        ("capability_drop", &spec.capability_drop),
    ];
    for (list, names) in lists {
        for (i, name) in names.iter().enumerate() {
            if !is_capability(name) {
                faults.add(
                    format!("{field}.{list}[{i}]"),
                    format!(
                        "{} is not a capability; write ALL or a name such as CAP_NET_ADMIN",
                        shown(name)
                    ),
                );
            }
        }
    }
    let Some(privileges) = &spec.privileges else {
        return;
    };
    if let Some(seccomp) = &privileges.seccomp {
        check_seccomp(faults, &format!("{field}.privileges.seccomp"), seccomp);
    }
    if let Some(apparmor) = &privileges.apparmor {
        let _: Option<AppArmorMode> = faults.known(
            format!("{field}.privileges.apparmor.mode"),
            apparmor.mode,
            "DEFAULT and DISABLED",
        );
    }
    if let Some(credentials) = &privileges.credential_spec {
        let field = format!("{field}.privileges.credential_spec");
        check_credentials(faults, &field, credentials, &spec.configs);
    }
}

/// With or without prefix, without regard to case, as Docker takes them.
fn is_capability(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    upper == ALL_CAPABILITIES || CAPABILITIES.contains(&bare)
}

fn check_seccomp(faults: &mut Faults, field: &str, seccomp: &SeccompOpts) {
    let mode = faults.known(
        format!("{field}.mode"),
        seccomp.mode,
        "DEFAULT, UNCONFINED and CUSTOM",
    );
    match mode {
        Some(SeccompMode::Custom) if seccomp.profile.is_empty() => {
            faults.add(
                format!("{field}.profile"),
                "is missing; mode CUSTOM needs a profile",
            );
        }
        Some(SeccompMode::Default | SeccompMode::Unconfined) if !seccomp.profile.is_empty() => {
            faults.add(
                format!("{field}.profile"),
                "is used in mode CUSTOM only; set that mode",
            );
        }
        Some(SeccompMode::Default | SeccompMode::Unconfined | SeccompMode::Custom) | None => {}
    }
}

fn check_credentials(
    faults: &mut Faults,
    field: &str,
    credentials: &CredentialSpec,
    configs: &[pb::ConfigReference],
) {
    use pb::config_reference::Target;
    match &credentials.source {
        Some(Source::Config(id)) => {
            let is_runtime = |c: &pb::ConfigReference| matches!(c.target, Some(Target::Runtime(_)));
            if !configs.iter().any(|c| c.config_id == *id && is_runtime(c)) {
                faults.add(
                    format!("{field}.config"),
                    format!(
                        "config {} is not among the configs with a runtime target",
                        shown(id)
                    ),
                );
            }
        }
        Some(Source::File(name) | Source::Registry(name)) if name.is_empty() => {
            faults.add(field, "names no file or registry value");
        }
        Some(Source::File(_) | Source::Registry(_)) => {}
        None => faults.add(
            field,
            "has no source; name a file, registry value or config",
        ),
    }
}
