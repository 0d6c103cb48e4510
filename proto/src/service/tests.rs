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
fn what_runs() {
    check("task", "is missing", |s| s.task = None);
    check("task", "no runtime", |s| {
        s.task.as_mut().unwrap().runtime = None
    });
    check("task.attachment", "attachments have no service", |s| {
        let attachment = pb::NetworkAttachmentSpec::default();
        s.task.as_mut().unwrap().runtime = Some(pb::task_spec::Runtime::Attachment(attachment));
    });
    let generic = |kind: &'static str, type_url: &'static str| {
        move |s: &mut pb::ServiceSpec| {
            let payload = wkt::Any {
                type_url: type_url.to_owned(),
                value: Vec::new(),
            };
            let spec = pb::GenericRuntimeSpec {
                kind: kind.to_owned(),
                payload: Some(payload),
            };
            s.task.as_mut().unwrap().runtime = Some(pb::task_spec::Runtime::Generic(spec));
        }
    };
    accepts(generic("plugin", "x/y"));
    check("task.generic.kind", "too short", generic("ab", "x/y"));
    check("task.generic.payload", "missing", generic("plugin", ""));
    check("task.container.image", "is missing", |s| {
        container(s).image.clear()
    });
    check("task.container.image", "lower-case", |s| {
        container(s).image = "Nginx".to_owned()
    });
}

#[test]
fn processes() {
    check("task.container.env[0]", "has no name", |s| {
        container(s).env = vec!["=x".to_owned()]
    });
    check("task.container.env[0]", "zero byte", |s| {
        container(s).env = vec!["A=\0".to_owned()]
    });
    check("task.container.args[0]", "zero byte", |s| {
        container(s).args = vec!["\0".to_owned()]
    });
    check("task.container.dir", "absolute", |s| {
        container(s).dir = "a/b".to_owned()
    });
    check("task.container.hostname", "not a host name", |s| {
        container(s).hostname = "a b".to_owned();
    });
    check("task.container.stop_signal", "not a signal", |s| {
        container(s).stop_signal = "SIGSTOPP".to_owned();
    });
    check("task.container.stop_grace_period", "negative", |s| {
        container(s).stop_grace_period = seconds(-1);
    });
    check("task.container.isolation", "unknown value 7", |s| {
        container(s).isolation = 7
    });
    check("task.container.hosts[0]", "ADDRESS", |s| {
        container(s).hosts = vec!["a b".to_owned()]
    });
    accepts(|s| container(s).hosts = vec!["10.0.0.1 a b".to_owned(), "::1 c".to_owned()]);
    check(
        "task.container.dns_config.nameservers[0]",
        "not an IP",
        |s| {
            container(s).dns_config.get_or_insert_default().nameservers = vec!["dns".to_owned()];
        },
    );
}

#[test]
fn limits_and_privileges() {
    let ulimit = |name: &'static str, soft: i64, hard: i64| {
        move |s: &mut pb::ServiceSpec| {
            let name = name.to_owned();
            container(s).ulimits = vec![pb::container_spec::Ulimit { name, soft, hard }];
        }
    };
    accepts(ulimit("nofile", 1024, -1));
    check(
        "task.container.ulimits[0]",
        "above the hard limit",
        ulimit("nofile", 2, 1),
    );
    check(
        "task.container.ulimits[0]",
        "above the hard limit",
        ulimit("nofile", -1, 1),
    );
    check(
        "task.container.ulimits[0]",
        "known are core",
        ulimit("files", 1, 1),
    );
    check("task.container.pidsLimit", "negative", |s| {
        container(s).pids_limit = -2
    });
    check("task.container.oom_score_adj", "-1000", |s| {
        container(s).oom_score_adj = 1001
    });
    check("task.container.sysctls", "kernel parameter", |s| {
        container(s)
            .sysctls
            .insert("a b".to_owned(), "1".to_owned());
    });
    accepts(|s| container(s).capability_add = vec!["ALL".to_owned(), "cap_net_raw".to_owned()]);
    check(
        "task.container.capability_drop[0]",
        "not a capability",
        |s| {
            container(s).capability_drop = vec!["CAP_FLY".to_owned()];
        },
    );
    check(
        "task.container.privileges.seccomp.profile",
        "needs a profile",
        |s| {
            let privileges = container(s).privileges.get_or_insert_default();
            privileges.seccomp.get_or_insert_default().mode =
                pb::privileges::seccomp_opts::SeccompMode::Custom.into();
        },
    );
    check(
        "task.container.privileges.credential_spec.config",
        "runtime target",
        |s| {
            let source = pb::privileges::credential_spec::Source::Config("c1".to_owned());
            let credentials = pb::privileges::CredentialSpec {
                source: Some(source),
            };
            container(s)
                .privileges
                .get_or_insert_default()
                .credential_spec = Some(credentials);
        },
    );
}

