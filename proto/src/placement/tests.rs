use proptest::prelude::*;

use super::*;
use crate::id::NodeId;

fn labels(pairs: &[(&str, &str)]) -> crate::service::Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

struct Node {
    spec: pb::NodeSpec,
    description: pb::NodeDescription,
}

impl Node {
    fn new() -> Self {
        let annotations = pb::Annotations {
            name: "n".to_owned(),
            labels: labels(&[("zone", "West"), ("Disk", "ssd")]),
            ..Default::default()
        };
        let spec = pb::NodeSpec {
            annotations: Some(annotations),
            ..Default::default()
        };
        let engine = pb::EngineDescription {
            labels: labels(&[("gpu", "yes")]),
            ..Default::default()
        };
        let platform = pb::Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
        };
        let description = pb::NodeDescription {
            hostname: "host-1".to_owned(),
            platform: Some(platform),
            engine: Some(engine),
            ..Default::default()
        };
        Self { spec, description }
    }

    fn facts(&self) -> NodeFacts<'_> {
        NodeFacts {
            id: NodeId::from_raw(7),
            spec: &self.spec,
            description: Some(&self.description),
            role: pb::NodeRole::Worker,
            addr: "10.0.1.7",
        }
    }
}

fn holds(text: &str) -> bool {
    text.parse::<Constraint>()
        .unwrap()
        .holds(&Node::new().facts())
}

