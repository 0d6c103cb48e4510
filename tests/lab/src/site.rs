//! The names of everything one lab makes, and the subnet it uses.
//!
//! Invariant: whatever a lab makes outside its two directories carries [`Site::prefix`] in its name.
//! Sites of tests are called after the process that made them, so a later run knows which are orphans.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};

use crate::{Error, process};

/// Where the run-time directories of all sites are.
const RUN: &str = "/run";
/// Where the state directories of all sites are.
const STATE: &str = "/var/lib";
/// Held while a subnet is chosen.
const LOCK: &str = "/run/swarm-lab.lock";
/// Starts each site's directories and network namespaces.
const PREFIX: &str = "swarm-";
/// The third byte of the subnets that tests choose from; the second is [`TEST_NET`].
const TEST_SUBNETS: std::ops::RangeInclusive<u8> = 1..=250;
/// Tests use 10.98.x.0/24.
const TEST_NET: u8 = 98;
/// The demo's subnet.
const DEMO_SUBNET: [u8; 3] = [10, 99, 0];
/// Last byte of the first host's address; below are this machine and room for other services.
const FIRST_HOST: u8 = 10;

/// Numbers the sites of this process.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Names and addresses of one lab.
#[derive(Debug, Clone)]
pub struct Site {
    name: String,
    subnet: [u8; 3],
}

impl Site {
    /// The demo's: always the same.
    pub fn demo() -> Self {
        Self {
            name: "demo".to_owned(),
            subnet: DEMO_SUBNET,
        }
    }

    /// A site of this process that no other uses; makes its run-time directory.
    pub fn unique() -> Result<Self, Error> {
        let lock = File::create(LOCK).map_err(Error::file("create", LOCK))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::file("lock", LOCK)(errno.into()))?;
        let taken: Vec<u8> = Self::present()?.iter().map(|site| site.subnet[2]).collect();
        let third = TEST_SUBNETS
            .into_iter()
            .find(|third| !taken.contains(third))
            .ok_or_else(|| {
                Error::Refused(
                    "all subnets 10.98.1.0/24 to 10.98.250.0/24 are in use by labs".to_owned(),
                )
            })?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let site = Self {
            name: format!("t{}-{number}", std::process::id()),
            subnet: [10, TEST_NET, third],
        };
        fs::create_dir_all(site.run()).map_err(Error::file("create", site.run()))?;
        fs::write(site.run().join("subnet"), third.to_string())
            .map_err(Error::file("write", site.run()))?;
        Ok(site)
    }

    /// Sites of tests that have a directory on this machine.
    fn present() -> Result<Vec<Self>, Error> {
        let mut sites = Vec::new();
        for base in [RUN, STATE] {
            for entry in fs::read_dir(base)
                .map_err(Error::file("list", base))?
                .flatten()
            {
                let file_name = entry.file_name().to_string_lossy().into_owned();
                let Some(name) = file_name.strip_prefix(PREFIX) else {
                    continue;
                };
                if owner(name).is_none() || sites.iter().any(|site: &Self| site.name == name) {
                    continue;
                }
                let third = fs::read_to_string(Path::new(RUN).join(&file_name).join("subnet"));
                let third = third
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .unwrap_or(0);
                sites.push(Self {
                    name: name.to_owned(),
                    subnet: [10, TEST_NET, third],
                });
            }
        }
        Ok(sites)
    }

    /// Sites of tests whose process is gone.
    pub fn orphans() -> Result<Vec<Self>, Error> {
        let sites = Self::present()?;
        Ok(sites
            .into_iter()
            .filter(|site| owner(&site.name).is_some_and(|pid| !process::is_alive(pid)))
            .collect())
    }

    /// `demo`, or for a test `t<process>-<number>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the name of each network namespace and containerd namespace of this site: `swarm-demo`.
    pub fn prefix(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Sockets, logs, configuration: `/run/swarm-demo`.
    pub fn run(&self) -> PathBuf {
        Path::new(RUN).join(self.prefix())
    }

    /// What containerd, the registry and the nodes store: `/var/lib/swarm-demo`.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE).join(self.prefix())
    }

    /// The network namespace of a host, which is also its containerd namespace: `swarm-demo-n1`.
    pub fn host_name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix())
    }

    /// This machine's address in the lab's subnet.
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Address of the host with this number, which starts at 1.
    pub fn host_address(&self, number: u8) -> Ipv4Addr {
        self.address(FIRST_HOST.saturating_add(number))
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// This machine's end of the cable to the switch: at most 15 bytes, the kernel's limit.
    pub fn uplink(&self) -> String {
        format!("sw-{}", self.name)
    }
}

/// The process whose test made the site of this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix('t')?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_s_limits() {
        let site = Site {
            name: "t4194304-99".to_owned(),
            subnet: [10, 98, 1],
        };
        assert!(site.uplink().len() <= 15, "{}", site.uplink());
        let socket = site.run().join("n10/swarmd.sock");
        assert!(socket.as_os_str().len() < 100, "{}", socket.display());
    }

    #[test]
    fn the_owner_of_a_site_is_in_its_name() {
        assert_eq!(owner("t42-1"), Some(42));
        assert_eq!(owner("demo"), None);
        assert_eq!(owner("test"), None);
    }
}
