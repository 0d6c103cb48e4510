//! A signing server as an operator runs one outside the cluster: CFSSL's protocol over HTTPS, for who has a certificate of
//! the cluster, under a root whose key it alone has.
//!
//! It signs what the request says, as `cfssl serve` does with a profile of twelve hours. Told so, it fails in one of the
//! ways of [`Behaviour`].

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::Error;

/// Where CFSSL signs.
const PATH: &str = "/api/v1/cfssl/sign";
/// How long a client may take to say what it wants.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request.
const REQUEST_MAX: usize = 256 << 10;
/// Life of a root, and of what it signs for other roots.
const ROOT_DAYS: u64 = 3650;
/// Certificates count from so long ago, as CFSSL's do.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Life of a node's certificate.
const NODE_LIFE: Duration = Duration::from_secs(12 * 3600);

/// A root CA with its key.
#[derive(Debug)]
pub struct Root {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Root {
    /// Makes one with this common name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lasts(&mut params, Duration::from_secs(ROOT_DAYS * 24 * 3600));
        let pem = params.self_signed(&key).map_err(refused)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { pem, issuer })
    }

    /// The certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key, in PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

/// A text in the form that a root's name keeps when others write it.
fn named(name: &str) -> Result<DistinguishedName, Error> {
    let mut names = DistinguishedName::new();
    let name = name.try_into().map_err(refused)?;
    names.push(DnType::CommonName, DnValue::PrintableString(name));
    Ok(names)
}

fn lasts(params: &mut CertificateParams, life: Duration) {
    let now =
        rcgen::date_time_ymd(1970, 1, 1) + std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
}

/// What it does with a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Signs.
    #[default]
    Signs,
    /// Says no, with a reason.
    Refuses,
    /// Answers what is not of CFSSL.
    Babbles,
    /// Says nothing, and keeps the connection.
    Hangs,
    /// Begins an answer that does not end.
    Floods,
    /// Certifies a key of its own.
    OtherKey,
    /// Certifies another node.
    OtherNode,
    /// Certifies a manager, whoever asks.
    OtherRole,
    /// Signs by a key of which nobody knows.
    OtherRoot,
    /// Certifies for a time that is over.
    Past,
    /// Certifies for a time most of which is over.
    NearlyOver,
    /// Certifies a CA.
    MakesAuthority,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// DER of the certificate that the client has shown.
    pub client: Vec<u8>,
    /// The body.
    pub body: Value,
}

/// A running server; gone when dropped.
#[derive(Debug)]
pub struct SigningServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: Arc<Root>,
    clients: Mutex<String>,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    stopped: AtomicBool,
}

