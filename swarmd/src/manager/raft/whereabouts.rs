//! Where the members are: what each says of itself, beside what the membership says.
//!
//! ```text
//! swarm-addresses   where the sender of a call, or of an answer, is reached; 0.0.0.0 is where it calls from
//! swarm-seen        in an answer: where the call came from
//! swarm-elsewhere   in a call: members that the sender has met where the membership does not have them; in an answer: all
//! ```
//!
//! - The certificate says who somebody is; an address is a hint. What is noted here comes from a caller with that member's
//!   certificate, from the member that was dialled, or is the word of another manager; and who dials it takes nobody else for
//!   the member (see [`super::Dialer`]). A wrong hint costs a try.
//! - Hints come before the membership's addresses, and both are tried in turn. They are kept in memory only: the leader
//!   brings the membership in line with them.
//! - Hearsay is not passed on, so that an address that was given up dies out, and yields to a member's own word; that one
//!   counts until the member does not answer there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swarm_proto::node::{ADDRESSES_MAX, is_host_port};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::types::{Member, RaftId};

/// Most bytes of one value of the metadata: what does not fit is left out.
const VALUE_MAX: usize = 8 << 10;

const ADDRESSES: &str = "swarm-addresses";
const SEEN: &str = "swarm-seen";
const ELSEWHERE: &str = "swarm-elsewhere";

/// Where the members are, for all connections to them.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    /// What this member says of itself.
    own: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By node: what the membership says.
    members: BTreeMap<String, Vec<String>>,
    /// By node: hints.
    heard: BTreeMap<String, Heard>,
    /// By node: the address that is tried, or works.
    at: BTreeMap<String, String>,
    /// Where others see this member's calls come from.
    seen: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Where it is, best first.
    pub(crate) addresses: Vec<String>,
    /// From the member itself, or where it was met, and it has not failed to answer there since; not by another's word.
    pub(crate) itself: bool,
    /// It says "where I call from": more is not known of it.
    pub(crate) observed: bool,
}

/// An address that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// Too many, or none.
    #[error("addresses: {0} were given; say 1 to {ADDRESSES_MAX}")]
    Count(usize),
    /// Unspecified, of a caller without an address.
    #[error("addresses: {0:?} says nothing without the caller's own address")]
    Unspecified(String),
    /// Not `host:port`.
    #[error("addresses: {0:?} is not host:port")]
    Form(String),
}

/// The addresses that somebody gives, the caller's own put in for unspecified ones.
pub(crate) fn resolve(
    given: &[String],
    remote: Option<IpAddr>,
) -> Result<Vec<String>, AddressError> {
    if given.is_empty() || given.len() > ADDRESSES_MAX {
        return Err(AddressError::Count(given.len()));
    }
    let each = |text: &String| match text.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() => match remote {
            Some(remote) => Ok(SocketAddr::new(remote.to_canonical(), addr.port()).to_string()),
            None => Err(AddressError::Unspecified(text.clone())),
        },
        Ok(_) => Ok(text.clone()),
        Err(_) if is_host_port(text) => Ok(text.clone()),
        Err(_) => Err(AddressError::Form(text.clone())),
    };
    given.iter().map(each).collect()
}

/// Whether one of the addresses says only "where I call from".
pub(crate) fn is_unspecified(addresses: &[String]) -> bool {
    let unspecified = |text: &String| {
        let addr = text.parse::<SocketAddr>();
        addr.is_ok_and(|addr| addr.ip().is_unspecified())
    };
    addresses.iter().any(unspecified)
}

