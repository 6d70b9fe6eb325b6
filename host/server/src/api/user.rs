//! Routes of users and of what was done for them, and their shapes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use keiko_core::agent::User;
use keiko_core::history::UserTask;
use keiko_core::page::Page;
use keiko_core::{Code, TaskId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::agent::{AgentJson, at_index, check_count, created};
use super::caller::{Caller, Segment};
use super::dto::{FailureJson, Head, Value, time, to_vec, value};
use super::limit::{PAGE_DEFAULT, PAGE_MAX, USER_TASKS_BYTES_MAX, USER_TASKS_DEFAULT, USER_TASKS_MAX};
use super::problem::Problem;
use super::{Api, body, json, json_answer, query};

/// A user as a client writes one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a user, which is an object")]
struct UserBody {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    users: Vec<UserBody>,
}

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    before: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct UserJson<'a> {
    id: String,
    name: &'a str,
    created_at: String,
}

impl<'a> From<&'a User> for UserJson<'a> {
    fn from(user: &'a User) -> UserJson<'a> {
        UserJson { id: user.id.to_string(), name: &user.name, created_at: time(user.created_ms) }
    }
}

#[derive(Serialize)]
struct PageJson<'a> {
    users: Vec<UserJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
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
    let probe: serde_json::Value = json::parse(&bytes)?;
    let many = probe.get("users").is_some();
    let users = if many { json::parse::<Many>(&bytes)?.users } else { vec![json::parse(&bytes)?] };
    check_count("users", users.len())?;
    for (at, user) in users.iter().enumerate() {
        let checked = keiko_core::agent::check_name(&user.name).map_err(Problem::invalid);
        checked.map_err(|problem| if many { at_index("users", at, problem) } else { problem })?;
    }
    let names = users.into_iter().map(|user| user.name).collect();
    let users = api.handle.create_users(caller.tenant, names).await?;
    match users.as_slice() {
        [user] if !many => Ok(created(&format!("/v1/users/{}", user.id), to_vec(&UserJson::from(user)))),
        users => {
            let page = PageJson { users: users.iter().map(UserJson::from).collect(), next: None };
            Ok(json_answer(StatusCode::CREATED, to_vec(&page)))
        }
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let asked: List = query::read(&uri)?;
    let limit = query::page(asked.limit, PAGE_DEFAULT, PAGE_MAX)?;
    let before = query::parse("before", asked.before)?;
    let users = api.handle.list_users(caller.tenant, before, limit + 1).await?;
    let shown = &users[..users.len().min(limit as usize)];
    let next = if users.len() > shown.len() { shown.last().map(|last| last.id.to_string()) } else { None };
    let text = to_vec(&PageJson { users: shown.iter().map(UserJson::from).collect(), next });
    Ok(json_answer(StatusCode::OK, text))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let user = api.handle.user(caller.tenant, user_id(&id)?).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&UserJson::from(&user))))
}

/// Tasks of a user, newest first, with agent, user and result of each.
pub(super) async fn tasks(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked: List = query::read(&uri)?;
    let limit = query::page(asked.limit, USER_TASKS_DEFAULT, USER_TASKS_MAX)?;
    let before: Option<TaskId> = query::parse("before", asked.before)?;
    let tasks = api.handle.user_tasks(caller.tenant, user_id(&id)?, before, limit + 1).await?;
    // Where the results together are too large for one answer, the page is shorter than was asked for.
    let page = Page::of(tasks, limit).within(USER_TASKS_BYTES_MAX, UserTask::bytes);
    Ok(json_answer(StatusCode::OK, task_page(&page)))
}

#[derive(Serialize)]
struct TaskPageJson<'a> {
    tasks: Vec<UserTaskJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A task with the names that its head has only as ids, and with its result. The head is a part of its own, because a raw
/// value cannot pass through a flattened one.
struct UserTaskJson<'a>(&'a UserTask);

#[derive(Serialize)]
struct AroundJson<'a> {
    user: UserJson<'a>,
    agent: Option<AgentJson<'a>>,
    task: Head<'a>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
}

impl Serialize for UserTaskJson<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let UserTaskJson(one) = self;
        let (result, result_base64) = match one.result.as_ref().map(value) {
            Some(Value::Json(raw)) => (Some(raw), None),
            Some(Value::Base64(text)) => (None, Some(text)),
            None => (None, None),
        };
        let json = AroundJson {
            user: UserJson::from(&one.user),
            agent: one.agent.as_ref().map(|agent| AgentJson::new(agent, None)),
            task: Head::from(&one.summary),
            attempts: one.summary.attempts,
            error: one.failure.as_ref().map(FailureJson::from),
            content_type: one.result.as_ref().map(|payload| payload.content_type.as_str()),
            result,
            result_base64,
        };
        json.serialize(serializer)
    }
}

fn task_page(page: &Page<UserTask>) -> Vec<u8> {
    let last = page.items.last().filter(|_| page.more);
    let next = last.map(|last| last.summary.id.to_string());
    to_vec(&TaskPageJson { tasks: page.items.iter().map(UserTaskJson).collect(), next })
}

/// What is no id names no user.
fn user_id(id: &Segment) -> Result<UserId, Problem> {
    id.0.parse().map_err(|error| Problem::new(Code::NotFound, format!("there is no such user: {error}")))
}
