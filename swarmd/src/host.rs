//! What swarmd takes from the host it runs on: limits, addresses, the name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// Arenas that glibc's allocator spreads threads over. Its own choice, eight a core, leaves free memory in each: with
/// 1,000 nodes and 100,000 tasks 200 MB were resident for 145 MB in use, and 172 MB are with two (one is 3 MB less, and
/// a third slower).
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;
/// Bytes from which an allocation is a mapping of its own and goes back to the system when it is freed, and of free
/// memory at an end of the heap that does. Both are glibc's defaults; setting them keeps it from raising them to 32 MiB
/// once a snapshot or a large message was freed.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 << 10;

/// Sets up the allocator for a daemon that has bursts and then waits. Called before there are other threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper of mallopt exists")]
pub(crate) fn tune_allocator() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    for (parameter, value) in [
        (M_ARENA_MAX, ARENAS),
        (M_MMAP_THRESHOLD, LARGE),
        (M_TRIM_THRESHOLD, LARGE),
    ] {
        // SAFETY: takes two numbers and keeps nothing of the caller's. What it refuses stays as it was.
        let _ = unsafe { mallopt(parameter, value) };
    }
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn tune_allocator() {}

/// Stack of the thread that stands for the main one, and as large: 8 MiB.
const STACK: usize = 8 << 20;

/// Works in the mounts of process 1: its root, its paths, the programs in it. That is done by a thread and by those that
/// it starts. The main thread stays, for it is by this that container engines know where the container's files are, and
/// run other programs in it.
///
/// # Errors
/// What was refused, and the way out.
pub(crate) fn in_mounts_of_first<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let work = || enter_mounts().map(|()| work());
        let spawned = thread.spawn_scoped(scope, work);
        let thread = spawned.map_err(|error| format!("--host-mounts: no thread: {error}"))?;
        let ended = thread.join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Nothing changes where the mounts are this thread's already.
fn enter_mounts() -> Result<(), String> {
    use nix::sched::{CloneFlags, setns, unshare};
    use std::os::unix::fs::MetadataExt as _;
    let failed = |reason: &dyn std::fmt::Display| {
        format!(
            "--host-mounts: can't enter the mounts of process 1: {reason}; run the container with --privileged, or \
             without --pid host, or leave the flag out (SWARMD_HOST_MOUNTS=false)"
        )
    };
    let identity = |path: &str| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own = identity("/proc/thread-self/ns/mnt").map_err(|error| failed(&error))?;
    let first = "/proc/1/ns/mnt";
    if identity(first).map_err(|error| failed(&error))? == own {
        return Ok(());
    }
    let namespace = std::fs::File::open(first).map_err(|error| failed(&error))?;
    // A root and a working directory of the thread's own, which entering moves.
    unshare(CloneFlags::CLONE_FS)
        .and_then(|()| setns(namespace, CloneFlags::CLONE_NEWNS))
        .map_err(|error| failed(&error.desc()))
}

/// How to reach, from this host, what listens on `addr`.
pub(crate) fn local_address(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
    }
}

/// The addresses of this host that others may reach, best first.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let each = all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    });
    let usable = each.filter(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    let mut found: Vec<IpAddr> = usable.collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

/// Where others reach this manager: as told, else where it listens, else the first address of this
/// host that is not its loopback's.
pub(crate) fn advertised(config: &Config) -> Vec<String> {
    if !config.advertise_remote_api.is_empty() {
        return config.advertise_remote_api.clone();
    }
    let listen = config.listen_remote_api;
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let of_host = addresses().into_iter().find(IpAddr::is_ipv4);
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let addr = SocketAddr::from((of_host.unwrap_or(local), listen.port()));
    tracing::info!(address = %addr, "other nodes are told this address; --advertise-remote-api sets another");
    vec![addr.to_string()]
}

/// The same as other managers are told: an unspecified address stands for the one that a call comes from.
pub(crate) fn said(config: &Config) -> Vec<String> {
    match config.advertise_remote_api.is_empty() {
        false => config.advertise_remote_api.clone(),
        true => vec![config.listen_remote_api.to_string()],
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
