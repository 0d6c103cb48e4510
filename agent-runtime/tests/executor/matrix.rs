//! Images of every form against what skopeo and umoci make of them, and archives of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::suite::Subject as _;
use ::lab::image::{DOCKER, Format, Image, Layer, OCI, Recipe, Stored, architecture, index};
use ::lab::registry::{PASSWORD, USER};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use swarm_proto::registry_auth::Credentials;

use crate::lab::{Lab, Node, run as output};

/// What the comparison needs, with its Debian packages.
const NEEDED: [(&str, &str); 4] = [
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("zstd", "zstd"),
    ("setfattr", "attr"),
];
/// Bytes of the large layer.
const LARGE_MIB: usize = 200;
const MANY: usize = 60;

/// Makes the tree of each layer with the shell that made images for decades.
const BASE: &str = "mkdir -p etc d/keep d/gone opaque/old bin; echo base > etc/file; echo old > opaque/old/x; \
    echo gone > d/gone/x; echo gone > d/file; ln etc/file etc/hard; ln -s file etc/soft; mknod d/null c 1 3; \
    mknod d/block b 7 0; mkfifo d/fifo; chown 1000:1001 etc/file; chmod 4755 etc/file; chmod 1777 d/keep; \
    setfattr -n user.note -v hello etc/file; echo ping > bin/ping; chmod 755 bin/ping; \
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 bin/ping";
const CHANGES: &str = "mkdir -p d opaque etc; touch d/.wh.gone d/.wh.file opaque/.wh..wh..opq; echo new > opaque/new; \
    echo more > etc/more; ln etc/more etc/more-hard; chmod 700 opaque";

pub(crate) async fn run(lab: &mut Lab) {
    if !::lab::lab::available_with("images against skopeo and umoci", &NEEDED) {
        return;
    }
    let work = lab.path("matrix");
    fs::create_dir_all(&work).unwrap();
    let base = tar_of(&work.join("base"), BASE);
    let changes = tar_of(&work.join("changes"), CHANGES);
    let node = lab.subject("matrix");
    for (name, format, stored) in [
        ("oci-plain", OCI, Stored::Plain),
        ("oci-gzip", OCI, Stored::Gzip),
        ("oci-zstd", OCI, Stored::Zstd),
        ("docker-plain", DOCKER, Stored::Plain),
        ("docker-gzip", DOCKER, Stored::Gzip),
    ] {
        let layers = [&base, &changes];
        let layers = layers.map(|tar| Layer::of_tar(tar.clone(), stored).unwrap());
        let made = image(name, format, architecture(), &layers);
        same(lab, &node, (name, &made), None).await;
        let other = image(name, format, "s390x", &layers);
        let both = index(format, &[&other, &made]);
        let several = format!("{name}-index");
        lab.machine
            .registry
            .push(&several, "there", &other)
            .unwrap();
        lab.machine.registry.push(&several, "here", &made).unwrap();
        same(lab, &node, (&several, &made), Some(&both)).await;
    }
    large_and_many(lab, &node, &work).await;
    traversal_is_refused(lab, &node, &work).await;
    archives_are_imported(lab, &node, &work).await;
    lab.machine.registry.start_https().unwrap();
    lab.machine.registry.start_closed().unwrap();
    by_every_front(lab, &work).await;
    node.executor().await.purge().await.unwrap();
}

async fn large_and_many(lab: &Lab, node: &Node, work: &Path) {
    let script = format!("head -c {LARGE_MIB}M /dev/urandom > large");
    let tar = tar_of(&work.join("large"), &script);
    let layers = [Layer::of_tar(tar, Stored::Plain).unwrap()];
    let large = image("large", OCI, architecture(), &layers);
    same(lab, node, ("large", &large), None).await;
    let layers: Vec<Layer> = (0..MANY)
        .map(|number| {
            let script = format!("echo {number} > last; mkdir d; echo {number} > d/{number}");
            let tar = tar_of(&work.join(format!("many-{number}")), &script);
            Layer::of_tar(tar, Stored::Gzip).unwrap()
        })
        .collect();
    let many = image("many", OCI, architecture(), &layers);
    same(lab, node, ("many", &many), None).await;
}

