//! What tasks take of this host, and how much of a processor that was since one last looked.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_proto::pb;

use super::cgroup::Taken;

/// Time between two looks that are compared: of less the clock's ticks say little.
const LEAST: Duration = Duration::from_secs(1);

/// Earlier looks at all tasks.
#[derive(Debug, Default)]
pub(super) struct Rates {
    at: Option<Duration>,
    /// Processor time then, and billionths of a processor until then.
    tasks: BTreeMap<String, (u64, u64)>,
}

impl Rates {
    /// Takes a look, at a time by any clock that runs evenly. A task that is new has no rate yet.
    pub(super) fn look(
        &mut self,
        taken: BTreeMap<String, Taken>,
        now: Duration,
    ) -> Vec<pb::TaskUsage> {
        let since = self.at.map(|at| now.saturating_sub(at));
        if since.is_none_or(|since| since >= LEAST) {
            let before = std::mem::take(&mut self.tasks);
            let nanos = since.map_or(0, |since| since.as_nanos());
            let rate = |task: &String, now: u64| {
                let used = now.saturating_sub(before.get(task)?.0);
                let rate = (u128::from(used) * 1_000_000_000).checked_div(nanos)?;
                u64::try_from(rate).ok()
            };
            let all = taken.iter().map(|(task, taken)| {
                let rate = rate(task, taken.cpu_ns).unwrap_or(0);
                (task.clone(), (taken.cpu_ns, rate))
            });
            self.tasks = all.collect();
            self.at = Some(now);
        }
        let usage = |(task_id, taken): (String, Taken)| pb::TaskUsage {
            cpu_ns: taken.cpu_ns,
            nano_cpus: self.tasks.get(&task_id).map_or(0, |(_, rate)| *rate),
            memory_bytes: taken.memory,
            pids: taken.pids,
            task_id,
            heard_at: None,
        };
        taken.into_iter().map(usage).collect()
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
        let mut look = |cpu_ns: &[(&str, u64)], now: u64| -> Vec<(String, u64)> {
            let usage = rates.look(taken(cpu_ns), Duration::from_millis(now));
            usage
                .into_iter()
                .map(|one| (one.task_id, one.nano_cpus))
                .collect()
        };
        let rate = |task: &str, rate: u64| (task.to_owned(), rate);
        assert_eq!(look(&[("a", 9_000_000_000)], 100), [rate("a", 0)]);
        // A processor and a half; a new task has no rate yet.
        assert_eq!(
            look(&[("a", 12_000_000_000), ("b", 1)], 2_100),
            [rate("a", 1_500_000_000), rate("b", 0)]
        );
        // Too soon to say anything new.
        assert_eq!(
            look(&[("a", 12_900_000_000)], 3_000),
            [rate("a", 1_500_000_000)]
        );
        // Counted anew.
        assert_eq!(look(&[("a", 5)], 4_100), [rate("a", 0)]);
    }
}
