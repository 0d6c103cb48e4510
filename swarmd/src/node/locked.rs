//! A manager whose secrets are sealed: it waits for the unlock key, and until then serves its control socket alone.
//!
//! Who may open the socket may try keys: there are 2^256 of them. Everything but unlocking, this node's status and its
//! health (which is bad) is answered with the way out. Containers go on meanwhile.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use swarm_proto::pb::health_check_response::ServingStatus;
use swarm_proto::pb::health_server::{Health, HealthServer};
use swarm_proto::{own, pb};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::NodeError;
use crate::ca::{
    ControlSocket, ExpiredCertificate, IdentityDir, Role, StateFileError, UnlockKey, UnlockKeyError,
};
use crate::clock::Clock;
use crate::manager::backup;
use crate::manager::raft::{self, StorageError};
use crate::manager::server;
use crate::seal::Seal;
use crate::service_manager;
use own::operator_server::{Operator, OperatorServer};

/// Time for answers that are under way when the key has come.
const ANSWERS_STOP: Duration = Duration::from_millis(500);
/// What everybody is told who asks for something else.
const LOCKED: &str = "this manager is locked, because its cluster has autolock on; run `swarmctl cluster unlock` on this \
                      host (`swarmctl cluster unlock-key` on an unlocked manager shows the key)";

/// Why a key does not unlock.
#[derive(Debug, thiserror::Error)]
enum UnlockError {
    /// It is none.
    #[error(transparent)]
    NotAKey(#[from] UnlockKeyError),
    /// It is another one.
    #[error(
        "this key does not unlock this manager: {0}; it may be mistyped, another cluster's, or older or newer than the one \
         this manager was last sealed with: one that was down while the key was rotated is unlocked by the key from before"
    )]
    OtherKey(String),
    /// The key is right, and the rest is not.
    #[error("{0}")]
    Broken(String),
}

impl From<UnlockError> for Status {
    fn from(error: UnlockError) -> Self {
        match error {
            UnlockError::NotAKey(_) => Self::invalid_argument(error.to_string()),
            UnlockError::OtherKey(_) => Self::failed_precondition(error.to_string()),
            UnlockError::Broken(_) => Self::data_loss(error.to_string()),
        }
    }
}

/// The secrets of a state directory, and what may open them.
#[derive(Clone, Debug)]
pub(super) struct Lock {
    pub(super) state_dir: PathBuf,
    pub(super) hostname: String,
    pub(super) seal: Seal,
    pub(super) clock: Clock,
}

impl Lock {
    /// Returns once the secrets are open: at once where they are not sealed, and false where the process is to end
    /// before.
    ///
    /// # Errors
    /// When the control socket can't be served.
    pub(super) async fn opened(
        &self,
        given: Option<&UnlockKey>,
        socket: &mut ControlSocket,
        cancel: &CancellationToken,
    ) -> Result<bool, NodeError> {
        if !self.is_locked().await? {
            return Ok(true);
        }
        if let Some(key) = given {
            match self.try_key(key.clone()).await {
                Ok(()) => return Ok(true),
                Err(error) => tracing::error!(%error, "--unlock-key: this manager stays locked"),
            }
        }
        tracing::warn!(
            socket = %socket.path().display(),
            "this manager is locked and waits for its unlock key; run `swarmctl cluster unlock` on this host"
        );
        service_manager::status("locked; waits for `swarmctl cluster unlock`");
        self.wait(socket, cancel).await
    }

    async fn is_locked(&self) -> Result<bool, NodeError> {
        let lock = self.clone();
        let looked = tokio::task::spawn_blocking(move || lock.check(&lock.seal)).await;
        match looked.map_err(|error| NodeError::Refused(error.to_string()))? {
            Ok(()) => Ok(false),
            Err(Sealed::Locked | Sealed::OtherKey(_)) => Ok(true),
            // Said in more detail where the files are opened to be used.
            Err(Sealed::Broken(_)) => Ok(false),
        }
    }

