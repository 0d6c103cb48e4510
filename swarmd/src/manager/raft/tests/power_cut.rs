//! Power cuts: a disk that remembers every write and every sync, cut at any moment. What was synced
//! is there, what wasn't may be there, in any combination, torn at any byte.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::StorageBackend;

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A disk in memory that keeps its history.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    content: Arc<Mutex<Vec<u8>>>,
    history: Arc<Mutex<Vec<Step>>>,
    full: Arc<AtomicBool>,
    syncs: Arc<AtomicUsize>,
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.content.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let content = self.content.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let bytes = content.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.keep(Step::SetLen(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.keep(Step::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.keep(Step::Write(offset, data.to_vec()))
    }
}

impl Disk {
    fn keep(&self, step: Step) -> Result<(), io::Error> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        play(&mut self.content.lock().unwrap(), &step);
        self.history.lock().unwrap().push(step);
        Ok(())
    }

    pub(super) fn database(&self) -> redb::Database {
        redb::Builder::new()
            .create_with_backend(self.clone())
            .unwrap()
    }

    pub(super) fn now(&self) -> usize {
        self.history.lock().unwrap().len()
    }

    pub(super) fn history(&self) -> Vec<Step> {
        self.history.lock().unwrap().clone()
    }
}

fn play(content: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let from = usize::try_from(*offset).unwrap();
            content[from..from + data.len()].copy_from_slice(data);
        }
        Step::SetLen(len) => content.resize(usize::try_from(*len).unwrap(), 0),
        Step::Sync => {}
    }
}

/// What may be on the disk after a cut at step `at`.
pub(super) fn image(history: &[Step], at: usize, rng: &mut StdRng) -> Vec<u8> {
    let (before, _) = history.split_at(at);
    let synced = before
        .iter()
        .rposition(|s| matches!(s, Step::Sync))
        .unwrap_or(0);
    let mut content = Vec::new();
    for (i, step) in before.iter().enumerate() {
        let mut step = step.clone();
        if let Step::Write(_, data) = &mut step
            && i > synced
        {
            // Written, torn, or lost.
            match rng.random_range(0..4) {
                0 | 1 => {}
                2 => data.truncate(rng.random_range(0..=data.len())),
                _ => data.clear(),
            }
        }
        play(&mut content, &step);
    }
    content
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let disk = Disk::default();
    let dek = Dek::generate().unwrap();
    let mut log = new_log(disk.database(), &dek);
    let start = disk.now();
    // (step at which it was known to be durable, index)
    let mut acked = Vec::new();
    let mut pending = Vec::new();
    for i in 0..120 {
        let line = format!("line {i} {}", "x".repeat(i * 7 % 900));
        let flushed = append_later(&mut log, vec![entry(1, i as u64, &line)]).await;
        pending.push((i as u64, flushed));
        if i % 3 == 0 {
            for (index, flushed) in pending.drain(..) {
                flushed.await.unwrap().unwrap();
                acked.push((disk.now(), index));
            }
        }
        if i % 40 == 0 {
            log.save_committed(Some(log_id(1, i as u64))).await.unwrap();
            log.save_vote(&vote(1 + i as u64)).await.unwrap();
        }
    }
    close(log).await;
    let history = disk.history();
    let mut rng = StdRng::seed_from_u64(7);
    for cut in (start..=history.len()).step_by(3) {
        check_cut(&image(&history, cut, &mut rng), cut, &acked, &dek);
    }
}

fn check_cut(image: &[u8], cut: usize, acked: &[(usize, u64)], dek: &Dek) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    std::fs::write(&path, image).unwrap();
    let opened = LogFile::open(&super::Disk::Real, &path, (&ring(dek), Path::new("dek")));
    let (_, loaded) = opened.unwrap_or_else(|e| panic!("cut at step {cut}: {e}"));
    let durable = acked.iter().rfind(|(step, _)| *step <= cut);
    let found = loaded.last.map(|id| id.index);
    assert!(
        found >= durable.map(|(_, index)| *index),
        "cut at step {cut}: {durable:?} was acknowledged, {found:?} is there"
    );
}

#[tokio::test]
async fn a_cut_in_the_middle_of_a_truncation_and_a_purge_leaves_no_hole() {
    let disk = Disk::default();
    let dek = Dek::generate().unwrap();
    let mut log = new_log(disk.database(), &dek);
    let start = disk.now();
    let mut next = 0;
    for round in 1..=12 {
        let entries: Vec<Entry> = (next..next + 20).map(|i| entry(round, i, "x")).collect();
        append(&mut log, entries).await;
        log.truncate_after(Some(log_id(round, next + 11)))
            .await
            .unwrap();
        log.purge(log_id(round, next + 3)).await.unwrap();
        next += 12;
    }
    close(log).await;
    let history = disk.history();
    let mut rng = StdRng::seed_from_u64(8);
    for cut in start..=history.len() {
        // Opening checks that there is no hole.
        check_cut(&image(&history, cut, &mut rng), cut, &[], &dek);
    }
}

#[tokio::test]
async fn requests_that_wait_share_a_sync_and_are_answered_in_order() {
    let disk = Disk::default();
    let dek = Dek::generate().unwrap();
    let mut log = new_log(disk.database(), &dek);
    let before = disk.syncs.load(Ordering::SeqCst);
    let mut waiting = Vec::new();
    for i in 0..500 {
        waiting.push(Some(append_later(&mut log, vec![entry(1, i, "x")]).await));
    }
    // When one is answered, all before it are.
    for at in [100, 101, 300, 499] {
        waiting[at].take().unwrap().await.unwrap().unwrap();
        for earlier in waiting[..at].iter_mut().filter_map(Option::take) {
            let earlier = tokio::task::unconstrained(earlier);
            let answered = futures::FutureExt::now_or_never(earlier);
            answered.expect("it was not answered").unwrap().unwrap();
        }
    }
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 250, "{syncs} syncs for 500 appends");
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_acknowledged() {
    let disk = Disk::default();
    let dek = Dek::generate().unwrap();
    let mut log = new_log(disk.database(), &dek);
    append(&mut log, vec![blank(1, 0)]).await;
    disk.full.store(true, Ordering::SeqCst);
    let flushed = append_later(&mut log, vec![blank(1, 1)])
        .await
        .await
        .unwrap();
    assert!(flushed.is_err());
    disk.full.store(false, Ordering::SeqCst);
    let vote = log.save_vote(&vote(9)).await.unwrap_err().to_string();
    assert!(
        vote.contains("takes no more writes after a failed one"),
        "{vote}"
    );
    let (done, _flushed) = Types::oneshot();
    let appended = log.append(vec![blank(1, 2)], IOFlushed::signal(done)).await;
    let error = appended.unwrap_err().to_string();
    assert!(
        error.contains("takes no more writes after a failed one"),
        "{error}"
    );
}
