//! Labels on what this backend makes in containerd: its memory, which survives swarmd.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use swarm_proto::amount;

use crate::executor::Exit;

/// The task that a container or snapshot belongs to.
pub(super) const TASK_ID: &str = "swarm.task.id";
/// Stop signal number.
pub(super) const STOP_SIGNAL: &str = "swarm.stop.signal";
/// Grace period in milliseconds.
pub(super) const STOP_GRACE_MS: &str = "swarm.stop.grace-ms";
/// Memory limit in bytes, for the words on an out-of-memory kill.
pub(super) const MEMORY_LIMIT: &str = "swarm.memory.limit";
/// Exit code, set when the container has ended and its task is gone.
pub(super) const EXIT_CODE: &str = "swarm.exit.code";
/// `true` beside the exit code when the kernel killed it for memory.
pub(super) const EXIT_OOM: &str = "swarm.exit.oom";
/// Why a container that is being stopped was found unhealthy.
pub(super) const UNHEALTHY: &str = "swarm.unhealthy";
/// Address of the container on the node's bridge.
pub(super) const ADDRESS: &str = "swarm.net.address";
/// Published ports: `tcp/8080/80,udp/53/53` (protocol, published, target).
pub(super) const PORTS: &str = "swarm.net.ports";

/// On an image record: when the image was used last, in seconds since 1970.
pub(super) const IMAGE_USED: &str = "swarm.image.used";

/// The address on the node's bridge that the labels record.
pub(super) fn address(labels: &BTreeMap<String, String>) -> Option<Ipv4Addr> {
    labels.get(ADDRESS)?.parse().ok()
}

/// The labels of a spec that its container gets. Those that containerd or this backend read are
/// not the user's to set: a port map that was made up would publish whatever it names.
pub(super) fn of_spec(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const OURS: [&str; 2] = ["swarm.", "containerd.io/"];
    let plain = labels
        .iter()
        .filter(|(key, _)| !OURS.iter().any(|prefix| key.starts_with(prefix)));
    plain
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The exit that the labels record, if the container has ended.
pub(super) fn exit(labels: &BTreeMap<String, String>) -> Option<Exit> {
    let code = labels.get(EXIT_CODE)?.parse().ok()?;
    let oom = labels.get(EXIT_OOM).is_some_and(|oom| oom == "true");
    Some(Exit {
        code,
        oom,
        detail: oom.then(|| limit_text(labels)).flatten(),
    })
}

fn limit_text(labels: &BTreeMap<String, String>) -> Option<String> {
    let limit = labels.get(MEMORY_LIMIT)?.parse().ok()?;
    Some(format!("its memory limit is {}", amount::bytes(limit)))
}

/// The labels that record an exit.
pub(super) fn of_exit(code: u32, oom: bool) -> BTreeMap<String, String> {
    BTreeMap::from([
        (EXIT_CODE.to_owned(), code.to_string()),
        (EXIT_OOM.to_owned(), oom.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_set_no_labels_of_ours() {
        let given = [
            ("com.example.team", "a"),
            (PORTS, "tcp/22/22"),
            ("containerd.io/restart.status", "running"),
            ("swarming", "b"),
        ];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let kept = of_spec(&given.into());
        let keys: Vec<&String> = kept.keys().collect();
        assert_eq!(keys, ["com.example.team", "swarming"]);
    }

    #[test]
    fn exits_round_trip() {
        let mut labels = of_exit(137, true);
        labels.insert(MEMORY_LIMIT.to_owned(), (64 << 20).to_string());
        let exit = exit(&labels).unwrap();
        assert_eq!((exit.code, exit.oom), (137, true));
        assert_eq!(exit.detail.as_deref(), Some("its memory limit is 64 MiB"));
        assert_eq!(super::exit(&BTreeMap::new()), None);
    }
}
