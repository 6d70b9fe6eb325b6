//! Routes of agents, and their shapes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use keiko_core::agent::{
    Agent, AgentFilter, AgentPatch, AgentStatistics, AgentStatus, StatusChange, check_name,
};
use keiko_core::limit::{AGENTS_MAX, LimitFact};
use keiko_core::{AgentId, Code};
use keiko_runtime::NewAgent;
use serde::{Deserialize, Serialize};

use super::caller::{Caller, Segment};
use super::dto::{time, to_vec};
use super::limit::{PAGE_DEFAULT, PAGE_MAX};
use super::problem::Problem;
use super::{Api, body, json, json_answer, query};

/// An agent as a client writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an agent, which is an object")]
struct AgentBody {
    name: String,
    kind: String,
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    agents: Vec<AgentBody>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "what changes about an agent, which is an object")]
struct PatchBody {
    name: Option<String>,
    kind: Option<String>,
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statuses {
    statuses: Vec<StatusBody>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusBody {
    agent: String,
    status: String,
}

/// A list of agents.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    kind: Option<String>,
    status: Option<String>,
    before: Option<String>,
    limit: Option<u32>,
}

/// One agent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    /// Whether its statistics are counted now.
    fresh: Option<bool>,
}

/// An agent as answers have it.
#[derive(Serialize)]
pub(super) struct AgentJson<'a> {
    id: String,
    name: &'a str,
    kind: &'a str,
    status: &'static str,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<TasksJson>,
}

/// What became of an agent's tasks.
#[derive(Serialize)]
struct TasksJson {
    total: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    average_us: u64,
    success_rate: f64,
}

impl<'a> AgentJson<'a> {
    pub(super) fn new(agent: &'a Agent, statistics: Option<&AgentStatistics>) -> AgentJson<'a> {
        let tasks = statistics.map(|statistics| TasksJson {
            total: statistics.total,
            completed: statistics.completed,
            failed: statistics.failed,
            cancelled: statistics.cancelled,
            average_us: statistics.average_us(),
            success_rate: statistics.success_rate(),
        });
        AgentJson {
            id: agent.id.to_string(),
            name: &agent.name,
            kind: agent.kind.as_str(),
            status: agent.status.as_str(),
            created_at: time(agent.created_ms),
            updated_at: time(agent.updated_ms),
            tasks,
        }
    }
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
    let many = probe.get("agents").is_some();
    let agents = if many { json::parse::<Many>(&bytes)?.agents } else { vec![json::parse(&bytes)?] };
    check_count("agents", agents.len())?;
    let place = |at: usize, problem: Problem| if many { at_index("agents", at, problem) } else { problem };
    let new = |(at, agent): (usize, AgentBody)| agent.read().map_err(|problem| place(at, problem));
    let agents = agents.into_iter().enumerate().map(new).collect::<Result<Vec<_>, _>>()?;
    let agents = api.handle.create_agents(caller.tenant, agents).await?;
    match agents.as_slice() {
        [agent] if !many => {
            let text = to_vec(&AgentJson::new(agent, Some(&AgentStatistics::default())));
            Ok(created(&format!("/v1/agents/{}", agent.id), text))
        }
        agents => {
            let agents: Vec<_> = agents.iter().map(|agent| AgentJson::new(agent, None)).collect();
            Ok(json_answer(StatusCode::CREATED, page(&agents, None)))
        }
    }
}

impl AgentBody {
    fn read(self) -> Result<NewAgent, Problem> {
        check_name(&self.name).map_err(Problem::invalid)?;
        Ok(NewAgent {
            name: self.name,
            kind: self.kind.parse().map_err(|error| Problem::invalid(format!("kind: {error}")))?,
            status: query::parse("status", self.status)?.unwrap_or(AgentStatus::Idle),
        })
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let asked: List = query::read(&uri)?;
    let limit = query::page(asked.limit, PAGE_DEFAULT, PAGE_MAX)?;
    let filter = AgentFilter {
        kind: query::parse("kind", asked.kind)?,
        status: query::parse("status", asked.status)?,
        before: query::parse("before", asked.before)?,
    };
    // One more than is shown says whether there is another page.
    let agents = api.handle.list_agents(caller.tenant, &filter, limit + 1).await?;
    let shown = &agents[..agents.len().min(limit as usize)];
    let next =
        if agents.len() > shown.len() { shown.last().map(|(last, _)| last.id.to_string()) } else { None };
    let shown: Vec<_> =
        shown.iter().map(|(agent, statistics)| AgentJson::new(agent, Some(statistics))).collect();
    Ok(json_answer(StatusCode::OK, page(&shown, next)))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked: One = query::read(&uri)?;
    let fresh = asked.fresh.unwrap_or_default();
    let (agent, statistics) = api.handle.agent(caller.tenant, agent_id(&id)?, fresh).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&AgentJson::new(&agent, Some(&statistics)))))
}

