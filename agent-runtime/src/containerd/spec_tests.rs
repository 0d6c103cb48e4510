use super::*;
use crate::executor::NodeFacts;

struct Case {
    task: pb::Task,
    container: pb::ContainerSpec,
    image: RunConfig,
    account: Account,
    confinement: Confinement,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            task: pb::Task {
                id: "t1".to_owned(),
                slot: 2,
                ..Default::default()
            },
            container: pb::ContainerSpec::default(),
            image: RunConfig {
                entrypoint: Some(vec!["/entry".to_owned()]),
                cmd: Some(vec!["serve".to_owned()]),
                env: Some(vec!["A=image".to_owned(), "B=image".to_owned()]),
                ..RunConfig::default()
            },
            account: Account::default(),
            confinement: Confinement::None,
        }
    }
}

impl Case {
    fn build(&self) -> Result<Value, String> {
        let node = NodeFacts::default();
        let input = Input {
            devices: &[],
            task: &self.task,
            container: &self.container,
            image: &self.image,
            templates: Templates {
                task: &self.task,
                node: &node,
            },
            account: &self.account,
            hostname: "box",
            // As swarmd's own, and as one of the spec's over it.
            mounts: vec![mounts::file("/a".as_ref(), "/etc/hosts"); 2],
            netns: None,
            cgroup: "/swarm/n/t1".to_owned(),
            confinement: self.confinement,
            cgroup_v2: false,
            swap_counted: false,
        };
        build(&input).map_err(|error| error.to_string())
    }
}

#[test]
fn the_runtime_understands_it() {
    let spec = Case::default().build().unwrap();
    let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
    let process = parsed.process().clone().unwrap();
    assert_eq!(process.args().clone().unwrap(), ["/entry", "serve"]);
    assert_eq!(process.cwd(), std::path::Path::new("/"));
    let linux = parsed.linux().clone().unwrap();
    assert!(linux.seccomp().is_some());
    assert_eq!(linux.namespaces().clone().unwrap().len(), 5);
}

#[test]
fn command_and_args_as_docker() {
    let mut case = Case::default();
    case.container.args = vec!["check".to_owned()];
    assert_eq!(
        case.build().unwrap()["process"]["args"],
        json!(["/entry", "check"])
    );
    case.container.command = vec!["sh".to_owned()];
    assert_eq!(
        case.build().unwrap()["process"]["args"],
        json!(["sh", "check"])
    );
    case.container.args.clear();
    assert_eq!(case.build().unwrap()["process"]["args"], json!(["sh"]));
    case.container.command.clear();
    case.image = RunConfig::default();
    assert!(case.build().unwrap_err().contains("names no command"));
}

#[test]
fn environment_is_layered_and_expanded() {
    let mut case = Case::default();
    case.container.env = vec!["A=task-{{.Task.Slot}}".to_owned(), "B".to_owned()];
    case.task.assigned_generic_resources = [("gpu", "u1"), ("gpu", "u2")]
        .map(|(kind, value)| pb::GenericResource {
            resource: Some(pb::generic_resource::Resource::NamedResourceSpec(
                pb::NamedGenericResource {
                    kind: kind.to_owned(),
                    value: value.to_owned(),
                },
            )),
        })
        .into();
    let expected = json!([
        PATH,
        "HOSTNAME=box",
        "DOCKER_RESOURCE_GPU=u1,u2",
        "A=task-2"
    ]);
    assert_eq!(case.build().unwrap()["process"]["env"], expected);
    case.account.home = Some("/home/app".to_owned());
    let env = case.build().unwrap()["process"]["env"].clone();
    assert_eq!(env[4], "HOME=/home/app");
    case.container.env = vec!["X={{.Nope}}".to_owned()];
    assert!(case.build().unwrap_err().contains("env X"));
    case.container.env = vec!["=x".to_owned()];
    assert!(case.build().unwrap_err().contains("NAME=value"));
}

#[test]
fn limits_reach_the_kernel_in_its_units() {
    let mut case = Case::default();
    case.task.spec = Some(pb::TaskSpec {
        resources: Some(pb::ResourceRequirements {
            limits: Some(pb::Resources {
                nano_cpus: 500_000_000,
                memory_bytes: 64 << 20,
                ..Default::default()
            }),
            reservations: Some(pb::Resources {
                nano_cpus: 250_000_000,
                memory_bytes: 32 << 20,
                ..Default::default()
            }),
            swap_bytes: Some(1 << 20),
            ..Default::default()
        }),
        ..Default::default()
    });
    case.container.pids_limit = 100;
    let resources = case.build().unwrap()["linux"]["resources"].clone();
    assert_eq!(
        resources["cpu"],
        json!({ "quota": 50_000, "period": 100_000, "shares": 256 })
    );
    assert_eq!(
        resources["memory"],
        json!({ "limit": 64 << 20, "reservation": 32 << 20, "swap": 65 << 20 })
    );
    assert_eq!(resources["pids"], json!({ "limit": 100 }));
}

