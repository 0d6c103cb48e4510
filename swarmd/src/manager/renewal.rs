//! Which nodes are to renew their certificates now, and when a new root has taken over.
//!
//! ```text
//! root rotates, life is shortened ─► nodes with another certificate ─► 30 of them in 3 s are asked
//! every node uses and trusts the new root ─► it becomes the root, the old one is forgotten
//! ```
//!
//! Pure. Compares each node's certificate with the one it would be issued now, so it matters neither
//! what made them differ nor when. A node is *asked* by the state of its certificate; it then renews
//! by itself. What nodes were issued says whom to ask; that and what they report says whether it is done.

use std::time::Duration;

use swarm_proto::id::NodeId;
use swarm_proto::pb;
use swarm_proto::pb::issuance_status::State as Stage;
use swarm_proto::time::Timestamp;

use super::authority::Authority;
use super::plan::Ctx;
use super::store::{Change, Cluster, Node, State};
use crate::ca::RootDigest;
use crate::ca::root::BACKDATE;
use crate::ca::roots::Reported;

/// Nodes that are asked within [`WINDOW`]: SwarmKit's pace.
const ASKED_MAX: usize = 30;
/// See [`ASKED_MAX`].
const WINDOW: Duration = Duration::from_secs(3);
/// A node that was issued a certificate and does not use it after so long is asked again: the answer
/// may be lost, and the node may have started again since.
const AGAIN: Duration = Duration::from_secs(60);
/// Certificates say whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// The certificate that a node would get now.
#[derive(Debug)]
struct Target {
    root: Reported,
    /// The root is being changed to this one.
    rotates: bool,
    /// How long a certificate may be valid; none where others than the managers decide that.
    life: Option<Duration>,
}

impl Target {
    fn of(cluster: &Cluster) -> Option<Self> {
        let authority = Authority::of(cluster);
        // Before there is a CA there is nothing to read.
        if authority.cert.is_empty() {
            return None;
        }
        let longest = cluster.node_cert_expiry().saturating_add(BACKDATE);
        Some(Self {
            root: Reported::of(authority.cert)?,
            rotates: authority.turn.is_some(),
            life: authority.is_own().then(|| longest.saturating_add(ROUNDING)),
        })
    }

    fn has_issued(&self, certificate: &pb::Certificate) -> bool {
        match certificate.issuer_public_key.as_slice() {
            // Not known, of one that an earlier version issued: under the only root there was.
            [] => !self.rotates,
            key => key == self.root.public_key,
        }
    }

    fn lasts_too_long(&self, certificate: &pb::Certificate) -> bool {
        let time = |wire: &Option<_>| Timestamp::from_wire(wire.as_ref());
        let (from, until) = (time(&certificate.not_before), time(&certificate.not_after));
        // Zero for one that an earlier version issued.
        self.life.is_some_and(|life| until.since(from) > life)
    }

    /// Also what the node was issued last: it may have put that to use since it reported, and be off.
    fn is_used_by(&self, node: &Node) -> bool {
        let info = tls_info(node);
        let reported = self.root.has_issued(info) && self.root.is_trusted(info);
        reported && self.has_issued(&node.certificate)
    }

    /// When a node has to be asked, in the past for now; none where it has what it needs.
    fn due(&self, node: &Node) -> Option<Timestamp> {
        let stage = node.certificate.status.as_ref().map(|s| s.state());
        if node.status.state != pb::node_status::State::Ready || stage == Some(Stage::Rotate) {
            return None;
        }
        let certificate = &node.certificate;
        if !self.has_issued(certificate) || self.lasts_too_long(certificate) {
            return Some(Timestamp::ZERO);
        }
        let unused = self.rotates && !self.root.has_issued(tls_info(node));
        let issued = Timestamp::from_wire(certificate.not_before.as_ref()).after(BACKDATE);
        let last = asked_at(node).map_or(issued, |asked| asked.max(issued));
        unused.then(|| last.after(AGAIN))
    }
}

/// Plans what certificates need.
pub(crate) fn plan(cx: &mut Ctx) -> Option<Timestamp> {
    let cluster = cx.state.cluster.clone()?;
    let mut target = Target::of(&cluster)?;
    if target.rotates && cx.state.nodes.values().all(|node| target.is_used_by(node)) {
        cx.change(Change::UpdateCluster(finished(&cluster).into()));
        target.rotates = false;
    }
    ask(cx, &target)
}

fn ask(cx: &mut Ctx, target: &Target) -> Option<Timestamp> {
    let (now, mut recent, mut due) = (cx.now, Vec::new(), Vec::new());
    let mut later = Timestamp::MAX;
    for node in cx.state.nodes.values() {
        let free_at = asked_at(node).map(|at| at.after(WINDOW));
        recent.extend(free_at.filter(|at| *at > now));
        match target.due(node) {
            Some(at) if at <= now => due.push(node.id),
            Some(at) => later = later.min(at),
            None => {}
        }
    }
    let waiting = due.split_off(due.len().min(ASKED_MAX.saturating_sub(recent.len())));
    if !waiting.is_empty() {
        let first_free = recent.iter().min().copied();
        later = later.min(first_free.unwrap_or_else(|| now.after(WINDOW)));
    }
    if !due.is_empty() {
        cx.change(Change::AskRenewal { nodes: due });
    }
    (later < Timestamp::MAX).then_some(later)
}

/// Nodes that keep a change of root from being over, and why each does.
pub(crate) fn waits_for(state: &State) -> Vec<NodeId> {
    let target = state.cluster.as_ref().and_then(|c| Target::of(c));
    let Some(target) = target.filter(|target| target.rotates) else {
        return Vec::new();
    };
    let nodes = state.nodes.values().filter(|node| !target.is_used_by(node));
    nodes.map(|node| node.id).collect()
}

/// The cluster under its new root alone, whose join tokens take the place of the old ones.
fn finished(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    let root = &mut cluster.root_ca;
    if let Some(rotation) = root.root_rotation.take() {
        root.ca_cert_hash = RootDigest::of(&rotation.ca_cert).to_string();
        root.ca_cert = rotation.ca_cert;
        root.ca_key = rotation.ca_key;
        root.join_tokens = rotation.join_tokens;
    }
    cluster
}

/// Which certificate and roots a node uses, as it says.
pub(super) fn tls_info(node: &Node) -> Option<&pb::NodeTlsInfo> {
    node.description.as_ref()?.tls_info.as_ref()
}

fn asked_at(node: &Node) -> Option<Timestamp> {
    let asked = node.certificate.status.as_ref()?.asked_at.as_ref()?;
    Some(Timestamp::from_wire(Some(asked)))
}

#[cfg(test)]
mod tests;
