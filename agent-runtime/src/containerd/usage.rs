//! What tasks take of this host, and how much of a processor that was since one last looked.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_proto::pb;

use super::cgroup::Taken;

/// The last look at all tasks.
#[derive(Debug, Default)]
pub(super) struct Rates {
    cpu_ns: BTreeMap<String, u64>,
}

impl Rates {
    /// Takes a look, `since` the one before. A task that is new has no rate yet.
    pub(super) fn look(
        &mut self,
        taken: BTreeMap<String, Taken>,
        since: Option<Duration>,
    ) -> Vec<pb::TaskUsage> {
        let before = std::mem::take(&mut self.cpu_ns);
        let nanos = since.map_or(0, |since| since.as_nanos());
        let mut usage = Vec::with_capacity(taken.len());
        for (task_id, now) in taken {
            let used = before
                .get(&task_id)
                .map_or(0, |before| now.cpu_ns.saturating_sub(*before));
            let rate = (u128::from(used) * 1_000_000_000).checked_div(nanos);
            self.cpu_ns.insert(task_id.clone(), now.cpu_ns);
            usage.push(pb::TaskUsage {
                task_id,
                cpu_ns: now.cpu_ns,
                nano_cpus: u64::try_from(rate.unwrap_or(0)).unwrap_or(u64::MAX),
                memory_bytes: now.memory,
                pids: now.pids,
                heard_at: None,
            });
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(cpu_ns: &[(&str, u64)]) -> BTreeMap<String, Taken> {
        let one = |(task, cpu_ns): &(&str, u64)| {
            let taken = Taken {
                cpu_ns: *cpu_ns,
                memory: 7,
                pids: 1,
            };
            ((*task).to_owned(), taken)
        };
        cpu_ns.iter().map(one).collect()
    }

    #[test]
    fn processors_in_use_are_time_over_time() {
        let mut rates = Rates::default();
        let mut look = |cpu_ns: &[(&str, u64)], since: Option<u64>| -> Vec<(String, u64)> {
            let usage = rates.look(taken(cpu_ns), since.map(Duration::from_secs));
            usage
                .into_iter()
                .map(|one| (one.task_id, one.nano_cpus))
                .collect()
        };
        let rate = |task: &str, rate: u64| (task.to_owned(), rate);
        assert_eq!(look(&[("a", 9_000_000_000)], None), [rate("a", 0)]);
        // A processor and a half; a new task has no rate yet.
        assert_eq!(
            look(&[("a", 12_000_000_000), ("b", 1)], Some(2)),
            [rate("a", 1_500_000_000), rate("b", 0)]
        );
        // Counted anew, or twice at the same time.
        assert_eq!(look(&[("a", 5)], Some(1)), [rate("a", 0)]);
        assert_eq!(look(&[("a", 6)], Some(0)), [rate("a", 0)]);
    }
}
