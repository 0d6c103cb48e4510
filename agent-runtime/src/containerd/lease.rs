//! Leases: what is put into containerd under a lease stays until the lease is gone, even if
//! nothing refers to it yet.
//!
//! A lease ends with its owner, however that ends: a pull that fails or that nobody waits for any
//! more leaves nothing that containerd would keep. What swarmd itself leaves when it is killed,
//! the next one drops.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource,
};

use tokio::task::JoinSet;

use super::client::{CALL_MAX, Client, Failure, or_absent, or_present};

/// Gives out the leases of one namespace.
#[derive(Debug)]
pub(super) struct Leases {
    client: Client,
    /// Each lease has a name of its own: the end of one must not take what another keeps.
    taken: AtomicU64,
    /// Leases that are being dropped for owners that were given up.
    ending: Arc<Mutex<JoinSet<()>>>,
}

/// A lease that ends when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    client: Client,
    id: String,
    ending: Arc<Mutex<JoinSet<()>>>,
    ended: bool,
}

impl Leases {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            taken: AtomicU64::new(0),
            ending: Arc::default(),
        }
    }

    /// Makes a lease.
    pub(super) async fn take(&self) -> Result<Lease, Failure> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        // First, so that a call whose answer is not awaited leaves nothing either.
        let lease = Lease {
            client: self.client.clone(),
            id: format!("swarm-pull-{number}"),
            ending: Arc::clone(&self.ending),
            ended: false,
        };
        create(&lease.client, &lease.id).await?;
        Ok(lease)
    }
}

impl Lease {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Keeps a blob that is there, and what its labels refer to.
    pub(super) async fn keep(&self, digest: &str) -> Result<(), Failure> {
        let request = self.client.request(AddResourceRequest {
            id: self.id.clone(),
            resource: Some(Resource {
                id: digest.to_owned(),
                r#type: "content".to_owned(),
            }),
        });
        let mut rpc = LeasesClient::new(self.client.channel());
        self.client
            .call("add to lease", CALL_MAX, rpc.add_resource(request))
            .await?;
        Ok(())
    }

    /// Ends it; what it alone kept is collected later.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        delete(&self.client, &self.id).await?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Without a runtime this process is about to end, and the next one drops all leases.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.ended {
            return;
        }
        let (client, id) = (self.client.clone(), std::mem::take(&mut self.id));
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        while ending.try_join_next().is_some() {}
        let end = async move {
            if let Err(failure) = delete(&client, &id).await {
                tracing::debug!(lease = id, ?failure, "lease stays until the next start");
            }
        };
        ending.spawn_on(end, &runtime);
    }
}

/// Makes a lease, or takes the one of that name over from an earlier swarmd.
async fn create(client: &Client, id: &str) -> Result<(), Failure> {
    let request = client.request(CreateRequest {
        id: id.to_owned(),
        labels: HashMap::new(),
    });
    let mut rpc = LeasesClient::new(client.channel());
    or_present(
        client
            .call("create lease", CALL_MAX, rpc.create(request))
            .await,
    )?;
    Ok(())
}

/// Drops a lease; what it alone kept is collected later.
async fn delete(client: &Client, id: &str) -> Result<(), Failure> {
    let request = client.request(DeleteRequest {
        id: id.to_owned(),
        sync: false,
    });
    let mut rpc = LeasesClient::new(client.channel());
    or_absent(
        client
            .call("delete lease", CALL_MAX, rpc.delete(request))
            .await,
    )?;
    Ok(())
}

/// Drops every lease of the namespace: pulls that an earlier swarmd did not finish.
pub(super) async fn delete_all(client: &Client) -> Result<(), Failure> {
    let mut rpc = LeasesClient::new(client.channel());
    let request = client.request(ListRequest {
        filters: Vec::new(),
    });
    let leases = client
        .call("list leases", CALL_MAX, rpc.list(request))
        .await?
        .leases;
    for lease in leases {
        delete(client, &lease.id).await?;
    }
    Ok(())
}
