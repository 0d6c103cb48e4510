//! Files of JSON lines, as Docker's `json-file` driver writes them:
//! `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}`.
//!
//! An entry is whole in one file. A file that would get too large is renamed to `.1`, the one
//! before to `.2`, and so on; the oldest goes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::lines::Stream;

/// Mode of the files: output may hold secrets.
const MODE: u32 = 0o640;
/// Bytes that are written at once.
const BATCH: usize = 64 << 10;

/// The files of one container.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// None where it could not be opened: tried again with each write.
    file: Option<File>,
    /// Bytes in the current file.
    size: u64,
    limit: Option<u64>,
    count: u32,
    attrs: BTreeMap<String, String>,
    /// Entries that are not written yet.
    batch: Vec<u8>,
    batch_entries: u64,
    /// Entries that could not be written, and were not told yet.
    lost: u64,
    /// So many of them are told by the batch.
    told: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    log: &'a str,
    stream: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attrs: &'a BTreeMap<String, String>,
    time: &'a str,
}

impl Files {
    pub(super) fn open(
        path: &Path,
        (limit, count): (Option<u64>, u32),
        attrs: BTreeMap<String, String>,
    ) -> Self {
        let mut files = Self {
            path: path.to_owned(),
            size: 0,
            file: None,
            limit,
            count,
            attrs,
            batch: Vec::new(),
            batch_entries: 0,
            lost: 0,
            told: 0,
        };
        // What can't be opened now may be later: the container does not wait for that.
        let _ = files.reopen();
        files
    }

    /// The current file, opened (again) where it is not.
    fn reopen(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = create(&self.path)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Adds an entry; it is in the file after [`Files::flush`].
    pub(super) fn add(&mut self, stream: Stream, text: &[u8], time: &str) {
        self.tell(time);
        self.put((stream, 1), &String::from_utf8_lossy(text), time);
    }

    /// The stream has ended: nothing comes that could tell later what was lost.
    pub(super) fn end(&mut self, time: &str) {
        self.flush();
        self.tell(time);
        self.flush();
    }

    /// Says what was lost, once that can be written again.
    fn tell(&mut self, time: &str) {
        if self.lost > self.told {
            self.flush();
        }
        if self.lost > self.told {
            self.told = self.lost;
            let note = format!("{} lines before this one could not be written\n", self.lost);
            // The note itself is no line of the container's: it does not count if it is lost too.
            self.put((Stream::Stderr, 0), &note, time);
        }
    }

    /// Adds an entry that counts as so many of the container's.
    fn put(&mut self, (stream, count): (Stream, u64), text: &str, time: &str) {
        let entry = Entry {
            log: text,
            stream: stream.name(),
            attrs: &self.attrs,
            time,
        };
        let before = self.batch.len();
        // Writing to memory does not fail.
        let encoded = serde_json::to_writer(&mut self.batch, &entry);
        debug_assert!(encoded.is_ok());
        self.batch.push(b'\n');
        self.batch_entries += count;
        let full = self
            .limit
            .is_some_and(|limit| self.size + self.batch.len() as u64 > limit);
        if full {
            let last = self.batch.split_off(before);
            self.batch_entries -= count;
            self.flush();
            self.rotate();
            self.batch = last;
            self.batch_entries = count;
        }
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes what was added. What can't be written is counted, and told with the next entry that can: a full disk
    /// does not stop the container.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        match self.reopen().and_then(|file| file.write_all(&batch)) {
            Ok(()) => {
                self.size += batch.len() as u64;
                self.lost -= self.told;
            }
            Err(_) => {
                self.lost += self.batch_entries;
                // Half an entry would spoil the line of the next one.
                if let Some(file) = &self.file {
                    let _ = file.set_len(self.size);
                }
            }
        }
        self.batch = batch;
        self.batch.clear();
        self.batch_entries = 0;
        self.told = 0;
    }