/// Over HTTPS, and where the registry asks who one is: the same again, of blobs that nobody has yet.
async fn by_every_front(lab: &Lab, work: &Path) {
    let registry = &lab.machine.registry;
    let mut node = lab.subject("fronts");
    node.config.registries.ca = Some(registry.ca_certificate());
    let password = Credentials::Basic {
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
    };
    let fronts = [
        ("https", registry.https(), Credentials::Anonymous),
        ("closed", registry.closed(), password),
    ];
    for (front, address, credentials) in fronts {
        for (kind, format, stored) in [
            ("oci-zstd", OCI, Stored::Zstd),
            ("docker-gzip", DOCKER, Stored::Gzip),
        ] {
            let name = format!("{front}-{kind}");
            let tar = tar_of(&work.join(&name), &format!("{BASE}; echo {name} > name"));
            let layer = Layer::of_tar(tar.clone(), stored).unwrap();
            let made = image(&name, format, architecture(), &[layer]);
            let both = index(format, &[&made]);
            registry.push(&name, "here", &made).unwrap();
            registry.push_index(&name, "1", &both).unwrap();
            // What the reference tools can read of it, without a front in between.
            let plain = Layer::of_tar(tar, Stored::Plain).unwrap();
            let plain = image(&name, format, architecture(), &[plain]);
            registry.push(&name, "plain", &plain).unwrap();

            let reference = format!("{address}/{name}:1");
            let executor = node.executor().await;
            let store = executor.images().await.unwrap();
            let told = || tokio::sync::watch::channel(Default::default()).0;
            if front == "closed" {
                let refused = store.pull(&reference, Credentials::Anonymous, told()).await;
                let error = refused.unwrap_err().to_string();
                assert!(
                    error.contains(&address) && error.contains("not authorized"),
                    "{error}"
                );
                eprintln!("as told: {error}");
            }
            let pulled = store.pull(&reference, credentials.clone(), told()).await;
            pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
            let ours = tree_of(lab, &node, &reference);
            let known = lab.image(&format!("{name}:plain"));
            assert_eq!(ours, reference_tree(lab, &known, &name), "{name}");
        }
    }
    node.executor().await.purge().await.unwrap();
}

/// A layer that would write outside of its root writes inside, or is refused; never outside.
async fn traversal_is_refused(lab: &Lab, node: &Node, work: &Path) {
    let target = work.join("escaped");
    let up = "../".repeat(20);
    let inside = work.join("traversal");
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("x"), "out").unwrap();
    let away = format!("{up}{}", target.strip_prefix("/").unwrap().display());
    for transform in [
        format!("s,^./x$,{away},"),
        format!("s,^./x$,{},", target.display()),
    ] {
        let tar = output(Command::new("tar").args(["-P", "-C"]).arg(&inside).args([
            "--transform",
            &transform,
            "-cf",
            "/dev/stdout",
            "./x",
        ]));
        let layers = [Layer::of_tar(tar.into_bytes(), Stored::Plain).unwrap()];
        let made = image("traversal", OCI, architecture(), &layers);
        lab.machine.registry.push("traversal", "1", &made).unwrap();
        let executor = node.executor().await;
        let store = executor.images().await.unwrap();
        let name = lab.image("traversal:1");
        let told = tokio::sync::watch::channel(Default::default()).0;
        let pulled = store.pull(&name, Default::default(), told).await;
        eprintln!("as told: {pulled:?}");
        assert!(!target.exists());
    }
}

/// skopeo writes both kinds of archive; what comes in by one is what the registry has.
async fn archives_are_imported(lab: &Lab, node: &Node, work: &Path) {
    let executor = node.executor().await;
    let store = executor.images().await.unwrap();
    let source = format!("docker://{}", lab.image("oci-gzip:1"));
    for kind in ["oci-archive", "docker-archive"] {
        let file = work.join(format!("{kind}.tar"));
        let target = format!("{kind}:{}:example.test/{kind}:1", file.display());
        output(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &source, &target]));
        let content = Bytes::from(fs::read(&file).unwrap());
        let pieces = |content: Bytes| {
            let pieces: Vec<_> = content
                .chunks(100_000)
                .map(Bytes::copy_from_slice)
                .collect();
            futures::stream::iter(pieces.into_iter().map(Ok)).boxed()
        };
        let images = store.import(pieces(content.clone()), None).await.unwrap();
        let names: Vec<_> = images.iter().map(|image| image.name.clone()).collect();
        assert_eq!(names, [format!("example.test/{kind}:1")]);
        let ours = tree_of(lab, node, &names[0]);
        assert_eq!(ours, tree_of(lab, node, &lab.image("oci-gzip:1")), "{kind}");
        let named = store
            .import(pieces(content.clone()), Some("other.test/x:2"))
            .await;
        assert_eq!(named.unwrap()[0].name, "other.test/x:2");
        // Half of it is no archive, and a changed one not this image.
        let half = content.slice(..content.len() / 2);
        let error = store.import(pieces(half), None).await.unwrap_err();
        eprintln!("as told: {error}");
        store.remove(&names[0], false).await.unwrap();
        store.remove("other.test/x:2", false).await.unwrap();
    }
    assert!(!store.list().await.unwrap().is_empty());
}

