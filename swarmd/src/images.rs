//! Images on this node's behalf: `Images` for its operator, over what its executor keeps; and for a
//! manager, the question what a tag means.

use std::pin::Pin;
use std::sync::Arc;

use agent_runtime::image::{ImageStore, LocalImage, PullState};
use agent_runtime::registry::{Patience, Progress, Registries};
use agent_runtime::{Error, Executor};
use bytes::Bytes;
use futures::Stream;
use futures::stream::StreamExt as _;
use swarm_proto::own;
use swarm_proto::own::images_server::{Images, ImagesServer};
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::Credentials;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::manager::controlapi::ImageResolver;
use crate::manager::server::MESSAGE_MAX;

/// Asks registries with this node's settings and its way to them.
#[derive(Debug)]
pub(crate) struct RegistryResolver(pub(crate) Registries);

#[tonic::async_trait]
impl ImageResolver for RegistryResolver {
    async fn digest(&self, image: &Reference, registry_auth: &str) -> Result<String, String> {
        let credentials = Credentials::decode(registry_auth)
            .map_err(|error| format!("the registry credentials can't be read: {error}"))?;
        // The operator waits: the nodes have more patience.
        let told = (Patience::Once, Arc::<Progress>::default());
        let opened = self.0.open(image, &credentials, told).await;
        let (_, fetched) = opened.map_err(|error| error.to_string())?;
        Ok(fetched.digest)
    }
}

/// Serves `Images`.
#[derive(Debug, Clone)]
pub struct LocalImages {
    executor: Arc<dyn Executor>,
}

impl LocalImages {
    /// The images that an executor keeps.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor }
    }

    /// The service.
    #[must_use]
    pub fn into_server(self) -> ImagesServer<Self> {
        ImagesServer::new(self).max_decoding_message_size(MESSAGE_MAX)
    }

    async fn store(&self) -> Result<Arc<dyn ImageStore>, Status> {
        self.executor.images().await.map_err(status)
    }
}

fn status(error: Error) -> Status {
    match error {
        Error::Fatal(reason) => Status::failed_precondition(reason),
        Error::Temporary(_) | Error::Unavailable { .. } => Status::unavailable(error.to_string()),
    }
}

fn to_wire(image: LocalImage) -> own::LocalImage {
    own::LocalImage {
        name: image.name,
        digest: image.digest,
        size: image.size,
        created: image.created,
        used_seconds: image.used_s,
        task_ids: image.tasks,
    }
}

fn progress(state: &PullState) -> own::PullImageResponse {
    own::PullImageResponse {
        done: state.done,
        total: state.total,
        text: state.text.clone(),
        image: None,
    }
}

type Progresses = Pin<Box<dyn Stream<Item = Result<own::PullImageResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Images for LocalImages {
    async fn list_images(
        &self,
        _: Request<own::ListImagesRequest>,
    ) -> Result<Response<own::ListImagesResponse>, Status> {
        let images = self.store().await?.list().await.map_err(status)?;
        let images = images.into_iter().map(to_wire).collect();
        Ok(Response::new(own::ListImagesResponse { images }))
    }

    type PullImageStream = Progresses;

    async fn pull_image(
        &self,
        request: Request<own::PullImageRequest>,
    ) -> Result<Response<Progresses>, Status> {
        let request = request.into_inner();
        let credentials = Credentials::decode(&request.registry_auth).map_err(|error| {
            Status::invalid_argument(format!("registry_auth: can't be read: {error}"))
        })?;
        let store = self.store().await?;
        let (told, heard) = watch::channel(PullState::default());
        // Who no longer reads the answer no longer waits for the pull.
        let pull = async move { store.pull(&request.name, credentials, told).await };
        Ok(Response::new(follow(pull, heard).boxed()))
    }

    async fn import_images(
        &self,
        request: Request<Streaming<own::ImportImagesRequest>>,
    ) -> Result<Response<own::ImportImagesResponse>, Status> {
        let mut stream = request.into_inner();
        let store = self.store().await?;
        let first = stream.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("nothing was sent"))?;
        let name = Some(first.name).filter(|name| !name.is_empty());
        let rest = stream.map(|piece| match piece {
            Ok(piece) => Ok(piece.data),
            Err(status) => Err(Error::Fatal(format!(
                "archive: the sender broke off: {}",
                status.message()
            ))),
        });
        let first: Result<Bytes, Error> = Ok(first.data);
        let pieces = futures::stream::once(async move { first }).chain(rest);
        let imported = store.import(pieces.boxed(), name.as_deref()).await;
        let images = imported.map_err(status)?.into_iter().map(to_wire).collect();
        Ok(Response::new(own::ImportImagesResponse { images }))
    }

    async fn remove_image(
        &self,
        request: Request<own::RemoveImageRequest>,
    ) -> Result<Response<own::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        let store = self.store().await?;
        let removed = store.remove(&request.name, request.force).await;
        removed.map_err(status)?;
        Ok(Response::new(own::RemoveImageResponse {}))
    }
}

/// Progress until the pull has ended, and then what came of it.
fn follow(
    pull: impl Future<Output = Result<LocalImage, Error>> + Send + 'static,
    heard: watch::Receiver<PullState>,
) -> impl Stream<Item = Result<own::PullImageResponse, Status>> + Send {
    let state = Some((Box::pin(pull), heard));
    futures::stream::unfold(state, |state| async {
        let (mut pull, mut heard) = state?;
        tokio::select! {
            biased;
            result = &mut pull => {
                let last = result.map_err(status).map(|image| own::PullImageResponse {
                    image: Some(to_wire(image)),
                    ..progress(&heard.borrow())
                });
                Some((last, None))
            }
            Ok(()) = heard.changed() => {
                let now = progress(&heard.borrow_and_update());
                Some((Ok(now), Some((pull, heard))))
            }
        }
    })
}
