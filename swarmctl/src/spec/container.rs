//! The container of a service's tasks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use swarm_proto::pb::ContainerSpec;
use swarm_proto::pb::container_spec::{Device, DnsConfig, Ulimit};
use swarm_proto::ulimit;

use super::text::{FILLED, IMAGE, PATH, SETTING};
use super::value::{OOM_SCORE_ADJ, SIZE};
use super::{DURATION, Form, Problems, mount, policy};
use crate::cli::{ContainerFlags, ReachFlags};

const SIGNALS: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV",
    "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN",
    "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS",
];

const SIGNAL: Form<String> = Form {
    accepted: "a signal like SIGTERM, USR1, RTMIN+3 or a number from 1 to 64",
    parse: signal,
};

const HOST: Form<String> = Form {
    accepted: "HOST:IP",
    parse: host,
};

const ADDRESS: Form<String> = Form {
    accepted: "an IP address",
    parse: |text| {
        text.parse::<IpAddr>()
            .map(|ip| ip.to_string())
            .map_err(|_| "not an IP address".to_owned())
    },
};

const ULIMIT: Form<Ulimit> = Form {
    accepted: "NAME=SOFT[:HARD], -1 is no limit",
    parse: ulimit,
};

const CAPABILITY: Form<String> = Form {
    accepted: "a capability like NET_ADMIN, or ALL",
    parse: capability,
};

const DEVICE: Form<Device> = Form {
    accepted: "PATH[:PATH-INSIDE[:PERMISSIONS]], permissions being of r, w and m",
    parse: device,
};

/// Applies the flags that are given; lists replace those of the spec.
pub(super) fn apply(
    flags: &ContainerFlags,
    container: &mut ContainerSpec,
    client: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    if let Some(image) = problems.optional("--image", flags.image.as_ref(), &IMAGE) {
        container.image = image;
    }
    replace(&mut container.command, &flags.command);
    replace(&mut container.args, &flags.args);
    replace(&mut container.groups, &flags.groups);
    if !flags.env.is_empty() {
        container.env = environment("--env", &flags.env, client, problems);
    }
    if !flags.container_labels.is_empty() {
        container.labels =
            super::key_values(problems, "--container-label", &flags.container_labels);
    }
    let texts = [
        ("--hostname", &flags.hostname, &mut container.hostname),
        ("--user", &flags.user, &mut container.user),
    ];
    for (flag, text, field) in texts {
        if let Some(text) = problems.optional(flag, text.as_ref(), &FILLED) {
            *field = text;
        }
    }
    if let Some(dir) = problems.optional("--workdir", flags.workdir.as_ref(), &PATH) {
        container.dir = dir;
    }
    container.tty = flags.tty.unwrap_or(container.tty);
    container.open_stdin = flags.open_stdin.unwrap_or(container.open_stdin);
    container.read_only = flags.read_only.unwrap_or(container.read_only);
    container.init = flags.init.or(container.init);
    machine(flags, container, problems);
    stop(flags, container, problems);
    kernel(flags, container, problems);
    names(flags, container, problems);
    policy::health(flags, &mut container.healthcheck, problems);
}

/// Mounts are one list on the wire, from whichever flag they come.
pub(super) fn mounts(flags: &ReachFlags, container: &mut ContainerSpec, problems: &mut Problems) {
    let mut mounts = problems.each("--mount", &flags.mounts, &mount::MOUNT);
    mounts.extend(problems.each("--bind", &flags.binds, &mount::BIND));
    mounts.extend(problems.each("--volume", &flags.volumes, &mount::VOLUME));
    mounts.extend(problems.each("--tmpfs", &flags.tmpfs, &mount::TMPFS));
    mounts.extend(problems.each("--npipe", &flags.npipes, &mount::NPIPE));
    let mut targets = std::collections::BTreeSet::new();
    for mount in &mounts {
        if !targets.insert(&mount.target) {
            let target = &mount.target;
            problems.push(format!(
                "mounts: two of them have the target {target}; give each its own"
            ));
        }
    }
    if !mounts.is_empty() {
        container.mounts = mounts;
    }
}

