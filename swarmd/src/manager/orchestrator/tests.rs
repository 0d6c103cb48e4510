//! Passes over small clusters, as [`World`] runs them: by subject in the modules, and all together here.

mod nodes;
mod replicas;
mod restarts;
mod updates;

use crate::manager::world::World;

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
