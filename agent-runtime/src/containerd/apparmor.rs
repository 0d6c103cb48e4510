//! The AppArmor profile of containers, on hosts whose kernel confines by AppArmor.
//!
//! Its rules are those of Docker Engine's `docker-default`: a second wall behind masked paths,
//! capabilities and seccomp, so that one hole in them opens nothing. It has a name of its own,
//! because the engine replaces its profile whenever it starts, and removes it with its package.
//!
//! The profile lives in the kernel, where whoever manages the host's profiles may remove it: it is
//! looked for before each container is made, and loaded where it is missing. The first container of
//! a swarmd has it loaded anyway: an earlier swarmd's may have other rules.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;

/// The profile's name.
pub(super) const PROFILE: &str = "swarm-default";
/// Named where a task wants no profile: else it would have the one of its runtime, if that has one.
const UNCONFINED: &str = "unconfined";
/// Whether the kernel confines by AppArmor.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The loaded profiles, a line each: `name (mode)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// The number of the capability that loading profiles needs.
const CAP_MAC_ADMIN: u32 = 33;
/// Where Debian and others keep the compiler of profiles.
const PARSERS: [&str; 3] = [
    "/sbin/apparmor_parser",
    "/usr/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];

/// What confines containers here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confinement {
    /// The kernel has no AppArmor, or hides it from this process: specs say nothing of it.
    None,
    /// Tasks have the profile, those that want none are said to be unconfined.
    Profile,
}

impl Confinement {
    /// `process.apparmorProfile` of a task.
    pub(super) fn profile(self, disabled: bool) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Profile if disabled => Some(UNCONFINED),
            Self::Profile => Some(PROFILE),
        }
    }
}

/// AppArmor on this host.
#[derive(Debug)]
pub(super) struct AppArmor {
    enabled: PathBuf,
    loaded: PathBuf,
    parser: Option<PathBuf>,
    /// This process has the right to load profiles; in a container it may lack it.
    may_load: bool,
    /// Held while the profile is looked for and loaded: one loader is enough.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// That there is no compiler was told.
    warned: bool,
    /// This process has put its own text into the kernel, or can't.
    current: bool,
}

impl AppArmor {
    pub(super) fn of_host() -> Self {
        let mut parsers = PARSERS.iter().map(PathBuf::from);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            may_load: holds(&status, CAP_MAC_ADMIN),
            ..Self::at(ENABLED, LOADED, parsers.find(|path| path.exists()))
        }
    }

    fn at(
        enabled: impl Into<PathBuf>,
        loaded: impl Into<PathBuf>,
        parser: Option<PathBuf>,
    ) -> Self {
        Self {
            enabled: enabled.into(),
            loaded: loaded.into(),
            parser,
            may_load: true,
            state: Mutex::default(),
        }
    }

    /// [`AppArmor::look`], off the runtime's threads: compiling takes some milliseconds.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<Confinement, Error> {
        if !self.is_enabled() {
            return Ok(Confinement::None);
        }
        let this = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || this.look()).await;
        looked.unwrap_or_else(|error| Err(Error::Fatal(format!("AppArmor: {error}"))))
    }

    /// Sees to it that the profile is loaded.
    ///
    /// # Errors
    /// [`Error::Fatal`] when the kernel has AppArmor and the profile can't be loaded: a container
    /// is not run with less than it is promised. A host without the compiler, and a swarmd without
    /// the right to load profiles, promise nothing.
    fn look(&self) -> Result<Confinement, Error> {
        if !self.is_enabled() {
            return Ok(Confinement::None);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Not readable: in a container without the host's securityfs, say.
        let Ok(loaded) = std::fs::read_to_string(&self.loaded) else {
            self.warn(&mut state, "its list of profiles can't be read");
            return Ok(Confinement::None);
        };
        let is_loaded = is_loaded(&loaded);
        let can_load = self.parser.is_some() && self.may_load;
        if is_loaded && (state.current || !can_load) {
            return Ok(Confinement::Profile);
        }
        let Some(parser) = &self.parser else {
            self.warn(&mut state, "apparmor_parser is not installed");
            return Ok(Confinement::None);
        };
        if !self.may_load {
            self.warn(&mut state, "swarmd lacks CAP_MAC_ADMIN to load a profile");
            return Ok(Confinement::None);
        }
        match load(parser) {
            Ok(()) => {}
            // What is there confines too.
            Err(error) if is_loaded => {
                tracing::warn!(%error, "containers have the rules of an earlier swarmd");
            }
            Err(error) => return Err(error),
        }
        state.current = true;
        Ok(Confinement::Profile)
    }

    /// Whether the kernel has it at all.
    pub(super) fn is_enabled(&self) -> bool {
        std::fs::read_to_string(&self.enabled).is_ok_and(|text| text.trim() == "Y")
    }

    /// Whether containers are confined, or would be once the first is made.
    pub(super) fn can_confine(&self) -> bool {
        std::fs::read_to_string(&self.loaded)
            .is_ok_and(|loaded| is_loaded(&loaded) || (self.parser.is_some() && self.may_load))
    }

    fn warn(&self, state: &mut State, reason: &str) {
        if !std::mem::replace(&mut state.warned, true) {
            tracing::warn!(
                reason,
                profiles = %self.loaded.display(),
                "containers are not confined by AppArmor; see `swarmd doctor`"
            );
        }
    }
}

