//! A cluster of managers, what befalls it, and the calm after it.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::sim::invariants;
use harness::sim::random::Random;
use swarm_proto::time::Timestamp;
use swarmd::manager::raft::{Membership, RaftStatus, Start};
use swarmd::manager::store::State;
use swarmd::manager::store::machine::StoreMachine;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::certificates::{self, Renewing};
use super::clients::{self, Door, REGISTERS, Shared};
use super::disk::Health;
use super::history::Ask;
use super::manager::{self, Manager, member};
use super::network::{Network, Weather};
use super::trace::Trace;
use super::witness::{Watcher, Witness};

/// How often is looked at what managers and watchers see.
const LOOK: Duration = Duration::from_millis(40);
/// How long a change of members is waited for.
const MEMBERS_WITHIN: Duration = Duration::from_secs(4);
/// Virtual time within which a calm cluster is of one mind, takes writes, and runs what it should.
const CONVERGES_WITHIN: Duration = Duration::from_secs(120);
/// Virtual time within which a write is taken where most managers are up.
const SERVES_WITHIN: Duration = Duration::from_secs(20);
/// Clients of registers.
const CLIENTS: u64 = 4;
/// Tasks that fail, in a thousand steps of theirs.
const FAILING: u64 = 10;
/// Watchers that go from manager to manager.
const ROAMERS: usize = 2;

/// Everything there is.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// All chance of what befalls it.
    pub(crate) random: Random,
    /// What happens.
    pub(crate) trace: Trace,
    /// The links.
    pub(crate) network: Network,
    /// The managers.
    pub(crate) managers: BTreeMap<u64, Manager>,
    /// What clients share.
    pub(crate) shared: Shared,
    /// What watchers saw.
    pub(crate) witness: Witness,
    /// Clients and jobs.
    pub(crate) tasks: JoinSet<()>,
    /// Who renews its certificate.
    pub(crate) renewing: Renewing,
    began: Instant,
    roamers: Vec<Option<(u64, Watcher)>>,
    next: u64,
    /// Whose host has moved, where the membership does not say so yet.
    moved: Option<(u64, Instant)>,
}

impl Cluster {
    /// A cluster of so many managers, and one service's worth of nodes.
    pub(crate) async fn found(seed: u64, size: u64) -> Result<Self, String> {
        let trace = Trace::new();
        let mut random = Random::new(seed);
        let network = Network::new(random.number(), trace.clone());
        let mut cluster = Self {
            shared: Shared::new(trace.clone()),
            random,
            trace,
            network,
            managers: BTreeMap::new(),
            witness: Witness::default(),
            tasks: JoinSet::new(),
            renewing: Renewing::new(),
            began: Instant::now(),
            roamers: vec![None; ROAMERS],
            next: 1,
            moved: None,
        };
        let first = cluster.add(Start::Found).await?;
        cluster.until(first, "leads", Manager::leads).await?;
        let nodes = clients::nodes(&mut cluster.random);
        let door = cluster.shared.leader().ok_or("nobody leads")?;
        let now = door.store.time(&door.clock);
        let written = door.store.write(now, nodes).await;
        written.map_err(|error| error.to_string())?;
        for _ in 1..size {
            let id = cluster.add(Start::Join).await?;
            cluster.admit(id).await?;
        }
        Ok(cluster)
    }

    /// Lets clients, operator and agents begin.
    pub(crate) fn open(&mut self) {
        for _ in 0..CLIENTS {
            let random = Random::new(self.random.number());
            self.tasks
                .spawn(clients::client(self.shared.clone(), random));
        }
        let random = Random::new(self.random.number());
        self.tasks
            .spawn(clients::operator(self.shared.clone(), random));
        let random = Random::new(self.random.number());
        self.tasks
            .spawn(clients::agents(self.shared.clone(), random, FAILING));
    }

