use crate::manager::world::{World, check};

#[test]
fn a_service_gets_its_replicas_in_slots_from_one() {
    check(
        "nodes a / service web x2",
        "web.1@a assigned; web.2@a assigned",
    );
    check(
        "nodes a / service web x2 / go",
        "web.1@a running; web.2@a running",
    );
    check(
        "nodes a / service web x2 / go / scale web 3",
        "web.1@a running; web.2@a running; web.3@a assigned",
    );
    check(
        "nodes a / service web x3 / go / scale web 1",
        "web.1@a running",
    );
    check("nodes a / service web x0", "");
}

#[test]
fn many_replicas_are_one_change() {
    let world = World::new("nodes a b / service web x5000");
    assert_eq!(world.spread(), "a:2500 b:2500");
    // Three entries for the nodes each, one for the service, one for all tasks.
    assert_eq!(world.state.version, 2 * 4 + 2);
}

#[test]
fn scaling_leaves_the_others_alone() {
    let mut world = World::new("nodes a / service web x2 / go");
    let before = world.live("web.1");
    world.run("scale web 1 / scale web 4 / go");
    assert_eq!(world.live("web.1"), before);
    assert_eq!(world.update_state("web"), "none");
}

#[test]
fn a_deleted_task_comes_back() {
    check(
        "nodes a / service web x2 / go / delete web.2",
        "web.1@a running; web.2@a assigned",
    );
    check(
        "nodes a / service web x1 (restart=none) / go / delete web.1",
        "web.1@a assigned",
    );
}

#[test]
fn a_removed_service_leaves_when_its_tasks_have_stopped() {
    let mut world = World::new("nodes a / service web x2 / go / rm web");
    assert_eq!(
        world.show_all(),
        "web.1@a running>remove; web.2@a running>remove"
    );
    world.run("go");
    assert_eq!(world.show_all(), "");
    assert!(world.state.services.is_empty());
}

#[test]
fn unplaced_tasks_of_a_removed_service_go_at_once() {
    let world = World::new("nodes a(drain) / service web x2 / rm web");
    assert_eq!(world.show_all(), "");
    assert!(world.state.services.is_empty());
}

#[test]
fn scaling_down_drops_what_serves_least() {
    // Unplaced first.
    let mut world = World::new("nodes a b c / service web x7 (max=2) / go");
    assert!(world.show().contains("web.7@- pending"), "{}", world.show());
    world.run("scale web 6 / go");
    assert_eq!(world.spread(), "a:2 b:2 c:2");
    assert!(!world.show().contains("web.7"), "{}", world.show());
    // Then evenly over nodes.
    let mut world = World::new("nodes a b c / service web x6 / go / scale web 3 / go");
    assert_eq!(world.spread(), "a:1 b:1 c:1");
    // Running ones are kept.
    world.run("scale web 4 / scale web 3");
    assert!(!world.show().contains("assigned"), "{}", world.show());
}

#[test]
fn lower_slots_are_kept_and_taken_first() {
    let mut world = World::new("nodes a / service web x5 / go / scale web 3 / go");
    assert_eq!(
        world.show(),
        "web.1@a running; web.2@a running; web.3@a running"
    );
    world.run("scale web 4 / go");
    assert_eq!(world.live("web.4").slot, 4);
}

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

#[test]
fn every_step_of_a_busy_life_settles() {
    // Seeds give different draws; every command checks that a full pass finds nothing more.
    for seed in 0..20 {
        let mut world = World::seeded(
            "nodes a b c(cpu=2) / service web x5 (cpu=1 delay=1 monitor=2 action=rollback) / service db x2 (max=1 port=5432 monitor=0)",
            seed,
        );
        world.run(
            "go / may-fail web.2 / drain a / step / update web image=v2 / step / down b / tick 1 / go",
        );
        world.run("may-fail web.1 / tick 3 / scale web 7 / activate a / step / up b / step / rmnode c / go / tick 9 / go");
        world.run("update db image=v2 / step / rm web / go / tick 70 / go");
        assert_eq!(world.images("db"), "1:v2 2:v2");
    }
}

