//! How tasks are connected on this node: the node's own network, loopback only, or the node's bridge.
//!
//! A container's network namespace is made by runc and dies with its last process; the pair of
//! links that leads out of it dies with it. What stays is the bridge, and one nftables table with
//! the published ports, which is written whole from what is published now. Addresses and ports in
//! use are recorded in the containers' labels, so a restarted swarmd knows them again.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use swarm_proto::pb;
use swarm_proto::pb::port_config::Protocol;

use super::label;
use super::nat::{self, Translation};
use super::netlink::{Ends, Netlink};
use super::netns;
use crate::error::Error;
use crate::registry::digest;

/// Bridges of nodes take their ranges from here: 64 of 1,021 containers each.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 16);
const RANGE_BITS: u8 = 22;

/// The network of one node.
#[derive(Debug)]
pub(super) struct NodeNetwork {
    /// Distinguishes the nodes of one host: hash of the containerd namespace.
    tag: String,
    netns: PathBuf,
    state: Mutex<State>,
    /// Rules are written one after another, each time from the newest state.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    addresses: BTreeMap<String, Ipv4Addr>,
    published: BTreeMap<String, PortMap>,
    /// The rules could not be written: the kernel's are older than this.
    stale: bool,
    /// This process has written rules.
    written: bool,
}

/// A container as an earlier swarmd left it.
#[derive(Debug)]
pub(super) struct Held {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// Its process runs, as far as containerd can tell.
    pub runs: bool,
}

/// Published ports of one task, as their label has them: `tcp/8080/80,udp/53/53`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PortMap(Vec<PortEntry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortEntry {
    protocol: Protocol,
    published: u16,
    target: u16,
}

