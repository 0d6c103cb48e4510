//! gRPC over a UNIX socket, for messages that are bytes.

use std::path::Path;

use bytes::{Buf, BufMut};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::message::{Message, Value};
use super::table::Table;

/// The package of all services in the table.
const PACKAGE: &str = "docker.swarmkit.v1";

/// A client of everything in the table.
#[derive(Debug)]
pub(crate) struct Client {
    table: Table,
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects to a control socket; none while nothing listens there.
    pub(crate) async fn connect(socket: &Path) -> Option<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://manager.invalid")
            .connect_with_connector(connector)
            .await
            .ok()?;
        Some(Self {
            table: Table::read(),
            grpc: Grpc::new(channel),
        })
    }

    /// Makes a call.
    pub(crate) async fn call(
        &mut self,
        service: &str,
        method: &str,
        fields: Vec<(&str, Value)>,
    ) -> Result<Message, Status> {
        let (request, answer) = self.table.call(service, method);
        let Value::Message(fields) = Value::message(fields) else {
            return Err(Status::internal("no message"));
        };
        let encoded = self.table.encode(&request, &fields);
        let path = format!("/{PACKAGE}.{service}/{method}");
        let path = path.parse().map_err(|_| Status::internal(path))?;
        let ready = self.grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let answered = self.grpc.unary(Request::new(encoded), path, Plain).await?;
        Ok(self.table.decode(&answer, &answered.into_inner()))
    }
}

/// Messages are bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes.remaining()];
        bytes.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}