    /// A new manager, that is no member yet unless it founds the cluster.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn add(&mut self, start: Start) -> Result<u64, String> {
        let id = self.next;
        self.next += 1;
        let manager = Manager::new(id, self.random.number());
        self.network.connect(id);
        self.network.certify(id, certificates::issued(self.now()));
        self.managers.insert(id, manager);
        self.start(id, start).await?;
        Ok(id)
    }

    /// The time by a clock that is right.
    pub(crate) fn now(&self) -> Timestamp {
        manager::START.after(self.began.elapsed())
    }

    /// The leader, and what changes the members there.
    pub(crate) fn leaders_membership(&self) -> Result<(u64, Membership<StoreMachine>), String> {
        let (_, leader) = self.leader().ok_or("nobody leads")?;
        let running = self.managers[&leader].up.as_ref().unwrap();
        Ok((leader, running.raft.membership()))
    }

    /// Makes a manager that runs a member that votes.
    ///
    /// # Errors
    /// When no leader takes it in.
    pub(crate) async fn admit(&mut self, id: u64) -> Result<(), String> {
        let (leader, membership) = self.leaders_membership()?;
        let added = timeout(
            MEMBERS_WITHIN,
            membership.add(id, member(&self.network, id)),
        )
        .await;
        let result = match added {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("manager {id} is no voter after {MEMBERS_WITHIN:?}")),
        };
        self.trace
            .say(format_args!("{leader} takes in {id}: {result:?}"));
        result
    }

    /// A manager's host gets another address; one that says its own is started anew with it. One at a time: a second one
    /// might know only where the first was.
    pub(crate) async fn relocate(&mut self, id: u64) {
        // The second look sees what came of the first.
        if self.correct_address().await || self.correct_address().await {
            self.moved = Some((id, Instant::now()));
            let restarts = self.managers[&id].says_its_address();
            if restarts {
                self.kill(id, false);
            }
            self.network.relocate(id);
            if restarts {
                let _ = self.start(id, Start::Join).await;
            }
        }
    }

    /// Brings the membership in line with where the one that moved is, once it answers the leader there; whether that is
    /// done, and there to stay: what a leader has only appended goes with it.
    pub(crate) async fn correct_address(&mut self) -> bool {
        let Some((id, since)) = self.moved else {
            return true;
        };
        let Ok((leader, membership)) = self.leaders_membership() else {
            return false;
        };
        let (status, new) = (membership.status(), manager::member(&self.network, id));
        let known = status.members.get(&id);
        // Or it was replaced meanwhile.
        if status.settled && known.is_none_or(|known| known.member == new) {
            self.moved = None;
            return true;
        }
        // Called where it is now: nobody has told the leader but the manager itself.
        let heard = known.and_then(|known| known.heard);
        if id == leader || heard.is_some_and(|ago| ago < since.elapsed()) {
            let corrected = timeout(MEMBERS_WITHIN, membership.correct(id, new)).await;
            let done = matches!(corrected, Ok(Ok(())));
            self.trace
                .say(format_args!("{leader} knows where {id} is: {done}"));
        }
        false
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// When no leader does.
    pub(crate) async fn expel(&mut self, id: u64) -> Result<(), String> {
        let (leader, membership) = self.leaders_membership()?;
        let removed = timeout(MEMBERS_WITHIN, membership.remove(id, &membership.status())).await;
        let result = match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("manager {id} is a member after {MEMBERS_WITHIN:?}")),
        };
        self.trace
            .say(format_args!("{leader} takes out {id}: {result:?}"));
        result
    }

    /// Starts a manager that is down.
    ///
    /// # Errors
    /// What it says when it does not start.
    pub(crate) async fn start(&mut self, id: u64, start: Start) -> Result<(), String> {
        let Some(manager) = self.managers.get_mut(&id).filter(|m| m.up.is_none()) else {
            return Ok(());
        };
        let started = manager.start(&self.network, start).await;
        let health = manager.disk.health();
        self.trace.say(format_args!("{id} starts: {started:?}"));
        if let Some(up) = &manager.up {
            let door = Door {
                process: up.process.clone(),
                store: up.store.clone(),
                clock: up.time.clone(),
                leadership: up.raft.leadership(),
            };
            self.shared.doors.lock().unwrap().insert(id, door);
        }
        if let Err(error) = &started
            && health != Health::Full
            && !error.contains("it died")
        {
            let text = format!("manager {id} does not start: {error}");
            self.witness.broken.push(text);
        }
        started
    }

    /// Ends a manager's process, by force, and with `power` what its disk had not synced.
    pub(crate) fn kill(&mut self, id: u64, power: bool) {
        self.shared.doors.lock().unwrap().remove(&id);
        if let Some(manager) = self.managers.get_mut(&id) {
            let operations = manager.disk.operations();
            self.trace.say(format_args!(
                "{id} is killed, power {power}, {operations} operations"
            ));
            manager.kill(&self.network, power);
        }
    }

    /// Ends a manager's process in order.
    pub(crate) async fn stop(&mut self, id: u64) {
        self.shared.doors.lock().unwrap().remove(&id);
        if let Some(manager) = self.managers.get_mut(&id) {
            self.trace.say(format_args!("{id} stops"));
            manager.tell(&mut self.witness);
            manager.stop(&self.network).await;
        }
    }

    /// Who leads, of those with the newest term.
    pub(crate) fn leader(&self) -> Option<(u64, u64)> {
        let leaders = self.managers.values();
        leaders.filter_map(|m| Some((m.leads()?, m.id))).max()
    }

    /// What the leader says of consensus.
    pub(crate) fn status(&self) -> Option<RaftStatus> {
        let (_, leader) = self.leader()?;
        Some(self.managers[&leader].up.as_ref()?.raft.status())
    }

    /// The newest state of a manager that is up.
    pub(crate) fn state(&self, id: u64) -> Option<State> {
        Some(self.managers.get(&id)?.up.as_ref()?.store.view())
    }

    /// Lets time pass, and looks meanwhile.
    pub(crate) async fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(LOOK.min(end - Instant::now())).await;
            self.look();
        }
    }

    /// Waits until a manager is so.
    ///
    /// # Errors
    /// When it takes too long.
    pub(crate) async fn until<T>(
        &mut self,
        id: u64,
        what: &str,
        is: impl Fn(&Manager) -> Option<T>,
    ) -> Result<T, String> {
        let began = Instant::now();
        while began.elapsed() < CONVERGES_WITHIN {
            if let Some(found) = self.managers.get(&id).and_then(&is) {
                return Ok(found);
            }
            self.run_for(LOOK).await;
        }
        Err(format!(
            "after {CONVERGES_WITHIN:?} it is not so that {id} {what}"
        ))
    }

    fn look(&mut self) {
        let mut dead = Vec::new();
        for (id, manager) in &mut self.managers {
            manager.tell(&mut self.witness);
            if manager.up.is_some() && !manager.is_well() {
                dead.push(*id);
            }
        }
        for id in dead {
            let power = self.random.per_mille(500);
            self.trace.say(format_args!("{id} is found dead"));
            self.kill(id, power);
        }
        self.renew();
        self.roam();
    }

    /// Watchers go on at some other manager where they left off.
    fn roam(&mut self) {
        for at in 0..self.roamers.len() {
            if !self.random.per_mille(150) {
                continue;
            }
            let up: Vec<u64> = self.shared.doors.lock().unwrap().keys().copied().collect();
            let Some(id) = self.random.any(up) else {
                continue;
            };
            let door = self.shared.doors.lock().unwrap()[&id].clone();
            if door.process.is_dead() {
                continue;
            }
            let hub = door.store.hub();
            let last = self.roamers[at].take();
            let resumed = last.and_then(|(version, watcher)| {
                Some((hub.subscribe_from(version).ok()?, version, watcher))
            });
            let (mut commits, mut version, mut watcher) = match resumed {
                Some(resumed) => resumed,
                None => {
                    // It is told, and starts over from a view.
                    let (state, commits) = hub.subscribe();
                    let watcher = Watcher::from(format!("watcher {at}"), state.version);
                    (commits, state.version, watcher)
                }
            };
            while let Ok(Some(commit)) = commits.try_next() {
                self.witness.sees(&mut watcher, &commit);
                version = commit.version;
            }
            self.roamers[at] = Some((version, watcher));
        }
    }

    /// What is broken so far.
    pub(crate) fn broken(&mut self) -> Result<(), Vec<String>> {
        let mut broken = std::mem::take(&mut self.witness.broken);
        broken.append(&mut self.shared.broken.lock().unwrap());
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                broken.push(format!("a client failed: {error}"));
            }
        }
        match broken.is_empty() {
            true => Ok(()),
            false => Err(broken),
        }
    }

    /// All faults end; what follows must be one mind, service, and what was asked for.
    ///
    /// # Errors
    /// Promises that are broken then.
    pub(crate) async fn calm_down(&mut self) -> Result<Duration, Vec<String>> {
        self.trace.say(format_args!("calm"));
        self.network.heal();
        self.network.set_weather(Weather::default());
        for manager in self.managers.values_mut() {
            manager.disk.set(Health::Well);
            if let Some(up) = &manager.up {
                up.clock.set_ahead_ms(0);
            }
        }
        let calm = Instant::now();
        let mut missing = Vec::new();
        let mut settled = false;
        while calm.elapsed() < CONVERGES_WITHIN {
            let down: Vec<u64> = self
                .managers
                .values()
                .filter(|m| m.up.is_none())
                .map(|m| m.id)
                .collect();
            for id in down {
                let _ = self.start(id, Start::Join).await;
            }
            self.run_for(Duration::from_millis(500)).await;
            self.broken()?;
            self.mend_members().await;
            self.correct_address().await;
            // Changes of services go on until all else is well.
            missing = self.not_yet();
            if missing.is_empty() && !settled {
                settled = true;
                self.serve().await?;
                self.shared
                    .stop
                    .store(true, std::sync::atomic::Ordering::Relaxed);
                self.keep_agents();
                continue;
            }
            if settled {
                missing.extend(self.not_running());
            }
            if missing.is_empty() {
                let took = calm.elapsed();
                self.trace.say(format_args!("converged after {took:?}"));
                self.finish().await?;
                return Ok(took);
            }
        }
        missing.push(format!("not converged after {CONVERGES_WITHIN:?}"));
        Err(missing)
    }

    /// Clients go home; the agents stay.
    fn keep_agents(&mut self) {
        let random = Random::new(self.random.number());
        let mut shared = self.shared.clone();
        shared.stop = Default::default();
        self.tasks.spawn(clients::agents(shared, random, 0));
    }

    /// Members that are no managers any more are taken out; managers that are no members are replaced.
    async fn mend_members(&mut self) {
        let Some(status) = self.status() else { return };
        let gone: Vec<u64> = status
            .members
            .keys()
            .filter(|id| !self.managers.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            let _ = self.expel(id).await;
        }
        let Some(status) = self.status() else { return };
        // Whoever does not know itself to be a voter asks to become one, and says where it is.
        let asks = |manager: &&Manager| {
            let up = manager.up.as_ref();
            up.is_some_and(|up| !up.raft.status().votes(manager.id))
        };
        let votes = |id| status.members.get(&id).is_some_and(|member| member.voter);
        let strangers: Vec<u64> = self
            .managers
            .values()
            .filter(|manager| !votes(manager.id) || asks(manager))
            .map(|manager| manager.id)
            .collect();
        for id in strangers {
            let _ = self.admit(id).await;
        }
    }

    /// What is missing until all managers are of one mind.
    fn not_yet(&self) -> Vec<String> {
        let Some(status) = self.status() else {
            return vec!["nobody leads".to_owned()];
        };
        let mut missing = Vec::new();
        for manager in self.managers.values() {
            let id = manager.id;
            let Some(up) = &manager.up else {
                missing.push(format!("{id} is down"));
                continue;
            };
            let own = up.raft.status();
            if own.term != status.term || own.leader != Some(status.id) {
                missing.push(format!(
                    "{id} follows {:?} in term {}",
                    own.leader, own.term
                ));
            }
            if own.applied + 20 < status.applied {
                missing.push(format!("{id} is at {} of {}", own.applied, status.applied));
            }
            let known = status.members.get(&id);
            if known.is_none_or(|member| !member.voter) {
                missing.push(format!("{id} does not vote"));
            }
            if self.network.certificate(id) <= self.now() {
                missing.push(format!("{id} has a certificate that has ended"));
            }
            let at = vec![self.network.address(id).to_string()];
            if let Some(known) = known.filter(|known| known.member.addresses != at) {
                let known = &known.member.addresses;
                missing.push(format!("{id} is at {at:?}, and known at {known:?}"));
            }
        }
        missing
    }

    fn not_running(&self) -> Vec<String> {
        match self.leader().and_then(|(_, id)| self.state(id)) {
            Some(state) => invariants::not_converged(&state),
            None => vec!["nobody leads".to_owned()],
        }
    }

    /// Every register is read and changed once more.
    async fn serve(&mut self) -> Result<(), Vec<String>> {
        for object in 0..REGISTERS {
            self.put(object).await.map_err(|error| vec![error])?;
            let Some(door) = self.shared.leader() else {
                continue;
            };
            let _ = self.shared.read(&door, object).await;
        }
        Ok(())
    }

    /// Changes a register, as often as it takes; its version.
    ///
    /// # Errors
    /// When nobody takes it.
    pub(crate) async fn put(&mut self, object: u64) -> Result<u64, String> {
        let began = Instant::now();
        while began.elapsed() < SERVES_WITHIN {
            let shared = self.shared.clone();
            // Of several that say so, the one that was elected last.
            let leader = self.leader().map(|(_, id)| id);
            let door = leader.and_then(|id| shared.doors.lock().unwrap().get(&id).cloned());
            if let Some(door) = door
                && let Ok(found) = shared.read(&door, object).await
            {
                let (ask, version) = match found {
                    Some(known) => (Ask::Change(known.by), known.version),
                    None => (Ask::Create, 0),
                };
                if let Some(known) = shared.change(&door, object, ask, version).await {
                    return Ok(known.version);
                }
            }
            self.run_for(LOOK).await;
        }
        Err(format!("nobody takes a write within {SERVES_WITHIN:?}"))
    }

    /// What only the end shows.
    async fn finish(&mut self) -> Result<(), Vec<String>> {
        // What is still being agreed on reaches everybody.
        self.run_for(Duration::from_secs(1)).await;
        let mut states = Vec::new();
        for id in self.managers.keys() {
            if let Some(state) = self.state(*id) {
                states.push((*id, state));
            }
        }
        for (id, state) in states {
            let name = format!("manager {id} in the end");
            self.witness.hash(state.version, &state, &name);
        }
        self.witness.check();
        let broken = self.shared.history().check();
        self.witness.broken.extend(broken);
        self.broken()
    }
}
