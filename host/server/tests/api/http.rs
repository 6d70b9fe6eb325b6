//! Requests over plain sockets, so that a test decides on every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer: a test that waits for ever says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a host answered.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {} {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer, which must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// A problem as every error is one.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        for field in ["type", "title", "detail", "message"] {
            assert!(problem[field].is_string(), "{field} of {problem}");
        }
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{problem}");
        let again = matches!(status, 429 | 503) && code != "quota_exceeded";
        assert_eq!(self.header("retry-after").is_some(), again, "{:?}", self.headers);
        problem
    }
}

/// One connection.
pub struct Connection {
    stream: TcpStream,
    left: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream, left: Vec::new() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        // A host that refuses early may close before it has read all: its answer is what counts.
        let _ = self.try_write(bytes);
    }

    /// The same, for who asks whether the host has taken all.
    pub fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a head and waits until the host asks for the body: then the request is inside.
    pub fn begin(&mut self, method: &str, path: &str, headers: &[(&str, &str)], length: usize) {
        let mut all = headers.to_vec();
        let length = length.to_string();
        all.extend([("expect", "100-continue"), ("content-length", &length)]);
        self.write(&head(method, path, &all));
        let line = self.until(b"\r\n\r\n").unwrap();
        assert!(line.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&line));
    }

    pub fn read(&mut self) -> Response {
        self.try_read().expect("the host closed the connection without an answer")
    }

    /// The next answer; `None` when the host closed the connection.
    pub fn try_read(&mut self) -> Option<Response> {
        let head = String::from_utf8(self.until(b"\r\n\r\n")?).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| line.split_once(": ").map(|(a, b)| (a.to_ascii_lowercase(), b.to_owned()));
        let headers: Vec<_> = lines.filter_map(pair).collect();
        let mut response = Response { status, headers, body: Vec::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.left.len() < length {
            if !self.more() {
                return None;
            }
        }
        response.body = self.left.drain(..length).collect();
        Some(response)
    }

    /// Whether the host closes the connection without another word.
    pub fn is_closed(&mut self) -> bool {
        self.left.is_empty() && !self.more()
    }

    /// The next piece of a body that comes in pieces; `None` when it has ended.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = String::from_utf8(self.until(b"\r\n")?).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        while self.left.len() < size + 2 {
            if !self.more() {
                return None;
            }
        }
        let data = self.left.drain(..size + 2).take(size).collect();
        (size > 0).then_some(data)
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.left.windows(end.len()).position(|window| window == end) {
                return Some(self.left.drain(..at + end.len()).collect());
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn more(&mut self) -> bool {
        let mut buffer = vec![0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.left.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// The head of a request, which names its host unless `headers` does.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("host: localhost\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// One request on a connection of its own.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(address);
    let mut all = headers.to_vec();
    let length = body.len().to_string();
    if !body.is_empty() || method == "POST" {
        all.push(("content-length", &length));
    }
    connection.write(&head(method, path, &all));
    connection.write(body);
    connection.read()
}

impl Connection {
    /// The next answer's status and head, of an answer without a body.
    pub fn until_head(&mut self) -> (u16, String) {
        let head = String::from_utf8(self.until(b"\r\n\r\n").unwrap()).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
    }
}
