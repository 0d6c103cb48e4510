//! What several of this crate's tests need.

use std::path::Path;
use std::process::Command;

/// Makes a program of a shell script.
///
/// Another process writes it: a child that another test forks at that moment holds a copy of whatever this one has open for
/// writing, and what somebody has open for writing can't be run (ETXTBSY).
pub(crate) fn program(path: &Path, script: &str) {
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#;
    let mut shell = Command::new("/bin/sh");
    let written = shell.args(["-c", write]).arg(path).arg(script).status();
    assert!(written.unwrap().success(), "{}", path.display());
}
