use std::time::Duration;

use super::*;
use crate::executor::NodeFacts;

fn order(id: &str, env: &[&str]) -> TaskOrder {
    let container = pb::ContainerSpec {
        image: "sim:latest".to_owned(),
        env: env.iter().map(|&s| s.to_owned()).collect(),
        ..Default::default()
    };
    let spec = pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(container)),
        ..Default::default()
    };
    let task = pb::Task {
        id: id.to_owned(),
        spec: Some(spec),
        ..Default::default()
    };
    TaskOrder {
        task: Arc::new(task),
        node: NodeFacts::default(),
    }
}

fn executor(runtime: &Arc<SimulatedRuntime>) -> SimulatedExecutor {
    SimulatedExecutor::new(Arc::clone(runtime), SimulatedConfig::default())
}

#[tokio::test(start_paused = true)]
async fn scripted_times_are_spent_and_the_exit_comes() {
    let executor = executor(&SimulatedRuntime::new());
    let env = ["SIM_PREPARE=50ms", "SIM_EXIT_AFTER=1s", "SIM_EXIT_CODE=3"];
    let mut task = executor.controller(order("a", &env)).await.unwrap();
    let begin = tokio::time::Instant::now();
    task.prepare().await.unwrap();
    assert_eq!(begin.elapsed(), Duration::from_millis(50));
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 3);
    assert_eq!(begin.elapsed().as_millis(), 1050);
    assert!(matches!(task.observe().await.unwrap(), Observed::Exited(_, exit) if exit.code == 3));
}

#[tokio::test(start_paused = true)]
async fn a_new_executor_adopts_what_runs() {
    let runtime = SimulatedRuntime::new();
    let first = executor(&runtime);
    let mut task = first.controller(order("a", &[])).await.unwrap();
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    drop((task, first));
    let second = executor(&runtime);
    assert_eq!(second.held().await.unwrap(), ["a"]);
    let mut task = second.controller(order("a", &[])).await.unwrap();
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Running(_)
    ));
    runtime
        .end(
            "a",
            Exit {
                code: 9,
                oom: false,
                detail: None,
            },
        )
        .unwrap();
    assert_eq!(task.wait().await.unwrap().code, 9);
}

#[tokio::test(start_paused = true)]
async fn the_journal_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tasks");
    {
        let runtime = SimulatedRuntime::open(&path).unwrap();
        for id in ["a", "b", "c"] {
            runtime.create(id).unwrap();
            runtime.start(id, &Script::default()).unwrap();
        }
        runtime
            .end(
                "b",
                Exit {
                    code: 4,
                    oom: true,
                    detail: None,
                },
            )
            .unwrap();
        runtime.remove("c").unwrap();
    }
    let runtime = SimulatedRuntime::open(&path).unwrap();
    assert_eq!(runtime.held(), ["a", "b"]);
    assert_eq!(runtime.running(), ["a"]);
    let exit = runtime.wait("b").await.unwrap();
    assert_eq!((exit.code, exit.oom), (4, true));
    // A scripted end starts anew on adoption.
    let mut task = executor(&runtime)
        .controller(order("a", &["SIM_EXIT_AFTER=1s"]))
        .await
        .unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_goes_away_ends_calls_and_comes_back() {
    let runtime = SimulatedRuntime::new();
    let executor = executor(&runtime);
    let mut task = executor.controller(order("a", &[])).await.unwrap();
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let outage = async {
        tokio::task::yield_now().await;
        runtime.set_up(Reach::Down);
    };
    let (waited, ()) = tokio::join!(task.wait(), outage);
    assert!(matches!(waited, Err(Error::Unavailable { .. })));
    let back = async {
        tokio::task::yield_now().await;
        runtime.set_up(Reach::Up);
    };
    let (healthy, ()) = tokio::join!(executor.healthy(), back);
    healthy.unwrap();
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Running(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ignores_its_stop_signal_costs_the_grace_period() {
    let executor = executor(&SimulatedRuntime::new());
    let mut task = executor
        .controller(order("a", &["SIM_IGNORE_STOP=true"]))
        .await
        .unwrap();
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let begin = tokio::time::Instant::now();
    task.shutdown().await.unwrap();
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
    assert_eq!(task.wait().await.unwrap().code, 137);
}

#[tokio::test(start_paused = true)]
async fn failures_as_scripted() {
    let executor = executor(&SimulatedRuntime::new());
    let mut task = executor
        .controller(order("a", &["SIM_FAIL_PREPARE=no disk"]))
        .await
        .unwrap();
    assert_eq!(task.prepare().await.unwrap_err().to_string(), "no disk");
    assert!(executor.held().await.unwrap().is_empty());
    let mut task = executor
        .controller(order("b", &["SIM_RETRY_PREPARE=1"]))
        .await
        .unwrap();
    assert!(matches!(task.prepare().await, Err(Error::Temporary(_))));
    task.prepare().await.unwrap();
    let mut task = executor
        .controller(order("c", &["SIM_PREPARE=soon"]))
        .await
        .unwrap();
    assert!(matches!(task.prepare().await, Err(Error::Fatal(_))));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tasks_take_no_time() {
    let runtime = SimulatedRuntime::new();
    let executor = executor(&runtime);
    let begin = tokio::time::Instant::now();
    for number in 0..10_000 {
        let mut task = executor
            .controller(order(&format!("t{number:05}"), &[]))
            .await
            .unwrap();
        task.prepare().await.unwrap();
        task.start().await.unwrap();
    }
    assert_eq!(runtime.running().len(), 10_000);
    assert!(begin.elapsed().is_zero());
    executor.purge().await.unwrap();
    assert!(executor.held().await.unwrap().is_empty());
}
