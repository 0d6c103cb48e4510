//! Who is asked, in a few words.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::*;
use crate::ca::testing::TestCa;

static ROOTS: LazyLock<[TestCa; 3]> = LazyLock::new(|| [1, 1, 1].map(TestCa::new));

fn pem(which: usize) -> Vec<u8> {
    ROOTS[which].root.cert_pem().into()
}

/// Where the root stands (`0`, `0>1`; `k` behind the roots whose key is here), and the external CAs: what each signs under.
fn check(root: &str, external: &str) -> String {
    let (from, to) = root
        .split_once('>')
        .map_or((root, None), |(a, b)| (a, Some(b)));
    let cert = |text: &str| pem(text.trim_end_matches('k').parse().unwrap());
    let key = |text: &str| {
        text.strip_suffix('k')
            .map_or(Vec::new(), |_| b"key".to_vec())
    };
    let mut cluster = Cluster {
        id: ROOTS[0].cluster_id,
        meta: Default::default(),
        spec: pb::ClusterSpec::default(),
        root_ca: pb::RootCa {
            ca_cert: cert(from),
            ca_key: key(from),
            root_rotation: to.map(|to| pb::RootRotation {
                ca_cert: cert(to),
                ca_key: key(to),
                cross_signed_ca_cert: b"cross".to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        },
        blacklist: BTreeMap::new(),
        unlock_keys: Vec::new(),
        managers: BTreeMap::new(),
    };
    let config = cluster.spec.ca_config.get_or_insert_default();
    for (i, under) in external.split(' ').filter(|e| !e.is_empty()).enumerate() {
        config.external_cas.push(pb::ExternalCa {
            url: format!("{under}{}", ['a', 'b', 'c', 'd'][i]),
            ca_cert: match under {
                "-" => Vec::new(),
                "junk" => b"junk".to_vec(),
                "0crlf" => String::from_utf8(pem(0))
                    .unwrap()
                    .replace('\n', "\r\n")
                    .into(),
                which => pem(which.parse().unwrap()),
            },
            ..Default::default()
        });
    }
    let authority = Authority::of(&cluster);
    let asked: Vec<&str> = authority.external.iter().map(|e| e.url.as_str()).collect();
    let own = if authority.is_own() { "own" } else { "" };
    let key = Authority::with_key(&cluster).map(|with_key| {
        let which = (0..3).find(|which| pem(*which) == with_key.cert).unwrap();
        assert_eq!(with_key.turn.is_some(), to.is_some() && which != 0);
        which.to_string()
    });
    let key = key.unwrap_or_else(|| "none".to_owned());
    format!("{own}{}, key {key}", asked.join(" "))
}

#[test]
fn who_signs() {
    for (root, external, expected) in [
        ("0k", "", "own, key 0"),
        ("0", "", ", key none"),
        ("0k", "0 0", "0a 0b, key 0"),
        ("0", "1 0 - 2", "0b -c, key none"),
        ("0", "0crlf junk", "0crlfa, key none"),
        ("0k", "1", "own, key 0"),
        ("0k>1", "0 1 -", "1b, key 0"),
        ("0>1k", "0 -", "own, key 1"),
        ("0k>1k", "0 1", "1b, key 1"),
        ("0>1", "0", ", key none"),
    ] {
        assert_eq!(check(root, external), expected, "{root} {external}");
    }
}
