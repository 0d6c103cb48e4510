//! An agent that starts again, and one whose manager or runtime is away: containers run on.

use std::sync::Arc;
use std::time::Duration;

use agent_runtime::simulated::Reach;
use swarm_proto::id::TaskId;
use swarm_proto::pb;
use swarm_proto::pb::TaskState;

use super::bed::{Bed, eventually, names, task};

#[tokio::test(start_paused = true)]
async fn a_restart_touches_no_container() {
    let mut bed = Bed::new();
    let running = bed.start();
    let tasks: Vec<_> = (1..=20).map(|id| task(id, TaskState::Running)).collect();
    bed.accept(&tasks).await;
    bed.until("all run", |s| {
        s.statuses
            .values()
            .filter(|s| s.state() == TaskState::Running)
            .count()
            == 20
    })
    .await;
    running.stop().await;
    assert_eq!(bed.running().len(), 20);

    // No manager answers, and meanwhile one container ended.
    bed.wire.up.send_replace(false);
    bed.end(7, 1);
    let running = bed.start();
    let mut status = running.agent.status();
    status.wait_for(|s| s.tasks == 20).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running().len(), 19);
    bed.wire.up.send_replace(true);
    bed.until_state(7, TaskState::Failed).await;
    let dialled = bed.wire.dialled.lock().unwrap().clone();
    assert!(
        dialled.iter().skip(1).any(|addr| addr == "learnt"),
        "managers of the last session"
    );
    bed.accept(&tasks).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running().len(), 19);
    assert_eq!(bed.runtime.held().len(), 20);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leftovers_go_only_when_a_manager_has_spoken() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept_running(&[1, 2]).await;
    running.stop().await;

    // The agent's file is lost: both are in the runtime only.
    std::fs::remove_dir_all(bed.dir.path().join("worker")).unwrap();
    bed.wire.up.send_replace(false);
    let running = bed.start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running(), names(&[1, 2]), "no manager, nothing removed");
    bed.wire.up.send_replace(true);
    let seen = bed.seen.borrow().statuses.clone();
    bed.accept(&[task(1, TaskState::Running)]).await;
    let runtime = Arc::clone(&bed.runtime);
    eventually("2 is removed", || runtime.held() == names(&[1])).await;
    assert_eq!(bed.running(), names(&[1]));
    bed.until("1 is adopted", |s| {
        s.statuses[&TaskId::from_raw(1)] != seen[&TaskId::from_raw(1)]
    })
    .await;
    bed.until_state(1, TaskState::Running).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_changes_nothing_and_the_session_goes_on() {
    let mut bed = Bed::new();
    let _running = bed.start();
    let feed = bed.accept_running(&[1, 2]).await;
    bed.wire.up.send_replace(false);
    bed.end(2, 3);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.running(), names(&[1]));
    drop(feed);
    bed.wire.up.send_replace(true);
    bed.until_state(2, TaskState::Failed).await;
    let seen = bed
        .until("a second session", |s| s.sessions.len() == 2)
        .await;
    assert_eq!(seen.sessions[1].session_id, "session-1");
    assert_eq!(
        seen.sessions[1].description.as_ref().unwrap().hostname,
        "host"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_was_renewed_while_the_connection_was_cut_is_told() {
    let mut bed = Bed::new();
    let running = bed.start();
    let feed = bed.accept_running(&[1]).await;
    let info = |issuer: &[u8]| {
        Some(pb::NodeTlsInfo {
            cert_issuer_public_key: issuer.to_vec(),
            ..Default::default()
        })
    };
    // The session is gone on with where nothing is new, and is another one where something is.
    for (count, tls, session) in [
        (2, None, "session-1"),
        (3, info(b"next"), ""),
        (4, info(b"next"), "session-3"),
    ] {
        let mut status = running.agent.status();
        status.wait_for(|s| s.manager_addr.is_some()).await.unwrap();
        bed.wire.up.send_replace(false);
        status.wait_for(|s| s.manager_addr.is_none()).await.unwrap();
        bed.wire.tls.send_replace(tls.clone());
        bed.wire.up.send_replace(true);
        let seen = bed
            .until("another session", |s| s.sessions.len() == count)
            .await;
        let last = &seen.sessions[count - 1];
        assert_eq!(last.session_id, session);
        assert_eq!(last.description.as_ref().unwrap().tls_info, tls);
    }
    drop(feed);
}

#[tokio::test(start_paused = true)]
async fn tasks_outlive_the_runtimes_absence() {
    let mut bed = Bed::new();
    let running = bed.start();
    let feed = bed.accept_running(&[1]).await;
    bed.runtime.set_up(Reach::Down);
    bed.update(&feed, task(2, TaskState::Running)).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    let states = bed.seen.borrow().statuses.clone();
    assert_eq!(states[&TaskId::from_raw(1)].state(), TaskState::Running);
    assert_eq!(states[&TaskId::from_raw(2)].state(), TaskState::Preparing);
    bed.runtime.set_up(Reach::Up);
    bed.until_state(2, TaskState::Running).await;
    bed.end(1, 1);
    bed.until_state(1, TaskState::Failed).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_the_runtime_waits_for_it() {
    let mut bed = Bed::new();
    let running = bed.start();
    bed.accept_running(&[1]).await;
    running.stop().await;
    bed.runtime.set_up(Reach::Down);
    let running = bed.start();
    bed.accept(&[task(1, TaskState::Running)]).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(
        bed.seen.borrow().statuses[&TaskId::from_raw(1)].state(),
        TaskState::Running
    );
    bed.runtime.set_up(Reach::Up);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(bed.running(), names(&[1]));
    bed.end(1, 1);
    bed.until_state(1, TaskState::Failed).await;
    running.stop().await;
}
