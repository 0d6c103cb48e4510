//! `swarmctl cluster ca`: the root certificate, and its replacement.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use swarm_proto::amount::count;
use swarm_proto::pb;

use super::super::session::Session;
use super::external_ca;
use crate::cli::Ca;
use crate::error::Error;
use crate::resolve::{self, node_name};
use crate::spec::{DURATION, Problems, wire};

/// Between two looks at how far it is.
const POLL: Duration = Duration::from_millis(250);
/// How long the manager may be away: a restart and an election take seconds.
const LOST_MAX: Duration = Duration::from_secs(30);
/// Nodes that are named; the rest is counted.
const NAMED_MAX: usize = 8;

/// What the root is replaced by, read and checked.
#[derive(Default)]
pub(super) struct Change {
    cert: Vec<u8>,
    key: Vec<u8>,
    external: Option<Vec<pb::ExternalCa>>,
    expiry: Option<Duration>,
}

impl Change {
    pub(super) async fn check(flags: &Ca) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let expiry = problems.optional("--cert-expiry", flags.cert_expiry.as_ref(), &DURATION);
        let said = external_ca::check(&mut problems, &flags.external_ca);
        check_root(&mut problems, flags);
        problems.unless_any(())?;
        let cert = read("read the root certificate", flags.ca_cert.as_ref()).await?;
        let mut external = external_ca::read(said).await?;
        for external in external.iter_mut().flatten() {
            // For this root unless another is named.
            if external.ca_cert.is_empty() {
                external.ca_cert.clone_from(&cert);
            }
        }
        Ok(Self {
            cert,
            key: read("read the root key", flags.ca_key.as_ref()).await?,
            external,
            expiry,
        })
    }

    fn apply(&self, spec: &mut pb::ClusterSpec) {
        let config = spec.ca_config.get_or_insert_default();
        config.force_rotate = config.force_rotate.saturating_add(1);
        config.signing_ca_cert.clone_from(&self.cert);
        config.signing_ca_key.clone_from(&self.key);
        if let Some(external) = &self.external {
            config.external_cas.clone_from(external);
        }
        if let Some(expiry) = self.expiry {
            config.node_cert_expiry = Some(wire(expiry));
        }
    }
}

/// What of a new root only goes together.
fn check_root(problems: &mut Problems, flags: &Ca) {
    let external = flags.external_ca.iter().any(|said| !said.is_empty());
    let (cert, key) = (flags.ca_cert.is_some(), flags.ca_key.is_some());
    if key && !cert {
        problems.push("--ca-key: it needs its certificate; give --ca-cert too");
    }
    if cert && !key && !external {
        problems.push(
            "--ca-cert: somebody has to sign under this root; give its key with --ca-key, or who has that with --external-ca",
        );
    }
    if external && !cert {
        problems.push(
            "--external-ca: changing to an external root needs its certificate; give --ca-cert too, or name an external CA \
             for the present root with `swarmctl cluster update --external-ca`",
        );
    }
}

pub(super) async fn read(what: &'static str, path: Option<&PathBuf>) -> Result<Vec<u8>, Error> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let failed = |kind, reason: &dyn std::fmt::Display| {
        let text = format!("{}: {reason}", path.display());
        let source = std::io::Error::new(kind, text);
        Error::Local { what, source }
    };
    match tokio::fs::read(path).await {
        // Sent, it would ask for a root that the managers make.
        Ok(content) if content.is_empty() => Err(failed(ErrorKind::InvalidData, &"it is empty")),
        Ok(content) => Ok(content),
        Err(error) => Err(failed(error.kind(), &error)),
    }
}

