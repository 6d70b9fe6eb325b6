//! One request on a connection of its own: HTTP/1.1, bounded in the bytes and the time of its answer.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use url::Url;

use super::place::Place;
use super::{Error, reach};

/// How long the head of an answer may take.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long nothing may come of a body.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// What is kept of an answer's head, and at most read ahead of its body, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Room that is made for a body before it comes, however much is announced.
const ROOM_BYTES: u64 = 1 << 20;
/// Who asks.
const AGENT: &str = concat!("keiko/", env!("CARGO_PKG_VERSION"));

/// An answer whose body is still to come.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    line: Line,
    host: String,
}

/// Asks a host for what stands behind a URL of it.
pub(super) async fn get(
    place: &Place,
    url: &Url,
    accept: &str,
    authorization: Option<&HeaderValue>,
) -> Result<Answer, Error> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = Request::get(path)
        .header(HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
        .header(ACCEPT, accept)
        .header(USER_AGENT, AGENT);
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request.body(Empty::new());
    let request =
        request.map_err(|error| Error::failed(&place.to_string(), format!("cannot be asked: {error}")))?;
    let stream = reach::reach(place).await?;
    match &place.trust {
        None => exchange(place, stream, request).await,
        Some(trust) => exchange(place, reach::encrypt(place, trust, stream).await?, request).await,
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    place: &Place,
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, Error> {
    let host = place.to_string();
    let asked = async {
        let made = http1::Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = made.map_err(|error| broke(&host, &error))?;
        let mut line = Line(Some(Box::pin(async move {
            // Whoever waits for an answer is told how it ended.
            let _ = connection.await;
        })));
        let answer = line.beside(sender.send_request(request)).await.map_err(|error| broke(&host, &error))?;
        Ok((answer, line))
    };
    let late = |_| Error::failed(&host, format!("did not answer within {} s", HEAD_TIME.as_secs()));
    let (answer, line) = timeout(HEAD_TIME, asked).await.map_err(late)??;
    let (head, body) = answer.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, body, line, host })
}

/// What moves the bytes of a connection; it is driven by whoever waits for them, and ends when it is dropped.
struct Line(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Line {
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Some(line) = &mut self.0
                && line.as_mut().poll(context).is_ready()
            {
                self.0 = None;
            }
            work.as_mut().poll(context)
        })
        .await
    }
}

impl Answer {
    /// The answer, when it is what was asked for.
    pub(super) fn success(self) -> Result<Answer, Error> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        Err(Error::failed(&self.host, format!("answered {}", self.status)))
    }

    /// Where else to ask, if it says so.
    pub(super) fn redirect(&self, url: &Url) -> Result<Option<Url>, Error> {
        let is_redirect = matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        if !is_redirect {
            return Ok(None);
        }
        let location = self.headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        next.map(Some).ok_or_else(|| Error::failed(&self.host, "sent us on, and did not say where"))
    }

    /// In which ways the host wants to be told who asks.
    pub(super) fn challenges(&self) -> impl Iterator<Item = &str> {
        self.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok())
    }

    /// The whole body, which is a component.
    pub(super) async fn bytes(mut self, bytes_max: u64) -> Result<Bytes, Error> {
        let announced = self.announced();
        let too_large = Error::TooLarge { limit: bytes_max, asked: announced };
        self.read(bytes_max).await?.ok_or(too_large)
    }

    /// The whole body, which is something else.
    pub(super) async fn bytes_within(mut self, bytes_max: u64) -> Result<Bytes, Error> {
        let too_large = Error::failed(&self.host, format!("sent a document of more than {bytes_max} bytes"));
        self.read(bytes_max).await?.ok_or(too_large)
    }

    fn announced(&self) -> Option<u64> {
        self.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The whole body; `None` when it is larger.
    async fn read(&mut self, bytes_max: u64) -> Result<Option<Bytes>, Error> {
        let announced = self.announced().unwrap_or(0);
        if announced > bytes_max {
            return Ok(None);
        }
        let mut all = BytesMut::with_capacity(announced.min(ROOM_BYTES) as usize);
        loop {
            let frame = timeout(IDLE_TIME, self.line.beside(self.body.frame())).await;
            let idle = |_| Error::failed(&self.host, format!("sent nothing for {} s", IDLE_TIME.as_secs()));
            let Some(frame) = frame.map_err(idle)? else { return Ok(Some(all.freeze())) };
            let Ok(data) = frame.map_err(|error| broke(&self.host, &error))?.into_data() else { continue };
            if (all.len() + data.len()) as u64 > bytes_max {
                return Ok(None);
            }
            all.extend_from_slice(&data);
        }
    }
}

fn broke(host: &str, error: &hyper::Error) -> Error {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::failed(host, format!("broke off: {error}{cause}"))
}
