//! What every executor does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_runtime::Error;
use agent_runtime::executor::{Controller, Executor, NodeFacts, Observed, TaskOrder};
use swarm_proto::pb;

/// What a task's container does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    /// Runs until it is asked to stop, then ends with 0.
    Forever,
    /// Runs, and ignores its stop signal.
    Stubborn,
    /// Ends by itself with this code.
    Exit(u32),
    /// Its image does not exist.
    NoImage,
}

/// A backend under test.
#[tonic::async_trait]
pub(crate) trait Subject: Sync {
    /// A new executor over the same runtime, as after a restart of swarmd.
    async fn executor(&self) -> Arc<dyn Executor>;
    fn order(&self, id: &str, program: Program) -> TaskOrder;
    /// Waits until the program of a started task has its signal handlers: process 1 of a
    /// container does not see a signal that it does not handle yet.
    fn await_handlers(&self, id: &str);
}

/// Gives the container [`GRACE`] to stop, instead of the ten seconds that others have: on a busy
/// machine even a willing one may need more than one.
pub(crate) fn impatient(mut order: TaskOrder) -> TaskOrder {
    let spec = Arc::make_mut(&mut order.task).spec.as_mut().unwrap();
    if let Some(pb::task_spec::Runtime::Container(container)) = spec.runtime.as_mut() {
        container.stop_grace_period = Some(GRACE.try_into().unwrap());
    }
    order
}

pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// An order for a container.
pub(crate) fn order(id: &str, image: &str, args: &[&str], env: &[String]) -> TaskOrder {
    let container = pb::ContainerSpec {
        image: image.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: env.to_vec(),
        ..Default::default()
    };
    order_of(id, container)
}

pub(crate) fn order_of(id: &str, container: pb::ContainerSpec) -> TaskOrder {
    let spec = pb::TaskSpec {
        runtime: Some(pb::task_spec::Runtime::Container(container)),
        ..Default::default()
    };
    let service = pb::Annotations {
        name: "web".to_owned(),
        ..Default::default()
    };
    let task = pb::Task {
        id: id.to_owned(),
        spec: Some(spec),
        slot: 1,
        service_id: "service-id".to_owned(),
        service_annotations: Some(service),
        ..Default::default()
    };
    let node = NodeFacts {
        id: "node-id".to_owned(),
        hostname: "node".to_owned(),
        os: "linux".to_owned(),
        arch: "amd64".to_owned(),
    };
    TaskOrder {
        task: Arc::new(task),
        node,
    }
}

pub(crate) async fn running(executor: &Arc<dyn Executor>, order: TaskOrder) -> Box<dyn Controller> {
    let mut task = executor.controller(order).await.unwrap();
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    task
}

pub(crate) async fn run(subject: &dyn Subject) {
    let begin = Instant::now();
    describes(subject).await;
    a_life(subject).await;
    stops_gracefully(subject).await;
    kills_after_the_grace_period(subject).await;
    calls_are_idempotent(subject).await;
    a_new_executor_adopts(subject).await;
    held_and_discard(subject).await;
    a_missing_image_is_fatal(subject).await;
    many_at_once(subject).await;
    purges(subject).await;
    eprintln!("suite: {:?}", begin.elapsed());
}

async fn describes(subject: &dyn Subject) {
    let description = subject.executor().await.describe().await.unwrap();
    let resources = description.resources.unwrap();
    assert!(resources.nano_cpus > 0 && resources.memory_bytes > 0);
    assert_eq!(description.platform.unwrap().os, "linux");
    assert!(!description.engine.unwrap().engine_version.is_empty());
    if let Some(host) = description.host {
        assert!(host.disk_bytes > 0 && !host.kernel_version.is_empty());
        assert!(
            host.kernel_features.contains(&"seccomp".to_owned()),
            "{host:?}"
        );
    }
}

async fn a_life(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let mut task = executor
        .controller(subject.order("life", Program::Exit(3)))
        .await
        .unwrap();
    assert_eq!(task.observe().await.unwrap(), Observed::Absent);
    assert_eq!(task.prepare().await.unwrap(), None);
    let Observed::Created(handle) = task.observe().await.unwrap() else {
        panic!("not created")
    };
    assert!(!handle.container_id.is_empty());
    task.start().await.unwrap();
    let exit = task.wait().await.unwrap();
    assert_eq!((exit.code, exit.oom), (3, false));
    let Observed::Exited(_, exit) = task.observe().await.unwrap() else {
        panic!("not exited")
    };
    assert_eq!(exit.code, 3);
    assert_eq!(task.wait().await.unwrap().code, 3, "an end is told again");
    task.remove().await.unwrap();
    assert_eq!(task.observe().await.unwrap(), Observed::Absent);
    assert!(executor.held().await.unwrap().is_empty());
}

async fn stops_gracefully(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let mut task = running(&executor, subject.order("stop", Program::Forever)).await;
    assert!(matches!(
        task.observe().await.unwrap(),
        Observed::Running(_)
    ));
    subject.await_handlers("stop");
    if executor.name() == "containerd" {
        let usage = executor.usage().await;
        let [usage] = usage.as_slice() else {
            panic!("{usage:?}")
        };
        assert_eq!(usage.task_id, "stop");
        let counts = [usage.pids, usage.memory_bytes, usage.cpu_ns];
        assert!(counts.iter().all(|count| *count > 0), "{usage:?}");
    }
    task.shutdown().await.unwrap();
    assert!(executor.usage().await.is_empty());
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.remove().await.unwrap();
}

