//! Tasks of nodes that are lost, drained, or no longer suit them.

use crate::manager::world::{World, check};

#[test]
fn tasks_move_away_from_lost_nodes() {
    let script = "nodes a b(pause) / service web x1 / go / activate b";
    check(&format!("{script} / down a / go"), "web.1@b running");
    check(&format!("{script} / rmnode a / go"), "web.1@b running");
    check(&format!("{script} / drain a"), "web.1@b assigned>ready");
    check(&format!("{script} / drain a / go"), "web.1@b running");
    check(&format!("{script} / unknown a / go"), "web.1@a running");
    check(&format!("{script} / pause a / go"), "web.1@a running");
}

#[test]
fn a_move_is_not_a_restart() {
    for policy in ["restart=none", "attempts=1 delay=0"] {
        let script = format!("nodes a b(pause) / service web x1 ({policy}) / go / activate b");
        check(
            &format!("{script} / drain a / go / activate a / drain b / go"),
            "web.1@a running",
        );
        check(&format!("{script} / down a / go"), "web.1@b running");
    }
}

#[test]
fn a_drained_task_is_waited_for_a_minute() {
    let mut world = World::new("nodes a b(pause) / service web x1 / go / activate b / drain a");
    // The agent of b is ready at once, that of a does not stop its task.
    let on_b = world.live("web.1");
    assert_eq!(
        on_b.after(),
        Some(
            world
                .state
                .node_tasks(world.state.nodes.keys().next().copied().unwrap())
                .next()
                .unwrap()
                .id
        )
    );
    world.run("tick 59");
    assert_eq!(world.show(), "web.1@b assigned>ready");
    world.run("tick 1.1");
    assert_eq!(world.show(), "web.1@b assigned");
}

#[test]
fn a_node_that_goes_down_is_not_waited_for() {
    let mut world = World::new("nodes a b(pause) / service web x1 / go / activate b / drain a");
    world.run("down a");
    assert_eq!(world.show(), "web.1@b assigned");
}

#[test]
fn what_waits_for_another_goes_on_waiting_when_it_moves() {
    let script = "nodes a b(pause) c(pause) / service web x1 / go / activate b / drain a";
    for lost in [
        "activate c / down b",
        "activate c / rmnode b",
        "activate c / drain b",
    ] {
        let mut world = World::new(script);
        let first = world.live("web.1").after();
        world.run(lost);
        let moved = world.live("web.1");
        assert_eq!(world.show(), "web.1@c assigned>ready", "{lost}");
        assert_eq!((first.is_some(), moved.after()), (true, first), "{lost}");
    }
}

#[test]
fn tasks_of_a_node_that_stays_down_are_given_up_after_a_day() {
    let mut world = World::new("nodes a / service web x1 / go / down a");
    assert_eq!(
        world.show_all().split("; ").next(),
        Some("web.1@a running>shutdown")
    );
    world.run("tick 86399");
    assert!(world.show_all().contains("web.1@a running>shutdown"));
    world.run("tick 1");
    assert!(
        world.show_all().contains("web.1@a orphaned>shutdown"),
        "{}",
        world.show_all()
    );
}

#[test]
fn the_enforcer_evicts_what_its_node_no_longer_suits() {
    let script = "nodes a(z=1) b(z=1 pause) / service web x1 (constraint=node.labels.z==1 restart=none) / go / activate b";
    let world = World::new(&format!("{script} / set a z=2 / go"));
    assert_eq!(
        world.show_all(),
        "web.1@a rejected>shutdown (assigned node no longer meets constraints); web.1@b running"
    );
    check(
        &format!("{script} / pause a / set a z=2 / go"),
        "web.1@a running",
    );
}

#[test]
fn the_enforcer_evicts_the_youngest_that_have_no_room() {
    let script = "nodes a(cpu=3) / service web x3 (cpu=1 delay=0) / go / nodes b";
    let mut world = World::new(&format!("{script} / set a cpu=2 / go"));
    assert_eq!(world.spread(), "a:2 b:1");
    world.run("set a cpu=0 / go");
    assert_eq!(world.spread(), "a:0 b:3");
}

#[test]
fn the_enforcer_watches_generic_resources() {
    let script =
        "nodes a(generic=gpu:x,gpu:y) b(generic=gpu:z) / service web x3 (generic=gpu:1) / go";
    let world = World::new(&format!("{script} / set a generic=gpu:y / go"));
    assert_eq!(world.spread(), "a:1 b:1");
    let world = World::new(&format!("{script} / set b generic=gpu:5 / go"));
    assert_eq!(world.spread(), "a:2 b:1");
}
