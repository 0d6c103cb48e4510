//! What this version does not serve yet is refused by name, never accepted and ignored.

use swarm_proto::pb;
use swarm_proto::service::{Mode, PublishMode, ServiceSpec};

use super::error::Error;

/// Refuses a spec that asks for something that would not happen.
pub(crate) fn check(spec: &ServiceSpec) -> Result<(), Error> {
    let mut missing: Vec<String> = Vec::new();
    match spec.mode {
        Mode::Replicated { .. } => {}
        Mode::Global => missing.push("mode global".to_owned()),
        Mode::ReplicatedJob { .. } => missing.push("mode replicated-job".to_owned()),
        Mode::GlobalJob => missing.push("mode global-job".to_owned()),
    }
    for port in &spec.ports {
        if port.mode == PublishMode::Ingress {
            missing.push(format!(
                "publishing port {} through the mesh (publish it in host mode)",
                port.target
            ));
        }
    }
    if let Some(task) = &spec.wire.task {
        let networks = task.networks.iter().chain(&spec.wire.networks);
        for network in networks.filter(|n| n.target != "host") {
            missing.push(format!(
                "network {:?} (only \"host\" is there)",
                network.target
            ));
        }
        match &task.runtime {
            Some(pb::task_spec::Runtime::Container(container)) => {
                container_parts(container, &mut missing);
            }
            Some(pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_))
            | None => missing.push("a runtime other than container".to_owned()),
        }
        if !task.resource_references.is_empty() {
            missing.push("resource references".to_owned());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Unimplemented(format!(
        "service {}: this version does not serve {}",
        spec.name,
        missing.join(", ")
    )))
}

fn container_parts(container: &pb::ContainerSpec, missing: &mut Vec<String>) {
    if !container.secrets.is_empty() {
        missing.push("secrets".to_owned());
    }
    if !container.configs.is_empty() {
        missing.push("configs".to_owned());
    }
    // A test of NONE switches health checks off, which is how things are.
    let checked = container
        .healthcheck
        .as_ref()
        .is_some_and(|h| h.test.first().is_some_and(|t| !t.is_empty() && t != "NONE"));
    if checked {
        missing.push("health checks".to_owned());
    }
    for mount in &container.mounts {
        use pb::mount::Type;
        match Type::try_from(mount.r#type) {
            Ok(Type::Bind | Type::Volume | Type::Tmpfs) => {}
            Ok(Type::Npipe | Type::Cluster) | Err(_) => {
                missing.push(format!("the mount type of {:?}", mount.target));
            }
        }
    }
}