    /// Begins a new file. Where that fails the old one goes on, and the older ones stay.
    fn rotate(&mut self) {
        if self.size == 0 {
            return;
        }
        // First, so that nothing has changed where no file can be made. Somebody may have taken the
        // current one away; it goes on under its name.
        let next = self.path.with_extension("log.next");
        let Ok(file) = create(&next).and_then(|file| file.set_len(0).map(|()| file)) else {
            return;
        };
        for number in (1..self.count.saturating_sub(1)).rev() {
            let _ = std::fs::rename(self.older(number), self.older(number + 1));
        }
        if self.count > 1 {
            let _ = std::fs::rename(&self.path, self.older(1));
        }
        match std::fs::rename(&next, &self.path) {
            Ok(()) => {
                self.file = Some(file);
                self.size = 0;
            }
            Err(_) => {
                // Opened by its name again, with what is in it.
                self.file = None;
            }
        }
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.000000006Z";

    fn read(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (None, 1), BTreeMap::new());
        files.add(Stream::Stdout, b"a \"b\"\t\xff\x1b[0m\n", TIME);
        files.flush();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"log\":\"a \\\"b\\\"\\t\u{fffd}\\u001b[0m\\n\",\"stream\":\"stdout\",\
             \"time\":\"2026-01-02T03:04:05.000000006Z\"}\n"
        );
        // Another writer, of the container's next process, goes on where this one ended.
        let attrs = BTreeMap::from([("tag".to_owned(), "t".to_owned())]);
        let mut files = Files::open(&path, (None, 1), attrs);
        files.add(Stream::Stderr, b"part", TIME);
        files.flush();
        let entries = read(&path);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["attrs"]["tag"], "t");
        assert_eq!(entries[1]["log"], "part");
        assert_eq!(entries[1]["stream"], "stderr");
    }

    #[test]
    fn files_rotate_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (Some(1000), 3), BTreeMap::new());
        for number in 0..100 {
            files.add(Stream::Stdout, format!("line {number}\n").as_bytes(), TIME);
        }
        files.flush();
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["x-json.log", "x-json.log.1", "x-json.log.2"]);
        let mut kept = Vec::new();
        for name in ["x-json.log.2", "x-json.log.1", "x-json.log"] {
            let path = dir.path().join(name);
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
            kept.extend(read(&path).into_iter().map(|entry| entry["log"].clone()));
        }
        // The newest, without a gap.
        let expected: Vec<String> = (100 - kept.len()..100)
            .map(|n| format!("line {n}\n"))
            .collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn a_single_file_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (Some(300), 1), BTreeMap::new());
        for number in 0..10 {
            files.add(Stream::Stdout, format!("line {number}\n").as_bytes(), TIME);
        }
        files.flush();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(&path).last().unwrap()["log"], "line 9\n");
        assert!(std::fs::metadata(&path).unwrap().len() <= 300);
    }

    #[test]
    fn what_a_full_disk_swallowed_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (None, 1), BTreeMap::new());
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let good = files.file.replace(full);
        for line in ["a\n", "b\n"] {
            files.add(Stream::Stdout, line.as_bytes(), TIME);
            files.flush();
        }
        files.file = good;
        files.add(Stream::Stdout, b"c\n", TIME);
        files.flush();
        let logs: Vec<_> = read(&path)
            .into_iter()
            .map(|entry| entry["log"].clone())
            .collect();
        assert_eq!(
            logs,
            ["2 lines before this one could not be written\n", "c\n"]
        );
    }

    #[test]
    fn what_was_lost_at_the_end_is_told_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (Some(1000), 1), BTreeMap::new());
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let good = files.file.replace(full);
        files.add(Stream::Stdout, b"a\n", TIME);
        files.flush();
        files.file = good;
        files.end(TIME);
        files.end(TIME);
        let logs: Vec<_> = read(&path)
            .iter()
            .map(|entry| entry["log"].clone())
            .collect();
        assert_eq!(logs, ["1 lines before this one could not be written\n"]);
    }

    #[test]
    fn a_file_that_was_taken_away_costs_no_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut files = Files::open(&path, (Some(300), 4), BTreeMap::new());
        let mut write = |from: u32, to: u32| {
            for number in from..to {
                files.add(Stream::Stdout, format!("line {number}\n").as_bytes(), TIME);
            }
            files.flush();
        };
        write(0, 5);
        let older = std::fs::read(dir.path().join("x-json.log.1")).unwrap();
        std::fs::remove_file(&path).unwrap();
        write(5, 9);
        // What was in the file is gone; what follows is written, within the limit.
        assert_eq!(
            std::fs::read(dir.path().join("x-json.log.2")).unwrap(),
            older
        );
        assert_eq!(read(&path).last().unwrap()["log"], "line 8\n");
        assert!(std::fs::metadata(&path).unwrap().len() <= 300);
    }

    #[test]
    fn a_directory_that_comes_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late/x-json.log");
        let mut files = Files::open(&path, (None, 1), BTreeMap::new());
        files.add(Stream::Stdout, b"a\n", TIME);
        files.flush();
        std::fs::create_dir(dir.path().join("late")).unwrap();
        files.add(Stream::Stdout, b"b\n", TIME);
        files.flush();
        assert_eq!(read(&path).last().unwrap()["log"], "b\n");
    }
}