#[test]
fn constraints_compare_without_regard_to_case() {
    for text in [
        "node.id == 0000000000000000000000007",
        "node.hostname==HOST-1",
        "NODE.HOSTNAME == host-1",
        "node.role==worker",
        "node.role != Manager",
        "node.platform.os==Linux",
        "node.platform.arch==x86_64",
        "node.platform.arch==amd64",
        "node.platform.arch!=arm64",
        "node.labels.zone==west",
        "Node.Labels.zone==west",
        "engine.labels.gpu==YES",
        "node.labels.missing!=x",
        "node.ip==10.0.1.7",
        "node.ip==10.0.0.0/16",
        "node.ip!=10.0.0.0/24",
        "node.ip!=fe80::/10",
    ] {
        assert!(holds(text), "{text}");
    }
    for text in [
        "node.id!=0000000000000000000000007",
        "node.hostname==host",
        "node.role==manager",
        "node.platform.arch!=amd64",
        "node.labels.missing==x",
        // Names of labels have a case.
        "node.labels.Zone==west",
        "node.labels.disk==ssd",
        "engine.labels.zone==west",
        "node.ip==10.0.1.8",
        "node.ip!=0.0.0.0/0",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn facts_a_node_lacks_are_empty() {
    let node = Node::new();
    let unknown = NodeFacts {
        description: None,
        addr: "",
        ..node.facts()
    };
    for key in [
        "node.hostname",
        "node.platform.os",
        "node.platform.arch",
        "engine.labels.gpu",
    ] {
        let equal: Constraint = format!("{key}==yes").parse().unwrap();
        let differs: Constraint = format!("{key}!=yes").parse().unwrap();
        assert!(!equal.holds(&unknown) && differs.holds(&unknown), "{key}");
    }
    assert!(
        "node.ip!=10.0.0.1"
            .parse::<Constraint>()
            .unwrap()
            .holds(&unknown)
    );
    assert!(
        !"node.ip==0.0.0.0/0"
            .parse::<Constraint>()
            .unwrap()
            .holds(&unknown)
    );
}

#[test]
fn node_addresses_may_have_a_port_or_be_mapped() {
    let node = Node::new();
    let constraint: Constraint = "node.ip==10.0.0.0/8".parse().unwrap();
    for addr in [
        "10.9.8.7",
        "10.9.8.7:2377",
        "::ffff:10.9.8.7",
        "[::ffff:10.9.8.7]:1",
    ] {
        assert!(
            constraint.holds(&NodeFacts {
                addr,
                ..node.facts()
            }),
            "{addr}"
        );
    }
}

#[test]
fn bad_constraints_name_the_expression_and_the_right_form() {
    for (text, says) in [
        ("", "KEY==VALUE"),
        ("node.role", "KEY==VALUE"),
        ("node.role=manager", "KEY==VALUE"),
        ("==x", "KEY==VALUE"),
        ("1node==x", "the key \"1node\""),
        ("node role==x", "the key \"node role\""),
        ("node.labels.==x", "there is no key"),
        ("node.foo==x", "node.platform.arch"),
        ("role==manager", "there is no key \"role\""),
        ("node.labels.a==", "the value \"\""),
        ("node.labels.a==b==c", "the value \"b==c\""),
        ("node.labels.a==ä", "the value \"ä\""),
        ("node.ip==10.0.0", "an address or a network"),
        ("node.ip==10.0.0.0/33", "an address or a network"),
        ("node.role==boss", "manager or worker"),
    ] {
        let error = text.parse::<Constraint>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{text:?}")), "{error}");
        assert!(error.contains(says), "{error}");
    }
}

fn any_constraint() -> impl Strategy<Value = Constraint> {
    let label = "[a-zA-Z0-9_.-]{1,12}";
    let key = prop_oneof![
        Just(Key::Id),
        Just(Key::Hostname),
        Just(Key::Os),
        Just(Key::Arch),
        label.prop_map(Key::NodeLabel),
        label.prop_map(Key::EngineLabel),
    ];
    let operator = prop_oneof![Just(Operator::Equal), Just(Operator::NotEqual)];
    let value = r"[a-zA-Z0-9:_.*()?+\[\]\\^$|/-]([a-z0-9 ]{0,9}[a-z0-9])?";
    (key, operator, value).prop_map(|(key, operator, value)| Constraint {
        key,
        operator,
        value,
    })
}

proptest! {
    #[test]
    fn a_constraint_and_its_text_are_one(constraint in any_constraint()) {
        prop_assert_eq!(constraint.to_string().parse::<Constraint>().unwrap(), constraint);
    }

    #[test]
    fn any_text_is_a_constraint_or_an_error(text in "(node|engine)?[a-z.]{0,14}[=! ]{0,3}.{0,8}|.*") {
        let node = Node::new();
        if let Ok(constraint) = text.parse::<Constraint>() {
            let other = match constraint.operator {
                Operator::Equal => Operator::NotEqual,
                Operator::NotEqual => Operator::Equal,
            };
            let opposite = Constraint { operator: other, ..constraint.clone() };
            prop_assert_ne!(constraint.holds(&node.facts()), opposite.holds(&node.facts()));
        }
    }

    #[test]
    fn a_network_contains_its_own_address(addr: std::net::IpAddr, prefix in 0u8..=128) {
        if let Some(network) = crate::constraint::Network::parse(&format!("{addr}/{prefix}")) {
            prop_assert!(network.contains(addr));
        }
    }
}

#[test]
fn platforms_have_one_normal_form_and_empty_means_any() {
    let platform = |os: &str, arch: &str| pb::Platform {
        os: os.to_owned(),
        architecture: arch.to_owned(),
    };
    let node = Node::new();
    let fits = |platforms: &[pb::Platform]| {
        let wire = pb::Placement {
            platforms: platforms.to_vec(),
            ..Default::default()
        };
        parse(&mut Faults::default(), Some(&wire)).platform_fits(&node.facts())
    };
    assert!(fits(&[]));
    assert!(fits(&[platform("", "")]));
    assert!(fits(&[platform("linux", "amd64")]));
    assert!(fits(&[platform("Linux", "x86_64")]));
    assert!(fits(&[platform("windows", "amd64"), platform("linux", "")]));
    assert!(!fits(&[platform("linux", "aarch64")]));
    assert!(!fits(&[platform("windows", "")]));
    let unknown = NodeFacts {
        description: None,
        ..node.facts()
    };
    let any = Placement {
        platforms: vec![Platform::default()],
        ..Placement::default()
    };
    assert!(
        !any.platform_fits(&unknown),
        "what a node is must be known to match"
    );
}

#[test]
fn spreads_over_labels_only() {
    let spread = |descriptor: &str| {
        parse_spread(&pb::PlacementPreference {
            preference: Some(pb::placement_preference::Preference::Spread(
                pb::SpreadOver {
                    spread_descriptor: descriptor.to_owned(),
                },
            )),
        })
    };
    let node = Node::new();
    assert_eq!(
        spread("node.labels.zone").unwrap().value(&node.facts()),
        "West"
    );
    assert_eq!(
        spread("ENGINE.labels.gpu").unwrap().value(&node.facts()),
        "yes"
    );
    assert_eq!(spread("node.labels.rack").unwrap().value(&node.facts()), "");
    for descriptor in ["", "node.id", "zone", "node.labels."] {
        assert!(
            spread(descriptor).unwrap_err().contains("node.labels.NAME"),
            "{descriptor}"
        );
    }
    assert!(parse_spread(&pb::PlacementPreference::default()).is_err());
}
