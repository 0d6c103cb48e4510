//! Health checks, decided: when the next one is due, and what a result makes of a container.
//!
//! Docker's rules: a check that fails counts once the start period is over; so many in a row make
//! the container unhealthy, one that succeeds makes it healthy. Beyond Docker, which waits a whole
//! interval before it looks at a new container: checks begin at once and come ever more slowly, and
//! until an interval is over their failures don't count. So a container is ready when it is, not 30 s
//! later, and none is called unhealthy that Docker would have waited for.
//!
//! Pure: time comes in as what has passed since the container's start.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use swarm_proto::pb;
use swarm_proto::time::duration_from_wire;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// The first check of a new container; the pause doubles from there to the start interval.
const FIRST: Duration = Duration::from_millis(250);

/// A container's health check, from the service and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Time between two checks.
    pub interval: Duration,
    /// Longest time of one.
    pub timeout: Duration,
    /// Time from the start in which failures don't count.
    pub start_period: Duration,
    /// Time between two checks of a container that is not healthy yet, within the start period.
    pub start_interval: Duration,
    /// Failures in a row that make a container unhealthy.
    pub retries: u32,
}

/// An image's health check, as its config has it; times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageCheck {
    /// `NONE`, or `CMD` and words, or `CMD-SHELL` and a line.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: u64,
    /// Longest time of one.
    pub timeout: u64,
    /// Time in which failures don't count.
    pub start_period: u64,
    /// Time between two checks in it.
    pub start_interval: u64,
    /// Failures in a row.
    pub retries: u32,
}

impl Check {
    /// The check of a container: what the service says, else the image, else Docker's defaults.
    /// `shell` runs a command line. None if there is nothing to check.
    #[must_use]
    pub fn new(
        spec: Option<&pb::HealthConfig>,
        image: Option<&ImageCheck>,
        shell: &[String],
    ) -> Option<Self> {
        let none = (pb::HealthConfig::default(), ImageCheck::default());
        let (spec, image) = (spec.unwrap_or(&none.0), image.unwrap_or(&none.1));
        let test = if spec.test.is_empty() {
            &image.test
        } else {
            &spec.test
        };
        let command = match test.split_first() {
            Some((kind, words)) if kind == "CMD" => words.to_vec(),
            Some((kind, line)) if kind == "CMD-SHELL" => {
                shell.iter().chain(line).cloned().collect()
            }
            // NONE switches an image's check off.
            Some(_) | None => return None,
        };
        if command.is_empty() {
            return None;
        }
        let time = |spec: &Option<prost_types::Duration>, image: u64, default: Duration| {
            let spec = spec.as_ref().and_then(duration_from_wire);
            let asked = [spec.unwrap_or_default(), Duration::from_nanos(image)];
            asked
                .into_iter()
                .find(|time| !time.is_zero())
                .unwrap_or(default)
        };
        let retries = [u32::try_from(spec.retries).unwrap_or(0), image.retries];
        Some(Self {
            command,
            interval: time(&spec.interval, image.interval, INTERVAL),
            timeout: time(&spec.timeout, image.timeout, TIMEOUT),
            start_period: time(&spec.start_period, image.start_period, Duration::ZERO),
            start_interval: time(&spec.start_interval, image.start_interval, START_INTERVAL),
            retries: retries
                .into_iter()
                .find(|count| *count > 0)
                .unwrap_or(RETRIES),
        })
    }

    /// Until then failures don't count.
    fn grace(&self) -> Duration {
        self.start_period.max(self.interval)
    }
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// No check has succeeded yet.
    Starting,
    /// The last check succeeded, or too few have failed since.
    Healthy,
    /// Too many checks in a row failed; why the last one did.
    Unhealthy(String),
}

/// Follows the checks of one container.
#[derive(Debug)]
pub struct Monitor {
    check: Check,
    health: Health,
    /// Checks made.
    made: u32,
    /// Failures in a row that count.
    failures: u32,
}

impl Monitor {
    /// Of a container that has just started.
    #[must_use]
    pub fn starting(check: Check) -> Self {
        Self {
            check,
            health: Health::Starting,
            made: 0,
            failures: 0,
        }
    }

    /// Of one that was healthy when somebody last looked.
    #[must_use]
    pub fn healthy(check: Check) -> Self {
        Self {
            health: Health::Healthy,
            ..Self::starting(check)
        }
    }

    /// What is checked.
    #[must_use]
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// How the container is, as far as is known.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The pause before the next check, `since` its start.
    #[must_use]
    pub fn pause(&self, since: Duration) -> Duration {
        let starting = self.health == Health::Starting && since < self.check.grace();
        if !starting {
            return self.check.interval;
        }
        let growing = FIRST.saturating_mul(1u32.checked_shl(self.made).unwrap_or(u32::MAX));
        growing
            .min(self.check.start_interval)
            .min(self.check.interval)
    }

