//! Published ports as nftables rules: one table a node, written whole each time.
//!
//! Replacing a table in one transaction leaves the connections that exist alone: the kernel
//! remembers their translation. So there is one way to change a rule, and nothing to reconcile.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;
use swarm_proto::pb;

use crate::error::Error;

/// One published port of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Translation {
    pub protocol: pb::port_config::Protocol,
    pub published: u16,
    pub address: Ipv4Addr,
    pub target: u16,
}

/// The whole table of a node.
pub(super) fn table(
    name: &str,
    bridge: &str,
    network: Ipv4Net,
    translations: &[Translation],
) -> String {
    let network = network.trunc();
    let mut text = format!("add table ip {name}\ndelete table ip {name}\ntable ip {name} {{\n");
    for (protocol, word) in [
        (pb::port_config::Protocol::Tcp, "tcp"),
        (pb::port_config::Protocol::Udp, "udp"),
    ] {
        let elements: Vec<String> = translations
            .iter()
            .filter(|one| one.protocol == protocol)
            .map(|one| format!("{} : {} . {}", one.published, one.address, one.target))
            .collect();
        // Writing to a string can't fail, here and below.
        let _ = writeln!(
            text,
            " map {word}_ports {{ type inet_service : ipv4_addr . inet_service;"
        );
        if !elements.is_empty() {
            let _ = writeln!(text, "  elements = {{ {} }}", elements.join(", "));
        }
        text.push_str(" }\n");
    }
    // The bridge routes loopback addresses, so that the node reaches published ports by its own.
    // Containers must not reach what listens on the node's loopback alone by that way.
    let _ = writeln!(
        text,
        " chain raw {{ type filter hook prerouting priority -300; policy accept;\n  \
         iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n }}"
    );
    // From elsewhere, and from the node itself.
    for (chain, priority) in [("prerouting", -100), ("output", -100)] {
        let _ = writeln!(
            text,
            " chain {chain} {{ type nat hook {chain} priority {priority}; policy accept;\n  \
             fib daddr type local dnat ip addr . port to tcp dport map @tcp_ports\n  \
             fib daddr type local dnat ip addr . port to udp dport map @udp_ports\n }}"
        );
    }
    let _ = writeln!(
        text,
        " chain postrouting {{ type nat hook postrouting priority 100; policy accept;\n  \
         ip saddr {network} oifname != \"{bridge}\" masquerade\n  \
         ip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade\n  \
         ip saddr {network} ip daddr {network} ct status dnat masquerade\n }}\n}}"
    );
    text
}

/// Applies a script in the network namespace of the calling thread, all or nothing.
pub(super) fn apply(script: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Fatal(format!("nftables: {reason}"));
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("nft can't be run, install nftables: {error}")))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return written.map_err(|error| failed(error.to_string()));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(
        words
            .lines()
            .next()
            .unwrap_or("it failed without a word")
            .to_owned(),
    ))
}

/// Removes the table, if it is there.
pub(super) fn removal(name: &str) -> String {
    format!("add table ip {name}\ndelete table ip {name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_maps_and_chains() {
        let one = Translation {
            protocol: pb::port_config::Protocol::Tcp,
            published: 8080,
            address: Ipv4Addr::new(172, 30, 0, 2),
            target: 80,
        };
        let network = "172.30.0.1/22".parse().unwrap();
        let text = table("swarm_x", "swb0", network, &[one]);
        assert!(
            text.contains("elements = { 8080 : 172.30.0.2 . 80 }"),
            "{text}"
        );
        assert!(
            text.contains("ip saddr 172.30.0.0/22 oifname != \"swb0\" masquerade"),
            "{text}"
        );
        assert_eq!(text.matches("elements").count(), 1);
        assert!(
            text.contains("iifname \"swb0\" ip daddr 127.0.0.0/8 drop"),
            "{text}"
        );
    }
}
