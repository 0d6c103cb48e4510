//! A node's runtime: the steps of its tasks, and what comes of each call.

use super::*;

impl World {
    /// Takes a task's steps until one takes time.
    pub(super) fn drive(&mut self, node: NodeId, boot: u64, task: TaskId) {
        loop {
            let now = self.now;
            let Some(host) = self.hosts.get_mut(&node) else {
                return;
            };
            let observed = host.observe(task);
            let away = host.runtime_away;
            let Some(daemon) = host.daemon.as_mut().filter(|d| d.boot == boot) else {
                return;
            };
            let Some(driver) = daemon.drivers.get_mut(&task) else {
                return;
            };
            let Some(status) = daemon.statuses.get_mut(&task) else {
                return;
            };
            if let Some(call) = driver.call {
                let stops = driver.want >= Want::Stop;
                match call.what {
                    What::Step(step @ (Step::Prepare | Step::Start | Step::Wait)) if stops => {
                        driver.call = None;
                        if self.random.per_mille(500) {
                            self.take_effect(node, task, step);
                        }
                        continue;
                    }
                    What::Pause => driver.call = None,
                    What::Step(_) => return,
                }
            }
            let asks = driver.ask && driver.want < Want::Stop && !step::is_terminal(status.state());
            if asks && away {
                self.pause(node, boot, task);
                return;
            }
            if asks {
                driver.ask = false;
                driver.observed = Some(observed);
            }
            let next = step::next(driver.want, status.state(), driver.observed.as_ref());
            match next {
                Step::Enter(_) | Step::Lost | Step::Hold => {
                    let done = step::after(status.state(), next, Outcome::Done { notice: None });
                    match done {
                        After::Advance(change) => {
                            change.write(status, now.to_wire().unwrap_or_default());
                            daemon.unsent.insert(task);
                            self.call_report(node, boot);
                        }
                        After::Again => {}
                        After::Retry(_) | After::Await | After::Forget | After::Hold => return,
                    }
                }
                Step::Prepare | Step::Start | Step::Wait | Step::Shutdown | Step::Remove => {
                    driver.observed = None;
                    self.call(node, boot, task, next);
                    return;
                }
            }
        }
    }

    /// Makes a runtime call.
    pub(super) fn call(&mut self, node: NodeId, boot: u64, task: TaskId, step: Step) {
        let number = self.number();
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let waits = step == Step::Wait && !host.runtime_away;
        let runs = matches!(host.observe(task), Observed::Running(_));
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        if let Some(driver) = daemon.drivers.get_mut(&task) {
            let what = What::Step(step);
            driver.call = Some(Call { number, what });
        }
        if waits && runs {
            // Its end is told when it comes.
            return;
        }
        let delay = match step {
            Step::Prepare => self.random.millis(5, 800),
            Step::Start => self.random.millis(1, 200),
            Step::Shutdown => self.random.millis(1, 2_000),
            Step::Remove | Step::Wait => self.random.millis(1, 50),
            Step::Enter(_) | Step::Lost | Step::Hold => Duration::ZERO,
        };
        self.after(delay, Due::Call(node, boot, task, number));
    }

    pub(super) fn pause(&mut self, node: NodeId, boot: u64, task: TaskId) {
        let number = self.number();
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if let Some(driver) = daemon.drivers.get_mut(&task) {
            let what = What::Pause;
            driver.call = Some(Call { number, what });
        }
        self.after(PAUSE, Due::Call(node, boot, task, number));
    }

    /// A runtime call, or a pause, ends.
    pub fn call_ends(&mut self, node: NodeId, boot: u64, task: TaskId, number: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let away = host.runtime_away;
        let Some(daemon) = host.daemon.as_mut().filter(|d| d.boot == boot) else {
            return;
        };
        let Some(driver) = daemon.drivers.get_mut(&task) else {
            return;
        };
        let Some(call) = driver.call.filter(|call| call.number == number) else {
            return;
        };
        driver.call = None;
        let What::Step(step) = call.what else {
            self.drive(node, boot, task);
            return;
        };
        let outcome = if away {
            Outcome::Failed(unavailable())
        } else {
            self.outcome(node, task, step)
        };
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        let Some(status) = daemon.statuses.get_mut(&task) else {
            return;
        };
        match step::after(status.state(), step, outcome) {
            After::Advance(change) => {
                change.write(status, now.to_wire().unwrap_or_default());
                if step == Step::Start {
                    note_container(status, task);
                }
                daemon.unsent.insert(task);
                self.call_report(node, boot);
                self.drive(node, boot, task);
            }
            After::Again | After::Hold => self.drive(node, boot, task),
            After::Retry(change) => {
                change.write(status, now.to_wire().unwrap_or_default());
                daemon.unsent.insert(task);
                self.call_report(node, boot);
                self.pause(node, boot, task);
            }
            After::Await => {
                if let Some(driver) = daemon.drivers.get_mut(&task) {
                    driver.ask = true;
                }
                self.pause(node, boot, task);
            }
            After::Forget => {
                daemon.drivers.remove(&task);
                if !daemon.unsent.contains(&task) {
                    daemon.statuses.remove(&task);
                }
            }
        }
    }