#[test]
fn mounts() {
    use pb::mount::Type;
    let mounted =
        |mounts: Vec<pb::Mount>| move |s: &mut pb::ServiceSpec| container(s).mounts = mounts;
    let twice = vec![
        mount(Type::Volume, "a", "/a"),
        mount(Type::Volume, "b", "/a/"),
    ];
    check(
        "task.container.mounts[1].target",
        "mounted twice",
        mounted(twice),
    );
    let at = "task.container.mounts[0]";
    let one = |kind, source, target| mounted(vec![mount(kind, source, target)]);
    check(
        &format!("{at}.target"),
        "absolute",
        one(Type::Volume, "a", "a"),
    );
    check(
        &format!("{at}.source"),
        "absolute",
        one(Type::Bind, "a", "/a"),
    );
    check(
        &format!("{at}.source"),
        "is a path",
        one(Type::Volume, "/a", "/a"),
    );
    check(
        &format!("{at}.source"),
        "must be empty",
        one(Type::Tmpfs, "a", "/a"),
    );
    accepts(one(Type::Bind, "{{.Node.ID}}", "/a"));
    let mut unknown = mount(Type::Bind, "/a", "/a");
    unknown.r#type = 9;
    check(
        &format!("{at}.type"),
        "unknown value 9",
        mounted(vec![unknown]),
    );
    let mut foreign = mount(Type::Bind, "/a", "/a");
    foreign.tmpfs_options = Some(Default::default());
    check(
        &format!("{at}.tmpfs_options"),
        "type BIND",
        mounted(vec![foreign]),
    );
    let mut escaping = mount(Type::Volume, "a", "/a");
    escaping.volume_options.get_or_insert_default().subpath = "../b".to_owned();
    check(
        &format!("{at}.volume_options.subpath"),
        "leaves",
        mounted(vec![escaping]),
    );
}

#[test]
fn health_checks() {
    let health = |change: fn(&mut pb::HealthConfig)| {
        move |s: &mut pb::ServiceSpec| change(container(s).healthcheck.get_or_insert_default())
    };
    let at = "task.container.healthcheck";
    check(
        &format!("{at}.interval"),
        "too short",
        health(|h| {
            h.interval = Some(wkt::Duration {
                seconds: 0,
                nanos: 999_999,
            });
        }),
    );
    accepts(health(|h| h.interval = seconds(0)));
    check(
        &format!("{at}.start_period"),
        "negative",
        health(|h| h.start_period = seconds(-1)),
    );
    check(
        &format!("{at}.retries"),
        "negative",
        health(|h| h.retries = -1),
    );
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    for test in [&["NONE"][..], &["CMD", "a", "b"], &["CMD-SHELL", "a"], &[]] {
        accepts(|s| container(s).healthcheck.get_or_insert_default().test = words(test));
    }
    for test in [
        &["CMD"][..],
        &["curl", "x"],
        &["NONE", "x"],
        &["CMD-SHELL", "a", "b"],
    ] {
        check(&format!("{at}.test"), "no health check", |s| {
            container(s).healthcheck.get_or_insert_default().test = words(test);
        });
    }
}

