//! The store as consensus drives it.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::watch::Hub;
use super::{Applied, Entry, State, apply, codec, snapshot};
use crate::manager::raft::{Machine, MachineError};
use crate::manager::writer::Written;

/// Largest record of a snapshot, bytes. A service with every spec that its tasks refer to is the largest object, some
/// MiB at the very most; a damaged length is not.
const RECORD_MAX: usize = 1 << 30;

/// Applies entries and announces what they did.
#[derive(Debug)]
pub struct StoreMachine {
    state: State,
    hub: Hub,
}

impl StoreMachine {
    /// An empty store that announces through `hub`.
    pub fn new(hub: Hub) -> Self {
        Self {
            state: State::default(),
            hub,
        }
    }
}

impl Machine for StoreMachine {
    type Changes = Entry;
    type Outcome = Written;
    type View = State;

    fn decode(encoded: Bytes) -> Result<Entry, MachineError> {
        Ok(codec::decode_entry(&encoded)?)
    }

    fn apply(&mut self, index: u64, entry: Entry) -> Written {
        let Applied { results, events } = apply(&mut self.state, index, &entry);
        self.hub.publish(self.state.clone(), events);
        Written {
            version: index,
            results,
        }
    }

    fn view(&self) -> State {
        self.state.clone()
    }

    fn write_snapshot(view: &State, out: &mut dyn Write) -> io::Result<()> {
        for record in snapshot::encode(view) {
            if record.len() > RECORD_MAX {
                let len = record.len();
                return Err(io::Error::other(format!(
                    "an object of {len} bytes is over {RECORD_MAX}"
                )));
            }
            let len = u32::try_from(record.len()).map_err(io::Error::other)?;
            out.write_all(&len.to_be_bytes())?;
            out.write_all(&record)?;
        }
        // A record is never empty: zero marks the end, so a cut-off snapshot is noticed.
        out.write_all(&0_u32.to_be_bytes())
    }

    fn read_snapshot(input: &mut dyn Read) -> Result<State, MachineError> {
        let mut decoder = snapshot::Decoder::default();
        let mut record = Vec::new();
        loop {
            let mut len = [0; 4];
            input.read_exact(&mut len)?;
            let len = usize::try_from(u32::from_be_bytes(len))?;
            if len == 0 {
                return Ok(decoder.finish()?);
            }
            if len > RECORD_MAX {
                return Err(format!("a record of {len} bytes is over {RECORD_MAX}").into());
            }
            record.clear();
            // Memory comes with the bytes, not with what is said of them.
            let read = input.take(u64::try_from(len)?).read_to_end(&mut record)?;
            if read < len {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            decoder.push(&record)?;
        }
    }

    fn restore(&mut self, index: u64, view: State) {
        self.state = view;
        self.state.version = index;
        self.hub.reset(self.state.clone());
    }
}
