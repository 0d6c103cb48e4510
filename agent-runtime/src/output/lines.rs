//! From the bytes of a stream to entries: one a line, and of a long line several.

/// Longest entry in bytes, as in Docker: a longer line is several entries, of which only the last
/// ends with a newline.
pub(super) const ENTRY_MAX: usize = 16 << 10;

/// Which stream an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Splits one stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line that has not ended yet; shorter than [`ENTRY_MAX`].
    begun: Vec<u8>,
}

impl Lines {
    /// Takes what was read, and hands on the entries that it completes.
    pub(super) fn push(&mut self, mut data: &[u8], mut entry: impl FnMut(&[u8])) {
        while !data.is_empty() {
            let room = ENTRY_MAX - self.begun.len();
            let window = data.get(..room).unwrap_or(data);
            let newline = window.iter().position(|byte| *byte == b'\n');
            let end = newline.map_or(window.len(), |at| at + 1);
            let (part, rest) = data.split_at(end);
            data = rest;
            let complete = newline.is_some() || part.len() == room;
            if self.begun.is_empty() && newline.is_some() {
                entry(part);
                continue;
            }
            self.begun.extend_from_slice(part);
            if complete {
                let cut = match newline {
                    Some(_) => self.begun.len(),
                    None => character_border(&self.begun),
                };
                let rest = self.begun.split_off(cut);
                entry(&self.begun);
                self.begun = rest;
            }
        }
    }

    /// The stream has ended: what had begun is an entry too.
    pub(super) fn end(&mut self, entry: impl FnOnce(&[u8])) {
        if !self.begun.is_empty() {
            entry(&self.begun);
            self.begun = Vec::new();
        }
    }
}

/// Where a long line is cut: before a character that has begun and is not whole.
fn character_border(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // Whole, or no text at all.
        Ok(_) | Err(_) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut entries = Vec::new();
        for part in parts {
            lines.push(part, |entry| entries.push(entry.to_vec()));
        }
        lines.end(|entry| entries.push(entry.to_vec()));
        entries
    }

    #[test]
    fn lines_wait_for_their_end() {
        assert_eq!(
            split(&[b"a", b"b\nc\n\nd"]),
            [&b"ab\n"[..], b"c\n", b"\n", b"d"]
        );
        assert_eq!(split(&[]), Vec::<Vec<u8>>::new());
        let long = vec![b'x'; 2 * ENTRY_MAX + 1];
        let lengths: Vec<usize> = split(&[&long]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [ENTRY_MAX, ENTRY_MAX, 1]);
        // No character is torn; what is no text is cut anywhere.
        let text = "a".to_owned() + &"é".repeat(ENTRY_MAX);
        let entries = split(&[text.as_bytes()]);
        assert_eq!(entries.concat(), text.as_bytes());
        assert!(entries.iter().all(|entry| str::from_utf8(entry).is_ok()));
        let noise = vec![0xff; ENTRY_MAX + 1];
        let lengths: Vec<usize> = split(&[&noise]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [ENTRY_MAX, 1]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_arrives(
            parts in prop::collection::vec(prop::collection::vec(prop::sample::select(b"ab\n".as_slice()), 0..9000), 0..8)
        ) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let entries = split(&parts);
            prop_assert_eq!(entries.concat(), parts.concat());
            for (i, entry) in entries.iter().enumerate() {
                prop_assert!(!entry.is_empty() && entry.len() <= ENTRY_MAX);
                let inner = entry.split_last().map_or(&[][..], |(_, inner)| inner);
                prop_assert!(!inner.contains(&b'\n'));
                let ends = entry.ends_with(b"\n") || entry.len() == ENTRY_MAX;
                prop_assert!(ends || i + 1 == entries.len());
            }
        }
    }
}
