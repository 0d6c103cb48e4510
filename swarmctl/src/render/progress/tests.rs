//! The judge over small histories.

use std::time::UNIX_EPOCH;

use super::*;
use crate::render::table::Colour;

fn task(id: &str, slot: u64, state: TaskState, err: &str) -> pb::Task {
    pb::Task {
        id: id.to_owned(),
        slot,
        desired_state: TaskState::Running.into(),
        meta: Some(pb::Meta {
            created_at: Some(prost_types::Timestamp {
                seconds: id.bytes().map(i64::from).sum(),
                nanos: 0,
            }),
            ..Default::default()
        }),
        status: Some(pb::TaskStatus {
            state: state.into(),
            err: err.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn seen(replicas: u64, tasks: Vec<pb::Task>) -> Seen {
    let spec = pb::ServiceSpec {
        annotations: Some(pb::Annotations {
            name: "web".to_owned(),
            ..Default::default()
        }),
        mode: Some(Mode::Replicated(pb::ReplicatedService { replicas })),
        task: Some(pb::TaskSpec::default()),
        ..Default::default()
    };
    let running = tasks
        .iter()
        .filter(|task| task.status_state() == TaskState::Running)
        .count();
    Seen {
        service: pb::Service {
            spec: Some(spec),
            ..Default::default()
        },
        desired: replicas,
        running: running as u64,
        completed: 0,
        tasks: Some(tasks),
    }
}

fn at(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds)
}

#[test]
fn converged_only_after_a_moment() {
    let mut judge = Judge::new(Goal::Spec);
    assert_eq!(judge.look(&seen(1, vec![]), at(0)), Verdict::Waiting);
    let up = seen(1, vec![task("a", 1, TaskState::Running, "")]);
    assert_eq!(judge.look(&up, at(100)), Verdict::Settling);
    assert_eq!(judge.look(&seen(1, vec![]), at(600)), Verdict::Waiting);
    assert_eq!(judge.look(&up, at(700)), Verdict::Settling);
    assert_eq!(judge.look(&up, at(1_700)), Verdict::Converged);
}

#[test]
fn repeated_rejection_is_hopeless() {
    let mut judge = Judge::new(Goal::Spec);
    assert_eq!(judge.look(&seen(1, vec![]), at(0)), Verdict::Waiting);
    let tasks: Vec<_> = ["a", "b", "c"]
        .map(|id| task(id, 1, TaskState::Rejected, "no such image"))
        .into();
    assert_eq!(
        judge.look(&seen(1, tasks[..2].to_vec()), at(1)),
        Verdict::Waiting
    );
    assert_eq!(
        judge.look(&seen(1, tasks), at(2)),
        Verdict::Hopeless("task web.1 failed 3 times, the last time: no such image".to_owned())
    );
}

#[test]
fn old_failures_are_no_news() {
    let mut judge = Judge::new(Goal::Spec);
    let old: Vec<_> = ["a", "b", "c"]
        .map(|id| task(id, 1, TaskState::Failed, "x"))
        .into();
    assert_eq!(judge.look(&seen(1, old), at(0)), Verdict::Waiting);
}

#[test]
fn a_policy_without_restart_ends_the_wait() {
    let mut judge = Judge::new(Goal::Spec);
    let mut once = seen(1, vec![]);
    let policy = pb::RestartPolicy {
        condition: 0,
        ..Default::default()
    };
    once.service
        .spec
        .as_mut()
        .unwrap()
        .task
        .as_mut()
        .unwrap()
        .restart = Some(policy);
    assert_eq!(judge.look(&once, at(0)), Verdict::Waiting);
    once.tasks = Some(vec![task("a", 1, TaskState::Failed, "exit code 3")]);
    assert_eq!(judge.look(&once, at(100)), Verdict::Waiting);
    let Verdict::Hopeless(reason) = judge.look(&once, at(2_100)) else {
        panic!("still waits")
    };
    assert_eq!(
        reason,
        "task web.1 is not restarted by the restart policy, it ended with: exit code 3"
    );
}

#[test]
fn a_paused_update_is_hopeless_and_an_old_task_not_current() {
    let mut up = seen(1, vec![task("a", 1, TaskState::Running, "")]);
    up.service.spec_version = Some(pb::Version { index: 7 });
    up.tasks.as_mut().unwrap()[0].spec = Some(pb::TaskSpec {
        force_update: 9,
        ..Default::default()
    });
    let mut judge = Judge::new(Goal::Spec);
    assert_eq!(judge.look(&up, at(0)), Verdict::Waiting);
    up.service.update_status = Some(pb::UpdateStatus {
        state: UpdateState::Paused.into(),
        message: "task x failed".to_owned(),
        ..Default::default()
    });
    let paused = Verdict::Hopeless("the update was paused: task x failed".to_owned());
    assert_eq!(judge.look(&up, at(1)), paused);
}

#[test]
fn details_show_tasks_and_why() {
    let tasks = vec![
        task("a", 1, TaskState::Running, ""),
        task(
            "b",
            2,
            TaskState::Pending,
            "no suitable node (2 nodes: 2 drained)",
        ),
    ];
    let seen = seen(2, tasks.clone());
    assert_eq!(headline(&seen), "web: 1/2 running");
    assert_eq!(share(&seen), (1, 2));
    assert_eq!(
        details(&seen, &tasks, Colour::Off),
        [
            "  web.1: RUNNING",
            "  web.2: PENDING no suitable node (2 nodes: 2 drained)",
        ]
    );
    assert_eq!(
        reasons(&tasks),
        ["PENDING: no suitable node (2 nodes: 2 drained)"]
    );
}

#[test]
fn a_replacement_that_is_held_back_shows_what_failed() {
    let tasks = vec![
        task("a", 1, TaskState::Failed, "exit code 3"),
        task("b", 1, TaskState::Ready, ""),
    ];
    let seen = seen(1, tasks.clone());
    assert_eq!(reasons(&tasks), ["FAILED: exit code 3"]);
    assert_eq!(
        details(&seen, &tasks, Colour::Off),
        ["  web.1: READY after FAILED: exit code 3"]
    );
}
