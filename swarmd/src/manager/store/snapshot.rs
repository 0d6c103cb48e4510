//! The whole state as a stream of records: a header, then every object, each kind by id.
//!
//! Objects come out one at a time, so that writing a snapshot of a large cluster needs no second
//! copy of it in memory. The order is fixed, so equal states have equal bytes and one hash.

use prost::Message as _;
use ring::digest::{Context, SHA256};
use swarm_proto::own;
use swarm_proto::own::snapshot_record::Record;
use swarm_proto::time::Timestamp;

use super::codec::DecodeError;
use super::index::Txn;
use super::record;
use super::state::State;

/// The format this version writes and reads.
const FORMAT: u32 = 1;

/// The records of a snapshot, encoded, in order.
pub fn encode(state: &State) -> impl Iterator<Item = Vec<u8>> + '_ {
    let header = Record::Header(own::SnapshotHeader {
        format: FORMAT,
        version: state.version,
        now: state.now.0,
    });
    let cluster = state
        .cluster
        .iter()
        .map(|c| Record::Cluster(record::cluster(c)));
    let nodes = state.nodes.values().map(|n| Record::Node(record::node(n)));
    let services = state
        .services
        .values()
        .map(|s| Record::Service(record::service(s)));
    let tasks = state.tasks.values().map(|t| Record::Task(record::task(t)));
    let records = std::iter::once(header)
        .chain(cluster)
        .chain(nodes)
        .chain(services)
        .chain(tasks);
    records.map(|r| own::SnapshotRecord { record: Some(r) }.encode_to_vec())
}

/// Builds a state from records, one at a time.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    started: bool,
}

impl Decoder {
    /// Takes the next record.
    ///
    /// # Errors
    /// When it is no record that this version knows, or the header is missing.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let record = own::SnapshotRecord::decode(bytes)?.record;
        let unexpected = |reason: &str| {
            Err(DecodeError::Field {
                field: "snapshot record",
                reason: reason.to_owned(),
            })
        };
        let Some(record) = record else {
            return unexpected("is of an unknown kind");
        };
        if let Record::Header(header) = &record {
            if self.started || header.format != FORMAT {
                return unexpected("is a second header, or of another format");
            }
            self.started = true;
            self.state.version = header.version;
            self.state.now = Timestamp(header.now);
            return Ok(());
        }
        if !self.started {
            return unexpected("comes before the header");
        }
        // Events of a restored state are nobody's business: watchers start over.
        let mut events = Vec::new();
        let mut txn = Txn {
            state: &mut self.state,
            events: &mut events,
        };
        match record {
            Record::Header(_) => {}
            Record::Cluster(c) => txn.put_cluster(record::cluster_of(c)?),
            Record::Node(n) => txn.put_node(record::node_of(n)?),
            Record::Service(s) => txn.restore_service(record::service_of(s)?),
            Record::Task(t) => txn.add_task(record::task_of(t)?),
        }
        Ok(())
    }

    /// The state, complete.
    ///
    /// # Errors
    /// When there was no header.
    pub fn finish(self) -> Result<State, DecodeError> {
        if self.started {
            Ok(self.state)
        } else {
            Err(DecodeError::Malformed("an empty snapshot".to_owned()))
        }
    }
}

/// A hash of the state: equal on managers at the same index (promise P7).
pub fn state_hash(state: &State) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for record in encode(state) {
        context.update(&(record.len() as u64).to_be_bytes());
        context.update(&record);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::store::testing::{entries, run};
    use crate::manager::store::{codec, state::State};
    use proptest::prelude::*;

    fn restored(state: &State) -> State {
        let mut decoder = Decoder::default();
        for record in encode(state) {
            decoder.push(&record).unwrap();
        }
        decoder.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// apply(snapshot + tail) = apply(all); the indexes of a restored state are those of the
        /// original; entries survive their encoding.
        #[test]
        fn a_snapshot_and_the_tail_are_the_whole_log(log in entries(), cut in 0usize..60) {
            let whole = run(State::default(), &log);
            let cut = cut.min(log.len());
            let head = run(State::default(), &log[..cut]);
            let restored = restored(&head);
            prop_assert_eq!(state_hash(&restored), state_hash(&head));
            prop_assert_eq!(format!("{:?}", restored.index), format!("{:?}", head.index));
            let tail: Vec<_> = log[cut..]
                .iter()
                .map(|e| codec::decode_entry(&codec::encode_entry(e)).unwrap())
                .collect();
            let again = run(restored, &tail);
            prop_assert_eq!(state_hash(&again), state_hash(&whole));
            prop_assert_eq!(format!("{:?}", again.index), format!("{:?}", whole.index));
        }
    }

    #[test]
    fn a_removed_service_stays_until_its_last_task_is_gone() {
        use crate::manager::store::testing::{node, spec};
        use crate::manager::store::{Change, Entry, NewTask};
        use std::sync::Arc;
        use swarm_proto::id::{NodeId, ServiceId, TaskId};
        use swarm_proto::task_state::TaskState;
        use swarm_proto::time::Timestamp;

        let id = ServiceId::from_raw(1);
        let task = NewTask {
            id: TaskId::from_raw(1),
            slot: 1,
            desired: TaskState::Running,
            node: Some(NodeId::from_raw(1)),
            generic: [].into(),
            start_at: Timestamp::ZERO,
            after: None,
        };
        let changes = [
            Change::CreateNode(Arc::new(node(1))),
            Change::CreateService {
                id,
                spec: spec(1, 1, 1),
            },
            Change::CreateTasks {
                service: id,
                spec_version: 2,
                tasks: vec![task],
            },
            Change::RemoveService { id },
        ];
        let entry = |change| Entry {
            now: Timestamp(1),
            changes: vec![change],
        };
        let log: Vec<Entry> = changes.into_iter().map(entry).collect();
        let state = run(State::default(), &log);
        assert!(state.index.usage.contains_key(&NodeId::from_raw(1)));
        let restored = restored(&state);
        assert!(restored.services.contains_key(&id));
        assert_eq!(
            format!("{:?}", restored.index),
            format!("{:?}", state.index)
        );
    }

    #[test]
    fn refuses_what_is_no_snapshot() {
        let state = State::default();
        let records: Vec<_> = encode(&state).collect();
        let mut decoder = Decoder::default();
        decoder.push(&records[0]).unwrap();
        assert!(decoder.push(&records[0]).is_err(), "a second header");
        assert!(Decoder::default().finish().is_err(), "no header");
        assert!(Decoder::default().push(b"\xff\xff").is_err(), "no record");
    }
}
