//! Links, addresses and routes: the node's bridge and the pair that connects a container to it.
//!
//! Every function expects to run in the right network namespace ([`super::netns`]).

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::Error;

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// A connection to the kernel, for the namespace of the calling thread.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    /// Drives the connection; ends with this.
    _driver: tokio::task::JoinSet<()>,
}

fn failed(what: &str, error: &rtnetlink::Error) -> Error {
    Error::Fatal(format!("network: {what}: {error}"))
}

fn errno(error: &rtnetlink::Error) -> i32 {
    if let rtnetlink::Error::NetlinkError(message) = error {
        -message.raw_code()
    } else {
        0
    }
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| Error::Fatal(format!("network: netlink: {error}")))?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            handle,
            _driver: driver,
        })
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        match links.try_next().await {
            Ok(link) => Ok(link),
            Err(error) if errno(&error) == ENODEV => Ok(None),
            Err(error) => Err(failed(&format!("find link {name}"), &error)),
        }
    }

    async fn index(&self, name: &str) -> Result<u32, Error> {
        let link = self.link(name).await?;
        link.map(|link| link.header.index)
            .ok_or_else(|| Error::Fatal(format!("network: link {name} is gone")))
    }

    /// The IPv4 networks on one link, or on all.
    async fn addresses(&self, link: Option<u32>) -> Result<Vec<Ipv4Net>, Error> {
        let mut request = self.handle.address().get();
        if let Some(index) = link {
            request = request.set_link_index_filter(index);
        }
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list addresses", &error))?;
        let mut networks = Vec::new();
        for message in messages {
            let length = message.header.prefix_len;
            let address = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                    return Some(*address);
                }
                None
            });
            networks.extend(address.and_then(|address| Ipv4Net::new(address, length).ok()));
        }
        Ok(networks)
    }

    /// Makes the bridge unless it is there, and returns its network: the one it has, or the first
    /// of the candidates that overlaps with nothing in this namespace.
    pub(super) async fn ensure_bridge(
        &self,
        name: &str,
        candidates: impl Iterator<Item = Ipv4Net>,
    ) -> Result<Ipv4Net, Error> {
        if self.link(name).await?.is_none() {
            let added = self
                .handle
                .link()
                .add(LinkBridge::new(name).build())
                .execute()
                .await;
            match added {
                Ok(()) => {}
                Err(error) if errno(&error) == EEXIST => {}
                Err(error) => return Err(failed(&format!("make bridge {name}"), &error)),
            }
        }
        let index = self.index(name).await?;
        if let Some(network) = self.addresses(Some(index)).await?.first() {
            return Ok(*network);
        }
        let taken = self.addresses(None).await?;
        let overlaps = |one: &Ipv4Net, other: &Ipv4Net| {
            one.contains(&other.network()) || other.contains(&one.network())
        };
        let mut free = candidates.filter(|one| !taken.iter().any(|other| overlaps(one, other)));
        let network = free.next().ok_or_else(|| {
            Error::Fatal("network: no free address range for the node's bridge".to_owned())
        })?;
        let gateway = network.hosts().next().unwrap_or(network.addr());
        let with_gateway = Ipv4Net::new(gateway, network.prefix_len()).unwrap_or(network);
        self.add_address(index, with_gateway).await?;
        self.up(index).await?;
        Ok(with_gateway)
    }

    async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let request =
            self.handle
                .address()
                .add(index, IpAddr::V4(address.addr()), address.prefix_len());
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == EEXIST => Ok(()),
            Err(error) => Err(failed(&format!("add address {address}"), &error)),
        }
    }

    async fn up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|error| failed("set link up", &error))
    }

    /// Makes a pair of links: one end on the bridge, the other in the container's namespace.
    pub(super) async fn connect(
        &self,
        bridge: &str,
        ends: &Ends,
        container: &OwnedFd,
    ) -> Result<(), Error> {
        self.delete(&ends.outer).await?;
        let pair = LinkVeth::new(&ends.outer, &ends.inner).build();
        let added = self.handle.link().add(pair).execute().await;
        added.map_err(|error| failed(&format!("make links {}", ends.outer), &error))?;
        let bridge = self.index(bridge).await?;
        let outer = self.index(&ends.outer).await?;
        let inner = self.index(&ends.inner).await?;
        let outer = LinkUnspec::new_with_index(outer)
            .controller(bridge)
            .up()
            .build();
        let set = self.handle.link().set(outer).execute().await;
        set.map_err(|error| failed("connect to bridge", &error))?;
        let inner = LinkUnspec::new_with_index(inner)
            .setns_by_fd(container.as_raw_fd())
            .build();
        let moved = self.handle.link().set(inner).execute().await;
        moved.map_err(|error| failed("move link to container", &error))
    }

    /// Inside the container: names its end `eth0`, gives it the address and the way out.
    pub(super) async fn dress(
        &self,
        inner: &str,
        address: Ipv4Net,
        gateway: Ipv4Addr,
    ) -> Result<(), Error> {
        let index = self.index(inner).await?;
        let named = LinkUnspec::new_with_index(index).name("eth0").build();
        let set = self.handle.link().set(named).execute().await;
        set.map_err(|error| failed("name eth0", &error))?;
        self.add_address(index, address).await?;
        self.up(index).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        let added = self.handle.route().add(route).execute().await;
        added.map_err(|error| failed("add default route", &error))
    }

    /// Removes a link; false if there was none.
    pub(super) async fn delete(&self, name: &str) -> Result<bool, Error> {
        let Some(link) = self.link(name).await? else {
            return Ok(false);
        };
        match self.handle.link().del(link.header.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == ENODEV => Ok(false),
            Err(error) => Err(failed(&format!("remove link {name}"), &error)),
        }
    }
}

/// The names of a pair of links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    /// On the node's bridge.
    pub outer: String,
    /// In the container, until it becomes `eth0`.
    pub inner: String,
}