async fn kills_after_the_grace_period(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let mut task = running(
        &executor,
        impatient(subject.order("kill", Program::Stubborn)),
    )
    .await;
    subject.await_handlers("kill");
    let begin = Instant::now();
    task.shutdown().await.unwrap();
    assert!(begin.elapsed() >= GRACE, "{:?}", begin.elapsed());
    assert_eq!(task.wait().await.unwrap().code, 137);
    task.remove().await.unwrap();
}

async fn calls_are_idempotent(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let mut task = executor
        .controller(subject.order("twice", Program::Forever))
        .await
        .unwrap();
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    for _ in 0..2 {
        task.prepare().await.unwrap();
    }
    let Observed::Created(first) = task.observe().await.unwrap() else {
        panic!("not created")
    };
    for _ in 0..2 {
        task.start().await.unwrap();
    }
    task.prepare().await.unwrap();
    let Observed::Running(second) = task.observe().await.unwrap() else {
        panic!("not running")
    };
    assert_eq!(first, second);
    for _ in 0..2 {
        task.shutdown().await.unwrap();
    }
    task.start().await.unwrap();
    assert!(
        matches!(task.observe().await.unwrap(), Observed::Exited(..)),
        "it ran once"
    );
    for _ in 0..2 {
        task.remove().await.unwrap();
    }
    // What was prepared and never started goes as well.
    task.prepare().await.unwrap();
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    assert!(executor.held().await.unwrap().is_empty());
}

async fn a_new_executor_adopts(subject: &dyn Subject) {
    let first = subject.executor().await;
    let mut task = running(&first, subject.order("adopt", Program::Forever)).await;
    let before = task.observe().await.unwrap();
    drop((task, first));
    let second = subject.executor().await;
    let mut task = second
        .controller(subject.order("adopt", Program::Forever))
        .await
        .unwrap();
    assert_eq!(
        task.observe().await.unwrap(),
        before,
        "same container, same process"
    );
    // A wait that is given up changes nothing.
    let waited = tokio::time::timeout(Duration::from_millis(50), task.wait()).await;
    assert!(waited.is_err());
    subject.await_handlers("adopt");
    task.shutdown().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    drop(task);
    // One that was stopped and not removed yet is stopped still.
    let mut task = second
        .controller(subject.order("adopt", Program::Forever))
        .await
        .unwrap();
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
    let mut task = running(&second, subject.order("ends", Program::Exit(4))).await;
    assert_eq!(task.wait().await.unwrap().code, 4);
    drop((task, second));
    let third = subject.executor().await;
    let mut task = third
        .controller(subject.order("ends", Program::Exit(4)))
        .await
        .unwrap();
    assert_eq!(
        task.wait().await.unwrap().code,
        4,
        "an end outlives the executor that saw it"
    );
    task.remove().await.unwrap();
}

async fn held_and_discard(subject: &dyn Subject) {
    let first = subject.executor().await;
    running(&first, subject.order("b-runs", Program::Forever)).await;
    let mut prepared = first
        .controller(subject.order("a-made", Program::Forever))
        .await
        .unwrap();
    prepared.prepare().await.unwrap();
    drop((prepared, first));
    let second = subject.executor().await;
    assert_eq!(second.held().await.unwrap(), ["a-made", "b-runs"]);
    for task in second.held().await.unwrap() {
        second.discard(&task).await.unwrap();
        second.discard(&task).await.unwrap();
    }
    assert!(second.held().await.unwrap().is_empty());
}

async fn a_missing_image_is_fatal(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let mut task = executor
        .controller(subject.order("missing", Program::NoImage))
        .await
        .unwrap();
    let error = task.prepare().await.unwrap_err();
    assert!(matches!(error, Error::Fatal(_)), "{error}");
    assert!(error.to_string().contains("not found"), "{error}");
    assert_eq!(task.observe().await.unwrap(), Observed::Absent);
    assert!(executor.held().await.unwrap().is_empty());
    task.shutdown().await.unwrap();
    task.remove().await.unwrap();
}

async fn many_at_once(subject: &dyn Subject) {
    let executor = subject.executor().await;
    let begin = Instant::now();
    let lives = (0..10).map(|number| {
        let order = subject.order(&format!("many-{number}"), Program::Forever);
        running(&executor, order)
    });
    let tasks = futures::future::join_all(lives).await;
    eprintln!("ten tasks at once: {:?}", begin.elapsed());
    assert_eq!(executor.held().await.unwrap().len(), 10);
    for number in 0..10 {
        subject.await_handlers(&format!("many-{number}"));
    }
    futures::future::join_all(tasks.into_iter().map(async |mut task| {
        task.shutdown().await.unwrap();
        assert_eq!(task.wait().await.unwrap().code, 0);
        task.remove().await.unwrap();
    }))
    .await;
    assert!(executor.held().await.unwrap().is_empty());
}

async fn purges(subject: &dyn Subject) {
    let executor = subject.executor().await;
    running(&executor, subject.order("purged", Program::Forever)).await;
    executor.purge().await.unwrap();
    assert!(executor.held().await.unwrap().is_empty());
    executor.purge().await.unwrap();
}
