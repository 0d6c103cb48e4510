//! The table: who may call which RPC. One row for each RPC of the descriptors, a test sees to it.

use crate::ca::Role;

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who reaches the port: what a joiner needs before it has a certificate.
    Insecure,
    /// Nodes with one of these roles. The control socket counts as a manager.
    Roles(&'static [Role]),
    /// The control socket only.
    LocalOnly,
}

const NODES: Access = Access::Roles(&[Role::Worker, Role::Manager]);
const MANAGERS: Access = Access::Roles(&[Role::Manager]);

/// Every RPC of every service, by service and method.
pub const TABLE: &[(&str, &[(&str, Access)])] = &[
    (
        "docker.swarmkit.v1.CA",
        &[
            ("GetRootCACertificate", Access::Insecure),
            ("GetUnlockKey", MANAGERS),
        ],
    ),
    (
        "docker.swarmkit.v1.NodeCA",
        &[
            ("IssueNodeCertificate", Access::Insecure),
            ("NodeCertificateStatus", Access::Insecure),
        ],
    ),
    (
        "docker.swarmkit.v1.Dispatcher",
        &[
            ("Session", NODES),
            ("Heartbeat", NODES),
            ("UpdateTaskStatus", NODES),
            ("UpdateVolumeStatus", NODES),
            ("Tasks", NODES),
            ("Assignments", NODES),
        ],
    ),
    (
        "docker.swarmkit.v1.ResourceAllocator",
        &[("AttachNetwork", NODES), ("DetachNetwork", NODES)],
    ),
    (
        "docker.swarmkit.v1.LogBroker",
        &[("ListenSubscriptions", NODES), ("PublishLogs", NODES)],
    ),
    ("docker.swarmkit.v1.Logs", &[("SubscribeLogs", MANAGERS)]),
    ("docker.swarmkit.v1.Watch", &[("Watch", MANAGERS)]),
    ("docker.swarmkit.v1.Health", &[("Check", MANAGERS)]),
    (
        "docker.swarmkit.v1.Control",
        &[
            ("GetNode", MANAGERS),
            ("ListNodes", MANAGERS),
            ("UpdateNode", MANAGERS),
            ("RemoveNode", MANAGERS),
            ("GetTask", MANAGERS),
            ("ListTasks", MANAGERS),
            ("RemoveTask", MANAGERS),
            ("GetService", MANAGERS),
            ("ListServices", MANAGERS),
            ("CreateService", MANAGERS),
            ("UpdateService", MANAGERS),
            ("RemoveService", MANAGERS),
            ("ListServiceStatuses", MANAGERS),
            ("GetNetwork", MANAGERS),
            ("ListNetworks", MANAGERS),
            ("CreateNetwork", MANAGERS),
            ("RemoveNetwork", MANAGERS),
            ("GetCluster", MANAGERS),
            ("ListClusters", MANAGERS),
            ("UpdateCluster", MANAGERS),
            ("GetSecret", MANAGERS),
            ("UpdateSecret", MANAGERS),
            ("ListSecrets", MANAGERS),
            ("CreateSecret", MANAGERS),
            ("RemoveSecret", MANAGERS),
            ("GetConfig", MANAGERS),
            ("UpdateConfig", MANAGERS),
            ("ListConfigs", MANAGERS),
            ("CreateConfig", MANAGERS),
            ("RemoveConfig", MANAGERS),
            ("GetExtension", MANAGERS),
            ("CreateExtension", MANAGERS),
            ("RemoveExtension", MANAGERS),
            ("GetResource", MANAGERS),
            ("UpdateResource", MANAGERS),
            ("ListResources", MANAGERS),
            ("CreateResource", MANAGERS),
            ("RemoveResource", MANAGERS),
            ("CreateVolume", MANAGERS),
            ("GetVolume", MANAGERS),
            ("UpdateVolume", MANAGERS),
            ("ListVolumes", MANAGERS),
            ("RemoveVolume", MANAGERS),
        ],
    ),
    (
        "swarm.v1.Operator",
        &[
            // Answered by the leader, so a manager forwards it.
            ("ExplainTask", MANAGERS),
            ("Consensus", MANAGERS),
            ("Backup", MANAGERS),
            ("LocalStatus", Access::LocalOnly),
            ("Leave", Access::LocalOnly),
            ("Unlock", Access::LocalOnly),
        ],
    ),
    (
        "swarm.v1.Images",
        &[
            ("ListImages", Access::LocalOnly),
            ("PullImage", Access::LocalOnly),
            ("ImportImages", Access::LocalOnly),
            ("RemoveImage", Access::LocalOnly),
        ],
    ),
    (
        "swarm.v1.Membership",
        &[("LeaveCluster", NODES), ("JoinManagers", MANAGERS)],
    ),
    (
        "swarm.v1.Raft",
        &[
            ("Append", MANAGERS),
            ("Vote", MANAGERS),
            ("PreVote", MANAGERS),
            ("Snapshot", MANAGERS),
            ("TransferLeader", MANAGERS),
            ("Fence", MANAGERS),
        ],
    ),
];

/// The row of a request path `/package.Service/Method`.
#[must_use]
pub fn access_of(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    methods
        .iter()
        .find(|(name, _)| *name == method)
        .map(|(_, access)| *access)
}

/// Whether the leader alone answers a request; another manager then sends it on. All that reads or changes the cluster is
/// the leader's; what is about this manager itself is not.
#[must_use]
pub fn is_leaders(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
        return false;
    };
    match service {
        "swarm.v1.Raft" | "swarm.v1.Images" | "docker.swarmkit.v1.Health" => false,
        "swarm.v1.Operator" => matches!(method, "ExplainTask" | "Consensus" | "Backup"),
        _ => true,
    }
}
