//! As much of HTTP/1.1 as the server needs: one request a connection, no body in, a body out.
//!
//! A request that is longer than [`HEAD_LIMIT`] or not HTTP is answered with 400 and forgotten.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::SOCKET_TIMEOUT;

/// Longest request line with headers, in bytes.
const HEAD_LIMIT: u64 = 8 * 1024;
/// Bodies are written in pieces of this size, in bytes.
const CHUNK: usize = 64 * 1024;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path without the query.
    pub(crate) path: String,
    /// Query without the question mark; empty without one.
    pub(crate) query: String,
}

impl Request {
    /// Value of `name` in the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }
}

/// What is sent after the headers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Text(String),
    /// So many bytes of filler.
    Filler(u64),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Body,
}

impl Response {
    /// A line of text.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            body: Body::Text(text.into()),
        }
    }
}

/// Reads a request; None when it is no HTTP or too long.
pub(crate) fn read_request(stream: &TcpStream) -> io::Result<Option<Request>> {
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    let mut reader = BufReader::new(stream.take(HEAD_LIMIT));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut header = String::new();
    // The headers are read to their end, so that closing the socket does not reset the connection.
    while reader.read_line(&mut header)? > 0 && !header.trim_end().is_empty() {
        header.clear();
    }
    Ok(parse_request_line(&first))
}

fn parse_request_line(line: &str) -> Option<Request> {
    let mut words = line.split_whitespace();
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if !version.starts_with("HTTP/1.") || words.next().is_some() {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

/// Sends an answer; the body is left out of the answer to a HEAD.
pub(crate) fn write_response(
    mut stream: &TcpStream,
    response: &Response,
    method: &str,
) -> io::Result<()> {
    let length = match &response.body {
        Body::Text(text) => text.len() as u64,
        Body::Filler(length) => *length,
    };
    write!(
        stream,
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
        response.status,
        reason(response.status),
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    match &response.body {
        Body::Text(text) => stream.write_all(text.as_bytes()),
        Body::Filler(length) => {
            let mut filler = io::repeat(b'x').take(*length);
            let mut writer = io::BufWriter::with_capacity(CHUNK, stream);
            io::copy(&mut filler, &mut writer)?;
            writer.flush()
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// Asks a server for `path` and returns the status of its answer.
pub(crate) fn ask(mut stream: TcpStream, path: &str) -> io::Result<u16> {
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut line = String::new();
    BufReader::new(stream.take(HEAD_LIMIT)).read_line(&mut line)?;
    line.split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {}", line.trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_split_into_its_parts() {
        let request = parse_request_line("GET /bytes?n=10&m=2 HTTP/1.1\r\n").unwrap();
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("GET", "/bytes")
        );
        assert_eq!(request.parameter("n"), Some("10"));
        assert_eq!(request.parameter("m"), Some("2"));
        assert_eq!(request.parameter("x"), None);
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for line in [
            "",
            "GET /",
            "GET / HTTP/2",
            "GET / HTTP/1.1 more",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(parse_request_line(line), None, "{line:?}");
        }
    }
}
