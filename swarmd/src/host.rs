//! What swarmd takes from the host it runs on: limits, addresses, the name.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;

/// A manager holds a connection a node, and an agent some files a task: the soft limit of 1,024 that
/// hosts start with is too low, the hard one is meant for this.
pub(crate) fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}

/// How to reach, from this host, what listens on `addr`.
pub(crate) fn local_address(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
    }
}

/// Where others reach this manager: as told, else where it listens, else the first address of this
/// host that is not its loopback's.
pub(crate) fn advertised(config: &Config) -> String {
    if let Some(told) = &config.advertise_remote_api {
        return told.clone();
    }
    let listen = config.listen_remote_api;
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let of_host = nix::ifaddrs::getifaddrs().ok().and_then(|all| {
        let mut all = all.filter_map(|i| i.address?.as_sockaddr_in().map(|a| a.ip()));
        all.find(|ip| !ip.is_loopback() && !ip.is_link_local())
    });
    let addr = SocketAddr::from((of_host.unwrap_or(Ipv4Addr::LOCALHOST), listen.port()));
    tracing::info!(address = %addr, "other nodes are told this address; --advertise-remote-api sets another");
    addr.to_string()
}

/// Where the other managers reach one that joins: as told, else where it listens; an unspecified address stands for the
/// one that its request comes from.
pub(crate) fn joining_address(config: &Config) -> String {
    match &config.advertise_remote_api {
        Some(told) => told.clone(),
        None => config.listen_remote_api.to_string(),
    }
}

/// The name this node goes by.
pub(crate) fn hostname(config: &Config) -> String {
    config.hostname.clone().unwrap_or_else(|| {
        let name = nix::unistd::gethostname()
            .ok()
            .and_then(|n| n.into_string().ok());
        name.unwrap_or_else(|| "localhost".to_owned())
    })
}
