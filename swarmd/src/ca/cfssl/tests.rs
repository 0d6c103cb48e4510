//! What is sent, what answers mean, and which certificates are taken.

use std::time::Duration;

use expect_test::expect;
use swarm_proto::id::{ClusterId, NodeId};

use super::*;
use crate::ca::root::{RootCa, csr_key, new_key_and_csr};
use crate::ca::testing::{NOW, TestCa};
use crate::ca::{Role, roots};

fn subject(role: Role) -> NodeSubject {
    NodeSubject {
        node_id: NodeId::from_raw(7),
        role,
        cluster_id: ClusterId::from_raw(9),
    }
}

fn pretty(request: &SignRequest) -> String {
    let value: serde_json::Value = serde_json::from_str(&request.to_json()).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn a_node_s_request_says_who_it_is_for() {
    let request = SignRequest::node("the CSR", &subject(Role::Manager), &BTreeMap::new());
    expect![[r#"
        {
          "certificate_request": "the CSR",
          "hosts": [
            "swarm-manager",
            "0000000000000000000000007",
            "swarm-ca"
          ],
          "subject": {
            "CN": "0000000000000000000000007",
            "names": [
              {
                "O": "0000000000000000000000009",
                "OU": "swarm-manager"
              }
            ]
          }
        }"#]]
    .assert_eq(&pretty(&request));
    let options = [("profile", "nodes"), ("label", "blue"), ("other", "x")];
    let options = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let request = pretty(&SignRequest::node("x", &subject(Role::Worker), &options));
    for part in [r#""profile": "nodes""#, r#""label": "blue""#] {
        assert!(request.contains(part), "{request}");
    }
    assert!(!request.contains("other") && !request.contains("swarm-ca"));
}

#[test]
fn a_root_s_request_asks_for_a_ca() {
    let root = RootCa::generate(NOW).unwrap();
    let der = roots::authority(root.cert_pem().as_bytes()).unwrap();
    let request = SignRequest::cross("the CSR", &der, &BTreeMap::new()).unwrap();
    expect![[r#"
        {
          "certificate_request": "the CSR",
          "extensions": [
            {
              "critical": true,
              "id": "2.5.29.19",
              "value": "30030101ff"
            }
          ],
          "hosts": [],
          "profile": "CA",
          "subject": {
            "CN": "swarm-ca",
            "names": []
          }
        }"#]]
    .assert_eq(&pretty(&request));
}

#[test]
fn answers() {
    let good = r#"{"success":true,"result":{"certificate":"PEM","x":1},"errors":[],"messages":[]}"#;
    assert_eq!(certificate(good.as_bytes()).as_deref(), Ok("PEM"));
    let long = format!(
        r#"{{"success":false,"errors":[{{"code":1,"message":"{}"}}]}}"#,
        "é".repeat(1000)
    );
    for (answer, expected) in [
        ("", "none of a CFSSL server's"),
        ("<html>", "none of a CFSSL server's"),
        ("{}", "missing field `success`"),
        (r#"{"success":true}"#, "has no certificate"),
        (
            r#"{"success":true,"result":{"certificate":7}}"#,
            "has no certificate",
        ),
        (r#"{"success":true,"result":"PEM"}"#, "has no certificate"),
        (r#"{"success":false}"#, "refuses: it does not say why"),
        (
            r#"{"success":false,"result":null,"errors":null}"#,
            "does not say why",
        ),
        (
            r#"{"success":false,"result":{},"errors":[{"code":5100,"message":"Invalid\npolicy"},{"code":2},{},{}]}"#,
            "it refuses: Invalid policy (code 5100);  (code 2);  (code 0)",
        ),
        (&long, "é… (code 1)"),
    ] {
        let told = certificate(answer.as_bytes()).unwrap_err().to_string();
        assert!(told.contains(expected), "{answer}: {told}");
        assert!(told.len() < 1000, "{told}");
    }
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let (ca, other) = (TestCa::new(9), TestCa::new(9));
    let (_, csr) = new_key_and_csr().unwrap();
    let (_, other_csr) = new_key_and_csr().unwrap();
    let (worker, day) = (subject(Role::Worker), Duration::from_secs(24 * 3600));
    let issue = |root: &RootCa, csr: &str, subject: &NodeSubject, at: Timestamp| {
        root.issue(csr.as_bytes(), subject, day, at).unwrap()
    };
    let key = csr_key(csr.as_bytes()).unwrap();
    let root = roots::authority(ca.root.cert_pem().as_bytes()).unwrap();
    let taken = |pem: &str| {
        let asked = Asked {
            subject: &worker,
            key: &key,
            root: &root,
        };
        check(pem, &asked, NOW).map_err(|unfit| unfit.to_string())
    };
    let good = issue(&ca.root, &csr, &worker, NOW);
    assert_eq!(taken(&good).as_deref(), Ok(good.as_str()));
    // What comes behind it is left out.
    let chain = format!("{good}{}", ca.root.cert_pem());
    assert_eq!(taken(&chain).as_deref(), Ok(good.as_str()));
    let stranger = NodeSubject {
        node_id: NodeId::from_raw(8),
        ..worker
    };
    let cluster = NodeSubject {
        cluster_id: ClusterId::from_raw(8),
        ..worker
    };
    let manager = subject(Role::Manager);
    let week = 7 * day;
    // Certificates begin an hour before they are made.
    let brief = |life: u64| {
        let life = Duration::from_secs(life);
        ca.root.issue(csr.as_bytes(), &worker, life, NOW).unwrap()
    };
    assert!(taken(&brief(3700)).is_ok());
    for (pem, reason) in [
        (brief(3500), "renewed at once"),
        (brief(30), "renewed at once"),
        (String::new(), "it is empty"),
        ("junk".to_owned(), "can't be used"),
        (ca.root.cert_pem().to_owned(), "not for the key"),
        (issue(&ca.root, &other_csr, &worker, NOW), "not for the key"),
        (issue(&ca.root, &csr, &stranger, NOW), "was asked for"),
        (issue(&ca.root, &csr, &cluster, NOW), "was asked for"),
        (issue(&ca.root, &csr, &manager, NOW), "it is for manager"),
        (issue(&other.root, &csr, &worker, NOW), "root itself"),
        (
            issue(&ca.root, &csr, &worker, NOW.before(week)),
            "and it is 2025-11-21",
        ),
        (
            issue(&ca.root, &csr, &worker, NOW.after(week)),
            "it is valid from",
        ),
    ] {
        let told = taken(&pem).unwrap_err();
        assert!(told.contains(reason), "{reason}: {told}");
    }
}

proptest::proptest! {
    #[test]
    fn any_answer_is_read_or_refused(answer: Vec<u8>) {
        let _ = certificate(&answer);
        let _ = said(&String::from_utf8_lossy(&answer));
    }
}
