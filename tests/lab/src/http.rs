//! As much of an HTTP/1.1 client as a lab needs: one request a connection, plain, the answer read whole.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// A server on the same machine that takes longer is broken.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks for a path; returns the status and the body.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Error> {
    let answer = Request {
        method: "GET",
        path,
        content_type: "",
    }
    .send(address, &[])?;
    Ok((answer.status, answer.text))
}

/// A request, all but its body.
pub(crate) struct Request<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'a str,
    /// Empty: none is sent.
    pub(crate) content_type: &'a str,
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) text: String,
}

impl Request<'_> {
    pub(crate) fn send(&self, address: SocketAddr, body: &[u8]) -> Result<Answer, Error> {
        let text = exchange(address, self, body)
            .map_err(|error| self.error(address, &error.to_string()))?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.as_str(), ""));
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split_whitespace().nth(1))
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| self.error(address, "not an HTTP answer"))?;
        let location = lines
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| {
                name.eq_ignore_ascii_case("location")
                    .then(|| value.trim().to_owned())
            });
        Ok(Answer {
            status,
            location,
            text: body.to_owned(),
        })
    }

    pub(crate) fn error(&self, address: SocketAddr, reason: &str) -> Error {
        Error::Http {
            address: address.to_string(),
            request: format!("{} {}", self.method, self.path),
            reason: reason.to_owned(),
        }
    }
}

impl Answer {
    pub(crate) fn expect(
        self,
        address: SocketAddr,
        request: &Request<'_>,
        status: u16,
    ) -> Result<Self, Error> {
        if self.status == status {
            return Ok(self);
        }
        Err(request.error(
            address,
            &format!("{} instead of {status}: {}", self.status, self.text.trim()),
        ))
    }
}

fn exchange(address: SocketAddr, request: &Request<'_>, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let Request {
        method,
        path,
        content_type,
    } = request;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n"
    )?;
    if !content_type.is_empty() {
        write!(stream, "content-type: {content_type}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
