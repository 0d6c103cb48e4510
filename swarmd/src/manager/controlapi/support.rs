//! What this version does not serve is refused by name, all of it at once, and never accepted and
//! ignored. What no node does for a task is listed in [`unserved`], for managers and nodes alike.

use swarm_proto::service::{FieldError, InvalidSpec, ServiceSpec};
use swarm_proto::{pb, unserved};

use super::error::Error;

/// The networks that are there: the node's own, a sandbox with loopback only, and the node's bridge.
const NETWORKS: [&str; 3] = ["host", "none", "bridge"];

/// Bytes of a spec (SwarmKit's limit of one transaction). Every task of a service is sent with it, and a message to a
/// node has room for 4 MiB.
const SPEC_BYTES_MAX: usize = 3 << 19;

/// Refuses a spec that is too large for what has to carry it.
pub(crate) fn check_size(object: &str, spec: &impl prost::Message) -> Result<(), Error> {
    let size = spec.encoded_len();
    if size <= SPEC_BYTES_MAX {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "invalid spec: {object} has {size} bytes, at most {SPEC_BYTES_MAX} (1.5 MiB) are allowed; keep large data in a \
         volume or in the image"
    )))
}

/// Parses a spec, and refuses one that asks for something that would not happen.
pub(crate) fn parse(wire: pb::ServiceSpec) -> Result<ServiceSpec, Error> {
    check_size("the service", &wire)?;
    let unserved = of_service(&wire);
    let spec = ServiceSpec::try_from(wire).map_err(|invalid| invalid.and(unserved.clone()))?;
    refuse(&format!("service {}", spec.name), unserved)?;
    Ok(spec)
}

/// An error that names what is not served, if there is something.
pub(crate) fn refuse(object: &str, unserved: Vec<FieldError>) -> Result<(), Error> {
    if unserved.is_empty() {
        return Ok(());
    }
    // The list of an invalid spec has the same form, and is as long as an answer has room for.
    let listed = InvalidSpec(Vec::new()).and(unserved);
    Err(Error::Unimplemented(format!(
        "{object}: not served by this version: {listed}"
    )))
}

fn of_service(wire: &pb::ServiceSpec) -> Vec<FieldError> {
    use pb::service_spec::Mode;
    let mut found = Vec::new();
    let mut add = |field: String, reason: &str| {
        let reason = reason.to_owned();
        found.push(FieldError { field, reason });
    };
    let mode = match &wire.mode {
        // That it is missing is an error of its own.
        None | Some(Mode::Replicated(_)) => None,
        Some(Mode::Global(_)) => Some("global"),
        Some(Mode::ReplicatedJob(_)) => Some("replicated-job"),
        Some(Mode::GlobalJob(_)) => Some("global-job"),
    };
    if let Some(mode) = mode {
        let reason = format!("mode {mode} is not supported yet; use replicated");
        add("mode".to_owned(), &reason);
    }
    let ports = wire.endpoint.as_ref().map(|e| e.ports.as_slice());
    for (i, port) in ports.unwrap_or_default().iter().enumerate() {
        if let Some(reason) = unserved::port(port) {
            add(format!("endpoint.ports[{i}]"), reason);
        }
    }
    let networks = |field: &str, networks: &[pb::NetworkAttachmentConfig]| {
        let others = networks.iter().enumerate();
        let others = others.filter(|(_, network)| !NETWORKS.contains(&network.target.as_str()));
        others
            .map(|(i, network)| {
                let target = &network.target;
                FieldError {
                    field: format!("{field}[{i}]"),
                    reason: format!(
                        "network {target:?} is not supported yet; use host, none or bridge"
                    ),
                }
            })
            .collect::<Vec<_>>()
    };
    found.extend(networks("networks", &wire.networks));
    if let Some(task) = &wire.task {
        found.extend(networks("task.networks", &task.networks));
        found.extend(unserved::task(task));
        if !task.resource_references.is_empty() {
            found.push(FieldError {
                field: "task.resource_references".to_owned(),
                reason: "resource references are not supported yet; remove them".to_owned(),
            });
        }
    }
    found
}