/// `NAME=VALUE` as it is; `NAME` takes the value from the client's environment, as in Docker.
pub(super) fn environment(
    flag: &str,
    texts: &[String],
    client: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Vec<String> {
    let mut all = Vec::new();
    for text in texts {
        let (name, value) = text
            .split_once('=')
            .map_or((text.as_str(), None), |(n, v)| (n, Some(v)));
        if name.is_empty() {
            problems.push(format!(
                "{flag} {text:?}: the name is empty; give NAME=VALUE"
            ));
        } else if let Some(value) = value.or(client.get(name).map(String::as_str)) {
            all.push(format!("{name}={value}"));
        } else {
            problems.push(format!(
                "{flag} {name}: not set in this environment; give NAME=VALUE"
            ));
        }
    }
    all
}

fn replace(list: &mut Vec<String>, given: &[String]) {
    if !given.is_empty() {
        *list = given.to_vec();
    }
}

fn stop(flags: &ContainerFlags, container: &mut ContainerSpec, problems: &mut Problems) {
    if let Some(signal) = problems.optional("--stop-signal", flags.stop_signal.as_ref(), &SIGNAL) {
        container.stop_signal = signal;
    }
    let grace = problems.optional(
        "--stop-grace-period",
        flags.stop_grace_period.as_ref(),
        &DURATION,
    );
    container.stop_grace_period = grace.map(policy::wire).or(container.stop_grace_period);
}

fn kernel(flags: &ContainerFlags, container: &mut ContainerSpec, problems: &mut Problems) {
    let added = problems.each("--cap-add", &flags.cap_add, &CAPABILITY);
    let dropped = problems.each("--cap-drop", &flags.cap_drop, &CAPABILITY);
    if let Some(both) = added.iter().find(|capability| dropped.contains(capability)) {
        problems.push(format!(
            "--cap-add {both}: --cap-drop names it too; give it once"
        ));
    }
    // Adding takes back an earlier drop and the other way round; the two lists never overlap.
    container
        .capability_add
        .retain(|capability| !dropped.contains(capability));
    container
        .capability_drop
        .retain(|capability| !added.contains(capability));
    for (list, new) in [
        (&mut container.capability_add, added),
        (&mut container.capability_drop, dropped),
    ] {
        for capability in new {
            if !list.contains(&capability) {
                list.push(capability);
            }
        }
    }
    if !flags.sysctls.is_empty() {
        container.sysctls = problems
            .each("--sysctl", &flags.sysctls, &SETTING)
            .into_iter()
            .collect();
    }
    if !flags.ulimits.is_empty() {
        container.ulimits = problems.each("--ulimit", &flags.ulimits, &ULIMIT);
    }
    if let Some(score) = problems.optional(
        "--oom-score-adj",
        flags.oom_score_adj.as_ref(),
        &OOM_SCORE_ADJ,
    ) {
        container.oom_score_adj = score;
    }
}

/// What it has of its machine.
fn machine(flags: &ContainerFlags, container: &mut ContainerSpec, problems: &mut Problems) {
    if !flags.devices.is_empty() {
        container.devices = problems.each("--device", &flags.devices, &DEVICE);
    }
    if let Some(size) = problems.optional("--shm-size", flags.shm_size.as_ref(), &SIZE) {
        container.shm_bytes = size;
    }
    if let Some(runtime) = problems.optional("--runtime", flags.runtime.as_ref(), &FILLED) {
        container.oci_runtime = runtime;
    }
}

fn names(flags: &ContainerFlags, container: &mut ContainerSpec, problems: &mut Problems) {
    if !flags.hosts.is_empty() {
        container.hosts = hosts("--host", &flags.hosts, problems);
    }
    if flags.dns.is_empty() && flags.dns_search.is_empty() && flags.dns_options.is_empty() {
        return;
    }
    let servers = problems.each("--dns", &flags.dns, &ADDRESS);
    let config = container.dns_config.get_or_insert_with(DnsConfig::default);
    replace(&mut config.nameservers, &servers);
    replace(&mut config.search, &flags.dns_search);
    replace(&mut config.options, &flags.dns_options);
}

/// The wire has the lines of /etc/hosts: address first.
pub(super) fn hosts(flag: &str, texts: &[String], problems: &mut Problems) -> Vec<String> {
    problems.each(flag, texts, &HOST)
}

fn host(text: &str) -> Result<String, String> {
    let (name, address) = text.split_once([':', '=']).ok_or("there is no :")?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("the host's name is empty or has spaces".to_owned());
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    let address: IpAddr = bare
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address"))?;
    Ok(format!("{address} {name}"))
}

fn signal(text: &str) -> Result<String, String> {
    if let Ok(number) = text.parse::<i64>() {
        return match number {
            1..=64 => Ok(text.to_owned()),
            _ => Err("out of range".to_owned()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name
        .strip_prefix("RTMIN")
        .or(name.strip_prefix("RTMAX"))
        .is_some_and(|offset| {
            offset.is_empty()
                || offset
                    .get(1..)
                    .is_some_and(|number| number.parse::<u8>().is_ok())
        });
    if SIGNALS.contains(&name) || real_time {
        Ok(format!("SIG{name}"))
    } else {
        Err("unknown signal".to_owned())
    }
}

fn ulimit(text: &str) -> Result<Ulimit, String> {
    let (name, limits) = text.split_once('=').ok_or("there is no =")?;
    if !ulimit::NAMES.contains(&name) {
        return Err(format!(
            "unknown limit {name:?}, known are {}",
            ulimit::NAMES.join(", ")
        ));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text.parse::<i64>() {
        Ok(number) if number >= -1 => Ok(number),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a number of at least -1")),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err("the soft limit is above the hard one".to_owned());
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
        return Err("not a capability".to_owned());
    }
    Ok(if name == "ALL" {
        "ALL".to_owned()
    } else {
        format!("CAP_{name}")
    })
}

/// As `docker run` takes it: what follows one path may be the other or the permissions.
fn device(text: &str) -> Result<Device, String> {
    let permissions = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (path, inside, permitted) = match parts.as_slice() {
        [path] => (*path, "", ""),
        [path, second] if permissions(second) => (*path, "", *second),
        [path, inside] => (*path, *inside, ""),
        [path, inside, third] if permissions(third) => (*path, *inside, *third),
        _ => return Err("there are more parts than three, or other permissions".to_owned()),
    };
    let absolute = |path: &str| path.starts_with('/');
    if !absolute(path) || !(inside.is_empty() || absolute(inside)) {
        return Err("a path does not begin with /".to_owned());
    }
    Ok(Device {
        path_on_host: path.to_owned(),
        path_in_container: inside.to_owned(),
        permissions: permitted.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let read = |text: &str| {
            let device = device(text).ok()?;
            Some([
                device.path_on_host,
                device.path_in_container,
                device.permissions,
            ])
        };
        let parts = |parts: [&str; 3]| Some(parts.map(str::to_owned));
        assert_eq!(read("/dev/fuse"), parts(["/dev/fuse", "", ""]));
        assert_eq!(read("/dev/a:rw"), parts(["/dev/a", "", "rw"]));
        assert_eq!(read("/dev/a:/dev/b"), parts(["/dev/a", "/dev/b", ""]));
        assert_eq!(read("/dev/a:/dev/b:r"), parts(["/dev/a", "/dev/b", "r"]));
        for bad in ["", "fuse", "/dev/a:b", "/dev/a:/b:x", "/a:/b:r:w"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn signals() {
        assert_eq!(signal("term").as_deref(), Ok("SIGTERM"));
        assert_eq!(signal("SIGRTMIN+3").as_deref(), Ok("SIGRTMIN+3"));
        assert_eq!(signal("9").as_deref(), Ok("9"));
        for bad in ["", "0", "65", "SIGFOO", "RTMINx"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_become_lines_of_etc_hosts() {
        assert_eq!(host("db:10.0.0.2").as_deref(), Ok("10.0.0.2 db"));
        assert_eq!(host("db:[::1]").as_deref(), Ok("::1 db"));
        assert_eq!(host("db=::1").as_deref(), Ok("::1 db"));
        assert!(host("db").is_err() && host(":1.2.3.4").is_err() && host("db:x").is_err());
    }

    #[test]
    fn ulimits() {
        assert_eq!(ulimit("nofile=1024").unwrap().hard, 1024);
        assert_eq!(ulimit("core=0:-1").unwrap().hard, -1);
        assert!(
            ulimit("nofile").is_err() && ulimit("x=1").is_err() && ulimit("nofile=2:1").is_err()
        );
    }

    #[test]
    fn environment_copies_what_has_no_value() {
        let mut problems = Problems::default();
        let client = BTreeMap::from([("HOME".to_owned(), "/root".to_owned())]);
        let texts = ["A=1", "HOME", "B=", "NONE", "=x"].map(str::to_owned);
        let got = environment("--env", &texts, &client, &mut problems);
        assert_eq!(got, ["A=1", "HOME=/root", "B="]);
        assert_eq!(
            problems.to_string(),
            "--env NONE: not set in this environment; give NAME=VALUE\n\
             --env \"=x\": the name is empty; give NAME=VALUE"
        );
    }
}
