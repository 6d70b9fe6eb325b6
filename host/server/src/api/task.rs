//! Routes of tasks.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use keiko_core::limit::INPUT_BYTES_MAX;
use keiko_core::task::{Amendment, Payload};
use keiko_core::{Code, TaskId};
use keiko_runtime::TaskDetail;

use super::caller::{Caller, Segment};
use super::limit::{BULK_BYTES_MAX, JSON_BYTES_MAX};
use super::problem::Problem;
use super::{Api, body, dto, json_answer, query, stream, trace};

/// The media type of one task a line.
pub(super) const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wait = query::read::<query::Wait>(&uri)?.duration()?;
    if stream::is_asked(&headers) {
        body::expect_media_type(&headers, &[LINES])?;
        if wait.is_some() {
            return Err(Problem::invalid("`wait` goes with one task, not with a stream"));
        }
        return stream::submit(api, caller, &headers, body);
    }
    body::expect_media_type(&headers, &[JSON, LINES])?;
    let key = idempotency_key(&headers)?;
    // What is larger than a JSON body announces its length, and was let in as an upload.
    let bytes_max = if caller.is_upload { BULK_BYTES_MAX } else { JSON_BYTES_MAX };
    let too_large = |asked| Problem::too_large("json_bytes", bytes_max, asked);
    let body = body::read(body, &headers, bytes_max, caller.until, too_large).await?;
    let trace = trace::parent(&headers);
    let lines = body::media_type(&headers) == LINES;
    let request = if lines { dto::submit_lines(&body, trace)? } else { dto::submit(&body, trace)? };
    if !request.many && body.len() as u64 > JSON_BYTES_MAX {
        return Err(Problem::too_large("json_bytes", JSON_BYTES_MAX, Some(body.len() as u64)));
    }
    if request.many && wait.is_some() {
        return Err(Problem::invalid("`wait` goes with one task, not with many"));
    }
    drop(body);
    let accepted = api.handle.submit(caller.tenant, request.tasks, key).await.map_err(too_large_input)?;
    let status = if accepted.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    // The same key may have come with one task as a list of one: what is answered follows what was asked.
    if request.many {
        return Ok(json_answer(status, dto::ids(accepted.ids())));
    }
    let detail = match wait {
        Some(at_most) if accepted.duplicate => {
            api.handle.wait(caller.tenant, accepted.first, at_most).await?
        }
        Some(at_most) => api.handle.wait_for_new(caller.tenant, accepted.first, at_most).await?,
        None => api.handle.task(caller.tenant, accepted.first).await?,
    };
    let mut answer = json_answer(status, dto::task(&detail));
    let location = HeaderValue::from_str(&format!("/v1/tasks/{}", accepted.first));
    if let Ok(location) = location {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// An input over its limit is a body over its limit: HTTP has a status for that.
pub(super) fn too_large_input(error: keiko_runtime::Error) -> Problem {
    let too_large =
        error.limit.as_ref().is_some_and(|fact| fact.name == "input_bytes" && fact.limit == INPUT_BYTES_MAX);
    let problem = Problem::from(error);
    if too_large { problem.with_status(StatusCode::PAYLOAD_TOO_LARGE) } else { problem }
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::invalid("`Idempotency-Key` stands twice"));
    }
    let text = std::str::from_utf8(value.as_bytes());
    let text = text.map_err(|_| Problem::invalid("`Idempotency-Key` is not UTF-8"))?;
    keiko_core::effect::check_key(text).map_err(Problem::invalid)?;
    Ok(Some(text.to_owned()))
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let (filter, limit) = query::read::<query::List>(&uri)?.filter()?;
    // One more than is shown says whether there is another page.
    let tasks = api.handle.list(caller.tenant, &filter, limit + 1).await?;
    Ok(json_answer(StatusCode::OK, dto::page(&tasks, limit)))
}

