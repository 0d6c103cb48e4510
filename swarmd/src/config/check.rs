//! From settings as text to valid ones: every value is looked at, and every mistake is noted.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{
    Config, ConfigErrors, DEFAULT_PORT, ExecutorKind, ForceNewCluster, Join, Settings, images,
};
use crate::ca::token::{JoinToken, UnlockKey};
use swarm_proto::external_ca::{EXTERNAL_CAS_MAX, Said};
use swarm_proto::pb::ExternalCa;

/// Most addresses of one flag; as many as a manager has.
const ADDRESSES_MAX: usize = 8;

/// Collects mistakes while values are checked.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) errors: Vec<String>,
}

impl Check {
    /// The value, parsed; a mistake is noted and the default stands in until all are reported.
    pub(super) fn parse<T>(
        &mut self,
        flag: &str,
        value: Option<&str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let Some(value) = value else { return default };
        match parse(value) {
            Ok(parsed) => parsed,
            Err(reason) => {
                self.errors.push(format!("--{flag} {value:?}: {reason}"));
                default
            }
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one paragraph a setting")]
pub(super) fn check(s: Settings, errors: Vec<String>) -> Result<Config, ConfigErrors> {
    use swarm_proto::pb::node_spec::Availability;
    let mut c = Check { errors };
    let log_level = c.parse(
        "log-level",
        s.log_level.as_deref(),
        "info".to_owned(),
        log_level,
    );
    let log_json = c.parse("log-format", s.log_format.as_deref(), false, |v| match v {
        "text" => Ok(false),
        "json" => Ok(true),
        _ => Err("must be text or json".to_owned()),
    });
    let executor = c.parse(
        "executor",
        s.executor.as_deref(),
        ExecutorKind::Containerd,
        |v| match v {
            "containerd" => Ok(ExecutorKind::Containerd),
            "simulated" => Ok(ExecutorKind::Simulated),
            "none" => Ok(ExecutorKind::None),
            _ => Err("must be containerd, simulated or none".to_owned()),
        },
    );
    let availability = c.parse(
        "availability",
        s.availability.as_deref(),
        Availability::Active,
        |v| match v {
            "active" => Ok(Availability::Active),
            "pause" => Ok(Availability::Pause),
            "drain" => Ok(Availability::Drain),
            _ => Err("must be active, pause or drain".to_owned()),
        },
    );
    let any = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT));
    let listen = c.parse(
        "listen-remote-api",
        s.listen_remote_api.as_deref(),
        any,
        socket_addr,
    );
    let listen_metrics = c.parse("listen-metrics", s.listen_metrics.as_deref(), None, |v| {
        socket_addr(v).map(Some)
    });
    let advertise = c.parse(
        "advertise-remote-api",
        s.advertise_remote_api.as_deref(),
        Vec::new(),
        host_ports,
    );
    let force = s.force_new_cluster.as_deref();
    let force_new_cluster = c.parse("force-new-cluster", force, None, force_new_cluster);
    let registries = images::registries(&mut c, &s);
    let collection = images::collection(&mut c, &s);
    let hostname = c.parse("hostname", s.hostname.as_deref(), None, |v| {
        hostname(v).map(Some)
    });
    let engine = "unix:///run/containerd/containerd.sock".to_owned();
    let engine_addr = c.parse("engine-addr", s.engine_addr.as_deref(), engine, engine_addr);
    let namespace = c.parse(
        "containerd-namespace",
        s.containerd_namespace.as_deref(),
        None,
        |v| namespace(v).map(Some),
    );
    let generic = c.parse(
        "generic-node-resources",
        s.generic_node_resources.as_deref(),
        std::collections::BTreeMap::new(),
        |v| swarm_proto::resources::parse_generic(v).map_err(|e| e.to_string()),
    );
    let heartbeat = c.parse("heartbeat-tick", s.heartbeat_tick.as_deref(), 1, ticks);
    let election = c.parse("election-tick", s.election_tick.as_deref(), 10, ticks);
    if election <= heartbeat {
        c.errors.push(format!(
            "--election-tick {election}: must be greater than --heartbeat-tick {heartbeat}"
        ));
    }
    let (join, join_addrs) = check_join(&mut c, &s);
    let unlock_key = check_unlock_key(&mut c, &s);
    let external_cas = external_cas(&mut c, &s.external_ca);
    let engine_labels = check_labels(&mut c, &s.engine_label);
    let state_dir = PathBuf::from(s.state_dir.unwrap_or_else(|| "/var/lib/swarmd".to_owned()));
    let control = s
        .listen_control_api
        .unwrap_or_else(|| "/var/run/swarmd.sock".to_owned());
    if !c.errors.is_empty() {
        return Err(ConfigErrors(c.errors));
    }
    Ok(Config {
        log_level,
        log_json,
        state_dir,
        join,
        join_addrs,
        force_new_cluster,
        autolock: s.autolock,
        external_cas,
        unlock_key,
        engine_addr,
        containerd_namespace: namespace,
        executor,
        registries,
        collection,
        hostname,
        availability,
        advertise_remote_api: advertise,
        listen_remote_api: listen,
        listen_control_api: PathBuf::from(control),
        listen_metrics,
        generic_resources: generic,
        engine_labels,
        heartbeat_ticks: heartbeat,
        election_ticks: election,
    })
}

fn force_new_cluster(value: &str) -> Result<Option<ForceNewCluster>, String> {
    match value {
        "false" => Ok(None),
        "true" => Ok(Some(ForceNewCluster { ends: None })),
        epoch => match epoch.parse() {
            Ok(ends) => Ok(Some(ForceNewCluster { ends: Some(ends) })),
            Err(error) => Err(format!(
                "{error}; say it as the manager's log does, or leave the value out"
            )),
        },
    }
}

/// How to join, and the managers that were named, also where nothing is left to join.
fn check_join(c: &mut Check, s: &Settings) -> (Option<Join>, Vec<String>) {
    let given = s.join_addr.as_deref();
    let addrs = c.parse("join-addr", given, Vec::new(), host_ports);
    let token = match secret(c, "join-token", (&s.join_token, &s.join_token_file)) {
        Ok(token) => token,
        Err(Noted) => return (None, addrs),
    };
    let token = match token.map(|t| t.trim().parse::<JoinToken>()) {
        // The value is a secret: the message names the flag alone.
        Some(Err(e)) => {
            c.errors.push(format!("--join-token: {e}"));
            None
        }
        Some(Ok(token)) => Some(token),
        None => None,
    };
    let Some(token) = token else {
        // A node that has its certificate needs no token any more: decided at start.
        return (None, addrs);
    };
    if given.is_none() {
        c.errors.push(
            "--join-token: also needs --join-addr, the address of a manager (host:port)".to_owned(),
        );
    }
    let join = (!addrs.is_empty()).then(|| Join {
        addrs: addrs.clone(),
        token,
    });
    (join, addrs)
}

/// A mistake that is noted already.
struct Noted;

/// The text of a secret that is given itself, or in a file.
fn secret(
    c: &mut Check,
    flag: &str,
    given: (&Option<String>, &Option<String>),
) -> Result<Option<String>, Noted> {
    match given {
        (Some(_), Some(_)) => {
            c.errors
                .push(format!("--{flag} and --{flag}-file: give one of them"));
            Err(Noted)
        }
        (Some(text), None) => Ok(Some(text.clone())),
        (None, Some(file)) => std::fs::read_to_string(file).map(Some).map_err(|e| {
            c.errors
                .push(format!("--{flag}-file {file}: can't be read: {e}"));
            Noted
        }),
        (None, None) => Ok(None),
    }
}

fn check_unlock_key(c: &mut Check, s: &Settings) -> Option<UnlockKey> {
    let text = secret(c, "unlock-key", (&s.unlock_key, &s.unlock_key_file)).ok()??;
    match text.parse() {
        Ok(key) => Some(key),
        // The value is a secret: the message names the flag alone.
        Err(error) => {
            c.errors.push(format!("--unlock-key: {error}"));
            None
        }
    }
}

fn external_cas(c: &mut Check, texts: &[String]) -> Vec<ExternalCa> {
    if texts.len() > EXTERNAL_CAS_MAX {
        let given = texts.len();
        c.errors.push(format!(
            "--external-ca: given {given} times; give at most {EXTERNAL_CAS_MAX}"
        ));
    }
    let texts = texts.iter().take(EXTERNAL_CAS_MAX);
    texts.filter_map(|text| external_ca(c, text)).collect()
}

fn external_ca(c: &mut Check, text: &str) -> Option<ExternalCa> {
    let mut wrong = |reason: String| c.errors.push(format!("--external-ca: {reason}"));
    // Not the text itself: its options may be secrets.
    let said = match Said::parse(text) {
        Ok(said) => said,
        Err(reasons) => {
            reasons.into_iter().for_each(wrong);
            return None;
        }
    };
    let Some(path) = &said.ca_cert else {
        return Some(said.into_wire(Vec::new()));
    };
    let read = std::fs::read(path).map_err(|e| format!("can't be read: {e}"));
    let read = read.and_then(|pem| match crate::ca::roots::authority(&pem) {
        Ok(_) => Ok(pem),
        Err(unfit) => Err(unfit.to_string()),
    });
    match read {
        Ok(pem) => Some(said.into_wire(pem)),
        Err(reason) => {
            wrong(format!("cacert {path}: {reason}"));
            None
        }
    }
}

fn check_labels(c: &mut Check, labels: &[String]) -> std::collections::BTreeMap<String, String> {
    let mut map = std::collections::BTreeMap::new();
    for label in labels {
        match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                map.insert(key.to_owned(), value.to_owned());
            }
            Some(_) | None => {
                c.errors
                    .push(format!("--engine-label {label:?}: must be KEY=VALUE"));
            }
        }
    }
    map
}

