//! Updates and rollbacks: their order, pace and failures.

use crate::manager::world::{World, check};

const ROLL: &str = "nodes a b / service web x4 (monitor=0) / go";

#[test]
fn an_update_replaces_all_tasks_one_at_a_time() {
    let mut world = World::new(ROLL);
    world.run("update web image=v2");
    assert_eq!(world.images("web"), "1:v2 2:v1 3:v1 4:v1");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
    world.run("step / step / step");
    assert_eq!(
        world.images("web").matches("v2").count(),
        2,
        "{}",
        world.show_all()
    );
    world.run("go");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v2 4:v2");
    assert_eq!(world.update_state("web"), "COMPLETED update completed");
}

#[test]
fn stop_first_stops_before_it_starts() {
    let mut world = World::new("nodes a / service web x1 (monitor=0) / go / update web image=v2");
    assert_eq!(
        world.show_all(),
        "web.1@a running>shutdown; web.1@a assigned>ready"
    );
    world.run("step");
    assert!(
        world.show_all().contains("shutdown>shutdown"),
        "{}",
        world.show_all()
    );
    world.run("go");
    assert_eq!(
        world.show_all(),
        "web.1@a shutdown>shutdown; web.1@a running"
    );
}

#[test]
fn start_first_keeps_the_old_one_until_the_new_one_runs() {
    let mut world =
        World::new("nodes a / service web x1 (monitor=0 order=start) / go / update web image=v2");
    assert_eq!(world.show_all(), "web.1@a running; web.1@a assigned");
    world.run("step");
    assert_eq!(
        world.show_all(),
        "web.1@a running>shutdown; web.1@a running"
    );
    world.run("go");
    assert_eq!(world.images("web"), "1:v2");
}

#[test]
fn parallelism_and_delay_pace_an_update() {
    let mut world = World::new(
        "nodes a / service web x4 (monitor=0 parallelism=2 pause=10) / go / update web image=v2 / go",
    );
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v1 4:v1");
    world.run("tick 9 / go");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v1 4:v1");
    world.run("tick 1 / go");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v2 4:v2");
    let world =
        World::new("nodes a / service web x4 (monitor=0 parallelism=0) / go / update web image=v2");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v2 4:v2");
}

#[test]
fn an_update_is_monitored_before_it_completes() {
    let mut world =
        World::new("nodes a / service web x2 (monitor=5) / go / update web image=v2 / go");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
    world.run("tick 4.9");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
    world.run("tick 0.1");
    assert_eq!(world.update_state("web"), "COMPLETED update completed");
}

#[test]
fn a_failing_update_pauses() {
    let mut world =
        World::new("nodes a / service web x3 (monitor=5) / go / update web image=v2 / step");
    let task = world.live("web.1").id;
    world.run("fail web.1");
    assert_eq!(
        world.update_state("web"),
        format!("PAUSED update paused due to failure or early termination of task {task}")
    );
    world.run("go / tick 20 / go");
    assert_eq!(world.images("web"), "1:v2 2:v1 3:v1");
    assert!(world.update_state("web").starts_with("PAUSED"));
    world.run("update web image=v3 monitor=0 / go");
    assert_eq!(world.images("web"), "1:v3 2:v3 3:v3");
}

#[test]
fn a_failure_after_the_monitor_time_is_no_failed_update() {
    let mut world =
        World::new("nodes a / service web x2 (monitor=5 pause=60) / go / update web image=v2 / go");
    world.run("tick 6 / fail web.1 / go");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
}

#[test]
fn an_update_may_continue_in_spite_of_failures() {
    let mut world = World::new(
        "nodes a / service web x3 (monitor=5 action=continue delay=1) / go / update web image=v2 / go",
    );
    for _ in 0..3 {
        world.run("fail web.1 / tick 1 / go");
    }
    world.run("tick 60 / go / tick 60 / go");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v2");
    assert_eq!(world.update_state("web"), "COMPLETED update completed");
}

#[test]
fn failures_are_tolerated_up_to_the_ratio() {
    let script =
        "nodes a / service web x4 (monitor=5 ratio=0.25 delay=1) / go / update web image=v2 / go";
    let mut world = World::new(script);
    world.run("fail web.1 / go");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
    world.run("fail web.2");
    assert!(
        world.update_state("web").starts_with("PAUSED"),
        "{}",
        world.update_state("web")
    );
}

