//! Slots: made, scaled, removed.

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
