//! Images for the tests, made of busybox and pushed to the test's registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::{Client, Reference};
use serde_json::{Value, json};

const OCI: &str = "application/vnd.oci.image";
const DOCKER: &str = "application/vnd.docker";

/// One layer, as it is stored.
#[derive(Clone)]
struct Layer {
    diff_id: String,
    data: Vec<u8>,
    zipped: bool,
}

/// A manifest that was pushed, for indexes that name it.
#[derive(Clone)]
pub(crate) struct Pushed {
    pub(crate) digest: String,
    kind: String,
    size: usize,
    architecture: String,
}

pub(crate) struct Images {
    client: Client,
    registry: String,
    layers: Vec<Layer>,
}

pub(crate) fn sha256(data: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, data);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Two layers: busybox with its links, plain, and some files, compressed.
fn layers(dir: &Path) -> Vec<Layer> {
    let first = dir.join("layer1");
    fs::create_dir_all(first.join("bin")).unwrap();
    fs::create_dir_all(first.join("tmp")).unwrap();
    fs::copy("/bin/busybox", first.join("bin/busybox")).unwrap();
    let links =
        "sh sleep cat id hostname nc ls env pwd mkdir touch ip dd kill stat httpd echo tail grep";
    for name in links.split(' ') {
        std::os::unix::fs::symlink("busybox", first.join("bin").join(name)).unwrap();
    }
    let second = dir.join("layer2");
    fs::create_dir_all(second.join("etc")).unwrap();
    fs::create_dir_all(second.join("data/deep")).unwrap();
    fs::write(second.join("data/deep/file"), "from the image").unwrap();
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/web:/bin/sh\n";
    fs::write(second.join("etc/passwd"), passwd).unwrap();
    fs::write(
        second.join("etc/group"),
        "root:x:0:\nwww:x:34:\naudio:x:29:web\n",
    )
    .unwrap();
    std::os::unix::fs::lchown(second.join("data/deep"), Some(33), Some(34)).unwrap();
    vec![layer(&first, false), layer(&second, true)]
}

fn layer(dir: &PathBuf, zipped: bool) -> Layer {
    let tar = output(Command::new("tar").arg("-C").arg(dir).args(["-c", "."]));
    let diff_id = format!("sha256:{}", sha256(&tar));
    if !zipped {
        return Layer {
            diff_id,
            data: tar,
            zipped,
        };
    }
    let path = dir.with_extension("tar");
    fs::write(&path, tar).unwrap();
    Layer {
        diff_id,
        data: output(Command::new("gzip").arg("-nc").arg(&path)),
        zipped,
    }
}

