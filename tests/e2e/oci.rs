//! The OCI spec of a task beside the one that Docker Engine makes of the same options.
//!
//! Every difference is a row of a table in docs/oci-spec.md, with its reason. One that has no row fails, and so does a
//! row without a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use harness::cluster::{Cluster, LIMIT};
use harness::lab::image::{Entry, Image};
use harness::lab::lab::available_with;
use harness::lab::{binaries, eventually};
use serde_json::{Value, json};
use swarm_proto::pb;
use swarm_proto::pb::control_client::ControlClient;

use super::docker::Host;
use super::messages::local;
use super::oci_cases::{CASES, Case, PROFILE};
use super::oci_fields::flat;
use super::oci_table::{Difference, Table};

/// What is compared with, beside a lab.
const PROGRAMS: [(&str, &str); 2] = [("dockerd", "docker.io"), ("docker", "docker.io")];
/// Debian 12's. Another one's specs differ in other ways.
const ENGINE: &str = "20.10.";
/// The machine it runs on.
const ENGINE_HOST: &str = "engine";
/// Containers' directories below containerd's own, each below its namespace.
const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// What is not there.
const ABSENT: &str = "–";

/// A spec for each case, by its name.
type Specs = BTreeMap<&'static str, Value>;

/// An image with all that a configuration can say, and users to be looked up.
fn image() -> Image {
    let web = std::fs::read(binaries::find("web").unwrap()).unwrap();
    let passwd = "root:x:0:0:root:/root:/none\napp:x:1001:1002:app:/home/app:/none\n";
    let group = "root:x:0:\nwheel:x:10:root\napp:x:1002:\nmore:x:1003:app\nextra:x:1004:\n";
    let files = [
        Entry::directory("etc", 0o755),
        Entry::file("etc/passwd", 0o644, passwd),
        Entry::file("etc/group", 0o644, group),
        Entry::directory("tmp", 0o1777),
        Entry::file("web", 0o755, web),
    ];
    let config = json!({
        "Entrypoint": ["/web"],
        "Env": ["PORT=8080", "LANG=C"],
        "StopSignal": "SIGQUIT",
    });
    Image::new(&config, &[files.to_vec()]).unwrap()
}

/// Those that this host can run.
fn cases() -> impl Iterator<Item = &'static Case> {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    CASES.iter().filter(move |case| !(v2 && case.only_v1))
}

/// Runs all cases under Docker Engine, and returns their specs.
fn theirs(host: &Host, image: &str) -> Specs {
    host.docker(&["pull", image]).ok();
    host.machine.write("/root/profile.json", PROFILE).unwrap();
    let spec = |case: &Case| {
        let run = ["run", "--detach"];
        let line = [&run[..], case.both, case.theirs, &[image]].concat();
        let shown = host.docker(&line).ok();
        let id = shown.lines().last().unwrap_or_default().trim();
        let bundle = format!("/run/containerd/{BUNDLES}/moby/{id}/config.json");
        let own = [(&*host.machine.host.namespace, "docker")];
        let spec = read(&host.machine.path(&bundle), id, ENGINE_HOST, &own).unwrap();
        host.docker(&["rm", "--force", id]).ok();
        (case.name, spec)
    };
    cases().map(spec).collect()
}

/// Runs all cases under swarmd, and returns their specs.
async fn ours(cluster: &Cluster, image: &str) -> Specs {
    for case in cases() {
        // What is said on the wire is said before there is a task.
        let replicas = if case.wire.is_some() { "0" } else { "1" };
        let more = ["--detach", "--replicas", replicas];
        let options = [&more[..], case.both, case.ours].concat();
        cluster.create(case.name, image, &options);
    }
    change(cluster).await;
    let node = cluster.node("n1");
    let state = node.state_dir().display().to_string();
    let bundles = cluster.lab.site.run().join("containerd/state");
    let bundles = bundles.join(BUNDLES).join(&node.host.namespace);
    let own = [(&*state, "STATE"), (&node.host.namespace, "NAMESPACE")];
    let spec = |case: &Case| {
        let spec = eventually(&format!("container of {}", case.name), LIMIT, || {
            // A task's id is its container's. One that waits to be healthy has its container already.
            let tasks = cluster.all_tasks(case.name);
            let mut specs = tasks.iter().map(|task| {
                let file = bundles.join(&task.id).join("config.json");
                read(&file, &task.id, "n1", &own)
            });
            let found = specs.find_map(Result::ok);
            found.ok_or_else(|| format!("{tasks:#?}"))
        });
        (case.name, spec)
    };
    cases().map(spec).collect()
}

