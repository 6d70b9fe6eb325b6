//! Routes of schedules.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use keiko_core::name::ScheduleName;
use keiko_core::schedule::{Missed, Overlap, Recurrence, Schedule};
use keiko_runtime::ScheduleRequest;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::caller::{Caller, Segment};
use super::dto::{Value, template, time, to_vec, value};
use super::limit::{PAGE_DEFAULT, PAGE_MAX};
use super::problem::Problem;
use super::{Api, body, json, json_answer, query};
use crate::limits::Limits;

/// A schedule as a client writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a schedule, which is an object")]
struct ScheduleBody<'a> {
    name: String,
    cron: String,
    zone: Option<String>,
    #[serde(default)]
    missed: Missed,
    #[serde(default)]
    overlap: Overlap,
    #[serde(default)]
    paused: bool,
    #[serde(borrow)]
    task: &'a RawValue,
}

/// A page of schedules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct ScheduleJson<'a> {
    name: &'a str,
    cron: &'a str,
    zone: &'a str,
    missed: Missed,
    overlap: Overlap,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<LastJson<'a>>,
    task: TaskJson<'a>,
}

#[derive(Serialize)]
struct LastJson<'a> {
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// What every occurrence submits; a list leaves the input out.
#[derive(Serialize)]
struct TaskJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    priority: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

fn shown(schedule: &Schedule, with_input: bool) -> ScheduleJson<'_> {
    let Schedule { recurrence, task, last, .. } = schedule;
    let (input, input_base64) = match with_input.then(|| value(&task.input)) {
        Some(Value::Json(raw)) => (Some(raw), None),
        Some(Value::Base64(text)) => (None, Some(text)),
        None => (None, None),
    };
    ScheduleJson {
        name: schedule.name.as_str(),
        cron: &recurrence.cron,
        zone: &recurrence.zone,
        missed: recurrence.missed,
        overlap: recurrence.overlap,
        created_at: time(schedule.created_ms),
        paused_at: schedule.paused_ms.map(time),
        next_at: schedule.next_ms.map(time),
        last: last.as_ref().map(|last| LastJson {
            at: time(last.at_ms),
            task: last.task.map(|id| id.to_string()),
            code: last.problem.as_ref().map(|(code, _)| code.as_str()),
            message: last.problem.as_ref().map(|(_, message)| message.as_str()),
        }),
        task: TaskJson {
            plugin: task.plugin.as_deref(),
            kind: task.kind.as_deref(),
            content_type: input_base64.as_ref().map(|_| task.input.content_type.as_str()),
            input,
            input_base64,
            priority: u32::from(task.priority.level()),
            concurrency_key: task.slot_key.as_deref(),
            limits: Limits::of(&task.budget),
            agent: task.agent.map(|id| id.to_string()),
            user: task.user.map(|id| id.to_string()),
        },
    }
}

fn answer(status: StatusCode, schedule: &Schedule) -> Response {
    json_answer(status, to_vec(&shown(schedule, true)))
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let bytes = body::read_json(body, &headers, caller.until).await?;
    let asked: ScheduleBody<'_> = json::parse(&bytes)?;
    let name: ScheduleName =
        asked.name.parse().map_err(|error| Problem::invalid(format!("`name`: {error}")))?;
    let recurrence = Recurrence {
        cron: asked.cron,
        zone: asked.zone.unwrap_or_else(|| "UTC".to_owned()),
        missed: asked.missed,
        overlap: asked.overlap,
    };
    let task = template(&bytes, asked.task)?;
    let request = ScheduleRequest { name, recurrence, task, paused: asked.paused };
    let schedule = api.handle.create_schedule(caller.tenant, request).await?;
    Ok(answer(StatusCode::CREATED, &schedule))
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let asked: Asked = query::read(&uri)?;
    let limit = query::page(asked.limit, PAGE_DEFAULT, PAGE_MAX)?;
    let after: Option<ScheduleName> = query::parse("after", asked.after)?;
    let found = api.handle.schedules(caller.tenant, after.as_ref(), limit + 1).await?;
    let page = &found[..found.len().min(limit as usize)];
    let next = (found.len() > page.len()).then(|| page.last().map(|last| last.name.as_str())).flatten();
    let schedules: Vec<_> = page.iter().map(|schedule| shown(schedule, false)).collect();
    #[derive(Serialize)]
    struct Page<'a> {
        schedules: Vec<ScheduleJson<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<&'a str>,
    }
    Ok(json_answer(StatusCode::OK, to_vec(&Page { schedules, next })))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Segment(name): Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    Ok(answer(StatusCode::OK, &api.handle.schedule(caller.tenant, &name).await?))
}

pub(super) async fn pause(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Segment(name): Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    Ok(answer(StatusCode::OK, &api.handle.pause_schedule(caller.tenant, &name).await?))
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Segment(name): Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    Ok(answer(StatusCode::OK, &api.handle.resume_schedule(caller.tenant, &name).await?))
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Segment(name): Segment,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    query::read::<query::Nothing>(&uri)?;
    api.handle.remove_schedule(caller.tenant, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
