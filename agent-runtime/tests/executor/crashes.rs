//! What containerd shows when something ends at a bad moment: swarmd, containerd, a shim.

use std::process::Command;
use std::time::Duration;

use agent_runtime::Error;
use agent_runtime::executor::Observed;

use crate::containerd::finish;
use crate::lab::{self, Lab};
use crate::suite::{Program, Subject as _, running};

pub(crate) async fn run(lab: &mut Lab) {
    survives_a_containerd_restart(lab).await;
    redoes_what_is_half_made(lab).await;
    leaves_nothing_of_a_given_up_prepare(lab).await;
    ends_a_shim_that_containerd_forgot(lab).await;
    sees_what_is_killed_behind_it(lab).await;
}

async fn survives_a_containerd_restart(lab: &mut Lab) {
    let node = lab.subject("restart");
    let executor = node.executor().await;
    let mut lives = running(&executor, node.order("lives", Program::Forever)).await;
    let mut ends = running(&executor, node.sh("ends", "sleep 5; exit 5")).await;
    let before = lives.observe().await.unwrap();
    let waiting = async { (lives.wait().await, ends.wait().await) };
    let outage = async {
        // Both waits look at their container first and then ask for its end: what is asked after them over the
        // same connection, twice, and answered, finds them under way.
        for _ in 0..2 {
            executor.held().await.unwrap();
        }
        lab.kill_containerd();
    };
    let ((first, second), ()) = tokio::join!(waiting, outage);
    assert!(matches!(first, Err(Error::Unavailable { .. })), "{first:?}");
    assert!(
        matches!(second, Err(Error::Unavailable { .. })),
        "{second:?}"
    );
    eprintln!("as told: {}", first.unwrap_err());
    for result in [
        lives.prepare().await.map(drop),
        lives.start().await,
        lives.shutdown().await,
    ] {
        assert!(
            matches!(result, Err(Error::Unavailable { .. })),
            "{result:?}"
        );
    }
    assert!(matches!(
        executor.held().await,
        Err(Error::Unavailable { .. })
    ));
    // It ends while containerd is away.
    lab::until("it has ended", || !lab::runs("sleep 5"));
    let back = async {
        lab.start_containerd();
    };
    let (healthy, ()) = tokio::join!(executor.healthy(), back);
    healthy.unwrap();
    assert_eq!(
        lives.observe().await.unwrap(),
        before,
        "the same container goes on"
    );
    node.await_handlers("lives");
    assert_eq!(
        ends.wait().await.unwrap().code,
        5,
        "an end while containerd was away is seen"
    );
    lives.shutdown().await.unwrap();
    assert_eq!(lives.wait().await.unwrap().code, 0);
    executor.purge().await.unwrap();
}

async fn redoes_what_is_half_made(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    let order = || node.order("half", Program::Exit(4));
    let mut task = executor.controller(order()).await.unwrap();
    task.prepare().await.unwrap();
    // As if swarmd had ended between the container and its process.
    lab.ctr(&node, &["task", "rm", "--force", "half"]);
    let mut task = executor.controller(order()).await.unwrap();
    assert_eq!(task.observe().await.unwrap(), Observed::Absent);
    assert_eq!(executor.held().await.unwrap(), ["half"]);
    task.prepare().await.unwrap();
    // As if it had ended before the container, with the root file system made.
    lab.ctr(&node, &["task", "rm", "--force", "half"]);
    lab.ctr(&node, &["container", "rm", "--keep-snapshot", "half"]);
    assert_eq!(executor.held().await.unwrap(), ["half"]);
    let mut task = running(&executor, order()).await;
    assert_eq!(task.wait().await.unwrap().code, 4);
    task.remove().await.unwrap();
    assert!(executor.held().await.unwrap().is_empty());
    executor.purge().await.unwrap();
}

/// The agent gives a prepare up when the task is not wanted any more: at any moment of it.
async fn leaves_nothing_of_a_given_up_prepare(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    finish(&node, node.sh("first", "true")).await;
    for moment in 0..20 {
        let id = format!("given-up-{moment}");
        let mut task = executor
            .controller(node.order(&id, Program::Forever))
            .await
            .unwrap();
        let patience = Duration::from_millis(5 * moment);
        let _ = tokio::time::timeout(patience, task.prepare()).await;
        task.shutdown().await.unwrap();
        task.remove().await.unwrap();
    }
    assert!(executor.held().await.unwrap().is_empty());
    let tasks = lab.ctr(&node, &["task", "ls", "-q"]);
    assert_eq!(tasks, "", "containerd has processes of nobody");
    executor.purge().await.unwrap();
}

/// What a create leaves behind, now and then, whose swarmd is killed meanwhile.
async fn ends_a_shim_that_containerd_forgot(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    let order = node.order("forgotten", Program::Forever);
    let mut task = executor.controller(order).await.unwrap();
    task.prepare().await.unwrap();
    lab.ctr(&node, &["task", "rm", "--force", "forgotten"]);
    lab.start_shim(&node, "forgotten");
    assert_eq!(lab::shims("forgotten").len(), 1);
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    assert_eq!(lab::shims("forgotten"), [0; 0]);
    executor.purge().await.unwrap();
}

async fn sees_what_is_killed_behind_it(lab: &Lab) {
    let node = lab.subject("crash");
    let executor = node.executor().await;
    let mut task = running(&executor, node.order("killed", Program::Forever)).await;
    let Observed::Running(handle) = task.observe().await.unwrap() else {
        panic!("not running")
    };
    lab::run(Command::new("kill").args(["-9", &handle.pid.to_string()]));
    let exit = task.wait().await.unwrap();
    assert_eq!((exit.code, exit.oom), (137, false));
    task.remove().await.unwrap();
    // A shim that is killed takes container and exit with it; the task must not hang.
    let mut task = running(&executor, node.order("no-shim", Program::Forever)).await;
    let shims = lab::shims("no-shim");
    assert_eq!(shims.len(), 1);
    lab::run(Command::new("kill").args(["-9", &shims[0].to_string()]));
    match tokio::time::timeout(Duration::from_secs(60), task.wait())
        .await
        .unwrap()
    {
        Ok(exit) => assert_ne!(exit.code, 0),
        Err(error) => {
            eprintln!("as told: {error}");
            assert!(matches!(error, Error::Fatal(_)), "{error}");
        }
    }
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    executor.purge().await.unwrap();
}
