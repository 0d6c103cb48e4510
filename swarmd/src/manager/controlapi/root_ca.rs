//! What an operator's CA settings mean for the root and for who signs under it: leave it, change it,
//! or take a change back.
//!
//! The change begins here, with all that needs randomness or somebody else: the next root, its
//! certificate signed by the present one, and the join tokens that count afterwards. From then on
//! the pass carries it out (`manager::renewal`). External CAs that would sign from now on are tried
//! out first: who can't sign is told now, and not by nodes that can't join.

use swarm_proto::pb;
use swarm_proto::time::Timestamp;

use super::error::Error;
use crate::ca::root::{RootCa, RootDigest};
use crate::ca::roots::{self, Turn, UnfitRoot};
use crate::ca::token::JoinToken;
use crate::manager::authority::{Authority, external_for, name_roots};
use crate::manager::signer::{CrossError, Signer};
use crate::manager::store::Cluster;

/// A root that is to be the cluster's.
struct Next {
    /// In PEM.
    cert: String,
    /// With its key; none where external CAs have that.
    own: Option<Box<RootCa>>,
}

impl Next {
    fn key(&self) -> Vec<u8> {
        let key = self.own.as_ref().map(|own| own.key_pem());
        key.map(|key| key.as_bytes().to_vec()).unwrap_or_default()
    }
}

impl From<RootCa> for Next {
    fn from(root: RootCa) -> Self {
        Self {
            cert: root.cert_pem().to_owned(),
            own: Some(Box::new(root)),
        }
    }
}

/// What the spec asks for.
enum Wish {
    /// The root stays.
    AsItIs,
    /// Another root, whichever.
    Another,
    /// This root.
    Root(Next),
}

/// Brings the cluster's root in line with its spec, which has just been set in place of that of `before`. What the spec names
/// a root by is not kept in it: the key is a secret, and the root has both.
pub(super) async fn decide(
    cluster: &mut Cluster,
    before: &Cluster,
    signer: &Signer,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(config) = &mut cluster.spec.ca_config else {
        return check_signs(before, cluster, signer).await;
    };
    let cert = std::mem::take(&mut config.signing_ca_cert);
    let key = std::mem::take(&mut config.signing_ca_key);
    name_roots(&mut config.external_cas, &cluster.root_ca.ca_cert);
    let mut decided = cluster.clone();
    let wish = wish(cluster, (&cert, &key), now)?;
    if !matches!(wish, Wish::AsItIs) {
        let forced = decided.spec.ca_config.as_ref().map(|c| c.force_rotate);
        decided.root_ca.last_forced_rotation = forced.unwrap_or_default();
    }
    match wish {
        Wish::AsItIs => {}
        Wish::Another => {
            let next = RootCa::generate(now).map_err(failed)?.into();
            begin(&mut decided, &next, signer, now).await?;
        }
        Wish::Root(next) => turn_to(&mut decided, &next, signer, now).await?,
    }
    check_signs(before, &decided, signer).await?;
    *cluster = decided;
    Ok(())
}

fn wish(cluster: &Cluster, (cert, key): (&[u8], &[u8]), now: Timestamp) -> Result<Wish, Error> {
    let forced = cluster.spec.ca_config.as_ref().map(|c| c.force_rotate);
    let invalid = |text: String| Err(Error::InvalidArgument(text));
    match (cert.is_empty(), key.is_empty()) {
        (true, true) if forced == Some(cluster.root_ca.last_forced_rotation) => Ok(Wish::AsItIs),
        (true, true) => Ok(Wish::Another),
        (true, false) => invalid(
            "ca_config.signing_ca_key: it has no certificate; give signing_ca_cert too".to_owned(),
        ),
        (false, has_no_key) => {
            let cert = roots::fit(cert, now).map_err(unfit)?;
            if !has_no_key {
                let root = RootCa::from_pem(&cert, &String::from_utf8_lossy(key));
                return Ok(Wish::Root(root.map_err(|e| unfit(e.into()))?.into()));
            }
            if external_for(cluster, cert.as_bytes()).is_empty() {
                return invalid(
                    "ca_config.signing_ca_cert: its key is needed to sign with; give signing_ca_key too, or an external CA \
                     that signs under it (external_cas with this ca_cert)"
                        .to_owned(),
                );
            }
            Ok(Wish::Root(Next { cert, own: None }))
        }
    }
}

