//! What an agent does with the tasks it is assigned, and what it tells of them.

use std::sync::Arc;
use std::time::Duration;

use agent_runtime::Exit;
use swarm_proto::id::TaskId;
use swarm_proto::pb;
use swarm_proto::pb::TaskState;
use swarm_proto::pb::assignments_message::Type;

use super::bed::{Bed, eventually, names, task};
use crate::agent::LeaveError;

#[tokio::test(start_paused = true)]
async fn a_task_runs_stops_and_goes() {
    let mut bed = Bed::new();
    let running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    let status = bed.until_state(1, TaskState::Running).await;
    let Some(pb::task_status::RuntimeStatus::Container(container)) = status.runtime_status else {
        panic!("no container");
    };
    assert!(container.container_id.contains(&names(&[1])[0]));
    assert_eq!(bed.running(), names(&[1]));
    assert_eq!(running.agent.status().borrow().tasks, 1);
    assert_eq!(
        running.agent.status().borrow().manager_addr.as_deref(),
        Some("join")
    );

    let held = task(2, TaskState::Ready);
    bed.update(&feed, held).await;
    bed.until_state(2, TaskState::Ready).await;
    bed.update(&feed, task(2, TaskState::Running)).await;
    bed.until_state(2, TaskState::Running).await;

    bed.update(&feed, task(1, TaskState::Shutdown)).await;
    bed.until_state(1, TaskState::Shutdown).await;
    assert_eq!(bed.running(), names(&[2]));
    let runtime = Arc::clone(&bed.runtime);
    eventually("what was stopped is cleared", || {
        runtime.held() == names(&[2])
    })
    .await;
    assert_eq!(
        running.agent.status().borrow().tasks,
        2,
        "the manager still asks for its status"
    );
    bed.send(&feed, Type::Incremental, &[], &[1, 2]).await;
    eventually("both are gone", || runtime.held().is_empty()).await;
    let mut status = running.agent.status();
    status.wait_for(|s| s.tasks == 0).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ends_is_reported() {
    let mut bed = Bed::new();
    let _running = bed.start();
    bed.accept_running(&[1, 2]).await;
    let exit = |code, oom| Exit {
        code,
        oom,
        detail: None,
    };
    bed.runtime.end(&names(&[1])[0], exit(0, false)).unwrap();
    bed.until_state(1, TaskState::Complete).await;
    bed.runtime.end(&names(&[2])[0], exit(137, true)).unwrap();
    let status = bed.until_state(2, TaskState::Failed).await;
    assert!(
        status.err.contains("137") && status.err.contains("memory"),
        "{}",
        status.err
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_manager_gave_up_is_stopped() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept_running(&[1]).await;
    running.stop().await;
    std::fs::remove_dir_all(bed.dir.path().join("worker")).unwrap();
    let _running = bed.start();
    let mut orphaned = task(1, TaskState::Shutdown);
    orphaned
        .status
        .as_mut()
        .unwrap()
        .set_state(TaskState::Orphaned);
    bed.accept(&[orphaned]).await;
    let runtime = Arc::clone(&bed.runtime);
    eventually("stopped", || runtime.running().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_assignments_leads_to_a_new_session() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let feed = bed.accept_running(&[1]).await;
    let mut gap = bed.message(Type::Incremental, &[], &[1]);
    gap.applies_to = "77".to_owned();
    feed.send(Ok(gap)).await.unwrap();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let seen = bed
        .until("a second session", |s| s.sessions.len() == 2)
        .await;
    assert_eq!(seen.sessions[1].session_id, "", "registers again");
    assert_eq!(bed.running(), names(&[1]));
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_complete_set_are_one_set() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept_running(&[1, 2]).await;
    running.stop().await;
    let running = bed.start();
    let feed = bed.feeds.recv().await.unwrap();
    bed.sequence = 0;
    let mut first = bed.message(Type::Complete, &[task(1, TaskState::Running)], &[]);
    first.more = true;
    feed.send(Ok(first)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bed.running(), names(&[1, 2]), "half a set removes nothing");
    let tasks = [task(2, TaskState::Running), task(3, TaskState::Running)];
    bed.send(&feed, Type::Complete, &tasks, &[]).await;
    bed.until_state(3, TaskState::Running).await;
    assert_eq!(bed.running(), names(&[1, 2, 3]));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_tasks_take_few_requests() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let tasks: Vec<_> = (1..=2000).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    let seen = bed
        .until("all run", |seen| {
            let mut states = seen.statuses.values();
            seen.statuses.len() == 2000 && states.all(|s| s.state() == TaskState::Running)
        })
        .await;
    assert!(seen.requests < 100, "{} requests", seen.requests);
}

#[tokio::test(start_paused = true)]
async fn one_foreign_task_does_not_spoil_the_others() {
    let mut bed = Bed::new();
    let foreign = TaskId::from_raw(33);
    bed.manager
        .seen
        .send_modify(|seen| seen.foreign = Some(foreign));
    let _running = bed.start();
    let tasks: Vec<_> = (1..=100).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    let seen = bed
        .until("all others run", |seen| {
            seen.statuses
                .values()
                .filter(|s| s.state() == TaskState::Running)
                .count()
                == 99
        })
        .await;
    assert!(!seen.statuses.contains_key(&foreign));
}

#[tokio::test(start_paused = true)]
async fn a_long_pull_is_given_up_when_the_task_is_to_stop() {
    let mut bed = Bed::new();
    bed.script.prepare = Duration::from_secs(3600);
    let _running = bed.start();
    let feed = bed.accept(&[task(1, TaskState::Running)]).await;
    bed.until_state(1, TaskState::Preparing).await;
    bed.update(&feed, task(1, TaskState::Shutdown)).await;
    let started = tokio::time::Instant::now();
    bed.until_state(1, TaskState::Shutdown).await;
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn temporary_failures_are_tried_again_and_said() {
    let mut bed = Bed::new();
    bed.script.retry_prepare = 3;
    let _running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let status = bed.until_state(1, TaskState::Preparing).await;
    assert!(status.err.contains("not this time"), "{}", status.err);
    let status = bed.until_state(1, TaskState::Running).await;
    assert_eq!(status.err, "");
}

#[tokio::test(start_paused = true)]
async fn leaving_tells_the_managers_and_empties_the_node() {
    let mut bed = Bed::new();
    let running = bed.start();
    let tasks: Vec<_> = (1..=5).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    bed.until_state(5, TaskState::Running).await;
    let left = running.agent.leave(false).await.unwrap();
    assert_eq!((left.removed_tasks, left.untold), (5, None));
    assert!(bed.seen.borrow().left);
    assert!(bed.runtime.held().is_empty());
    assert_eq!(running.agent.status().borrow().tasks, 0);
    running.stop().await;
    let running = bed.start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        running.agent.status().borrow().tasks,
        0,
        "nothing comes back"
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_without_a_manager_takes_force() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept_running(&[1]).await;
    bed.wire.up.send_replace(false);
    let mut status = running.agent.status();
    status.wait_for(|s| s.manager_addr.is_none()).await.unwrap();
    let refused = running.agent.leave(false).await.unwrap_err();
    assert!(
        matches!(refused, LeaveError::NotAcknowledged(_)),
        "{refused}"
    );
    assert_eq!(bed.running(), names(&[1]));
    let left = running.agent.leave(true).await.unwrap();
    assert_eq!((left.removed_tasks, left.untold.is_some()), (1, true));
    assert!(bed.runtime.held().is_empty());
    running.stop().await;
    assert!(bed.dir.path().join("worker/tasks.db").exists());
}

#[tokio::test(start_paused = true)]
async fn a_node_beats() {
    let mut bed = Bed::new();
    let _running = bed.start();
    bed.accept(&[]).await;
    bed.until("three beats", |s| s.beats >= 3).await;
    assert_eq!(bed.seen.borrow().sessions.len(), 1);
    assert_eq!(bed.tasks.len(), 1);
}