impl NodeNetwork {
    /// `node_netns` is the node's own network namespace, as a path that containerd sees too.
    pub(super) fn new(namespace: &str, node_netns: PathBuf) -> Self {
        let hash = digest(namespace.as_bytes());
        let tag = hash
            .trim_start_matches("sha256:")
            .chars()
            .take(10)
            .collect();
        Self {
            tag,
            netns: node_netns,
            state: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// The node's own network namespace.
    pub(super) fn node_netns(&self) -> PathBuf {
        self.netns.clone()
    }

    fn bridge(&self) -> String {
        format!("swb{}", self.tag)
    }

    fn table(&self) -> String {
        format!("swarm_{}", self.tag)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Single inserts and removes only: a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the containers' labels record. Call once, before anything else.
    pub(super) async fn restore(&self, containers: Vec<Held>) -> Result<(), Error> {
        if !self.take_over(containers) {
            return Ok(());
        }
        self.write().await
    }

    /// True if any container is on the bridge. Ports are those of running containers only: what
    /// vanished with its host's restart must not keep its replacement from them.
    fn take_over(&self, containers: Vec<Held>) -> bool {
        let mut state = self.lock();
        for container in containers {
            let Some(address) = label::address(&container.labels) else {
                continue;
            };
            state.addresses.insert(container.id.clone(), address);
            let ports = PortMap::of_labels(&container.labels);
            if container.runs && !ports.0.is_empty() {
                state.published.insert(container.id, ports);
            }
        }
        !state.addresses.is_empty()
    }

    /// Gives the task an address on the bridge, which it keeps until it is released.
    pub(super) async fn reserve(&self, task_id: &str) -> Result<Ipv4Addr, Error> {
        let network = self.ensure_bridge().await?;
        let mut state = self.lock();
        if let Some(address) = state.addresses.get(task_id) {
            return Ok(*address);
        }
        let taken: std::collections::BTreeSet<Ipv4Addr> =
            state.addresses.values().copied().collect();
        let mut free = network
            .hosts()
            .filter(|host| *host != network.addr() && !taken.contains(host));
        let address = free.next().ok_or_else(|| {
            Error::Fatal(format!(
                "network: no address is left in {} on this node",
                network.trunc()
            ))
        })?;
        state.addresses.insert(task_id.to_owned(), address);
        Ok(address)
    }

    /// Connects the (created) container to the bridge; anew, if it was connected.
    pub(super) async fn attach(
        &self,
        task_id: &str,
        pid: u32,
        address: Ipv4Addr,
    ) -> Result<(), Error> {
        let network = self.ensure_bridge().await?;
        let bridge = self.bridge();
        let container_netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let file = File::open(&container_netns).map_err(|error| {
            Error::Fatal(format!("network: container of task {task_id}: {error}"))
        })?;
        let hash = digest(format!("{}/{task_id}", self.tag).as_bytes());
        let short: String = hash
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        let ends = Ends {
            outer: format!("swv{short}"),
            inner: format!("swc{short}"),
        };
        let inner = ends.inner.clone();
        netns::within(self.netns.clone(), move || async move {
            Netlink::open()?.connect(&bridge, &ends, &file.into()).await
        })
        .await?;
        let own = Ipv4Net::new(address, network.prefix_len()).unwrap_or(network);
        netns::within(container_netns, move || async move {
            Netlink::open()?.dress(&inner, own, network.addr()).await
        })
        .await?;
        let written = {
            let state = self.lock();
            state.written && !state.stale
        };
        match written {
            // The rules that hold for all of the bridge are there.
            true => Ok(()),
            false => self.write().await,
        }
    }

    /// Publishes the task's ports; a published port of 0 becomes a free one.
    pub(super) async fn publish(
        &self,
        task_id: &str,
        ports: &[pb::PortConfig],
    ) -> Result<PortMap, Error> {
        let writing = self.writing.lock().await;
        let others: Vec<(Protocol, u16)> = {
            let state = self.lock();
            let others = state.published.iter().filter(|(id, _)| *id != task_id);
            others
                .flat_map(|(_, map)| &map.0)
                .map(|one| (one.protocol, one.published))
                .collect()
        };
        let wanted = ports.to_vec();
        let map = netns::within(self.netns.clone(), move || async move {
            choose(&wanted, &others)
        });
        let map = map.await?;
        self.lock()
            .published
            .insert(task_id.to_owned(), map.clone());
        drop(writing);
        if let Err(error) = self.write().await {
            self.lock().published.remove(task_id);
            return Err(error);
        }
        Ok(map)
    }

    /// Takes the task's ports back; connections that exist go on.
    pub(super) async fn unpublish(&self, task_id: &str) -> Result<(), Error> {
        {
            let mut state = self.lock();
            // Ports that could not be taken back the last time are still to be.
            if state.published.remove(task_id).is_none() && !state.stale {
                return Ok(());
            }
        }
        self.write().await
    }

    /// Gives the task's address back.
    pub(super) fn release(&self, task_id: &str) {
        self.lock().addresses.remove(task_id);
    }

    /// Removes bridge and rules.
    pub(super) async fn purge(&self) -> Result<(), Error> {
        let (bridge, table) = (self.bridge(), self.table());
        self.lock().written = false;
        netns::within(self.netns.clone(), move || async move {
            let netlink = Netlink::open()?;
            // A node that never had a bridge has no rules either, and maybe no nft.
            if netlink.delete(&bridge).await? {
                nat::apply(&nat::removal(&table))?;
            }
            Ok(())
        })
        .await
    }

    async fn ensure_bridge(&self) -> Result<Ipv4Net, Error> {
        let bridge = self.bridge();
        // Nodes that share a namespace start at different ranges, so they seldom collide.
        let start = usize::from_str_radix(self.tag.get(..4).unwrap_or("0"), 16).unwrap_or(0);
        netns::within(self.netns.clone(), move || async move {
            let ranges: Vec<Ipv4Net> = POOL.subnets(RANGE_BITS).into_iter().flatten().collect();
            let count = ranges.len().max(1);
            let ranges = ranges
                .clone()
                .into_iter()
                .cycle()
                .skip(start % count)
                .take(count);
            let network = Netlink::open()?.ensure_bridge(&bridge, ranges).await?;
            kernel_setting("/proc/sys/net/ipv4/ip_forward")?;
            // Lets the node reach published ports over its loopback address.
            kernel_setting(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"))?;
            Ok(network)
        })
        .await
    }

    async fn write(&self) -> Result<(), Error> {
        let _writing = self.writing.lock().await;
        let written = self.write_table().await;
        let mut state = self.lock();
        state.stale = written.is_err();
        state.written |= written.is_ok();
        drop(state);
        written
    }

    async fn write_table(&self) -> Result<(), Error> {
        let network = self.ensure_bridge().await?;
        let script = {
            let state = self.lock();
            let mut translations = Vec::new();
            for (id, map) in &state.published {
                let Some(address) = state.addresses.get(id) else {
                    continue;
                };
                translations.extend(map.0.iter().map(|one| Translation {
                    protocol: one.protocol,
                    published: one.published,
                    address: *address,
                    target: one.target,
                }));
            }
            translations.sort_unstable();
            nat::table(&self.table(), &self.bridge(), network, &translations)
        };
        netns::within(
            self.netns.clone(),
            move || async move { nat::apply(&script) },
        )
        .await
    }
}

/// Writes `1`, unless it is there already (it may be read-only then).
fn kernel_setting(path: &str) -> Result<(), Error> {
    let held = std::fs::read_to_string(path).unwrap_or_default();
    if held.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1").map_err(|error| Error::Fatal(format!("network: {path}: {error}")))
}

/// Checks and completes published ports, in the node's namespace.
fn choose(ports: &[pb::PortConfig], others: &[(Protocol, u16)]) -> Result<PortMap, Error> {
    let mut chosen: Vec<PortEntry> = Vec::new();
    for port in ports {
        let protocol = port.protocol();
        let word = protocol.as_str_name().to_lowercase();
        let number = |number: u32| u16::try_from(number).unwrap_or(0);
        let (wanted, target) = (number(port.published_port), number(port.target_port));
        let own = |published: u16, chosen: &[PortEntry]| {
            chosen
                .iter()
                .any(|one| one.protocol == protocol && one.published == published)
        };
        if others.contains(&(protocol, wanted)) || own(wanted, &chosen) {
            return Err(Error::Fatal(format!(
                "port {wanted}/{word} is published by another task on this node; choose another port"
            )));
        }
        let published = if wanted == 0 {
            // Each try is another port of the kernel's; a hundred in use by others are not met.
            let free = (0..100).filter_map(|_| free_port(protocol));
            free.into_iter()
                .find(|port| !others.contains(&(protocol, *port)) && !own(*port, &chosen))
        } else {
            bindable(protocol, wanted).then_some(wanted)
        };
        let published = published.ok_or_else(|| {
            Error::Fatal(format!(
                "port {wanted}/{word} is in use by a process on this node; stop it or choose another port"
            ))
        })?;
        chosen.push(PortEntry {
            protocol,
            published,
            target,
        });
    }
    Ok(PortMap(chosen))
}

fn bindable(protocol: Protocol, port: u16) -> bool {
    match protocol {
        Protocol::Tcp => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        Protocol::Udp => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        Protocol::Sctp => false,
    }
}

fn free_port(protocol: Protocol) -> Option<u16> {
    let address = match protocol {
        Protocol::Tcp => TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
            .ok()?
            .local_addr(),
        Protocol::Udp => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .ok()?
            .local_addr(),
        Protocol::Sctp => return None,
    };
    address.ok().map(|address| address.port())
}

impl PortMap {
    /// Ports of a task on the node's own network: they are what the container listens on.
    pub(super) fn shared(ports: &[pb::PortConfig]) -> Self {
        let entry = |port: &pb::PortConfig| {
            let target = u16::try_from(port.target_port).unwrap_or(0);
            PortEntry {
                protocol: port.protocol(),
                published: target,
                target,
            }
        };
        Self(ports.iter().map(entry).collect())
    }

    pub(super) fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let text = labels.get(label::PORTS).map_or("", String::as_str);
        let entry = |part: &str| {
            let mut words = part.split('/');
            let protocol = Protocol::from_str_name(&words.next()?.to_uppercase())?;
            let mut number = || words.next()?.parse::<u16>().ok();
            Some(PortEntry {
                protocol,
                published: number()?,
                target: number()?,
            })
        };
        Self(text.split(',').filter_map(entry).collect())
    }

    /// As the task's status reports them, with the names from its spec.
    pub(super) fn ports(&self, task: &pb::Task) -> Vec<pb::PortConfig> {
        let endpoint = task.endpoint.clone().unwrap_or_default();
        let config = |one: &PortEntry| {
            let named = endpoint.ports.iter().find(|port| {
                port.protocol() == one.protocol && port.target_port == u32::from(one.target)
            });
            pb::PortConfig {
                name: named.map(|port| port.name.clone()).unwrap_or_default(),
                protocol: one.protocol.into(),
                target_port: u32::from(one.target),
                published_port: u32::from(one.published),
                publish_mode: pb::port_config::PublishMode::Host.into(),
            }
        };
        self.0.iter().map(config).collect()
    }
}

impl std::fmt::Display for PortMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, one) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let protocol = one.protocol.as_str_name().to_lowercase();
            write!(f, "{comma}{protocol}/{}/{}", one.published, one.target)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_maps_round_trip() {
        let text = "tcp/8080/80,udp/5353/53";
        let labels = BTreeMap::from([(label::PORTS.to_owned(), text.to_owned())]);
        let map = PortMap::of_labels(&labels);
        assert_eq!(map.to_string(), text);
        let ports = map.ports(&pb::Task::default());
        assert_eq!((ports[1].published_port, ports[1].target_port), (5353, 53));
        assert!(PortMap::of_labels(&BTreeMap::new()).0.is_empty());
    }

    #[test]
    fn only_running_containers_keep_their_ports() {
        let held = |id: &str, address: &str, runs| Held {
            id: id.to_owned(),
            labels: BTreeMap::from([
                (label::ADDRESS.to_owned(), address.to_owned()),
                (label::PORTS.to_owned(), "tcp/8080/80".to_owned()),
            ]),
            runs,
        };
        let network = NodeNetwork::new("test", PathBuf::from("/proc/self/ns/net"));
        assert!(!network.take_over(Vec::new()));
        let containers = vec![
            held("vanished", "172.30.0.2", false),
            held("replacement", "172.30.0.3", true),
        ];
        assert!(network.take_over(containers));
        let state = network.lock();
        assert_eq!(state.addresses.len(), 2, "an address is kept until removal");
        assert_eq!(state.published.keys().collect::<Vec<_>>(), ["replacement"]);
    }

    #[test]
    fn ports_are_checked_and_completed() {
        let port = |published_port| pb::PortConfig {
            published_port,
            target_port: 80,
            ..Default::default()
        };
        let free = choose(&[port(0)], &[]).unwrap();
        assert!(free.0[0].published > 0);
        let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let taken = held.local_addr().unwrap().port();
        let error = choose(&[port(taken.into())], &[]).unwrap_err().to_string();
        assert!(error.contains("in use by a process"), "{error}");
        let error = choose(&[port(80)], &[(Protocol::Tcp, 80)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("by another task"), "{error}");
    }
}