    async fn try_key(&self, key: UnlockKey) -> Result<(), UnlockError> {
        let lock = self.clone();
        let tried = tokio::task::spawn_blocking(move || {
            // On trial: somebody else may be giving the right one just now.
            let trial = Seal::default();
            trial.unlock(key);
            lock.check(&trial)?;
            lock.seal.take_over(&trial);
            Ok(())
        });
        match tried.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Sealed::Locked)) => Err(UnlockError::Broken(LOCKED.to_owned())),
            Ok(Err(Sealed::OtherKey(reason))) => Err(UnlockError::OtherKey(reason)),
            Ok(Err(Sealed::Broken(reason))) => Err(UnlockError::Broken(reason)),
            Err(ended) => Err(UnlockError::Broken(ended.to_string())),
        }
    }

    /// Whether everything that is sealed opens. Blocks on the disk.
    fn check(&self, seal: &Seal) -> Result<(), Sealed> {
        let dir = IdentityDir::sealed(&self.state_dir, seal.clone());
        match dir.load(self.clock.now(), ExpiredCertificate::Allow) {
            Ok(Some(identity)) if identity.role() == Role::Manager => {
                raft::check_key(&self.state_dir, seal).map_err(Sealed::from)
            }
            // A node without a certificate has no secret, and a worker none that is sealed.
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait(
        &self,
        socket: &mut ControlSocket,
        cancel: &CancellationToken,
    ) -> Result<bool, NodeError> {
        let opened = CancellationToken::new();
        let node = LockedNode {
            lock: self.clone(),
            opened: opened.clone(),
        };
        let serving = server::builder()
            .add_routes(routes(node))
            .serve_with_incoming_shutdown(socket, opened.clone().cancelled_owned());
        let late = async {
            opened.cancelled().await;
            self.clock.sleep(ANSWERS_STOP).await;
        };
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(false),
            ended = serving => ended.map_err(|error| error.to_string()),
            // Whoever holds a connection open does not hold up the manager.
            () = late => Ok(()),
        };
        if opened.is_cancelled() {
            tracing::info!("this manager is unlocked");
            return Ok(true);
        }
        let reason = ended.err().unwrap_or_default();
        Err(NodeError::Refused(format!(
            "the control socket of a locked manager failed: {reason}"
        )))
    }
}

/// What keeps the secrets from being read.
#[derive(Debug)]
enum Sealed {
    Locked,
    OtherKey(String),
    Broken(String),
}

impl From<StateFileError> for Sealed {
    fn from(error: StateFileError) -> Self {
        match error {
            StateFileError::Locked { .. } => Self::Locked,
            StateFileError::OtherKey { path, reason } => {
                Self::OtherKey(format!("{}: {reason}", path.display()))
            }
            StateFileError::Missing { .. }
            | StateFileError::Content { .. }
            | StateFileError::Subject { .. }
            | StateFileError::KeyMismatch { .. }
            | StateFileError::ForeignRoot { .. }
            | StateFileError::Expired { .. }
            | StateFileError::NotYetValid { .. }
            | StateFileError::Read { .. }
            | StateFileError::Write { .. } => Self::Broken(error.to_string()),
        }
    }
}

impl From<StorageError> for Sealed {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Locked { .. } => Self::Locked,
            StorageError::OtherKey { key, reason } => {
                Self::OtherKey(format!("{}: {reason}", key.display()))
            }
            StorageError::Io { .. }
            | StorageError::InUse { .. }
            | StorageError::Damaged { .. }
            | StorageError::Missing { .. }
            | StorageError::WrongKey { .. }
            | StorageError::Format { .. }
            | StorageError::Poisoned { .. }
            | StorageError::Closed { .. } => Self::Broken(error.to_string()),
        }
    }
}

/// What a locked manager serves.
#[derive(Clone, Debug)]
struct LockedNode {
    lock: Lock,
    /// The key has come.
    opened: CancellationToken,
}

fn refusal() -> Status {
    Status::failed_precondition(LOCKED)
}

fn routes(node: LockedNode) -> Routes {
    let rest = tower::service_fn(|_: http::Request<_>| async {
        Ok::<_, Infallible>(refusal().into_http::<Body>())
    });
    let own = OperatorServer::new(node.clone()).max_decoding_message_size(server::MESSAGE_MAX);
    let health = HealthServer::new(node).max_decoding_message_size(server::MESSAGE_MAX);
    let routes = Routes::new(own).add_service(health);
    routes.into_axum_router().fallback_service(rest).into()
}

#[tonic::async_trait]
impl Operator for LockedNode {
    type BackupStream = backup::Pieces;

    async fn backup(
        &self,
        _: Request<own::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(refusal())
    }

    async fn consensus(
        &self,
        _: Request<own::ConsensusRequest>,
    ) -> Result<Response<own::ConsensusView>, Status> {
        Err(refusal())
    }

    async fn explain_task(
        &self,
        _: Request<own::ExplainTaskRequest>,
    ) -> Result<Response<own::ExplainTaskResponse>, Status> {
        Err(refusal())
    }

