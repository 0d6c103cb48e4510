//! Certificates from a signing server, over real TLS.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use lab::signing::{Behaviour, Root, SigningServer};
use swarm_proto::id::{ClusterId, NodeId};
use tonic::Code;

use super::*;
use crate::ca::{NodeIdentity, Role};

/// A cluster whose root key a signing server has alone, and one of its managers.
pub(in crate::manager) struct Bed {
    pub(in crate::manager) root: Arc<Root>,
    pub(in crate::manager) server: SigningServer,
    pub(in crate::manager) cluster: Cluster,
    pub(in crate::manager) signer: Signer,
    security: SecurityConfig,
    clock: Clock,
}

/// A port of this machine that is free.
pub(in crate::manager) const ANY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(in crate::manager) fn external(url: String, root: &str) -> pb::ExternalCa {
    pb::ExternalCa {
        url,
        ca_cert: root.into(),
        ..Default::default()
    }
}

impl Bed {
    pub(in crate::manager) fn new() -> Self {
        let root = Arc::new(Root::new("the cluster's").unwrap());
        let server = SigningServer::start(&root, ANY, root.pem()).unwrap();
        let clock = Clock::real();
        let spec = pb::ClusterSpec {
            ca_config: Some(pb::CaConfig {
                external_cas: vec![external(server.url(), root.pem())],
                ..Default::default()
            }),
            ..Default::default()
        };
        let cluster = Cluster {
            id: ClusterId::from_raw(7),
            meta: Default::default(),
            spec,
            root_ca: pb::RootCa {
                ca_cert: root.pem().into(),
                ..Default::default()
            },
            blacklist: BTreeMap::new(),
            unlock_keys: Vec::new(),
            managers: BTreeMap::new(),
        };
        let identity = manager(&root, &cluster, &clock);
        let security = SecurityConfig::new(identity, clock.clone()).unwrap();
        let signer = Signer::new(Arc::new(OnceLock::from(security.clone())), clock.clone());
        Self {
            root,
            server,
            cluster,
            signer,
            security,
            clock,
        }
    }

    pub(in crate::manager) fn external_cas(&mut self) -> &mut Vec<pb::ExternalCa> {
        let config = self.cluster.spec.ca_config.as_mut().unwrap();
        &mut config.external_cas
    }

    fn subject(&self, role: Role) -> NodeSubject {
        NodeSubject {
            node_id: NodeId::from_raw(1234),
            role,
            cluster_id: self.cluster.id,
        }
    }

    /// A node asks; what is recorded makes it one of the cluster, for who trusts these roots.
    pub(in crate::manager) async fn sign(
        &self,
        role: Role,
        roots: &str,
    ) -> Result<NodeIdentity, Status> {
        let (key, csr) = new_key_and_csr().unwrap();
        let subject = self.subject(role);
        let signed = self.signer.sign(&self.cluster, &subject, csr.as_bytes());
        let signed = signed.await?;
        assert_eq!(signed.csr, csr.into_bytes());
        assert_eq!(signed.cn, subject.node_id.to_string());
        let pem = String::from_utf8(signed.certificate).unwrap();
        let identity = NodeIdentity::from_pem(&pem, &key, roots).unwrap();
        identity.check_time(self.clock.now()).unwrap();
        assert_eq!(identity.role(), role);
        assert_eq!(signed.not_after, identity.not_after().to_wire());
        Ok(identity)
    }

