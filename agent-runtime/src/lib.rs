//! Runs tasks on one host: the [`Executor`] and [`Controller`] traits, the pure task step, and the backends.
//!
//! | module | what |
//! |---|---|
//! | [`executor`] | the traits: one controller a task, every call idempotent |
//! | [`step`] | pure: what comes next for a task, and what an outcome makes of its state |
//! | [`containerd`] | runs containers on plain containerd |
//! | [`simulated`] | thousands of scripted tasks a process |
//! | [`health`] | pure: when a container is checked, and what the result makes of it |
//! | [`output`] `init` [`tool`] | the small processes beside and inside containers |
//! | [`registry`] | images' registries: credentials, mirrors, manifests, blobs |
//! | [`image`] | the images of a node, for its operator |
//! | [`requirement`] | what a host has to have, and what it has |
//! | [`none`] | refuses tasks, for hosts without a container runtime |
//!
//! A backend knows a task and its container. It knows nothing of managers, services or overlays.

pub mod containerd;
pub mod error;
pub mod executor;
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod host;
pub mod image;
mod init;
pub mod none;
pub mod output;
pub mod plugins;
pub mod registry;
pub mod requirement;
pub mod simulated;
pub mod step;
#[cfg(test)]
mod testing;
pub mod tool;

pub use error::Error;
pub use executor::{Controller, Executor, Exit, Handle, NodeFacts, Observed, TaskOrder};
