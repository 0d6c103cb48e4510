//! Every executor backend against one suite, and containerd against what only it can show.
//!
//! The containerd part needs what a lab does (root, containerd, docker-registry, …) and
//! busybox-static. Without them it says so and is left out, unless `CI=true`: then it fails. `SWARM_LAB=off` leaves them out too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: it ends at the first surprise, reads the clock and talks"
)]

mod containerd;
mod crashes;
mod faults;
mod faulty;
mod images;
mod lab;
mod leaks;
mod matrix;
mod network;
mod options;
mod suite;

use std::sync::Arc;

use agent_runtime::executor::{Executor, TaskOrder};
use agent_runtime::simulated::{SimulatedConfig, SimulatedExecutor, SimulatedRuntime};
use suite::{Program, Subject};

#[derive(Debug)]
struct Simulated(Arc<SimulatedRuntime>);

#[tonic::async_trait]
impl Subject for Simulated {
    async fn executor(&self) -> Arc<dyn Executor> {
        Arc::new(SimulatedExecutor::new(
            Arc::clone(&self.0),
            SimulatedConfig::default(),
        ))
    }

    fn order(&self, id: &str, program: Program) -> TaskOrder {
        let env = match program {
            Program::Forever => vec![],
            Program::Stubborn => vec!["SIM_IGNORE_STOP=true".to_owned()],
            Program::Exit(code) => {
                vec![
                    "SIM_EXIT_AFTER=10ms".to_owned(),
                    format!("SIM_EXIT_CODE={code}"),
                ]
            }
            Program::NoImage => vec!["SIM_FAIL_PREPARE=image not found".to_owned()],
        };
        suite::order(id, "sim:latest", &[], &env)
    }

    fn await_handlers(&self, _id: &str) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_backend() {
    suite::run(&Simulated(SimulatedRuntime::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_backend() {
    let Some(mut lab) = lab::Lab::start() else {
        return;
    };
    suite::run(&lab.subject("suite")).await;
    containerd::run(&mut lab).await;
    crashes::run(&mut lab).await;
    network::run(&lab).await;
    options::run(&lab).await;
    faults::run(&lab).await;
    matrix::run(&mut lab).await;
    // Last, so that all descriptors and memory of this process that it counts are its own.
    leaks::run(&lab).await;
    lab.finish();
}