    async fn local_status(
        &self,
        _: Request<own::LocalStatusRequest>,
    ) -> Result<Response<own::LocalStatusResponse>, Status> {
        let dir = IdentityDir::new(&self.lock.state_dir);
        let peer = tokio::task::spawn_blocking(move || dir.certified()).await;
        let peer = peer.ok().flatten();
        Ok(Response::new(own::LocalStatusResponse {
            node_id: peer
                .as_ref()
                .map(|p| p.node_id.to_string())
                .unwrap_or_default(),
            cluster_id: peer.map(|p| p.cluster_id.to_string()).unwrap_or_default(),
            hostname: self.lock.hostname.clone(),
            role: Role::Manager.word().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            locked: true,
            ..Default::default()
        }))
    }

    async fn leave(
        &self,
        _: Request<own::LeaveRequest>,
    ) -> Result<Response<own::LeaveResponse>, Status> {
        Err(refusal())
    }

    async fn unlock(
        &self,
        request: Request<own::UnlockRequest>,
    ) -> Result<Response<own::UnlockResponse>, Status> {
        if self.opened.is_cancelled() {
            return Ok(Response::new(own::UnlockResponse {}));
        }
        let text = zeroize::Zeroizing::new(request.into_inner().unlock_key);
        let key = text.parse::<UnlockKey>().map_err(UnlockError::from)?;
        if let Err(error) = self.lock.try_key(key).await {
            tracing::warn!(%error, "a key was given that does not unlock this manager");
            return Err(error.into());
        }
        self.opened.cancel();
        Ok(Response::new(own::UnlockResponse {}))
    }
}

#[tonic::async_trait]
impl Health for LockedNode {
    async fn check(
        &self,
        _: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        Ok(Response::new(pb::HealthCheckResponse {
            status: ServingStatus::NotServing.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;
    use crate::ca::testing::TestCa;
    use crate::manager::authorize::TABLE;

    fn key(number: u8) -> UnlockKey {
        UnlockKey::from_bytes(&[number; 32]).unwrap()
    }

    fn lock(dir: &Path) -> Lock {
        Lock {
            state_dir: dir.to_owned(),
            hostname: "n1".to_owned(),
            seal: Seal::default(),
            clock: Clock::real(),
        }
    }

    /// A manager that was sealed with key 1.
    fn sealed(dir: &Path) {
        let identity = TestCa::new(1).identity(5, Role::Manager);
        let dir = IdentityDir::sealed(dir, Seal::unlocked(key(1)));
        dir.store(&identity).unwrap();
    }

    #[tokio::test]
    async fn every_rpc_but_three_names_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        sealed(dir.path());
        let node = LockedNode {
            lock: lock(dir.path()),
            opened: CancellationToken::new(),
        };
        let routes = routes(node);
        let rpcs = TABLE
            .iter()
            .flat_map(|(service, methods)| methods.iter().map(move |(rpc, _)| (*service, *rpc)));
        for (service, rpc) in rpcs {
            let request = http::Request::post(format!("http://swarmd.invalid/{service}/{rpc}"))
                .header("content-type", "application/grpc")
                // One empty message.
                .body("\0".repeat(5))
                .unwrap();
            let answer = routes.clone().oneshot(request).await.unwrap();
            let status = Status::from_header_map(answer.headers());
            match rpc {
                "LocalStatus" | "Check" => assert!(status.is_none(), "{rpc}: {status:?}"),
                // An empty text is no key.
                "Unlock" => assert_eq!(status.unwrap().code(), Code::InvalidArgument),
                _ => {
                    let status = status.unwrap();
                    assert_eq!(status.code(), Code::FailedPrecondition, "{service}/{rpc}");
                    assert!(
                        status.message().contains("swarmctl cluster unlock"),
                        "{rpc}"
                    );
                }
            }
        }
    }

    #[tokio::test]
    async fn keys_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            !lock(dir.path()).is_locked().await.unwrap(),
            "nothing there"
        );
        sealed(dir.path());
        let locked = lock(dir.path());
        assert!(locked.is_locked().await.unwrap());
        let other = locked.try_key(key(2)).await.unwrap_err();
        assert!(matches!(other, UnlockError::OtherKey(_)), "{other}");
        let text = other.to_string();
        assert!(
            text.contains("mistyped") && text.contains("key id"),
            "{text}"
        );
        assert!(
            locked.is_locked().await.unwrap(),
            "a wrong key changes nothing"
        );
        locked.try_key(key(1)).await.unwrap();
        // One that comes late takes nothing away.
        locked.try_key(key(2)).await.unwrap_err();
        assert!(!locked.is_locked().await.unwrap());

        // The right key, and a file that was changed where nobody can have.
        let path = dir.path().join("certificates/swarm-node.key");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let broken = lock(dir.path()).try_key(key(1)).await.unwrap_err();
        assert!(matches!(broken, UnlockError::Broken(_)), "{broken}");
    }
}
