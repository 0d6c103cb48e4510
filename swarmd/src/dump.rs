//! `swarmd raft dump`: what a stopped manager's state directory holds, as JSON. Nothing in it is changed.
//!
//! What can't be read is named under `problems`, and the rest is shown. Secrets are left out unless they are asked for:
//! strings by the table [`SECRET`], and of bytes only ids and certificates are shown at all.

mod records;

use std::path::Path;

use prost::Message as _;
use serde_json::{Map, Value, json};
use swarm_proto::id::NodeId;
use swarm_proto::json::{Raw, encoded, printable};
use swarm_proto::own;
use swarm_proto::pb::TaskState;
use swarm_proto::time::Timestamp;

use crate::ca::root::format_time;
use crate::ca::token::UnlockKey;
use crate::config::Dump;
use crate::manager::raft::{Kind, Survey, Surveyed};
use crate::manager::store::machine::StoreMachine;
use crate::manager::store::snapshot;
use crate::manager::store::watch::Hub;
use crate::seal::Seal;
use crate::state_dir::{StateDir, StateDirError};

/// What was read.
#[derive(Debug)]
pub(crate) struct Dumped {
    pub(crate) text: String,
    /// False where something could not be read.
    pub(crate) whole: bool,
}

/// Fields that hold secrets, as `message.field`.
const SECRET: [&str; 13] = [
    "docker.swarmkit.v1.RootCA.ca_key",
    "docker.swarmkit.v1.RootRotation.ca_key",
    "docker.swarmkit.v1.CAConfig.signing_ca_key",
    "docker.swarmkit.v1.JoinTokens.worker",
    "docker.swarmkit.v1.JoinTokens.manager",
    "docker.swarmkit.v1.EncryptionKey.key",
    "docker.swarmkit.v1.ContainerSpec.PullOptions.registry_auth",
    "docker.swarmkit.v1.SecretSpec.data",
    "docker.swarmkit.v1.ConfigSpec.data",
    "docker.swarmkit.v1.ExternalCA.OptionsEntry.value",
    "docker.swarmkit.v1.Driver.OptionsEntry.value",
    "docker.swarmkit.v1.VolumeSecret.secret",
    "docker.swarmkit.v1.MaybeEncryptedRecord.data",
];
const REDACTED: &str = "(secret; --show-secrets shows it)";

/// Reads a state directory, that of a locked manager with the unlock key. Blocks.
///
/// # Errors
/// When there is none, swarmd runs on it, or it is no manager's.
pub(crate) fn run(
    state_dir: &Path,
    unlock_key: Option<&UnlockKey>,
    what: &Dump,
) -> Result<Dumped, DumpError> {
    let state = StateDir::open_stopped(state_dir)?;
    let seal = Seal::default();
    if let Some(key) = unlock_key {
        seal.unlock(key.clone());
    }
    let survey = Survey::read(state.path(), &seal).map_err(|e| DumpError::Log(e.to_string()))?;
    let Some(survey) = survey else {
        return Err(DumpError::NoManager(state_dir.display().to_string()));
    };
    let surveyed = survey.facts();
    let mut problems: Vec<String> = surveyed.problems.clone();
    let mut shown = heads(&surveyed);
    if what.entries {
        let entries = surveyed.entries.iter().map(|e| entry(e, what));
        shown.insert("entries".to_owned(), entries.collect());
    }
    if what.objects {
        let objects = objects(&survey, what, &mut problems);
        shown.insert("objects".to_owned(), Value::Array(objects));
    }
    let whole = problems.is_empty();
    shown.insert("problems".to_owned(), json!(problems));
    let text = serde_json::to_string_pretty(&Value::Object(shown)).unwrap_or_default();
    Ok(Dumped { text, whole })
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    /// The directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The log.
    #[error("{0}")]
    Log(String),
    /// A worker's.
    #[error("state dir {0} has no log: its node is no manager")]
    NoManager(String),
}

