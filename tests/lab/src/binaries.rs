//! Finds the programs under test: named by the environment, or beside the running one.
#![expect(
    clippy::disallowed_methods,
    reason = "imperative shell: reads the environment"
)]

use std::env;
use std::path::{Path, PathBuf};

use crate::Error;

/// Path of `swarmd`, `swarmctl` or `web`: `$SWARMD_BIN`, `$SWARMCTL_BIN`, `$WEB_BIN`, else in the directory of the
/// running program or the one above (tests run in `deps/`).
pub fn find(name: &str) -> Result<PathBuf, Error> {
    let variable = format!("{}_BIN", name.to_uppercase());
    if let Some(path) = env::var_os(&variable) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(Error::Refused(format!(
                "{variable} names {}, which is no file",
                path.display()
            ))),
        };
    }
    let running = env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let directories = running.ancestors().skip(1).take(2);
    directories
        .map(|directory: &Path| directory.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::Refused(format!(
                "{name} is not built; run: make build, or set {variable}"
            ))
        })
}