/// Gives services what swarmctl has no words for, and then a task.
async fn change(cluster: &Cluster) {
    let mut client = ControlClient::new(local(cluster.node("n1").socket()).await);
    let listed = client.list_services(pb::ListServicesRequest::default());
    for service in listed.await.unwrap().into_inner().services {
        let mut spec = service.spec.unwrap();
        let name = spec.annotations.as_ref().unwrap().name.clone();
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let Some(wire) = case.wire else { continue };
        wire(spec.task.as_mut().unwrap());
        let one = pb::ReplicatedService { replicas: 1 };
        spec.mode = Some(pb::service_spec::Mode::Replicated(one));
        let update = pb::UpdateServiceRequest {
            service_id: service.id,
            service_version: service.meta.and_then(|meta| meta.version),
            spec: Some(spec),
            ..Default::default()
        };
        client.update_service(update).await.unwrap();
    }
}

/// Reads a spec, and puts the same words for what is each container's or each test's own.
fn read(file: &Path, id: &str, host: &str, own: &[(&str, &str)]) -> Result<Value, std::io::Error> {
    let mut text = std::fs::read_to_string(file)?;
    for (from, to) in own {
        text = text.replace(from, to);
    }
    let short: String = id.chars().take(12).collect();
    let text = text.replace(id, "ID").replace(&short, "ID");
    let text = text.replace(&format!("\"{host}\""), "\"NODE\"");
    let text = text.replace(&format!("HOSTNAME={host}\""), "HOSTNAME=NODE\"");
    Ok(serde_json::from_str(&text)?)
}

/// All differences of one case.
fn differences(case: &str, theirs: &Value, ours: &Value) -> Vec<Difference> {
    let (theirs, ours) = (flat(theirs), flat(ours));
    let fields: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let or_absent = |value: Option<&String>| value.map_or(ABSENT, |value| value).to_owned();
    let difference = |field: &String| Difference {
        case: case.to_owned(),
        field: field.clone(),
        theirs: or_absent(theirs.get(field)),
        ours: or_absent(ours.get(field)),
    };
    let all = fields.into_iter().map(difference);
    all.filter(|found| found.theirs != found.ours).collect()
}

#[tokio::test]
async fn containerd_the_spec_of_a_task_differs_from_docker_s_only_as_documented() {
    if !available_with("comparison with Docker Engine", &PROGRAMS) {
        return;
    }
    let mut cluster = Cluster::start(0);
    let registry = cluster.lab.registry.http();
    let host = Host::start(
        &mut cluster.lab,
        ENGINE_HOST,
        &["--insecure-registry", &registry],
    );
    let version = host.docker(&["version", "--format", "{{.Server.Version}}"]);
    let version = version.ok();
    if !version.starts_with(ENGINE) {
        let line =
            format!("left out: comparison with Docker Engine {ENGINE}x, {version} is here\n");
        let _unheard = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let image = cluster.lab.registry.push("example/oci", "1", &image());
    let image = image.unwrap();
    let ours = ours(&cluster, &image).await;
    let theirs = theirs(&host, &image);

    let differs = |case: &Case| differences(case.name, &theirs[case.name], &ours[case.name]);
    let found: Vec<Difference> = cases().flat_map(differs).collect();
    let table = Table::documented();
    let unlisted: Vec<String> = table.unlisted(&found);
    assert!(
        unlisted.is_empty(),
        "not in docs/oci-spec.md:\n{}",
        unlisted.join("\n")
    );
    let gone: Vec<String> = table.gone(&found);
    assert!(
        gone.is_empty(),
        "in docs/oci-spec.md, but no difference any more:\n{}",
        gone.join("\n")
    );
}
