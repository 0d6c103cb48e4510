//! Checks of a container's spec.
//!
//! Managers only forward it, so it has no parsed form; what a node would refuse or ignore is
//! refused here, before a task exists.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::invalid::{Faults, is_absolute, is_template, shown};
use crate::name;
use crate::pb;
use crate::reference::Reference;
use crate::signal::signal_number;
use crate::{dependencies, health, mounts, privileges, ulimit};

/// Longest host name Linux takes.
const HOSTNAME_MAX: usize = 64;

/// Checks everything of a container's spec; `field` is its path.
pub(crate) fn check(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    let at = |name: &str| format!("{field}.{name}");
    if spec.image.is_empty() {
        faults.add(at("image"), "is missing; name an image");
    } else {
        faults.take(at("image"), spec.image.parse::<Reference>());
    }
    name::labels(faults, &at("labels"), spec.labels.keys());
    check_process(faults, field, spec);
    check_dns(faults, field, spec);
    check_limits(faults, field, spec);
    check_devices(faults, field, spec);
    check_runtime(faults, field, spec);
    privileges::check(faults, field, spec);
    mounts::check(faults, &at("mounts"), &spec.mounts);
    dependencies::check(faults, field, spec);
    if let Some(check) = &spec.healthcheck {
        health::check(faults, &at("healthcheck"), check);
    }
    let _: Option<pb::container_spec::Isolation> = faults.known(
        at("isolation"),
        spec.isolation,
        "ISOLATION_DEFAULT, ISOLATION_PROCESS and ISOLATION_HYPERV",
    );
}

fn check_process(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    let texts = [
        ("command", &spec.command),
        ("args", &spec.args),
        ("groups", &spec.groups),
    ];
    for (list, words) in texts {
        for (i, word) in words.iter().enumerate() {
            check_text(faults, || format!("{field}.{list}[{i}]"), word);
        }
    }
    for (i, group) in spec.groups.iter().enumerate() {
        if group.is_empty() {
            faults.add(
                format!("{field}.groups[{i}]"),
                "is empty; give a group's name or number",
            );
        }
    }
    for (i, variable) in spec.env.iter().enumerate() {
        let at = || format!("{field}.env[{i}]");
        check_text(faults, at, variable);
        if variable.is_empty() || variable.starts_with('=') {
            faults.add(
                at(),
                format!("{} has no name; write NAME=VALUE or NAME", shown(variable)),
            );
        }
    }
    for (name, text) in [
        ("dir", &spec.dir),
        ("user", &spec.user),
        ("hostname", &spec.hostname),
    ] {
        check_text(faults, || format!("{field}.{name}"), text);
    }
    if !spec.dir.is_empty() && !is_absolute(&spec.dir) {
        faults.add(
            format!("{field}.dir"),
            format!("{} is not an absolute path", shown(&spec.dir)),
        );
    }
    if !spec.hostname.is_empty() && !is_template(&spec.hostname) && !is_hostname(&spec.hostname) {
        faults.add(
            format!("{field}.hostname"),
            format!(
                "{} is not a host name; use up to {HOSTNAME_MAX} letters, digits, '-' and '.'",
                shown(&spec.hostname)
            ),
        );
    }
    if !spec.stop_signal.is_empty() && signal_number(&spec.stop_signal).is_none() {
        faults.add(
            format!("{field}.stop_signal"),
            format!(
                "{} is not a signal; write a name such as SIGTERM or SIGRTMIN+3, or a number from \
                 1 to 64",
                shown(&spec.stop_signal)
            ),
        );
    }
    faults.duration(
        format!("{field}.stop_grace_period"),
        spec.stop_grace_period.as_ref(),
    );
}

/// The kernel takes no text with a zero byte in it.
fn check_text(faults: &mut Faults, field: impl Fn() -> String, text: &str) {
    if text.contains('\0') {
        faults.add(field(), format!("{} has a zero byte", shown(text)));
    }
}

fn is_hostname(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= HOSTNAME_MAX && name.split('.').all(label)
}

