//! Waits until a service has converged, and shows how far it is.
//!
//! Looks again after each event of the manager's watch, or every [`POLL`] where there is none. The tasks
//! of a large service are fetched less often than its counts.

use std::time::{Duration, SystemTime};

use swarm_proto::pb;
use swarm_proto::pb::watch_request::WatchEntry;
use tonic::Streaming;

use super::super::session::Session;
use super::painter::Painter;
use crate::cli::Wait;
use crate::error::Error;
use crate::render::progress::{Goal, Judge, Seen, Verdict, headline, reasons};
use crate::resolve::service_name;
use crate::spec::{DURATION, Problems};

/// Between two looks without a watch; also the least time between two with one.
const POLL: Duration = Duration::from_millis(150);
/// Between two looks where the watch tells of nothing: time alone can settle or end the wait.
const QUIET: Duration = Duration::from_millis(500);
/// Looks at the counts for one at the tasks of a large service: a task is a few hundred bytes.
const TASKS_EVERY: u32 = 8;

/// How long the manager may be away: a restart and an election take seconds.
const LOST_MAX: Duration = Duration::from_secs(30);
/// Tasks of a service whose every event is listened to; counting is cheaper for the manager beyond.
const WATCHED_MAX: u64 = 100;

/// Whether and how long to wait.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    detach: bool,
    quiet: bool,
    timeout: Option<Duration>,
}

impl Patience {
    pub(super) fn check(wait: &Wait) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let timeout = problems.optional("--timeout", wait.timeout.as_ref(), &DURATION);
        problems.unless_any(Self {
            detach: wait.detach,
            quiet: wait.quiet,
            timeout,
        })
    }
}

/// Waits for `service` as it was answered by the manager.
pub(super) async fn wait(
    session: &mut Session<'_>,
    service: &pb::Service,
    (goal, patience): (Goal, &Patience),
) -> Result<(), Error> {
    if patience.detach {
        return Ok(());
    }
    let mut watch = match replicas(service) {
        0..=WATCHED_MAX => watch(session, &service.id).await,
        _ => None,
    };
    let mut painter = Painter::new(session, patience.quiet);
    let mut judge = Judge::new(goal);
    let name = service_name(service);
    let started = session.now();
    let mut tasks = Vec::new();
    let mut lost_since = None;
    for look in 0_u32.. {
        let seen = match observe(session, service, look).await {
            Ok(seen) => seen,
            Err(error) => {
                lost((session, &painter), error, &mut lost_since)?;
                if let Step::Interrupted = pause(session, &mut watch).await {
                    return Err(interrupted(&name));
                }
                continue;
            }
        };
        lost_since = None;
        if let Some(fresh) = &seen.tasks {
            tasks.clone_from(fresh);
        }
        let verdict = judge.look(&seen, session.now());
        painter.show(session, &seen, &tasks)?;
        match verdict {
            Verdict::Converged => return painter.end(session, &seen),
            Verdict::Hopeless(reason) => {
                return Err(Error::NotConverged {
                    service: name,
                    reason,
                });
            }
            Verdict::Waiting | Verdict::Settling => {}
        }
        if patience
            .timeout
            .is_some_and(|timeout| passed(started, session.now()) >= timeout)
        {
            return Err(timed_out(name, &seen, &tasks));
        }
        if let Step::Interrupted = pause(session, &mut watch).await {
            return Err(interrupted(&name));
        }
    }
    Ok(())
}

fn interrupted(service: &str) -> Error {
    Error::Interrupted {
        what: format!("service {service}"),
        look: format!("swarmctl service ps {service}"),
    }
}