    async fn refusal(&self) -> String {
        let refused = self.sign(Role::Worker, self.root.pem()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        refused.message().to_owned()
    }
}

/// A manager with a certificate under this root.
fn manager(root: &Root, cluster: &Cluster, clock: &Clock) -> NodeIdentity {
    let own = RootCa::from_pem(root.pem(), &root.key_pem()).unwrap();
    let (key, csr) = new_key_and_csr().unwrap();
    let subject = NodeSubject {
        node_id: NodeId::from_raw(1),
        role: Role::Manager,
        cluster_id: cluster.id,
    };
    let life = Duration::from_secs(24 * 3600);
    let leaf = own.issue(csr.as_bytes(), &subject, life, clock.now());
    NodeIdentity::from_pem(&leaf.unwrap(), &key, root.pem()).unwrap()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind(ANY).unwrap();
    format!("https://{}/", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_signing_server_is_shown_the_manager_s_certificate_of_now_and_signs() {
    let bed = Bed::new();
    for role in [Role::Worker, Role::Manager] {
        let identity = bed.sign(role, bed.root.pem()).await.unwrap();
        assert_eq!(identity.node_id(), NodeId::from_raw(1234));
        assert_eq!(identity.cluster_id(), bed.cluster.id);
    }
    let shown = |seen: usize| bed.server.seen()[seen].client.clone();
    let now = |bed: &Bed| bed.security.identity().certified().cert[0].to_vec();
    assert_eq!((shown(0), shown(1)), (now(&bed), now(&bed)));
    let renewed = manager(&bed.root, &bed.cluster, &bed.clock);
    bed.security.update(renewed).unwrap();
    bed.sign(Role::Worker, bed.root.pem()).await.unwrap();
    assert_eq!(shown(2), now(&bed));
    assert_ne!(shown(1), shown(2));
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_not_recorded() {
    let bed = Bed::new();
    for (behaviour, reason) in [
        (
            Behaviour::Refuses,
            "it refuses: this CA is closed (code 1234)",
        ),
        (Behaviour::Babbles, "none of a CFSSL server's"),
        (Behaviour::Floods, "longer than 256 KiB"),
        (Behaviour::OtherKey, "not for the key of the request"),
        (Behaviour::OtherNode, "was asked for"),
        (Behaviour::OtherRole, "it is for manager"),
        (
            Behaviour::OtherRoot,
            "not signed by the cluster's root itself",
        ),
        (Behaviour::Past, "it is valid from"),
        (Behaviour::NearlyOver, "renewed at once"),
        (Behaviour::MakesAuthority, "a CA's certificate"),
    ] {
        bed.server.behave(behaviour);
        let told = bed.refusal().await;
        assert!(told.contains(reason), "{behaviour:?}: {told}");
        assert!(told.contains(&bed.server.url()), "{behaviour:?}: {told}");
    }
    bed.server.behave(Behaviour::Signs);
    bed.sign(Role::Worker, bed.root.pem()).await.unwrap();
    let asked = bed.server.seen().len();
    let subject = bed.subject(Role::Worker);
    let broken = bed.signer.sign(&bed.cluster, &subject, b"no CSR");
    assert_eq!(broken.await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(bed.server.seen().len(), asked, "nobody was asked");
}

#[tokio::test]
async fn the_next_is_asked_where_one_fails() {
    let mut bed = Bed::new();
    let (root, url) = (bed.root.pem().to_owned(), bed.server.url());
    let other = Arc::new(Root::new("somebody else's").unwrap());
    // It demands a certificate of another cluster's.
    let closed = SigningServer::start(&bed.root, ANY, other.pem()).unwrap();
    let down = nobody();
    *bed.external_cas() = vec![
        external(down.clone(), &root),
        external(closed.url(), &root),
        external(url, &root),
    ];
    bed.sign(Role::Worker, &root).await.unwrap();
    assert_eq!(bed.server.seen().len(), 1);
    bed.external_cas()[0] = external(format!("{down}?token=hush"), &root);
    bed.external_cas().pop();
    let told = bed.refusal().await;
    assert!(told.contains(&format!("{down} can't be asked")), "{told}");
    assert!(!told.contains("hush"), "{told}");
    assert!(
        told.contains(&format!("; {} can't be asked", closed.url())),
        "{told}"
    );
    assert_eq!(closed.seen().len(), 0);
}

#[tokio::test]
async fn who_does_not_answer_is_given_up_after_five_seconds() {
    let bed = Bed::new();
    bed.server.behave(Behaviour::Hangs);
    let begun = bed.clock.monotonic();
    let told = bed.refusal().await;
    assert!(told.contains("has not answered within 5 s"), "{told}");
    let took = bed.clock.monotonic().since(begun);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_server_under_another_root_is_not_told_anything() {
    let mut bed = Bed::new();
    let other = Arc::new(Root::new("the cluster's").unwrap());
    let impostor = SigningServer::start(&other, ANY, bed.root.pem()).unwrap();
    let root = bed.root.pem().to_owned();
    *bed.external_cas() = vec![external(impostor.url(), &root)];
    let told = bed.refusal().await;
    assert!(told.contains("certificate"), "{told}");
    assert_eq!(impostor.seen().len(), 0);
    // One that is said to be under another root is not even asked.
    *bed.external_cas() = vec![external(impostor.url(), other.pem())];
    let told = bed.refusal().await;
    assert!(told.contains("no external CA signs under"), "{told}");
}

#[tokio::test]
async fn while_the_root_changes_what_is_signed_counts_under_both() {
    let mut bed = Bed::new();
    let old = RootCa::generate(bed.clock.now()).unwrap();
    let next = bed.root.pem().to_owned();
    let cross = roots::cross_sign(&old, &next, bed.clock.now()).unwrap();
    bed.cluster.root_ca = pb::RootCa {
        ca_cert: old.cert_pem().into(),
        ca_key: old.key_pem().as_bytes().to_vec(),
        root_rotation: Some(pb::RootRotation {
            ca_cert: next.clone().into(),
            cross_signed_ca_cert: cross.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for roots in [old.cert_pem(), &next] {
        bed.sign(Role::Manager, roots).await.unwrap();
    }
    // One that names no root signs under the present one, which has a key here and signs no more.
    bed.external_cas()[0].ca_cert.clear();
    let told = bed.refusal().await;
    assert!(told.contains("no external CA signs under"), "{told}");
}
