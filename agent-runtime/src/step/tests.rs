use super::*;
use crate::executor::Handle;

/// Parses `want state observed` and returns the step as text; tables below read like the spec.
fn step(case: &str) -> String {
    let words: Vec<&str> = case.split_whitespace().collect();
    let want = match words[0] {
        "accept" => Want::Accept,
        "ready" => Want::Ready,
        "run" => Want::Run,
        "stop" => Want::Stop,
        "gone" => Want::Gone,
        other => panic!("unknown want {other}"),
    };
    let state = TaskState::from_str_name(words[1]).expect("a task state");
    let exit = Exit {
        code: 0,
        oom: false,
        detail: None,
    };
    let observed = match words[2] {
        "-" => None,
        "absent" => Some(Observed::Absent),
        "created" => Some(Observed::Created(Handle::default())),
        "running" => Some(Observed::Running(Handle::default())),
        "exited" => Some(Observed::Exited(Handle::default(), exit)),
        other => panic!("unknown observation {other}"),
    };
    match next(want, state, observed.as_ref()) {
        Step::Enter(state) => format!("enter {}", state.as_str_name()),
        step @ (Step::Prepare
        | Step::Start
        | Step::Wait
        | Step::Shutdown
        | Step::Remove
        | Step::Lost
        | Step::Hold) => format!("{step:?}").to_lowercase(),
    }
}

#[test]
fn next_by_table() {
    let table = "
        run    NEW        -        enter ACCEPTED
        run    ASSIGNED   absent   enter ACCEPTED
        accept ACCEPTED   -        hold
        ready  ACCEPTED   -        enter PREPARING
        run    ACCEPTED   -        enter PREPARING
        ready  PREPARING  -        prepare
        run    PREPARING  created  prepare
        accept PREPARING  absent   prepare
        ready  READY      -        hold
        ready  READY      created  hold
        ready  READY      absent   prepare
        run    READY      absent   prepare
        run    READY      created  enter STARTING
        run    READY      -        enter STARTING
        run    STARTING   -        start
        run    STARTING   created  start
        run    STARTING   running  start
        run    STARTING   exited   start
        run    STARTING   absent   lost
        ready  STARTING   -        start
        run    RUNNING    -        wait
        run    RUNNING    running  wait
        run    RUNNING    exited   wait
        run    RUNNING    absent   lost
        run    RUNNING    created  lost
        ready  RUNNING    running  wait
        run    COMPLETE   exited   hold
        run    FAILED     -        hold
        run    REJECTED   absent   hold
        stop   ASSIGNED   -        shutdown
        stop   PREPARING  -        shutdown
        stop   READY      created  shutdown
        stop   RUNNING    running  shutdown
        stop   RUNNING    exited   shutdown
        stop   COMPLETE   -        hold
        stop   SHUTDOWN   exited   hold
        gone   ASSIGNED   -        shutdown
        gone   RUNNING    running  shutdown
        gone   SHUTDOWN   -        remove
        gone   REJECTED   absent   remove
        gone   ORPHANED   running  remove
    ";
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (case, expected) = (words[..3].join(" "), words[3..].join(" "));
        assert_eq!(step(&case), expected, "{case}");
    }
}

#[test]
fn wants_of_desired_states() {
    for (desired, want) in [
        (TaskState::Assigned, Want::Accept),
        (TaskState::Ready, Want::Ready),
        (TaskState::Running, Want::Run),
        (TaskState::Complete, Want::Run),
        (TaskState::Shutdown, Want::Stop),
        (TaskState::Remove, Want::Stop),
    ] {
        assert_eq!(Want::of(desired), want);
    }
}

fn done() -> Outcome {
    Outcome::Done { notice: None }
}

fn fatal(text: &str) -> Outcome {
    Outcome::Failed(Error::Fatal(text.to_owned()))
}

fn exit(code: u32) -> Exit {
    Exit {
        code,
        oom: false,
        detail: None,
    }
}

fn change(result: After) -> Change {
    match result {
        After::Advance(change) => change,
        other @ (After::Again | After::Retry(_) | After::Await | After::Forget | After::Hold) => {
            panic!("expected a change, got {other:?}")
        }
    }
}

#[test]
fn a_life_from_assigned_to_complete() {
    let mut state = TaskState::Assigned;
    let mut messages = Vec::new();
    loop {
        let step = next(Want::Run, state, None);
        let outcome = match step {
            Step::Wait => Outcome::Exited(exit(0)),
            Step::Hold => break,
            Step::Enter(_)
            | Step::Prepare
            | Step::Start
            | Step::Shutdown
            | Step::Remove
            | Step::Lost => done(),
        };
        let change = change(after(state, step, outcome));
        state = change.state;
        messages.push(
            change
                .message
                .expect("each change of a good life says what happened"),
        );
    }
    assert_eq!(state, TaskState::Complete);
    assert_eq!(
        messages,
        [
            "accepted",
            "preparing",
            "prepared",
            "starting",
            "started",
            "finished"
        ]
    );
}

