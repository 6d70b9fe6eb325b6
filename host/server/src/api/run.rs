//! `POST /v1/run`: a plugin runs while its caller waits, and nothing of it is kept but what it spent.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use keiko_core::Code;
use keiko_core::limit::MIB;
use keiko_core::outcome::{AttemptReport, Outcome};
use keiko_core::policy::BudgetRequest;
use keiko_runtime::{RunReport, RunRequest};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::caller::Caller;
use super::dto::to_vec;
use super::input::payload;
use super::problem::Problem;
use super::report::{Report, is_pure};
use super::task::too_large_input;
use super::{Api, body, json, json_answer, query, trace};

const DURATION: HeaderName = HeaderName::from_static("keiko-duration-us");
const FUEL: HeaderName = HeaderName::from_static("keiko-fuel-used");
const MEMORY: HeaderName = HeaderName::from_static("keiko-memory-bytes-peak");
const HOST_CALLS: HeaderName = HeaderName::from_static("keiko-host-calls");
const PURE: HeaderName = HeaderName::from_static("keiko-pure");

/// A run as a client writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a run, which is an object")]
struct RunBody<'a> {
    plugin: Option<String>,
    kind: Option<String>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    input_base64: Option<String>,
    content_type: Option<String>,
    fuel: Option<u64>,
    memory_mib: Option<u64>,
    timeout_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Whether the answer is the whole report, also of a run that failed.
    #[serde(default)]
    report: bool,
}

pub(super) async fn run(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let asked: Asked = query::read(&uri)?;
    let body = body::read_json(body, &headers, caller.until).await?;
    let request = request(&body, trace::parent(&headers))?;
    drop(body);
    let ran = api.handle.run(caller.tenant, request).await.map_err(too_large_input)?;
    Ok(if asked.report { whole(&ran) } else { result(ran) })
}

fn request(body: &Bytes, trace: Option<&str>) -> Result<RunRequest, Problem> {
    let asked: RunBody<'_> = json::parse(body)?;
    Ok(RunRequest {
        plugin: asked.plugin,
        kind: asked.kind,
        input: payload(body, asked.input, asked.input_base64, asked.content_type)?,
        budget: BudgetRequest {
            fuel: asked.fuel,
            memory_bytes: asked.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            wall_ms: asked.timeout_s.map(|seconds| seconds.saturating_mul(1_000)),
            ..BudgetRequest::default()
        },
        trace: trace.map(str::to_owned),
    })
}

/// The result as it is, or the failure as an error; what was spent is in the head.
fn result(ran: RunReport) -> Response {
    let spent = spent(&ran.report);
    let mut response = match ran.report.outcome {
        Outcome::Completed(payload) => {
            let content_type = HeaderValue::try_from(payload.content_type)
                .unwrap_or(HeaderValue::from_static("application/octet-stream"));
            ([(header::CONTENT_TYPE, content_type)], payload.bytes).into_response()
        }
        Outcome::Failed(failure) => Problem::from(keiko_runtime::Error::from(failure)).into_response(),
        Outcome::Stopped(_) => Problem::new(Code::Cancelled, "the run was stopped").into_response(),
    };
    response.headers_mut().extend(spent);
    response
}

fn spent(report: &AttemptReport) -> [(HeaderName, HeaderValue); 5] {
    let meter = report.meter;
    let pure = HeaderValue::from_static(if is_pure(report) { "true" } else { "false" });
    [
        (DURATION, meter.elapsed_us.into()),
        (FUEL, meter.fuel_used.into()),
        (MEMORY, meter.memory_bytes_peak.into()),
        (HOST_CALLS, meter.host_calls.into()),
        (PURE, pure),
    ]
}

fn whole(ran: &RunReport) -> Response {
    let mut report = Report::from(&ran.report);
    if let Some((version, digest)) = &ran.version {
        (report.version, report.digest) = (Some(version.to_string()), Some(digest.to_string()));
    }
    json_answer(StatusCode::OK, to_vec(&report))
}
