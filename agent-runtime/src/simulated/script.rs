//! What a simulated task does: read from code, or from its container's environment, labels and image.
//!
//! | variable | label | meaning |
//! |---|---|---|
//! | `SIM_PREPARE`, `SIM_START`, `SIM_STOP` | `sim.prepare` … | how long the call takes (`50ms`, `1s`, `2m`) |
//! | `SIM_EXIT_AFTER` | `sim.exit-after` | the container ends by itself this long after its start |
//! | `SIM_EXIT_CODE` | `sim.exit-code` | with this code (default 0) |
//! | `SIM_OOM` | `sim.oom` | `true`: as if the kernel killed it for memory (code 137) |
//! | `SIM_FAIL_PREPARE`, `SIM_FAIL_START` | `sim.fail-prepare` … | the call fails for good, with this text |
//! | `SIM_RETRY_PREPARE` | `sim.retry-prepare` | prepare fails this many times with a temporary error |
//! | `SIM_IGNORE_STOP` | `sim.ignore-stop` | `true`: the stop signal does nothing, the grace period runs out (code 137) |
//! | `SIM_NOTICE` | `sim.notice` | prepare succeeds with this notice |
//!
//! Images `sim:missing`, `sim:crash` and `sim:hang` are short for a failing prepare, an exit with
//! code 1 right after start, and `SIM_IGNORE_STOP`.

use std::time::Duration;

use swarm_proto::pb;

use crate::error::Error;

/// Grace period where the spec has none; SwarmKit's default.
const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// Exit code of a container that a SIGKILL ended: 128 + 9.
pub(super) const EXIT_KILLED: u32 = 137;

/// What one simulated task does. The default takes no time and runs until it is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// How long `prepare` takes.
    pub prepare: Duration,
    /// How long `start` takes.
    pub start: Duration,
    /// How long the container takes to stop when asked; at most the grace period.
    pub stop: Duration,
    /// How long the container runs before it ends by itself.
    pub exit_after: Option<Duration>,
    /// The code it then ends with.
    pub exit_code: u32,
    /// Ends as if killed for memory.
    pub oom: bool,
    /// `prepare` fails for good with this text.
    pub fail_prepare: Option<String>,
    /// `start` fails for good with this text.
    pub fail_start: Option<String>,
    /// So many calls of `prepare` fail with a temporary error first.
    pub retry_prepare: u32,
    /// The stop signal does nothing: the grace period runs out.
    pub ignore_stop: bool,
    /// A notice from `prepare`.
    pub notice: Option<String>,
    /// How long a container may take to stop.
    pub grace: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            prepare: Duration::ZERO,
            start: Duration::ZERO,
            stop: Duration::ZERO,
            exit_after: None,
            exit_code: 0,
            oom: false,
            fail_prepare: None,
            fail_start: None,
            retry_prepare: 0,
            ignore_stop: false,
            notice: None,
            grace: STOP_GRACE_DEFAULT,
        }
    }
}

impl Script {
    /// Reads the script of a task on top of `base`. Tasks that are no containers, and values that
    /// don't parse, are fatal errors.
    pub(super) fn read(base: &Self, task: &pb::Task) -> Result<Self, Error> {
        let runtime = task.spec.as_ref().and_then(|spec| spec.runtime.as_ref());
        let container = match runtime {
            Some(pb::task_spec::Runtime::Container(container)) => container,
            Some(pb::task_spec::Runtime::Attachment(_) | pb::task_spec::Runtime::Generic(_))
            | None => {
                return Err(Error::Fatal(format!(
                    "task {}: only containers can be run here; give the task a container spec",
                    task.id
                )));
            }
        };
        let mut script = base.clone();
        if let Some(grace) = container.stop_grace_period {
            script.grace = Duration::try_from(grace).unwrap_or(STOP_GRACE_DEFAULT);
        }
        match container.image.as_str() {
            "sim:missing" => script.fail_prepare = Some("image sim:missing: not found".to_owned()),
            "sim:crash" => {
                script.exit_after = Some(Duration::ZERO);
                script.exit_code = 1;
            }
            "sim:hang" => script.ignore_stop = true,
            _ => {}
        }
        for (name, value) in &container.labels {
            if let Some(key) = name.strip_prefix("sim.") {
                script.set(key, value)?;
            }
        }
        for variable in &container.env {
            let Some((name, value)) = variable.split_once('=') else {
                continue;
            };
            if let Some(key) = name.strip_prefix("SIM_") {
                script.set(&key.to_ascii_lowercase().replace('_', "-"), value)?;
            }
        }
        Ok(script)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        match key {
            "prepare" => self.prepare = duration(key, value)?,
            "start" => self.start = duration(key, value)?,
            "stop" => self.stop = duration(key, value)?,
            "exit-after" => self.exit_after = Some(duration(key, value)?),
            "exit-code" => self.exit_code = parsed(key, value)?,
            "oom" => self.oom = parsed(key, value)?,
            "fail-prepare" => self.fail_prepare = Some(value.to_owned()),
            "fail-start" => self.fail_start = Some(value.to_owned()),
            "retry-prepare" => self.retry_prepare = parsed(key, value)?,
            "ignore-stop" => self.ignore_stop = parsed(key, value)?,
            "notice" => self.notice = Some(value.to_owned()),
            _ => {
                return Err(Error::Fatal(format!(
                    "simulated task: unknown setting {key}; the settings are listed with the simulated executor"
                )));
            }
        }
        Ok(())
    }
}

fn parsed<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| bad(key, value))
}

/// `50ms`, `1s`, `2m`, `1h`; a bare number is seconds.
fn duration(key: &str, value: &str) -> Result<Duration, Error> {
    let digits = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let number: u64 = parsed(key, number)?;
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(bad(key, value)),
    }
}

fn bad(key: &str, value: &str) -> Error {
    Error::Fatal(format!("simulated task: {key}: can't read {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(image: &str, env: &[&str]) -> pb::Task {
        let container = pb::ContainerSpec {
            image: image.to_owned(),
            env: env.iter().map(|&s| s.to_owned()).collect(),
            ..Default::default()
        };
        pb::Task {
            spec: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(container)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn reads_environment_and_image() {
        let env = [
            "SIM_PREPARE=50ms",
            "SIM_EXIT_AFTER=2m",
            "SIM_EXIT_CODE=3",
            "OTHER=x",
        ];
        let script = Script::read(&Script::default(), &task("sim:latest", &env)).unwrap();
        assert_eq!(script.prepare, Duration::from_millis(50));
        assert_eq!(script.exit_after, Some(Duration::from_secs(120)));
        assert_eq!(script.exit_code, 3);
        let crash = Script::read(&Script::default(), &task("sim:crash", &[])).unwrap();
        assert_eq!(
            (crash.exit_after, crash.exit_code),
            (Some(Duration::ZERO), 1)
        );
    }

    #[test]
    fn refuses_what_it_can_not_read() {
        for env in ["SIM_PREPARE=soon", "SIM_NO_SUCH=1", "SIM_EXIT_CODE=-1"] {
            let error = Script::read(&Script::default(), &task("sim", &[env])).unwrap_err();
            assert!(matches!(error, Error::Fatal(_)), "{env}: {error}");
        }
        let error = Script::read(&Script::default(), &pb::Task::default()).unwrap_err();
        assert!(error.to_string().contains("only containers"));
    }
}
