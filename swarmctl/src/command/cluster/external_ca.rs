//! `--external-ca`, and how external CAs are shown.

use std::path::PathBuf;

use swarm_proto::external_ca::Said;
use swarm_proto::pb;

use super::ca;
use crate::error::Error;
use crate::spec::Problems;

/// What was said, if anything was: an empty text alone leaves none.
pub(super) fn check(problems: &mut Problems, texts: &[String]) -> Option<Vec<Said>> {
    if texts.is_empty() {
        return None;
    }
    if texts.iter().all(String::is_empty) {
        return Some(Vec::new());
    }
    let mut said = Vec::new();
    for text in texts {
        match Said::parse(text) {
            Ok(one) => said.push(one),
            // Not the text itself: its options may be secrets.
            Err(reasons) => reasons
                .into_iter()
                .for_each(|reason| problems.push(format!("--external-ca: {reason}"))),
        }
    }
    Some(said)
}

/// The same with the root certificates that it names.
pub(super) async fn read(said: Option<Vec<Said>>) -> Result<Option<Vec<pb::ExternalCa>>, Error> {
    let Some(said) = said else {
        return Ok(None);
    };
    let mut external = Vec::new();
    for one in said {
        let path = one.ca_cert.as_ref().map(PathBuf::from);
        let cert = ca::read("read the external CA's root certificate", path.as_ref());
        let cert = cert.await?;
        external.push(one.into_wire(cert));
    }
    Ok(Some(external))
}

/// An external CA with whether it is asked. Not its options, which may be secrets.
pub(super) fn shown(external: &pb::ExternalCa, cluster: &pb::Cluster) -> String {
    let root = cluster.root_ca.as_ref();
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).trim().to_owned();
    let next = root.and_then(|root| root.root_rotation.as_ref());
    let next = next.map(|next| text(&next.ca_cert));
    let present = root.map(|root| text(&root.ca_cert));
    let own = text(&external.ca_cert);
    let under = if own.is_empty() || Some(&own) == present.as_ref() {
        ""
    } else if Some(own) == next {
        " (under the next root)"
    } else {
        " (under another root, so not asked)"
    };
    format!("{}{under}", external.url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_one_and_none_again() {
        let check = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            let mut problems = Problems::default();
            let said = check(&mut problems, &texts);
            let urls = said.map(|said| said.into_iter().map(|one| one.url).collect::<Vec<_>>());
            (urls, problems.to_string())
        };
        let good = "protocol=cfssl,url=https://ca/sign";
        assert_eq!(check(&[]), (None, String::new()));
        assert_eq!(check(&[""]), (Some(vec![]), String::new()));
        let (urls, _) = check(&[good, good]);
        assert_eq!(urls, Some(vec!["https://ca/sign".to_owned(); 2]));
        let (_, problems) = check(&[good, "label=secret", ""]);
        assert_eq!(problems.lines().count(), 3, "{problems}");
        assert!(!problems.contains("secret"), "{problems}");
    }

    #[test]
    fn what_is_asked_is_told_from_what_is_not() {
        let cluster = pb::Cluster {
            root_ca: Some(pb::RootCa {
                ca_cert: b"one\n".to_vec(),
                root_rotation: Some(pb::RootRotation {
                    ca_cert: b"two\n".to_vec(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (cert, expected) in [
            ("", "https://ca"),
            ("one", "https://ca"),
            ("two\n", "https://ca (under the next root)"),
            ("three", "https://ca (under another root, so not asked)"),
        ] {
            let external = pb::ExternalCa {
                url: "https://ca".to_owned(),
                ca_cert: cert.into(),
                ..Default::default()
            };
            assert_eq!(shown(&external, &cluster), expected);
        }
    }
}
