//! Golden transcripts: shell sessions of swarmctl over the simulator, compared with what is on file.
//!
//! A transcript in `transcripts/` has lines of three kinds to be carried out, and what they print:
//!
//! - `## text`: a comment;
//! - `# directive`: something happens in the simulated world, see [`Shell::direct`];
//! - `$ swarmctl …`: a command line; stdout as it is, stderr with `! ` before each line, and the
//!   exit code in brackets where it is not 0. `| head -N` keeps the first lines.
//!
//! The manager's API, store, pass and assignments are the real ones; hosts are simulated, time is
//! virtual. Ids and tokens are random and replaced by names. `make fix` writes the files anew.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod transcripts {
    pub(super) mod names;
    pub(super) mod shell;
}

use std::collections::BTreeSet;
use std::path::PathBuf;

use expect_test::expect_file;
use transcripts::shell::Shell;

/// The files, in order.
fn files() -> Vec<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let entries = std::fs::read_dir(&directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The lines of a transcript that are carried out.
fn script(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.starts_with("$ ") || line.starts_with("# ") || line.starts_with("## "))
}

#[tokio::test]
async fn sessions_print_what_is_on_file() {
    for path in files() {
        let before = std::fs::read_to_string(&path).unwrap();
        let after = play(&before).await;
        expect_file![path].assert_eq(&after);
    }
}

#[tokio::test]
async fn a_session_is_the_same_each_time() {
    let path = files().pop().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let (one, two) = (play(&text).await, play(&text).await);
    assert_eq!(one, two, "{}", path.display());
}

/// Carries out a transcript's script.
async fn play(text: &str) -> String {
    let mut shell = Shell::new().await;
    let mut out = String::new();
    for line in script(text) {
        if line.starts_with("## ") && !out.is_empty() {
            out.push('\n');
        }
        out.push_str(line);
        out.push('\n');
        if let Some(command) = line.strip_prefix("$ ") {
            out.push_str(&shell.run(command).await);
        } else if let Some(directive) = line.strip_prefix("# ") {
            shell.direct(directive);
        }
    }
    out
}

#[test]
fn every_command_is_in_a_transcript() {
    let mut commands = BTreeSet::new();
    let tree = swarmctl::command();
    for command in tree.get_subcommands() {
        let leaves: Vec<&str> = command
            .get_subcommands()
            .map(|sub| sub.get_name())
            .collect();
        match leaves.is_empty() {
            true => drop(commands.insert(command.get_name().to_owned())),
            false => commands.extend(
                leaves
                    .iter()
                    .map(|leaf| format!("{} {leaf}", command.get_name())),
            ),
        }
    }
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = script(&text).filter_map(|line| line.strip_prefix("$ swarmctl "));
        for line in lines {
            let words: Vec<&str> = line
                .split(' ')
                .filter(|word| !word.starts_with('-'))
                .collect();
            commands.remove(words[0]);
            if let Some(leaf) = words.get(1) {
                commands.remove(&format!("{} {leaf}", words[0]));
            }
        }
    }
    assert!(
        commands.is_empty(),
        "commands without a transcript: {commands:?}"
    );
}
