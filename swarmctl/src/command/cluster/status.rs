//! `swarmctl cluster status`: how the cluster is, and what a tired operator is to make of it.
//!
//! What the node at hand knows is told in any case; what only the leader or a majority knows, where they answer. The
//! verdict is a pure function of both.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use swarm_proto::{amount, own, pb};

use super::super::session::Session;
use crate::error::Error;
use crate::render::inspect::Details;
use crate::render::show::Format;
use crate::render::time::moment;
use crate::resolve::{node_name, service_name};

/// A manager that has answered the leader within this time is there, as in `node ls`.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// A leader that was not heard for so long is none.
const LEADER_SILENT: Duration = Duration::from_secs(5);
/// Entries that a manager may be behind in the middle of writes.
const BEHIND_MAX: u64 = 1000;
/// A certificate is renewed at four fifths of its life at the latest, and tried again when that fails: one of which less than
/// this part of its life is left is not renewed.
const CERTIFICATE_LEFT: u32 = 8;
/// Services and nodes named in one finding.
const NAMED_MAX: usize = 5;

/// Exit code where the cluster takes no changes; see `swarmctl --help`.
pub(super) async fn run(session: &mut Session<'_>, format: &Format) -> Result<(), Error> {
    let request = session.client.request(own::LocalStatusRequest {});
    let local = session.client.operator().local_status(request).await;
    let local = local
        .map_err(|status| Error::refused("ask the local node", status))?
        .into_inner();
    let cluster = match local.role.as_str() {
        "manager" if !local.locked && local.fenced.is_empty() => Some(ask(session).await),
        _ => None,
    };
    let facts = Facts {
        now: session.now(),
        local,
        cluster,
    };
    let verdict = facts.verdict();
    let value = facts.value(&verdict);
    if !session.print_values(format, std::iter::once(value))? {
        let mut lines = facts.details().lines();
        lines.extend(verdict.lines());
        session.print(&lines)?;
    }
    verdict.end()
}

/// What the leader and a majority say.
struct Cluster {
    consensus: own::ConsensusView,
    nodes: Vec<pb::Node>,
    /// Services by name: tasks that run, and that should.
    services: Vec<(String, u64, u64)>,
}

async fn ask(session: &mut Session<'_>) -> Result<Cluster, Error> {
    let request = session.client.request(own::ConsensusRequest {});
    let consensus = session.client.operator().consensus(request).await;
    let consensus = consensus.map_err(|status| Error::refused("ask the leader", status))?;
    let client = &mut session.client;
    let nodes = client.list_nodes(pb::list_nodes_request::Filters::default());
    let nodes = nodes.await?;
    let services = client.list_services(pb::list_services_request::Filters::default());
    let services = services.await?;
    let ids = services.iter().map(|service| service.id.clone()).collect();
    let counts = client.service_statuses(ids).await?;
    let services = services.iter().map(|service| {
        let count = counts.iter().find(|count| count.service_id == service.id);
        let (running, desired) = count.map_or((0, 0), |c| (c.running_tasks, c.desired_tasks));
        (service_name(service), running, desired)
    });
    Ok(Cluster {
        consensus: consensus.into_inner(),
        nodes,
        services: services.collect(),
    })
}

/// All that is known.
struct Facts {
    now: std::time::SystemTime,
    local: own::LocalStatusResponse,
    /// None on a node that does not serve the cluster.
    cluster: Option<Result<Cluster, Error>>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Nothing to do.
    Healthy,
    /// All works, and something is not as it should be.
    Degraded,
    /// Nothing can be changed; containers go on.
    Unavailable,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        })
    }
}

/// What to make of it.
struct Verdict {
    level: Level,
    /// Each with what to do about it.
    findings: Vec<(Level, String)>,
}

impl Verdict {
    fn of(findings: Vec<(Level, String)>) -> Self {
        let level = findings.iter().map(|(level, _)| *level).max();
        Self {
            level: level.unwrap_or(Level::Healthy),
            findings,
        }
    }

    fn lines(&self) -> Vec<String> {
        let summary = match self.level {
            Level::Healthy => "healthy: nothing to do",
            Level::Degraded => "degraded: it works; see to this before more breaks",
            Level::Unavailable => "unavailable: containers go on, and nothing can be changed",
        };
        let mut lines = vec![String::new(), format!("Verdict: {summary}")];
        lines.extend(self.findings.iter().map(|(_, text)| format!("- {text}")));
        lines
    }

