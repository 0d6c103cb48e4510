//! The agent with simulated containers, against a scripted manager on in-process connections.

mod absence;
mod bed;
mod tasks;
