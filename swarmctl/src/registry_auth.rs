//! The operator's credentials for a registry: from Docker's configuration on this host, or from the
//! credential helper that it names.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use swarm_proto::registry_auth::{
    Credentials, DockerConfig, Lookup, helper_answer, helper_knows_none,
};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::Error;

/// A helper may ask a person for a password.
const HELPER_MAX: Duration = Duration::from_secs(60);

/// What Docker's configuration has for a registry.
#[derive(Debug)]
pub(crate) struct Found {
    /// What a request carries; empty where the configuration names no credentials.
    pub(crate) auth: String,
    file: PathBuf,
}

impl Found {
    /// The words for an operator who means that there are credentials.
    pub(crate) fn none_for(&self, registry: &str) -> String {
        format!(
            "--with-registry-auth: {} has no credentials for {registry}, so none are sent; `docker login {registry}` \
             puts them there",
            self.file.display()
        )
    }
}

/// Looks for the credentials for a registry.
pub(crate) async fn find(
    registry: &str,
    variables: &BTreeMap<String, String>,
) -> Result<Found, Error> {
    let failed = |reason: String| Error::Rejected {
        what: format!("--with-registry-auth: credentials for {registry}"),
        reason,
    };
    let path = config_path(variables)
        .ok_or_else(|| failed("neither DOCKER_CONFIG nor HOME says where they are".to_owned()))?;
    let content = match tokio::fs::read(&path).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed(format!(
                "there is no {}; `docker login {registry}` makes it",
                path.display()
            )));
        }
        Err(error) => return Err(failed(format!("{}: {error}", path.display()))),
    };
    let lookup = DockerConfig::parse(&content)
        .and_then(|config| config.lookup(registry))
        .map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let credentials = match lookup {
        Lookup::Known(credentials) => credentials,
        Lookup::Helper {
            program,
            server,
            otherwise,
        } => ask(&program, &server)
            .await
            .map_err(|reason| failed(format!("{program}: {reason}")))?
            .unwrap_or(otherwise),
    };
    Ok(Found {
        auth: credentials.encode(registry),
        file: path,
    })
}

fn config_path(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let directory = match set("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(set("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

async fn ask(program: &str, server: &str) -> Result<Option<Credentials>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("can't be run: {error}"))?;
    let input = child.stdin.take();
    let talk = async move {
        if let Some(mut input) = input {
            // One that ends without reading says why on its output.
            let _unread = input.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_MAX, talk)
        .await
        .map_err(|_| format!("no answer within {HELPER_MAX:?}"))?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        if helper_knows_none(&output.stdout) {
            return Ok(None);
        }
        return Err(format!("it failed: {}", output.status));
    }
    helper_answer(&output.stdout)
        .map(Some)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn credentials_come_from_dockers_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let text = r#"{"auths": {"reg.test": {"auth": "YW5uOnB3"}}}"#;
        std::fs::write(&file, text).unwrap();
        let of = directory.path().to_string_lossy().into_owned();
        let variables = BTreeMap::from([("DOCKER_CONFIG".to_owned(), of)]);
        let auth = find("reg.test", &variables).await.unwrap().auth;
        let expected = Credentials::Basic {
            username: "ann".to_owned(),
            password: "pw".to_owned(),
        };
        assert_eq!(Credentials::decode(&auth).unwrap(), expected);
        let none = find("other.test", &variables).await.unwrap();
        assert_eq!(none.auth, "");
        std::fs::remove_file(&file).unwrap();
        let error = find("reg.test", &variables).await.unwrap_err();
        assert!(
            error.to_string().contains("docker login reg.test"),
            "{error}"
        );
    }
}