    fn end(self) -> Result<(), Error> {
        match self.level {
            Level::Healthy | Level::Degraded => Ok(()),
            Level::Unavailable => Err(Error::Unavailable),
        }
    }
}

impl Facts {
    fn verdict(&self) -> Verdict {
        let mut findings = Vec::new();
        self.judge_node(&mut findings);
        match &self.cluster {
            None => {}
            Some(Ok(cluster)) => cluster.judge(&mut findings),
            Some(Err(error)) => findings.push((Level::Unavailable, self.no_majority(error))),
        }
        Verdict::of(findings)
    }

    /// This node itself.
    fn judge_node(&self, findings: &mut Vec<(Level, String)>) {
        let local = &self.local;
        if !local.fenced.is_empty() {
            findings.push((Level::Unavailable, local.fenced.clone()));
        }
        if local.locked {
            let text = "this manager is locked: run `swarmctl cluster unlock` on this host";
            findings.push((Level::Unavailable, text.to_owned()));
            return;
        }
        if local.manager_addr.is_empty() {
            // It has none for a moment whenever another manager leads, or one starts.
            let finding = match &self.cluster {
                Some(Ok(_)) => (
                    Level::Degraded,
                    "this node's agent has no session with a manager: it tries again by itself, and its log says what fails",
                ),
                Some(Err(_)) | None => (
                    Level::Unavailable,
                    "this node is connected to no manager: see that managers run and can be reached from here",
                ),
            };
            findings.push((finding.0, finding.1.to_owned()));
        }
        if let Some(left) = self.certificate_left()
            && left <= self.certificate_life() / CERTIFICATE_LEFT
        {
            let text = match left {
                Duration::ZERO => "this node's certificate has ended".to_owned(),
                left => format!("this node's certificate ends in {}", words(left)),
            };
            let remedy = "it is renewed as soon as managers answer; its log says why that fails";
            findings.push((Level::Degraded, format!("{text}: {remedy}")));
        }
    }

    /// Time until the certificate ends; zero once it has.
    fn certificate_left(&self) -> Option<Duration> {
        let seconds = self.local.certificate_ends;
        let ends = moment(&prost_types::Timestamp { seconds, nanos: 0 });
        let ends = ends.filter(|_| seconds > 0)?;
        Some(ends.duration_since(self.now).unwrap_or_default())
    }

    /// The whole time for which the certificate is good; zero where that is not known.
    fn certificate_life(&self) -> Duration {
        let (begins, ends) = (self.local.certificate_begins, self.local.certificate_ends);
        let seconds = match begins {
            0 => 0,
            begins => ends.saturating_sub(begins),
        };
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Why the cluster does not answer, as far as this manager can tell.
    fn no_majority(&self, error: &Error) -> String {
        let view = self.local.consensus.clone().unwrap_or_default();
        let voters: Vec<&own::ManagerView> = view.managers.iter().filter(|m| m.voter).collect();
        let majority = voters.len() / 2 + 1;
        // The leader of the last election may be gone, or out of reach.
        let heard = view.age_ms.map(Duration::from_millis);
        if heard.is_some_and(|ago| ago < LEADER_SILENT) && !view.leader.is_empty() {
            return format!("the managers do not answer: {error}");
        }
        let others = voters.iter().filter(|manager| !manager.answers);
        let others = names(others.map(|manager| place(manager)));
        format!(
            "there is no leader: {majority} of {} managers must be up and reach each other. The others are {others}. Start \
             them, or mend the network; if they are lost for good, `swarmd --force-new-cluster` here goes on alone from \
             this manager's state",
            voters.len()
        )
    }

    fn details(&self) -> Details {
        let mut details = Details::default();
        let local = &self.local;
        details.put("Cluster", local.cluster_id.as_str());
        details.section("This node", |details| {
            details.put("ID", local.node_id.as_str());
            details.put("Hostname", local.hostname.as_str());
            details.put("Role", local.role.as_str());
            details.put("Session with", local.manager_addr.as_str());
            own_view(details, local, self.now);
        });
        if let Some(Ok(cluster)) = &self.cluster {
            cluster.details(&mut details);
        }
        details
    }

    fn value(&self, verdict: &Verdict) -> Value {
        let findings = verdict.findings.iter();
        let findings =
            findings.map(|(level, text)| json!({"level": level.to_string(), "text": text}));
        let cluster = self
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.as_ref().ok());
        json!({
            "Cluster": self.local.cluster_id,
            "Node": self.local.node_id,
            "Role": self.local.role,
            "Verdict": verdict.level.to_string(),
            "Findings": findings.collect::<Vec<_>>(),
            "Managers": cluster.map(Cluster::managers_value),
            "Services": cluster.map(|cluster| cluster.services.iter().map(|(name, running, desired)| {
                json!({"Name": name, "Running": running, "Desired": desired})
            }).collect::<Vec<_>>()),
        })
    }
}

