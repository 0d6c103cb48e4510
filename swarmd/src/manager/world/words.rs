//! The words of the scripts: how they change a service's spec.

use swarm_proto::pb;
use swarm_proto::resources::parse_generic;
use swarm_proto::time::duration_to_wire;

use std::time::Duration;

/// `key=value` words, and words without value.
pub(super) fn words(text: &str) -> Vec<(String, String)> {
    let pair = |word: &str| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word.to_owned(), String::new()),
    };
    text.split_whitespace().map(pair).collect()
}

fn seconds(text: &str) -> prost_types::Duration {
    duration_to_wire(Duration::from_secs_f64(text.parse().unwrap()))
}

/// Changes a spec by words; lists start over.
#[expect(
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    reason = "one arm a word; small numbers"
)]
pub(super) fn amend(spec: &mut pb::ServiceSpec, args: &str) {
    use pb::placement_preference::Preference;
    use pb::restart_policy::RestartCondition;
    let args = args.replace(['(', ')'], " ");
    let task = spec.task.get_or_insert_default();
    for (key, value) in words(&args) {
        let restart = task.restart.get_or_insert_with(|| pb::RestartPolicy {
            condition: RestartCondition::Any.into(),
            ..Default::default()
        });
        let update = spec.update.get_or_insert_with(|| pb::UpdateConfig {
            parallelism: 1,
            ..Default::default()
        });
        let placement = task.placement.get_or_insert_default();
        let reserved = task
            .resources
            .get_or_insert_default()
            .reservations
            .get_or_insert_default();
        match key.as_str() {
            "image" => {
                if let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime {
                    container.image = value;
                }
            }
            "auth" => {
                if let Some(pb::task_spec::Runtime::Container(container)) = &mut task.runtime {
                    let registry_auth = value;
                    container.pull_options =
                        Some(pb::container_spec::PullOptions { registry_auth });
                }
            }
            "cpu" => reserved.nano_cpus = (value.parse::<f64>().unwrap() * 1e9) as i64,
            "mem" => reserved.memory_bytes = value.parse::<i64>().unwrap() << 20,
            "generic" => {
                let generic = parse_generic(&value.replace(':', "=")).unwrap();
                reserved.generic = swarm_proto::resources::generic_to_wire(&generic);
            }
            "nogeneric" => reserved.generic.clear(),
            "constraint" => placement.constraints = vec![value],
            "constraint+" => placement.constraints.push(value),
            "max" => placement.max_replicas = value.parse().unwrap(),
            "platform" => {
                let (os, architecture) = value.split_once('-').unwrap();
                let (os, architecture) = (os.to_owned(), architecture.to_owned());
                placement.platforms.push(pb::Platform { os, architecture });
            }
            "spread" => placement.preferences.push(pb::PlacementPreference {
                preference: Some(Preference::Spread(pb::SpreadOver {
                    spread_descriptor: value,
                })),
            }),
            "log" => {
                task.log_driver = Some(pb::Driver {
                    name: value,
                    ..Default::default()
                });
            }
            "port" | "udp" => {
                let mut port = pb::PortConfig {
                    target_port: 80,
                    published_port: value.parse().unwrap(),
                    publish_mode: pb::port_config::PublishMode::Host.into(),
                    ..Default::default()
                };
                if key == "udp" {
                    port.protocol = pb::port_config::Protocol::Udp.into();
                }
                spec.endpoint.get_or_insert_default().ports = vec![port];
            }
            "restart" => {
                restart.condition = match value.as_str() {
                    "none" => RestartCondition::None,
                    "failure" => RestartCondition::OnFailure,
                    _ => RestartCondition::Any,
                }
                .into();
            }
            "delay" => restart.delay = Some(seconds(&value)),
            "attempts" => restart.max_attempts = value.parse().unwrap(),
            "window" => restart.window = Some(seconds(&value)),
            "parallelism" => update.parallelism = value.parse().unwrap(),
            "pause" => update.delay = seconds(&value).into(),
            "monitor" => {
                update.monitor = Some(seconds(&value));
                spec.rollback.get_or_insert_default().monitor = Some(seconds(&value));
                spec.rollback.get_or_insert_default().parallelism = 1;
            }
            "ratio" => update.max_failure_ratio = value.parse().unwrap(),
            "action" => {
                update.failure_action = match value.as_str() {
                    "continue" => pb::update_config::FailureAction::Continue,
                    "rollback" => pb::update_config::FailureAction::Rollback,
                    _ => pb::update_config::FailureAction::Pause,
                }
                .into();
            }
            "order" => {
                let start = pb::update_config::UpdateOrder::StartFirst;
                let stop = pb::update_config::UpdateOrder::StopFirst;
                update.order = if value == "start" { start } else { stop }.into();
            }
            "noports" => spec.endpoint = None,
            _ => match key.strip_prefix('x').and_then(|n| n.parse().ok()) {
                Some(replicas) => {
                    let replicated = pb::ReplicatedService { replicas };
                    spec.mode = Some(pb::service_spec::Mode::Replicated(replicated));
                }
                None => panic!("no such word: {key}"),
            },
        }
    }
}
