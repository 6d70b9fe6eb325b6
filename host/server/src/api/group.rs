//! Routes of groups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use keiko_core::group::{Group, Outcome};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::page::Page;
use keiko_core::{Code, GroupId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::caller::{Caller, Segment};
use super::dto::{FailureJson, Value, submit_group, time, to_vec, value};
use super::limit::{BULK_BYTES_MAX, JSON_BYTES_MAX, OUTCOMES_DEFAULT, OUTCOMES_MAX};
use super::problem::Problem;
use super::task::{idempotency_key, nothing, too_large_input};
use super::{Api, body, json_answer, query, trace};

/// A page of outcomes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: Option<u32>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct GroupJson {
    id: String,
    state: &'static str,
    count: u32,
    completed: u32,
    failed: u32,
    cancelled: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_max: Option<u32>,
    fail_fast: bool,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
}

/// A group as JSON.
pub(super) fn group_json(group: &Group) -> Vec<u8> {
    to_vec(&GroupJson::from(group))
}

impl From<&Group> for GroupJson {
    fn from(group: &Group) -> GroupJson {
        GroupJson {
            id: group.id.to_string(),
            state: group.state().as_str(),
            count: group.count,
            completed: group.completed,
            failed: group.failed,
            cancelled: group.cancelled,
            live_max: group.asked.live_max,
            fail_fast: group.asked.fail_fast,
            created_at: time(group.created_ms),
            finished_at: group.finished_ms.map(time),
        }
    }
}

#[derive(Serialize)]
struct OutcomeJson<'a> {
    place: u32,
    task: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
}

fn outcome<'a>(group: &Group, one: &'a Outcome) -> OutcomeJson<'a> {
    let (result, result_base64) = match one.result.as_ref().map(value) {
        Some(Value::Json(raw)) => (Some(raw), None),
        Some(Value::Base64(text)) => (None, Some(text)),
        None => (None, None),
    };
    OutcomeJson {
        place: place(group, one),
        task: one.task.to_string(),
        state: one.state.as_str(),
        error: one.failure.as_ref().map(FailureJson::from),
        content_type: one.result.as_ref().map(|result| result.content_type.as_str()),
        result,
        result_base64,
    }
}

fn place(group: &Group, one: &Outcome) -> u32 {
    u32::try_from(one.task.0 - group.id.0).unwrap_or(group.count)
}

pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wait = query::read::<query::Wait>(&uri)?.duration()?;
    body::expect_media_type(&headers, &["application/json"])?;
    let key = idempotency_key(&headers)?;
    let bytes_max = if caller.is_upload { BULK_BYTES_MAX } else { JSON_BYTES_MAX };
    let too_large = |asked| Problem::too_large("json_bytes", bytes_max, asked);
    let body = body::read(body, &headers, bytes_max, caller.until, too_large).await?;
    let (tasks, asked) = submit_group(&body, trace::parent(&headers))?;
    drop(body);
    let accepted =
        api.handle.submit_group(caller.tenant, tasks, key, asked).await.map_err(too_large_input)?;
    let status = if accepted.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let id = GroupId(accepted.first.0);
    let group = match wait {
        Some(at_most) => api.handle.wait_group(caller.tenant, id, at_most).await?,
        None => api.handle.group(caller.tenant, id).await?,
    };
    #[derive(Serialize)]
    struct Answer {
        #[serde(flatten)]
        group: GroupJson,
        tasks: Vec<String>,
    }
    let tasks = accepted.ids().map(|id| id.to_string()).collect();
    let mut answer = json_answer(status, to_vec(&Answer { group: GroupJson::from(&group), tasks }));
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/groups/{id}")) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = group_id(&id)?;
    let group = match query::read::<query::Wait>(&uri)?.duration()? {
        Some(at_most) => api.handle.wait_group(caller.tenant, id, at_most).await?,
        None => api.handle.group(caller.tenant, id).await?,
    };
    Ok(json_answer(StatusCode::OK, to_vec(&GroupJson::from(&group))))
}

pub(super) async fn outcomes(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked: Asked = query::read(&uri)?;
    let limit = query::page(asked.limit, OUTCOMES_DEFAULT, OUTCOMES_MAX)?;
    let from = asked.from.unwrap_or(0);
    let (group, outcomes) = api.handle.outcomes(caller.tenant, group_id(&id)?, from, limit + 1).await?;
    let page = Page::of(outcomes, limit).within(USER_RESULTS_BYTES_MAX as usize, Outcome::bytes);
    #[derive(Serialize)]
    struct Answer<'a> {
        outcomes: Vec<OutcomeJson<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<u32>,
    }
    let next = page.items.last().filter(|_| page.more).map(|last| place(&group, last) + 1);
    let outcomes = page.items.iter().map(|one| outcome(&group, one)).collect();
    Ok(json_answer(StatusCode::OK, to_vec(&Answer { outcomes, next })))
}

pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    nothing(&uri, &body)?;
    let group = api.handle.cancel_group(caller.tenant, group_id(&id)?).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&GroupJson::from(&group))))
}

/// What is no id names no group.
pub(super) fn group_id(id: &Segment) -> Result<GroupId, Problem> {
    id.0.parse().map_err(|error| Problem::new(Code::NotFound, format!("there is no such group: {error}")))
}