/// What a node says of its own place: the leader, how far behind it is, its certificate.
pub(in crate::command) fn own_view(
    details: &mut Details,
    local: &own::LocalStatusResponse,
    now: std::time::SystemTime,
) {
    if let Some(view) = &local.consensus {
        let leader = match view.leader.as_str() {
            "" => "none is known".to_owned(),
            id if id == local.node_id => "this node".to_owned(),
            id => {
                let known = view.managers.iter().find(|manager| manager.node_id == id);
                known.map_or_else(|| id.to_owned(), place)
            }
        };
        details.put("Leader", leader);
        let behind = match view.age_ms {
            None => "has heard no leader since it started".to_owned(),
            Some(age) => format!("at most {} behind", words(Duration::from_millis(age))),
        };
        let (applied, term) = (view.applied, view.term);
        details.put(
            "State",
            format!("log index {applied}, term {term}, {behind}"),
        );
    }
    let seconds = local.certificate_ends;
    let ends = prost_types::Timestamp { seconds, nanos: 0 };
    if seconds > 0
        && let Some(at) = moment(&ends)
    {
        let left = at.duration_since(now).unwrap_or_default();
        let text = crate::render::time::rfc3339(Some(&ends));
        details.put("Certificate ends", format!("{text}, in {}", words(left)));
    }
}

impl Cluster {
    fn judge(&self, findings: &mut Vec<(Level, String)>) {
        self.judge_managers(findings);
        self.judge_wanted(findings);
        let down = self.nodes.iter().filter(|node| {
            let state = node.status.as_ref().map(pb::NodeStatus::state);
            state != Some(pb::node_status::State::Ready)
        });
        let down: Vec<String> = down.map(node_name).collect();
        if !down.is_empty() {
            let text = format!(
                "{} not ready: {}. Their tasks run elsewhere; start swarmd there, or `swarmctl node rm` what is gone for good",
                amount::count(down.len() as u64, "node"),
                names(down.into_iter()),
            );
            findings.push((Level::Degraded, text));
        }
        let short = self
            .services
            .iter()
            .filter(|(_, running, desired)| running < desired);
        let short: Vec<String> = short
            .map(|(name, running, desired)| format!("{name} ({running}/{desired})"))
            .collect();
        if !short.is_empty() {
            let text = format!(
                "{} short of tasks: {}. `swarmctl task why` says what keeps one",
                amount::count(short.len() as u64, "service"),
                names(short.into_iter()),
            );
            findings.push((Level::Degraded, text));
        }
    }

    fn judge_managers(&self, findings: &mut Vec<(Level, String)>) {
        let voters: Vec<_> = self.consensus.managers.iter().filter(|m| m.voter).collect();
        let (there, away): (Vec<_>, Vec<_>) = voters.iter().copied().partition(|m| is_there(m));
        let majority = voters.len() / 2 + 1;
        if !away.is_empty() {
            let spare = there.len().saturating_sub(majority);
            let text = format!(
                "{} can't be reached: {}. {} of {} must be up: {} more may fail. Start swarmd there, or demote and remove \
                 what is gone for good",
                amount::count(away.len() as u64, "manager"),
                names(away.iter().map(|manager| place(manager))),
                majority,
                voters.len(),
                match spare {
                    0 => "none".to_owned(),
                    spare => spare.to_string(),
                }
            );
            findings.push((Level::Degraded, text));
        }
        for manager in there
            .iter()
            .filter(|m| m.behind.is_some_and(|behind| behind > BEHIND_MAX))
        {
            let behind = manager.behind.unwrap_or(0);
            let text = format!(
                "manager {} is {behind} log entries behind: it catches up, or its disk or network is slow",
                place(manager)
            );
            findings.push((Level::Degraded, text));
        }
        if voters.len() == 2 {
            let text = "there are 2 managers: both must be up. A third lets one fail";
            findings.push((Level::Degraded, text.to_owned()));
        }
    }

