//! Details of a task's specification.

use swarm_proto::pb::task_spec::Runtime;
use swarm_proto::{amount, pb};

use crate::render::inspect::Details;
use crate::render::time;

/// A section with the container, the resources, the placement and the policies of a task.
pub(in crate::command) fn spec_details(details: &mut Details, name: &str, spec: &pb::TaskSpec) {
    details.section(name, |details| {
        match &spec.runtime {
            Some(Runtime::Container(container)) => container_details(details, container),
            Some(Runtime::Generic(generic)) => details.put("Runtime", generic.kind.as_str()),
            Some(Runtime::Attachment(_)) => details.put("Runtime", "attachment"),
            None => {}
        }
        if let Some(resources) = &spec.resources {
            amounts(details, "Reservations", resources.reservations.as_ref());
            amounts(details, "Limits", resources.limits.as_ref());
        }
        if let Some(placement) = &spec.placement {
            placement_details(details, placement);
        }
        if let Some(restart) = &spec.restart {
            restart_details(details, restart);
        }
        let networks: Vec<&str> = spec
            .networks
            .iter()
            .map(|network| network.target.as_str())
            .collect();
        details.put("Networks", networks.join(", "));
        if let Some(driver) = &spec.log_driver {
            details.section("Log Driver", |details| {
                details.put("Name", driver.name.as_str());
                details.map("Options", &driver.options);
            });
        }
    });
}

/// A section with an update or rollback configuration.
pub(super) fn rollout(details: &mut Details, name: &str, config: Option<&pb::UpdateConfig>) {
    let Some(config) = config else { return };
    details.section(name, |details| {
        let parallelism = match config.parallelism {
            0 => "all at once".to_owned(),
            parallelism => parallelism.to_string(),
        };
        details.put("Parallelism", parallelism);
        details.put("Delay", span(config.delay.as_ref()));
        details.put(
            "On failure",
            config.failure_action().as_str_name().to_lowercase(),
        );
        details.put("Monitor", span(config.monitor.as_ref()));
        details.put("Max failure ratio", config.max_failure_ratio.to_string());
        details.put(
            "Order",
            config
                .order()
                .as_str_name()
                .to_lowercase()
                .replace('_', "-"),
        );
    });
}

fn span(duration: Option<&prost_types::Duration>) -> String {
    duration.map(time::span).unwrap_or_default()
}

fn container_details(details: &mut Details, container: &pb::ContainerSpec) {
    details.section("Container", |details| {
        details.put("Image", container.image.as_str());
        details.put("Command", words(&container.command));
        details.put("Args", words(&container.args));
        details.put("Env", container.env.join("\n"));
        details.put("Hostname", container.hostname.as_str());
        details.put("Directory", container.dir.as_str());
        details.put("User", container.user.as_str());
        details.put("Groups", container.groups.join(", "));
        details.map("Container labels", &container.labels);
        let switches = [
            ("tty", container.tty),
            ("open-stdin", container.open_stdin),
            ("read-only", container.read_only),
            ("init", container.init == Some(true)),
        ];
        let on: Vec<&str> = switches
            .iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| *name)
            .collect();
        details.put("Options", on.join(", "));
        details.put("Stop signal", container.stop_signal.as_str());
        details.put(
            "Stop grace period",
            span(container.stop_grace_period.as_ref()),
        );
        details.put(
            "Mounts",
            container
                .mounts
                .iter()
                .map(mount)
                .collect::<Vec<_>>()
                .join("\n"),
        );
        let secrets = container
            .secrets
            .iter()
            .map(|secret| secret.secret_name.as_str());
        details.put("Secrets", secrets.collect::<Vec<_>>().join(", "));
        let configs = container
            .configs
            .iter()
            .map(|config| config.config_name.as_str());
        details.put("Configs", configs.collect::<Vec<_>>().join(", "));
        kernel(details, container);
        if let Some(dns) = &container.dns_config {
            details.put("DNS", dns.nameservers.join(", "));
            details.put("DNS search", dns.search.join(", "));
            details.put("DNS options", dns.options.join(", "));
        }
        details.put("Hosts", container.hosts.join("\n"));
        if let Some(health) = &container.healthcheck {
            health_details(details, health);
        }
    });
}

