//! One run: trouble, then calm, then exactly what was asked for, then silence.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::world::{START, World};
use super::{invariants, log};

/// Virtual time within which a calm cluster does what it was asked for. The slowest is an update of
/// six slots, one at a time, each stopped first (up to 60 s), held for 3 s and watched for 5 s.
const CONVERGES_WITHIN: Duration = Duration::from_secs(600);
/// How long nothing may happen after that; longer than the leader's look at everything.
const SILENCE: Duration = Duration::from_secs(45);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(5);

/// What a run was.
#[derive(Debug)]
pub struct Ran {
    /// The whole log.
    pub bytes: Vec<u8>,
    /// Entries in it.
    pub entries: u64,
    /// Virtual time from the end of the faults to convergence.
    pub converged_after: Duration,
}

/// Runs one seed.
///
/// # Errors
/// What is wrong, and what happened before it.
pub fn run(seed: u64, steps: u64) -> Result<Ran, String> {
    let mut world = World::new(seed);
    let ran = catch_unwind(AssertUnwindSafe(|| drive(&mut world, steps)));
    let broken = match ran {
        Ok(Ok(converged_after)) => {
            return Ok(Ran {
                entries: world.log.state.version,
                bytes: world.log.bytes,
                converged_after,
            });
        }
        Ok(Err(broken)) => broken,
        Err(panic) => vec![format!("panic: {}", text_of(panic.as_ref()))],
    };
    Err(format!(
        "seed {seed}: {} after {:?}, at version {}\n{}\n  {}\nreplay: make sim SEED={seed} N=1 STEPS={steps}\n",
        if broken.len() > 1 {
            "promises broken"
        } else {
            "promise broken"
        },
        world.now.since(START),
        world.log.state.version,
        world.log.last_events(START),
        log::with_short_ids(&broken.join("\n  ")),
    ))
}

fn drive(world: &mut World, steps: u64) -> Result<Duration, Vec<String>> {
    world.found();
    for _ in 0..steps {
        world.step();
        look(world)?;
    }
    world.calm_down();
    look(world)?;
    let calm = world.now;
    loop {
        world.run_for(LOOK);
        look(world)?;
        let mut missing = not_yet(world);
        if missing.is_empty() {
            break;
        }
        if world.now.since(calm) > CONVERGES_WITHIN {
            missing.extend(world.hosts.values().map(|host| host.summary()));
            return Err(missing);
        }
    }
    let converged_after = world.now.since(calm);
    let version = world.log.state.version;
    world.run_for(SILENCE);
    world.log.compare();
    look(world)?;
    if world.log.state.version != version {
        return Err(vec![format!(
            "{} entries are written after all was as it should be",
            world.log.state.version - version
        )]);
    }
    Ok(converged_after)
}

fn look(world: &mut World) -> Result<(), Vec<String>> {
    let mut homes = std::collections::BTreeMap::new();
    for host in world.hosts.values() {
        for task in host.running() {
            if let Some(other) = homes.insert(task, host.id) {
                let text = format!("task {task} runs on {other} and on {}", host.id);
                world.log.broken.push(text);
            }
        }
    }
    match world.log.broken.is_empty() {
        true => Ok(()),
        false => Err(std::mem::take(&mut world.log.broken)),
    }
}

/// What is still missing: in the state, and on the nodes themselves.
fn not_yet(world: &World) -> Vec<String> {
    let mut missing = invariants::not_converged(&world.log.state);
    let placed = invariants::placed(&world.log.state);
    for host in world.hosts.values() {
        for task in host.running() {
            if !placed.contains(&(host.id, task)) {
                missing.push(format!("task {task} runs on {} for nobody", host.id));
            }
        }
    }
    for (node, task) in placed {
        let runs = world
            .hosts
            .get(&node)
            .is_some_and(|host| host.running().any(|running| running == task));
        if !runs {
            missing.push(format!("task {task} does not run on {node}"));
        }
    }
    missing
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("of another kind").to_owned()
}
