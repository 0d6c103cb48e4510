//! Registries that a test scripts, over plain HTTP on loopback: who gets credentials, and what is asked at all.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{Fetched, Patience, Registries};
use crate::error::Error;
use swarm_proto::registry_auth::Credentials;

/// An answer: status, headers, body.
type Answer = (u16, Vec<(&'static str, String)>, String);
type Rule = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A request.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    authorization: Option<String>,
    /// Which connection it came over.
    connection: usize,
}

/// A server that keeps connections open, as registries do. Its threads end with the test's process.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(rule: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, rule): (_, Arc<Rule>) = (Arc::clone(&asked), Arc::new(rule));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (shared, rule) = (Arc::clone(&shared), Arc::clone(&rule));
                std::thread::spawn(move || serve(&stream, (number, &shared), &*rule));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, (connection, all): (usize, &Mutex<Vec<Asked>>), rule: &Rule) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = reader.by_ref().lines().map_while(Result::ok);
        // The first words of TLS are no request, nor is the end of the connection.
        let Some(first) = lines.next().filter(|first| first.contains("HTTP/1.1")) else {
            return;
        };
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let authorization = headers.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            (name.eq_ignore_ascii_case("authorization")).then(|| value.to_owned())
        });
        let asked = Asked {
            path: first.split(' ').nth(1).unwrap().to_owned(),
            authorization,
            connection,
        };
        all.lock().unwrap().push(asked.clone());
        let (status, headers, body) = rule(&asked);
        let headers: String = headers
            .iter()
            .map(|(n, v)| format!("{n}: {v}\r\n"))
            .collect();
        let length = body.len();
        let mut stream = stream;
        let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: {length}\r\n{headers}\r\n");
        if stream
            .write_all(format!("{head}{body}").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

fn manifest() -> Answer {
    (200, vec![], "{}".to_owned())
}

fn basic() -> Answer {
    let challenge = "Basic realm=\"r\"".to_owned();
    (401, vec![("www-authenticate", challenge)], "x".repeat(2000))
}

fn bearer(realm: &str) -> Answer {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
    (401, vec![("www-authenticate", challenge)], String::new())
}

async fn open(registries: &Registries, server: &Server) -> Result<Fetched, Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ann = Credentials::Basic {
        username: "ann".to_owned(),
        password: "secret".to_owned(),
    };
    let image = format!("{}/a:1", server.address).parse().unwrap();
    let told = (Patience::Once, Arc::default());
    let opened = registries.open(&image, &ann, told).await;
    opened.map(|(_, fetched)| fetched)
}

#[tokio::test]
async fn who_is_redirected_to_gets_no_credentials() {
    let other = Server::start(|_| basic());
    let to = format!("http://{}/elsewhere", other.address);
    let registry = Server::start(move |_| (307, vec![("location", to.clone())], String::new()));
    let error = open(&Registries::default(), &registry).await.unwrap_err();
    assert!(error.to_string().contains("are not sent there"), "{error}");
    let asked = other.asked();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|asked| asked.authorization.is_none()),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_token_server_redirects_only_to_itself() {
    let other = Server::start(|_| manifest());
    let to = format!("http://{}/token", other.address);
    let tokens = Server::start(move |asked| match asked.path.as_str() {
        path if path.starts_with("/moved") => {
            (307, vec![("location", "/token".to_owned())], String::new())
        }
        path if path.starts_with("/token") => (200, vec![], r#"{"token":"t"}"#.to_owned()),
        _ => (307, vec![("location", to.clone())], String::new()),
    });
    let realm = |path: &str| format!("http://{}/{path}", tokens.address);
    for (realm, lets_in) in [(realm("moved"), true), (realm("away"), false)] {
        let registry = Server::start(move |asked| match asked.authorization.as_deref() {
            Some("Bearer t") => manifest(),
            Some(_) | None => bearer(&realm),
        });
        let opened = open(&Registries::default(), &registry).await;
        assert_eq!(opened.is_ok(), lets_in, "{opened:?}");
    }
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn an_insecure_registry_makes_no_other_host_insecure() {
    let registry = Server::start(|_| bearer("http://auth.invalid/token"));
    let error = open(&Registries::default(), &registry).await.unwrap_err();
    assert!(error.to_string().contains("not behind HTTPS"), "{error}");
}

#[tokio::test]
async fn a_challenge_costs_no_connection() {
    let registry = Server::start(|asked| match asked.authorization {
        Some(_) => manifest(),
        None => basic(),
    });
    open(&Registries::default(), &registry).await.unwrap();
    let asked = registry.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].connection, asked[1].connection);
}

#[tokio::test]
async fn a_mirror_that_cannot_be_asked_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let helpers = json!({"credHelpers": {"mirror.test:1": "swarm-test-none"}});
    std::fs::write(&file, helpers.to_string()).unwrap();
    let registry = Server::start(|asked| match asked.path.ends_with("/1") {
        true => manifest(),
        false => (404, vec![], String::new()),
    });
    let rules = Registries {
        credentials: Some(file),
        mirrors: vec![
            format!("{}=https://mirror.test:1", registry.address)
                .parse()
                .unwrap(),
        ],
        ..Registries::default()
    };
    open(&rules, &registry).await.unwrap();
    let image = format!("{}/a:2", registry.address).parse().unwrap();
    let told = (Patience::Once, Arc::default());
    let opened = rules.open(&image, &Credentials::Anonymous, told).await;
    let error = opened.unwrap_err().to_string();
    assert!(
        error.contains("not found; mirror https://mirror.test:1 passed over"),
        "{error}"
    );
    assert!(
        error.contains("docker-credential-swarm-test-none"),
        "{error}"
    );
}
