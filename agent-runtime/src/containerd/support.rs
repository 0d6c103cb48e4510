//! What this backend can't do, said before anything is done: nothing is accepted and ignored.

use swarm_proto::service::InvalidSpec;
use swarm_proto::{pb, unserved};

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

/// The container of a task; other runtimes are refused, as are features that are not there. Managers
/// refuse them already, by the same list; a task may come from another version's manager.
pub(super) fn container(task: &pb::Task) -> Result<&pb::ContainerSpec, Error> {
    let refuse = |reason: &str| Error::Fatal(format!("task {}: {reason}", task.id));
    let spec = task.spec.as_ref().ok_or_else(|| refuse("it has no spec"))?;
    let mut found = unserved::task(spec);
    if let (None, Some(driver)) = (&spec.log_driver, &task.log_driver) {
        found.extend(unserved::log_driver("log_driver", driver));
    }
    if !found.is_empty() {
        let listed = InvalidSpec(found).to_string();
        return Err(refuse(&format!("not supported on this node: {listed}")));
    }
    let Some(pb::task_spec::Runtime::Container(container)) = &spec.runtime else {
        return Err(refuse("it has no container spec"));
    };
    if container.image.is_empty() {
        return Err(refuse("it names no image"));
    }
    Ok(container)
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
        if let Some(reason) = unserved::port(port) {
            return refuse(reason);
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
    use swarm_proto::pb::mount::Type as MountType;
    use swarm_proto::service::ServiceSpec;

    use super::super::manifest::RunConfig;
    use super::super::mounts::{self, VolumeDirs};
    use super::super::security::Security;
    use super::super::spec;
    use super::super::template::Templates;
    use super::*;
    use crate::executor::NodeFacts;

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
                    secrets: vec![pb::SecretReference::default()],
                    ..image()
                },
                "secrets",
            ),
        ] {
            let error = container(&task(spec, &[])).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(container(&pb::Task::default()).is_err());
    }

    /// Whether a manager refuses a service of these containers.
    fn at_manager(container: &pb::ContainerSpec) -> bool {
        let spec = pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container.clone())),
            ..Default::default()
        };
        let unserved = !unserved::task(&spec).is_empty();
        let replicated = pb::ReplicatedService { replicas: 1 };
        let service = pb::ServiceSpec {
            annotations: Some(pb::Annotations {
                name: "web".to_owned(),
                ..Default::default()
            }),
            mode: Some(pb::service_spec::Mode::Replicated(replicated)),
            task: Some(spec),
            ..Default::default()
        };
        unserved || ServiceSpec::try_from(service).is_err()
    }

    /// Whether this node refuses the container, whatever it has itself.
    fn at_node(container: &pb::ContainerSpec) -> bool {
        let task = task(container.clone(), &[]);
        let (node, dir) = (NodeFacts::default(), tempfile::tempdir().unwrap());
        let templates = Templates {
            task: &task,
            node: &node,
        };
        let dirs = VolumeDirs {
            named: dir.path(),
            anonymous: dir.path(),
        };
        self::container(&task).is_err()
            || mounts::plan(container, &[], &templates, &dirs).is_err()
            || Security::read(container).is_err()
            || spec::stop(container, &RunConfig::default()).is_err()
            || spec::hostname(container, "t", &templates).is_err()
    }

    #[test]
    fn what_this_node_refuses_managers_refuse() {
        let spec = pb::ContainerSpec {
            image: "i".to_owned(),
            ..Default::default()
        };
        assert!(!at_node(&spec) && !at_manager(&spec));
        let refused: &[fn(&mut pb::ContainerSpec)] = &[
            |spec| spec.image.clear(),
            |spec| spec.secrets.push(pb::SecretReference::default()),
            |spec| spec.configs.push(pb::ConfigReference::default()),
            |spec| spec.isolation = 1,
            |spec| spec.capability_add.push("FLY".to_owned()),
            |spec| spec.capability_drop.push("FLY".to_owned()),
            |spec| {
                let privileges = spec.privileges.get_or_insert_default();
                privileges.credential_spec.get_or_insert_default();
            },
            |spec| spec.stop_signal = "SIGNOPE".to_owned(),
            |spec| spec.stop_signal = "RTMIN-1".to_owned(),
            |spec| spec.stop_grace_period.get_or_insert_default().seconds = -1,
            |spec| spec.hostname = "a b".to_owned(),
            |spec| spec.hostname = "a".repeat(100),
            |spec| mount(spec, MountType::Bind, "relative", "/x"),
            |spec| mount(spec, MountType::Bind, "/tmp", "x"),
            |spec| mount(spec, MountType::Bind, "/tmp", "/"),
            |spec| mount(spec, MountType::Bind, "/tmp", "/a/../etc"),
            |spec| mount(spec, MountType::Volume, "../up", "/x"),
            |spec| mount(spec, MountType::Volume, "a b", "/x"),
            |spec| mount(spec, MountType::Npipe, "a", "/x"),
            |spec| mount(spec, MountType::Cluster, "a", "/x"),
            |spec| {
                mount(spec, MountType::Volume, "a", "/x");
                let options = spec.mounts[0].volume_options.get_or_insert_default();
                options.subpath = "b".to_owned();
            },
            |spec| driver(spec, "nfs", &[]),
            |spec| driver(spec, "local", &["device"]),
        ];
        for (number, ask) in refused.iter().enumerate() {
            let mut spec = pb::ContainerSpec {
                image: "i".to_owned(),
                ..Default::default()
            };
            ask(&mut spec);
            assert!(at_node(&spec), "the node takes number {number}: {spec:?}");
            assert!(at_manager(&spec), "managers take number {number}: {spec:?}");
        }
    }

    fn mount(spec: &mut pb::ContainerSpec, kind: MountType, source: &str, target: &str) {
        spec.mounts.push(pb::Mount {
            r#type: kind.into(),
            source: source.to_owned(),
            target: target.to_owned(),
            ..Default::default()
        });
    }

    fn driver(spec: &mut pb::ContainerSpec, name: &str, options: &[&str]) {
        mount(spec, MountType::Volume, "data", "/x");
        let options = options.iter().map(|&key| (key.to_owned(), String::new()));
        let driver = pb::Driver {
            name: name.to_owned(),
            options: options.collect(),
        };
        let last = spec.mounts.last_mut().unwrap();
        last.volume_options.get_or_insert_default().driver_config = Some(driver);
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
