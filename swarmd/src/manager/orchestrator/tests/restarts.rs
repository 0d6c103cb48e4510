//! What ends: when it is tried again, and how long it is remembered.

use crate::manager::world::{World, check};

#[test]
fn what_fails_is_restarted_after_the_delay() {
    let script = "nodes a / service web x1 / go / fail web.1";
    let mut world = World::new(script);
    assert_eq!(world.show(), "web.1@a assigned>ready");
    world.run("go");
    assert_eq!(world.show(), "web.1@a ready>ready");
    world.run("tick 4.9");
    assert_eq!(world.show(), "web.1@a ready>ready");
    world.run("tick 0.1 / go");
    assert_eq!(world.show(), "web.1@a running");
    assert_eq!(world.show_all(), "web.1@a failed>shutdown; web.1@a running");
}

#[test]
fn what_fails_while_it_is_held_waits_for_its_own_delay() {
    let script = "nodes a / service web x1 / go / fail web.1";
    let mut world = World::new(script);
    world.run("reject web.1");
    assert_eq!(
        world.show_all(),
        "web.1@a failed>shutdown; web.1@a rejected>ready"
    );
    world.run("tick 4.9");
    assert_eq!(world.state.tasks.len(), 2);
    world.run("tick 0.1");
    assert_eq!(world.state.tasks.len(), 3);
    world.run("go");
    assert_eq!(world.show(), "web.1@a ready>ready");
    world.run("tick 5 / go");
    assert_eq!(world.show(), "web.1@a running");
}

#[test]
fn what_is_rejected_at_once_is_prepared_again_at_once_and_then_after_the_delay() {
    // As in SwarmKit: the replacement is prepared while it is held, and what is held restarts when
    // its own delay is over.
    let mut world = World::new("nodes a / service web x1 / reject web.1");
    assert_eq!(world.show(), "web.1@a assigned>ready");
    // Up to the length of the history.
    for tasks in 2..5 {
        world.run("reject web.1 / tick 4.9");
        assert_eq!(world.state.tasks.len(), tasks);
        world.run("tick 0.1");
        assert_eq!(world.state.tasks.len(), tasks + 1);
    }
}

#[test]
fn the_restart_condition_decides() {
    let go = |condition: &str, end: &str| {
        let script = format!(
            "nodes a / service web x1 (restart={condition} delay=0) / go / {end} web.1 / go"
        );
        World::new(&script).show()
    };
    assert_eq!(go("any", "fail"), "web.1@a running");
    assert_eq!(go("any", "complete"), "web.1@a running");
    assert_eq!(go("failure", "fail"), "web.1@a running");
    assert_eq!(go("failure", "reject"), "web.1@a running");
    assert_eq!(go("failure", "complete"), "");
    assert_eq!(go("none", "fail"), "");
    assert_eq!(go("none", "complete"), "");
}

#[test]
fn what_is_not_restarted_comes_back_with_a_new_spec_only() {
    let script = "nodes a / service web x2 (restart=none monitor=0) / go / complete web.1";
    check(&format!("{script} / scale web 2"), "web.2@a running");
    check(
        &format!("{script} / scale web 3 / go"),
        "web.2@a running; web.3@a running",
    );
    let world = World::new(&format!("{script} / update web image=v2 / go"));
    assert_eq!(world.show(), "web.1@a running; web.2@a running");
    assert_eq!(world.images("web"), "1:v2 2:v2");
}

#[test]
fn attempts_are_limited_for_a_slot_and_spec() {
    let script = "nodes a / service web x2 (attempts=1 delay=0) / go / fail web.1 / go";
    check(script, "web.1@a running; web.2@a running");
    let script = format!("{script} / fail web.1 / go");
    check(&script, "web.2@a running");
    check(&format!("{script} / fail web.2 / go"), "web.2@a running");
    let script = format!("{script} / update web image=v2 monitor=0 / go");
    check(&script, "web.1@a running; web.2@a running");
    check(
        &format!("{script} / fail web.1 / go"),
        "web.1@a running; web.2@a running",
    );
    check(
        &format!("{script} / fail web.1 / go / fail web.1 / go"),
        "web.2@a running",
    );
}

#[test]
fn attempts_count_within_the_window() {
    let script = "nodes a / service web x1 (attempts=1 delay=0 window=10) / go / fail web.1 / go";
    check(
        &format!("{script} / tick 9 / fail web.1 / go / tick 100"),
        "",
    );
    check(
        &format!("{script} / tick 10 / fail web.1 / go"),
        "web.1@a running",
    );
}

#[test]
fn attempts_are_counted_in_spite_of_a_short_history() {
    let script = "history 0 / nodes a / service web x1 (attempts=3 delay=0) / go";
    let fail = " / fail web.1 / go";
    check(&format!("{script}{fail}{fail}{fail}"), "web.1@a running");
    check(&format!("{script}{fail}{fail}{fail}{fail} / tick 1000"), "");
    check(
        "history 0 / nodes a / service web x1 (restart=none) / go / fail web.1 / tick 9",
        "",
    );
}

#[test]
fn history_is_kept_so_long() {
    let fail = " / fail web.1 / go".repeat(9);
    let kept = |limit: i64| {
        let script = format!("history {limit} / nodes a / service web x1 (delay=0) / go{fail}");
        World::new(&script).state.tasks.len()
    };
    assert_eq!(kept(-1), 10);
    assert_eq!(kept(5), 5);
    assert_eq!(kept(2), 2);
    assert_eq!(kept(0), 1);
    // Without a cluster object, as with one that sets nothing.
    let script = format!("nodes a / service web x1 (delay=0) / go{fail}");
    assert_eq!(World::new(&script).state.tasks.len(), 5);
}

#[test]
fn scaled_down_slots_leave_no_history() {
    let script = "nodes a / service web x2 (delay=0) / go / fail web.2 / go / scale web 1";
    let mut world = World::new(script);
    assert_eq!(world.show_all(), "web.1@a running; web.2@a running>remove");
    world.run("go");
    assert_eq!(world.show_all(), "web.1@a running");
}