impl Images {
    pub(crate) fn new(dir: &Path, registry: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            accept_invalid_certificates: true,
            ..Default::default()
        };
        let client = Client::try_from(config).unwrap();
        Self {
            client,
            registry: registry.to_owned(),
            layers: layers(dir),
        }
    }

    /// Pushes every image of the tests; returns the digest of `test:1`.
    pub(crate) async fn push(&self) -> String {
        let here = agent_runtime::host::architecture();
        let test = self.image("test:1", OCI, here, &self.layers).await;
        self.image("docker:1", DOCKER, here, &self.layers).await;
        for (name, family) in [("index", OCI), ("list", DOCKER)] {
            let fits = self
                .image(&format!("{name}:here"), family, here, &self.layers)
                .await;
            let other = self
                .image(&format!("{name}:there"), family, "s390x", &self.layers)
                .await;
            self.index(&format!("{name}:1"), family, &[&other, &fits])
                .await;
        }
        let other = self
            .image("foreign:there", OCI, "s390x", &self.layers)
            .await;
        self.index("foreign:1", OCI, &[&other]).await;
        test.digest
    }

    /// An image with a layer that no other image has.
    pub(crate) async fn push_counted(&self, dir: &Path) {
        let only = dir.join("layer1");
        fs::write(only.join("counted"), "only here").unwrap();
        let here = agent_runtime::host::architecture();
        self.image("counted:1", OCI, here, &[layer(&only, false)])
            .await;
    }

    /// One image with a layer of its own, under several tags.
    pub(crate) async fn push_twins(&self, dir: &Path, count: usize) -> Vec<String> {
        let only = dir.join("layer1");
        fs::write(only.join("twins"), "only here").unwrap();
        let layer = [layer(&only, false)];
        let here = agent_runtime::host::architecture();
        let names: Vec<String> = (0..count).map(|tag| format!("twins:{tag}")).collect();
        let mut digests = Vec::new();
        for name in &names {
            digests.push(self.image(name, OCI, here, &layer).await.digest);
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "the tags name one image");
        names
    }

    /// The layers of `test:1` and so many small ones.
    pub(crate) async fn push_layered(&self, dir: &Path, count: usize) {
        let mut layers = self.layers.clone();
        for number in 0..count {
            let one = dir.join("layered").join(number.to_string());
            fs::create_dir_all(&one).unwrap();
            fs::write(one.join(format!("layer-{number}")), format!("{number}\n")).unwrap();
            layers.push(layer(&one, false));
        }
        let here = agent_runtime::host::architecture();
        self.image("layered:1", OCI, here, &layers).await;
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.registry).parse().unwrap()
    }

    async fn blob(&self, name: &str, kind: &str, data: Vec<u8>) -> Value {
        let digest = format!("sha256:{}", sha256(&data));
        let size = data.len();
        self.client
            .push_blob(&self.reference(name), data, &digest)
            .await
            .unwrap();
        json!({ "mediaType": kind, "digest": digest, "size": size })
    }

    async fn image(
        &self,
        name: &str,
        family: &str,
        architecture: &str,
        layers: &[Layer],
    ) -> Pushed {
        let oci = family == OCI;
        let mut descriptors = Vec::new();
        for layer in layers {
            let kind = match (oci, layer.zipped) {
                (true, false) => format!("{OCI}.layer.v1.tar"),
                (true, true) => format!("{OCI}.layer.v1.tar+gzip"),
                (false, false) => format!("{DOCKER}.image.rootfs.diff.tar"),
                (false, true) => format!("{DOCKER}.image.rootfs.diff.tar.gzip"),
            };
            descriptors.push(self.blob(name, &kind, layer.data.clone()).await);
        }
        // Tags of one repository that are made of the same are the same image.
        let repository = name.split(':').next().unwrap_or(name);
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({ "architecture": architecture, "os": "linux",
            "config": { "Env": ["FROM=image"], "WorkingDir": "/tmp", "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": [{ "comment": repository }] });
        let kind = if oci {
            format!("{OCI}.config.v1+json")
        } else {
            format!("{DOCKER}.container.image.v1+json")
        };
        let config = self
            .blob(name, &kind, config.to_string().into_bytes())
            .await;
        let kind = if oci {
            format!("{OCI}.manifest.v1+json")
        } else {
            format!("{DOCKER}.distribution.manifest.v2+json")
        };
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config,
            "layers": descriptors });
        self.manifest(name, &kind, manifest, architecture).await
    }

    async fn index(&self, name: &str, family: &str, entries: &[&Pushed]) {
        let kind = if family == OCI {
            format!("{OCI}.index.v1+json")
        } else {
            format!("{DOCKER}.distribution.manifest.list.v2+json")
        };
        let entry = |pushed: &&Pushed| {
            json!({ "mediaType": pushed.kind, "digest": pushed.digest, "size": pushed.size,
                "platform": { "os": "linux", "architecture": pushed.architecture } })
        };
        let entries: Vec<Value> = entries.iter().map(entry).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
        self.manifest(name, &kind, index, "").await;
    }

    async fn manifest(&self, name: &str, kind: &str, body: Value, architecture: &str) -> Pushed {
        let body = body.to_string().into_bytes();
        let pushed = Pushed {
            digest: format!("sha256:{}", sha256(&body)),
            kind: kind.to_owned(),
            size: body.len(),
            architecture: architecture.to_owned(),
        };
        let kind = kind.parse().unwrap();
        self.client
            .push_manifest_raw(&self.reference(name), body, kind)
            .await
            .unwrap();
        pushed
    }
}
