//! Certificates over an in-memory store, as time goes by.

use std::time::Duration;

use tonic::Code;

use super::*;
use crate::ca::root::new_key_and_csr;
use crate::ca::testing::NOW;
use crate::ca::{NodeIdentity, PeerIdentity};
use crate::clock::ManualClock;
use crate::manager::authorize::Who;
use crate::manager::bootstrap::{self, Founder};
use crate::manager::controlapi::testing::NoManagers;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Bed {
    server: CaServer,
    store: Store,
    hand: ManualClock,
}

async fn bed() -> Bed {
    let (clock, hand) = Clock::manual(NOW);
    let store = Store::in_memory();
    let founder = Founder {
        node_id: NodeId::from_raw(1),
        availability: pb::node_spec::Availability::Active,
        unlock_key: None,
        external_cas: Vec::new(),
    };
    bootstrap::found(&store, &clock, founder).await.unwrap();
    let server = CaServer::new(store.clone(), clock, Arc::new(NoManagers));
    Bed {
        server,
        store,
        hand,
    }
}

impl Bed {
    /// Asks with a token, or with a certificate that does not count any more.
    async fn issue(&self, presented: Option<&NodeIdentity>) -> Result<NodeIdentity, Status> {
        let (key, csr) = new_key_and_csr().unwrap();
        let state = self.store.view();
        let root_ca = state.cluster.as_ref().unwrap().root_ca.clone();
        let token = root_ca.join_tokens.unwrap().worker;
        let mut request = Request::new(pb::IssueNodeCertificateRequest {
            csr: csr.into(),
            token: if presented.is_some() {
                String::new()
            } else {
                token
            },
            ..Default::default()
        });
        let presented: Option<PeerIdentity> = presented.map(|identity| identity.as_peer().clone());
        request.extensions_mut().insert(Caller {
            who: Who::Nobody { presented },
            remote: None,
            forwarded_by: None,
            redirected: false,
        });
        let issued = self.server.issue_node_certificate(request).await?;
        let id: NodeId = issued.into_inner().node_id.parse().unwrap();
        let node = self.store.view().nodes.get(&id).cloned().unwrap();
        let pem = String::from_utf8(node.certificate.certificate.clone()).unwrap();
        let root = String::from_utf8(root_ca.ca_cert).unwrap();
        Ok(NodeIdentity::from_pem(&pem, &key, &root).unwrap())
    }
}

impl Bed {
    /// The node opens a session with this certificate.
    async fn show(&self, identity: &NodeIdentity) {
        let tls_info = pb::NodeTlsInfo {
            shown_not_after: identity.not_after().to_wire(),
            ..identity.tls_info()
        };
        let description = pb::NodeDescription {
            tls_info: Some(tls_info),
            ..Default::default()
        };
        let ready = Change::SetNodeStatus {
            id: identity.node_id(),
            state: pb::node_status::State::Ready,
            message: String::new(),
            addr: None,
            description: Some(Arc::new(description)),
        };
        self.server.write(ready).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_never_came_leaves_the_one_before_to_ask_again_with() {
    let bed = bed().await;
    let first = bed.issue(None).await.unwrap();
    bed.show(&first).await;
    bed.hand.advance(91 * DAY);
    // The answers are lost, and then one comes, which is not the last that is recorded.
    bed.issue(Some(&first)).await.unwrap();
    bed.hand.advance(DAY);
    bed.issue(Some(&first)).await.unwrap();
    bed.hand.advance(DAY);
    let used = bed.issue(Some(&first)).await.unwrap();
    bed.hand.advance(DAY);
    let lost = bed.issue(Some(&first)).await.unwrap();
    bed.show(&used).await;
    bed.hand.advance(91 * DAY);
    let next = bed.issue(Some(&used)).await.unwrap();
    bed.show(&next).await;
    for old in [&first, &used, &lost] {
        bed.hand.advance(DAY);
        let refused = bed.issue(Some(old)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
}

#[tokio::test]
async fn the_last_certificate_of_a_node_is_renewed_also_when_it_has_expired() {
    let bed = bed().await;
    let first = bed.issue(None).await.unwrap();
    bed.hand.advance(91 * DAY);
    let second = bed.issue(Some(&first)).await.unwrap();
    assert_eq!(second.node_id(), first.node_id());
    assert_eq!(second.as_peer().role, Role::Worker);
    assert!(second.not_after() > first.not_after().after(90 * DAY));

    // Once the node has shown it, what it was before is no key to the cluster, now or when the next one has expired.
    bed.show(&second).await;
    for pass in [1, 91] {
        bed.hand.advance(pass * DAY);
        let refused = bed.issue(Some(&first)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let text = refused.message();
        assert!(text.contains("another certificate since"), "{text}");
    }
    bed.issue(Some(&second)).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_of_a_node_that_was_removed_is_refused() {
    let bed = bed().await;
    let node = bed.issue(None).await.unwrap();
    bed.hand.advance(91 * DAY);
    let remove = |until| Change::RemoveNode {
        id: node.node_id(),
        force: true,
        refused_until: until,
    };
    bed.server.write(remove(Timestamp::MAX)).await.unwrap();
    let refused = bed.issue(Some(&node)).await.unwrap_err();
    let text = refused.message();
    assert!(text.contains("was removed from the cluster"), "{text}");
}

#[tokio::test]
async fn certificates_that_have_expired_are_renewed_some_at_a_time() {
    let bed = bed().await;
    let mut nodes = Vec::new();
    for _ in 0..31 {
        nodes.push(bed.issue(None).await.unwrap());
    }
    bed.hand.advance(91 * DAY);
    let (last, first) = nodes.split_last().unwrap();
    for node in first {
        bed.issue(Some(node)).await.unwrap();
    }
    let refused = bed.issue(Some(last)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    bed.hand.advance(Duration::from_secs(3));
    bed.issue(Some(last)).await.unwrap();
}