pub(super) async fn update(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let bytes = body::read_json(body, &headers, caller.until).await?;
    let asked: PatchBody = json::parse(&bytes)?;
    let patch = AgentPatch {
        name: asked.name,
        kind: query::parse("kind", asked.kind)?,
        status: query::parse("status", asked.status)?,
    };
    if patch == AgentPatch::default() {
        return Err(Problem::invalid("nothing changes: expected name, kind or status"));
    }
    let agent = api.handle.update_agent(caller.tenant, agent_id(&id)?, patch).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&AgentJson::new(&agent, None))))
}

/// Many agents by their ids, in the order of the ids; those that are missing are `null`, and named.
pub(super) async fn load(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Loaded<'a> {
        agents: Vec<Option<AgentJson<'a>>>,
        missing: Vec<String>,
    }
    query::read::<query::Nothing>(&uri)?;
    let bytes = body::read_json(body, &headers, caller.until).await?;
    let Ids { ids } = json::parse(&bytes)?;
    check_count("ids", ids.len())?;
    let parse = |(at, text): (usize, String)| {
        text.parse::<AgentId>().map_err(|error| at_index("ids", at, Problem::invalid(error.to_string())))
    };
    let ids = ids.into_iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let agents = api.handle.agents(caller.tenant, &ids).await?;
    let missing = ids.iter().zip(&agents).filter(|(_, found)| found.is_none());
    let loaded = Loaded {
        missing: missing.map(|(id, _)| id.to_string()).collect(),
        agents: agents.iter().map(|agent| agent.as_ref().map(|agent| AgentJson::new(agent, None))).collect(),
    };
    Ok(json_answer(StatusCode::OK, to_vec(&loaded)))
}

/// New statuses of many agents, all or none.
pub(super) async fn statuses(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Changed {
        changed: usize,
    }
    query::read::<query::Nothing>(&uri)?;
    let bytes = body::read_json(body, &headers, caller.until).await?;
    let Statuses { statuses } = json::parse(&bytes)?;
    check_count("statuses", statuses.len())?;
    let parse = |(at, change): (usize, StatusBody)| {
        let place = |problem| at_index("statuses", at, problem);
        let agent = change.agent.parse();
        let status = change.status.parse();
        Ok(StatusChange {
            agent: agent.map_err(|error: keiko_core::id::NotAnAgentId| {
                place(Problem::invalid(format!("agent: {error}")))
            })?,
            status: status.map_err(|error: keiko_core::agent::UnknownStatus| {
                place(Problem::invalid(format!("status: {error}")))
            })?,
        })
    };
    let changes = statuses.into_iter().enumerate().map(parse).collect::<Result<Vec<_>, Problem>>()?;
    let distinct: std::collections::BTreeSet<AgentId> = changes.iter().map(|change| change.agent).collect();
    api.handle.set_statuses(caller.tenant, changes).await?;
    Ok(json_answer(StatusCode::OK, to_vec(&Changed { changed: distinct.len() })))
}

#[derive(Serialize)]
struct PageJson<'a> {
    agents: &'a [AgentJson<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

fn page(agents: &[AgentJson<'_>], next: Option<String>) -> Vec<u8> {
    to_vec(&PageJson { agents, next })
}

/// The answer to a request that made one thing, which stands there from now on.
pub(super) fn created(path: &str, text: Vec<u8>) -> Response {
    let mut answer = json_answer(StatusCode::CREATED, text);
    if let Ok(location) = HeaderValue::from_str(path) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

/// What is no id names no agent.
fn agent_id(id: &Segment) -> Result<AgentId, Problem> {
    id.0.parse().map_err(|error| Problem::new(Code::NotFound, format!("there is no such agent: {error}")))
}

/// Whether a request has as many as one may have.
pub(super) fn check_count(name: &str, count: usize) -> Result<(), Problem> {
    match count {
        0 => Err(Problem::invalid(format!("{name}: expected 1 to {AGENTS_MAX}, found none"))),
        1..=AGENTS_MAX => Ok(()),
        _ => {
            let fact = LimitFact::of_host(name, AGENTS_MAX as u64, Some(count as u64));
            Err(Problem::at_limit(Code::InvalidInput, fact))
        }
    }
}

/// Says which of many a problem belongs to.
pub(super) fn at_index(name: &str, at: usize, problem: Problem) -> Problem {
    Problem { message: format!("{name}[{at}]: {}", problem.message), ..problem }
}
