//! Every error of the HTTP side: `application/problem+json` (RFC 9457).
//!
//! A handler returns a [`Problem`]; the text is written at the end ([`finish`]), where the request id is known.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use keiko_core::Code;
use keiko_core::limit::LimitFact;
use keiko_core::port::Stage;
use keiko_runtime::Error;
use serde::Serialize;

/// What went wrong, for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status; the code's own unless HTTP has a closer one.
    pub status: StatusCode,
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The limit that was met, if one was.
    pub limit: Option<LimitFact>,
    /// Ids of many that the tenant does not have.
    pub unknown: Vec<String>,
    /// Trying again may help after this many seconds.
    pub retry_after_s: Option<u64>,
    /// Where an upload was refused.
    pub stage: Option<Stage>,
}

impl Problem {
    /// A problem with nothing but its code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Problem {
        Problem::from(Error::new(code, message))
    }

    /// A limit was met.
    pub fn at_limit(code: Code, fact: LimitFact) -> Problem {
        Problem::from(Error::at_limit(code, fact))
    }

    /// The same problem under another HTTP status. What is no longer 429 or 503 says nothing about trying again.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Problem {
        let again = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        self.retry_after_s = if again { Some(self.retry_after_s.unwrap_or(1)) } else { None };
        self.status = status;
        self
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(Code::InvalidInput, message)
    }

    /// A body, or a part of it, that is too large.
    pub fn too_large(name: &str, limit: u64, asked: Option<u64>) -> Problem {
        Problem::at_limit(Code::InvalidInput, LimitFact::of_host(name, limit, asked))
            .with_status(StatusCode::PAYLOAD_TOO_LARGE)
    }

    /// The JSON text of the problem.
    pub fn json(&self, request_id: &str) -> Vec<u8> {
        let text = Text {
            kind: "about:blank",
            title: self.code.as_str(),
            status: self.status.as_u16(),
            detail: &self.message,
            code: self.code.as_str(),
            message: &self.message,
            request_id,
            limit: self.limit.as_ref(),
            unknown: &self.unknown,
            stage: self.stage.map(Stage::as_str),
        };
        serde_json::to_vec(&text).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Text<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    message: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a LimitFact>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unknown: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let status =
            StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let Error { code, message, limit, unknown, retry_after_s, stage } = error;
        Problem { status, code, message, limit, unknown, retry_after_s, stage }
    }
}

/// An answer without a text yet: [`finish`] writes it.
impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the text of a problem into its answer. An error that is no [`Problem`] yet becomes one.
pub(super) fn finish(response: &mut Response<Body>, request_id: &str) {
    let status = response.status();
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if status.is_client_error() || status.is_server_error() => {
            let code = if status.is_server_error() { Code::Internal } else { Code::InvalidInput };
            Problem::new(code, status.canonical_reason().unwrap_or("unknown")).with_status(status)
        }
        None => return,
    };
    let text = problem.json(request_id);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    *response.body_mut() = Body::from(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use keiko_core::limit::SetBy;

    #[test]
    fn a_problem_has_the_documented_shape() {
        let fact = LimitFact {
            name: "queue".to_owned(),
            limit: 100_000,
            asked: Some(100_001),
            set_by: SetBy::Tenant,
        };
        let problem = Problem::at_limit(Code::QueueFull, fact);
        let expected = r#"{"type":"about:blank","title":"queue_full","status":429,"detail":"100001 exceeds the limit `queue` of 100000, set by the tenant's policy","code":"queue_full","message":"100001 exceeds the limit `queue` of 100000, set by the tenant's policy","request_id":"r1","limit":{"name":"queue","limit":100000,"asked":100001,"set_by":"tenant"}}"#;
        assert_eq!(String::from_utf8(problem.json("r1")).unwrap(), expected);
        let bare = Problem::new(Code::NotFound, "there is no task");
        let expected = r#"{"type":"about:blank","title":"not_found","status":404,"detail":"there is no task","code":"not_found","message":"there is no task","request_id":"r2"}"#;
        assert_eq!(String::from_utf8(bare.json("r2")).unwrap(), expected);
    }

    #[test]
    fn every_code_has_an_http_status_and_says_when_to_come_back() {
        for &code in Code::ALL {
            let problem = Problem::new(code, "x");
            let mut response = problem.clone().into_response();
            finish(&mut response, "r");
            assert_eq!(response.status().as_u16(), code.http_status(), "{code}");
            assert!(response.status().is_client_error() || response.status().is_server_error(), "{code}");
            let again = matches!(code.http_status(), 429 | 503) && code != Code::QuotaExceeded;
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), again, "{code}");
        }
    }

    #[test]
    fn an_error_that_is_no_problem_becomes_one() {
        let mut response = StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
        finish(&mut response, "r");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let mut fine = StatusCode::NO_CONTENT.into_response();
        finish(&mut fine, "r");
        assert!(!fine.headers().contains_key(header::CONTENT_TYPE));
    }
}
