//! What a manager serves, to other nodes over TLS and to operators over the control socket.
//!
//! Both have the same services behind the same table ([`super::authorize`]); who calls decides what
//! is open.

use std::time::Duration;

use swarm_proto::own::membership_server::MembershipServer;
use swarm_proto::own::operator_server::OperatorServer;
use swarm_proto::own::raft_server::RaftServer;
use swarm_proto::pb;
use tonic::service::Routes;
use tonic::transport::Server;

use super::Manager;
use super::caserver::CaServer;
use super::health::HealthServer;
use super::raft::FencedService;
use crate::operator::Operator;

/// Largest message taken from anyone: SwarmKit's limit.
pub(crate) const MESSAGE_MAX: usize = 4 << 20;
/// The same for the CA's services, which also those may ask who have no certificate: a certificate signing request of at most
/// 64 KiB, and what is around it.
const CA_MESSAGE_MAX: usize = 128 << 10;
/// Bytes a client may send on one stream before it waits for us: a batch of statuses goes out at once
/// instead of in pieces of 64 KiB (HTTP/2's default), a round trip each.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection: what it may send before anything of it is read. What is read is held until its
/// message is whole, so this does not bound memory: the limits of messages do.
const CONNECTION_WINDOW: u32 = 2 << 20;
/// A connection without traffic is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// And closed without an answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way on one connection.
const STREAMS_MAX: u32 = 256;

/// A server with this project's limits.
pub(crate) fn builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .tcp_nodelay(true)
}

/// Every service of a manager.
pub(crate) fn routes(manager: &Manager, operator: Operator) -> Routes {
    let api = manager.control_api();
    let ca = CaServer::new(
        manager.store().clone(),
        manager.clock().clone(),
        manager.managers(),
    )
    .signing(manager.signer());
    let health = HealthServer::new(Some(manager.serving()));
    let dispatcher = manager.dispatcher().clone();
    Routes::default()
        .add_service(
            pb::control_server::ControlServer::new(api.clone())
                .max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(pb::watch_server::WatchServer::new(api).max_decoding_message_size(MESSAGE_MAX))
        .add_service(
            pb::ca_server::CaServer::new(ca.clone()).max_decoding_message_size(CA_MESSAGE_MAX),
        )
        .add_service(
            pb::node_ca_server::NodeCaServer::new(ca).max_decoding_message_size(CA_MESSAGE_MAX),
        )
        .add_service(
            pb::dispatcher_server::DispatcherServer::new(dispatcher)
                .max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(
            MembershipServer::new(manager.membership_server())
                .max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(manager.raft_service())
        .add_service(OperatorServer::new(operator).max_decoding_message_size(MESSAGE_MAX))
        .add_service(
            pb::health_server::HealthServer::new(health).max_decoding_message_size(MESSAGE_MAX),
        )
}

/// The health of a manager that takes no part in consensus.
pub(crate) fn no_leader() -> pb::health_server::HealthServer<HealthServer> {
    pb::health_server::HealthServer::new(HealthServer::new(None))
}

/// What a manager that is fenced serves other nodes: that it is.
pub(crate) fn fenced(service: FencedService) -> Routes {
    Routes::new(RaftServer::new(service)).add_service(no_leader())
}
