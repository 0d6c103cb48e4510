//! Who signs node certificates now: the cluster's own key, or external CAs.
//!
//! Pure. While the root changes, the next one signs already. External CAs go before a key of our
//! own, as in SwarmKit: an operator who names one wants it to see every certificate.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use swarm_proto::pb;

use super::store::Cluster;

/// What signs, and what goes with it.
#[derive(Debug)]
pub(super) struct Authority<'a> {
    /// The root certificate, in PEM.
    pub(super) cert: &'a [u8],
    /// Its key, in PEM; empty where the managers have none.
    pub(super) key: &'a [u8],
    /// While the root changes.
    pub(super) turn: Option<Turn<'a>>,
    /// External CAs that sign under it, in the order they are asked in.
    pub(super) external: Vec<&'a pb::ExternalCa>,
}

/// A change of root that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn<'a> {
    /// The root of before, in PEM.
    pub(super) from: &'a [u8],
    /// The next root, signed by the one before.
    pub(super) cross: &'a [u8],
}

impl<'a> Authority<'a> {
    /// That of a cluster.
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let root = &cluster.root_ca;
        let (cert, key, turn) = match &root.root_rotation {
            Some(next) => {
                let turn = Turn {
                    from: &root.ca_cert,
                    cross: &next.cross_signed_ca_cert,
                };
                (&next.ca_cert, &next.ca_key, Some(turn))
            }
            None => (&root.ca_cert, &root.ca_key, None),
        };
        Self {
            cert,
            key,
            turn,
            external: external_for(cluster, cert),
        }
    }

    /// That of a cluster whose own key has to do, because nobody else can be asked; none where the managers have none.
    pub(super) fn with_key(cluster: &'a Cluster) -> Option<Self> {
        let now = Self::of(cluster);
        if !now.key.is_empty() {
            return Some(now);
        }
        // While the root changes to an external one, every node still trusts the present one.
        let root = &cluster.root_ca;
        (!root.ca_key.is_empty()).then(|| Self {
            cert: &root.ca_cert,
            key: &root.ca_key,
            turn: None,
            external: Vec::new(),
        })
    }

    /// Whether the managers sign, and so decide how long certificates last.
    pub(super) fn is_own(&self) -> bool {
        self.external.is_empty() && !self.key.is_empty()
    }
}

/// The external CAs of a cluster that sign under a root. One that names no root signs under the present one.
pub(super) fn external_for<'a>(cluster: &'a Cluster, root: &[u8]) -> Vec<&'a pb::ExternalCa> {
    let config = cluster.spec.ca_config.as_ref();
    let given = config.map_or(&[][..], |config| &config.external_cas);
    if given.is_empty() {
        return Vec::new();
    }
    let der = |pem: &[u8]| CertificateDer::from_pem_slice(pem).ok();
    let Some(root) = der(root) else {
        return Vec::new();
    };
    let present = &cluster.root_ca.ca_cert;
    let signs = |external: &&pb::ExternalCa| {
        let said = match external.ca_cert.is_empty() {
            true => present,
            false => &external.ca_cert,
        };
        der(said).as_ref() == Some(&root)
    };
    given.iter().filter(signs).collect()
}

/// Writes the present root where none is named: what is named stays right when the root changes.
pub(super) fn name_roots(external: &mut [pb::ExternalCa], present: &[u8]) {
    for external in external {
        if external.ca_cert.is_empty() {
            external.ca_cert = present.to_vec();
        }
    }
}

#[cfg(test)]
mod tests;