impl Whereabouts {
    pub(crate) fn new(own: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            own,
            state: Mutex::default(),
        })
    }

    /// What this member says of itself, and where others see its calls come from.
    pub(crate) fn own(&self) -> (Vec<String>, Option<IpAddr>) {
        (self.own.clone(), self.state().seen)
    }

    /// Takes note of who takes part, and where the membership has them.
    pub(crate) fn members(&self, members: &BTreeMap<RaftId, Member>) {
        let mut state = self.state();
        state.members = members
            .values()
            .map(|member| (member.node_id.clone(), member.addresses.clone()))
            .collect();
        let State {
            members, heard, at, ..
        } = &mut *state;
        heard.retain(|node, _| members.contains_key(node));
        at.retain(|node, _| members.contains_key(node));
    }

    /// Where to look for a member, best first.
    pub(crate) fn addresses(&self, member: &Member) -> Vec<String> {
        self.state().addresses(member)
    }

    /// Where to look for a member now.
    pub(crate) fn next(&self, member: &Member) -> Option<String> {
        let state = self.state();
        let all = state.addresses(member);
        let at = state.at.get(&member.node_id);
        let at = at.filter(|at| all.contains(at)).cloned();
        at.or_else(|| all.into_iter().next())
    }

    /// It answered there.
    pub(crate) fn worked(&self, member: &Member, address: &str) {
        let mut state = self.state();
        if state.at.get(&member.node_id).map(String::as_str) != Some(address) {
            state.at.insert(member.node_id.clone(), address.to_owned());
        }
    }

    /// It did not answer there: the next address is the one to try.
    pub(crate) fn failed(&self, member: &Member, address: &str) {
        let mut state = self.state();
        // What it said of itself does not hold any more, and yields to what others say.
        if let Some(heard) = state.heard.get_mut(&member.node_id)
            && heard.addresses.iter().any(|known| known == address)
        {
            heard.itself = false;
        }
        let all = state.addresses(member);
        let now = state.at.get(&member.node_id).or(all.first());
        if now.is_some_and(|now| now != address) {
            // Somebody else went on already.
            return;
        }
        let place = all.iter().position(|known| known == address);
        let next = all.get(place.map_or(0, |place| (place + 1) % all.len().max(1)));
        if let Some(next) = next.cloned() {
            state.at.insert(member.node_id.clone(), next);
        }
    }

    /// A member was met at these addresses, or said so itself.
    pub(crate) fn met(&self, node: &str, address: &str) {
        let mut state = self.state();
        let known = state.heard.get(node).map(|heard| &heard.addresses);
        if known.is_some_and(|known| known.iter().any(|known| known == address)) {
            return;
        }
        state.note(node, itself(vec![address.to_owned()], true));
    }

    /// What was heard of each member.
    pub(crate) fn heard(&self) -> BTreeMap<String, Heard> {
        self.state().heard.clone()
    }

    /// Where each member answered last, or is tried.
    pub(crate) fn at(&self) -> BTreeMap<String, String> {
        self.state().at.clone()
    }

    /// What a call of this member carries.
    pub(crate) fn put(&self, metadata: &mut MetadataMap) {
        put_text(metadata, ADDRESSES, &self.own.join(","));
        let state = self.state();
        let moved = state.heard.iter().filter(|(node, heard)| {
            heard.itself && state.members.get(*node) != Some(&heard.addresses)
        });
        put_elsewhere(
            metadata,
            moved.map(|(node, heard)| (node, &heard.addresses)),
        );
    }

    /// What its answer to a call from `remote` carries.
    pub(crate) fn answer(&self, metadata: &mut MetadataMap, remote: Option<IpAddr>) {
        put_text(metadata, ADDRESSES, &self.own.join(","));
        if let Some(remote) = remote {
            put_text(metadata, SEEN, &remote.to_canonical().to_string());
        }
        // Who calls may have a membership of long ago, and know no other member.
        let state = self.state();
        let all = state.members.iter().map(|(node, known)| {
            let met = state.heard.get(node).filter(|heard| heard.itself);
            (node, met.map_or(known, |heard| &heard.addresses))
        });
        put_elsewhere(metadata, all);
    }

    /// Takes in what a call of this node carries.
    pub(crate) fn called(&self, metadata: &MetadataMap, node: &str, remote: Option<IpAddr>) {
        let mut state = self.state();
        if let Some(given) = text(metadata, ADDRESSES).map(list)
            && let Ok(addresses) = resolve(&given, remote)
        {
            state.note(node, itself(addresses, is_unspecified(&given)));
        }
        state.hear_of_others(metadata);
    }

    /// Takes in what the answer of this member carries, which was dialled at that address.
    pub(crate) fn answered(&self, metadata: &MetadataMap, member: &Member, address: &str) {
        let mut state = self.state();
        let given = text(metadata, ADDRESSES).map(list).unwrap_or_default();
        let observed = is_unspecified(&given);
        let known = state.heard.contains_key(&member.node_id);
        match resolve(&given, None) {
            // What it says nothing of is where it was found; its calls tell better.
            _ if observed && known => {}
            Err(_) if !observed => {}
            Ok(addresses) => state.note(&member.node_id, itself(addresses, observed)),
            Err(_) => state.note(&member.node_id, itself(vec![address.to_owned()], observed)),
        }
        state.hear_of_others(metadata);
        if let Some(seen) = text(metadata, SEEN).and_then(|t| t.parse().ok()) {
            state.seen = Some(seen);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a member from itself.
fn itself(addresses: Vec<String>, observed: bool) -> Heard {
    Heard {
        addresses,
        itself: true,
        observed,
    }
}

impl State {
    fn addresses(&self, member: &Member) -> Vec<String> {
        let heard = self.heard.get(&member.node_id);
        let known = self.members.get(&member.node_id);
        let known = known.unwrap_or(&member.addresses);
        let mut all: Vec<String> = heard.map(|h| h.addresses.clone()).unwrap_or_default();
        for address in known {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// By another's word.
    fn hear_of_others(&mut self, metadata: &MetadataMap) {
        let others = text(metadata, ELSEWHERE).unwrap_or_default();
        for one in others.split(';') {
            let Some((node, addresses)) = one.split_once('=') else {
                continue;
            };
            if let Ok(addresses) = resolve(&list(addresses), None) {
                let heard = Heard {
                    addresses,
                    itself: false,
                    observed: true,
                };
                self.note(node, heard);
            }
        }
    }

    fn note(&mut self, node: &str, heard: Heard) {
        // A stranger's address is of no use, and would be kept for ever.
        let Some(known) = self.members.get(node) else {
            return;
        };
        let before = self.heard.get(node);
        let weaker = before.is_some_and(|before| before.itself && !heard.itself);
        if weaker || before == Some(&heard) || (!heard.itself && *known == heard.addresses) {
            return;
        }
        if before.is_none_or(|before| before.addresses != heard.addresses)
            && *known != heard.addresses
        {
            tracing::info!(node.id = node, addresses = ?heard.addresses, "a manager is at another address than the membership says");
            // The newest word is tried first.
            self.at.remove(node);
        }
        self.heard.insert(node.to_owned(), heard);
    }
}

fn list(text: &str) -> Vec<String> {
    let each = text.split(',').take(ADDRESSES_MAX + 1);
    each.map(str::to_owned).collect()
}

fn text<'m>(metadata: &'m MetadataMap, key: &str) -> Option<&'m str> {
    let value = metadata.get(key)?.to_str().ok()?;
    (!value.is_empty() && value.len() <= VALUE_MAX).then_some(value)
}

fn put_elsewhere<'s>(
    metadata: &mut MetadataMap,
    members: impl Iterator<Item = (&'s String, &'s Vec<String>)>,
) {
    let mut text = String::new();
    for (node, addresses) in members {
        let one = format!("{node}={}", addresses.join(","));
        if text.len() + one.len() + 1 > VALUE_MAX {
            break;
        }
        text = [text.as_str(), &one].join(if text.is_empty() { "" } else { ";" });
    }
    if !text.is_empty() {
        put_text(metadata, ELSEWHERE, &text);
    }
}

fn put_text(metadata: &mut MetadataMap, key: &'static str, text: &str) {
    if let Ok(value) = AsciiMetadataValue::try_from(text) {
        metadata.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn member(name: &str, addresses: &[&str]) -> Member {
        Member {
            node_id: name.to_owned(),
            addresses: all(addresses),
        }
    }

    fn of_members(own: &str, members: &[Member]) -> Arc<Whereabouts> {
        let whereabouts = Whereabouts::new(all(&[own]));
        let numbered = (1..).zip(members.iter().cloned());
        whereabouts.members(&numbered.collect());
        whereabouts
    }

    const FROM: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7)));

    #[test]
    fn an_unspecified_address_is_the_callers() {
        let given = all(&["0.0.0.0:4242", "m2.example:4242", "10.1.1.1:1", "[::]:5"]);
        assert_eq!(
            resolve(&given, FROM).unwrap(),
            [
                "10.0.0.7:4242",
                "m2.example:4242",
                "10.1.1.1:1",
                "10.0.0.7:5"
            ]
        );
        for wrong in [
            &[][..],
            &["host"],
            &[":1"],
            &["h:p"],
            &["a=b:1"],
            &["a;b:1"],
        ] {
            assert!(resolve(&all(wrong), FROM).is_err(), "{wrong:?}");
        }
        assert!(resolve(&all(&["0.0.0.0:1"]), None).is_err());
    }

    #[test]
    fn what_a_member_says_comes_first_and_the_membership_is_tried_after() {
        let b = member("b", &["old:1", "older:1"]);
        let whereabouts = of_members("a:1", std::slice::from_ref(&b));
        assert_eq!(whereabouts.next(&b).as_deref(), Some("old:1"));
        let mut call = MetadataMap::new();
        of_members("0.0.0.0:9", &[]).put(&mut call);
        whereabouts.called(&call, "b", FROM);
        whereabouts.called(&call, "stranger", FROM);
        assert_eq!(whereabouts.heard().len(), 1);
        let mut tried = Vec::new();
        for _ in 0..4 {
            let next = whereabouts.next(&b).unwrap();
            whereabouts.failed(&b, &next);
            // Another connection that fails there later has no say.
            whereabouts.failed(&b, &next);
            tried.push(next);
        }
        assert_eq!(tried, ["10.0.0.7:9", "old:1", "older:1", "10.0.0.7:9"]);
        whereabouts.worked(&b, "older:1");
        assert_eq!(whereabouts.next(&b).as_deref(), Some("older:1"));
    }

    #[test]
    fn who_met_a_member_tells_others_and_hearsay_ends_there() {
        let members = [member("b", &["b:1"]), member("c", &["c:1"])];
        let a = of_members("a:1", &members);
        a.met("c", "c:2");
        a.met("b", "b:1");
        let mut call = MetadataMap::new();
        a.put(&mut call);
        assert_eq!(text(&call, ELSEWHERE), Some("c=c:2"), "b is where it was");
        let b = of_members("b:1", &members);
        b.called(&call, "a", FROM);
        assert_eq!(b.next(&members[1]).as_deref(), Some("c:2"));
        let mut onwards = MetadataMap::new();
        b.put(&mut onwards);
        assert_eq!(text(&onwards, ELSEWHERE), None);
        // Its own word counts more.
        b.met("c", "c:3");
        b.called(&call, "a", FROM);
        assert_eq!(b.next(&members[1]).as_deref(), Some("c:3"));
    }

    #[test]
    fn one_that_has_slept_through_all_moves_hears_from_one_where_the_others_are() {
        let then = [member("a", &["a:1"]), member("c", &["c:1"])];
        let now = [member("a", &["a:2"]), member("c", &["c:2"])];
        let b = of_members("b:2", &then);
        let mut answer = MetadataMap::new();
        of_members("a:2", &now).answer(&mut answer, FROM);
        b.answered(&answer, &then[0], "a:2");
        assert_eq!(b.next(&then[1]).as_deref(), Some("c:2"));
        assert_eq!(b.next(&then[0]).as_deref(), Some("a:2"));
    }

    #[test]
    fn what_a_member_said_long_ago_yields_once_it_does_not_answer_there() {
        let c = member("c", &["c:1"]);
        let b = of_members("b:1", &[member("a", &["a:1"]), c.clone()]);
        b.met("c", "c:2");
        let mut call = MetadataMap::new();
        let a = of_members("a:1", std::slice::from_ref(&c));
        a.met("c", "c:3");
        a.put(&mut call);
        // Both have moved since, and a has met both.
        b.called(&call, "a", FROM);
        assert_eq!(b.next(&c).as_deref(), Some("c:2"));
        b.failed(&c, "c:1");
        b.called(&call, "a", FROM);
        assert_eq!(b.next(&c).as_deref(), Some("c:2"), "that was elsewhere");
        b.failed(&c, "c:2");
        b.called(&call, "a", FROM);
        assert_eq!(b.next(&c).as_deref(), Some("c:3"));
        // Nor does it pass on what it knows no better.
        let mut onwards = MetadataMap::new();
        b.put(&mut onwards);
        assert_eq!(text(&onwards, ELSEWHERE), None);
    }

    #[test]
    fn an_answer_says_where_the_call_came_from() {
        let b = member("b", &["b:1"]);
        let a = of_members("0.0.0.0:1", std::slice::from_ref(&b));
        let mut answer = MetadataMap::new();
        of_members("b.example:1", &[]).answer(&mut answer, FROM);
        a.answered(&answer, &b, "b:1");
        assert_eq!(a.own(), (all(&["0.0.0.0:1"]), FROM));
        assert_eq!(a.addresses(&b), ["b.example:1", "b:1"]);
    }
}
