//! `keiko:agents`.

use std::fmt::Display;
use std::str::FromStr;

use keiko_core::AgentId;
use keiko_core::agent::{Agent as Row, AgentFilter, AgentStatistics, AgentStatus, StatusChange};
use keiko_core::effect::Refused;
use keiko_core::limit::{AGENTS_MAX, GUEST_PAGE_MAX};
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;
use keiko_core::port::AskError;

use crate::bindings::keiko::agents::agents::{
    Agent, Change, Error, Filter, Host, Listed, Page, Statistics, Status,
};
use crate::gate::{Call, Verdict};
use crate::state::State;

const LOAD: Call =
    Call { name: "keiko:agents/agents.load", capability: Some(Capability::Agents), taint: Taint::AGENTS };
const LIST_AGENTS: Call = Call { name: "keiko:agents/agents.list-agents", ..LOAD };
const SET_STATUSES: Call = Call { name: "keiko:agents/agents.set-statuses", ..LOAD };

impl Host for State {
    async fn load(&mut self, ids: Vec<String>) -> wasmtime::Result<Result<Vec<Option<Agent>>, Error>> {
        if self.gate.pass(&LOAD, ids.iter().map(String::len).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let answer = self.load_agents(&ids).await;
        let loaded = answer.iter().flatten().flatten();
        self.gate.charge_bytes(loaded.map(bytes).sum());
        Ok(answer)
    }

    async fn list_agents(&mut self, filter: Filter) -> wasmtime::Result<Result<Page, Error>> {
        let texts = filter.kind.iter().chain(&filter.before);
        if self.gate.pass(&LIST_AGENTS, texts.map(String::len).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let answer = self.page_of_agents(filter).await;
        let listed = answer.iter().flat_map(|page| &page.agents);
        self.gate.charge_bytes(listed.map(|listed| bytes(&listed.agent)).sum());
        Ok(answer)
    }

    async fn set_statuses(&mut self, changes: Vec<Change>) -> wasmtime::Result<Result<(), Error>> {
        let bytes = changes.iter().map(|change| change.agent.len()).sum();
        if self.gate.pass_effect(&SET_STATUSES, bytes)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let answer = self.change_statuses(changes).await;
        if let Err(Error::NotFound(unknown)) = &answer {
            self.gate.charge_bytes(unknown.iter().map(String::len).sum());
        }
        Ok(answer)
    }
}

impl State {
    async fn load_agents(&mut self, ids: &[String]) -> Result<Vec<Option<Agent>>, Error> {
        check_count(ids.len())?;
        let ids: Vec<AgentId> = ids.iter().map(|id| parse(id)).collect::<Result<_, _>>()?;
        let mut agents = self.port.agents(&ids).await?;
        self.effects.overlay(&mut agents);
        Ok(agents.into_iter().map(|agent| agent.map(Agent::from)).collect())
    }

    async fn page_of_agents(&mut self, filter: Filter) -> Result<Page, Error> {
        let limit = match filter.limit {
            None => GUEST_PAGE_MAX,
            Some(0) => return Err(Error::InvalidInput("a page has 1 agent at the least".to_owned())),
            Some(limit) if limit > GUEST_PAGE_MAX => return Err(Error::PageExceeded(GUEST_PAGE_MAX.into())),
            Some(limit) => limit,
        };
        let filter = AgentFilter {
            kind: filter.kind.map(|kind| parse(&kind)).transpose()?,
            status: filter.status.map(AgentStatus::from),
            before: filter.before.map(|id| parse(&id)).transpose()?,
        };
        let page = self.port.list_agents(&filter, limit).await?;
        let agents: Vec<Listed> = page.items.into_iter().map(Listed::from).collect();
        let next = agents.last().filter(|_| page.more).map(|last| last.agent.id.clone());
        Ok(Page { agents, next })
    }

    async fn change_statuses(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        check_count(changes.len())?;
        let changes: Vec<StatusChange> = changes.into_iter().map(change).collect::<Result<_, _>>()?;
        self.effects.check_statuses(changes.len())?;
        let ids: Vec<AgentId> = changes.iter().map(|change| change.agent).collect();
        let found = self.port.agents(&ids).await?;
        let mut unknown: Vec<AgentId> =
            ids.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(id, _)| *id).collect();
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            return Err(Error::NotFound(unknown.iter().map(AgentId::to_string).collect()));
        }
        self.effects.push_statuses(changes);
        Ok(())
    }
}

fn check_count(count: usize) -> Result<(), Error> {
    if count > AGENTS_MAX { Err(Error::IdsExceeded(AGENTS_MAX as u64)) } else { Ok(()) }
}

/// The errors of ids and names say what is expected, and do not repeat the text: it may be of any length.
fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| Error::InvalidInput(error.to_string()))
}

fn change(change: Change) -> Result<StatusChange, Error> {
    Ok(StatusChange { agent: parse(&change.agent)?, status: change.status.into() })
}

fn bytes(agent: &Agent) -> usize {
    agent.id.len() + agent.name.len() + agent.kind.len()
}

/// A time of a row as the contract counts it.
pub(super) fn since_1970(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

impl From<Row> for Agent {
    fn from(row: Row) -> Agent {
        Agent {
            id: row.id.to_string(),
            name: row.name,
            kind: row.kind.as_str().to_owned(),
            status: row.status.into(),
            created_ms: since_1970(row.created_ms),
            updated_ms: since_1970(row.updated_ms),
        }
    }
}

impl From<(Row, AgentStatistics)> for Listed {
    fn from((agent, counted): (Row, AgentStatistics)) -> Listed {
        let statistics = Statistics {
            total: counted.total,
            completed: counted.completed,
            failed: counted.failed,
            cancelled: counted.cancelled,
            average_us: counted.average_us(),
            success_rate: counted.success_rate(),
        };
        Listed { agent: agent.into(), statistics }
    }
}

impl From<AgentStatus> for Status {
    fn from(status: AgentStatus) -> Status {
        match status {
            AgentStatus::Idle => Status::Idle,
            AgentStatus::Active => Status::Active,
            AgentStatus::Paused => Status::Paused,
            AgentStatus::Failed => Status::Failed,
            AgentStatus::Retired => Status::Retired,
        }
    }
}

impl From<Status> for AgentStatus {
    fn from(status: Status) -> AgentStatus {
        match status {
            Status::Idle => AgentStatus::Idle,
            Status::Active => AgentStatus::Active,
            Status::Paused => AgentStatus::Paused,
            Status::Failed => AgentStatus::Failed,
            Status::Retired => AgentStatus::Retired,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::TooMany(limit) => Error::EffectsExceeded(limit),
            Refused::TooLarge(limit) => Error::EffectBytesExceeded(limit),
            Refused::Invalid(_) | Refused::InputTooLarge(_) => Error::InvalidInput(refused.to_string()),
        }
    }
}

impl From<AskError> for Error {
    fn from(error: AskError) -> Error {
        match error {
            AskError::Unavailable => Error::Unavailable,
            AskError::NoUser(_) | AskError::TooLarge(_) => Error::Other(error.to_string()),
        }
    }
}
