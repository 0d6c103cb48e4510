//! Published ports.

use std::collections::BTreeSet;

use crate::invalid::{Faults, shown};
use crate::pb;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// A port taken on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

/// Where a published port is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishMode {
    /// On every node, through the mesh.
    Ingress,
    /// On the task's node only.
    Host,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name; may be empty.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Inside the container.
    pub target: u16,
    /// Outside; zero asks for any free one.
    pub published: u16,
    /// Where.
    pub mode: PublishMode,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl std::fmt::Display for HostPort {
    /// `8080/tcp`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl From<Protocol> for pb::port_config::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl From<pb::port_config::Protocol> for Protocol {
    fn from(wire: pb::port_config::Protocol) -> Self {
        match wire {
            pb::port_config::Protocol::Tcp => Self::Tcp,
            pb::port_config::Protocol::Udp => Self::Udp,
            pb::port_config::Protocol::Sctp => Self::Sctp,
        }
    }
}

impl From<&Port> for pb::PortConfig {
    fn from(port: &Port) -> Self {
        Self {
            name: port.name.clone(),
            protocol: pb::port_config::Protocol::from(port.protocol).into(),
            target_port: port.target.into(),
            published_port: port.published.into(),
            publish_mode: match port.mode {
                PublishMode::Ingress => pb::port_config::PublishMode::Ingress,
                PublishMode::Host => pb::port_config::PublishMode::Host,
            }
            .into(),
        }
    }
}

/// The ports taken on a task's own node: those published in host mode under a given number.
pub(crate) fn host_ports(ports: &[Port]) -> Vec<HostPort> {
    let taken: BTreeSet<HostPort> = ports
        .iter()
        .filter(|p| p.mode == PublishMode::Host && p.published != 0)
        .map(|p| HostPort {
            protocol: p.protocol,
            port: p.published,
        })
        .collect();
    taken.into_iter().collect()
}

pub(crate) fn parse(faults: &mut Faults, wire: Option<&pb::EndpointSpec>) -> Vec<Port> {
    use pb::endpoint_spec::ResolutionMode;
    let Some(wire) = wire else { return Vec::new() };
    let resolution = faults.known("endpoint.mode", wire.mode, "VIP and DNSRR");
    let mut published = BTreeSet::new();
    let mut ports = Vec::with_capacity(wire.ports.len());
    for (i, port) in wire.ports.iter().enumerate() {
        let field = format!("endpoint.ports[{i}]");
        let Some(port) = parse_port(faults, &field, port) else {
            continue;
        };
        if port.mode == PublishMode::Ingress && resolution == Some(ResolutionMode::Dnsrr) {
            faults.add(
                &field,
                "the mesh needs a virtual IP, which mode DNSRR does not have; publish in host \
                 mode or use mode VIP",
            );
        }
        let outside = HostPort {
            protocol: port.protocol,
            port: port.published,
        };
        if port.published != 0 && !published.insert(outside) {
            faults.add(
                &field,
                format!("port {outside} is published twice; choose another"),
            );
        }
        ports.push(port);
    }
    ports
}

fn parse_port(faults: &mut Faults, field: &str, wire: &pb::PortConfig) -> Option<Port> {
    use pb::port_config::{Protocol as WireProtocol, PublishMode as WireMode};
    let protocol: Option<WireProtocol> = faults.known(
        format!("{field}.protocol"),
        wire.protocol,
        "TCP, UDP and SCTP",
    );
    let mode: Option<WireMode> = faults.known(
        format!("{field}.publish_mode"),
        wire.publish_mode,
        "INGRESS and HOST",
    );
    let target = number(faults, format!("{field}.target_port"), wire.target_port);
    let published = number(
        faults,
        format!("{field}.published_port"),
        wire.published_port,
    );
    if target == Some(0) {
        faults.add(
            format!("{field}.target_port"),
            "is missing; name the container's port",
        );
    }
    if wire.name.chars().any(char::is_control) {
        faults.add(
            format!("{field}.name"),
            format!("{} has control characters", shown(&wire.name)),
        );
    }
    Some(Port {
        name: wire.name.clone(),
        protocol: protocol?.into(),
        target: target?,
        published: published?,
        mode: match mode? {
            WireMode::Ingress => PublishMode::Ingress,
            WireMode::Host => PublishMode::Host,
        },
    })
}

fn number(faults: &mut Faults, field: String, value: u32) -> Option<u16> {
    faults.take(
        field,
        u16::try_from(value).map_err(|_| format!("{value} is not a port; the last is 65535")),
    )
}