#[test]
fn secrets_and_configs() {
    let secret = |id: &str, name: &str, file: &str| pb::SecretReference {
        secret_id: id.to_owned(),
        secret_name: name.to_owned(),
        target: Some(pb::secret_reference::Target::File(pb::FileTarget {
            name: file.to_owned(),
            uid: "0".to_owned(),
            gid: "0".to_owned(),
            mode: 0o444,
        })),
    };
    let at = "task.container.secrets";
    let given = |secrets: Vec<pb::SecretReference>| {
        move |s: &mut pb::ServiceSpec| container(s).secrets = secrets
    };
    accepts(given(vec![secret("1", "a", "a"), secret("1", "a", "b")]));
    check(
        &format!("{at}[0]"),
        "id and the name",
        given(vec![secret("", "a", "a")]),
    );
    check(
        &format!("{at}[0].file.name"),
        "is missing",
        given(vec![secret("1", "a", "")]),
    );
    let clash = vec![secret("1", "a", "x"), secret("2", "b", "x")];
    check(
        &format!("{at}[1].file.name"),
        "both \"a\" and \"b\"",
        given(clash),
    );
    let mut bare = secret("1", "a", "a");
    bare.target = None;
    check(&format!("{at}[0]"), "no target", given(vec![bare]));
    accepts(|s| {
        container(s).configs = vec![pb::ConfigReference {
            config_id: "1".to_owned(),
            config_name: "a".to_owned(),
            target: Some(pb::config_reference::Target::Runtime(pb::RuntimeTarget {})),
        }];
    });
}

#[test]
fn ports_of_the_endpoint() {
    use pb::port_config::PublishMode::{Host, Ingress};
    let ports = |ports: Vec<pb::PortConfig>| {
        move |s: &mut pb::ServiceSpec| s.endpoint.get_or_insert_default().ports = ports
    };
    let twice = vec![port(80, 8080, Ingress), port(81, 8080, Host)];
    check(
        "endpoint.ports[1]",
        "8080/tcp is published twice",
        ports(twice),
    );
    let mut udp = port(80, 8080, Ingress);
    udp.protocol = pb::port_config::Protocol::Udp.into();
    accepts(ports(vec![port(80, 8080, Ingress), udp]));
    accepts(ports(vec![port(80, 0, Ingress), port(81, 0, Ingress)]));
    check(
        "endpoint.ports[0].target_port",
        "is missing",
        ports(vec![port(0, 1, Host)]),
    );
    check(
        "endpoint.ports[0].published_port",
        "65535",
        ports(vec![port(1, 65536, Host)]),
    );
    let dnsrr = |s: &mut pb::ServiceSpec| {
        s.endpoint.as_mut().unwrap().mode = pb::endpoint_spec::ResolutionMode::Dnsrr.into();
    };
    accepts(dnsrr);
    check("endpoint.ports[0]", "DNSRR", |s| {
        dnsrr(s);
        ports(vec![port(80, 8080, Ingress)])(s);
    });
    check("endpoint.mode", "unknown value 5", |s| {
        s.endpoint.as_mut().unwrap().mode = 5
    });
    let host = ServiceSpec::try_from({
        let mut spec = web();
        ports(vec![
            port(1, 0, Host),
            port(2, 9, Ingress),
            port(3, 7, Host),
        ])(&mut spec);
        spec
    });
    assert_eq!(
        host.unwrap().task.host_ports,
        [HostPort {
            protocol: Protocol::Tcp,
            port: 7
        }]
    );
}