    /// Takes the result of a check that ended `since` the container's start.
    pub fn checked(&mut self, since: Duration, result: Result<(), String>) {
        self.made = self.made.saturating_add(1);
        match result {
            Ok(()) => {
                self.health = Health::Healthy;
                self.failures = 0;
            }
            Err(_) if self.health == Health::Starting && since < self.check.grace() => {}
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.check.retries {
                    self.health = Health::Unhealthy(reason);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn check() -> Check {
        let image = ImageCheck {
            test: words(&["CMD", "probe"]),
            ..Default::default()
        };
        Check::new(None, Some(&image), &[]).unwrap()
    }

    #[test]
    fn the_service_comes_before_the_image_before_docker() {
        let image = ImageCheck {
            test: words(&["CMD-SHELL", "a && b"]),
            interval: 7_000_000_000,
            retries: 9,
            ..Default::default()
        };
        let shell = words(&["/bin/sh", "-c"]);
        let of = |spec: &pb::HealthConfig| Check::new(Some(spec), Some(&image), &shell);
        let from_image = of(&pb::HealthConfig::default()).unwrap();
        assert_eq!(from_image.command, ["/bin/sh", "-c", "a && b"]);
        assert_eq!((from_image.interval, from_image.retries), (seconds(7), 9));
        assert_eq!(from_image.timeout, seconds(30));
        let spec = pb::HealthConfig {
            test: words(&["CMD", "x", "y"]),
            retries: 1,
            timeout: Some(swarm_proto::time::duration_to_wire(seconds(2))),
            ..Default::default()
        };
        let both = of(&spec).unwrap();
        assert_eq!(both.command, ["x", "y"]);
        assert_eq!(
            (both.interval, both.timeout, both.retries),
            (seconds(7), seconds(2), 1)
        );
        let off = pb::HealthConfig {
            test: words(&["NONE"]),
            ..Default::default()
        };
        assert_eq!(of(&off), None);
        assert_eq!(Check::new(None, None, &shell), None);
        assert_eq!(
            Check::new(
                Some(&pb::HealthConfig {
                    test: words(&["CMD"]),
                    ..Default::default()
                }),
                None,
                &shell
            ),
            None
        );
    }

    #[test]
    fn a_new_container_is_looked_at_early_and_often() {
        let mut monitor = Monitor::starting(check());
        let mut since = Duration::ZERO;
        let mut pauses = Vec::new();
        while since < seconds(12) {
            let pause = monitor.pause(since);
            pauses.push(pause.as_millis());
            since += pause;
            monitor.checked(since, Err("not yet".to_owned()));
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000]);
        assert_eq!(monitor.health(), &Health::Starting);
        monitor.checked(since, Ok(()));
        assert_eq!(monitor.health(), &Health::Healthy);
        assert_eq!(monitor.pause(since), seconds(30));
    }

    #[test]
    fn failures_count_once_the_grace_is_over() {
        let mut monitor = Monitor::starting(check());
        for since in [1, 10, 29, 30, 60] {
            monitor.checked(seconds(since), Err(format!("at {since}")));
        }
        assert_eq!(monitor.health(), &Health::Starting);
        assert_eq!(monitor.pause(seconds(60)), seconds(30));
        monitor.checked(seconds(90), Err("at 90".to_owned()));
        assert_eq!(monitor.health(), &Health::Unhealthy("at 90".to_owned()));
    }

    #[test]
    fn a_longer_start_period_is_waited_for() {
        let slow = Check {
            start_period: seconds(100),
            ..check()
        };
        let mut monitor = Monitor::starting(slow);
        for since in [30, 60, 99] {
            monitor.checked(seconds(since), Err(String::new()));
        }
        assert_eq!(monitor.health(), &Health::Starting);
        // Once healthy, the start period protects it no more.
        monitor.checked(seconds(50), Ok(()));
        for since in [51, 52, 53] {
            monitor.checked(seconds(since), Err("down".to_owned()));
        }
        assert_eq!(monitor.health(), &Health::Unhealthy("down".to_owned()));
    }

    #[test]
    fn one_success_forgives_what_was() {
        let mut monitor = Monitor::healthy(check());
        for result in [false, false, true, false, false] {
            let result = result.then_some(()).ok_or_else(|| "down".to_owned());
            monitor.checked(seconds(1), result);
            assert_eq!(monitor.health(), &Health::Healthy);
        }
        monitor.checked(seconds(1), Err("down".to_owned()));
        assert_eq!(monitor.health(), &Health::Unhealthy("down".to_owned()));
    }
}