impl SigningServer {
    /// Starts it on an address of this machine; `clients` are the roots, in PEM, whose nodes it serves.
    pub fn start(root: &Arc<Root>, at: SocketAddr, clients: &str) -> Result<Self, Error> {
        let listener = TcpListener::bind(at).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared {
            root: Arc::clone(root),
            clients: Mutex::new(clients.to_owned()),
            behaviour: Mutex::default(),
            seen: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let accepting = Some(thread::spawn(move || serving.accept(&listener)));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where it signs.
    pub fn url(&self) -> String {
        format!("https://{}{PATH}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves nodes under these roots from now on.
    pub fn serve(&self, clients: &str) {
        clients.clone_into(&mut locked(&self.shared.clients));
    }

    /// Does so with all requests from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *locked(&self.shared.behaviour) = behaviour;
    }

    /// What it was asked for.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.shared.seen).clone()
    }
}

impl Drop for SigningServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _woken = TcpStream::connect(self.address);
        // The address is free when this returns.
        let _ended = self.accepting.take().map(JoinHandle::join);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(format!("the signing server: {error}"))
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let shared = Arc::clone(&self);
            // A client that breaks off is what tests want to see.
            thread::spawn(move || drop(shared.serve(stream)));
        }
    }

    fn serve(&self, stream: TcpStream) -> Result<(), Error> {
        stream.set_read_timeout(Some(LIMIT)).map_err(refused)?;
        let at = stream.local_addr().map_err(refused)?;
        let connection = ServerConnection::new(self.tls(at.ip())?).map_err(refused)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let body = read(&mut stream)?;
        let mut stream = stream.into_inner();
        let shown = stream
            .conn
            .peer_certificates()
            .and_then(|chain| chain.first());
        let client = shown.map(|cert| cert.to_vec()).unwrap_or_default();
        locked(&self.seen).push(Seen {
            client,
            body: body.clone(),
        });
        let behaviour = *locked(&self.behaviour);
        match behaviour {
            Behaviour::Hangs => {
                while !self.stopped.load(Ordering::Acquire) {
                    thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            Behaviour::Floods => return flood(&mut stream),
            Behaviour::Babbles => answer(&mut stream, "200 OK", "<html>hello</html>")?,
            Behaviour::Refuses => {
                let said = json!({"success": false, "result": null, "messages": [],
                    "errors": [{"code": 1234, "message": "this CA is closed"}]});
                answer(&mut stream, "403 Forbidden", &said.to_string())?;
            }
            Behaviour::Signs
            | Behaviour::OtherKey
            | Behaviour::OtherNode
            | Behaviour::OtherRole
            | Behaviour::OtherRoot
            | Behaviour::Past
            | Behaviour::NearlyOver
            | Behaviour::MakesAuthority => {
                let certificate = self.sign(&body, behaviour)?;
                let said = json!({"success": true, "errors": [], "messages": [],
                    "result": {"certificate": certificate}});
                answer(&mut stream, "200 OK", &said.to_string())?;
            }
        }
        stream.conn.send_close_notify();
        stream.flush().map_err(refused)
    }

    /// Its own certificate is for the address that was reached.
    fn tls(&self, at: IpAddr) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("signing server")?;
        params.subject_alt_names = vec![SanType::IpAddress(at)];
        lasts(&mut params, NODE_LIFE);
        let own = params.signed_by(&key, &self.root.issuer).map_err(refused)?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(locked(&self.clients).as_bytes()) {
            roots.add(root.map_err(refused)?).map_err(refused)?;
        }
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_client_cert_verifier(clients.build().map_err(refused)?)
            .with_single_cert(vec![own.der().clone()], key.map_err(refused)?)
            .map_err(refused)?;
        Ok(Arc::new(config))
    }

    fn sign(&self, body: &Value, behaviour: Behaviour) -> Result<String, Error> {
        let text = |at: &str| {
            let text = body.pointer(at).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let csr = text("/certificate_request");
        let mut csr = CertificateSigningRequestParams::from_pem(&csr).map_err(refused)?;
        if text("/profile") == "CA" {
            // The subject and the constraints of the request stay.
            lasts(&mut csr.params, Duration::from_secs(ROOT_DAYS * 12 * 3600));
            return Ok(csr.signed_by(&self.root.issuer).map_err(refused)?.pem());
        }
        let hosts = body.get("hosts").and_then(Value::as_array);
        let hosts = hosts.into_iter().flatten().filter_map(Value::as_str);
        let mut hosts: Vec<String> = hosts.map(str::to_owned).collect();
        let (mut node, mut unit) = (text("/subject/CN"), text("/subject/names/0/OU"));
        if behaviour == Behaviour::OtherNode {
            // Another id of the same form.
            node = node.chars().rev().collect();
        }
        if behaviour == Behaviour::OtherRole {
            unit = "swarm-manager".to_owned();
            hosts = vec![unit.clone(), node.clone(), "swarm-ca".to_owned()];
        }
        let mut params = CertificateParams::new(hosts).map_err(refused)?;
        params.distinguished_name = DistinguishedName::new();
        let subject = [
            (DnType::OrganizationName, text("/subject/names/0/O")),
            (DnType::OrganizationalUnitName, unit),
            (DnType::CommonName, node),
        ];
        for (kind, value) in subject {
            params.distinguished_name.push(kind, value);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        if behaviour == Behaviour::MakesAuthority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        lasts(&mut params, NODE_LIFE);
        if [Behaviour::Past, Behaviour::NearlyOver].contains(&behaviour) {
            params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        }
        if behaviour == Behaviour::Past {
            params.not_after = rcgen::date_time_ymd(2025, 2, 1);
        }
        let certificate = if behaviour == Behaviour::OtherKey {
            let key = KeyPair::generate().map_err(refused)?;
            params.signed_by(&key, &self.root.issuer)
        } else if behaviour == Behaviour::OtherRoot {
            let other = Root::new("another root")?;
            params.signed_by(&csr.public_key, &other.issuer)
        } else {
            params.signed_by(&csr.public_key, &self.root.issuer)
        };
        Ok(certificate.map_err(refused)?.pem())
    }
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// The body of a request.
fn read(stream: &mut BufReader<Stream>) -> Result<Value, Error> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        let read = stream.read_line(&mut line).map_err(refused)?;
        if read == 0 {
            return Err(refused("the request ends too early"));
        }
        let Some((name, value)) = line.split_once(':') else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(refused)?;
        }
    }
    if length > REQUEST_MAX {
        return Err(refused("the request is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(refused)?;
    serde_json::from_slice(&body).map_err(refused)
}

fn answer(stream: &mut Stream, status: &str, body: &str) -> Result<(), Error> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(refused)?;
    stream.write_all(body.as_bytes()).map_err(refused)
}

/// Writes until the client has enough.
fn flood(stream: &mut Stream) -> Result<(), Error> {
    let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"success\": true, \"x\": \"";
    stream.write_all(head).map_err(refused)?;
    loop {
        stream.write_all(&[b'x'; 4096]).map_err(refused)?;
    }
}