fn image(name: &str, format: &'static Format, architecture: &str, layers: &[Layer]) -> Image {
    Image::of(&Recipe {
        format,
        architecture,
        config: &json!({"Cmd": ["none"], "Labels": {"name": name}}),
        layers,
    })
}

/// A directory made by a script, as an archive.
fn tar_of(directory: &Path, script: &str) -> Vec<u8> {
    fs::create_dir_all(directory).unwrap();
    output(
        Command::new("sh")
            .args(["-ec", script])
            .current_dir(directory),
    );
    let mut command = Command::new("tar");
    command
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--sort=name",
            "--mtime=@0",
            "-C",
        ])
        .arg(directory);
    let tar = command.args(["-cf", "-", "."]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

/// Pushes the image, and compares what comes out of it here and there.
async fn same(
    lab: &Lab,
    node: &Node,
    (name, made): (&str, &Image),
    several: Option<&::lab::image::Blob>,
) {
    let registry = &lab.machine.registry;
    match several {
        Some(index) => registry.push_index(name, "1", index).unwrap(),
        None => registry.push(name, "1", made).unwrap(),
    };
    let executor = node.executor().await;
    let store = executor.images().await.unwrap();
    let reference = lab.image(&format!("{name}:1"));
    let told = tokio::sync::watch::channel(Default::default()).0;
    let pulled = store.pull(&reference, Default::default(), told).await;
    pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
    let ours = tree_of(lab, node, &reference);
    assert!(!ours.is_empty());
    for attribute in ["user.note=", "security.capability="] {
        let there = ours.iter().any(|line| line.contains(attribute));
        assert!(there || ["large", "many"].contains(&name), "{ours:#?}");
    }
    // umoci does not know zstd; the layers are those of the plain image.
    let known = name.replace("zstd", "plain");
    let reference = lab.image(&format!("{known}:1"));
    assert_eq!(ours, reference_tree(lab, &reference, &known), "{name}");
    eprintln!("{name}: the same tree, {} lines", ours.len());
}

/// The tree of an image that is here.
fn tree_of(lab: &Lab, node: &Node, image: &str) -> Vec<String> {
    let at = lab.path("mounted");
    fs::create_dir_all(&at).unwrap();
    let path = at.display().to_string();
    lab.ctr(node, &["images", "mount", image, &path]);
    let lines = tree(&at);
    lab.ctr(node, &["images", "unmount", "--rm", &path]);
    lines
}

/// The tree as skopeo and umoci have it.
fn reference_tree(lab: &Lab, image: &str, name: &str) -> Vec<String> {
    let layout = lab.path(&format!("layout-{name}"));
    let bundle = lab.path(&format!("bundle-{name}"));
    for old in [&layout, &bundle] {
        let _ = fs::remove_dir_all(old);
    }
    let source = format!("docker://{image}");
    let target = format!("oci:{}:x", layout.display());
    output(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &source, &target]));
    let layout = format!("{}:x", layout.display());
    output(
        Command::new("umoci")
            .args(["unpack", "--image", &layout])
            .arg(&bundle),
    );
    tree(&bundle.join("rootfs"))
}

/// Everything below a directory, one line each: kind, mode, owner, size, device, links, contents.
fn tree(root: &Path) -> Vec<String> {
    let mut command = Command::new("find");
    command.arg(root).args([
        "-mindepth",
        "1",
        "-type",
        "d",
        "-printf",
        "%P %y %m %U:%G\n",
        "-o",
        "-type",
        "l",
        "-printf",
        "%P %y %U:%G %l\n",
        "-o",
        "-mindepth",
        "1",
        "-printf",
        "%P %y %m %U:%G %s %n\n",
    ]);
    let mut lines: Vec<String> = output(&mut command).lines().map(str::to_owned).collect();
    let mut add = |script: &str| {
        let text = output(Command::new("sh").args(["-c", script]).current_dir(root));
        lines.extend(text.lines().map(str::to_owned));
    };
    add("find . -type f -exec sha256sum {} + ");
    add("find . \\( -type b -o -type c \\) -exec stat -c '%n %t:%T' {} + ");
    add(
        "getfattr --recursive --no-dereference --dump --match '^(user[.]|security[.]capability)' . \
         | awk '/^# file: /{file=$3} /=/{print file, $0}'",
    );
    lines.sort();
    lines
}
