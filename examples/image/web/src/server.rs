//! Accepts, queues and answers requests; holds what the server has been told to be.
//!
//! One acceptor thread hands connections to a fixed number of workers through a bounded queue. When all
//! are busy the acceptor waits, and the kernel holds further connections back.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::http::{Request, Response, read_request, write_response};
use crate::{QUEUED, WORKERS};

/// Most bytes that /bytes hands out for one request.
const BYTES_MAX: u64 = 1 << 30;
/// Exit code of /crash unless it is told another.
const CRASH_CODE: i32 = 1;

/// What the server is, and how it has been told to behave.
#[derive(Debug)]
pub(crate) struct State {
    environment: BTreeMap<String, String>,
    healthy: AtomicBool,
    hung: AtomicBool,
    /// Connections accepted and not answered yet.
    open: Mutex<usize>,
    idle: Condvar,
}

impl State {
    pub(crate) fn new(environment: BTreeMap<String, String>) -> Self {
        Self {
            environment,
            healthy: AtomicBool::new(true),
            hung: AtomicBool::new(false),
            open: Mutex::new(0),
            idle: Condvar::new(),
        }
    }

    /// The task on its node, as the service's templates named them.
    pub(crate) fn identity(&self) -> String {
        format!("{} on {}", self.variable("TASK"), self.variable("NODE"))
    }

    pub(crate) fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Acquire)
    }

    fn variable(&self, name: &str) -> &str {
        self.environment.get(name).map_or("unknown", String::as_str)
    }

    fn opened(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn closed(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.idle.notify_all();
    }

    /// Answers a request; [`Answer::Nothing`] for one that is never answered.
    fn answer(&self, request: &Request, client: SocketAddr) -> Answer {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Answer::Send(Response::text(405, "only GET and HEAD are served\n"));
        }
        let response = match request.path.as_str() {
            "/" => Response::text(200, self.describe(client)),
            "/env" => {
                let lines = self
                    .environment
                    .iter()
                    .map(|(key, value)| format!("{key}={value}\n"));
                Response::text(200, lines.collect::<String>())
            }
            "/bytes" => bytes(request.parameter("n")),
            "/health" => self.health(),
            "/healthy" | "/unhealthy" => {
                self.healthy
                    .store(request.path == "/healthy", Ordering::Release);
                self.health()
            }
            "/crash" => match request.parameter("code").map_or(Ok(CRASH_CODE), str::parse) {
                Ok(code) => return Answer::Crash(code),
                Err(_) => Response::text(400, "code is not a number\n"),
            },
            "/hang" => {
                self.hung.store(true, Ordering::Release);
                return Answer::Nothing;
            }
            other => Response::text(404, format!("there is nothing at {other}\n")),
        };
        Answer::Send(response)
    }

    fn describe(&self, client: SocketAddr) -> String {
        let mut text = String::new();
        for (label, variable) in [
            ("task", "TASK"),
            ("task id", "TASK_ID"),
            ("service", "SERVICE"),
            ("node", "NODE"),
            ("hostname", "HOSTNAME"),
        ] {
            if let Some(value) = self.environment.get(variable) {
                text.push_str(&format!("{label}: {value}\n"));
            }
        }
        // A dual-stack socket shows an IPv4 client as ::ffff:a.b.c.d.
        text.push_str(&format!(
            "client: {}\n",
            SocketAddr::new(client.ip().to_canonical(), client.port())
        ));
        text
    }

    fn health(&self) -> Response {
        match self.healthy.load(Ordering::Acquire) {
            true => Response::text(200, "healthy\n"),
            false => Response::text(503, "unhealthy\n"),
        }
    }
}