#[test]
fn a_failing_update_rolls_back() {
    let script = "nodes a / service web x4 (monitor=5 ratio=0.4 action=rollback parallelism=4 delay=1) / go / update web image=v2 / go";
    let mut world = World::new(script);
    world.run("fail web.1");
    assert_eq!(world.update_state("web"), "UPDATING update in progress");
    world.run("fail web.2");
    assert!(
        world
            .update_state("web")
            .starts_with("ROLLBACK_STARTED update rolled back due to failure")
    );
    world.run("go");
    assert_eq!(world.images("web"), "1:v1 2:v1 3:v1 4:v1");
    world.run("tick 5");
    assert_eq!(
        world.update_state("web"),
        "ROLLBACK_COMPLETED rollback completed"
    );
}

#[test]
fn a_failing_rollback_pauses() {
    let script = "nodes a / service web x4 (monitor=5 action=rollback delay=1) / go / update web image=v2 / go";
    let mut world = World::new(&format!("{script} / fail web.1 / go / fail web.1"));
    assert!(
        world.update_state("web").starts_with("ROLLBACK_PAUSED"),
        "{}",
        world.update_state("web")
    );
    world.run("tick 100 / go");
    assert!(world.update_state("web").starts_with("ROLLBACK_PAUSED"));
}

#[test]
fn a_rollback_by_hand_is_rolled_out() {
    let mut world = World::new(&format!(
        "{ROLL} / update web image=v2 / go / rollback web / go"
    ));
    assert_eq!(world.images("web"), "1:v1 2:v1 3:v1 4:v1");
    assert_eq!(
        world.update_state("web"),
        "ROLLBACK_COMPLETED rollback completed"
    );
    // What it went back from is kept: the next one goes forward again.
    world.run("rollback web / go");
    assert_eq!(world.images("web"), "1:v2 2:v2 3:v2 4:v2");
    world.run("update web image=v3 / go");
    assert_eq!(world.images("web"), "1:v3 2:v3 3:v3 4:v3");
}

#[test]
fn a_newer_update_takes_over() {
    let mut world = World::new(ROLL);
    world.run("update web image=v2 / step / update web image=v3 / go");
    assert_eq!(world.images("web"), "1:v3 2:v3 3:v3 4:v3");
    assert_eq!(world.update_state("web"), "COMPLETED update completed");
}

#[test]
fn credentials_alone_replace_nothing_that_runs() {
    let mut world = World::new("nodes a / service web x2 (monitor=0) / go");
    let before = world.live("web.1").id;
    world.run("update web auth=secret / go");
    assert_eq!(world.live("web.1").id, before);
    assert_eq!(world.update_state("web"), "none");
    world.run(
        "service db x1 (restart=none monitor=0) / go / fail db.1 / update db auth=secret / go",
    );
    assert_eq!(
        world.live("db.1").spec_version,
        world.state.service_by_name("db").unwrap().spec_version
    );
}

#[test]
fn constraints_alone_move_only_what_violates_them() {
    let mut world = World::new("nodes a(z=1) b(z=2) / service web x2 (monitor=0) / go");
    let tasks = [world.live("web.1"), world.live("web.2")];
    let a = *world.state.nodes.keys().next().unwrap();
    world.run("update web constraint=node.labels.z==1 / go");
    assert_eq!(world.spread(), "a:2 b:0");
    for task in tasks.iter().filter(|t| t.node == Some(a)) {
        assert!(world.live(&format!("web.{}", task.slot)).id == task.id);
    }
    // What is kept goes by the new constraints from now on.
    world.run("set b z=1 / set a z=3 / go");
    assert_eq!(world.spread(), "a:0 b:2");
}

#[test]
fn a_task_that_cannot_be_placed_is_updated() {
    check(
        "nodes a / service web x1 (constraint=node.labels.z==1 monitor=0) / update web constraint=node.labels.z!=1 / go",
        "web.1@a running",
    );
    check(
        "nodes a / service web x1 (cpu=100 monitor=0) / update web cpu=1 / go",
        "web.1@a running",
    );
}

#[test]
fn slots_that_serve_nobody_are_updated_first() {
    let script = "nodes a b / service web x3 (max=1 monitor=0) / go / update web image=v2";
    let world = World::new(script);
    let unplaced = world.state.unplaced().count();
    assert_eq!(unplaced, 1);
    assert_eq!(world.images("web"), "1:v1 2:v1 3:v2");
}
