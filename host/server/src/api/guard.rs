//! What every request passes before its route, and what every answer gets after it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use futures::{FutureExt, StreamExt};
use keiko_core::limit::LimitFact;
use keiko_core::{Code, TenantId};
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt;

use super::caller::{Caller, NOBODY};
use super::gate::{Entered, Gate, Streams};
use super::limit::{
    HEADER_BYTES_MAX, HEALTH_MAX, JSON_BYTES_MAX, REQUEST_ID_BYTES_MAX, URL_BYTES_MAX, WAIT_S_MAX,
};
use super::problem::{self, Problem};
use super::{Api, body, router, stream};
use crate::auth::{Auth, Refused, Speaker};

/// The one route about the host's health that may answer with more to those who may have it.
const METRICS: &str = "/metrics";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Lets requests in, and finishes their answers.
pub(super) struct Guard {
    api: Arc<Api>,
    router: Router,
    requests: Gate,
    waits: Gate,
    uploads: Gate,
    streams: Gate,
    health: Gate,
    ids: RequestIds,
}

/// What a request costs the host while it is answered; each class has a limit and a time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `/livez`, `/readyz` and `/metrics`, which must answer when nothing else does.
    Health,
    /// Answered at once.
    Request,
    /// Held until a task or a run ends.
    Wait,
    /// A component, or a body too large for JSON of one task.
    Upload,
    /// Begun at once, and inside until it ends.
    Stream,
}

impl Guard {
    pub(super) fn new(api: Arc<Api>) -> Guard {
        let (limits, tenants) = (api.limits, api.tenants.len());
        Guard {
            router: router(Arc::clone(&api)),
            requests: Gate::new(limits.requests_max, tenants),
            waits: Gate::new(limits.waits_max, tenants),
            uploads: Gate::new(limits.uploads_max, tenants),
            streams: Gate::new(limits.streams_max, tenants),
            health: Gate::new(HEALTH_MAX, 1),
            ids: RequestIds::new(),
            api,
        }
    }

    /// Answers a request, whatever happens on the way.
    pub(super) async fn answer(&self, request: Request) -> Response<Body> {
        let started = Instant::now();
        let id = self.ids.of(request.headers());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut tenant = None;
        let answered = AssertUnwindSafe(self.answer_inside(request, &mut tenant)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|_| {
            tracing::error!(request_id = %id, "a handler panicked");
            axum::response::IntoResponse::into_response(Problem::new(Code::Internal, "the host is at fault"))
        });
        let code = response.extensions().get::<Problem>().map(|problem| problem.code);
        problem::finish(&mut response, &id);
        headers(response.headers_mut(), &id);
        let (status, elapsed_ms) = (response.status().as_u16(), started.elapsed().as_millis() as u64);
        let tenant = tenant.and_then(|tenant| self.api.tenants.get(&tenant)).map(tracing::field::display);
        let error_kind = code.map(tracing::field::display);
        tracing::debug!(request_id = %id, %method, path, status, tenant, error_kind, elapsed_ms, "answered");
        response
    }

    async fn answer_inside(&self, request: Request, tenant: &mut Option<TenantId>) -> Response<Body> {
        match self.admit(&request, tenant) {
            Ok((caller, entered)) => {
                let (mut parts, body) = request.into_parts();
                parts.extensions.insert(caller);
                let request = Request::from_parts(parts, body);
                match timeout_at(caller.until, self.router.clone().oneshot(request)).await {
                    Ok(Ok(response)) => held(response, entered),
                    Ok(Err(never)) => match never {},
                    Err(_) => {
                        let problem = Problem::new(Code::DeadlineExceeded, "the host did not answer in time");
                        let problem = problem.with_status(StatusCode::SERVICE_UNAVAILABLE);
                        axum::response::IntoResponse::into_response(problem)
                    }
                }
            }
            Err(problem) => {
                // Whoever is still writing should live to see the answer; strangers may not cost us that.
                if tenant.is_some() {
                    body::discard(request.into_body()).await;
                }
                axum::response::IntoResponse::into_response(problem)
            }
        }
    }

    fn admit(&self, request: &Request, tenant: &mut Option<TenantId>) -> Result<(Caller, Entered), Problem> {
        check_sizes(request)?;
        let class = class(request);
        // The routes about health do not look for whom they answer, but for whom they count.
        let speaker = match class {
            Class::Health if request.uri().path() == METRICS => self.reader(request)?,
            Class::Health => NOBODY,
            _ => {
                let speaker = self.authenticate(request)?;
                *tenant = Some(speaker.tenant);
                speaker
            }
        };
        let limits = &self.api.limits;
        let (gate, name, time) = match class {
            Class::Health => (&self.health, "health_requests", limits.request),
            Class::Request => (&self.requests, "requests", limits.request),
            Class::Wait => (&self.waits, "waits", limits.request + Duration::from_secs(WAIT_S_MAX)),
            Class::Upload => (&self.uploads, "uploads", limits.upload),
            Class::Stream => (&self.streams, "streams", limits.request),
        };
        let entered = gate.enter(*tenant).map_err(|limit| {
            let fact = LimitFact::of_host(name, limit as u64, None);
            Problem::at_limit(Code::RateLimited, fact).with_status(StatusCode::SERVICE_UNAVAILABLE)
        })?;
        let caller = Caller {
            tenant: speaker.tenant,
            operator: speaker.operator,
            until: Instant::now() + time,
            is_upload: class == Class::Upload,
        };
        Ok((caller, entered))
    }

