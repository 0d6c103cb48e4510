//! What a spec says of its tasks beside their containers: where, how many at once, with which ports.

use super::*;

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
