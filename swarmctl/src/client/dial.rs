//! The connection to the control socket.
//!
//! A socket that is missing, refused or forbidden is told apart before gRPC wraps the cause away.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// Opens the socket first by itself: only here the operating system's reason is still at hand.
pub(super) async fn dial(socket: &str) -> Result<Channel, Error> {
    let unreachable = |reason: String| Error::Unreachable {
        path: socket.to_owned(),
        reason,
    };
    let first = UnixStream::connect(socket)
        .await
        .map_err(|error| unreachable(reason(&error)))?;
    let mut first = Some(first);
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let (ready, path) = (first.take(), path.clone());
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The authority is never looked up: the connector knows the path.
    Endpoint::from_static("http://swarmd.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            unreachable(format!(
                "the connection broke ({}); is it running? its log says more",
                cause(&error)
            ))
        })
}

/// The innermost reason: those around it say no more than that it was a transport's.
fn cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}

fn reason(error: &io::Error) -> String {
    const WAY_OUT: &str = "is swarmd running? use -s PATH or set SWARM_SOCKET";
    if error.kind() == io::ErrorKind::NotFound {
        return format!("no such socket; {WAY_OUT}");
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return "permission denied; run as root or as a member of the socket's group".to_owned();
    }
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return format!("nothing listens on this socket; {WAY_OUT}");
    }
    format!("{error}; {WAY_OUT}")
}