fn log_level(value: &str) -> Result<String, String> {
    // SwarmKit's levels that tracing does not know.
    let level = match value {
        "fatal" | "panic" => "error",
        "warning" => "warn",
        other => other,
    };
    let known = ["error", "warn", "info", "debug", "trace", "off"].contains(&level);
    if known || level.contains('=') && tracing_subscriber::EnvFilter::try_new(level).is_ok() {
        Ok(level.to_owned())
    } else {
        Err("must be error, warn, info, debug or trace".to_owned())
    }
}

fn socket_addr(value: &str) -> Result<SocketAddr, String> {
    value.parse().map_err(|_| {
        format!("must be an IP address and a port, for example 0.0.0.0:{DEFAULT_PORT}")
    })
}

fn host_port(value: &str) -> Result<String, String> {
    let reason = || format!("must be host:port, for example 10.0.0.1:{DEFAULT_PORT}");
    let (host, port) = value.rsplit_once(':').ok_or_else(reason)?;
    let port: u16 = port.parse().map_err(|_| reason())?;
    if host.is_empty() || port == 0 || host.contains(char::is_whitespace) {
        return Err(reason());
    }
    Ok(value.to_owned())
}

/// Some of them, separated by commas.
fn host_ports(value: &str) -> Result<Vec<String>, String> {
    let each: Vec<String> = value
        .split(',')
        .map(|one| host_port(one.trim()))
        .collect::<Result<_, _>>()?;
    match each.len() {
        0..=ADDRESSES_MAX => Ok(each),
        given => Err(format!("{given} addresses; say at most {ADDRESSES_MAX}")),
    }
}

fn hostname(value: &str) -> Result<String, String> {
    word(value, 253)
}

fn engine_addr(value: &str) -> Result<String, String> {
    let path = value.strip_prefix("unix://").unwrap_or(value);
    if path.starts_with('/') {
        Ok(format!("unix://{path}"))
    } else {
        Err("must be the path of containerd's socket, for example \
             unix:///run/containerd/containerd.sock"
            .to_owned())
    }
}

fn namespace(value: &str) -> Result<String, String> {
    word(value, 76)
}

fn word(value: &str, longest: usize) -> Result<String, String> {
    let valid = !value.is_empty()
        && value.len() <= longest
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if valid {
        Ok(value.to_owned())
    } else {
        Err(format!(
            "must have 1 to {longest} letters, digits, dashes, dots and underscores"
        ))
    }
}

fn ticks(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(ticks @ 1..=600) => Ok(ticks),
        Ok(_) | Err(_) => Err("must be a number of ticks from 1 to 600".to_owned()),
    }
}