    /// What a runtime call comes to.
    pub(super) fn outcome(&mut self, node: NodeId, task: TaskId, step: Step) -> Outcome {
        if step == Step::Wait {
            let host = self.hosts.get(&node);
            return match host.map(|h| h.observe(task)) {
                Some(Observed::Exited(_, exit)) => Outcome::Exited(exit),
                Some(Observed::Running(_)) => Outcome::Done { notice: None },
                Some(Observed::Absent | Observed::Created(_)) | None => {
                    Outcome::Failed(Error::Fatal("the container is gone".to_owned()))
                }
            };
        }
        if step == Step::Prepare && self.fate(node, task) == Fate::Missing {
            let text = "image missing:latest: not found in the registry";
            return Outcome::Failed(Error::Fatal(text.to_owned()));
        }
        // What is there already is found by a call that is made again.
        let observed = self.hosts.get(&node).map(|host| host.observe(task));
        let may_fail = matches!(
            (step, observed),
            (Step::Prepare, Some(Observed::Absent)) | (Step::Start, Some(Observed::Created(_)))
        );
        if may_fail && self.random.per_mille(self.faults.failing) {
            return Outcome::Failed(Error::Fatal(format!("{step:?} failed")));
        }
        if self.random.per_mille(self.faults.temporary) {
            return Outcome::Failed(Error::Temporary(format!("{step:?} did not work")));
        }
        self.take_effect(node, task, step);
        Outcome::Done { notice: None }
    }

    pub(super) fn fate(&self, node: NodeId, task: TaskId) -> Fate {
        let daemon = self.hosts.get(&node).and_then(|host| host.daemon.as_ref());
        let driver = daemon.and_then(|daemon| daemon.drivers.get(&task));
        driver.map_or(Fate::Runs, |driver| driver.fate)
    }

    /// What a call does to the runtime; again it changes nothing.
    pub(super) fn take_effect(&mut self, node: NodeId, task: TaskId, step: Step) {
        let token = self.number();
        let crashes = self.fate(node, task) == Fate::Crashes;
        let exiting = self.random.per_mille(self.faults.exiting);
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        match step {
            Step::Prepare => {
                let state = ContainerState::Created;
                host.containers
                    .entry(task)
                    .or_insert(Container { token, state });
            }
            Step::Start => {
                let Some(container) = host.containers.get_mut(&task) else {
                    return;
                };
                if container.state == ContainerState::Created {
                    container.state = ContainerState::Running;
                    let token = container.token;
                    if crashes {
                        let life = Duration::from_secs(1);
                        self.after(life, Due::Exit(node, task, token));
                    } else if exiting {
                        let life = self.random.millis(10, 20_000);
                        self.after(life, Due::Exit(node, task, token));
                    }
                }
            }
            Step::Shutdown => {
                if let Some(container) = host.containers.get_mut(&task)
                    && container.state == ContainerState::Running
                {
                    container.state = ContainerState::Exited(143);
                }
            }
            Step::Remove => {
                host.containers.remove(&task);
            }
            Step::Wait | Step::Enter(_) | Step::Lost | Step::Hold => {}
        }
    }

    /// A container ends by itself.
    pub fn container_ends(&mut self, node: NodeId, task: TaskId, token: u64) {
        let crashes = self.fate(node, task) == Fate::Crashes;
        let code = u32::from(self.random.per_mille(600) || crashes);
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(container) = host.containers.get_mut(&task) else {
            return;
        };
        if container.token != token || container.state != ContainerState::Running {
            return;
        }
        container.state = ContainerState::Exited(code);
        let Some(daemon) = &host.daemon else { return };
        let boot = daemon.boot;
        let call = daemon.drivers.get(&task).and_then(|d| d.call);
        if let Some(Call {
            number,
            what: What::Step(Step::Wait),
        }) = call
        {
            self.call_ends(node, boot, task, number);
        }
    }
}

fn unavailable() -> Error {
    Error::Unavailable {
        runtime: "the simulated runtime".to_owned(),
        reason: "it is away".to_owned(),
    }
}

fn note_container(status: &mut pb::TaskStatus, task: TaskId) {
    let container = pb::ContainerStatus {
        container_id: format!("sim-{task}"),
        pid: 1,
        exit_code: 0,
    };
    status.runtime_status = Some(pb::task_status::RuntimeStatus::Container(container));
}
