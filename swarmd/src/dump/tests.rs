//! What a dump shows, what it keeps to itself, and what it says of damage.

use clap::Parser as _;
use swarm_proto::pb::node_spec::Availability;

use super::*;
use crate::clock::Clock;
use crate::config::{Cli, Config};
use crate::manager::backup;
use crate::manager::bootstrap;
use crate::manager::writer::Store;
use crate::restore;

fn config(dir: &Path) -> Config {
    let address = ["--advertise-remote-api", "10.0.0.9:4242"];
    let cli = [
        &["swarmd", "--state-dir", dir.to_str().unwrap()][..],
        &address,
    ]
    .concat();
    Cli::try_parse_from(cli).unwrap().config().unwrap()
}

/// A state directory restored from a backup; and the secrets in it.
async fn restored() -> (tempfile::TempDir, Vec<String>) {
    let (store, clock) = (Store::in_memory(), Clock::real());
    let node = NodeId::from_raw(7);
    let founder = bootstrap::Founder {
        node_id: node,
        availability: Availability::Active,
        unlock_key: None,
        external_cas: Vec::new(),
    };
    bootstrap::found(&store, &clock, founder).await.unwrap();
    let state = store.view();
    let root = state.cluster.as_ref().unwrap().root_ca.clone();
    let tokens = root.join_tokens.unwrap();
    let key = String::from_utf8(root.ca_key).unwrap();
    let secrets = vec![
        tokens.worker,
        tokens.manager,
        key.lines().nth(1).unwrap().to_owned(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let header = backup::header_of(&state, 9, clock.now());
    backup::write(std::fs::File::create(&file).unwrap(), &header, &state).unwrap();
    let config = config(&dir.path().join("state"));
    restore::restore(&file, &config, Availability::Active, &clock).unwrap();
    // A second one finds it there.
    let again = restore::restore(&file, &config, Availability::Active, &clock);
    assert!(again.unwrap_err().to_string().contains("is not empty"));
    (dir, secrets)
}

fn dump(dir: &Path, what: &Dump) -> Dumped {
    run(&dir.join("state"), None, what).unwrap()
}

#[tokio::test]
async fn secrets_show_only_where_they_are_asked_for() {
    let (dir, secrets) = restored().await;
    let all = Dump {
        entries: true,
        objects: true,
        ..Dump::default()
    };
    let shown = dump(dir.path(), &all);
    assert!(shown.whole, "{}", shown.text);
    assert!(shown.text.contains("\"10.0.0.9:4242\"") && shown.text.contains(REDACTED));
    let asked = Dump {
        show_secrets: true,
        ..all
    };
    let asked = dump(dir.path(), &asked);
    for secret in &secrets {
        assert!(!shown.text.contains(secret.as_str()), "{}", shown.text);
        assert!(asked.text.contains(secret.as_str()), "{}", asked.text);
    }
}

#[tokio::test]
async fn objects_are_found_by_kind_and_id_and_damage_is_named() {
    let (dir, _) = restored().await;
    let of = |kind: &str, id: Option<&str>| Dump {
        objects: true,
        kind: Some(kind.to_owned()),
        id: id.map(str::to_owned),
        ..Dump::default()
    };
    let count = |what: &Dump| {
        let shown: Value = serde_json::from_str(&dump(dir.path(), what).text).unwrap();
        shown["objects"].as_array().unwrap().len()
    };
    assert_eq!(count(&of("node", None)), 2);
    assert_eq!(
        count(&of("node", Some(&NodeId::from_raw(7).to_string()))),
        1
    );
    assert_eq!(count(&of("task", None)), 0);
    let snapshots = dir.path().join("state/raft/snapshots");
    let path = std::fs::read_dir(snapshots)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let shown = dump(dir.path(), &of("node", None));
    assert!(
        !shown.whole && shown.text.contains("is damaged"),
        "{}",
        shown.text
    );
    std::fs::remove_file(&path).unwrap();
    let shown = dump(dir.path(), &of("node", None));
    assert!(
        shown.text.contains("which the snapshot should hold"),
        "{}",
        shown.text
    );
}

#[test]
fn a_directory_of_nobody_and_of_a_worker_have_nothing_to_show() {
    let dir = tempfile::tempdir().unwrap();
    let told = |dir: &Path| run(dir, None, &Dump::default()).unwrap_err().to_string();
    assert!(told(dir.path()).contains("does not exist"));
    let state = StateDir::open(dir.path()).unwrap();
    assert!(told(dir.path()).contains("is in use by another swarmd"));
    drop(state);
    assert!(told(dir.path()).contains("is no manager"));
}

#[test]
fn every_secret_of_the_table_is_a_field_there_is() {
    let set = prost_types::FileDescriptorSet::decode(swarm_proto::DESCRIPTORS).unwrap();
    fn fields(scope: &str, message: &prost_types::DescriptorProto, all: &mut Vec<String>) {
        let name = format!("{scope}.{}", message.name());
        all.extend(message.field.iter().map(|f| format!("{name}.{}", f.name())));
        for nested in &message.nested_type {
            fields(&name, nested, all);
        }
    }
    let mut all = Vec::new();
    for file in &set.file {
        for message in &file.message_type {
            fields(file.package(), message, &mut all);
        }
    }
    let unknown: Vec<_> = SECRET
        .iter()
        .filter(|name| !all.iter().any(|f| f == *name))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