pub(super) async fn counts(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let counts = api.handle.counts(caller.tenant).await?;
    Ok(json_answer(StatusCode::OK, dto::counts(&counts)))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = task_id(&id)?;
    let detail = match query::read::<query::Wait>(&uri)?.duration()? {
        Some(at_most) => api.handle.wait(caller.tenant, id, at_most).await?,
        None => api.handle.task(caller.tenant, id).await?,
    };
    Ok(task_answer(&detail))
}

pub(super) async fn result(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let view = api.handle.task(caller.tenant, task_id(&id)?).await?.view;
    let Some(payload) = view.result else {
        let state = view.summary.state.as_str();
        return Err(Problem::new(Code::Conflict, format!("the task has no result; it is {state}")));
    };
    Ok(payload_answer(payload))
}

pub(super) async fn input(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    Ok(payload_answer(api.handle.input(caller.tenant, task_id(&id)?).await?))
}

pub(super) async fn logs(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let logs = api.handle.logs(caller.tenant, task_id(&id)?).await?;
    Ok(json_answer(StatusCode::OK, dto::logs(&logs)))
}

pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let query::Cancel { tree } = query::read(&uri)?;
    expect_empty(&body)?;
    let id = task_id(&id)?;
    if !tree {
        return Ok(task_answer(&api.handle.cancel(caller.tenant, id).await?));
    }
    let (detail, below) = api.handle.cancel_tree(caller.tenant, id).await?;
    Ok(json_answer(StatusCode::OK, dto::cancelled_tree(&detail, below)))
}

pub(super) async fn drop_task(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    api.handle.drop_task(caller.tenant, task_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn cancel_many(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    expect_empty(&body)?;
    let (filter, limit) = query::read::<query::List>(&uri)?.filter()?;
    let bulk = api.handle.cancel_many(caller.tenant, &filter, limit).await?;
    Ok(json_answer(StatusCode::OK, dto::bulk(&bulk)))
}

pub(super) async fn retry_many(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    expect_empty(&body)?;
    let (filter, limit) = query::read::<query::List>(&uri)?.filter()?;
    let bulk = api.handle.retry_many(caller.tenant, &filter, limit).await?;
    Ok(json_answer(StatusCode::OK, dto::bulk(&bulk)))
}

pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let too_large = |asked| Problem::too_large("json_bytes", JSON_BYTES_MAX, asked);
    let body = body::read(body, &headers, JSON_BYTES_MAX, caller.until, too_large).await?;
    let mut amendment = Amendment::default();
    if !body.is_empty() {
        body::expect_media_type(&headers, &[JSON])?;
        amendment = dto::amendment(&body)?;
    }
    drop(body);
    let retried = api.handle.retry(caller.tenant, task_id(&id)?, amendment).await;
    Ok(task_answer(&retried.map_err(too_large_input)?))
}

pub(super) async fn drop_many(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let (filter, limit) = query::read::<query::List>(&uri)?.filter()?;
    let bulk = api.handle.drop_many(caller.tenant, &filter, limit).await?;
    Ok(json_answer(StatusCode::OK, dto::bulk(&bulk)))
}

pub(super) fn nothing(uri: &Uri, body: &Bytes) -> Result<(), Problem> {
    query::read::<query::Nothing>(uri)?;
    expect_empty(body)
}

fn expect_empty(body: &Bytes) -> Result<(), Problem> {
    // `{}` is what some clients send for nothing.
    if body.is_empty() || body.trim_ascii() == b"{}" {
        return Ok(());
    }
    Err(Problem::invalid("this request takes no body"))
}

/// Bytes under their own type.
fn payload_answer(payload: Payload) -> Response {
    let content_type = HeaderValue::from_str(&payload.content_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    ([(header::CONTENT_TYPE, content_type)], payload.bytes).into_response()
}

fn task_answer(detail: &TaskDetail) -> Response {
    json_answer(StatusCode::OK, dto::task(detail))
}

/// What is no id names no task.
pub(super) fn task_id(id: &Segment) -> Result<TaskId, Problem> {
    id.0.parse().map_err(|error| Problem::new(Code::NotFound, format!("there is no such task: {error}")))
}
