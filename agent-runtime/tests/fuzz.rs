//! Parsers of what registries, operators and archives say, fed with what nobody meant.
//!
//! Each target starts from inputs that are right, and changes them: bytes flipped, taken out, put in, doubled, two inputs
//! joined. The changes come from a seed, so a failure repeats; the input that failed is printed. Runs for a second a
//! target, or for `FUZZ_SECONDS` (`make test-fuzz`: 60), from `FUZZ_SEED`.
//!
//! A target more is a function, its inputs and a line in a test below.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: it ends at the first surprise, reads clock and environment, and talks"
)]

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use agent_runtime::fuzzing;
use swarm_proto::reference::Reference;
use swarm_proto::registry_auth::{Credentials, DockerConfig, helper_answer};

/// Inputs grow by insertion, up to so many bytes.
const LENGTH_MAX: usize = 64 << 10;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*, https://doi.org/10.18637/jss.v008.i14
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Pieces that parsers have an opinion on.
const PIECES: [&[u8]; 14] = [
    b"\0",
    b"\xff",
    b"\"",
    b"{",
    b"[",
    b":",
    b"/",
    b"@",
    b"..",
    b"-1",
    b"99999999999999999999",
    b"null",
    b"\xc3\x28",
    b"\r\n",
];

fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(32)).min(input.len());
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            4 => {
                let doubled = input[at..end].to_vec();
                drop(input.splice(at..at, doubled));
            }
            5 => input.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(LENGTH_MAX);
    }
    input
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let mut random = Random(number("FUZZ_SEED", 1).max(1));
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", 1));
    let mut runs: u64 = 0;
    let mut run = |input: &[u8]| {
        let ended = catch_unwind(AssertUnwindSafe(|| target(input)));
        if ended.is_err() {
            panic!("{name} panics on: {}", input.escape_ascii());
        }
        runs += 1;
    };
    for seed in seeds {
        run(seed);
    }
    while Instant::now() < end {
        for _ in 0..64 {
            run(&changed(seeds, &mut random));
        }
    }
    eprintln!("{name}: {runs} inputs");
    assert!(runs > 64);
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or("\u{fffd}x")
}

#[test]
fn image_references() {
    let hex = "a".repeat(64);
    let digest = format!("localhost:5000/a/b:1@sha256:{hex}");
    let seeds = texts(&[
        "nginx",
        "docker.io/library/nginx:1.27",
        &digest,
        "[::1]:5000/x:y",
        "R.test/a__b",
    ]);
    fuzz("references", &seeds, |data| {
        if let Ok(reference) = text(data).parse::<Reference>() {
            assert_eq!(reference.to_string().parse(), Ok(reference));
        }
    });
}

#[test]
fn manifests() {
    let seeds = texts(&[
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a","digest":"sha256:1","size":2},"layers":[{"mediaType":"b","digest":"sha256:2","size":3,"urls":["x"]}]}"#,
        r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:3","size":1,"platform":{"os":"linux","architecture":"amd64","variant":"v2"}},{"digest":"sha256:4","platform":{"os":"linux","architecture":"arm"}}]}"#,
    ]);
    fuzz("manifests", &seeds, fuzzing::manifest);
}

#[test]
fn image_configs() {
    let seeds = texts(&[
        r#"{"created":"2026-01-01T00:00:00Z","config":{"User":"a","Env":["A=b"],"Cmd":["c"],"Volumes":{"/v":{}},"StopSignal":"15"},"rootfs":{"type":"layers","diff_ids":["sha256:1","sha256:2"]}}"#,
    ]);
    fuzz("image configs", &seeds, fuzzing::image_config);
}

#[test]
fn credentials() {
    let seeds = texts(&[
        "eyJ1c2VybmFtZSI6ImFubiIsInBhc3N3b3JkIjoicHcifQ==",
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YW5uOnB3"},"r:5000":{"username":"a","password":"b"}},"credsStore":"x","credHelpers":{"r.test":"y"}}"#,
        r#"{"ServerURL":"a","Username":"<token>","Secret":"s"}"#,
    ]);
    fuzz("credentials", &seeds, |data| {
        let _ = Credentials::decode(text(data));
        let _ = helper_answer(data);
        if let Ok(config) = DockerConfig::parse(data) {
            let _ = config.lookup("r.test");
        }
    });
}

#[test]
fn signals() {
    let seeds = texts(&["SIGTERM", "15", "RTMIN+3", "kill", "64"]);
    fuzz("signals", &seeds, |data| {
        let _ = swarm_proto::signal::signal_number(text(data));
    });
}

#[test]
fn mirrors() {
    let seeds = texts(&["https://mirror.test", "quay.io=http://10.0.0.1:5000/x"]);
    fuzz("mirrors", &seeds, |data| {
        let _ = text(data).parse::<agent_runtime::registry::Mirror>();
    });
}

/// A tar file of members with contents.
fn tar(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// A tar file with a link and an extended header.
fn linked(manifest: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "l/layer.tar", "../m/layer.tar")
        .unwrap();
    let records = [("path", b"m/layer.tar".as_slice()), ("size", b"1")];
    builder.append_pax_extensions(records).unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(archive.len() - 1024);
    archive.extend(tar(&[
        ("short", "x"),
        ("c.json", "{}"),
        ("manifest.json", manifest),
    ]));
    archive
}

#[test]
fn archives() {
    let index = r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","annotations":{"io.containerd.image.name":"a:1"}}]}"#;
    let blob = "blobs/sha256/44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#;
    let seeds = [
        tar(&[("oci-layout", "{}"), ("index.json", index), (blob, "{}")]),
        tar(&[
            ("c.json", "{}"),
            ("l/layer.tar", "x"),
            ("manifest.json", manifest),
        ]),
        linked(manifest),
    ];
    fuzz("archives", &seeds, |data| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(data).unwrap();
        fuzzing::archive(file);
    });
}
