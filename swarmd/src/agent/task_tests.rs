use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_runtime::{Exit, NodeFacts};
use tokio::task::JoinSet;

use super::*;

/// What the runtime answers, call by call; then that all is well.
#[derive(Debug, Default)]
struct Answers {
    controller: VecDeque<Error>,
    observe: VecDeque<Error>,
    wait: VecDeque<Error>,
    shutdown: VecDeque<Error>,
    stopped: bool,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Answers>>);

impl Fake {
    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, of: impl FnOnce(&mut Answers) -> &mut VecDeque<Error>) -> Result<(), Error> {
        of(&mut self.lock()).pop_front().map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl Executor for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn describe(&self) -> Result<pb::NodeDescription, Error> {
        Ok(pb::NodeDescription::default())
    }

    async fn controller(&self, _: TaskOrder) -> Result<Box<dyn Controller>, Error> {
        self.answer(|answers| &mut answers.controller)?;
        Ok(Box::new(self.clone()))
    }

    async fn held(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn discard(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn healthy(&self) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn purge(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[tonic::async_trait]
impl Controller for Fake {
    async fn prepare(&mut self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn start(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Error> {
        // As over a socket: no answer comes at once.
        tokio::task::yield_now().await;
        self.answer(|answers| &mut answers.wait)?;
        std::future::pending().await
    }

    async fn shutdown(&mut self) -> Result<(), Error> {
        tokio::task::yield_now().await;
        self.answer(|answers| &mut answers.shutdown)?;
        self.lock().stopped = true;
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        self.answer(|answers| &mut answers.observe)?;
        Ok(Observed::Running(Handle::default()))
    }
}

struct Bed {
    fake: Fake,
    statuses: Arc<Statuses>,
    want: watch::Sender<Want>,
    driver: JoinSet<TaskId>,
}

const ID: TaskId = TaskId::from_raw(1);

impl Bed {
    /// A task in this state that an earlier swarmd left to this one.
    fn adopted(state: TaskState, answers: Answers) -> Self {
        let fake = Fake(Arc::new(Mutex::new(answers)));
        let statuses = Arc::new(Statuses::default());
        let mut status = pb::TaskStatus::default();
        status.set_state(state);
        statuses.restore(ID, Arc::new(status));
        let (_, recovered) = watch::channel(0);
        let shared = Shared {
            executor: Arc::new(fake.clone()),
            statuses: Arc::clone(&statuses),
            clock: Clock::real(),
            recovered,
            operations: Arc::default(),
        };
        let order = TaskOrder {
            task: Arc::default(),
            node: NodeFacts::default(),
        };
        let (want, wanted) = watch::channel(Want::Run);
        let mut driver = JoinSet::new();
        driver.spawn(Driver::new(ID, Arc::new(shared), order, wanted, Origin::Adopted).run());
        Self {
            fake,
            statuses,
            want,
            driver,
        }
    }

    /// Waits, at most a simulated minute, for a status.
    async fn until(&self, what: &str, holds: impl Fn(&pb::TaskStatus) -> bool) {
        for _ in 0..600 {
            if self.statuses.get(ID).is_some_and(|status| holds(&status)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never: {what}; it is {:?}", self.statuses.get(ID));
    }
}

fn fatal(reason: &str) -> VecDeque<Error> {
    VecDeque::from([Error::Fatal(reason.to_owned())])
}

fn temporary(reason: &str) -> VecDeque<Error> {
    VecDeque::from([Error::Temporary(reason.to_owned())])
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_can_not_be_asked_fails_no_running_task() {
    for answers in [
        Answers {
            controller: fatal("nft: refused"),
            ..Answers::default()
        },
        Answers {
            observe: fatal("nft: refused"),
            ..Answers::default()
        },
    ] {
        let bed = Bed::adopted(TaskState::Running, answers);
        bed.until("it says why", |status| status.err == "nft: refused")
            .await;
        let running = |status: &pb::TaskStatus| status.state() == TaskState::Running;
        bed.until("it says no more of it", |status| {
            running(status) && status.err.is_empty()
        })
        .await;
    }
    // What has not started yet goes elsewhere.
    let answers = Answers {
        controller: fatal("nft: refused"),
        ..Answers::default()
    };
    let bed = Bed::adopted(TaskState::Preparing, answers);
    bed.until("it is rejected", |status| {
        status.state() == TaskState::Rejected && status.err == "nft: refused"
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_recovers_leaves_no_error_in_the_status() {
    let answers = Answers {
        wait: temporary("the shim does not answer"),
        ..Answers::default()
    };
    let bed = Bed::adopted(TaskState::Running, answers);
    bed.until("it says why", |status| {
        status.err == "the shim does not answer"
    })
    .await;
    bed.until("it runs as ever", |status| {
        status.err.is_empty() && status.state() == TaskState::Running
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_task_is_ended_when_its_container_is() {
    let answers = Answers {
        shutdown: fatal("containerd: signal task: internal error"),
        ..Answers::default()
    };
    let mut bed = Bed::adopted(TaskState::Running, answers);
    bed.want.send(Want::Stop).unwrap();
    bed.until("it says why", |status| {
        status.err.ends_with("internal error")
    })
    .await;
    let state = bed.statuses.get(ID).map(|status| status.state());
    assert_eq!(state, Some(TaskState::Running));
    assert!(!bed.fake.lock().stopped);
    bed.until("it is stopped", |status| {
        status.state() == TaskState::Shutdown && status.err.is_empty()
    })
    .await;
    assert!(bed.fake.lock().stopped);
    bed.want.send(Want::Gone).unwrap();
    assert_eq!(bed.driver.join_next().await.unwrap().unwrap(), ID);
}
