//! From objects to text: lists, details, JSON, templates and progress. Pure; what is written where is
//! decided by the commands.

pub(crate) mod inspect;
pub(crate) use swarm_proto::json;
pub(crate) mod list;
pub(crate) mod progress;
pub(crate) mod show;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod time;
pub(crate) mod unlock_key;
