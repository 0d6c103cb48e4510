//! Image manifests and configs, as far as running an image needs them: OCI and Docker schema 2.

use serde::Deserialize;

use crate::error::Error;
use crate::registry::{MANIFEST_MAX, digest};

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub urls: Vec<String>,
    pub platform: Option<Platform>,
}

/// For which hosts an entry of an index is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    pub architecture: String,
    pub os: String,
    pub variant: Option<String>,
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// What a reference names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// One image.
    Image {
        media_type: String,
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    /// One image per platform.
    Index {
        media_type: String,
        entries: Vec<Descriptor>,
    },
}

impl Manifest {
    pub(crate) fn media_type(&self) -> &str {
        match self {
            Self::Image { media_type, .. } | Self::Index { media_type, .. } => media_type,
        }
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self, Error> {
        if body.len() > MANIFEST_MAX {
            return Err(Error::Fatal(format!(
                "its manifest is larger than {MANIFEST_MAX} bytes"
            )));
        }
        let raw: RawManifest = serde_json::from_slice(body)
            .map_err(|error| Error::Fatal(format!("its manifest can't be read: {error}")))?;
        if raw.schema_version != 2 {
            return Err(Error::Fatal(format!(
                "its manifest has schema version {}, only 2 can be run; push the image again with a current tool",
                raw.schema_version
            )));
        }
        let or = |default: &str| match raw.media_type.as_str() {
            "" => default.to_owned(),
            given => given.to_owned(),
        };
        match (raw.manifests, raw.config, raw.layers) {
            (Some(entries), _, _) => Ok(Self::Index {
                media_type: or("application/vnd.oci.image.index.v1+json"),
                entries,
            }),
            (None, Some(config), Some(layers)) => Ok(Self::Image {
                media_type: or("application/vnd.oci.image.manifest.v1+json"),
                config,
                layers,
            }),
            (None, None, _) | (None, Some(_), None) => {
                Err(Error::Fatal("it is no container image".to_owned()))
            }
        }
    }
}

/// The entry of an index for this host.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    architecture: &str,
) -> Result<&'a Descriptor, Error> {
    let fits =
        |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
    let mut fitting = entries
        .iter()
        .filter(|entry| entry.platform.as_ref().is_some_and(fits));
    let Some(first) = fitting.next() else {
        let offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        return Err(Error::Fatal(format!(
            "it has nothing for linux/{architecture}, only for {}",
            offered.join(", ")
        )));
    };
    // Of several variants (arm/v6, arm/v7) the last one is the newest this architecture word covers.
    let newest = fitting.rfind(|entry| variant(entry) > variant(first));
    Ok(newest.unwrap_or(first))
}

fn variant(entry: &Descriptor) -> Option<&str> {
    entry
        .platform
        .as_ref()
        .and_then(|platform| platform.variant.as_deref())
}

/// An image's config: how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    /// When it was built, in RFC 3339.
    pub created: Option<String>,
    pub config: RunConfig,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    pub diff_ids: Vec<String>,
}

/// What the image says of its process. Null and absent mean the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct RunConfig {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    pub volumes: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    pub healthcheck: Option<crate::health::ImageCheck>,
    /// What runs command lines.
    pub shell: Option<Vec<String>>,
}

impl ImageConfig {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(body)
            .map_err(|error| Error::Fatal(format!("its config can't be read: {error}")))
    }
}

/// The chain id of each layer: the first is its diff id, the next `sha256(parent + " " + diff id)`.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => digest(format!("{parent} {diff_id}").as_bytes()),
        };
        chains.push(chain);
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_docker_and_oci() {
        let image = br#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
            "config":{"mediaType":"c","digest":"sha256:aa","size":1},"layers":[{"mediaType":"l","digest":"sha256:bb","size":2}]}"#;
        let parsed = Manifest::parse(image).unwrap();
        assert_eq!(
            parsed.media_type(),
            "application/vnd.docker.distribution.manifest.v2+json"
        );
        let index = br#"{"schemaVersion":2,"manifests":[
            {"digest":"sha256:1","platform":{"os":"linux","architecture":"arm64"}},
            {"digest":"sha256:2","platform":{"os":"unknown","architecture":"unknown"}},
            {"digest":"sha256:3","platform":{"os":"linux","architecture":"arm","variant":"v6"}},
            {"digest":"sha256:4","platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}"#;
        let Manifest::Index { entries, .. } = Manifest::parse(index).unwrap() else {
            panic!()
        };
        assert_eq!(choose(&entries, "arm64").unwrap().digest, "sha256:1");
        assert_eq!(choose(&entries, "arm").unwrap().digest, "sha256:4");
        let error = choose(&entries, "amd64").unwrap_err().to_string();
        assert_eq!(
            error,
            "it has nothing for linux/amd64, only for linux/arm64, linux/arm, linux/arm"
        );
    }

    #[test]
    fn refuses_what_is_no_image() {
        for body in [
            "{}",
            "[]",
            "not json",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2}"#,
        ] {
            assert!(Manifest::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn nulls_in_a_config_are_absences() {
        let config = ImageConfig::parse(br#"{"config":{"Env":null,"Cmd":["sh"],"Volumes":null}}"#);
        assert_eq!(config.unwrap().config.cmd, Some(vec!["sh".to_owned()]));
    }

    #[test]
    fn chain_ids_as_the_image_spec_has_them() {
        let chains = chain_ids(&["sha256:a".into(), "sha256:b".into()]);
        assert_eq!(
            chains,
            ["sha256:a".to_owned(), digest(b"sha256:a sha256:b")]
        );
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
