//! What a service's spec is parsed to, and what is refused in which words.

mod containers;
mod rollout;

use std::time::Duration;

use proptest::prelude::*;
use prost::Message as _;
use prost_types as wkt;

use super::*;

/// A valid spec with most parts set.
fn web() -> pb::ServiceSpec {
    let container = pb::ContainerSpec {
        image: "nginx:1.25".to_owned(),
        env: vec!["A=1".to_owned(), "B".to_owned()],
        stop_signal: "SIGQUIT".to_owned(),
        hostname: "{{.Node.Hostname}}-{{.Task.Slot}}".to_owned(),
        mounts: vec![
            mount(pb::mount::Type::Bind, "/srv", "/srv"),
            mount(pb::mount::Type::Volume, "data", "/data"),
            mount(pb::mount::Type::Tmpfs, "", "/tmp"),
        ],
        ..Default::default()
    };
    pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: "web".to_owned(),
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService {
            replicas: 5,
        })),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            placement: Some(pb::Placement {
                constraints: vec!["node.role == worker".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        }),
        endpoint: Some(pb::EndpointSpec {
            ports: vec![port(80, 8080, pb::port_config::PublishMode::Host)],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn mount(kind: pb::mount::Type, source: &str, target: &str) -> pb::Mount {
    pb::Mount {
        r#type: kind.into(),
        source: source.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    }
}

fn port(target: u32, published: u32, mode: pb::port_config::PublishMode) -> pb::PortConfig {
    pb::PortConfig {
        target_port: target,
        published_port: published,
        publish_mode: mode.into(),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> Option<wkt::Duration> {
    Some(wkt::Duration { seconds, nanos: 0 })
}

fn container(spec: &mut pb::ServiceSpec) -> &mut pb::ContainerSpec {
    let Some(pb::task_spec::Runtime::Container(container)) =
        &mut spec.task.as_mut().unwrap().runtime
    else {
        panic!("has a container");
    };
    container
}

fn container_of(spec: &pb::ServiceSpec) -> &pb::ContainerSpec {
    let Some(pb::task_spec::Runtime::Container(container)) = &spec.task.as_ref().unwrap().runtime
    else {
        panic!("has a container");
    };
    container
}

/// Parses `web()` after a change and gives the faults.
fn faults(change: impl FnOnce(&mut pb::ServiceSpec)) -> Vec<FieldError> {
    let mut spec = web();
    change(&mut spec);
    ServiceSpec::try_from(spec).map_or_else(|invalid| invalid.0, |_| Vec::new())
}

/// Exactly this field is bad, for a reason with these words.
#[track_caller]
fn check(field: &str, says: &str, change: impl FnOnce(&mut pb::ServiceSpec)) {
    let found = faults(change);
    let [fault] = found.as_slice() else {
        panic!("one fault at {field}, not {found:?}")
    };
    assert_eq!(fault.field, field, "{fault}");
    assert!(fault.reason.contains(says), "{fault}");
}

#[track_caller]
fn accepts(change: impl FnOnce(&mut pb::ServiceSpec)) {
    assert_eq!(faults(change), Vec::new());
}

#[test]
fn a_valid_spec_is_ready_to_decide_on() {
    let spec = ServiceSpec::try_from(web()).unwrap();
    assert_eq!(spec.name, "web");
    assert_eq!(spec.mode, Mode::Replicated { replicas: 5 });
    assert_eq!(
        spec.task.host_ports,
        [HostPort {
            protocol: Protocol::Tcp,
            port: 8080
        }]
    );
    assert_eq!(spec.task.restart, RestartPolicy::default());
    assert_eq!(spec.update, UpdateConfig::default());
    assert_eq!(spec.task.placement.constraints.len(), 1);
    assert!(spec.task.plugins.is_empty());
    assert_eq!(pb::ServiceSpec::from(&spec), web());
    assert_eq!(
        pb::PortConfig::from(&spec.ports[0]),
        web().endpoint.unwrap().ports[0]
    );
}

#[test]
fn all_faults_are_named_at_once() {
    let found = faults(|s| {
        s.annotations = None;
        s.mode = None;
        container(s).image = "Bad Image".to_owned();
        s.task
            .as_mut()
            .unwrap()
            .placement
            .as_mut()
            .unwrap()
            .constraints = vec!["x".to_owned()];
    });
    let fields: Vec<&str> = found.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "name",
            "mode",
            "task.container.image",
            "task.placement.constraints[0]"
        ]
    );
}

#[test]
fn names() {
    let named = |name: &'static str| {
        move |s: &mut pb::ServiceSpec| s.annotations.as_mut().unwrap().name = name.to_owned()
    };
    check("name", "is missing", named(""));
    check("name", "not a valid name", named("a b"));
    check("labels", "empty key", |s| {
        s.annotations
            .as_mut()
            .unwrap()
            .labels
            .insert(String::new(), "x".to_owned());
    });
}

#[test]
fn numbers_of_tasks() {
    use pb::service_spec::Mode as Wire;
    let replicas = |replicas: u64| {
        move |s: &mut pb::ServiceSpec| {
            s.mode = Some(Wire::Replicated(pb::ReplicatedService { replicas }));
        }
    };
    accepts(replicas(0));
    accepts(replicas(REPLICAS_MAX));
    check(
        "mode.replicated.replicas",
        "limit of 200000 tasks",
        replicas(1_000_000),
    );
    check(
        "mode.replicated.replicas",
        "is negative (-1)",
        replicas(u64::MAX),
    );
    let job = |max_concurrent: u64, total_completions: u64| {
        move |s: &mut pb::ServiceSpec| {
            let job = pb::ReplicatedJob {
                max_concurrent,
                total_completions,
            };
            s.mode = Some(Wire::ReplicatedJob(job));
        }
    };
    accepts(job(0, 10));
    check(
        "mode.replicated_job.max_concurrent",
        "negative",
        job(u64::MAX, 1),
    );
    check(
        "mode.replicated_job.total_completions",
        "limit",
        job(0, REPLICAS_MAX + 1),
    );
    check("mode", "is missing", |s| s.mode = None);
}

#[test]
fn defaults_are_what_parsing_assumes() {
    let bare = {
        let mut spec = web();
        spec.update = Some(pb::UpdateConfig {
            parallelism: 3,
            ..Default::default()
        });
        spec
    };
    for wire in [web(), bare] {
        let spec = ServiceSpec::try_from(wire).unwrap();
        let filled = spec.insert_defaults();
        let container = container_of(&filled);
        assert_eq!(container.stop_grace_period, seconds(10));
        assert_eq!(filled.rollback.as_ref().unwrap().monitor, seconds(5));
        let again = ServiceSpec::try_from(filled).unwrap();
        assert_eq!(
            again.insert_defaults(),
            *again.wire,
            "filling twice changes nothing"
        );
        assert_eq!(
            ServiceSpec {
                wire: spec.wire.clone(),
                ..again
            },
            spec
        );
    }
    let job = {
        let mut spec = web();
        spec.mode = Some(pb::service_spec::Mode::GlobalJob(pb::GlobalJob {}));
        ServiceSpec::try_from(spec).unwrap()
    };
    assert!(
        ServiceSpec::try_from(job.insert_defaults()).is_ok(),
        "a job stays valid"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = pb::ServiceSpec::decode(bytes.as_slice()) {
            let _ = ServiceSpec::try_from(wire).map(|spec| spec.insert_defaults());
        }
    }

    /// Damaged encodings of a valid spec decode far more often than noise does.
    #[test]
    fn damaged_specs_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = web().encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(wire) = pb::ServiceSpec::decode(bytes.as_slice()) {
            match ServiceSpec::try_from(wire.clone()) {
                Ok(spec) => prop_assert_eq!(&*spec.wire, &wire),
                Err(invalid) => prop_assert!(!invalid.0.is_empty()),
            }
        }
    }
}
