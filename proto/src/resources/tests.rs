use proptest::prelude::*;

use super::*;

fn names(list: &[&str]) -> Generic {
    Generic::Names(list.iter().map(|n| (*n).to_owned()).collect())
}

#[test]
fn reads_the_flag_s_text() {
    let kinds = parse_generic("fpga=2, gpu=UUID2,gpu=UUID1").unwrap();
    assert_eq!(kinds.get("fpga"), Some(&Generic::Count(2)));
    assert_eq!(kinds.get("gpu"), Some(&names(&["UUID1", "UUID2"])));
    assert!(parse_generic("").unwrap().is_empty());
    assert_eq!(generic_from_wire(&generic_to_wire(&kinds)).unwrap(), kinds);
    for (text, says) in [
        ("gpu", "\"gpu\" is not a generic resource"),
        ("=1", "KIND=COUNT"),
        ("gpu=", "KIND=COUNT"),
        ("gpu=1,", "KIND=COUNT"),
        ("gpu=a=b", "KIND=COUNT"),
        ("gpu=-1", "negative"),
        ("gpu=1,gpu=2", "twice"),
        ("gpu=a,gpu=a", "twice"),
        ("gpu=1,gpu=a", "a count and also names"),
        ("gpu=a,gpu=1", "a count and also names"),
    ] {
        let error = parse_generic(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_task_gets_the_lowest_names() {
    let mut node = Resources {
        nano_cpus: 2_000_000_000,
        memory_bytes: 1 << 30,
        generic: parse_generic("fpga=2,gpu=c,gpu=a,gpu=b").unwrap(),
    };
    let before = node.clone();
    let asked = Reservations {
        nano_cpus: 1_500_000_000,
        memory_bytes: 1 << 29,
        generic: [
            ("gpu".to_owned(), 2),
            ("fpga".to_owned(), 2),
            ("none".to_owned(), 0),
        ]
        .into(),
    };
    let assigned = node.claim(&asked).unwrap();
    assert_eq!(assigned.get("gpu"), Some(&names(&["a", "b"])));
    assert_eq!(assigned.get("fpga"), Some(&Generic::Count(2)));
    assert_eq!(assigned.len(), 2, "what is not asked for is not assigned");
    assert_eq!(node.generic.get("gpu"), Some(&names(&["c"])));
    assert!(!node.fits(&asked) && node.claim(&asked).is_none());
    let mut rebuilt = before.clone();
    rebuilt.deduct(&asked, &assigned);
    assert_eq!(rebuilt, node);
    node.release(&asked, &assigned);
    assert_eq!(node, before);
}

#[test]
fn a_shrunk_node_fits_what_asks_for_nothing_of_what_lacks() {
    let mut node = Resources {
        nano_cpus: 1,
        memory_bytes: 100,
        ..Resources::default()
    };
    let held = Reservations {
        nano_cpus: 5,
        ..Reservations::default()
    };
    node.deduct(&held, &BTreeMap::new());
    assert_eq!(node.nano_cpus, -4);
    assert!(node.fits(&Reservations {
        memory_bytes: 100,
        ..Reservations::default()
    }));
    assert!(!node.fits(&Reservations {
        nano_cpus: 1,
        ..Reservations::default()
    }));
}

#[test]
fn requirements_name_every_bad_field() {
    let named = pb::GenericResource {
        resource: Some(pb::generic_resource::Resource::NamedResourceSpec(
            pb::NamedGenericResource {
                kind: "gpu".to_owned(),
                value: "a".to_owned(),
            },
        )),
    };
    let wire = pb::ResourceRequirements {
        limits: Some(pb::Resources {
            nano_cpus: 1,
            memory_bytes: -1,
            generic: Vec::new(),
        }),
        reservations: Some(pb::Resources {
            nano_cpus: 999_999,
            memory_bytes: 1 << 20,
            generic: vec![named],
        }),
        swap_bytes: Some(-2),
        memory_swappiness: Some(101),
    };
    let text = Reservations::try_from(&wire).unwrap_err().to_string();
    for field in [
        "limits.nano_cpus",
        "limits.memory_bytes",
        "reservations.nano_cpus",
        "reservations.memory_bytes",
        "reservations.generic",
        "swap_bytes",
        "memory_swappiness",
    ] {
        assert!(text.contains(&format!("{field}: ")), "{field} in {text}");
    }
    let good = pb::ResourceRequirements {
        reservations: Some(pb::Resources {
            nano_cpus: NANO_CPUS_MIN,
            memory_bytes: MEMORY_BYTES_MIN,
            generic: Vec::new(),
        }),
        ..Default::default()
    };
    assert_eq!(
        Reservations::try_from(&good).unwrap().nano_cpus,
        NANO_CPUS_MIN
    );
}

#[test]
fn a_node_s_report_is_taken_as_far_as_it_makes_sense() {
    let resource = |resource| pb::GenericResource {
        resource: Some(resource),
    };
    let named = |value: &str| {
        resource(pb::generic_resource::Resource::NamedResourceSpec(
            pb::NamedGenericResource {
                kind: "gpu".to_owned(),
                value: value.to_owned(),
            },
        ))
    };
    let counted = |kind: &str, value| {
        resource(pb::generic_resource::Resource::DiscreteResourceSpec(
            pb::DiscreteGenericResource {
                kind: kind.to_owned(),
                value,
            },
        ))
    };
    let wire = pb::Resources {
        nano_cpus: -1,
        memory_bytes: 5,
        generic: vec![
            counted("gpu", 3),
            named("a"),
            counted("gpu", 4),
            named("b"),
            counted("fpga", -2),
            Default::default(),
        ],
    };
    let resources = Resources::from_wire(&wire);
    assert_eq!((resources.nano_cpus, resources.memory_bytes), (0, 5));
    assert_eq!(resources.generic.get("gpu"), Some(&names(&["a", "b"])));
    assert_eq!(resources.generic.get("fpga"), Some(&Generic::Count(0)));
}

fn any_resources() -> impl Strategy<Value = Resources> {
    let generic = prop_oneof![
        (0u64..5).prop_map(Generic::Count),
        proptest::collection::btree_set("[a-e]", 0..5).prop_map(Generic::Names),
    ];
    let generic = proptest::collection::btree_map("[xyz]", generic, 0..3);
    (0i64..8, 0i64..8, generic).prop_map(|(nano_cpus, memory_bytes, generic)| Resources {
        nano_cpus,
        memory_bytes,
        generic,
    })
}

fn any_reservations() -> impl Strategy<Value = Reservations> {
    let generic = proptest::collection::btree_map("[xyz]", 0u64..4, 0..3);
    (0i64..4, 0i64..4, generic).prop_map(|(nano_cpus, memory_bytes, generic)| Reservations {
        nano_cpus,
        memory_bytes,
        generic,
    })
}

type Held = Vec<(Reservations, BTreeMap<String, Generic>)>;

/// What is free and what is held make up the total, and no name is held twice.
fn adds_up(total: &Resources, free: &Resources, held: &Held) -> Result<(), TestCaseError> {
    prop_assert!(free.nano_cpus >= 0 && free.memory_bytes >= 0);
    let cpus: i64 = held.iter().map(|(r, _)| r.nano_cpus).sum();
    let memory: i64 = held.iter().map(|(r, _)| r.memory_bytes).sum();
    prop_assert_eq!(free.nano_cpus + cpus, total.nano_cpus);
    prop_assert_eq!(free.memory_bytes + memory, total.memory_bytes);
    for (kind, all) in &total.generic {
        let parts: Vec<&Generic> = held
            .iter()
            .filter_map(|(_, assigned)| assigned.get(kind))
            .chain(free.generic.get(kind))
            .collect();
        let sum: u64 = parts.iter().map(|part| part.len()).sum();
        prop_assert_eq!(sum, all.len());
        if let Generic::Names(all) = all {
            let mut union = BTreeSet::new();
            for part in parts {
                let Generic::Names(part) = part else {
                    panic!("the form changed")
                };
                union.extend(part.iter().cloned());
            }
            prop_assert_eq!(&union, all);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn claims_never_over_commit_and_releases_restore(
        total in any_resources(),
        steps in proptest::collection::vec((any_reservations(), any::<bool>()), 0..30),
    ) {
        let mut free = total.clone();
        let mut held = Held::new();
        for (asked, give_back) in steps {
            if give_back && !held.is_empty() {
                let (reservations, assigned) = held.remove(0);
                free.release(&reservations, &assigned);
            } else {
                let fits = free.fits(&asked);
                let before = free.clone();
                match free.claim(&asked) {
                    Some(assigned) => {
                        prop_assert!(fits);
                        for (kind, n) in asked.generic.iter().filter(|(_, n)| **n > 0) {
                            prop_assert_eq!(assigned.get(kind).map(Generic::len), Some(*n));
                        }
                        held.push((asked, assigned));
                    }
                    None => prop_assert!(!fits && free == before),
                }
            }
            adds_up(&total, &free, &held)?;
        }
        let mut rebuilt = total.clone();
        for (reservations, assigned) in &held {
            rebuilt.deduct(reservations, assigned);
        }
        prop_assert_eq!(&rebuilt, &free);
        for (reservations, assigned) in held.drain(..) {
            free.release(&reservations, &assigned);
        }
        prop_assert_eq!(free, total);
    }

    #[test]
    fn wire_round_trip(resources in any_resources()) {
        // A kind without any names is nothing on the wire.
        let mut resources = resources;
        resources.generic.retain(|_, g| !matches!(g, Generic::Names(n) if n.is_empty()));
        prop_assert_eq!(Resources::from_wire(&pb::Resources::from(&resources)), resources);
    }

    #[test]
    fn any_text_parses_or_is_an_error(text in "([a-c]{0,2}=?-?[a-c0-9]{0,2},?){0,4}|.*") {
        let _ = parse_generic(&text);
    }
}
