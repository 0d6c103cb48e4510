//! Published ports: Docker's short and long form, and SwarmKit's.

use swarm_proto::pb::PortConfig;
use swarm_proto::pb::port_config::{Protocol, PublishMode};

use super::Form;
use super::text::{fields, needed};

/// Docker's `--publish`; a range gives several ports.
pub(super) const PUBLISH: Form<Vec<PortConfig>> = Form {
    accepted: "[PUBLISHED:]TARGET[/tcp|udp|sctp], or published=PORT,target=PORT,protocol=tcp|udp|sctp,mode=ingress|host",
    parse: publish,
};

/// SwarmKit's `--ports`: always on the hosts of the tasks.
pub(super) const NAMED: Form<PortConfig> = Form {
    accepted: "NAME:TARGET[/tcp|udp|sctp][:PUBLISHED[/tcp|udp|sctp]]",
    parse: named,
};

/// A target port to stop publishing.
pub(super) const TARGET: Form<(u32, Option<Protocol>)> = Form {
    accepted: "TARGET[/tcp|udp|sctp]",
    parse: |text| {
        let (port, proto) = text
            .split_once('/')
            .map_or((text, None), |(p, proto)| (p, Some(proto)));
        Ok((number("target", port)?, proto.map(protocol).transpose()?))
    },
};

fn publish(text: &str) -> Result<Vec<PortConfig>, String> {
    if text.contains('=') {
        long(text).map(|port| vec![port])
    } else {
        short(text)
    }
}

fn long(text: &str) -> Result<PortConfig, String> {
    let mut port = PortConfig::default();
    for (key, value) in fields(text)? {
        let value = needed(&key, value)?;
        match key.as_str() {
            "published" => port.published_port = number("published", &value)?,
            "target" => port.target_port = number("target", &value)?,
            "protocol" => port.set_protocol(protocol(&value)?),
            "mode" => port.set_publish_mode(mode(&value)?),
            "name" => port.name = value,
            other => return Err(format!("unknown field {other:?}")),
        }
    }
    if port.target_port == 0 {
        return Err("target is missing".to_owned());
    }
    Ok(port)
}

fn short(text: &str) -> Result<Vec<PortConfig>, String> {
    let (ports, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = protocol(proto)?;
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, _)) if published.contains([':', '.']) => {
            let address = published
                .rsplit_once(':')
                .map_or(published, |(address, _)| address);
            return Err(format!(
                "an address ({address}) can't be chosen: ports are published on all of them"
            ));
        }
        Some((published, target)) => (Some(range("published", published)?), target),
        None => (None, ports),
    };
    let targets = range("target", target)?;
    let count = |(first, last): (u32, u32)| last - first;
    if let Some(published) = published
        && count(published) != count(targets)
    {
        return Err("the two ranges differ in length".to_owned());
    }
    let port = |target: u32| PortConfig {
        protocol: proto.into(),
        target_port: target,
        published_port: published.map_or(0, |(first, _)| first + (target - targets.0)),
        ..Default::default()
    };
    Ok((targets.0..=targets.1).map(port).collect())
}

fn named(text: &str) -> Result<PortConfig, String> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let target = parts.next().ok_or("the target port is missing")?;
    let published = parts.next();
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    if parts.next().is_some() {
        return Err("has more than three parts".to_owned());
    }
    let (target, proto) = target.split_once('/').unwrap_or((target, "tcp"));
    let proto = protocol(proto)?;
    let mut port = PortConfig {
        name: name.to_owned(),
        protocol: proto.into(),
        target_port: number("target", target)?,
        publish_mode: PublishMode::Host.into(),
        ..Default::default()
    };
    if let Some(published) = published {
        let (published, again) = published
            .split_once('/')
            .map_or((published, None), |(p, proto)| (p, Some(proto)));
        if again
            .map(protocol)
            .transpose()?
            .is_some_and(|again| again != proto)
        {
            return Err("the two protocols differ".to_owned());
        }
        port.published_port = number("published", published)?;
    }
    Ok(port)
}

fn range(which: &str, text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(which, first)?, number(which, last)?);
    if first > last {
        return Err(format!("the {which} range runs backwards"));
    }
    Ok((first, last))
}

fn number(which: &str, text: &str) -> Result<u32, String> {
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!(
            "the {which} port {text:?} is not a number from 1 to 65535"
        )),
        Ok(port) => Ok(u32::from(port)),
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        other => Err(format!("unknown protocol {other:?}")),
    }
}

fn mode(text: &str) -> Result<PublishMode, String> {
    match text.to_ascii_lowercase().as_str() {
        "ingress" => Ok(PublishMode::Ingress),
        "host" => Ok(PublishMode::Host),
        other => Err(format!("unknown mode {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(
        name: &str,
        proto: Protocol,
        (published, target): (u32, u32),
        mode: PublishMode,
    ) -> PortConfig {
        PortConfig {
            name: name.to_owned(),
            protocol: proto.into(),
            target_port: target,
            published_port: published,
            publish_mode: mode.into(),
        }
    }

    #[test]
    fn short_form() {
        let one = |p, pair| vec![port("", p, pair, PublishMode::Ingress)];
        assert_eq!(publish("80"), Ok(one(Protocol::Tcp, (0, 80))));
        assert_eq!(publish("8080:80/udp"), Ok(one(Protocol::Udp, (8080, 80))));
        let got = publish("8000-8002:80-82").unwrap();
        let got: Vec<_> = got
            .iter()
            .map(|p| (p.published_port, p.target_port))
            .collect();
        assert_eq!(got, [(8000, 80), (8001, 81), (8002, 82)]);
        for bad in [
            "",
            "x",
            "0",
            "65536",
            "80/xtp",
            "8000-8001:80",
            "82-80",
            "1:2:3",
            "127.0.0.1:80:80",
            "80:",
        ] {
            assert!(publish(bad).is_err(), "{bad}");
        }
        assert_eq!(
            publish("127.0.0.1:80:80").unwrap_err(),
            "an address (127.0.0.1) can't be chosen: ports are published on all of them"
        );
    }

    #[test]
    fn long_form() {
        let got = publish("published=8080,target=80,protocol=sctp,mode=host").unwrap();
        assert_eq!(
            got,
            [port("", Protocol::Sctp, (8080, 80), PublishMode::Host)]
        );
        for bad in [
            "published=80",
            "target=80,mode=x",
            "target=80,color=red",
            "target=",
        ] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn swarmkit_form() {
        assert_eq!(
            named("http:80"),
            Ok(port("http", Protocol::Tcp, (0, 80), PublishMode::Host))
        );
        let dns = port("dns", Protocol::Udp, (5353, 53), PublishMode::Host);
        assert_eq!(named("dns:53/udp:5353"), Ok(dns.clone()));
        assert_eq!(named("dns:53/udp:5353/udp"), Ok(dns));
        for bad in [
            "http",
            ":80",
            "http:x",
            "http:80:81:82",
            "dns:53/udp:53/tcp",
        ] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