#[test]
fn swap_is_as_much_as_memory_unless_said_otherwise() {
    let swap = |memory, swap| memory_and_swap(memory, swap, true).unwrap();
    assert_eq!(swap(64, None), Some(128));
    assert_eq!(swap(64, Some(16)), Some(80));
    assert_eq!(swap(64, Some(0)), Some(64));
    assert_eq!(swap(64, Some(-1)), None);
    assert_eq!(swap(0, None), None);
    assert_eq!(swap(0, Some(-1)), None);
    assert!(memory_and_swap(0, Some(16), true).is_err());
    let uncounted = memory_and_swap(64, None, false);
    assert_eq!(uncounted.unwrap(), None, "runc would fail on any limit");
}

#[test]
fn the_first_group_is_among_the_others() {
    let mut case = Case::default();
    (case.account.gid, case.account.groups) = (5, vec![6, 7]);
    let user = case.build().unwrap()["process"]["user"].clone();
    assert_eq!(user["additionalGids"], json!([5, 6, 7]));
}

#[test]
fn a_read_only_root_has_read_only_files() {
    let mut case = Case::default();
    let options = |case: &Case| {
        let spec = case.build().unwrap();
        let mounts = spec["mounts"].as_array().unwrap().clone();
        let hosts = mounts.iter().filter(|at| at["destination"] == "/etc/hosts");
        hosts.map(|at| at["options"].clone()).collect::<Vec<_>>()
    };
    let open = json!(["rbind", "rprivate"]);
    assert_eq!(options(&case), [open.clone(), open.clone()]);
    case.container.read_only = true;
    let closed = json!(["rbind", "rprivate", "ro"]);
    assert_eq!(options(&case), [closed, open], "the spec's own mount stays");
}

#[test]
fn the_out_of_memory_score_is_always_said() {
    let mut case = Case::default();
    assert_eq!(case.build().unwrap()["process"]["oomScoreAdj"], json!(0));
    case.container.oom_score_adj = 500;
    assert_eq!(case.build().unwrap()["process"]["oomScoreAdj"], json!(500));
}

#[test]
fn stop_signals_by_name_and_number() {
    for (name, number) in [
        ("SIGTERM", 15),
        ("int", 2),
        ("9", 9),
        ("RTMIN+3", 37),
        ("SIGRTMIN", 34),
    ] {
        assert_eq!(signal(name).unwrap(), number, "{name}");
    }
    for name in ["SIGNOPE", "0", "65", "RTMIN-1", "RTMIN+31", "RTMAX+1"] {
        assert!(signal(name).is_err(), "{name}");
    }
    let image = RunConfig {
        stop_signal: Some("SIGQUIT".to_owned()),
        ..RunConfig::default()
    };
    let by_image = stop(&pb::ContainerSpec::default(), &image).unwrap();
    assert_eq!(
        (by_image.signal, by_image.grace),
        (3, Duration::from_secs(10))
    );
}

#[test]
fn hostnames_are_checked() {
    let task = pb::Task {
        id: "abcdefghijklmnop".to_owned(),
        slot: 4,
        ..Default::default()
    };
    let node = NodeFacts {
        hostname: "node".to_owned(),
        ..NodeFacts::default()
    };
    let templates = Templates {
        task: &task,
        node: &node,
    };
    let mut container = pb::ContainerSpec::default();
    assert_eq!(
        hostname(&container, &task.id, &templates).unwrap(),
        "abcdefghijkl"
    );
    container.hostname = "web-{{.Task.Slot}}".to_owned();
    assert_eq!(hostname(&container, &task.id, &templates).unwrap(), "web-4");
    container.hostname = "no spaces".to_owned();
    assert!(hostname(&container, &task.id, &templates).is_err());
    let mut in_node = task.clone();
    let network = pb::NetworkAttachmentConfig {
        target: "host".to_owned(),
        ..Default::default()
    };
    let spec = in_node.spec.get_or_insert_default();
    spec.networks.push(network);
    let templates = Templates {
        task: &in_node,
        node: &node,
    };
    container.hostname.clear();
    assert_eq!(hostname(&container, &task.id, &templates).unwrap(), "node");
}

#[test]
fn apparmor_where_the_kernel_has_it() {
    let mut case = Case::default();
    let profile = |case: &Case| case.build().unwrap()["process"]["apparmorProfile"].clone();
    assert_eq!(profile(&case), Value::Null);
    case.confinement = Confinement::Profile;
    assert_eq!(profile(&case), "swarm-default");
    let privileges = case.container.privileges.get_or_insert_default();
    privileges.apparmor.get_or_insert_default().mode =
        pb::privileges::app_armor_opts::AppArmorMode::Disabled.into();
    assert_eq!(profile(&case), "unconfined");
}
