//! A backup: the whole state of a cluster as one file.
//!
//! ```text
//! magic (8 bytes) | frame* | end
//! frame = length (u32, big endian, at least 1) | bytes
//! end   = 0 (u32) | SHA-256 of everything before (32 bytes)
//! ```
//!
//! The first frame is a [`own::BackupHeader`], the others together are the state as a snapshot has it. A backup is read
//! twice: first its checksum, which finds every flipped bit, cut and addition, and only then what it says, so that no
//! parser sees damaged bytes. Both ways need bounded memory besides the state itself.
//!
//! It holds the cluster's CA key, join tokens and credentials in the clear: what it is sealed by is up to who keeps it.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use prost::Message as _;
use ring::digest::{Context, SHA256};
use swarm_proto::own;
use swarm_proto::own::backup_part::Part;
use swarm_proto::time::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::raft::{
    Epoch, Former, Gate, Machine as _, MachineError, Member, Membership, Published, RaftId,
    RaftStatus, read_former,
};
use super::store::State;
use super::store::machine::StoreMachine;
use crate::process;

const MAGIC: &[u8; 8] = b"SWRMBAK1";
/// What all formats begin with; a digit follows.
const FAMILY: &[u8] = b"SWRMBAK";
/// The format of the header and the state.
const FORMAT: u32 = 1;
/// Bytes of state in a frame.
const FRAME: usize = 256 << 10;
/// Largest frame that is read: the header of a cluster of many managers is a few KiB.
const FRAME_MAX: usize = 1 << 20;
const SUM: usize = 32;
/// Backups under way at once: each holds a state and a thread for as long as its taker takes.
const AT_ONCE: usize = 4;
/// Pieces that are made ahead of who takes them.
const AHEAD: usize = 2;

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error(
        "it is no backup of a cluster: it does not begin as one; `swarmctl cluster backup FILE` makes one"
    )]
    Foreign,
    /// Of a later version.
    #[error(
        "it is a backup of format {found}, and this swarmd reads format {FORMAT}: use the version that made it"
    )]
    Format {
        /// Its format.
        found: String,
    },
    /// Cut, altered or extended.
    #[error("it is damaged: {problem}; take another copy, or another backup")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// By a key that this version does not know how to ask for.
    #[error("it is sealed ({seal}), which this swarmd can't open: use the version that made it")]
    Sealed {
        /// How.
        seal: String,
    },
    /// The system.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
}

fn damaged(problem: impl std::fmt::Display) -> BackupError {
    BackupError::Damaged {
        problem: problem.to_string(),
    }
}

/// How a backup of this state is sealed. The one place that decides it: where managers are locked, it would name the
/// unlock key here, [`write()`] would seal each frame, and its reader ask for the key.
fn seal_of(_: &State) -> String {
    String::new()
}

/// What a backup of this state says of itself.
pub(crate) fn header(
    published: &Published<State>,
    (status, former): (&RaftStatus, Vec<Former>),
    (epoch, now): (Epoch, Timestamp),
) -> own::BackupHeader {
    let state = &published.view;
    let wire = |id: RaftId, member: &Member| own::RaftMember {
        id,
        node_id: member.node_id.clone(),
        addresses: member.addresses.clone(),
    };
    let members = status.members.iter();
    let members = members.map(|(id, known)| wire(*id, &known.member));
    let former = former.iter().map(|left| wire(left.id, &left.member));
    own::BackupHeader {
        epoch: Some(epoch.to_wire()),
        term: published.term,
        members: members.collect(),
        former: former.collect(),
        ..header_of(state, published.index, now)
    }
}

/// The part of a header that the state itself says; of the first epoch.
#[must_use]
pub fn header_of(state: &State, index: u64, now: Timestamp) -> own::BackupHeader {
    let cluster = state.cluster.as_ref();
    own::BackupHeader {
        format: FORMAT,
        cluster_id: cluster.map(|c| c.id.to_string()).unwrap_or_default(),
        epoch: Some(Epoch::FIRST.to_wire()),
        index,
        term: 1,
        created_at: now.0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: state.nodes.len() as u64,
        services: state.services.len() as u64,
        tasks: state.tasks.len() as u64,
        members: Vec::new(),
        former: Vec::new(),
        seal: seal_of(state),
    }
}