pub(super) async fn run(
    session: &mut Session<'_>,
    flags: &Ca,
    change: &Change,
) -> Result<(), Error> {
    let mut cluster = resolve::cluster(&mut session.client, None).await?;
    if flags.rotate {
        let rotation = pb::KeyRotation::default();
        let changed = session
            .client
            .update_cluster(cluster.clone(), rotation, |spec| change.apply(spec))
            .await?;
        cluster = changed.unwrap_or(cluster);
        if flags.detach {
            return Ok(());
        }
        cluster = wait(session, cluster, flags.quiet).await?;
    }
    let cert = cluster.root_ca.unwrap_or_default().ca_cert;
    session.print(&[String::from_utf8_lossy(&cert).trim_end().to_owned()])
}

/// Waits until the root that this change named is the cluster's.
async fn wait(
    session: &mut Session<'_>,
    mut cluster: pb::Cluster,
    quiet: bool,
) -> Result<pb::Cluster, Error> {
    let wanted = next(&cluster).map(|rotation| rotation.ca_cert.clone());
    let (mut shown, mut lost_since) = (String::new(), None);
    loop {
        let Some(rotation) = next(&cluster) else {
            let is = cluster.root_ca.as_ref().map(|root| &root.ca_cert);
            // Without one to wait for the change was taken back, or changed nothing.
            return match wanted.is_none() || wanted.as_ref() == is {
                true => Ok(cluster),
                false => Err(given_up()),
            };
        };
        if wanted.as_ref() != Some(&rotation.ca_cert) {
            return Err(given_up());
        }
        if !quiet {
            let told = progress(session, &rotation.waits_for.clone()).await?;
            if told != shown {
                session.remark(&told)?;
                shown = told;
            }
        }
        pause(session).await?;
        match session.client.get_cluster(&cluster.id).await {
            Ok(Some(now)) => (cluster, lost_since) = (now, None),
            Ok(None) => return Err(given_up()),
            Err(error) => lost(session, error, &mut lost_since)?,
        }
    }
}

fn next(cluster: &pb::Cluster) -> Option<&pb::RootRotation> {
    cluster.root_ca.as_ref()?.root_rotation.as_ref()
}

fn given_up() -> Error {
    Error::Rejected {
        what: "rotate the root CA".to_owned(),
        reason: "another change of the root took the place of this one; `swarmctl cluster inspect` shows where it stands"
            .to_owned(),
    }
}

async fn pause(session: &mut Session<'_>) -> Result<(), Error> {
    tokio::select! {
        biased;
        () = &mut session.interrupt => Err(Error::Interrupted {
            what: "the change of the root CA".to_owned(),
            look: "swarmctl cluster inspect".to_owned(),
        }),
        () = session.clock.sleep(POLL) => Ok(()),
    }
}

/// A manager that is gone for a moment ends no wait: each has its certificate renewed meanwhile.
fn lost(
    session: &mut Session<'_>,
    error: Error,
    since: &mut Option<SystemTime>,
) -> Result<(), Error> {
    let now = session.now();
    let passed = |since: SystemTime| now.duration_since(since).unwrap_or_default();
    if !error.is_passing() || since.is_some_and(|since| passed(since) >= LOST_MAX) {
        return Err(error);
    }
    if since.is_none() {
        *since = Some(now);
        session.remark(&format!("{error}; still trying"))?;
    }
    Ok(())
}

/// `root CA: 2 of 4 nodes are done; waits for n3 (down), n4 (ready)`
async fn progress(session: &mut Session<'_>, left: &[String]) -> Result<String, Error> {
    let nodes = session.client.list_nodes(Default::default()).await;
    let nodes = nodes.unwrap_or_default();
    let mut names: Vec<String> = nodes
        .iter()
        .filter(|node| left.contains(&node.id))
        .map(|node| {
            let state = node.status.clone().unwrap_or_default().state();
            let state = state.as_str_name().to_lowercase();
            format!("{} ({state})", node_name(node))
        })
        .collect();
    names.sort();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let done = nodes.len().saturating_sub(left.len());
    let all = count(nodes.len() as u64, "node");
    Ok(format!(
        "root CA: {done} of {all} have a certificate under the new root; waits for {}",
        names.join(", ")
    ))
}
