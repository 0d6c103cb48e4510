//! Checks the settings on images: registries, and when unused images go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_runtime::image::Collection;
use agent_runtime::registry::{Mirror, Registries};

use super::Settings;
use super::check::Check;

/// Where Docker keeps certificates of registries.
const CERTIFICATES: &str = "/etc/docker/certs.d";

pub(super) fn registries(c: &mut Check, s: &Settings) -> Registries {
    let ca = c.parse("registry-ca", s.registry_ca.as_deref(), None, certificate);
    for registry in s.insecure_registry.iter().filter(|r| r.contains("://")) {
        c.errors.push(format!(
            "--insecure-registry {registry:?}: must be host, host:port, address or CIDR, without a scheme"
        ));
    }
    let certificates = c.parse(
        "registry-certs",
        s.registry_certs.as_deref(),
        Some(PathBuf::from(CERTIFICATES)),
        |v| match Path::new(v).is_dir() {
            true => Ok(Some(PathBuf::from(v))),
            false => Err("is no directory".to_owned()),
        },
    );
    let credentials = c.parse(
        "registry-config",
        s.registry_config.as_deref(),
        None,
        docker_config,
    );
    let mut mirrors = Vec::new();
    for text in &s.registry_mirror {
        match text.parse::<Mirror>() {
            Ok(mirror) => mirrors.push(mirror),
            Err(error) => c.errors.push(format!(
                "--registry-mirror {:?}: {error}",
                without_secret(text)
            )),
        }
    }
    Registries {
        insecure: s.insecure_registry.clone(),
        ca,
        certificates,
        credentials,
        mirrors,
        ..Registries::default()
    }
}

/// The text without what may be a user name and a password.
fn without_secret(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…@{after}"),
        None => format!("…@{after}"),
    }
}

fn certificate(path: &str) -> Result<Option<PathBuf>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(Some(PathBuf::from(path))),
        Ok(_) => Err("holds no certificate; must be a PEM file".to_owned()),
        Err(error) => Err(format!("can't be read: {error}")),
    }
}

/// Its content may change later; that it can be read now is worth a check.
fn docker_config(path: &str) -> Result<Option<PathBuf>, String> {
    let content = std::fs::read(path).map_err(|error| format!("can't be read: {error}"))?;
    swarm_proto::registry_auth::DockerConfig::parse(&content).map_err(|error| error.to_string())?;
    Ok(Some(PathBuf::from(path)))
}

pub(super) fn collection(c: &mut Check, s: &Settings) -> Collection {
    let default = Collection::default();
    let age = c.parse(
        "image-gc-age",
        s.image_gc_age.as_deref(),
        default.age,
        |v| duration(v).map(|age| (!age.is_zero()).then_some(age)),
    );
    let minimum_age = c.parse(
        "image-minimum-gc-age",
        s.image_minimum_gc_age.as_deref(),
        default.minimum_age,
        duration,
    );
    let high_percent = c.parse(
        "image-gc-high-threshold",
        s.image_gc_high_threshold.as_deref(),
        default.high_percent,
        percent,
    );
    let low_percent = c.parse(
        "image-gc-low-threshold",
        s.image_gc_low_threshold.as_deref(),
        default.low_percent.min(high_percent),
        percent,
    );
    if low_percent > high_percent {
        c.errors.push(format!(
            "--image-gc-low-threshold {low_percent}: must not be above --image-gc-high-threshold {high_percent}"
        ));
    }
    Collection {
        age,
        high_percent,
        low_percent,
        minimum_age,
    }
}

fn percent(value: &str) -> Result<u8, String> {
    match value.trim_end_matches('%').parse() {
        Ok(percent @ 0..=100) => Ok(percent),
        Ok(_) | Err(_) => Err("must be a percentage, 0 to 100".to_owned()),
    }
}

/// `90s`, `2m`, `12h`, `7d`, also one after another.
fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .or_else(|error| match value {
            "0" => Ok(Duration::ZERO),
            _ => Err(error),
        })
        .map_err(|_| "must be a duration such as 90s, 12h or 7d".to_owned())
}
