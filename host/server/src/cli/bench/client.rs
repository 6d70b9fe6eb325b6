//! One connection of the load: a request at a time, kept open.

use std::net::SocketAddr;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::cli::exit::Failure;
use crate::wiring::spawn;

/// Where the load goes, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Target {
    address: SocketAddr,
    host: HeaderValue,
    /// One for each tenant; `None` for a host without tokens.
    tokens: Vec<Option<HeaderValue>>,
}

impl Target {
    /// The host at an address, for tenants with these tokens.
    pub(super) async fn of(server: &str, tokens: &[String]) -> Result<Target, Failure> {
        let wrong = || Failure::Usage(format!("--server is `{server}`; expected http://HOST:PORT"));
        let authority = server.trim_end_matches('/').strip_prefix("http://").ok_or_else(wrong)?;
        let named = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut found = tokio::net::lookup_host(&named).await.map_err(|_| wrong())?;
        let address = found.next().ok_or_else(wrong)?;
        let bearer = |token: &String| {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            value.map(Some).map_err(|_| Failure::Usage("--token is no token".to_owned()))
        };
        let tokens = tokens.iter().map(bearer).collect::<Result<Vec<_>, _>>()?;
        let tokens = if tokens.is_empty() { vec![None] } else { tokens };
        Ok(Target { address, host: HeaderValue::try_from(authority).map_err(|_| wrong())?, tokens })
    }

    /// What every tenant's requests carry.
    pub(super) fn tokens(&self) -> &[Option<HeaderValue>] {
        &self.tokens
    }
}

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body, unless the host refused.
    pub(super) fn success(self) -> Result<Bytes, Failure> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let text = String::from_utf8_lossy(&self.body).into_owned();
        Err(Failure::Refused(format!("the host answered {}: {text}", self.status)))
    }
}

impl Connection {
    /// Connects.
    pub(super) async fn open(target: &Target) -> Result<Connection, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::Host(format!("no host answers at {}: {error}", target.address))
        };
        let stream = TcpStream::connect(target.address).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // It ends with the sender; whoever sends sees how.
        spawn(&TaskTracker::new(), async move { drop(connection.await) });
        Ok(Connection { sender, host: target.host.clone() })
    }

    /// Sends a body and reads the whole answer.
    pub(super) async fn post(
        &mut self,
        path: &str,
        content_type: &'static str,
        token: &Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let mut request = Request::post(path)
            .header(HOST, self.host.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::Usage(error.to_string()))?;
        self.send(request).await
    }

    /// Asks for something.
    pub(super) async fn get(&mut self, path: &str, token: &Option<HeaderValue>) -> Result<Answer, Failure> {
        let mut request = Request::get(path).header(HOST, self.host.clone());
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let request = request.body(Full::default()).map_err(|error| Failure::Usage(error.to_string()))?;
        self.send(request).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let broke = |error: hyper::Error| Failure::Host(format!("the connection broke off: {error}"));
        self.sender.ready().await.map_err(broke)?;
        let answer = self.sender.send_request(request).await.map_err(broke)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(broke)?.to_bytes();
        Ok(Answer { status, body })
    }
}