#[test]
fn fatal_before_starting_rejects_and_fails_from_then_on() {
    for (state, step, expected) in [
        (TaskState::Preparing, Step::Prepare, TaskState::Rejected),
        (TaskState::Ready, Step::Prepare, TaskState::Rejected),
        (TaskState::Starting, Step::Start, TaskState::Failed),
        (TaskState::Running, Step::Wait, TaskState::Failed),
    ] {
        let change = change(after(state, step, fatal("no such image")));
        assert_eq!(change.state, expected);
        assert_eq!(change.err, "no such image");
        assert_eq!(change.message, None, "the message tells what was under way");
    }
}

#[test]
fn temporary_retries_and_says_why() {
    let error = Error::Temporary("disk is full".to_owned());
    match after(TaskState::Preparing, Step::Prepare, Outcome::Failed(error)) {
        After::Retry(change) => {
            assert_eq!(change.state, TaskState::Preparing);
            assert_eq!(change.err, "disk is full");
        }
        other @ (After::Advance(_) | After::Again | After::Await | After::Forget | After::Hold) => {
            panic!("{other:?}")
        }
    }
}

#[test]
fn an_absent_runtime_changes_nothing() {
    let error = Error::Unavailable {
        runtime: "containerd".to_owned(),
        reason: "refused".to_owned(),
    };
    for (state, step) in [
        (TaskState::Running, Step::Wait),
        (TaskState::Starting, Step::Start),
    ] {
        let outcome = Outcome::Failed(Error::Unavailable {
            runtime: error.to_string(),
            reason: "refused".to_owned(),
        });
        assert_eq!(after(state, step, outcome), After::Await);
    }
}

#[test]
fn a_bad_exit_carries_code_and_reason() {
    let oom = Exit {
        code: 137,
        oom: true,
        detail: Some("limit 64 MiB".to_owned()),
    };
    let change = change(after(
        TaskState::Running,
        Step::Wait,
        Outcome::Exited(oom.clone()),
    ));
    assert_eq!(change.state, TaskState::Failed);
    assert_eq!(
        change.err,
        "task: non-zero exit (137): killed by the kernel, out of memory: limit 64 MiB"
    );
    let mut status = pb::TaskStatus {
        message: "started".to_owned(),
        ..Default::default()
    };
    change.write(&mut status, prost_types::Timestamp::default());
    assert_eq!(status.message, "started");
    let Some(pb::task_status::RuntimeStatus::Container(container)) = status.runtime_status else {
        panic!("the exit code is in the container status");
    };
    assert_eq!(container.exit_code, 137);
}

#[test]
fn a_notice_becomes_the_message() {
    let notice = Some("prepared from the image present: registry is down".to_owned());
    let outcome = Outcome::Done {
        notice: notice.clone(),
    };
    let change = change(after(TaskState::Preparing, Step::Prepare, outcome));
    assert_eq!((change.state, change.message), (TaskState::Ready, notice));
}

#[test]
fn a_stop_that_fails_is_tried_again_for_the_container_still_runs() {
    for state in [TaskState::Ready, TaskState::Starting, TaskState::Running] {
        match after(state, Step::Shutdown, fatal("nft: no such table")) {
            After::Retry(change) => {
                assert_eq!((change.state, &*change.err), (state, "nft: no such table"));
            }
            other @ (After::Advance(_)
            | After::Again
            | After::Await
            | After::Forget
            | After::Hold) => panic!("{other:?}"),
        }
    }
}

#[test]
fn texts_of_a_status_are_cut() {
    let long = "é".repeat(TEXT_MAX);
    let change = Change {
        state: TaskState::Failed,
        message: Some(long.clone()),
        err: long,
        exit: None,
    };
    let mut status = pb::TaskStatus::default();
    change.write(&mut status, prost_types::Timestamp::default());
    for text in [&status.err, &status.message] {
        assert!(text.len() <= TEXT_MAX && text.len() > TEXT_MAX - 8);
        assert!(text.starts_with("éé") && text.ends_with("é…"));
    }
    assert_eq!(brief("short".to_owned()), "short");
}

#[test]
fn removal_is_retried_and_then_forgotten() {
    assert!(matches!(
        after(TaskState::Shutdown, Step::Remove, fatal("mount is busy")),
        After::Retry(_)
    ));
    assert_eq!(
        after(TaskState::Shutdown, Step::Remove, done()),
        After::Forget
    );
}

#[test]
fn no_outcome_lowers_a_state() {
    let states = [
        0, 64, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 800, 832,
    ];
    let steps = [
        Step::Enter(TaskState::Accepted),
        Step::Prepare,
        Step::Start,
        Step::Wait,
        Step::Shutdown,
        Step::Remove,
        Step::Lost,
        Step::Hold,
    ];
    for state in states.map(|number| TaskState::try_from(number).expect("a state")) {
        for step in steps {
            for outcome in [
                done(),
                fatal("x"),
                Outcome::Exited(exit(0)),
                Outcome::Exited(exit(1)),
            ] {
                match after(state, step, outcome) {
                    After::Advance(change) | After::Retry(change) => {
                        assert!(change.state >= state, "{state:?} {step:?} -> {change:?}");
                    }
                    After::Again | After::Await | After::Forget | After::Hold => {}
                }
            }
        }
    }
}
