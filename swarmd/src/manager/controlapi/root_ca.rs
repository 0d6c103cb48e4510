//! What an operator's CA settings mean for the root: leave it, change it, or take a change back.
//!
//! The change begins here, with all that needs randomness: the next root, its certificate signed by
//! the present one, and the join tokens that count afterwards. From then on the pass carries it out
//! (`manager::renewal`).

use swarm_proto::pb;
use swarm_proto::time::Timestamp;

use super::error::Error;
use crate::ca::root::{RootCa, RootDigest};
use crate::ca::roots::{self, UnfitRoot};
use crate::ca::token::JoinToken;
use crate::manager::store::Cluster;

/// Brings the cluster's root in line with its spec, which has just been set. What the spec names a
/// root by is not kept in it: the key is a secret, and the root has both.
pub(super) fn decide(cluster: &mut Cluster, now: Timestamp) -> Result<(), Error> {
    let Some(config) = &mut cluster.spec.ca_config else {
        return Ok(());
    };
    let cert = std::mem::take(&mut config.signing_ca_cert);
    let key = std::mem::take(&mut config.signing_ca_key);
    let forced = config.force_rotate;
    match (cert.is_empty(), key.is_empty()) {
        (true, true) if forced == cluster.root_ca.last_forced_rotation => return Ok(()),
        (true, true) => begin(cluster, &RootCa::generate(now).map_err(failed)?, now)?,
        (true, false) => {
            return Err(Error::InvalidArgument(
                "ca_config.signing_ca_key: it has no certificate; give signing_ca_cert too"
                    .to_owned(),
            ));
        }
        (false, has_no_key) => {
            let unfit = |reason: &UnfitRoot| {
                Error::InvalidArgument(format!("ca_config.signing_ca_cert: {reason}"))
            };
            let cert = roots::fit(&cert, now).map_err(|reason| unfit(&reason))?;
            if has_no_key {
                return Err(Error::InvalidArgument(
                    "ca_config.signing_ca_cert: its key is needed to sign with; give signing_ca_key too"
                        .to_owned(),
                ));
            }
            let key = String::from_utf8_lossy(&key);
            let root = RootCa::from_pem(&cert, &key);
            let root = root.map_err(|reason| unfit(&reason.into()))?;
            turn_to(cluster, &root, now)?;
        }
    }
    cluster.root_ca.last_forced_rotation = forced;
    Ok(())
}

/// Makes a given root the cluster's. The one that it has takes a change back; the one it is about to
/// have changes nothing.
fn turn_to(cluster: &mut Cluster, root: &RootCa, now: Timestamp) -> Result<(), Error> {
    let present = &mut cluster.root_ca;
    if present.ca_cert == root.cert_pem().as_bytes() {
        present.root_rotation = None;
        return Ok(());
    }
    let rotation = present.root_rotation.as_ref();
    if rotation.is_some_and(|next| next.ca_cert == root.cert_pem().as_bytes()) {
        return Ok(());
    }
    begin(cluster, root, now)
}

