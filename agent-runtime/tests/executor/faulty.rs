//! A registry that does what a test tells it: one image in memory, over plain HTTP on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ::lab::image::Image;

/// A request as the registry sees it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<u64>,
    pub(crate) authorization: Option<String>,
    /// How many requests with this path came before.
    pub(crate) before: usize,
}

/// What it does about a request.
pub(crate) enum Answer {
    /// What a good registry does.
    Right,
    /// As right, whatever range was asked for.
    Whole,
    /// Breaks off after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes, then waits for a word before it goes on.
    Held(usize, mpsc::Receiver<()>),
    /// Other bytes of the same length.
    Altered,
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// A body.
    Body(String),
}

type Rule = Box<dyn FnMut(&Asked) -> Answer + Send>;

/// What all connections share.
struct State {
    content: BTreeMap<String, (String, Vec<u8>)>,
    rule: Mutex<Rule>,
    asked: Mutex<Vec<Asked>>,
}

/// A running one. Its thread ends with it.
pub(crate) struct Faulty {
    pub(crate) address: String,
    state: Arc<State>,
    listener: TcpListener,
}

impl Faulty {
    /// Serves the image as `faulty:1`.
    pub(crate) fn start(
        image: &Image,
        rule: impl FnMut(&Asked) -> Answer + Send + 'static,
    ) -> Self {
        let mut content = BTreeMap::new();
        for blob in &image.blobs {
            let path = format!("/v2/faulty/blobs/{}", blob.digest);
            let kind = "application/octet-stream".to_owned();
            content.insert(path, (kind, blob.content.clone()));
        }
        let manifest = &image.manifest;
        for version in ["1", &manifest.digest] {
            let path = format!("/v2/faulty/manifests/{version}");
            let entry = (manifest.media_type.to_owned(), manifest.content.clone());
            content.insert(path, entry);
        }
        let state = Arc::new(State {
            content,
            rule: Mutex::new(Box::new(rule)),
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (incoming, shared) = (listener.try_clone().unwrap(), Arc::clone(&state));
        std::thread::spawn(move || {
            for stream in incoming.incoming() {
                let Ok(stream) = stream else { return };
                let state = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Self {
            address,
            state,
            listener,
        }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/faulty:1", self.address)
    }

    /// Requests whose path has these words.
    pub(crate) fn asked(&self, words: &str) -> Vec<Asked> {
        let mut asked = self.state.asked.lock().unwrap().clone();
        asked.retain(|asked| asked.path.contains(words));
        asked
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Accepting ends with an error once nobody can connect any more.
        use std::os::fd::AsRawFd as _;
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

fn serve(stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    // TLS is not text, and no request.
    if reader.read_line(&mut first).is_err() || !first.starts_with("GET ") {
        return stream.shutdown(Shutdown::Both);
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let (mut range, mut authorization) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.trim_start_matches("bytes=").trim_end_matches('-');
                range = start.parse().ok();
            }
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let asked = {
        let mut all = state.asked.lock().unwrap();
        let asked = Asked {
            before: all.iter().filter(|other| other.path == path).count(),
            path: path.clone(),
            range,
            authorization,
        };
        all.push(asked.clone());
        asked
    };
    let answer = (state.rule.lock().unwrap())(&asked);
    reply(stream, state, (asked, answer))
}

fn reply(
    mut stream: TcpStream,
    state: &State,
    (asked, answer): (Asked, Answer),
) -> std::io::Result<()> {
    let none = (String::new(), Vec::new());
    let found = state.content.get(&asked.path);
    let (kind, content) = found.unwrap_or(&none);
    let mut from = asked.range.unwrap_or(0) as usize;
    let (mut cut, mut held) = (usize::MAX, None);
    let mut body = content.clone();
    match answer {
        Answer::Status(code, headers) => {
            let mut head =
                format!("HTTP/1.1 {code} Told\r\ncontent-length: 0\r\nconnection: close\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            return stream.write_all(format!("{head}\r\n").as_bytes());
        }
        Answer::Body(text) => {
            let length = text.len();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            return stream.write_all(format!("{head}{text}").as_bytes());
        }
        Answer::Right => {}
        Answer::Whole => from = 0,
        Answer::Cut(bytes) => cut = bytes,
        Answer::Held(bytes, go) => held = Some((bytes, go)),
        Answer::Altered => {
            if let Some(last) = body.last_mut() {
                *last = last.wrapping_add(1);
            }
        }
    }
    if found.is_none() {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }
    let rest = &body[from.min(body.len())..];
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!(
            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
            body.len() - 1,
            body.len()
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        rest.len()
    );
    stream.write_all(head.as_bytes())?;
    let mut rest = &rest[..rest.len().min(cut)];
    if let Some((bytes, go)) = held {
        let (now, later) = rest.split_at(bytes.min(rest.len()));
        stream.write_all(now)?;
        let _ = go.recv_timeout(Duration::from_secs(60));
        rest = later;
    }
    stream.write_all(rest)?;
    stream.shutdown(Shutdown::Both)
}
