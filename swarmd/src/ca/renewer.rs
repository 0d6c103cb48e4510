//! Keeps the node's certificate fresh while swarmd runs.
//!
//! Shell: one loop, run by who owns the node's tasks. It waits until [`renewal_time`], or until it is
//! woken because the managers want another certificate (a new role, a new root), renews through any
//! known manager, writes the result to disk and then swaps it in. The order matters: a certificate
//! that is in use is always the one a restart would find.

use std::sync::Arc;
use std::time::Duration;

use ring::rand::SecureRandom as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Role;
use super::client::{fetch_sealing, renew_anywhere, renewal_time};
use super::identity::NodeIdentity;
use super::keyfile::IdentityDir;
use super::roots;
use super::tls::SecurityConfig;
use crate::clock::Clock;

/// First pause after a failed renewal, and the factor of the following ones; SwarmKit's.
const BACKOFF_BASE: Duration = Duration::from_secs(5);
const BACKOFF_FACTOR: u32 = 5;
/// Longest pause; SwarmKit's.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// Renews the certificate of one node.
#[derive(Debug)]
pub struct Renewer {
    /// What is renewed, in place.
    pub security: SecurityConfig,
    /// Where it is kept.
    pub dir: IdentityDir,
    /// Managers to ask, host:port, as the node knows them now.
    pub managers: watch::Receiver<Vec<String>>,
    /// Roots to trust, as managers tell them; empty before they do.
    pub roots: watch::Receiver<String>,
    /// Wakes the loop to renew at once.
    pub renew_now: Arc<Notify>,
}

/// Whether this node trusts what the managers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// It does, or can't for a reason of its own disk.
    AsTold,
    /// Its certificate leads to none of these roots.
    Unfit,
}

impl Renewer {
    /// Renews until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let clock = self.security.clock().clone();
        let mut failures = 0_u32;
        loop {
            let identity = self.security.identity();
            let due = renewal_time(identity.not_before(), identity.not_after(), random());
            let retry = backoff(failures);
            let wait = async {
                if failures > 0 {
                    clock.sleep(retry).await;
                } else {
                    clock.sleep_until_wall(due).await;
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                // First, so that a new certificate meets them.
                Ok(()) = self.roots.changed() => {
                    if let Trust::Unfit = self.change_roots(&identity).await {
                        self.renew_now.notify_one();
                    }
                    continue;
                }
                () = self.renew_now.notified() => {}
                () = wait => {}
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                result = self.renew_once(&identity) => match result {
                    Ok(renewed) => {
                        failures = 0;
                        tracing::info!(role = %renewed.role(), not_after = %super::root::format_time(renewed.not_after()), "renewed the node certificate");
                        self.change_roots(&renewed).await;
                    }
                    Err(error) => {
                        failures = failures.saturating_add(1);
                        tracing::warn!(%error, retry_after = ?backoff(failures), "can't renew the node certificate");
                    }
                },
            }
        }
    }

    /// Trusts what the managers say from now on. Not where the certificate in use leads to none of it: nobody would
    /// take this node for one of the cluster then.
    async fn change_roots(&mut self, identity: &NodeIdentity) -> Trust {
        let told = self.roots.borrow_and_update().clone();
        if told.is_empty() || told == identity.root_pem() {
            return Trust::AsTold;
        }
        let changed = match identity.with_roots(&told) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(%error, "the cluster's root certificate is another one, and this node's certificate does not fit it; it is renewed");
                return Trust::Unfit;
            }
        };
        let (dir, before, after) = (self.dir.clone(), identity.clone(), changed.clone());
        let stored =
            tokio::task::spawn_blocking(move || dir.change_roots(&before, after.root_pem())).await;
        let stored = stored
            .map_err(|e| e.to_string())
            .and_then(|s| s.map_err(|e| e.to_string()));
        let used = stored.and_then(|()| self.security.update(changed).map_err(|e| e.to_string()));
        match used {
            Ok(()) => tracing::info!(
                roots = roots::digests(&told).len(),
                "the cluster's root certificate changes"
            ),
            Err(error) => {
                tracing::error!(%error, "can't trust the cluster's new root certificate")
            }
        }
        Trust::AsTold
    }

    async fn renew_once(&self, identity: &NodeIdentity) -> Result<NodeIdentity, String> {
        let addrs = self.managers.borrow().clone();
        let renewed = renew_anywhere(&self.security, &addrs).await;
        let renewed = renewed.map_err(|e| e.to_string())?;
        keep(
            &self.dir,
            (identity, &renewed),
            &addrs,
            self.security.clock(),
        )
        .await?;
        self.security
            .update(renewed.clone())
            .map_err(|e| e.to_string())?;
        Ok(renewed)
    }
}

/// Writes a new certificate in place of an old one.
pub(crate) async fn keep(
    dir: &IdentityDir,
    (old, new): (&NodeIdentity, &NodeIdentity),
    addrs: &[String],
    clock: &Clock,
) -> Result<(), String> {
    if (old.role(), new.role()) == (Role::Worker, Role::Manager) {
        // A manager's key is sealed from the first time that it is written.
        let sealing = fetch_sealing(new, addrs, clock).await;
        dir.seal()
            .adopt(&sealing.map_err(|error| error.to_string())?);
    }
    let (dir, new) = (dir.clone(), new.clone());
    tokio::task::spawn_blocking(move || dir.store(&new))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())
}

/// Pause after this many failures in a row.
fn backoff(failures: u32) -> Duration {
    let factor = BACKOFF_FACTOR.saturating_pow(failures.saturating_sub(1));
    BACKOFF_BASE.saturating_mul(factor).min(BACKOFF_MAX)
}

/// Without randomness the middle of the window is as good.
fn random() -> u64 {
    let mut bytes = [0_u8; 8];
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => u64::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_an_hour() {
        let seconds: Vec<u64> = (1..8).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [5, 25, 125, 625, 3125, 3600, 3600]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
