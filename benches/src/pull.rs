//! How long an image takes from the registry to unpacked layers, beside `ctr image pull` in the same run.
//!
//! Both use one containerd and one registry on this machine, and take turns. Before each pull nothing
//! of the image is there.

use std::path::Path;
use std::time::{Duration, Instant};

use agent_runtime::containerd::{ContainerdConfig, ContainerdExecutor};
use lab::Lab;
use lab::image::{Image, Layer, OCI, Recipe, Stored, architecture};
use lab::lab::available_with;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Failure;
use super::report::{Report, round, say, spread};

const RUNS: usize = 5;
/// Time for containerd to forget what was removed.
const FORGET_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// What ours must stay below, of the time that `ctr` takes.
const BAR: f64 = 0.9;

/// Runs the cases named, or all.
pub(crate) async fn run(only: &[&str]) -> Result<(), Failure> {
    let wanted = |case| only.is_empty() || only.contains(&case);
    let mut report = Report::default();
    if !available_with("pulls beside ctr", &[]) {
        return Err("bench pull needs root, containerd, docker-registry and ctr".into());
    }
    if wanted("200MB") {
        report.add(case("200MB", 1, 200)?.measure().await?);
    }
    if wanted("10x20MB") {
        report.add(case("10x20MB", 10, 20)?.measure().await?);
    }
    report.finish("pull")
}

struct Case {
    name: &'static str,
    lab: Lab,
    image: String,
    layers: Vec<String>,
}

/// An image of so many layers of so many megabytes, half of it noise, compressed.
fn case(name: &'static str, layers: u64, megabytes: usize) -> Result<Case, Failure> {
    say(&format!("{name}: making the image"));
    let mut lab = Lab::new()?;
    let registry = lab.registry.start_loopback()?;
    let made: Vec<Layer> = (0..layers)
        .map(|number| Layer::of_tar(archive(number, megabytes), Stored::Gzip))
        .collect::<Result<_, _>>()?;
    let image = Image::of(&Recipe {
        format: OCI,
        architecture: architecture(),
        config: &json!({"Cmd": ["none"]}),
        layers: &made,
    });
    lab.registry.push("bench", name, &image)?;
    Ok(Case {
        name,
        image: format!("{registry}/bench:{name}"),
        layers: image.blobs.into_iter().map(|blob| blob.digest).collect(),
        lab,
    })
}

/// A tar file with files of a megabyte, as an image has many; every other one can be compressed.
fn archive(seed: u64, megabytes: usize) -> Vec<u8> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed + 1);
    let mut entries = Vec::new();
    for number in 0..megabytes {
        let mut content = vec![b'a'; 1_000_000];
        if number % 2 == 0 {
            random.fill(content.as_mut_slice());
        }
        entries.push(lab::image::Entry::file(
            &format!("layer-{seed}-file-{number}"),
            0o644,
            content,
        ));
    }
    lab::image::archive(&entries).unwrap_or_default()
}

impl Case {
    async fn measure(self) -> Result<Value, Failure> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            theirs.push(self.by_ctr().await?);
            ours.push(self.by_us().await?);
            say(&format!(
                "{}: run {run}: ours {:.2} s, ctr {:.2} s",
                self.name,
                ours.last().copied().unwrap_or_default(),
                theirs.last().copied().unwrap_or_default()
            ));
        }
        let (median, min, max) = spread(&ours).ok_or("no run")?;
        let (reference, ..) = spread(&theirs).ok_or("no run")?;
        Ok(json!({
            "bench": "pull", "case": self.name, "runs": RUNS, "seconds": round(median),
            "min": round(min), "max": round(max), "reference": round(reference),
            "bar": round(reference * BAR),
        }))
    }

    async fn by_us(&self) -> Result<f64, Failure> {
        let address = self.lab.containerd.engine_address();
        let state = self.lab.site.state().join("bench");
        let namespace = self.lab.site.host_name("bench");
        let config = ContainerdConfig::new(&address, &namespace, state);
        let executor = ContainerdExecutor::connect(config).await?;
        let store = executor.images().await?;
        self.until_forgotten().await?;
        let begin = Instant::now();
        let told = watch::channel(Default::default()).0;
        store.pull(&self.image, Default::default(), told).await?;
        let seconds = begin.elapsed().as_secs_f64();
        executor.purge().await?;
        Ok(seconds)
    }

    async fn by_ctr(&self) -> Result<f64, Failure> {
        self.until_forgotten().await?;
        let containerd = &self.lab.containerd;
        let begin = Instant::now();
        containerd.ctr("ctr", &["images", "pull", "--plain-http", &self.image])?;
        let seconds = begin.elapsed().as_secs_f64();
        containerd.ctr("ctr", &["images", "rm", "--sync", &self.image])?;
        Ok(seconds)
    }

    /// Nothing of the image is in containerd.
    async fn until_forgotten(&self) -> Result<(), Failure> {
        let root = self.lab.containerd.state().join("root");
        let blobs = root.join("io.containerd.content.v1.content/blobs/sha256");
        let here = |digest: &String| {
            let hex = digest.trim_start_matches("sha256:");
            Path::new(&blobs).join(hex).exists()
        };
        let begin = Instant::now();
        while self.layers.iter().any(here) {
            if begin.elapsed() > FORGET_MAX {
                return Err("containerd keeps the content of a removed image".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}