/// Makes a given root the cluster's. The one that it has takes a change back; the one it is about to have changes nothing.
/// Either way the managers have its key from now on if it is given, and only then.
async fn turn_to(
    cluster: &mut Cluster,
    next: &Next,
    signer: &Signer,
    now: Timestamp,
) -> Result<(), Error> {
    let present = &mut cluster.root_ca;
    if present.ca_cert == next.cert.as_bytes() {
        present.root_rotation = None;
        present.ca_key = next.key();
        return Ok(());
    }
    let rotation = present.root_rotation.as_mut();
    match rotation.filter(|rotation| rotation.ca_cert == next.cert.as_bytes()) {
        Some(same) => {
            same.ca_key = next.key();
            Ok(())
        }
        None => begin(cluster, next, signer, now).await,
    }
}

/// A change that is under way is given up for this one: the present root signs the newest.
async fn begin(
    cluster: &mut Cluster,
    next: &Next,
    signer: &Signer,
    now: Timestamp,
) -> Result<(), Error> {
    let from = String::from_utf8_lossy(&cluster.root_ca.ca_cert).into_owned();
    roots::differ(&from, &next.cert).map_err(unfit)?;
    let cross = cross(cluster, next, signer, now).await?;
    if let Some(own) = &next.own {
        let turn = Turn {
            from: &from,
            to: &next.cert,
            cross: &cross,
        };
        roots::try_out(&turn, own, now).map_err(unfit)?;
    }
    let digest = RootDigest::of(next.cert.as_bytes());
    let token = || {
        let token = JoinToken::generate(digest);
        let token = token.map_err(|e| Error::FailedPrecondition(e.to_string()))?;
        Ok::<_, Error>(token.reveal().to_string())
    };
    cluster.root_ca.root_rotation = Some(pb::RootRotation {
        ca_cert: next.cert.as_bytes().to_vec(),
        ca_key: next.key(),
        cross_signed_ca_cert: cross.into_bytes(),
        join_tokens: Some(pb::JoinTokens {
            worker: token()?,
            manager: token()?,
        }),
        waits_for: Vec::new(),
    });
    Ok(())
}

/// The certificate of the next root, signed by the present one: by its key, or by who has that.
async fn cross(
    cluster: &Cluster,
    next: &Next,
    signer: &Signer,
    now: Timestamp,
) -> Result<String, Error> {
    let present = &cluster.root_ca;
    if !present.ca_key.is_empty() {
        let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
        let old = RootCa::from_pem(&text(&present.ca_cert), &text(&present.ca_key));
        return roots::cross_sign(&old.map_err(failed)?, &next.cert, now).map_err(unfit);
    }
    let Some(own) = &next.own else {
        return Err(failed(
            "neither the key of the present root nor that of the new one is with the managers, so nobody can vouch for the \
             new one; change to a root of the managers' own first (`swarmctl cluster ca --rotate`)",
        ));
    };
    if external_for(cluster, &present.ca_cert).is_empty() {
        return Err(failed(
            "the present root has to sign the new one, its key is not with the managers, and no external CA signs under it; \
             name one (`swarmctl cluster update --external-ca protocol=cfssl,url=https://…`), or give the present root with \
             its key (`swarmctl cluster ca --rotate --ca-cert FILE --ca-key FILE`)",
        ));
    }
    let crossed = signer.cross_sign(cluster, own).await;
    crossed.map_err(|error| match error {
        CrossError::Root(reason) => unfit(reason),
        CrossError::Asked(reasons) => failed(format!(
            "the external CA does not sign the new root: {reasons}; its profile \"CA\" has to allow CA certificates"
        )),
    })
}

