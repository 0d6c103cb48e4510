//! A node's session: what it hears, what it has to report.

use super::*;

impl World {
    /// A timer of the session.
    pub fn session_is_due(&mut self, node: NodeId, boot: u64, timer: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        match daemon.link {
            Link::Away(at) if at == timer => self.register(node, boot),
            Link::Trying(_, at) if at == timer => self.disconnect(node, boot),
            Link::Up(up) if up.timer == timer && up.beating => self.disconnect(node, boot),
            Link::Up(up) if up.timer == timer => {
                let timer = self.number();
                if let Some((daemon, _)) = self.daemon(node, boot) {
                    daemon.link = Link::Up(Up {
                        timer,
                        beating: true,
                        ..up
                    });
                }
                self.request(node, boot, Request::Beat(up.session));
                self.after(REQUEST_LIMIT, Due::Session(node, boot, timer));
            }
            Link::Away(_) | Link::Trying(..) | Link::Up(_) => {}
        }
    }

    pub(super) fn register(&mut self, node: NodeId, boot: u64) {
        let (attempt, timer) = (self.number(), self.number());
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let description = Box::new(host.description.clone());
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        daemon.link = Link::Trying(attempt, timer);
        let resumed = daemon.resumable;
        self.request(node, boot, Request::Register(attempt, resumed, description));
        self.after(LONG_LIMIT, Due::Session(node, boot, timer));
    }

    pub(super) fn disconnect(&mut self, node: NodeId, boot: u64) {
        let timer = self.number();
        let delay = self.random.millis(100, 4_000);
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        daemon.link = Link::Away(timer);
        self.after(delay, Due::Session(node, boot, timer));
    }