#[test]
fn updates_and_restarts() {
    type Change = fn(&mut pb::UpdateConfig);
    let update =
        |change: Change| move |s: &mut pb::ServiceSpec| change(s.update.get_or_insert_default());
    check(
        "update.delay",
        "negative",
        update(|u| u.delay = seconds(-1)),
    );
    check(
        "update.monitor",
        "negative",
        update(|u| u.monitor = seconds(-1)),
    );
    check(
        "update.max_failure_ratio",
        "0 to 1",
        update(|u| u.max_failure_ratio = 2.0),
    );
    check("update.order", "unknown value 2", update(|u| u.order = 2));
    check(
        "update.failure_action",
        "unknown value -1",
        update(|u| u.failure_action = -1),
    );
    check("rollback.failure_action", "nothing to roll back to", |s| {
        s.rollback.get_or_insert_default().failure_action =
            pb::update_config::FailureAction::Rollback.into();
    });
    check("update", "a job", |s| {
        s.mode = Some(pb::service_spec::Mode::GlobalJob(pb::GlobalJob {}));
        s.update = Some(Default::default());
    });
    let parsed = ServiceSpec::try_from({
        let mut spec = web();
        spec.update = Some(pb::UpdateConfig {
            max_failure_ratio: 0.25,
            ..Default::default()
        });
        spec
    });
    let parsed = parsed.unwrap().update;
    assert_eq!((parsed.parallelism, parsed.max_failure_ppm), (0, 250_000));
    assert_eq!(parsed.monitor, Duration::from_secs(5));

    let restart = |change: fn(&mut pb::RestartPolicy)| {
        move |s: &mut pb::ServiceSpec| {
            change(s.task.as_mut().unwrap().restart.get_or_insert_default());
        }
    };
    check(
        "task.restart.delay",
        "negative",
        restart(|r| r.delay = seconds(-1)),
    );
    check(
        "task.restart.window",
        "negative",
        restart(|r| r.window = seconds(-1)),
    );
    check(
        "task.restart.condition",
        "unknown value 3",
        restart(|r| r.condition = 3),
    );
    check(
        "task.restart.max_attempts",
        "negative",
        restart(|r| r.max_attempts = u64::MAX),
    );
}

#[test]
fn placements_and_networks() {
    let placement = |change: fn(&mut pb::Placement)| {
        move |s: &mut pb::ServiceSpec| {
            change(s.task.as_mut().unwrap().placement.get_or_insert_default());
        }
    };
    let at = "task.placement";
    check(
        &format!("{at}.constraints[1]"),
        "\"node.foo==x\"",
        placement(|p| {
            p.constraints.push("node.foo==x".to_owned());
        }),
    );
    check(
        &format!("{at}.preferences[0]"),
        "spread",
        placement(|p| {
            p.preferences = vec![Default::default()];
        }),
    );
    check(
        &format!("{at}.max_replicas"),
        "negative",
        placement(|p| p.max_replicas = u64::MAX),
    );
    let attached = |targets: &[&str]| {
        let networks = targets.iter().map(|t| pb::NetworkAttachmentConfig {
            target: (*t).to_owned(),
            ..Default::default()
        });
        networks.collect::<Vec<_>>()
    };
    accepts(|s| s.task.as_mut().unwrap().networks = attached(&["host"]));
    check("task.networks[0].target", "is missing", |s| {
        s.task.as_mut().unwrap().networks = attached(&[""]);
    });
    check("networks[1].target", "twice", |s| {
        s.networks = attached(&["a", "a"])
    });
}

#[test]
fn resources_are_checked_with_their_path() {
    check("task.resources.reservations.memory_bytes", "4 MiB", |s| {
        let resources = s.task.as_mut().unwrap().resources.get_or_insert_default();
        resources.reservations.get_or_insert_default().memory_bytes = 1024;
    });
}

#[test]
fn drivers_beyond_the_built_in_ones_are_plugins() {
    let with = |volume: &str, log: &str| {
        let mut spec = web();
        let driver = |name: &str| pb::Driver {
            name: name.to_owned(),
            ..Default::default()
        };
        container(&mut spec).mounts[1]
            .volume_options
            .get_or_insert_default()
            .driver_config = Some(driver(volume));
        spec.task.as_mut().unwrap().log_driver = Some(driver(log));
        ServiceSpec::try_from(spec).unwrap().task.plugins
    };
    for (volume, log) in [
        ("", ""),
        ("local", "none"),
        ("", "json-file"),
        ("", "local"),
    ] {
        assert_eq!(with(volume, log), [], "{volume} {log}");
    }
    let plugin = |kind: &str, name: &str| Plugin {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    assert_eq!(
        with("nfs", "loki"),
        [plugin("Log", "loki"), plugin("Volume", "nfs")]
    );
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