/// Refuses what would leave the cluster without certificates: nobody to sign, or nobody who does. Where nothing changes in
/// that, nobody is asked: other settings can be changed also while an external CA is down.
async fn check_signs(before: &Cluster, decided: &Cluster, signer: &Signer) -> Result<(), Error> {
    let (old, new) = (Authority::of(before), Authority::of(decided));
    let as_before = old.cert == new.cert
        && old.external == new.external
        && old.key.is_empty() == new.key.is_empty();
    if as_before {
        return Ok(());
    }
    if new.external.is_empty() {
        return match new.key.is_empty() {
            false => Ok(()),
            true => Err(Error::InvalidArgument(
                "ca_config.external_cas: none signs under the cluster's root, whose key is not with the managers; keep one, or \
                 change to a root of the managers' own first (`swarmctl cluster ca --rotate`)"
                    .to_owned(),
            )),
        };
    }
    let tried = signer.try_out(decided).await;
    tried.map_err(|reason| {
        Error::FailedPrecondition(format!(
            "cluster: its certificates would come from an external CA, and a trial gave none: {reason}; correct that, or \
             leave the external CA out"
        ))
    })
}

fn unfit(reason: UnfitRoot) -> Error {
    Error::InvalidArgument(format!("ca_config.signing_ca_cert: {reason}"))
}

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::FailedPrecondition(format!("cluster: can't change the root CA: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::{NOW, TestCa};
    use std::sync::Arc;

    use crate::ca::Role;
    use crate::clock::Clock;
    use crate::manager::signer::tests::{ANY, Bed, external};
    use futures::FutureExt as _;
    use lab::signing::{Behaviour, Root, SigningServer};

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
        let before = cluster.clone();
        let signer = Signer::new(Default::default(), Clock::manual(NOW).0);
        let config = cluster.spec.ca_config.as_mut().unwrap();
        config.force_rotate = force;
        config.signing_ca_cert = cert.into();
        config.signing_ca_key = key.into();
        // Nobody outside is asked: it does not wait.
        let done = decide(cluster, &before, &signer, NOW)
            .now_or_never()
            .unwrap();
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

    /// What the operator wants from now on, where others have keys.
    async fn turn(
        bed: &mut Bed,
        (cert, key): (&str, &str),
        external: Option<Vec<pb::ExternalCa>>,
    ) -> Result<(), String> {
        let before = bed.cluster.clone();
        let config = bed.cluster.spec.ca_config.as_mut().unwrap();
        config.force_rotate += 1;
        config.signing_ca_cert = cert.into();
        config.signing_ca_key = key.into();
        if let Some(external) = external {
            config.external_cas = external;
        }
        let now = Clock::real().now();
        let done = decide(&mut bed.cluster, &before, &bed.signer, now).await;
        if done.is_err() {
            bed.cluster = before;
        }
        done.map_err(|error| error.to_string())
    }

    /// Every node has turned to the next root.
    fn finish(bed: &mut Bed) {
        let rotation = bed.cluster.root_ca.root_rotation.take().unwrap();
        bed.cluster.root_ca.ca_cert = rotation.ca_cert;
        bed.cluster.root_ca.ca_key = rotation.ca_key;
    }

    #[tokio::test]
    async fn from_an_external_root_to_an_own_one_and_to_an_external_one_again() {
        let mut bed = Bed::new();
        let first = bed.root.pem().to_owned();
        turn(&mut bed, ("", ""), None).await.unwrap();
        let own = next(&bed.cluster).unwrap();
        let rotation = bed.cluster.root_ca.root_rotation.clone().unwrap();
        assert!(!rotation.ca_key.is_empty());
        for roots in [&first, &own] {
            bed.sign(Role::Worker, roots).await.unwrap();
        }
        assert_eq!(bed.server.seen().len(), 1, "the managers sign");
        finish(&mut bed);
        // To one that others sign under. Managers show what they have from the present one.
        let other = Arc::new(Root::new("the next").unwrap());
        let both = format!("{first}{own}{}", other.pem());
        let server = SigningServer::start(&other, ANY, &both).unwrap();
        let under_it = Some(vec![external(server.url(), other.pem())]);
        turn(&mut bed, (other.pem(), ""), under_it).await.unwrap();
        assert_eq!(next(&bed.cluster).as_deref(), Some(other.pem()));
        assert!(
            bed.cluster
                .root_ca
                .root_rotation
                .as_ref()
                .unwrap()
                .ca_key
                .is_empty()
        );
        for roots in [&own, other.pem()] {
            bed.sign(Role::Manager, roots).await.unwrap();
        }
        finish(&mut bed);
        assert!(bed.cluster.root_ca.ca_key.is_empty());
        bed.sign(Role::Worker, other.pem()).await.unwrap();
        assert_eq!(server.seen().len(), 4, "and a trial before");
    }

    #[tokio::test]
    async fn nobody_is_left_without_who_signs() {
        let mut bed = Bed::new();
        let (own, url) = (bed.root.pem().to_owned(), bed.server.url());
        let other = Arc::new(Root::new("the next").unwrap());
        let server = SigningServer::start(&other, ANY, &own).unwrap();
        let under_other = vec![external(server.url(), other.pem())];
        // The only one that signs is taken away; or none for the new root is there; or nobody can vouch for it.
        for (cert, external, reason) in [
            ("", Some(Vec::new()), "no external CA signs under it"),
            (other.pem(), None, "its key is needed to sign with"),
            (
                other.pem(),
                Some(under_other.clone()),
                "nobody can vouch for",
            ),
        ] {
            let told = turn(&mut bed, (cert, ""), external).await.unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        let config = bed.cluster.spec.ca_config.as_mut().unwrap();
        config.force_rotate = bed.cluster.root_ca.last_forced_rotation;
        let before = bed.cluster.clone();
        let mut without = before.clone();
        without.spec.ca_config.as_mut().unwrap().external_cas = under_other;
        let now = Clock::real().now();
        let told = decide(&mut without, &before, &bed.signer, now).await;
        let told = told.unwrap_err().to_string();
        let none = "none signs under the cluster's root";
        assert!(told.contains(none), "{told}");
        without.spec.ca_config = None;
        let told = decide(&mut without, &before, &bed.signer, now).await;
        assert!(told.unwrap_err().to_string().contains(none));

        // While it fails other settings can be changed, and neither it nor the root.
        bed.server.behave(Behaviour::Refuses);
        let mut history = before.clone();
        history.spec.orchestration = Some(pb::OrchestrationConfig::default());
        decide(&mut history, &before, &bed.signer, now)
            .await
            .unwrap();
        let told = turn(&mut bed, ("", ""), None).await.unwrap_err();
        assert!(told.contains("this CA is closed"), "{told}");
        let again = Some(vec![external(url, ""), external(server.url(), "")]);
        let told = turn(&mut bed, (&own, ""), again.clone()).await.unwrap_err();
        assert!(told.contains("a trial gave none"), "{told}");
        bed.server.behave(Behaviour::Signs);
        turn(&mut bed, (&own, ""), again).await.unwrap();
        // What named no root is under this one, also when the root changes.
        assert!(
            bed.external_cas()
                .iter()
                .all(|e| e.ca_cert == own.as_bytes())
        );
    }

    #[tokio::test]
    async fn the_key_of_the_present_root_is_taken_in_and_given_up() {
        let mut bed = Bed::new();
        let (cert, key) = (bed.root.pem().to_owned(), bed.root.key_pem());
        turn(&mut bed, (&cert, &key), Some(Vec::new()))
            .await
            .unwrap();
        assert!(!bed.cluster.root_ca.ca_key.is_empty());
        assert_eq!(next(&bed.cluster), None);
        bed.sign(Role::Worker, &cert).await.unwrap();
        assert_eq!(bed.server.seen().len(), 0);
        let again = Some(vec![external(bed.server.url(), &cert)]);
        turn(&mut bed, (&cert, ""), again).await.unwrap();
        assert!(bed.cluster.root_ca.ca_key.is_empty());
        bed.sign(Role::Worker, &cert).await.unwrap();
        assert_eq!(bed.server.seen().len(), 2);
    }
}
