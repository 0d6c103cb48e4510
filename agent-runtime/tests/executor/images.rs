//! Images for the tests, made of busybox and pushed to the lab's registry.

use std::fs;

use ::lab::image::{DOCKER, Entry, Format, Image, Layer, OCI, Recipe, architecture, index};
use ::lab::registry::Registry;
use serde_json::json;

/// An architecture that no machine of the tests has.
const FOREIGN: &str = "s390x";

pub(crate) struct Images {
    layers: Vec<Layer>,
}

/// Busybox with its links.
pub(crate) fn busybox() -> Vec<Entry> {
    let mut entries = vec![
        Entry::directory("bin", 0o755),
        Entry::directory("tmp", 0o755),
        Entry::file("bin/busybox", 0o755, fs::read("/bin/busybox").unwrap()),
    ];
    let links =
        "sh sleep cat id hostname nc ls env pwd mkdir touch ip dd kill stat httpd echo tail grep";
    let links = links.split(' ');
    entries.extend(links.map(|name| Entry::link(&format!("bin/{name}"), "busybox")));
    entries
}

/// Two layers: busybox, plain, and some files, compressed.
fn layers() -> Vec<Layer> {
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/web:/bin/sh\n";
    let second = [
        Entry::directory("etc", 0o755),
        Entry::directory("data", 0o755),
        Entry::directory("data/deep", 0o755).owned_by(33, 34),
        Entry::file("data/deep/file", 0o644, "from the image"),
        Entry::file("etc/passwd", 0o644, passwd),
        Entry::file("etc/group", 0o644, "root:x:0:\nwww:x:34:\naudio:x:29:web\n"),
    ];
    vec![
        Layer::plain(&busybox()).unwrap(),
        Layer::compressed(&second).unwrap(),
    ]
}

/// An image of the repository's own: its configuration differs from that of the same layers elsewhere.
fn image(repository: &str, format: &'static Format, architecture: &str, layers: &[Layer]) -> Image {
    Image::of(&Recipe {
        format,
        architecture,
        config: &json!({
            "Env": ["FROM=image"],
            "WorkingDir": "/tmp",
            "Cmd": ["sh"],
            "Labels": {"repository": repository},
        }),
        layers,
    })
}

/// An image of one layer that no other image has.
fn image_with(name: &str) -> Image {
    let mut entries = busybox();
    entries.push(Entry::file(name, 0o644, "only here"));
    let layer = Layer::plain(&entries).unwrap();
    image(name, OCI, architecture(), &[layer])
}

impl Images {
    pub(crate) fn new() -> Self {
        Self { layers: layers() }
    }

    /// Pushes every image of the tests; returns the digest of `test:1`.
    pub(crate) fn push(&self, registry: &Registry) -> String {
        let test = image("test", OCI, architecture(), &self.layers);
        registry.push("test", "1", &test).unwrap();
        let docker = image("docker", DOCKER, architecture(), &self.layers);
        registry.push("docker", "1", &docker).unwrap();
        for (name, format) in [("index", OCI), ("list", DOCKER)] {
            let fits = image(name, format, architecture(), &self.layers);
            let other = image(name, format, FOREIGN, &self.layers);
            registry.push(name, "here", &fits).unwrap();
            registry.push(name, "there", &other).unwrap();
            let both = index(format, &[&other, &fits]);
            registry.push_index(name, "1", &both).unwrap();
        }
        let other = image("foreign", OCI, FOREIGN, &self.layers);
        registry.push("foreign", "there", &other).unwrap();
        let other = index(OCI, &[&other]);
        registry.push_index("foreign", "1", &other).unwrap();
        test.manifest.digest
    }

    /// The layers of `test:1` and so many small ones.
    pub(crate) fn push_layered(&self, registry: &Registry, count: usize) {
        let mut layers = self.layers.clone();
        layers.extend((0..count).map(|number| {
            let file = Entry::file(&format!("layer-{number}"), 0o644, format!("{number}\n"));
            Layer::plain(&[file]).unwrap()
        }));
        let layered = image("layered", OCI, architecture(), &layers);
        registry.push("layered", "1", &layered).unwrap();
    }
}

/// An image with a layer that no other image has: `counted:1`.
pub(crate) fn push_counted(registry: &Registry) {
    let counted = image_with("counted");
    registry.push("counted", "1", &counted).unwrap();
}

/// One image with a layer of its own, under several tags.
pub(crate) fn push_twins(registry: &Registry, count: usize) -> Vec<String> {
    let twin = image_with("twins");
    let push = |tag: usize| {
        registry.push("twins", &tag.to_string(), &twin).unwrap();
        format!("twins:{tag}")
    };
    (0..count).map(push).collect()
}
