//! The drivers every backend has built in; managers filter nodes by them.

use swarm_proto::pb;

/// Network and volume drivers that need nothing installed.
///
/// No log driver is listed: by SwarmKit's rule a node that lists none passes the log driver
/// filter, and the backend says itself which it can serve.
#[must_use]
pub fn builtin() -> Vec<pb::PluginDescription> {
    [
        ("Network", "bridge"),
        ("Network", "host"),
        ("Network", "null"),
        ("Network", "overlay"),
    ]
    .into_iter()
    .chain([("Volume", "local")])
    .map(|(kind, name)| pb::PluginDescription {
        r#type: kind.to_owned(),
        name: name.to_owned(),
    })
    .collect()
}
