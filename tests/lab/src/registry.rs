//! Debian's docker-registry on the lab's subnet, over HTTP, and over HTTPS with a certificate of the lab's own CA, for all
//! or for who has a password.
//!
//! All fronts serve the same storage; images are pushed through the first. A test may have one more, on loopback, which
//! clients trust without TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::image::{Blob, Image};
use crate::site::Site;
use crate::{Error, process, registry_client, wait};

/// Not 5000, where a registry of this machine's own may listen on every address.
const HTTP_PORT: u16 = 5080;
const HTTPS_PORT: u16 = 5443;
const CLOSED_PORT: u16 = 5444;
/// Who may ask the closed front.
pub const USER: &str = "lab";
/// And by which password.
pub const PASSWORD: &str = "a password of the lab";
/// It, by bcrypt.
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuubHfQ2YmKN7fPe.0BIx0rWT/wvkTRirC";
/// How long the registry may take to listen, and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    storage: PathBuf,
    address: Ipv4Addr,
    /// Kept over a [`Registry::stop`]: image names hold it.
    loopback: Option<SocketAddr>,
    fronts: Vec<Child>,
}

impl Registry {
    /// Starts the HTTP front and waits until it listens.
    pub(crate) fn start(site: &Site) -> Result<Self, Error> {
        let mut registry = Self {
            directory: site.run().join("registry"),
            storage: site.state().join("registry"),
            address: site.gateway(),
            loopback: None,
            fronts: Vec::new(),
        };
        for path in [&registry.directory, &registry.storage] {
            fs::create_dir_all(path).map_err(Error::file("create", path))?;
        }
        registry.start_http()?;
        Ok(registry)
    }

    /// Starts the HTTP front again after [`Registry::stop`].
    pub fn start_http(&mut self) -> Result<(), Error> {
        self.start_front("http", self.at(HTTP_PORT), "")
    }

    /// Starts the HTTPS front; its certificate is for the lab's address.
    pub fn start_https(&mut self) -> Result<(), Error> {
        let tls = self.tls()?;
        self.start_front("https", self.at(HTTPS_PORT), &tls)
    }

    /// Starts a front over HTTPS that asks everyone for [`USER`] and [`PASSWORD`].
    pub fn start_closed(&mut self) -> Result<(), Error> {
        let passwords = self.directory.join("passwords");
        fs::write(&passwords, format!("{USER}:{PASSWORD_HASH}\n"))
            .map_err(Error::file("write", &passwords))?;
        let auth = format!(
            "{}auth:\n  htpasswd:\n    realm: lab\n    path: {}\n",
            self.tls()?,
            passwords.display()
        );
        self.start_front("closed", self.at(CLOSED_PORT), &auth)
    }

