//! A manager that is told to go on alone (`--force-new-cluster`): before its log is opened, and once it leads.

use super::{NodeError, Site, identity_dir};
use crate::ca::{ExpiredCertificate, NodeIdentity};
use crate::config::ForceNewCluster;
use crate::manager::recovery::{self, Forced, Order};
use crate::manager::{Manager, bootstrap};

/// Makes this manager the only one of its cluster, before anything is started on its log.
pub(super) async fn force_new_cluster(
    site: &Site,
    identity: &NodeIdentity,
    (order, addresses): (ForceNewCluster, Vec<String>),
) -> Result<Forced, NodeError> {
    let (path, clock) = (site.state.path().to_owned(), site.clock.clone());
    let seal = site.seal.clone();
    let (node, cluster) = (identity.node_id(), identity.cluster_id());
    let forced = tokio::task::spawn_blocking(move || {
        let order = Order {
            state_dir: &path,
            node,
            cluster,
            addresses,
            ends: order.ends,
            seal: &seal,
            clock: &clock,
        };
        recovery::force_new_cluster(order, &mut || Ok(()))
    });
    let forced = forced
        .await
        .map_err(|e| NodeError::Refused(e.to_string()))??;
    // A member of consensus by its own log, and no joiner any more.
    site.state.end_join()?;
    match forced {
        Forced::Alone => {}
        Forced::Before { epoch } => {
            // An expired certificate was let through for the sake of a new one.
            identity_dir(site).load(site.clock.now(), ExpiredCertificate::Refuse)?;
            tracing::warn!(
                %epoch,
                "--force-new-cluster was carried out by an earlier start and is not again, because other managers have \
                 joined since; leave it out. To go on with this manager alone once more, start it once with \
                 --force-new-cluster={epoch}"
            );
        }
        Forced::Now { epoch, left } => tracing::warn!(
            %epoch,
            left_behind = left,
            "the cluster goes on with this manager alone, from all that its log holds; the other managers are fenced when \
             they are heard of: `swarmd leave --force` on them and join again, or `swarmctl node demote` and `promote` them"
        ),
    }
    Ok(forced)
}

/// Gives the only manager of a cluster a new certificate.
pub(super) async fn start_anew(
    site: &Site,
    manager: &Manager,
    old: &NodeIdentity,
) -> Result<NodeIdentity, NodeError> {
    let identity = bootstrap::reissue(manager.store(), &site.clock, old).await?;
    identity_dir(site).store(&identity)?;
    tracing::warn!(
        node.id = %identity.node_id(),
        "started the cluster anew with a new certificate; leave --force-new-cluster out from now on"
    );
    Ok(identity)
}
