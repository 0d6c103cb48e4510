//! Writes the tar archives of image layers: files, directories and links, the same bytes every time.

/// Archives are made of records of so many bytes.
const RECORD: usize = 512;
/// Longest path a ustar header holds without a prefix, and longest target of a link.
const PATH_MAX: usize = 100;

/// A file, directory or symbolic link of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path; that of a directory ends in a slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Where a link leads; empty for what is none.
    pub target: String,
    /// Empty for a directory and a link.
    pub content: Vec<u8>,
}

impl Entry {
    /// A file.
    pub fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            owner: (0, 0),
            target: String::new(),
            content: content.into(),
        }
    }

    /// A directory.
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::file(&format!("{}/", path.trim_end_matches('/')), mode, "")
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            target: target.to_owned(),
            ..Self::file(path, 0o777, "")
        }
    }

    /// The same, of another user and group than root's.
    #[must_use]
    pub fn owned_by(self, user: u32, group: u32) -> Self {
        Self {
            owner: (user, group),
            ..self
        }
    }
}

/// The archive; None when a path is too long for its header.
pub(crate) fn archive(entries: &[Entry]) -> Option<Vec<u8>> {
    let mut archive = Vec::new();
    for entry in entries {
        archive.extend(header(entry)?);
        archive.extend(&entry.content);
        archive.resize(archive.len().next_multiple_of(RECORD), 0);
    }
    // Two empty records end an archive.
    archive.resize(archive.len() + 2 * RECORD, 0);
    Some(archive)
}

fn header(entry: &Entry) -> Option<Vec<u8>> {
    if entry.path.len() > PATH_MAX || entry.target.len() > PATH_MAX {
        return None;
    }
    let kind = match (entry.target.is_empty(), entry.path.ends_with('/')) {
        (false, _) => b'2',
        (true, true) => b'5',
        (true, false) => b'0',
    };
    let (user, group) = entry.owner;
    let fields = |checksum: &str| {
        let mut header = Vec::with_capacity(RECORD);
        let mut field = |bytes: &[u8], length: usize| {
            let end = header.len() + length;
            header.extend(bytes);
            header.resize(end, 0);
        };
        field(entry.path.as_bytes(), PATH_MAX);
        field(format!("{:07o}", entry.mode).as_bytes(), 8);
        field(format!("{user:07o}").as_bytes(), 8);
        field(format!("{group:07o}").as_bytes(), 8);
        field(format!("{:011o}", entry.content.len()).as_bytes(), 12);
        // The epoch: an image built twice has the same digest.
        field(b"00000000000", 12);
        field(checksum.as_bytes(), 8);
        field(&[kind], 1);
        field(entry.target.as_bytes(), PATH_MAX);
        field(b"ustar\x0000", 8);
        header.resize(RECORD, 0);
        header
    };
    // The sum is taken with its own field full of spaces.
    let sum: u32 = fields("        ").iter().map(|byte| u32::from(*byte)).sum();
    Some(fields(&format!("{sum:06o}\0 ")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("layer.tar");
        let entries = [
            Entry::directory("tmp", 0o1777),
            Entry::file("tmp/a", 0o755, "hello"),
            Entry::file("b", 0o644, vec![7; RECORD]).owned_by(33, 34),
            Entry::link("c", "tmp/a"),
        ];
        std::fs::write(&file, archive(&entries).unwrap()).unwrap();
        let listed = Command::new("tar")
            .args(["--numeric-owner", "-tvf"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let first: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(
            first,
            ["drwxrwxrwt", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"],
            "{text}"
        );
        assert!(text.contains(" 33/34 "), "{text}");
        assert!(text.trim_end().ends_with("c -> tmp/a"), "{text}");
        let extracted = Command::new("tar")
            .arg("-xOf")
            .arg(&file)
            .arg("tmp/a")
            .output()
            .unwrap();
        assert_eq!(extracted.stdout, b"hello");
    }

    #[test]
    fn a_path_too_long_for_its_header_is_refused() {
        assert_eq!(archive(&[Entry::file(&"a".repeat(101), 0o644, "")]), None);
    }
}
