//! How long the executor takes for the steps of tasks, for metrics (docs/metrics.md).

use agent_runtime::step::Step;

use crate::latency::{Counts, Histogram};

/// One histogram each. A wait takes as long as its task runs, and says nothing of the executor.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    prepare: Histogram,
    start: Histogram,
    shutdown: Histogram,
    remove: Histogram,
}

impl Operations {
    /// Where a step is counted; nowhere, where the executor does nothing for it, or waits.
    pub(super) fn of(&self, step: Step) -> Option<&Histogram> {
        match step {
            Step::Prepare => Some(&self.prepare),
            Step::Start => Some(&self.start),
            Step::Shutdown => Some(&self.shutdown),
            Step::Remove => Some(&self.remove),
            Step::Wait | Step::Enter(_) | Step::Lost | Step::Hold => None,
        }
    }

    /// All of them, by name.
    pub(crate) fn counts(&self) -> [(&'static str, Counts); 4] {
        [
            ("prepare", self.prepare.counts()),
            ("start", self.start.counts()),
            ("shutdown", self.shutdown.counts()),
            ("remove", self.remove.counts()),
        ]
    }
}
