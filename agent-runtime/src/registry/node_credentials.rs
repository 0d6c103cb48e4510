//! The node's own credentials: Docker's `config.json`, and the helper programs that it names.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use swarm_proto::registry_auth::{
    Credentials, DockerConfig, Lookup, helper_answer, helper_knows_none,
};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Registries;
use crate::error::Error;

/// Such a file has some hundred bytes an entry. Bytes.
const FILE_MAX: u64 = 1 << 20;
/// A helper may ask a cloud's API.
const HELPER_MAX: Duration = Duration::from_secs(20);

impl Registries {
    /// Who to be at a registry: whom the service says, or else whom the node's file says.
    pub(super) async fn credentials_for(
        &self,
        registry: &str,
        given: &Credentials,
    ) -> Result<Credentials, Error> {
        let file = match (&self.credentials, given) {
            (Some(file), Credentials::Anonymous) => file,
            (None, _) => return Ok(given.clone()),
            (
                Some(_),
                Credentials::Basic { .. } | Credentials::Registry(_) | Credentials::Identity(_),
            ) => return Ok(given.clone()),
        };
        let bad = |reason: String| {
            Error::Fatal(format!("registry credentials {}: {reason}", file.display()))
        };
        // Read for each pull: tokens in it are renewed by others.
        let content = read(file).map_err(&bad)?;
        let config = DockerConfig::parse(&content).map_err(|error| bad(error.to_string()))?;
        let found = config
            .lookup(registry)
            .map_err(|error| bad(format!("entry for {registry}: {error}")))?;
        match found {
            Lookup::Known(credentials) => Ok(credentials),
            Lookup::Helper {
                program,
                server,
                otherwise,
            } => match ask(&program, &server).await.map_err(bad)? {
                Some(credentials) => Ok(credentials),
                None => Ok(otherwise),
            },
        }
    }
}

fn read(file: &PathBuf) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if size.len() > FILE_MAX {
        return Err(format!("it is larger than {FILE_MAX} bytes"));
    }
    std::fs::read(file).map_err(|error| error.to_string())
}

/// Asks a credential helper; none where it knows no credentials for the server.
async fn ask(program: &str, server: &str) -> Result<Option<Credentials>, String> {
    let failed = |reason: &str| format!("helper {program}: {reason}");
    let mut child = Command::new(Path::new(program))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            failed(&format!(
                "can't be run: {error}; install it in the PATH of swarmd"
            ))
        })?;
    let input = child.stdin.take();
    let talk = async move {
        if let Some(mut input) = input {
            // One that ends without reading says why on its output.
            let _ = input.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_MAX, talk)
        .await
        .map_err(|_| failed(&format!("no answer within {HELPER_MAX:?}")))?
        .map_err(|error| failed(&error.to_string()))?;
    if !output.status.success() {
        if helper_knows_none(&output.stdout) {
            return Ok(None);
        }
        return Err(failed(&format!(
            "it failed for {server}: {}",
            output.status
        )));
    }
    helper_answer(&output.stdout)
        .map(Some)
        .map_err(|error| failed(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// A helper that does what the script says.
    async fn asked(script: &str) -> Result<Option<Credentials>, String> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        testing::program(&program, script);
        ask(program.to_str().unwrap(), "reg.test").await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server() {
        let answer = r#"[ "$1" = get ] && read server; echo "{\"Username\":\"ann\",\"Secret\":\"$server\"}""#;
        let expected = Credentials::Basic {
            username: "ann".to_owned(),
            password: "reg.test".to_owned(),
        };
        assert_eq!(asked(answer).await, Ok(Some(expected)));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(asked(none).await, Ok(None));
        let error = asked("echo secret; exit 3").await.unwrap_err();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        let error = asked("echo secret").await.unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}