    /// The leader says something.
    pub fn host_hears(&mut self, node: NodeId, boot: u64, answer: Answer) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        match (answer, daemon.link) {
            (Answer::Session(attempt, session), Link::Trying(ours, _)) if attempt == ours => {
                self.connected(node, boot, (attempt, session));
            }
            (Answer::Refused(session), Link::Up(up)) if up.session == session => {
                daemon.resumable = 0;
                self.disconnect(node, boot);
            }
            (Answer::Broken(stream), Link::Up(up)) if stream == (up.attempt, up.session) => {
                self.disconnect(node, boot);
            }
            (Answer::Period(session, period), Link::Up(up))
                if up.session == session && up.beating =>
            {
                let timer = self.number();
                if let Some((daemon, _)) = self.daemon(node, boot) {
                    daemon.link = Link::Up(Up {
                        timer,
                        beating: false,
                        ..up
                    });
                }
                self.after(period, Due::Session(node, boot, timer));
            }
            (Answer::Recorded(_, number), _) => self.recorded(node, boot, number),
            (Answer::Assignments(stream, message), Link::Up(up))
                if stream == (up.attempt, up.session) =>
            {
                self.assigned(node, boot, up, *message);
            }
            (
                Answer::Session(..)
                | Answer::Refused(_)
                | Answer::Broken(_)
                | Answer::Period(..)
                | Answer::Assignments(..),
                _,
            ) => {}
        }
    }

    pub(super) fn connected(&mut self, node: NodeId, boot: u64, (attempt, session): (u64, u64)) {
        let timer = self.number();
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if daemon.resumable != session {
            // A manager that knows nothing: all is news.
            daemon.unsent.extend(daemon.statuses.keys());
        }
        daemon.resumable = session;
        daemon.link = Link::Up(Up {
            attempt,
            session,
            sequence: 0,
            timer,
            beating: false,
        });
        // The first beat comes soon.
        let delay = self.random.millis(10, 1_000);
        self.after(delay, Due::Session(node, boot, timer));
        self.call_report(node, boot);
    }

    pub(super) fn assigned(
        &mut self,
        node: NodeId,
        boot: u64,
        up: Up,
        message: pb::AssignmentsMessage,
    ) {
        let complete = message.r#type() == pb::assignments_message::Type::Complete;
        let applies_to = message.applies_to.parse().unwrap_or(0_u64);
        let results_in = message.results_in.parse().unwrap_or(0_u64);
        if results_in <= up.sequence {
            return;
        }
        if applies_to != up.sequence {
            self.say(format!("{node}: a message is missing in the stream"));
            self.disconnect(node, boot);
            return;
        }
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        daemon.link = Link::Up(Up {
            sequence: results_in,
            ..up
        });
        let known = daemon.drivers.iter();
        let known = known.map(|(id, driver)| (*id, driver.want)).collect();
        let (update, remove) = tasks_of(message);
        let mut assigned = BTreeSet::new();
        let plan = if complete {
            assigned.extend(update.iter().map(|(id, _)| *id));
            assigned::plan(&known, Message::Complete(update))
        } else {
            assigned::plan(&known, Message::Incremental { update, remove })
        };
        for (id, task) in plan.start {
            self.take_up(node, boot, id, &task);
        }
        for ((id, _), want) in plan.change {
            self.want(node, boot, id, want);
        }
        for id in plan.remove {
            self.want(node, boot, id, Want::Gone);
        }
        if complete {
            self.remove_leftovers(node, &assigned);
        }
    }

    /// Removes what an earlier daemon left and no manager wants.
    pub(super) fn remove_leftovers(&mut self, node: NodeId, assigned: &BTreeSet<TaskId>) {
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(daemon) = &mut host.daemon else {
            return;
        };
        let leftovers = std::mem::take(&mut daemon.leftovers);
        host.containers
            .retain(|id, _| assigned.contains(id) || !leftovers.contains(id));
    }

    pub(super) fn take_up(&mut self, node: NodeId, boot: u64, id: TaskId, task: &pb::Task) {
        let want = Want::of(task.desired_state());
        let status = task.status.clone().unwrap_or_default();
        let fate = Fate::of(task);
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        let kept = Kept {
            want,
            status: status.clone(),
            fate,
        };
        disk.insert(id, kept);
        daemon.statuses.insert(id, status);
        let driver = Driver {
            want,
            fate,
            ask: daemon.leftovers.remove(&id),
            observed: None,
            call: None,
        };
        daemon.drivers.insert(id, driver);
        self.drive(node, boot, id);
    }

    pub(super) fn want(&mut self, node: NodeId, boot: u64, id: TaskId, want: Want) {
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        let Some(driver) = daemon.drivers.get_mut(&id) else {
            return;
        };
        driver.want = want;
        if want == Want::Gone {
            // On disk it is none of ours any more; what is left of it is a leftover.
            disk.remove(&id);
        } else if let Some(kept) = disk.get_mut(&id) {
            kept.want = want;
        }
        self.drive(node, boot, id);
    }

    // The reporter.

    pub(super) fn call_report(&mut self, node: NodeId, boot: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        if daemon.report_called || daemon.unsent.is_empty() {
            return;
        }
        daemon.report_called = true;
        let delay = self.random.millis(0, 20);
        self.after(delay, Due::Report(node, boot));
    }

    /// Saves statuses and sends them.
    pub fn report(&mut self, node: NodeId, boot: u64) {
        let number = self.number();
        let Some((daemon, disk)) = self.daemon(node, boot) else {
            return;
        };
        daemon.report_called = false;
        for (id, kept) in disk.iter_mut() {
            if let Some(status) = daemon.statuses.get(id) {
                kept.status.clone_from(status);
            }
        }
        let Link::Up(up) = daemon.link else { return };
        if let Some(lost) = daemon.in_flight.take() {
            // Not answered in time: sent again.
            daemon.unsent.extend(lost.tasks.into_keys());
        }
        let unsent = std::mem::take(&mut daemon.unsent);
        let tasks = unsent.into_iter();
        let tasks: BTreeMap<TaskId, pb::TaskStatus> = tasks
            .filter_map(|id| Some((id, daemon.statuses.get(&id)?.clone())))
            .collect();
        if tasks.is_empty() {
            return;
        }
        let updates = tasks.iter().map(|(id, status)| TaskStatusUpdate {
            task_id: id.to_string(),
            status: Some(status.clone()),
        });
        let request = Request::Statuses(up.session, number, updates.collect());
        daemon.in_flight = Some(InFlight { number, tasks });
        // The timer of the request: found unanswered, it is sent again.
        daemon.report_called = true;
        self.request(node, boot, request);
        self.after(LONG_LIMIT, Due::Report(node, boot));
    }

    pub(super) fn recorded(&mut self, node: NodeId, boot: u64, number: u64) {
        let Some((daemon, _)) = self.daemon(node, boot) else {
            return;
        };
        let ours = daemon
            .in_flight
            .as_ref()
            .is_some_and(|sent| sent.number == number);
        if !ours {
            return;
        }
        daemon.in_flight = None;
        daemon.report_called = false;
        let forgotten = daemon.statuses.keys().copied();
        let forgotten =
            forgotten.filter(|id| !daemon.drivers.contains_key(id) && !daemon.unsent.contains(id));
        for id in forgotten.collect::<Vec<_>>() {
            daemon.statuses.remove(&id);
        }
        self.call_report(node, boot);
    }

    // The tasks' drivers.
}

/// The tasks that a message brings, and those that it takes away.
fn tasks_of(message: pb::AssignmentsMessage) -> (Vec<assigned::Task>, Vec<TaskId>) {
    let (mut update, mut remove) = (Vec::new(), Vec::new());
    for change in message.changes {
        let action = change.action();
        let Some(pb::assignment::Item::Task(task)) = change.assignment.and_then(|a| a.item) else {
            continue;
        };
        let id: TaskId = task.id.parse().expect("an id");
        match action {
            pb::assignment_change::AssignmentAction::Update => update.push((id, Arc::new(task))),
            pb::assignment_change::AssignmentAction::Remove => remove.push(id),
        }
    }
    (update, remove)
}