fn bytes(length: Option<&str>) -> Response {
    match length.unwrap_or("0").parse() {
        Ok(length) if length <= BYTES_MAX => Response {
            status: 200,
            body: crate::http::Body::Filler(length),
        },
        Ok(_) | Err(_) => Response::text(400, format!("n is not a number from 0 to {BYTES_MAX}\n")),
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Send(Response),
    /// The process ends with this code.
    Crash(i32),
    /// The connection stays open, and silent.
    Nothing,
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Server {
    state: Arc<State>,
    acceptor: thread::JoinHandle<()>,
}

impl Server {
    pub(crate) fn start(listener: TcpListener, state: Arc<State>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<(TcpStream, SocketAddr)>(QUEUED);
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..WORKERS {
            let (receiver, state) = (Arc::clone(&receiver), Arc::clone(&state));
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .stack_size(128 * 1024)
                .spawn(move || work(&receiver, &state))?;
        }
        let shared = Arc::clone(&state);
        let acceptor = thread::Builder::new()
            .name("acceptor".to_owned())
            .spawn(move || {
                loop {
                    let connection = match listener.accept() {
                        Ok(connection) => connection,
                        // The listener was shut down. Any other error is of one connection, or passes.
                        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                        Err(_) => continue,
                    };
                    shared.opened();
                    if sender.send(connection).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self { state, acceptor })
    }

    /// Waits for the requests under way and returns how many are left after `timeout`.
    pub(crate) fn drain(self, timeout: Duration) -> usize {
        let open = self
            .state
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .state
            .idle
            .wait_timeout_while(open, timeout, |open| *open > 0);
        let left = *waited.unwrap_or_else(PoisonError::into_inner).0;
        if left == 0 {
            // Idle workers leave the queue empty, so the acceptor is at accept(), which has ended.
            let _ended = self.acceptor.join();
        }
        left
    }
}

fn work(receiver: &Mutex<Receiver<(TcpStream, SocketAddr)>>, state: &State) {
    loop {
        let received = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((stream, client)) = received else {
            return;
        };
        serve(&stream, client, state);
        state.closed();
    }
}

fn serve(stream: &TcpStream, client: SocketAddr, state: &State) {
    let Ok(request) = read_request(stream) else {
        return;
    };
    let answer = match &request {
        Some(request) => state.answer(request, client),
        None => Answer::Send(Response::text(400, "this is not an HTTP/1.1 request\n")),
    };
    if state.is_hung() {
        hang();
    }
    match answer {
        Answer::Send(response) => {
            let method = request
                .as_ref()
                .map_or("GET", |request| request.method.as_str());
            let path = request
                .as_ref()
                .map_or("?", |request| request.path.as_str());
            println!(
                "{} {method} {path} {}",
                client.ip().to_canonical(),
                response.status
            );
            // A client that is gone needs no answer.
            let _gone = write_response(stream, &response, method);
        }
        Answer::Crash(code) => {
            println!("crashing with {code} as told");
            #[expect(clippy::disallowed_methods, reason = "a crash is what was asked for")]
            std::process::exit(code)
        }
        Answer::Nothing => hang(),
    }
}

/// Holds the calling worker for good.
fn hang() -> ! {
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;

    fn request(target: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request {
            method: "GET".to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        }
    }

    fn state() -> State {
        State::new(BTreeMap::from([
            ("TASK".to_owned(), "web.1.x".to_owned()),
            ("NODE".to_owned(), "n1".to_owned()),
        ]))
    }

    fn text(state: &State, target: &str) -> (u16, String) {
        match state.answer(&request(target), "[::ffff:10.0.0.9]:77".parse().unwrap()) {
            Answer::Send(Response {
                status,
                body: Body::Text(text),
            }) => (status, text),
            other @ (Answer::Send(_) | Answer::Crash(_) | Answer::Nothing) => {
                panic!("{target}: {other:?}")
            }
        }
    }

    #[test]
    fn it_says_who_answers_whom() {
        assert_eq!(
            text(&state(), "/"),
            (
                200,
                "task: web.1.x\nnode: n1\nclient: 10.0.0.9:77\n".to_owned()
            )
        );
    }

    #[test]
    fn it_turns_unhealthy_and_back() {
        let state = state();
        assert_eq!(text(&state, "/health").0, 200);
        assert_eq!(text(&state, "/unhealthy").0, 503);
        assert_eq!(text(&state, "/health").0, 503);
        assert_eq!(text(&state, "/healthy").0, 200);
    }

    #[test]
    fn it_crashes_and_hangs_on_request() {
        let (state, client) = (state(), "10.0.0.9:77".parse().unwrap());
        assert_eq!(state.answer(&request("/crash"), client), Answer::Crash(1));
        assert_eq!(
            state.answer(&request("/crash?code=42"), client),
            Answer::Crash(42)
        );
        assert_eq!(text(&state, "/crash?code=x").0, 400);
        assert!(!state.is_hung());
        assert_eq!(state.answer(&request("/hang"), client), Answer::Nothing);
        assert!(state.is_hung());
    }

    #[test]
    fn it_hands_out_bytes_up_to_a_limit() {
        assert_eq!(
            bytes(Some("10")),
            Response {
                status: 200,
                body: Body::Filler(10)
            }
        );
        assert_eq!(bytes(Some("1073741825")).status, 400);
        assert_eq!(bytes(Some("-1")).status, 400);
    }
}
