//! What containers write, taken down by a process of its own beside each container.
//!
//! ```text
//! container ─ stdout, stderr ─► pipes ─► log writer ─► files of JSON lines, or the journal
//!                               (shim)   (this code)
//! ```
//!
//! The shim starts the writer ([`run`]) when the container is made and keeps the pipes open: output
//! goes on being written while swarmd is away, and nothing is lost when the writer's files rotate.
//! A writer takes about two megabytes of its own; its program is the one that is running already.
//!
//! containerd's `binary` scheme: the pipes are descriptors 3 and 4, and descriptor 5 takes a byte
//! once the writer is ready.
//!
//! | file | what |
//! |---|---|
//! | `config` | pure: what the writer is told, from the log driver and the container |
//! | `lines` | pure: from bytes to entries |
//! | `file` `journal` | where entries go |
//! | `writer` | the process |

mod config;
mod file;
mod journal;
mod lines;
mod writer;

pub use config::{Container, Target};
pub use writer::run;