    /// Managers that are to be: those that don't vote bear no failure of the others.
    fn judge_wanted(&self, findings: &mut Vec<(Level, String)>) {
        let managers = &self.consensus.managers;
        for manager in managers.iter().filter(|manager| !manager.voter) {
            let text = format!(
                "manager {} does not vote: it is catching up. If that goes on, see that it runs and can be reached from the \
                 leader",
                place(manager)
            );
            findings.push((Level::Degraded, text));
        }
        let outside = self.nodes.iter().filter(|node| {
            is_wanted(node) && !managers.iter().any(|manager| manager.node_id == node.id)
        });
        for node in outside {
            let name = node_name(node);
            let text = match node.retired_reason.as_str() {
                "" => format!(
                    "{name} is to be a manager, and is none: see that swarmd runs there, and that the managers can reach the \
                     address it advertises; its log says more. `swarmctl node demote {name}` takes the promotion back"
                ),
                reason => format!(
                    "{name} was given up as a manager: {reason}. Start swarmd there, and it joins again by itself; or \
                     `swarmctl node demote {name}`"
                ),
            };
            findings.push((Level::Degraded, text));
        }
    }

    fn details(&self, details: &mut Details) {
        details.section("Managers", |details| {
            for manager in &self.consensus.managers {
                let mut words = vec![manager.addresses.join(", ")];
                if manager.node_id == self.consensus.leader {
                    words.push("leader".to_owned());
                } else if is_there(manager) {
                    words.push("reachable".to_owned());
                } else {
                    words.push("UNREACHABLE".to_owned());
                    words.extend(manager.heard_ms.map(|ms| {
                        let ago = Duration::from_secs(ms / 1000);
                        format!("last heard {} ago", humantime::format_duration(ago))
                    }));
                }
                if !manager.voter {
                    words.push("catching up".to_owned());
                }
                let behind = manager.behind.filter(|behind| *behind > 0);
                words.extend(behind.map(|behind| format!("{behind} entries behind")));
                details.put(&name(manager), words.join(", "));
            }
        });
        let ready = self.nodes.iter().filter(|node| {
            node.status.as_ref().map(pb::NodeStatus::state) == Some(pb::node_status::State::Ready)
        });
        details.put(
            "Nodes",
            format!("{} of {} ready", ready.count(), self.nodes.len()),
        );
        let whole = self
            .services
            .iter()
            .filter(|(_, running, desired)| running >= desired);
        let (whole, all) = (whole.count(), self.services.len());
        details.put("Services", format!("{whole} of {all} with all their tasks"));
    }

    fn managers_value(&self) -> Vec<Value> {
        let managers = self.consensus.managers.iter();
        let value = |manager: &own::ManagerView| {
            json!({
                "ID": manager.node_id,
                "Hostname": manager.hostname,
                "Addresses": manager.addresses,
                "Leader": manager.node_id == self.consensus.leader,
                "Voter": manager.voter,
                "Reachable": is_there(manager),
                "HeardMs": manager.heard_ms,
                "Behind": manager.behind,
            })
        };
        managers.map(value).collect()
    }
}

/// Whether a node is to be a manager.
fn is_wanted(node: &pb::Node) -> bool {
    let spec = node.spec.as_ref();
    spec.map(pb::NodeSpec::desired_role) == Some(pb::NodeRole::Manager)
}

/// Whether the leader hears a manager; it is the one that answers itself.
fn is_there(manager: &own::ManagerView) -> bool {
    let heard = manager.heard_ms.map(Duration::from_millis);
    manager.answers || heard.is_some_and(|heard| heard < HEARD_WITHIN)
}

fn name(manager: &own::ManagerView) -> String {
    match manager.hostname.as_str() {
        "" => manager.node_id.clone(),
        hostname => hostname.to_owned(),
    }
}

/// A manager, and where it is.
fn place(manager: &own::ManagerView) -> String {
    match manager.addresses.first() {
        Some(address) => format!("{} ({address})", name(manager)),
        None => name(manager),
    }
}

/// The first few of a list.
fn names(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let named = all.get(..NAMED_MAX).unwrap_or(&all).join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// A span in whole units: fractions of a second matter below ten only.
fn words(span: Duration) -> String {
    let whole = if span < Duration::from_secs(10) {
        Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(0))
    } else {
        Duration::from_secs(span.as_secs())
    };
    humantime::format_duration(whole).to_string()
}

#[cfg(test)]
mod tests;