fn heads(surveyed: &Surveyed) -> Map<String, Value> {
    let log_id = |id: &Option<own::RaftLogId>| {
        id.as_ref()
            .map(|id| json!({"index": id.index, "term": id.term, "leader": id.leader}))
    };
    let head = json!({
        "member": surveyed.id,
        "epoch": surveyed.epoch.map(|epoch| epoch.to_string()),
        "fenced": surveyed.fenced.as_ref().map(|fenced| json!({
            "by": fenced.by.to_string(), "managers": fenced.managers,
        })),
        "vote": surveyed.vote.as_ref().map(|vote| json!({
            "term": vote.term, "candidate": vote.candidate, "committed": vote.committed,
        })),
        "snapshot": surveyed.snapshot.as_ref().map(|(path, at)| json!({
            "file": path.display().to_string(), "last": log_id(at),
        })),
        "log": {
            "purged": log_id(&surveyed.purged),
            "committed": log_id(&surveyed.committed),
            "last": log_id(&surveyed.last),
            "entries": surveyed.entries.len(),
        },
        "members": surveyed.members.iter().map(|(member, voter)| json!({
            "member": member.id, "node": member.node_id, "addresses": member.addresses, "voter": voter,
        })).collect::<Vec<_>>(),
        "leftBehind": surveyed.former.iter().map(|member| json!({
            "member": member.id, "node": member.node_id, "addresses": member.addresses,
        })).collect::<Vec<_>>(),
    });
    match head {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

fn entry(entry: &crate::manager::raft::SurveyedEntry, what: &Dump) -> Value {
    let mut shown = json!({"index": entry.at.index, "term": entry.at.term});
    let (kind, content) = match &entry.kind {
        Kind::Blank => ("blank", Value::Null),
        Kind::Membership(membership) => {
            let bytes = membership.encode_to_vec();
            (
                "membership",
                render("swarm.v1.RaftMembership", &bytes, what),
            )
        }
        Kind::Changes(bytes) => ("changes", render("swarm.v1.LogEntry", bytes, what)),
    };
    if let Value::Object(map) = &mut shown {
        map.insert("kind".to_owned(), kind.into());
        if !content.is_null() {
            map.insert(kind.to_owned(), content);
        }
    }
    shown
}

/// The objects after all entries; those of the snapshot, as far as it goes, where there is no getting at the others.
fn objects(survey: &Survey, what: &Dump, problems: &mut Vec<String>) -> Vec<Value> {
    let objects: Vec<Vec<u8>> = match survey.state(StoreMachine::new(Hub::default())) {
        Ok(state) => snapshot::encode(&state).collect(),
        Err(error) => {
            let error = error.to_string();
            if !problems.contains(&error) {
                problems.push(error);
            }
            problems.push(
                "the objects shown are those of the snapshot that could be read, without the entries after it"
                    .to_owned(),
            );
            records::of_snapshot(survey, problems)
        }
    };
    let shown = objects.iter().filter_map(|bytes| object(bytes, what));
    shown.collect()
}

fn object(bytes: &[u8], what: &Dump) -> Option<Value> {
    let Value::Object(record) = render("swarm.v1.SnapshotRecord", bytes, what) else {
        return None;
    };
    let (kind, content) = record.into_iter().next()?;
    let id = content
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let of_kind = match &what.kind {
        Some(wanted) => *wanted == kind,
        None => kind != "header",
    };
    let of_id = what
        .id
        .as_ref()
        .is_none_or(|wanted| id.starts_with(wanted.as_str()));
    (of_kind && of_id).then(|| json!({"kind": kind, "object": content}))
}

fn render(name: &str, bytes: &[u8], what: &Dump) -> Value {
    let lens = |message: &str, field: &prost_types::FieldDescriptorProto, raw: &Raw<'_>| {
        lens(message, field, raw, what.show_secrets)
    };
    printable(encoded(name, bytes, &lens))
}

/// Ids, times and states as people read them; secrets not at all.
fn lens(
    message: &str,
    field: &prost_types::FieldDescriptorProto,
    raw: &Raw<'_>,
    secrets: bool,
) -> Option<Value> {
    use prost_types::field_descriptor_proto::Type;
    let name = format!("{message}.{}", field.name());
    match raw {
        Raw::Bytes(bytes) if SECRET.contains(&name.as_str()) && !secrets => {
            (!bytes.is_empty()).then(|| REDACTED.into())
        }
        Raw::Bytes(bytes) if field.r#type() == Type::Bytes => Some(text(bytes, secrets)),
        Raw::Number(number) if field.r#type() == Type::Sfixed64 => {
            let at = Timestamp(i64::from_ne_bytes(number.to_ne_bytes()));
            let shown = if at.is_zero() {
                String::new()
            } else {
                format_time(at)
            };
            Some(shown.into())
        }
        Raw::Number(number)
            if message.starts_with("swarm.v1.")
                && field.r#type() == Type::Uint32
                && matches!(field.name(), "state" | "desired") =>
        {
            let number = i32::try_from(*number).ok()?;
            let state = TaskState::try_from(number).ok()?;
            Some(state.as_str_name().into())
        }
        Raw::Number(_) | Raw::Bytes(_) => None,
    }
}

/// Bytes that are an id, or a certificate; of others only how many.
fn text(bytes: &[u8], secrets: bool) -> Value {
    if let Ok(id) = <[u8; 16]>::try_from(bytes) {
        return NodeId::from_raw(u128::from_be_bytes(id)).to_string().into();
    }
    let public = bytes.starts_with(b"-----BEGIN CERTIFICATE") || bytes.is_empty();
    match public || secrets {
        true => String::from_utf8_lossy(bytes).into_owned().into(),
        false => format!("({} bytes)", bytes.len()).into(),
    }
}

#[cfg(test)]
mod tests;
