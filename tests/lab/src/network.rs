//! The switch and the hosts: network namespaces joined by cables (veth pairs).

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::Error;
use crate::command::run_line;
use crate::site::Site;

/// A machine of the lab: a network namespace with an address, and a containerd namespace of the same name.
#[derive(Debug, Clone)]
pub struct Host {
    /// Short name: `n1`.
    pub name: String,
    /// Name of its network namespace and of its containerd namespace.
    pub namespace: String,
    /// Its address on `eth0`.
    pub address: Ipv4Addr,
    /// The switch's network namespace.
    switch: String,
}

/// Makes the switch and connects this machine to it.
pub(crate) fn make_switch(site: &Site) -> Result<(), Error> {
    let (switch, uplink, gateway) = (switch(site), site.uplink(), site.gateway());
    run_line(&format!("ip netns add {switch}"))?;
    // Without spanning tree a port forwards as soon as it is up.
    run_line(&format!(
        "ip -n {switch} link add br0 type bridge stp_state 0"
    ))?;
    run_line(&format!("ip -n {switch} link set br0 up"))?;
    run_line(&format!(
        "ip link add {uplink} type veth peer name up0 netns {switch}"
    ))?;
    run_line(&format!("ip -n {switch} link set up0 master br0 up"))?;
    run_line(&format!("ip address add {gateway}/24 dev {uplink}"))?;
    run_line(&format!("ip link set {uplink} up"))?;
    Ok(())
}

/// Makes a host and connects it to the switch; hosts are numbered from 1.
pub(crate) fn make_host(site: &Site, name: &str, number: u8) -> Result<Host, Error> {
    let host = Host {
        name: name.to_owned(),
        namespace: site.host_name(name),
        address: site.host_address(number),
        switch: switch(site),
    };
    let (namespace, switch) = (&host.namespace, &host.switch);
    run_line(&format!("ip netns add {namespace}"))?;
    run_line(&format!("ip -n {namespace} link set lo up"))?;
    run_line(&format!(
        "ip -n {switch} link add {name} type veth peer name eth0 netns {namespace}"
    ))?;
    run_line(&format!("ip -n {switch} link set {name} master br0 up"))?;
    run_line(&format!(
        "ip -n {namespace} address add {}/24 dev eth0",
        host.address
    ))?;
    run_line(&format!("ip -n {namespace} link set eth0 up"))?;
    run_line(&format!(
        "ip -n {namespace} route add default via {}",
        site.gateway()
    ))?;
    Ok(host)
}

impl Host {
    /// Pulls the host's cable at the switch: packets are lost both ways, and no process is told.
    pub fn cut(&self) -> Result<(), Error> {
        run_line(&format!(
            "ip -n {} link set {} nomaster",
            self.switch, self.name
        ))
        .map(drop)
    }

    /// Plugs the cable back in.
    pub fn mend(&self) -> Result<(), Error> {
        run_line(&format!(
            "ip -n {} link set {} master br0",
            self.switch, self.name
        ))
        .map(drop)
    }

    /// Gives it another address in place of the one it has: what is connected to the old one hears nothing more of it.
    pub fn readdress(&mut self, last: u8) -> Result<(), Error> {
        let [a, b, c, _] = self.address.octets();
        let new = Ipv4Addr::new(a, b, c, last);
        let (namespace, old) = (&self.namespace, self.address);
        let gateway = run_line(&format!("ip -n {namespace} route show default"))?;
        let route = gateway.lines().next().unwrap_or_default().trim().to_owned();
        run_line(&format!("ip -n {namespace} address del {old}/24 dev eth0"))?;
        run_line(&format!("ip -n {namespace} address add {new}/24 dev eth0"))?;
        run_line(&format!("ip -n {namespace} route replace {route}"))?;
        self.address = new;
        Ok(())
    }

    /// Where its network namespace is mounted.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }
}

fn switch(site: &Site) -> String {
    site.host_name("switch")
}

/// Network namespaces of the site that exist.
pub(crate) fn namespaces(site: &Site) -> Result<Vec<String>, Error> {
    let prefix = format!("{}-", site.prefix());
    let listed = run_line("ip netns list")?;
    Ok(listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

/// Removes the network namespaces and with them all their links.
pub(crate) fn remove(site: &Site) -> Result<(), Error> {
    let mut errors = Vec::new();
    for name in namespaces(site)? {
        errors.extend(run_line(&format!("ip netns delete {name}")).err());
    }
    // The uplink goes with the switch, but the kernel takes its time; without a switch it is removed here.
    let uplink = site.uplink();
    if run_line(&format!("ip link show {uplink}")).is_ok() {
        // It may have gone between the two commands.
        if let Err(error) = run_line(&format!("ip link delete {uplink}"))
            && run_line(&format!("ip link show {uplink}")).is_ok()
        {
            errors.push(error);
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Several(errors))
    }
}
