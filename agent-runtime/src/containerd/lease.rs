//! Leases: what is put into containerd under a lease stays until the lease is gone, even if
//! nothing refers to it yet.

use std::collections::HashMap;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest, ListRequest};

use super::client::{CALL_MAX, Client, Failure, or_absent, or_present};

/// Makes a lease, or takes the one of that name over from an earlier swarmd.
pub(super) async fn create(client: &Client, id: &str) -> Result<(), Failure> {
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
pub(super) async fn delete(client: &Client, id: &str) -> Result<(), Failure> {
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
