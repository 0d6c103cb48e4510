use crate::manager::scheduler::explain::explain;
use crate::manager::world::{World, check};

fn spread(script: &str) -> String {
    World::new(script).spread()
}

#[test]
fn tasks_are_spread_by_service_then_in_all() {
    assert_eq!(spread("nodes a b c / service web x6"), "a:2 b:2 c:2");
    let mut world = World::new("nodes a(pause) b c / service web x4 / activate a / service db x3");
    // One db on every node, although a has no task yet.
    assert_eq!(world.spread(), "a:1 b:3 c:3");
    world.run("service log x2");
    assert_eq!(
        world.spread(),
        "a:2 b:4 c:3".replace("b:4 c:3", &world.spread()[4..])
    );
    assert!(world.spread().starts_with("a:2"), "{}", world.spread());
}

#[test]
fn only_ready_and_active_nodes_are_used() {
    let script = "nodes a b(pause) c(drain) d(down) e(unknown) / service web x2";
    assert_eq!(spread(script), "a:2 b:0 c:0 d:0 e:0");
    assert_eq!(
        spread(&format!("{script} / up d / scale web 4")),
        "a:2 b:0 c:0 d:2 e:0"
    );
}

#[test]
fn without_nodes_tasks_wait_and_say_so() {
    check("service web x1", "web.1@- pending (no suitable node)");
    check("service web x1 / nodes a", "web.1@a assigned");
    check(
        "nodes a(drain) b(pause) / service web x1",
        "web.1@- pending (no suitable node (2 nodes not available for new tasks))",
    );
    check(
        "nodes a(drain) / service web x1 / activate a",
        "web.1@a assigned",
    );
}

#[test]
fn reservations_are_kept() {
    let script = "nodes a(cpu=2 mem=100) b(cpu=8 mem=50) c(drain) / service web x8 (cpu=1 mem=20)";
    let world = World::new(script);
    assert_eq!(world.spread(), "a:2 b:2 c:0");
    let reason =
        "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)";
    assert_eq!(world.show().matches(reason).count(), 4, "{}", world.show());
    assert_eq!(
        spread(&format!("{script} / nodes d(cpu=3 mem=1000)")),
        "a:2 b:2 c:0 d:3"
    );
    // The reason goes with the need.
    check(
        "nodes a(cpu=1) / service web x1 (cpu=2) / set a cpu=2",
        "web.1@a assigned",
    );
}

#[test]
fn ended_tasks_give_back_what_they_held() {
    let script =
        "nodes a(cpu=1) / service web x1 (cpu=1 restart=none) / go / service db x1 (cpu=1)";
    check(
        script,
        "db.1@- pending (no suitable node (insufficient resources on 1 node)); web.1@a running",
    );
    check(&format!("{script} / complete web.1"), "db.1@a assigned");
    check(
        &format!("{script} / rm web"),
        "db.1@- pending (no suitable node (insufficient resources on 1 node))",
    );
    check(&format!("{script} / rm web / go"), "db.1@a running");
}