/// A manager that is gone for a moment ends no wait: what was asked for is in its log. The operator is told
/// once, and the error stands when it stays away.
fn lost(
    (session, painter): (&mut Session<'_>, &Painter),
    error: Error,
    since: &mut Option<SystemTime>,
) -> Result<(), Error> {
    let now = session.now();
    if !error.is_passing() || since.is_some_and(|since| passed(since, now) >= LOST_MAX) {
        return Err(error);
    }
    if since.is_none() {
        *since = Some(now);
        painter.remark(session, &format!("{error}; still trying"))?;
    }
    Ok(())
}

fn passed(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

fn timed_out(service: String, seen: &Seen, tasks: &[pb::Task]) -> Error {
    let mut reason = format!("time is up with {}", headline(seen));
    for why in reasons(tasks).iter().take(3) {
        reason.push_str("; ");
        reason.push_str(why);
    }
    Error::NotConverged { service, reason }
}

/// The service, its counts, and its tasks where they are needed.
async fn observe(
    session: &mut Session<'_>,
    service: &pb::Service,
    look: u32,
) -> Result<Seen, Error> {
    let current = session.client.get_service(&service.id).await?;
    let Some(current) = current else {
        let reason = "it was removed meanwhile".to_owned();
        return Err(Error::NotConverged {
            service: service_name(service),
            reason,
        });
    };
    let statuses = session
        .client
        .service_statuses(vec![service.id.clone()])
        .await?;
    let status = statuses
        .into_iter()
        .find(|status| status.service_id == service.id)
        .unwrap_or_default();
    let mut seen = Seen {
        service: current,
        desired: status.desired_tasks,
        running: status.running_tasks,
        completed: status.completed_tasks,
        tasks: None,
    };
    if seen.desired <= WATCHED_MAX
        || seen.running == seen.desired
        || look.is_multiple_of(TASKS_EVERY)
    {
        let service_ids = vec![service.id.clone()];
        let filters = pb::list_tasks_request::Filters {
            service_ids,
            ..Default::default()
        };
        seen.tasks = Some(session.client.list_tasks(filters).await?);
    }
    Ok(seen)
}

/// The watch on the service and its tasks, where the manager serves one.
async fn watch(session: &mut Session<'_>, id: &str) -> Option<Streaming<pb::WatchMessage>> {
    let action = i32::from(pb::WatchActionKind::WatchActionCreate)
        | i32::from(pb::WatchActionKind::WatchActionUpdate)
        | i32::from(pb::WatchActionKind::WatchActionRemove);
    let entry = |kind: &str, by: pb::select_by::By| WatchEntry {
        kind: kind.to_owned(),
        action,
        filters: vec![pb::SelectBy { by: Some(by) }],
    };
    let entries = vec![
        entry("service", pb::select_by::By::Id(id.to_owned())),
        entry("task", pb::select_by::By::ServiceId(id.to_owned())),
    ];
    let request = pb::WatchRequest {
        entries,
        ..Default::default()
    };
    session
        .client
        .watch()
        .watch(request)
        .await
        .ok()
        .map(tonic::Response::into_inner)
}

fn replicas(service: &pb::Service) -> u64 {
    match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
        Some(pb::service_spec::Mode::Replicated(replicated)) => replicated.replicas,
        Some(pb::service_spec::Mode::ReplicatedJob(job)) => job.max_concurrent,
        Some(pb::service_spec::Mode::Global(_) | pb::service_spec::Mode::GlobalJob(_)) | None => 0,
    }
}

enum Step {
    Again,
    Interrupted,
}

/// Until it is worth looking again. A watch that ends is replaced by looking regularly.
async fn pause(session: &mut Session<'_>, watch: &mut Option<Streaming<pb::WatchMessage>>) -> Step {
    let clock = session.clock.clone();
    // Ctrl-C first: the operator must not wait for a busy watch.
    tokio::select! {
        biased;
        () = &mut session.interrupt => return Step::Interrupted,
        () = clock.sleep(POLL) => {}
    }
    let Some(events) = watch else {
        return Step::Again;
    };
    tokio::select! {
        biased;
        () = &mut session.interrupt => return Step::Interrupted,
        event = events.message() => if !matches!(event, Ok(Some(_))) {
            *watch = None;
        },
        () = clock.sleep(QUIET) => {}
    }
    Step::Again
}