/// Whether a process, by its /proc/PID/status, has a capability.
fn holds(status: &str, capability: u32) -> bool {
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & (1 << capability) != 0)
}

fn is_loaded(profiles: &str) -> bool {
    let mut names = profiles.lines().filter_map(|line| line.split(' ').next());
    names.any(|name| name == PROFILE)
}

/// Compiles the profile and puts it into the kernel, in place of one of its name.
fn load(parser: &Path) -> Result<(), Error> {
    let failed = |reason: String| {
        Error::Fatal(format!(
            "AppArmor profile {PROFILE} can't be loaded by {}: {reason}",
            parser.display()
        ))
    };
    // No cache: a later swarmd may bring another text under the same name.
    let mut command = Command::new(parser);
    command.args(["--replace", "--skip-cache", "--quiet"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(profile().as_bytes()),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, words.trim())));
    }
    written.map_err(|error| failed(error.to_string()))?;
    tracing::info!(profile = PROFILE, "AppArmor profile loaded");
    Ok(())
}

/// The profile's text. It includes no file of the host but the variables of every AppArmor, so it
/// means the same everywhere.
fn profile() -> String {
    format!(
        r"#include <tunables/global>

profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  # What the namespaces, capabilities and mounts leave over is the container's own.
  network,
  capability,
  file,
  umount,

  # From the host's programs, from runtimes that have a profile, and among themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer={PROFILE},
  ptrace (trace, read, tracedby, readby) peer={PROFILE},

  # A mount could undo the rules below, whatever the capabilities.
  deny mount,

  # Of /proc, only processes' own files are written, and shared memory's limits.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  # Of /sys, only the cgroups below /sys/fs are written.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::program;

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        /// A kernel that says `enabled` and lists `loaded`, and a compiler that does what `script`
        /// says. What it reads ends up in the file `text`.
        fn new(enabled: Option<&str>, loaded: Option<&str>) -> Self {
            let host = Self {
                dir: tempfile::tempdir().unwrap(),
            };
            for (name, text) in [("enabled", enabled), ("loaded", loaded)] {
                if let Some(text) = text {
                    std::fs::write(host.path(name), text).unwrap();
                }
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn parser(&self, script: &str) -> PathBuf {
            let path = self.path("parser");
            let (text, loaded) = (self.path("text"), self.path("loaded"));
            let script = format!(
                "TEXT={} LOADED={}\n{script}",
                text.display(),
                loaded.display()
            );
            program(&path, &script);
            path
        }

        fn apparmor(&self, parser: Option<PathBuf>) -> AppArmor {
            AppArmor::at(self.path("enabled"), self.path("loaded"), parser)
        }
    }

    #[test]
    fn hosts_without_it_have_no_profile() {
        for (enabled, loaded) in [
            (None, None),
            (Some("N\n"), Some("swarm-default (enforce)\n")),
            (Some("Y\n"), None),
            (Some("Y\n"), Some("swarm-default-2 (enforce)\n")),
        ] {
            let apparmor = Host::new(enabled, loaded).apparmor(None);
            assert_eq!(apparmor.look().unwrap(), Confinement::None, "{enabled:?}");
            assert!(!apparmor.can_confine() || enabled != Some("Y\n"));
        }
    }

    #[test]
    fn a_missing_profile_is_loaded_once() {
        let host = Host::new(Some("Y\n"), Some("docker-default (enforce)\n"));
        let parser = host.parser("cat >$TEXT; echo 'swarm-default (enforce)' >>$LOADED");
        let apparmor = host.apparmor(Some(parser));
        assert!(apparmor.can_confine());
        assert_eq!(apparmor.look().unwrap(), Confinement::Profile);
        assert_eq!(
            std::fs::read_to_string(host.path("text")).unwrap(),
            profile()
        );
        std::fs::remove_file(host.path("text")).unwrap();
        assert_eq!(apparmor.look().unwrap(), Confinement::Profile);
        assert!(!host.path("text").exists(), "loaded again");
        // Somebody removed it.
        std::fs::write(host.path("loaded"), "").unwrap();
        assert_eq!(apparmor.look().unwrap(), Confinement::Profile);
        assert!(host.path("text").exists());
    }

    #[test]
    fn an_earlier_swarmd_s_profile_is_replaced_once() {
        let host = Host::new(Some("Y\n"), Some("swarm-default (enforce)\n"));
        let apparmor = host.apparmor(Some(host.parser("cat >$TEXT")));
        assert_eq!(apparmor.look().unwrap(), Confinement::Profile);
        std::fs::remove_file(host.path("text")).unwrap();
        assert_eq!(apparmor.look().unwrap(), Confinement::Profile);
        assert!(!host.path("text").exists(), "loaded again");
        let failing = host.apparmor(Some(host.parser("exit 1")));
        assert_eq!(failing.look().unwrap(), Confinement::Profile);
    }

    #[test]
    fn a_profile_that_can_not_be_loaded_is_an_error() {
        let host = Host::new(Some("Y\n"), Some(""));
        let parser = host.parser("echo 'no permission' >&2; exit 243");
        let error = host.apparmor(Some(parser)).look().unwrap_err().to_string();
        assert!(error.contains("swarm-default"), "{error}");
        assert!(error.contains("no permission"), "{error}");
    }

    #[test]
    fn without_the_right_to_load_nothing_is_promised() {
        let host = Host::new(Some("Y\n"), Some(""));
        let mut apparmor = host.apparmor(Some(host.parser("exit 1")));
        apparmor.may_load = false;
        assert_eq!(apparmor.look().unwrap(), Confinement::None);
        assert!(!apparmor.can_confine());
        assert!(holds(
            "Name:\tx\nCapEff:\t0000000200000000\n",
            CAP_MAC_ADMIN
        ));
        assert!(!holds("CapEff:\t0000000100000000\n", CAP_MAC_ADMIN));
        assert!(!holds("", CAP_MAC_ADMIN));
    }

    #[test]
    fn a_task_may_go_without() {
        assert_eq!(Confinement::Profile.profile(false), Some("swarm-default"));
        assert_eq!(Confinement::Profile.profile(true), Some("unconfined"));
        assert_eq!(Confinement::None.profile(true), None);
    }

    /// AppArmor's own compiler takes it; that needs no kernel with AppArmor.
    #[test]
    fn it_compiles() {
        let Some(parser) = AppArmor::of_host().parser else {
            eprintln!("left out: apparmor_parser is not installed");
            return;
        };
        let host = Host::new(None, None);
        std::fs::write(host.path("profile"), profile()).unwrap();
        let output = Command::new(parser)
            .args(["--skip-kernel-load", "--skip-cache"])
            .arg(host.path("profile"))
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
    }
}