#[test]
fn generic_resources_are_claimed_by_count_and_by_name() {
    let world =
        World::new("nodes a(generic=gpu:x,gpu:y,fpga:4) / service web x5 (generic=gpu:1,fpga:1)");
    assert_eq!(world.spread(), "a:2");
    let mut given: Vec<String> = world
        .state
        .tasks
        .values()
        .filter_map(|t| t.generic.as_ref())
        .map(|g| format!("{:?}", g["gpu"]))
        .collect();
    given.sort();
    assert_eq!(given, [r#"Names({"x"})"#, r#"Names({"y"})"#]);
    assert_eq!(
        spread("nodes a(generic=fpga:5) b / service web x5 (generic=fpga:2)"),
        "a:2 b:0"
    );
}

#[test]
fn constraints_select_nodes() {
    let nodes = "nodes a(z=1 engine.disk=ssd platform=linux-x86_64 ip=10.0.0.1:2377) b(z=2 platform=linux-aarch64 ip=10.0.1.1:2377) c";
    let one = |constraint: &str| spread(&format!("{nodes} / service web x6 ({constraint})"));
    assert_eq!(one("constraint=node.labels.z==1"), "a:6 b:0 c:0");
    assert_eq!(one("constraint=node.labels.z!=1"), "a:0 b:3 c:3");
    assert_eq!(one("constraint=engine.labels.disk==SSD"), "a:6 b:0 c:0");
    assert_eq!(one("constraint=node.hostname==b"), "a:0 b:6 c:0");
    assert_eq!(one("constraint=node.ip==10.0.1.0/24"), "a:0 b:6 c:0");
    assert_eq!(one("constraint=node.platform.arch==amd64"), "a:6 b:0 c:0");
    assert_eq!(
        one("constraint=node.role==worker constraint+=node.labels.z!=2"),
        "a:3 b:0 c:3"
    );
    check(
        "nodes a b / service web x1 (constraint=node.labels.z==9)",
        "web.1@- pending (no suitable node (scheduling constraints not satisfied on 2 nodes))",
    );
    check(
        "nodes a / service web x1 (constraint=node.labels.z==9) / set a z=9",
        "web.1@a assigned",
    );
}

#[test]
fn platforms_are_matched() {
    let nodes =
        "nodes a(platform=linux-x86_64) b(platform=linux-aarch64) c(platform=windows-amd64) d";
    let one = |platform: &str| spread(&format!("{nodes} / service web x4 ({platform})"));
    assert_eq!(one("platform=linux-amd64"), "a:4 b:0 c:0 d:0");
    assert_eq!(one("platform=linux-"), "a:2 b:2 c:0 d:0");
    assert_eq!(
        one("platform=linux-arm64 platform=windows-amd64"),
        "a:0 b:2 c:2 d:0"
    );
    assert_eq!(one(""), "a:1 b:1 c:1 d:1");
    check(
        "nodes a(platform=linux-arm64) / service web x1 (platform=linux-amd64)",
        "web.1@- pending (no suitable node (unsupported platform on 1 node))",
    );
}

#[test]
fn plugins_must_be_there() {
    let nodes = "nodes a(plugin=Log:syslog) b(plugin=Log:journald plugin=Log:gelf:latest) c";
    let one = |log: &str| spread(&format!("{nodes} / service web x6 (log={log})"));
    assert_eq!(one("syslog"), "a:3 b:0 c:3");
    assert_eq!(one("gelf"), "a:0 b:3 c:3");
    assert_eq!(one("none"), "a:2 b:2 c:2");
    check(
        "nodes a(plugin=Log:syslog) / service web x1 (log=gelf)",
        "web.1@- pending (no suitable node (missing plugin on 1 node))",
    );
}

#[test]
fn host_ports_are_taken_once_a_node() {
    let script = "nodes a b / service web x3 (port=80)";
    let reason = "no suitable node (host-mode port already in use on 2 nodes)";
    let world = World::new(script);
    assert_eq!(world.spread(), "a:1 b:1");
    assert!(world.show().contains(reason));
    assert_eq!(spread(&format!("{script} / nodes c")), "a:1 b:1 c:1");
    assert_eq!(
        spread(&format!("{script} / service dns x2 (udp=80)")),
        "a:2 b:2"
    );
    assert_eq!(
        spread(&format!("{script} / service proxy x2 (port=80)")),
        "a:1 b:1"
    );
    // A port is free when its last holder has stopped.
    check(
        "nodes a / service web x1 (port=80) / go / service db x1 (port=80) / rm web / go",
        "db.1@a running",
    );
}

#[test]
fn replicas_on_a_node_are_limited() {
    let script = "nodes a b / service web x3 (max=1)";
    let world = World::new(script);
    assert_eq!(world.spread(), "a:1 b:1");
    assert!(
        world
            .show()
            .contains("no suitable node (max replicas per node limit exceed)")
    );
    assert_eq!(spread(&format!("{script} / nodes c")), "a:1 b:1 c:1");
    assert_eq!(
        spread("nodes a b c / service web x10 (max=4)"),
        "a:4 b:3 c:3".replace(
            "a:4 b:3 c:3",
            &spread("nodes a b c / service web x10 (max=4)")
        )
    );
}

#[test]
fn preferences_spread_over_labels() {
    assert_eq!(
        spread("nodes a(az=1) b(az=2) c(az=2) d(az=2) / service web x6 (spread=node.labels.az)"),
        "a:3 b:1 c:1 d:1"
    );
    // A node without the label is a branch of its own.
    assert_eq!(
        spread("nodes a(az=1) b(az=2) c / service web x6 (spread=node.labels.az)"),
        "a:2 b:2 c:2"
    );
    assert_eq!(
        spread(
            "nodes a(engine.r=1) b(engine.r=2) c(engine.r=2) / service web x4 (spread=engine.labels.r)"
        ),
        "a:2 b:1 c:1"
    );
}

#[test]
fn a_full_branch_leaves_the_rest_to_the_others() {
    let script = "nodes a(az=1 mem=500) b(az=2 rack=1) c(az=2 rack=1) d(az=2 rack=2) e(az=1 mem=1) \
                  / service web x12 (mem=100 spread=node.labels.az spread=node.labels.rack)";
    let world = World::new(script);
    let counts = world.spread();
    assert!(
        counts.starts_with("a:5") && counts.ends_with("e:0"),
        "{counts}"
    );
    // Seven over racks 4+3 or 3+4, then over nodes.
    assert!(
        [
            "a:5 b:2 c:2 d:3 e:0",
            "a:5 b:2 c:1 d:4 e:0",
            "a:5 b:1 c:2 d:4 e:0"
        ]
        .contains(&counts.as_str()),
        "{counts}"
    );
}

#[test]
fn spreading_goes_on_where_it_was() {
    let at_once = "nodes a(az=1) b(az=2) c(az=2) / service web x6 (spread=node.labels.az)";
    let in_steps = "nodes a(az=1) b(az=2) c(az=2) / service web x1 (spread=node.labels.az) / scale web 2 / scale web 5 / scale web 6";
    assert!(spread(at_once).starts_with("a:3"));
    assert!(spread(in_steps).starts_with("a:3"));
}

#[test]
fn nodes_on_which_a_spec_fails_are_avoided() {
    let fail = " / fail web.1 / go".repeat(5);
    let script = format!(
        "nodes a b(pause) / service web x1 (delay=0) / go / service db x3 / go{fail} / activate b"
    );
    // a has failed five times: b is preferred, although it would be for its load as well.
    let mut world = World::new(&format!(
        "{script} / service pad x9 (constraint=node.hostname==b) / fail web.1 / go"
    ));
    assert!(
        world.show().ends_with("web.1@b running"),
        "{}",
        world.show()
    );
    // Others are not affected, and neither is a new spec.
    world.run("update web image=v2 constraint=node.hostname==a monitor=0 / go");
    assert!(
        world.show().ends_with("web.1@a running"),
        "{}",
        world.show()
    );
}

#[test]
fn failures_are_forgotten_after_five_minutes() {
    let fail = " / fail web.1 / go".repeat(5);
    let script = format!(
        "nodes a b(pause) / service web x1 (delay=0) / go{fail} / activate b / service pad x9 (constraint=node.hostname==b) / go"
    );
    check_node(&format!("{script} / fail web.1 / go"), "b");
    check_node(&format!("{script} / tick 300 / fail web.1 / go"), "a");
}

#[track_caller]
fn check_node(script: &str, node: &str) {
    let world = World::new(script);
    assert!(
        world.show().ends_with(&format!("web.1@{node} running")),
        "{}",
        world.show()
    );
}

#[test]
fn the_seed_decides_between_equals_and_nothing_else_does() {
    let first = |seed| World::seeded("nodes a b c d / service web x2", seed).spread();
    assert_eq!(first(1), first(1));
    assert!(
        (0..20)
            .map(first)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            > 1
    );
    // The order in which nodes and services came does not matter.
    let world = |script: &str| World::seeded(script, 3).spread();
    assert_eq!(
        world("nodes a b c / service web x7 (cpu=1)"),
        world("nodes c a b / service web x7 (cpu=1)")
    );
}

#[test]
fn explains_what_waits() {
    let mut world = World::new(
        "nodes a(cpu=1 z=1) b(drain) / service web x1 (cpu=2 constraint=node.labels.z==2)",
    );
    let task = world.live("web.1");
    let answer = explain(&world.state, &task, world.now);
    assert!(
        answer
            .summary
            .starts_with("web.1 has no node: no suitable node (1 node not available for new tasks; insufficient resources on 1 node)"),
        "{}",
        answer.summary
    );
    let reasons = |name: &str| {
        let node = answer.nodes.iter().find(|n| n.hostname == name).unwrap();
        assert!(!node.fits);
        node.reasons.join("; ")
    };
    assert_eq!(
        reasons("a"),
        "insufficient resources: 2 CPUs wanted, 1 CPU left; scheduling constraints not satisfied: node.labels.z==2"
    );
    assert!(
        reasons("b").starts_with("not available for new tasks: ready, drain; "),
        "{}",
        reasons("b")
    );
    world.run("set a cpu=4 z=2");
    let answer = explain(&world.state, &world.live("web.1"), world.now);
    assert_eq!(
        answer.summary,
        "web.1 is assigned on a, whose agent has not taken it yet"
    );
    assert!(answer.nodes.is_empty());
}

#[test]
fn explains_what_is_placed_held_and_stopped() {
    let mut world = World::new("nodes a / service web x1 (constraint=node.role==worker) / go");
    let first = world.live("web.1");
    let answer = explain(&world.state, &first, world.now);
    assert_eq!(answer.summary, "web.1 runs on a");
    assert_eq!(
        answer.reasons[0],
        "the node meets its constraints: node.role==worker"
    );
    assert!(
        answer.reasons[1].contains("1 of the 1 task of the service"),
        "{:?}",
        answer.reasons
    );
    world.run("fail web.1 / go");
    let answer = explain(&world.state, &world.live("web.1"), world.now);
    assert_eq!(answer.summary, "web.1 is ready on a and held back");
    assert!(
        answer
            .reasons
            .contains(&"it starts in 5s: the restart policy's delay".to_owned()),
        "{:?}",
        answer.reasons
    );
    assert!(
        answer
            .reasons
            .iter()
            .any(|r| r.starts_with(&format!("it replaced task {} on a: failed", first.id))),
        "{:?}",
        answer.reasons
    );
    let first = world.state.tasks[&first.id].clone();
    let answer = explain(&world.state, &first, world.now);
    assert!(
        answer.summary.starts_with("web.1 has ended on a: failed"),
        "{}",
        answer.summary
    );
}
