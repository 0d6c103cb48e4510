//! systemd's journal, by its native protocol: a datagram an entry, of fields `NAME=value\n`; a value
//! with a newline in it follows its name as `NAME\n`, its length as eight bytes (little endian), and
//! itself. Source: systemd's JOURNAL_NATIVE_PROTOCOL.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::lines::Stream;

/// Syslog's priority of what is written to standard output, and to standard error (Docker's choice).
const INFO: &str = "6";
const ERROR: &str = "3";

/// The journal as one container's writer uses it.
#[derive(Debug)]
pub(super) struct Journal {
    from: UnixDatagram,
    socket: PathBuf,
    /// The fields that all entries have in common, encoded.
    common: Vec<u8>,
    /// Entries that were not taken since the last one that was.
    lost: u64,
}

impl Journal {
    pub(super) fn open(socket: &Path, fields: &BTreeMap<String, String>) -> io::Result<Self> {
        let mut common = Vec::new();
        for (name, value) in fields.iter().filter(|(name, _)| !name.is_empty()) {
            field(&mut common, name, value.as_bytes());
        }
        Ok(Self {
            from: UnixDatagram::unbound()?,
            socket: socket.to_owned(),
            common,
            lost: 0,
        })
    }

    /// Sends an entry. One that the journal does not take (it is being restarted, say) is counted
    /// and told with the next.
    pub(super) fn add(&mut self, stream: Stream, text: &[u8]) {
        self.tell();
        let whole = text.strip_suffix(b"\n");
        if !self.send(stream, whole.unwrap_or(text), whole.is_some()) {
            self.lost += 1;
        }
    }

    /// Tells what was lost, if it can; also when the stream has ended.
    pub(super) fn tell(&mut self) {
        if self.lost == 0 {
            return;
        }
        let note = format!("{} lines before this one could not be written", self.lost);
        if self.send(Stream::Stderr, note.as_bytes(), true) {
            self.lost = 0;
        }
    }

    fn send(&self, stream: Stream, text: &[u8], whole: bool) -> bool {
        let mut entry = self.common.clone();
        let priority = match stream {
            Stream::Stdout => INFO,
            Stream::Stderr => ERROR,
        };
        field(&mut entry, "PRIORITY", priority.as_bytes());
        if !whole {
            field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        field(&mut entry, "MESSAGE", text);
        self.from.send_to(&entry, &self.socket).is_ok()
    }
}

fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_reach_the_journal_and_losses_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let fields = BTreeMap::from([("NOTE".to_owned(), "a\nb".to_owned())]);
        let mut journal = Journal::open(&socket, &fields).unwrap();
        journal.add(Stream::Stdout, b"nobody listens\n");
        let listener = UnixDatagram::bind(&socket).unwrap();
        let next = || {
            let mut buffer = [0; 4096];
            let length = listener.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        journal.add(Stream::Stderr, b"part");
        let common = "NOTE\n\u{3}\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(
            next(),
            format!("{common}PRIORITY=3\nMESSAGE=1 lines before this one could not be written\n")
        );
        assert_eq!(
            next(),
            format!("{common}PRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=part\n")
        );
        journal.add(Stream::Stdout, b"whole\n");
        assert_eq!(next(), format!("{common}PRIORITY=6\nMESSAGE=whole\n"));
    }
}