/// Writes a backup; returns how many bytes it has. Blocks.
///
/// # Errors
/// When `out` fails.
pub fn write(out: impl Write, header: &own::BackupHeader, state: &State) -> io::Result<u64> {
    let mut writer = Writer {
        out,
        sum: Context::new(&SHA256),
        buffer: header.encode_to_vec(),
        total: 0,
    };
    writer.put(MAGIC)?;
    writer.end_frame()?;
    StoreMachine::write_snapshot(state, &mut writer)?;
    writer.end_frame()?;
    writer.put(&0_u32.to_be_bytes())?;
    let sum = writer.sum.clone().finish();
    writer.put(sum.as_ref())?;
    writer.out.flush()?;
    Ok(writer.total)
}

struct Writer<W> {
    out: W,
    sum: Context,
    buffer: Vec<u8>,
    total: u64,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.total += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut frame = std::mem::take(&mut self.buffer);
        let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.put(&len.to_be_bytes())?;
        self.put(&frame)?;
        frame.clear();
        self.buffer = frame;
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = FRAME.saturating_sub(self.buffer.len());
        let (now, _) = data.split_at(room.min(data.len()));
        self.buffer.extend_from_slice(now);
        if self.buffer.len() >= FRAME {
            self.end_frame()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the frames, and checks the sum at their end.
struct Frames<R> {
    input: R,
    sum: Context,
    ended: bool,
}

impl<R: Read> Frames<R> {
    fn begin(mut input: R) -> Result<Self, BackupError> {
        let mut magic = [0; MAGIC.len()];
        let read = fill(&mut input, &mut magic)?;
        let (family, format) = magic.split_at(FAMILY.len());
        if read < FAMILY.len() || family != FAMILY {
            return Err(BackupError::Foreign);
        }
        if read < MAGIC.len() {
            return Err(cut());
        }
        if magic != *MAGIC {
            return Err(BackupError::Format {
                found: String::from_utf8_lossy(format).into_owned(),
            });
        }
        let mut sum = Context::new(&SHA256);
        sum.update(&magic);
        Ok(Self {
            input,
            sum,
            ended: false,
        })
    }

    /// The next frame, into `frame`; false at the end of a file that is whole.
    fn next(&mut self, frame: &mut Vec<u8>) -> Result<bool, BackupError> {
        frame.clear();
        if self.ended {
            return Ok(false);
        }
        let mut len = [0; 4];
        if fill(&mut self.input, &mut len)? < len.len() {
            return Err(cut());
        }
        self.sum.update(&len);
        let len = u32::from_be_bytes(len) as usize;
        if len == 0 {
            self.end()?;
            return Ok(false);
        }
        if len > FRAME_MAX {
            return Err(damaged("a frame is too long"));
        }
        // Memory comes with the bytes, not with what is said of them.
        let read = (&mut self.input).take(len as u64).read_to_end(frame)?;
        if read < len {
            return Err(cut());
        }
        self.sum.update(frame);
        Ok(true)
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let mut sum = [0; SUM];
        if fill(&mut self.input, &mut sum)? < SUM {
            return Err(cut());
        }
        if self.sum.clone().finish().as_ref() != sum {
            return Err(damaged("its checksum does not match its content"));
        }
        if fill(&mut self.input, &mut [0])? > 0 {
            return Err(damaged("something follows its end"));
        }
        self.ended = true;
        Ok(())
    }
}

fn cut() -> BackupError {
    damaged("it is cut short")
}

/// Reads until the buffer is full or the input ends; says how much.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..)
        && !rest.is_empty()
    {
        match input.read(rest) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

/// Reads all of a backup and checks it; says what it is of. Blocks.
///
/// # Errors
/// Why it can't be used.
pub fn check(input: impl Read) -> Result<own::BackupHeader, BackupError> {
    let mut frames = Frames::begin(input)?;
    let (mut first, mut frame) = (Vec::new(), Vec::new());
    if !frames.next(&mut first)? {
        return Err(damaged("it is empty"));
    }
    while frames.next(&mut frame)? {}
    let header = own::BackupHeader::decode(first.as_slice()).map_err(damaged)?;
    if header.format != FORMAT {
        return Err(BackupError::Format {
            found: header.format.to_string(),
        });
    }
    if !header.seal.is_empty() {
        return Err(BackupError::Sealed { seal: header.seal });
    }
    Ok(header)
}

/// Reads the state of a backup that was checked. Blocks.
///
/// # Errors
/// When it has changed since, or this version does not know an object in it.
pub fn state(input: impl Read) -> Result<State, BackupError> {
    let mut frames = Frames::begin(input)?;
    let mut frame = Vec::new();
    frames.next(&mut frame)?;
    frame.clear();
    let mut input = Content {
        frames,
        frame,
        at: 0,
    };
    let state = StoreMachine::read_snapshot(&mut input);
    let state = state.map_err(|error: MachineError| damaged(error))?;
    match fill(&mut input, &mut [0])? {
        0 => Ok(state),
        _ => Err(damaged("something follows the state")),
    }
}

/// The bytes of the frames, one after the other.
struct Content<R> {
    frames: Frames<R>,
    frame: Vec<u8>,
    at: usize,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.frame.len() {
            self.at = 0;
            self.frames
                .next(&mut self.frame)
                .map_err(io::Error::other)?;
        }
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let count = rest.len().min(out.len());
        let (now, _) = rest.split_at(count);
        out.split_at_mut(count).0.copy_from_slice(now);
        self.at += count;
        Ok(count)
    }
}

/// A backup in pieces, made as fast as they are taken.
pub type Pieces = ReceiverStream<Result<own::BackupPart, Status>>;

/// Sends a backup of a state. `held` is let go when nobody works on it any more.
pub fn send(header: own::BackupHeader, state: State, held: impl Send + 'static) -> Pieces {
    let (pieces, taken) = mpsc::channel(AHEAD);
    // It ends when the pieces are taken, or nobody is there to take them.
    drop(tokio::task::spawn_blocking(move || {
        let mut out = Out { pieces };
        let sent = out
            .part(Part::Header(header.clone()))
            .and_then(|()| write(&mut out, &header, &state))
            .and_then(|total| out.part(Part::End(total)));
        if let Err(error) = sent {
            tracing::debug!(%error, "a backup was not taken to its end");
        }
        drop(held);
    }));
    ReceiverStream::new(taken)
}

struct Out {
    pieces: mpsc::Sender<Result<own::BackupPart, Status>>,
}

impl Out {
    fn part(&self, part: Part) -> io::Result<()> {
        let part = own::BackupPart { part: Some(part) };
        let sent = self.pieces.blocking_send(Ok(part));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Out {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = data.get(..FRAME).unwrap_or(data);
        self.part(Part::Data(bytes::Bytes::copy_from_slice(data)))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a running manager makes backups of.
#[derive(Debug, Clone)]
pub struct Source {
    published: watch::Receiver<Published<State>>,
    membership: Membership<StoreMachine>,
    /// Which epoch it is of: a manager that has just joined takes it over from its leader, after this was made.
    gate: Arc<Gate>,
    raft_dir: PathBuf,
    room: Arc<Semaphore>,
}

impl Source {
    /// Of this member of consensus.
    pub(crate) fn new(
        published: watch::Receiver<Published<State>>,
        membership: Membership<StoreMachine>,
        (gate, raft_dir): (Arc<Gate>, PathBuf),
    ) -> Self {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self {
            published,
            membership,
            gate,
            raft_dir,
            room,
        }
    }

    /// A backup of the newest applied state.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED while others are under way; UNAVAILABLE while this manager is of no epoch yet: what is restored
    /// from such a backup would fence nobody.
    pub async fn backup(&self, now: Timestamp) -> Result<Pieces, Status> {
        let held = Arc::clone(&self.room).try_acquire_owned();
        let held = held.map_err(|_| {
            Status::resource_exhausted(format!(
                "{AT_ONCE} backups are under way on the leader; wait until one is done"
            ))
        })?;
        let epoch = self.gate.epoch();
        if epoch == Epoch::NONE {
            return Err(Status::unavailable(
                "this manager has not heard from its leader yet, and does not know which epoch the cluster is in: try \
                 again later, or make the backup on another manager",
            ));
        }
        let published = self.published.borrow().clone();
        let status = self.membership.status();
        let raft_dir = self.raft_dir.clone();
        let former = process::blocking(move || read_former(&raft_dir)).await;
        let former = former.map_err(|stopped| Status::unavailable(stopped.to_string()))?;
        let former = former.unwrap_or_else(|error| {
            tracing::warn!(%error, "a backup does not know who was left behind by a recovery");
            Vec::new()
        });
        let header = header(&published, (&status, former), (epoch, now));
        Ok(send(header, published.view, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::images::RegistryResolver;
    use crate::manager::raft::{Sender, Start, Timing};
    use crate::manager::store::snapshot::state_hash;
    use crate::manager::store::testing::{node, run};
    use crate::manager::store::{Change, Entry};
    use crate::manager::{Manager, ManagerConfig};
    use crate::seal::Seal;
    use agent_runtime::registry::Registries;
    use std::sync::Arc;
    use swarm_proto::id::NodeId;

    fn some_state(nodes: u8) -> State {
        let changes = (1..=nodes).map(|id| Change::CreateNode(Arc::new(node(id))));
        let entry = Entry {
            now: Timestamp(1),
            changes: changes.collect(),
        };
        run(State::default(), &[entry])
    }

    fn backup(state: &State) -> Vec<u8> {
        let mut file = Vec::new();
        let header = header_of(state, 7, Timestamp(1));
        let total = write(&mut file, &header, state).unwrap();
        assert_eq!(total, file.len() as u64);
        file
    }

    #[test]
    fn what_is_written_is_read() {
        for nodes in [0, 1, 200] {
            let before = some_state(nodes);
            let file = backup(&before);
            let header = check(file.as_slice()).unwrap();
            assert_eq!((header.index, header.nodes), (7, u64::from(nodes)));
            assert_eq!(
                state_hash(&state(file.as_slice()).unwrap()),
                state_hash(&before)
            );
        }
    }

    #[test]
    fn every_cut_every_flipped_bit_and_every_addition_is_found() {
        let file = backup(&some_state(2));
        for cut in 0..file.len() {
            let error = check(&file[..cut]).unwrap_err().to_string();
            let known = error.contains("is cut short") || cut < 7 && error.contains("no backup");
            assert!(known, "cut at {cut}: {error}");
        }
        let mut file = file;
        for bit in 0..file.len() * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            assert!(check(file.as_slice()).is_err(), "bit {bit}");
            file[bit / 8] ^= 1 << (bit % 8);
        }
        file.push(0);
        let error = check(file.as_slice()).unwrap_err().to_string();
        assert!(error.contains("something follows its end"), "{error}");
    }

    #[test]
    fn what_this_version_can_not_read_is_told_apart() {
        let state = some_state(1);
        for other in [&b""[..], b"PK\x03\x04 a zip file", b"SWRM", &[0; 4096]] {
            let error = check(other).unwrap_err();
            assert!(matches!(error, BackupError::Foreign), "{error}");
        }
        let mut file = backup(&state);
        file[7] = b'2';
        let error = check(file.as_slice()).unwrap_err().to_string();
        assert!(
            error.contains("format 2") && error.contains("use the version"),
            "{error}"
        );
        let with = |change: fn(&mut own::BackupHeader)| {
            let mut header = header_of(&state, 1, Timestamp(1));
            change(&mut header);
            let mut file = Vec::new();
            write(&mut file, &header, &state).unwrap();
            check(file.as_slice()).unwrap_err()
        };
        let later = with(|header| header.format = 9);
        assert!(matches!(later, BackupError::Format { found } if found == "9"));
        let sealed = with(|header| header.seal = "unlock-key".to_owned());
        assert!(matches!(sealed, BackupError::Sealed { .. }));
    }

    #[tokio::test]
    async fn a_manager_that_joined_says_the_epoch_that_it_took_over() {
        use tokio_stream::StreamExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = ManagerConfig {
            node_id: NodeId::from_raw(1),
            state_dir: dir.path().to_owned(),
            timing: Timing::default(),
            addresses: Vec::new(),
            says: Vec::new(),
            here: Vec::new,
            start: Start::Join,
            resolver: Arc::new(RegistryResolver(Registries::default())),
            seal: Seal::default(),
        };
        let manager = Manager::start(config, Clock::real()).await.unwrap();
        let source = manager.backups();
        let refused = source.backup(Timestamp(1)).await.unwrap_err();
        let text = refused.message();
        assert!(text.contains("not heard from its leader"), "{text}");
        // What its leader's first append does.
        let epoch = Epoch::FIRST.next(7);
        manager.gate().admit_epoch(epoch, Sender::Leader).unwrap();
        let mut pieces = source.backup(Timestamp(1)).await.unwrap();
        let first = pieces.next().await.unwrap().unwrap().part.unwrap();
        let Part::Header(header) = first else {
            panic!("{first:?}");
        };
        assert_eq!(Epoch::of_wire(header.epoch), epoch);
        drop(pieces);
        manager.shutdown().await;
    }

    #[tokio::test]
    async fn it_is_sent_in_bounded_pieces() {
        use tokio_stream::StreamExt as _;
        let before = some_state(200);
        let header = header_of(&before, 1, Timestamp(1));
        let mut pieces = send(header, before.clone(), ());
        let (mut file, mut end) = (Vec::new(), None);
        while let Some(piece) = pieces.next().await {
            match piece.unwrap().part.unwrap() {
                Part::Header(header) => assert!(file.is_empty() && header.nodes == 200),
                Part::Data(data) => {
                    assert!(data.len() <= FRAME);
                    file.extend_from_slice(&data);
                }
                Part::End(total) => end = Some(total),
            }
        }
        assert_eq!(end, Some(file.len() as u64));
        assert_eq!(
            state_hash(&state(file.as_slice()).unwrap()),
            state_hash(&before)
        );
    }
}