    /// Who reads metrics: nobody without a token, and on a host without tokens nobody from elsewhere.
    fn reader(&self, request: &Request) -> Result<Speaker, Problem> {
        let is_open = matches!(self.api.auth, Auth::Open(_));
        match self.authenticate(request) {
            Err(_) if is_open || !request.headers().contains_key(header::AUTHORIZATION) => Ok(NOBODY),
            speaker => speaker,
        }
    }

    fn authenticate(&self, request: &Request) -> Result<Speaker, Problem> {
        let headers = request.headers();
        if matches!(self.api.auth, Auth::Open(_)) {
            check_origin(request.uri().authority(), headers)?;
        }
        let header = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        self.api.auth.speaker(header, self.api.clock.now_ms()).map_err(|refused| {
            let text = match refused {
                Refused::Missing => "the request carries no token; expected `Authorization: Bearer TOKEN`",
                Refused::Wrong => "the token is not valid",
            };
            Problem::new(Code::Unauthorized, text)
        })
    }
}

fn class(request: &Request) -> Class {
    let uri = request.uri();
    let (method, path) = (request.method(), uri.path());
    let waits = || uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("wait=")));
    let large = || body::content_length(request.headers()).is_some_and(|length| length > JSON_BYTES_MAX);
    if matches!(path, "/livez" | "/readyz" | METRICS) {
        Class::Health
    } else if is_stream(request) {
        Class::Stream
    } else if method == Method::POST
        && (path == "/v1/plugins" || is_swap(path) || (matches!(path, "/v1/tasks" | "/v1/groups") && large()))
    {
        Class::Upload
    } else if waits() || method == Method::POST && path == "/v1/run" {
        Class::Wait
    } else {
        Class::Request
    }
}

/// Whether the answer goes on for as long as its reader likes.
fn is_stream(request: &Request) -> bool {
    let (method, path) = (request.method(), request.uri().path());
    let watched = path.starts_with("/v1/tasks/") || path.starts_with("/v1/groups/");
    method == Method::GET && watched && path.ends_with("/events")
        || method == Method::POST && path == "/v1/tasks" && stream::is_asked(request.headers())
}

/// The answer, which keeps its place inside for as long as it is written when it is a stream.
fn held(response: Response<Body>, entered: Entered) -> Response<Body> {
    if response.extensions().get::<Streams>().is_none() {
        return response;
    }
    let pieces = |body: Body| body.into_data_stream().inspect(move |_| _ = &entered);
    response.map(|body| Body::from_stream(pieces(body)))
}

/// Whether a component may be compiled before the answer: an older version has no artifact of this build of the host.
fn is_swap(path: &str) -> bool {
    path.starts_with("/v1/plugins/") && (path.ends_with("/activate") || path.ends_with("/rollback"))
}

fn check_sizes(request: &Request) -> Result<(), Problem> {
    let too_large = |name: &str, limit: usize, asked: usize, status: StatusCode| {
        let fact = LimitFact::of_host(name, limit as u64, Some(asked as u64));
        Err(Problem::at_limit(Code::InvalidInput, fact).with_status(status))
    };
    let url = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
    if url > URL_BYTES_MAX {
        return too_large("url_bytes", URL_BYTES_MAX, url, StatusCode::URI_TOO_LONG);
    }
    let bytes = header_bytes(request.headers());
    if bytes > HEADER_BYTES_MAX {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return too_large("header_bytes", HEADER_BYTES_MAX, bytes, status);
    }
    Ok(())
}

/// As they were sent: `name: value` and the end of the line.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// A host without tokens trusts whoever reaches it, and a browser on its machine reaches it for any page.
/// So it answers only to its own names, and never to a page from elsewhere.
fn check_origin(authority: Option<&Authority>, headers: &HeaderMap) -> Result<(), Problem> {
    let denied = |text: &str| Err(Problem::new(Code::Denied, text));
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = authority.map(Authority::as_str).or(text(header::HOST));
    if !host.is_some_and(is_loopback_name) {
        return denied("a host without tokens answers only to localhost and loopback addresses");
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").map(|(_, rest)| rest) != host => {
            denied("a host without tokens does not answer to pages of other sites")
        }
        _ => Ok(()),
    }
}

