//! What a spec may ask for and no node of this version does.
//!
//! One list for both ends: managers refuse a service by it, nodes a task, so that nothing is
//! accepted and then rejected on every node, and nothing is accepted and ignored.

use crate::invalid::{FieldError, shown};
use crate::log_driver;
use crate::pb;
use crate::pb::mount::Type;

/// The volume drivers that are there.
const VOLUME_DRIVERS: [&str; 2] = ["", "local"];

/// What of a task is not served: all of it, by field.
#[must_use]
pub fn task(spec: &pb::TaskSpec) -> Vec<FieldError> {
    let mut found = match &spec.runtime {
        Some(pb::task_spec::Runtime::Container(spec)) => container(spec),
        Some(pb::task_spec::Runtime::Attachment(_)) => vec![unserved(
            "task.attachment",
            "network attachments are not supported; run a container",
        )],
        Some(pb::task_spec::Runtime::Generic(generic)) => vec![unserved(
            "task.generic",
            &format!(
                "runtime {} is not supported; run a container",
                shown(&generic.kind)
            ),
        )],
        // That it is missing is an error of its own.
        None => Vec::new(),
    };
    if let Some(driver) = &spec.log_driver {
        found.extend(log_driver("task.log_driver", driver));
    }
    found
}

/// What of a log driver, a task's or the cluster's default, is not served.
#[must_use]
pub fn log_driver(field: &str, driver: &pb::Driver) -> Vec<FieldError> {
    log_driver::parse(field, Some(driver))
        .err()
        .unwrap_or_default()
}

/// Why a published port is not served.
#[must_use]
pub fn port(port: &pb::PortConfig) -> Option<&'static str> {
    if port.publish_mode() != pb::port_config::PublishMode::Host {
        return Some(
            "publishing through the mesh (ingress) is not supported yet; publish it in host mode",
        );
    }
    (port.protocol() == pb::port_config::Protocol::Sctp)
        .then_some("SCTP is not supported; use TCP or UDP")
}

fn container(spec: &pb::ContainerSpec) -> Vec<FieldError> {
    let windows = "is for Windows containers; remove it";
    let not_yet = |what: &str| format!("{what} not supported yet; remove it");
    let privileges = spec.privileges.as_ref();
    let checks = [
        (!spec.secrets.is_empty(), "secrets", not_yet("secrets are")),
        (!spec.configs.is_empty(), "configs", not_yet("configs are")),
        (
            spec.isolation() != pb::container_spec::Isolation::Default,
            "isolation",
            windows.to_owned(),
        ),
        (
            privileges.is_some_and(|p| p.credential_spec.is_some()),
            "privileges.credential_spec",
            windows.to_owned(),
        ),
    ];
    let asked = checks.into_iter().filter(|(asked, ..)| *asked);
    let mut found: Vec<FieldError> = asked
        .map(|(_, name, reason)| unserved(&format!("task.container.{name}"), &reason))
        .collect();
    for (i, line) in spec.hosts.iter().enumerate() {
        if line.split_ascii_whitespace().next() == Some("host-gateway") {
            let reason = "host-gateway is not supported; give an address";
            found.push(unserved(&format!("task.container.hosts[{i}]"), reason));
        }
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        found.extend(self::mount(&format!("task.container.mounts[{i}]"), mount));
    }
    found
}

fn mount(field: &str, mount: &pb::Mount) -> Option<FieldError> {
    match Type::try_from(mount.r#type) {
        Ok(Type::Bind | Type::Tmpfs) => None,
        Ok(Type::Volume) => {
            let options = mount.volume_options.as_ref()?;
            if !options.subpath.is_empty() {
                let reason = "subpaths are not supported yet; mount the whole volume";
                let field = format!("{field}.volume_options.subpath");
                return Some(unserved(&field, reason));
            }
            let driver = options.driver_config.as_ref()?;
            let field = format!("{field}.volume_options.driver_config");
            if !VOLUME_DRIVERS.contains(&driver.name.as_str()) {
                let name = shown(&driver.name);
                let reason = format!("volume driver {name} is not supported; use local");
                return Some(unserved(&field, &reason));
            }
            let reason = "options of the local volume driver are not supported; use a bind mount";
            (!driver.options.is_empty()).then(|| unserved(&field, reason))
        }
        Ok(kind @ (Type::Npipe | Type::Cluster)) => {
            let kind = kind.as_str_name();
            let reason = format!("{kind} is not supported; use BIND, VOLUME or TMPFS");
            Some(unserved(&format!("{field}.type"), &reason))
        }
        // An unknown type is an error of its own.
        Err(_) => None,
    }
}

fn unserved(field: &str, reason: &str) -> FieldError {
    FieldError {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(container: pb::ContainerSpec) -> Vec<String> {
        let spec = pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            ..Default::default()
        };
        task(&spec).into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn all_of_it_is_named_at_once() {
        let volume = |name: &str, options: &[(&str, &str)]| pb::Mount {
            r#type: Type::Volume.into(),
            volume_options: Some(pb::mount::VolumeOptions {
                driver_config: Some(pb::Driver {
                    name: name.to_owned(),
                    options: options
                        .iter()
                        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                        .collect(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let spec = pb::ContainerSpec {
            secrets: vec![pb::SecretReference::default()],
            configs: vec![pb::ConfigReference::default()],
            isolation: pb::container_spec::Isolation::Hyperv.into(),
            privileges: Some(pb::Privileges {
                credential_spec: Some(pb::privileges::CredentialSpec::default()),
                ..Default::default()
            }),
            hosts: vec!["10.0.0.1 a".to_owned(), "host-gateway b".to_owned()],
            mounts: vec![
                volume("local", &[]),
                volume("nfs", &[]),
                volume("", &[("type", "nfs")]),
                pb::Mount {
                    r#type: Type::Npipe.into(),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let found = fields(spec);
        let found: Vec<&str> = found
            .iter()
            .map(|field| field.strip_prefix("task.container.").unwrap())
            .collect();
        assert_eq!(
            found,
            [
                "secrets",
                "configs",
                "isolation",
                "privileges.credential_spec",
                "hosts[1]",
                "mounts[1].volume_options.driver_config",
                "mounts[2].volume_options.driver_config",
                "mounts[3].type",
            ]
        );
    }
}
