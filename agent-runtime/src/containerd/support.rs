//! What this backend can't do, said before anything is done: nothing is accepted and ignored.

use swarm_proto::pb;

use crate::error::Error;

/// How a task is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// The node's own network.
    Host,
    /// Loopback only.
    Isolated,
    /// Loopback, and an address on the node's bridge: published ports, and the way out.
    Bridged,
}

/// The container of a task; other runtimes are refused, as are features that are not there.
pub(super) fn container(task: &pb::Task) -> Result<&pb::ContainerSpec, Error> {
    let refuse = |reason: &str| Error::Fatal(format!("task {}: {reason}", task.id));
    let spec = task.spec.as_ref().ok_or_else(|| refuse("it has no spec"))?;
    let container = match &spec.runtime {
        Some(pb::task_spec::Runtime::Container(container)) => container,
        Some(pb::task_spec::Runtime::Attachment(_)) => {
            return Err(refuse(
                "network attachment tasks are not supported on this node",
            ));
        }
        Some(pb::task_spec::Runtime::Generic(generic)) => {
            return Err(refuse(&format!(
                "runtime {} is not supported on this node",
                generic.kind
            )));
        }
        None => return Err(refuse("it has no container spec")),
    };
    let checks: [(bool, &str); 8] = [
        (container.image.is_empty(), "it names no image"),
        (
            !container.secrets.is_empty(),
            "secrets are not supported on this node yet",
        ),
        (
            !container.configs.is_empty(),
            "configs are not supported on this node yet",
        ),
        (
            container.tty,
            "a terminal (tty) is not supported on this node yet",
        ),
        (
            container.open_stdin,
            "an open standard input is not supported on this node yet",
        ),
        (
            container.init == Some(true),
            "an init process is not supported on this node yet",
        ),
        (
            has_health_check(container),
            "health checks are not supported on this node yet",
        ),
        (
            container.isolation() != pb::container_spec::Isolation::Default,
            "isolation modes are for Windows containers",
        ),
    ];
    if let Some((_, reason)) = checks.iter().find(|(refused, _)| *refused) {
        return Err(refuse(reason));
    }
    let driver = task.log_driver.as_ref().or(spec.log_driver.as_ref());
    if let Some(driver) = driver {
        log_driver(driver).map_err(|reason| refuse(&reason))?;
    }
    Ok(container)
}

fn has_health_check(container: &pb::ContainerSpec) -> bool {
    let test = container
        .healthcheck
        .as_ref()
        .map(|check| check.test.as_slice());
    // `NONE` switches off what the image asks for, and images' checks are not run here.
    !matches!(test, None | Some([])) && !matches!(test, Some([first, ..]) if first == "NONE")
}

fn log_driver(driver: &pb::Driver) -> Result<(), String> {
    if !matches!(driver.name.as_str(), "" | "file" | "json-file" | "local") {
        return Err(format!(
            "log driver {} is not supported on this node; leave it out",
            driver.name
        ));
    }
    if driver.options.is_empty() {
        return Ok(());
    }
    Err("log options are not supported on this node yet; leave them out".to_owned())
}

/// Ports that the task publishes on this node.
pub(super) fn host_ports(task: &pb::Task) -> Result<Vec<pb::PortConfig>, Error> {
    let endpoint = task.endpoint.clone().unwrap_or_default();
    let ports = if endpoint.ports.is_empty() {
        endpoint.spec.map(|spec| spec.ports).unwrap_or_default()
    } else {
        endpoint.ports
    };
    for port in &ports {
        let refuse = |reason: &str| {
            Err(Error::Fatal(format!(
                "task {}: port {}: {reason}",
                task.id, port.target_port
            )))
        };
        if port.publish_mode() != pb::port_config::PublishMode::Host {
            return refuse(
                "ingress mode is not supported on this node yet; publish it in host mode",
            );
        }
        if port.protocol() == pb::port_config::Protocol::Sctp {
            return refuse("SCTP is not supported on this node; use TCP or UDP");
        }
        if !(1..=65535).contains(&port.target_port) || port.published_port > 65535 {
            return refuse("port numbers are 1 to 65535");
        }
    }
    Ok(ports)
}