#[test]
fn what_is_in_the_way_is_told_anew_when_a_place_is_taken() {
    let script = "nodes a(cpu=1) / service x x1 (constraint=node.labels.zone==q cpu=1) \
                  / service y x1 (cpu=1)";
    let world = World::new(script);
    assert_eq!(
        world.show(),
        "x.1@- pending (no suitable node (insufficient resources on 1 node)); y.1@a assigned"
    );
}

#[test]
fn a_spec_gone_back_to_is_enforced() {
    let script = "nodes a(zone=x) b(zone=y) / service web x1 (constraint=node.labels.zone==x) / go \
                  / update web constraint=node.labels.zone!=q / set a zone=z";
    let mut world = World::new(script);
    assert_eq!(world.show(), "web.1@a running", "the current spec suits");
    world.run("set b zone=x / update web constraint=node.labels.zone==x");
    assert_eq!(world.show(), "web.1@b assigned");
}

mod any_order_of_events {
    use proptest::prelude::*;

    use super::World;

    /// One thing that happens to a small cluster.
    fn event() -> impl Strategy<Value = String> {
        let node = || proptest::sample::select(vec!["a", "b", "c", "d"]);
        let service = || proptest::sample::select(vec!["web", "db"]);
        let slot = || 1..4_u64;
        let node_verb =
            proptest::sample::select(vec!["drain", "pause", "activate", "down", "unknown", "up"]);
        let change = proptest::sample::select(vec![
            "image=v1",
            "image=v2",
            "image=v3 cpu=1",
            "cpu=2",
            "auth=x",
            "constraint=node.labels.z==1",
            "constraint=node.labels.z!=1",
            "max=1",
            "max=0",
            "order=start",
            "restart=none",
            "restart=failure attempts=1",
            "restart=any attempts=2 window=5",
            "parallelism=2 pause=1",
            "monitor=3 action=rollback",
            "monitor=1 action=continue ratio=0.3",
            "port=80",
            "spread=node.labels.z",
            "generic=gpu:1",
        ]);
        let facts = proptest::sample::select(vec![
            "z=1",
            "z=2",
            "cpu=1",
            "cpu=2 z=1",
            "cpu=4",
            "generic=gpu:2",
            "generic=gpu:x,gpu:y",
            "",
        ]);
        prop_oneof![
            2 => (node_verb, node()).prop_map(|(verb, node)| format!("{verb} {node}")),
            2 => (service(), slot()).prop_map(|(s, n)| format!("may-fail {s}.{n}")),
            3 => Just("step".to_owned()),
            2 => (1..8_u32).prop_map(|s| format!("tick {s}")),
            2 => (service(), 0..5_u64).prop_map(|(s, n)| format!("scale {s} {n}")),
            2 => (service(), change).prop_map(|(s, c)| format!("update {s} {c}")),
            1 => (node(), facts).prop_map(|(n, f)| format!("set {n} {f}")),
            1 => (service(), slot()).prop_map(|(s, n)| format!("may-delete {s}.{n}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// After each event: passes come to an end, a full pass finds nothing more, nothing is
        /// promised twice. And once the trouble is over, every service has what it asks for.
        #[test]
        fn settles_and_converges(events in proptest::collection::vec(event(), 1..40), seed: u64) {
            let start = "nodes a(z=1) b(z=1) c(z=2 cpu=2) d / service web x3 (cpu=1 delay=1 monitor=1) / service db x2 (monitor=0)";
            let mut world = World::seeded(start, seed);
            for event in &events {
                world.run(event);
            }
            let calm = "activate a / activate b / activate c / activate d / up a / up b / up c / up d \
                        / set a z=1 / set b z=2 / set c z=1 / set d z=2 / go / tick 70 / go";
            world.run(calm);
            let anew = "nogeneric noports order=stop restart=any attempts=0 cpu=1 max=0 constraint=node.labels.z!=9 monitor=0 image=v9 parallelism=0 delay=1";
            world.run(&format!("scale web 3 / update web {anew} / go / tick 70 / go / scale db 2 / update db {anew} / go / tick 70 / go"));
            for (service, replicas) in [("web", 3), ("db", 2)] {
                let shown = world.show_all();
                let images = world.images(service);
                let images: Vec<&str> = images.split(' ').filter_map(|i| i.split(':').nth(1)).collect();
                prop_assert_eq!(images, vec!["v9"; replicas], "{}", shown);
            }
        }
    }
}
