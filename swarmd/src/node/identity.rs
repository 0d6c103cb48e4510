//! Who a node is when it starts: by its certificate, by a new one in place of one that has expired, or by joining.

use std::collections::BTreeSet;

use swarm_proto::id::NodeId;

use super::{Known, NodeError, first_availability};
use crate::agent::known_managers;
use crate::ca::root::format_time;
use crate::ca::{
    ExpiredCertificate, IdentityDir, JoinRequest, NodeIdentity, Role, fetch_sealing, join, keep,
    renew_expired,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::host;
use crate::manager::random_id;
use crate::seal::Seal;
use crate::state_dir::StateDir;

/// The identity on disk, or the one that joining gives; none yet where this node founds a cluster.
pub(super) async fn start_identity(
    config: &Config,
    (state, seal): (&StateDir, &Seal),
    clock: &Clock,
) -> Result<Known, NodeError> {
    let dir = IdentityDir::sealed(state.path(), seal.clone());
    if let Some(mut identity) = known_identity(config, &dir, clock)? {
        if identity.check_time(clock.now()).is_err() && config.force_new_cluster.is_none() {
            identity = renew_with_key((config, state), &dir, identity, clock).await?;
        }
        state.end_bootstrap()?;
        return Ok(Known::Identity(identity));
    }
    let availability = first_availability(config).await;
    if let Some(join_to) = &config.join {
        let request = JoinRequest {
            addrs: join_to.addrs.clone(),
            token: join_to.token.clone(),
            availability,
        };
        let identity = join(&request, clock).await?;
        state.remember_manager(join_to.first())?;
        if identity.role() == Role::Manager {
            // Its first secret is kept as the others keep theirs.
            let sealing = fetch_sealing(&identity, &join_to.addrs, clock).await;
            seal.adopt(&sealing.map_err(crate::ca::JoinError::from)?);
            state.begin_join(join_to.first())?;
        }
        if config.autolock {
            tracing::warn!(
                "--autolock counts only where a cluster is founded; this one's setting stays as it is"
            );
        }
        if !config.external_cas.is_empty() {
            tracing::warn!(
                "--external-ca counts only where a cluster is founded; `swarmctl cluster update --external-ca` changes this one's"
            );
        }
        dir.store(&identity)?;
        return Ok(Known::Identity(identity));
    }
    if !config.join_addrs.is_empty() {
        return Err(NodeError::Refused(
            "--join-addr: this node has no certificate yet and needs --join-token; get one on a \
             manager with `swarmctl cluster join-token worker`"
                .to_owned(),
        ));
    }
    if state.has_raft() && !state.in_bootstrap() {
        return Err(NodeError::Refused(format!(
            "state dir {} has a cluster's log and no certificate: restore its certificates \
             directory, or start over with an empty --state-dir",
            state.path().display()
        )));
    }
    if !config.external_cas.is_empty() && !state.in_bootstrap() && dir.load_root()?.is_some() {
        return Err(NodeError::Refused(format!(
            "--external-ca: state dir {} has a root certificate without a node's, and a cluster is founded with a root of its \
             own; remove {}, and then change to that root with `swarmctl cluster ca --rotate --ca-cert FILE --external-ca …`",
            state.path().display(),
            dir.path().display()
        )));
    }
    Ok(Known::Founder {
        node_id: NodeId::from_raw(random_id()),
        availability,
    })
}

/// A certificate whose time was over while the node was off is renewed with its key, where managers still know the node.
async fn renew_with_key(
    (config, state): (&Config, &StateDir),
    dir: &IdentityDir,
    old: NodeIdentity,
    clock: &Clock,
) -> Result<NodeIdentity, NodeError> {
    // Says when it expired, and every way out.
    let Err(expired) = dir.load(clock.now(), ExpiredCertificate::Refuse) else {
        return Ok(old);
    };
    let (path, node, now) = (
        state.path().to_owned(),
        old.node_id().to_string(),
        clock.now(),
    );
    let known = tokio::task::spawn_blocking(move || known_managers(&path, &node, now)).await;
    let told = config.join_addrs.iter().cloned();
    let told = told.chain(state.remembered_manager()?);
    let own = host::advertised(config);
    let addrs = told.chain(known.unwrap_or_default());
    let mut seen = BTreeSet::from_iter(own);
    let addrs: Vec<String> = addrs.filter(|addr| seen.insert(addr.clone())).collect();
    if !addrs.is_empty() {
        tracing::warn!(node.id = %old.node_id(), not_after = %format_time(old.not_after()), "this node's certificate has expired; asking managers for a new one");
    }
    let given_up = |reason: &dyn std::fmt::Display| {
        NodeError::Refused(format!("{expired}; no manager renewed it: {reason}"))
    };
    let renewed = renew_expired(&old, &addrs, clock).await;
    let renewed = renewed.map_err(|error| given_up(&error))?;
    let kept = keep(dir, (&old, &renewed), &addrs, clock).await;
    kept.map_err(|error| given_up(&error))?;
    tracing::info!(not_after = %format_time(renewed.not_after()), "the certificate that had expired is renewed");
    Ok(renewed)
}

/// The identity on disk. Expired, it is good for getting another one only.
fn known_identity(
    config: &Config,
    dir: &IdentityDir,
    clock: &Clock,
) -> Result<Option<NodeIdentity>, NodeError> {
    if config.force_new_cluster.is_some() {
        let known = dir.load(clock.now(), ExpiredCertificate::Allow)?;
        if known.as_ref().is_some_and(|i| i.role() == Role::Worker) {
            return Err(NodeError::Refused(
                "--force-new-cluster: this node is a worker and has no cluster to start anew; leave the flag out"
                    .to_owned(),
            ));
        }
        if known.is_none() {
            return Err(NodeError::Refused(format!(
                "--force-new-cluster: state dir {} holds no cluster to start anew; name the one that does with \
                 --state-dir, or leave the flag out to found a cluster",
                config.state_dir.display()
            )));
        }
        return Ok(known);
    }
    let known = dir.load(clock.now(), ExpiredCertificate::Allow)?;
    // The roots of one that has expired may be of long ago; whether it counts, managers say.
    if let (Some(identity), Some(join)) = (&known, &config.join)
        && identity.check_time(clock.now()).is_ok()
        && !dir.has_had_root(identity, join.token.digest())?
    {
        return Err(NodeError::Refused(format!(
            "--join-token: this node is in cluster {}, and the token is another cluster's; leave the join flags out \
             to go on in it, or run `swarmd leave` first, or choose another --state-dir",
            identity.cluster_id()
        )));
    }
    Ok(known)
}