fn is_loopback_name(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// What every answer carries: none of them is for a cache, a frame, or a guess at its type.
fn headers(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    let same = HeaderValue::from_static("same-origin");
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), same);
}

/// Names requests: the client's own name when it is one, otherwise one that no other request has.
struct RequestIds {
    /// Differs between two starts of the host.
    start: u32,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> RequestIds {
        let mut start = [0; 4];
        // Without randomness the ids of two starts look alike, which only a reader of logs would notice.
        let _ = getrandom::fill(&mut start);
        RequestIds { start: u32::from_le_bytes(start), next: AtomicU64::new(1) }
    }

    fn of(&self, headers: &HeaderMap) -> String {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given {
            Some(text) if (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(letter) => {
                text.to_owned()
            }
            _ => format!("req_{:08x}{:08x}", self.start, self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn each_class_is_told_by_its_head() {
        let check = |method: &str, uri: &str, length: u64, expected| {
            let length = length.to_string();
            assert_eq!(
                class(&request(method, uri, &[("content-length", &length)])),
                expected,
                "{method} {uri}"
            );
        };
        check("GET", "/livez", 0, Class::Health);
        check("GET", "/v1/tasks", 0, Class::Request);
        check("POST", "/v1/tasks", JSON_BYTES_MAX, Class::Request);
        check("POST", "/v1/tasks", JSON_BYTES_MAX + 1, Class::Upload);
        check("POST", "/v1/tasks?wait=5", 1, Class::Wait);
        check("GET", "/v1/tasks/task_1?wait=5", 0, Class::Wait);
        check("GET", "/v1/tasks?before=wait=5", 0, Class::Request);
        check("POST", "/v1/run", 5, Class::Wait);
        check("GET", "/v1/run", 0, Class::Request);
        check("POST", "/v1/plugins", 5, Class::Upload);
        check("GET", "/v1/plugins", 0, Class::Request);
        check("POST", "/v1/plugins/p/activate", 5, Class::Upload);
        check("POST", "/v1/plugins/p/rollback", 0, Class::Upload);
        check("GET", "/v1/plugins/p/history", 0, Class::Request);
        check("GET", "/v1/tasks/task_1/events", 0, Class::Stream);
        check("GET", "/v1/groups/group_1/events?x=1", 0, Class::Stream);
        check("POST", "/v1/tasks/task_1/events", 0, Class::Request);
        let lines =
            [("accept", "application/json;q=0.1, Application/X-NDJSON"), ("content-length", "9999999")];
        assert_eq!(class(&request("POST", "/v1/tasks", &lines)), Class::Stream);
    }

    #[test]
    fn heads_stop_at_their_limits() {
        let value = "v".repeat(HEADER_BYTES_MAX - 5);
        assert!(check_sizes(&request("GET", "/", &[("h", &value)])).is_ok());
        let problem = check_sizes(&request("GET", "/", &[("h", &value), ("i", "")])).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.limit.unwrap().asked), (431, Some(32_773)));
        let url = format!("/{}", "u".repeat(URL_BYTES_MAX - 1));
        assert!(check_sizes(&request("GET", &url, &[])).is_ok());
        let problem = check_sizes(&request("GET", &format!("{url}?"), &[])).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.limit.unwrap().asked), (414, Some(8_193)));
    }

    #[test]
    fn an_open_host_answers_no_foreign_page() {
        let check = |headers: &[(&str, &str)], expected: bool| {
            let request = request("POST", "/", headers);
            assert_eq!(check_origin(None, request.headers()).is_ok(), expected, "{headers:?}");
        };
        check(&[("host", "127.0.0.1:7700")], true);
        check(&[("host", "localhost:7700")], true);
        check(&[("host", "[::1]:7700")], true);
        check(&[("host", "127.0.0.1:7700"), ("origin", "http://127.0.0.1:7700")], true);
        check(&[("host", "127.0.0.1:7700"), ("origin", "http://127.0.0.1:8000")], false);
        check(&[("host", "127.0.0.1:7700"), ("origin", "https://evil.example")], false);
        check(&[("host", "127.0.0.1:7700"), ("origin", "null")], false);
        check(&[("host", "evil.example:7700")], false);
        check(&[("host", "127.0.0.1.evil.example")], false);
        check(&[("host", "evil@127.0.0.1")], true);
        check(&[], false);
    }

    #[test]
    fn a_request_id_is_the_clients_when_it_is_one() {
        let ids = RequestIds::new();
        let of = |text: &str| ids.of(request("GET", "/", &[("x-request-id", text)]).headers());
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        assert_eq!(of("a-B_1.z"), "a-B_1.z");
        assert_eq!(of(&longest), longest);
        for bad in ["", "a b", "<script>", &format!("{longest}x")] {
            assert!(of(bad).starts_with("req_"), "{bad}");
        }
        assert_ne!(ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
    }
}