/// How the task's networks connect it.
pub(super) fn network(task: &pb::Task, ports: &[pb::PortConfig]) -> Result<Network, Error> {
    let wanted = task
        .spec
        .as_ref()
        .map(|spec| spec.networks.as_slice())
        .unwrap_or_default();
    let mut chosen = None;
    for config in wanted {
        let name = network_name(task, &config.target);
        let this = match name {
            "host" => Network::Host,
            "none" => Network::Isolated,
            "bridge" => Network::Bridged,
            _ => {
                return Err(Error::Fatal(format!(
                    "task {}: network {name}: overlay networks are not supported on this node yet",
                    task.id
                )));
            }
        };
        if chosen.is_some_and(|chosen| chosen != this) {
            return Err(Error::Fatal(format!(
                "task {}: network {name} can't be combined with another one",
                task.id
            )));
        }
        chosen = Some(this);
    }
    match (chosen, ports.is_empty()) {
        (Some(Network::Host), _) => Ok(Network::Host),
        (Some(Network::Isolated), false) => Err(Error::Fatal(format!(
            "task {}: it has published ports, which need a network; take network none away",
            task.id
        ))),
        (Some(chosen), _) => Ok(chosen),
        (None, true) => Ok(Network::Isolated),
        (None, false) => Ok(Network::Bridged),
    }
}

/// A target is a name, or the id of a network that the manager sent along.
fn network_name<'a>(task: &'a pb::Task, target: &'a str) -> &'a str {
    let sent = task
        .networks
        .iter()
        .filter_map(|attachment| attachment.network.as_ref());
    let mut named = sent.filter(|network| network.id == target);
    let name = named.next().and_then(|network| network.spec.as_ref());
    name.and_then(|spec| spec.annotations.as_ref())
        .map_or(target, |annotations| &annotations.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(container: pb::ContainerSpec, networks: &[&str]) -> pb::Task {
        let config = |target: &&str| pb::NetworkAttachmentConfig {
            target: (*target).to_owned(),
            ..Default::default()
        };
        pb::Task {
            id: "t".to_owned(),
            spec: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                networks: networks.iter().map(config).collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn says_what_it_can_not_do() {
        let image = || pb::ContainerSpec {
            image: "i".to_owned(),
            ..Default::default()
        };
        assert!(container(&task(image(), &[])).is_ok());
        for (spec, reason) in [
            (pb::ContainerSpec::default(), "no image"),
            (
                pb::ContainerSpec {
                    tty: true,
                    ..image()
                },
                "tty",
            ),
            (
                pb::ContainerSpec {
                    init: Some(true),
                    ..image()
                },
                "init",
            ),
            (
                pb::ContainerSpec {
                    healthcheck: Some(pb::HealthConfig {
                        test: vec!["CMD".to_owned(), "true".to_owned()],
                        ..Default::default()
                    }),
                    ..image()
                },
                "health checks",
            ),
        ] {
            let error = container(&task(spec, &[])).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(container(&pb::Task::default()).is_err());
    }

    #[test]
    fn networks_by_name_and_by_id() {
        let port = pb::PortConfig {
            target_port: 80,
            publish_mode: pb::port_config::PublishMode::Host.into(),
            ..Default::default()
        };
        let of = |networks: &[&str], ports: &[pb::PortConfig]| {
            network(&task(pb::ContainerSpec::default(), networks), ports).ok()
        };
        assert_eq!(of(&[], &[]), Some(Network::Isolated));
        assert_eq!(of(&[], std::slice::from_ref(&port)), Some(Network::Bridged));
        assert_eq!(
            of(&["host"], std::slice::from_ref(&port)),
            Some(Network::Host)
        );
        assert_eq!(of(&["none"], &[port]), None);
        assert_eq!(of(&["host", "bridge"], &[]), None);
        assert_eq!(of(&["some-overlay"], &[]), None);
        let mut by_id = task(pb::ContainerSpec::default(), &["id1"]);
        by_id.networks.push(pb::NetworkAttachment {
            network: Some(pb::Network {
                id: "id1".to_owned(),
                spec: Some(pb::NetworkSpec {
                    annotations: Some(pb::Annotations {
                        name: "host".to_owned(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(network(&by_id, &[]).unwrap(), Network::Host);
    }

    #[test]
    fn ports_must_be_in_host_mode() {
        let mut task = pb::Task {
            endpoint: Some(pb::Endpoint::default()),
            ..Default::default()
        };
        let port = pb::PortConfig {
            target_port: 80,
            ..Default::default()
        };
        task.endpoint.as_mut().unwrap().ports.push(port);
        assert!(
            host_ports(&task)
                .unwrap_err()
                .to_string()
                .contains("host mode")
        );
    }
}