fn check_dns(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    for (i, line) in spec.hosts.iter().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().unwrap_or("");
        let addressed = address.parse::<IpAddr>().is_ok() || address == "host-gateway";
        if !addressed || words.next().is_none() {
            faults.add(
                format!("{field}.hosts[{i}]"),
                format!("{} is not an ADDRESS followed by host names", shown(line)),
            );
        }
    }
    let servers = spec
        .dns_config
        .as_ref()
        .map(|dns| dns.nameservers.as_slice());
    for (i, server) in servers.unwrap_or_default().iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            faults.add(
                format!("{field}.dns_config.nameservers[{i}]"),
                format!("{} is not an IP address", shown(server)),
            );
        }
    }
}

fn check_limits(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    if spec.pids_limit < -1 {
        faults.add(
            format!("{field}.pidsLimit"),
            "is negative; 0 or -1 means no limit",
        );
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        faults.add(
            format!("{field}.oom_score_adj"),
            format!("{} is not within -1000 and 1000", spec.oom_score_adj),
        );
    }
    let sysctl = |key: &String| {
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
    };
    if let Some(key) = spec.sysctls.keys().find(|key| !sysctl(key)) {
        faults.add(
            format!("{field}.sysctls"),
            format!("{} is not the name of a kernel parameter", shown(key)),
        );
    }
    let mut seen = BTreeSet::new();
    for (i, limit) in spec.ulimits.iter().enumerate() {
        if let Some(reason) = bad_ulimit(limit) {
            faults.add(format!("{field}.ulimits[{i}]"), reason);
        }
        if !seen.insert(limit.name.as_str()) {
            faults.add(
                format!("{field}.ulimits[{i}]"),
                format!("{} is given twice", shown(&limit.name)),
            );
        }
    }
}

/// Smallest `/dev/shm`: a page.
const SHM_MIN: i64 = 4096;

fn check_devices(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    for (i, device) in spec.devices.iter().enumerate() {
        let field = format!("{field}.devices[{i}]");
        if !is_absolute(&device.path_on_host) {
            let path = shown(&device.path_on_host);
            faults.add(
                format!("{field}.path_on_host"),
                format!("{path} is not an absolute path"),
            );
        }
        let inside = &device.path_in_container;
        if !inside.is_empty() && !is_absolute(inside) {
            faults.add(
                format!("{field}.path_in_container"),
                format!("{} is not an absolute path", shown(inside)),
            );
        }
        if !device.permissions.chars().all(|c| "rwm".contains(c)) {
            let permissions = shown(&device.permissions);
            faults.add(
                format!("{field}.permissions"),
                format!("{permissions} has more than r, w and m in it"),
            );
        }
    }
    if spec.shm_bytes != 0 && spec.shm_bytes < SHM_MIN {
        faults.add(
            format!("{field}.shm_bytes"),
            format!("{} is too small; give at least {SHM_MIN}", spec.shm_bytes),
        );
    }
}

/// A name is looked for among the node's programs: a path would let a service pick any file of it.
fn check_runtime(faults: &mut Faults, field: &str, spec: &pb::ContainerSpec) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name = &spec.oci_runtime;
    if !name.chars().all(plain) || name.starts_with(['.', '-']) {
        faults.add(
            format!("{field}.oci_runtime"),
            format!(
                "{} is not the name of a runtime; write runc, crun or io.containerd.NAME.v1",
                shown(name)
            ),
        );
    }
}

/// -1 stands for no limit.
fn bad_ulimit(limit: &pb::container_spec::Ulimit) -> Option<String> {
    if !ulimit::NAMES.contains(&limit.name.as_str()) {
        let known = ulimit::NAMES.join(", ");
        return Some(format!(
            "{} is not a limit; known are {known}",
            shown(&limit.name)
        ));
    }
    if limit.soft < -1 || limit.hard < -1 {
        return Some(format!("{} is negative; -1 means no limit", limit.name));
    }
    let above = limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard);
    above.then(|| {
        format!(
            "{}: the soft limit {} is above the hard limit {}",
            limit.name, limit.soft, limit.hard
        )
    })
}