    fn tls(&self) -> Result<String, Error> {
        let [certificate, key] = ["server.crt", "server.key"].map(|name| self.directory.join(name));
        if !certificate.exists() {
            self.make_certificates(&certificate, &key)?;
        }
        Ok(format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        ))
    }

    /// Starts a front on 127.0.0.1, over HTTP, and returns its `address:port`: clients speak HTTP to loopback untold.
    pub fn start_loopback(&mut self) -> Result<String, Error> {
        let address = match self.loopback {
            Some(address) => address,
            None => free_loopback_address()?,
        };
        self.loopback = Some(address);
        self.start_front("loopback", address, "")?;
        Ok(address.to_string())
    }

    /// Ends all fronts: connections are refused from now on.
    pub fn stop(&mut self) -> Result<(), Error> {
        for mut child in self.fronts.drain(..) {
            process::signal(child.id(), Signal::SIGKILL)?;
            child
                .wait()
                .map_err(Error::file("wait for", "docker-registry"))?;
        }
        Ok(())
    }

    /// `address:port` of the HTTP front, as image names begin with.
    pub fn http(&self) -> String {
        format!("{}:{HTTP_PORT}", self.address)
    }

    /// `address:port` of the HTTPS front.
    pub fn https(&self) -> String {
        format!("{}:{HTTPS_PORT}", self.address)
    }

    /// `address:port` of the front that asks for credentials.
    pub fn closed(&self) -> String {
        format!("{}:{CLOSED_PORT}", self.address)
    }

    /// The certificate that signed the HTTPS fronts'; made by the first of them.
    pub fn ca_certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// How often each blob was fetched through the HTTP front, by digest.
    pub fn fetched(&self) -> Result<BTreeMap<String, usize>, Error> {
        let mut fetched = BTreeMap::new();
        for path in self.got("http")? {
            if let Some((_, digest)) = path.split_once("/blobs/") {
                *fetched.entry(digest.to_owned()).or_default() += 1;
            }
        }
        Ok(fetched)
    }

    /// How often something whose path has these words was asked for through the front on loopback.
    pub fn asked_on_loopback(&self, words: &str) -> Result<usize, Error> {
        let paths = self.got("loopback")?;
        Ok(paths.iter().filter(|path| path.contains(words)).count())
    }

    /// Paths of the GET requests to a front.
    fn got(&self, front: &str) -> Result<Vec<String>, Error> {
        let log = self.directory.join(format!("{front}.log"));
        let text = fs::read_to_string(&log).map_err(Error::file("read", log))?;
        // The access log: address - - [time] "GET /v2/name/blobs/sha256:… HTTP/1.1" 200 …
        let paths = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once("\"GET ")?;
            rest.split(' ').next().map(str::to_owned)
        });
        Ok(paths.collect())
    }

    /// Pushes an image and returns its full name.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Result<String, Error> {
        registry_client::push(self.at(HTTP_PORT), repository, tag, image)?;
        Ok(format!("{}/{repository}:{tag}", self.http()))
    }

    /// Pushes an index, whose images are there already, and returns its full name.
    pub fn push_index(&self, repository: &str, tag: &str, index: &Blob) -> Result<String, Error> {
        registry_client::push_manifest(self.at(HTTP_PORT), repository, tag, index)?;
        Ok(format!("{}/{repository}:{tag}", self.http()))
    }

    /// `more` goes on with the settings of HTTP.
    fn start_front(&mut self, name: &str, address: SocketAddr, more: &str) -> Result<(), Error> {
        let file = self.directory.join(format!("{name}.yml"));
        let storage = self.storage.display();
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {storage}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{more}"
        );
        fs::write(&file, text).map_err(Error::file("write", &file))?;
        let log = self.directory.join(format!("{name}.log"));
        let arguments = ["serve".to_owned(), file.to_string_lossy().into_owned()];
        let child = process::start(Path::new("docker-registry"), &arguments, &log, None)?;
        let pid = child.id();
        self.fronts.push(child);
        wait::until(&format!("registry at {address}"), LIMIT, || {
            if !process::is_alive(pid) {
                return Err(format!("it ended; see {}", log.display()));
            }
            TcpStream::connect(address)
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }

    fn make_certificates(&self, certificate: &Path, key: &Path) -> Result<(), Error> {
        let refused = |error: rcgen::Error| {
            Error::Refused(format!("the registry's certificate can't be made: {error}"))
        };
        let ca_key = KeyPair::generate().map_err(refused)?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "registry ca");
        let ca_certificate = ca.self_signed(&ca_key).map_err(refused)?;
        let issuer = Issuer::new(ca, ca_key);

        let server_key = KeyPair::generate().map_err(refused)?;
        let mut server = CertificateParams::default();
        server
            .distinguished_name
            .push(DnType::CommonName, "registry");
        server.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(self.address))];
        let server_certificate = server.signed_by(&server_key, &issuer).map_err(refused)?;

        for (path, text) in [
            (self.ca_certificate().as_path(), ca_certificate.pem()),
            (certificate, server_certificate.pem()),
            (key, server_key.serialize_pem()),
        ] {
            fs::write(path, text).map_err(Error::file("write", path))?;
        }
        Ok(())
    }
}

fn free_loopback_address() -> Result<SocketAddr, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|held| held.local_addr())
        .map_err(|error| Error::Refused(format!("127.0.0.1 has no free port: {error}")))
}
