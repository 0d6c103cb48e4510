//! The connection to containerd: one socket, one containerd namespace, bounded calls, and the
//! knowledge whether containerd is there.
//!
//! The gRPC channel connects when first used and again after a loss; a monitor holds an event
//! stream, because its end is the fastest sign that containerd went away.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{
    CreateNamespaceRequest, Namespace, SubscribeRequest, namespaces_client::NamespacesClient,
};
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::error::Error;

/// Most calls are a database lookup in containerd; ten seconds is a sick disk.
pub(super) const CALL_MAX: Duration = Duration::from_secs(10);
/// Calls that fork runc: about 50 ms, and seconds on a machine that starts hundreds at once.
pub(super) const RUNC_MAX: Duration = Duration::from_secs(60);
/// Unpacking one layer: a gigabyte on a slow disk.
pub(super) const UNPACK_MAX: Duration = Duration::from_secs(600);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Pause between tries to reach a containerd that is away: first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

const NAMESPACE_HEADER: &str = "containerd-namespace";
const LEASE_HEADER: &str = "containerd-lease";

/// Why a call failed, before it is judged: some codes are answers (absent, already there).
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// containerd can't be reached.
    Away { runtime: String, reason: String },
    /// No answer in time.
    Late { what: &'static str, limit: Duration },
    /// containerd said no.
    Refused {
        what: &'static str,
        code: Code,
        message: String,
    },
}

impl Failure {
    fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Away { .. } | Self::Late { .. } => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    pub(super) fn is_present(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// True if a task can't be made because the directory of an earlier one of its id is there still. containerd has no
    /// code for it.
    pub(super) fn has_bundle(&self, id: &str) -> bool {
        match self {
            Self::Refused { message, .. } => message.contains(&format!("/{id}: file exists")),
            Self::Away { .. } | Self::Late { .. } => false,
        }
    }

    /// True if the task's shim ended under the call: containerd finds that out a moment later, and clears the task away.
    /// containerd has no code for it.
    pub(super) fn lost_shim(&self) -> bool {
        match self {
            Self::Refused { message, .. } => message.contains("ttrpc: closed"),
            Self::Away { .. } | Self::Late { .. } => false,
        }
    }

    pub(super) fn is_precondition(&self) -> bool {
        self.code() == Some(Code::FailedPrecondition)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Away { runtime, reason } => Self::Unavailable { runtime, reason },
            Failure::Late { what, limit } => {
                Self::Temporary(format!("containerd: {what}: no answer within {limit:?}"))
            }
            Failure::Refused {
                what,
                code,
                message,
            } => {
                let text = format!("containerd: {what}: {message}");
                if matches!(
                    code,
                    Code::Unavailable
                        | Code::Aborted
                        | Code::DeadlineExceeded
                        // Left by an earlier try, which is cleared away.
                        | Code::AlreadyExists
                        | Code::ResourceExhausted
                        | Code::Cancelled
                ) {
                    Self::Temporary(text)
                } else {
                    Self::Fatal(text)
                }
            }
        }
    }
}

/// `Ok(None)` where containerd has no such thing.
pub(super) fn or_absent<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.is_absent() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// `Ok(None)` where containerd has it already.
pub(super) fn or_present<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.is_present() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// A handle on containerd, bound to one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    name: String,
    address: String,
}

impl Client {
    /// A client that connects when first used.
    ///
    /// `address` is `unix:///path` or a path. A namespace that is no containerd identifier is refused.
    pub(super) fn new(address: &str, namespace: &str) -> Result<Self, Error> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let refused = |reason: String| Error::Fatal(format!("containerd at {address}: {reason}"));
        if !path.is_absolute() {
            return Err(refused(
                "give unix:///absolute/path/to/containerd.sock".to_owned(),
            ));
        }
        // The host part is not used over a UNIX socket, but a request needs one.
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(CONNECT_MAX)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }));
        let header = namespace
            .parse()
            .map_err(|_| refused(format!("namespace {namespace:?} is not plain text")))?;
        Ok(Self {
            channel,
            namespace: header,
            name: namespace.to_owned(),
            address: address.to_owned(),
        })
    }

    /// The gRPC channel, for the generated clients.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The containerd namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.name
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, self.namespace.clone());
        request
    }

    /// A request whose results the lease keeps from garbage collection.
    pub(super) fn leased<T>(&self, message: T, lease: &str) -> Request<T> {
        let mut request = self.request(message);
        if let Ok(lease) = lease.parse() {
            request.metadata_mut().insert(LEASE_HEADER, lease);
        }
        request
    }

    /// Waits for a call, at most `limit`.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(what, &status)),
            Err(_) => Err(Failure::Late { what, limit }),
        }
    }

    pub(super) fn failure(&self, what: &'static str, status: &Status) -> Failure {
        // A status with a source was made on this side, by the connection; containerd's have none.
        match std::error::Error::source(status) {
            Some(source) => Failure::Away {
                runtime: format!("containerd at {}", self.address),
                reason: chain(source),
            },
            None => Failure::Refused {
                what,
                code: status.code(),
                message: status.message().to_owned(),
            },
        }
    }

    /// containerd's version. The cheapest call there is: also the test whether it answers.
    pub(super) async fn version(&self, limit: Duration) -> Result<String, Failure> {
        let mut version =
            containerd_client::services::v1::version_client::VersionClient::new(self.channel());
        let answer = self
            .call("version", limit, version.version(self.request(())))
            .await?;
        Ok(answer.version)
    }

    /// Makes the namespace, unless it is there.
    pub(super) async fn ensure_namespace(&self) -> Result<(), Failure> {
        let namespace = Namespace {
            name: self.name.clone(),
            ..Default::default()
        };
        let request = self.request(CreateNamespaceRequest {
            namespace: Some(namespace),
        });
        let mut namespaces = NamespacesClient::new(self.channel());
        or_present(
            self.call("create namespace", CALL_MAX, namespaces.create(request))
                .await,
        )?;
        Ok(())
    }
}

/// An error and its sources in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let inner = source.to_string();
        // Many wrappers repeat their source.
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        next = source.source();
    }
    text
}

/// How often the connection was lost and came back; the number only grows.
pub(super) type Returns = watch::Receiver<u64>;

/// Watches the connection for as long as it is polled; counts in `returns` each time containerd
/// is back after it was away.
pub(super) async fn monitor(client: Client, returns: watch::Sender<u64>) {
    loop {
        hold(&client).await;
        let mut pause = RETRY_FIRST;
        while let Err(failure) = client.version(CALL_MAX).await {
            tracing::debug!(?failure, "containerd does not answer");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        tracing::info!(containerd.address = client.address, "containerd is back");
        returns.send_modify(|count| *count += 1);
    }
}

/// Holds an event stream until it breaks.
async fn hold(client: &Client) {
    use containerd_client::services::v1::events_client::EventsClient;
    // Events are not used for more than this: truth is asked for, and an event can be missed.
    let filter = format!(
        "topic==\"/tasks/oom\",namespace==\"{}\"",
        client.namespace()
    );
    let mut events = EventsClient::new(client.channel());
    // containerd answers a subscription no sooner than with its first event.
    let request = client.request(SubscribeRequest {
        filters: vec![filter],
    });
    let mut stream = match events.subscribe(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            tracing::warn!(error = %status.message(), "containerd is away");
            return;
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => tracing::debug!("containerd reports a container out of memory"),
            Ok(None) => return,
            Err(status) => {
                tracing::warn!(error = %status.message(), "containerd is away");
                return;
            }
        }
    }
}