/// A change that is under way is given up for this one: the present root signs the newest.
fn begin(cluster: &mut Cluster, next: &RootCa, now: Timestamp) -> Result<(), Error> {
    let present = &cluster.root_ca;
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let old = RootCa::from_pem(&text(&present.ca_cert), &text(&present.ca_key)).map_err(failed)?;
    let cross = roots::cross_sign(&old, next.cert_pem(), now);
    let cross = cross
        .map_err(|reason| Error::InvalidArgument(format!("ca_config.signing_ca_cert: {reason}")))?;
    let digest = RootDigest::of(next.cert_pem().as_bytes());
    let token = || {
        let token = JoinToken::generate(digest);
        let token = token.map_err(|e| Error::FailedPrecondition(e.to_string()))?;
        Ok::<_, Error>(token.reveal().to_string())
    };
    cluster.root_ca.root_rotation = Some(pb::RootRotation {
        ca_cert: next.cert_pem().as_bytes().to_vec(),
        ca_key: next.key_pem().as_bytes().to_vec(),
        cross_signed_ca_cert: cross.into_bytes(),
        join_tokens: Some(pb::JoinTokens {
            worker: token()?,
            manager: token()?,
        }),
        waits_for: Vec::new(),
    });
    Ok(())
}

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::FailedPrecondition(format!("cluster: can't change the root CA: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::{NOW, TestCa};
    use crate::ca::token::JoinToken;

    fn cluster() -> Cluster {
        let ca = TestCa::new(1);
        let spec = pb::ClusterSpec {
            ca_config: Some(pb::CaConfig::default()),
            ..Default::default()
        };
        Cluster {
            id: ca.cluster_id,
            meta: Default::default(),
            spec,
            root_ca: pb::RootCa {
                ca_cert: ca.root.cert_pem().into(),
                ca_key: ca.root.key_pem().as_bytes().to_vec(),
                ..Default::default()
            },
            blacklist: Default::default(),
            unlock_keys: Vec::new(),
            managers: Default::default(),
        }
    }

    /// What the operator wants from now on.
    fn set(cluster: &mut Cluster, force: u64, cert: &str, key: &str) -> Result<(), Error> {
        let config = cluster.spec.ca_config.as_mut().unwrap();
        config.force_rotate = force;
        config.signing_ca_cert = cert.into();
        config.signing_ca_key = key.into();
        let done = decide(cluster, NOW);
        let config = cluster.spec.ca_config.as_ref().unwrap();
        assert!(config.signing_ca_cert.is_empty() && config.signing_ca_key.is_empty());
        done
    }

    fn next(cluster: &Cluster) -> Option<String> {
        let rotation = cluster.root_ca.root_rotation.as_ref()?;
        Some(String::from_utf8(rotation.ca_cert.clone()).unwrap())
    }

    #[test]
    fn a_change_begins_once_for_each_number() {
        let mut cluster = cluster();
        let present = cluster.root_ca.ca_cert.clone();
        set(&mut cluster, 0, "", "").unwrap();
        assert_eq!(next(&cluster), None);
        set(&mut cluster, 1, "", "").unwrap();
        let one = next(&cluster).unwrap();
        let rotation = cluster.root_ca.root_rotation.clone().unwrap();
        let tokens = rotation.join_tokens.unwrap();
        for token in [tokens.worker, tokens.manager] {
            let token: JoinToken = token.parse().unwrap();
            assert_eq!(token.digest(), RootDigest::of(one.as_bytes()));
        }
        set(&mut cluster, 1, "", "").unwrap();
        assert_eq!(next(&cluster).as_ref(), Some(&one), "an unrelated update");
        set(&mut cluster, 2, "", "").unwrap();
        assert_ne!(next(&cluster).unwrap(), one, "the next takes its place");
        assert_eq!(cluster.root_ca.ca_cert, present);
    }

    #[test]
    fn a_given_root_is_turned_to_and_the_present_one_takes_it_back() {
        let mut cluster = cluster();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let present = (
            text(&cluster.root_ca.ca_cert),
            text(&cluster.root_ca.ca_key),
        );
        let given = TestCa::new(1).root;
        let key = given.key_pem();
        set(&mut cluster, 0, given.cert_pem(), &key).unwrap();
        let before = cluster.root_ca.clone();
        set(&mut cluster, 0, given.cert_pem(), &key).unwrap();
        assert_eq!(cluster.root_ca, before, "the same again changes nothing");
        set(&mut cluster, 1, &present.0, &present.1).unwrap();
        assert_eq!(next(&cluster), None);
        assert_eq!(cluster.root_ca.last_forced_rotation, 1);
    }

    #[test]
    fn what_can_not_be_the_root_is_refused_with_the_reason() {
        let (ca, other) = (TestCa::new(1), TestCa::new(1));
        let (cert, key) = (ca.root.cert_pem(), other.root.key_pem());
        for (cert, key, reason) in [
            ("", key.as_str(), "give signing_ca_cert too"),
            (cert, "", "give signing_ca_key too"),
            (cert, key.as_str(), "does not belong to"),
            (cert, "words", "root key can't be used"),
            ("words", key.as_str(), "signing_ca_cert: it can't be used"),
        ] {
            let mut cluster = cluster();
            let before = cluster.root_ca.clone();
            let error = set(&mut cluster, 1, cert, key).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert_eq!(cluster.root_ca, before);
        }
    }
}
