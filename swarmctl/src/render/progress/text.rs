//! The text of progress: a headline, the reasons for waiting, and the tasks.

use std::collections::BTreeMap;

use swarm_proto::pb;
use swarm_proto::pb::TaskState;
use swarm_proto::pb::update_status::UpdateState;

use super::{LINES_MAX, Seen, StatusState as _, failed, job_total, name, slots};
use crate::render::table::{Colour, painted, shortened};
use crate::resolve::created;

/// Reasons shown of a service whose tasks are too many to show.
const REASONS_MAX: usize = 3;

/// `web: 3/5 running`.
pub(crate) fn headline(seen: &Seen) -> String {
    let service = crate::resolve::service_name(&seen.service);
    let (done, all) = share(seen);
    if job_total(&seen.service).is_some() {
        return format!("{service}: {done}/{all} completed");
    }
    let rollout = match seen
        .service
        .update_status
        .as_ref()
        .map(pb::UpdateStatus::state)
    {
        Some(UpdateState::Updating) => ", updating",
        Some(UpdateState::RollbackStarted) => ", rolling back",
        Some(
            UpdateState::Unknown
            | UpdateState::Paused
            | UpdateState::Completed
            | UpdateState::RollbackPaused
            | UpdateState::RollbackCompleted,
        )
        | None => "",
    };
    format!("{service}: {done}/{all} running{rollout}")
}

/// How many of the tasks are where they should be, and how many there should be.
pub(crate) fn share(seen: &Seen) -> (u64, u64) {
    match job_total(&seen.service) {
        Some(total) => (seen.completed, total.unwrap_or(seen.desired)),
        None => (seen.running, seen.desired),
    }
}

/// Reasons that keep tasks from running, each once, the most frequent first.
pub(crate) fn reasons(tasks: &[pb::Task]) -> Vec<String> {
    let mut counts = BTreeMap::<String, usize>::new();
    for (_, mut tasks) in slots(tasks) {
        tasks.sort_by_key(|task| created(task));
        if let Some(reason) = reason(&tasks) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    let mut reasons: Vec<(String, usize)> = counts.into_iter().collect();
    reasons.sort_by(|(a, count_a), (b, count_b)| count_b.cmp(count_a).then(a.cmp(b)));
    let text = |(reason, count): (String, usize)| match count {
        1 => reason,
        count => format!("{count} tasks {reason}"),
    };
    reasons.into_iter().map(text).collect()
}

/// Why a slot has no running task: the error of the newest, else of the failed one that it replaces.
fn reason(slot: &[&pb::Task]) -> Option<String> {
    let (newest, older) = slot.split_last()?;
    if newest.status_state() == TaskState::Running {
        return None;
    }
    let before = older.last().filter(|task| failed(task));
    [Some(newest), before]
        .into_iter()
        .flatten()
        .find_map(|task| {
            let err = task.status.as_ref().map_or("", |status| &status.err);
            (!err.is_empty()).then(|| format!("{}: {err}", task.status_state().as_str_name()))
        })
}

/// A line for each task of a small service; the reasons that keep the tasks of a large one from running.
pub(crate) fn details(seen: &Seen, tasks: &[pb::Task], colour: Colour) -> Vec<String> {
    if seen.desired > LINES_MAX {
        let reasons = reasons(tasks).into_iter().take(REASONS_MAX);
        return reasons.map(|reason| format!("  {reason}")).collect();
    }
    let mut lines = Vec::new();
    for (_, mut tasks) in slots(tasks) {
        let wanted = |task: &pb::Task| task.desired_state <= i32::from(TaskState::Running);
        tasks.sort_by_key(|task| (wanted(task), created(task)));
        let Some(task) = tasks.last().filter(|task| wanted(task) || failed(task)) else {
            continue;
        };
        let state = task.status_state();
        let err = task.status.as_ref().map_or("", |status| &status.err);
        let why = match (state == TaskState::Running, err.is_empty()) {
            (true, _) => String::new(),
            (false, true) => reason(&tasks).map_or_else(String::new, |why| format!("after {why}")),
            (false, false) => err.to_owned(),
        };
        let why = shortened(&why, usize::MAX);
        let (name, state) = (
            name(&seen.service, task),
            painted(state.as_str_name(), colour),
        );
        lines.push(format!("  {name}: {state} {why}").trim_end().to_owned());
    }
    lines
}