fn kernel(details: &mut Details, container: &pb::ContainerSpec) {
    details.put("Capabilities added", container.capability_add.join(", "));
    details.put("Capabilities dropped", container.capability_drop.join(", "));
    details.map("Sysctls", &container.sysctls);
    let limit = |limit: &pb::container_spec::Ulimit| {
        format!("{}={}:{}", limit.name, limit.soft, limit.hard)
    };
    details.put(
        "Ulimits",
        container
            .ulimits
            .iter()
            .map(limit)
            .collect::<Vec<_>>()
            .join(", "),
    );
    if container.pids_limit > 0 {
        details.put("Most processes", container.pids_limit.to_string());
    }
    let device = |device: &pb::container_spec::Device| {
        let parts = [
            &device.path_on_host,
            &device.path_in_container,
            &device.permissions,
        ];
        let given = parts.into_iter().filter(|part| !part.is_empty());
        given.map(String::as_str).collect::<Vec<_>>().join(":")
    };
    let devices = container.devices.iter().map(device);
    details.put("Devices", devices.collect::<Vec<_>>().join(", "));
    if container.shm_bytes > 0 {
        details.put("Size of /dev/shm", amount::bytes(container.shm_bytes));
    }
    details.put("Runtime", container.oci_runtime.as_str());
    if container.oom_score_adj != 0 {
        details.put("OOM score adjustment", container.oom_score_adj.to_string());
    }
}

fn health_details(details: &mut Details, health: &pb::HealthConfig) {
    details.section("Health check", |details| {
        details.put("Test", words(&health.test));
        details.put("Interval", span(health.interval.as_ref()));
        details.put("Timeout", span(health.timeout.as_ref()));
        if health.retries > 0 {
            details.put("Retries", health.retries.to_string());
        }
        details.put("Start period", span(health.start_period.as_ref()));
        details.put("Start interval", span(health.start_interval.as_ref()));
    });
}

fn amounts(details: &mut Details, name: &str, resources: Option<&pb::Resources>) {
    let Some(resources) = resources else { return };
    details.section(name, |details| {
        if resources.nano_cpus > 0 {
            details.put("CPUs", amount::cpus(resources.nano_cpus));
        }
        if resources.memory_bytes > 0 {
            details.put("Memory", amount::bytes(resources.memory_bytes));
        }
        for (kind, amount) in crate::command::node::generic(&resources.generic) {
            details.put(&kind, amount);
        }
    });
}

fn placement_details(details: &mut Details, placement: &pb::Placement) {
    details.put("Constraints", placement.constraints.join(", "));
    let preference = |preference: &pb::PlacementPreference| {
        let pb::placement_preference::Preference::Spread(spread) =
            preference.preference.as_ref()?;
        Some(format!("spread={}", spread.spread_descriptor))
    };
    let preferences: Vec<String> = placement
        .preferences
        .iter()
        .filter_map(preference)
        .collect();
    details.put("Preferences", preferences.join(", "));
    if placement.max_replicas > 0 {
        details.put("Most on one node", placement.max_replicas.to_string());
    }
}

fn restart_details(details: &mut Details, restart: &pb::RestartPolicy) {
    details.section("Restart", |details| {
        details.put(
            "Condition",
            restart
                .condition()
                .as_str_name()
                .to_lowercase()
                .replace('_', "-"),
        );
        details.put("Delay", span(restart.delay.as_ref()));
        if restart.max_attempts > 0 {
            details.put("Most attempts", restart.max_attempts.to_string());
        }
        details.put("Window", span(restart.window.as_ref()));
    });
}

/// `bind /src -> /dst (ro)`.
fn mount(mount: &pb::Mount) -> String {
    let kind = mount.r#type().as_str_name().to_lowercase();
    let source = if mount.source.is_empty() {
        String::new()
    } else {
        format!(" {}", mount.source)
    };
    let mode = if mount.readonly { " (read-only)" } else { "" };
    format!("{kind}{source} -> {}{mode}", mount.target)
}

/// Words of a command line, quoted where their borders would not be seen.
fn words(words: &[String]) -> String {
    let word = |word: &String| {
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c == '"') {
            format!("{word:?}")
        } else {
            word.clone()
        }
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}
