//! The calls to the tenant's data: agents, and what became of tasks.

use crate::Payload;
use crate::agents::{Agent, Change, Error, Filter, Listed, Page, Statistics, Status};
use crate::bindings::keiko::agents::agents as bound;
use crate::bindings::keiko::history::history as told;
use crate::history;

pub(crate) fn load_agents(ids: &[&str]) -> Result<Vec<Option<Agent>>, Error> {
    let ids: Vec<String> = ids.iter().map(|&id| id.to_owned()).collect();
    let agents = bound::load(&ids)?;
    Ok(agents.into_iter().map(|agent| agent.map(Agent::from)).collect())
}

pub(crate) fn list_agents(filter: &Filter) -> Result<Page, Error> {
    let page = bound::list_agents(&bound::Filter {
        kind: filter.kind.clone(),
        status: filter.status.map(bound::Status::from),
        before: filter.before.clone(),
        limit: filter.limit,
    })?;
    Ok(Page { agents: page.agents.into_iter().map(Listed::from).collect(), next: page.next })
}

pub(crate) fn set_statuses(changes: &[Change]) -> Result<(), Error> {
    let change =
        |change: &Change| bound::Change { agent: change.agent.clone(), status: change.status.into() };
    Ok(bound::set_statuses(&changes.iter().map(change).collect::<Vec<_>>())?)
}

pub(crate) fn user_tasks(
    user: &str,
    before: Option<&str>,
    limit: Option<u32>,
) -> Result<history::Page, history::Error> {
    let page = told::user_tasks(user, before, limit)?;
    let tasks = page.tasks.into_iter().map(history::UserTask::from).collect();
    Ok(history::Page { tasks, next: page.next })
}

pub(crate) fn summarize(from_ms: u64, to_ms: u64) -> Result<Vec<history::Statistics>, history::Error> {
    let statistics = told::summarize(told::DateRange { from_ms, to_ms })?;
    Ok(statistics.into_iter().map(history::Statistics::from).collect())
}

impl From<bound::Agent> for Agent {
    fn from(agent: bound::Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            kind: agent.kind,
            status: agent.status.into(),
            created_ms: agent.created_ms,
            updated_ms: agent.updated_ms,
        }
    }
}

impl From<bound::Listed> for Listed {
    fn from(listed: bound::Listed) -> Self {
        let counted = listed.statistics;
        let statistics = Statistics {
            total: counted.total,
            completed: counted.completed,
            failed: counted.failed,
            cancelled: counted.cancelled,
            average_us: counted.average_us,
            success_rate: counted.success_rate,
        };
        Self { agent: listed.agent.into(), statistics }
    }
}

impl From<bound::Status> for Status {
    fn from(status: bound::Status) -> Self {
        match status {
            bound::Status::Idle => Self::Idle,
            bound::Status::Active => Self::Active,
            bound::Status::Paused => Self::Paused,
            bound::Status::Failed => Self::Failed,
            bound::Status::Retired => Self::Retired,
        }
    }
}

impl From<Status> for bound::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Idle => Self::Idle,
            Status::Active => Self::Active,
            Status::Paused => Self::Paused,
            Status::Failed => Self::Failed,
            Status::Retired => Self::Retired,
        }
    }
}

impl From<bound::Error> for Error {
    fn from(error: bound::Error) -> Self {
        match error {
            bound::Error::InvalidInput(how) => Self::InvalidInput(how),
            bound::Error::IdsExceeded(limit) => Self::IdsExceeded(limit),
            bound::Error::PageExceeded(limit) => Self::PageExceeded(limit),
            bound::Error::NotFound(ids) => Self::NotFound(ids),
            bound::Error::EffectsExceeded(limit) => Self::EffectsExceeded(limit),
            bound::Error::EffectBytesExceeded(limit) => Self::EffectBytesExceeded(limit),
            bound::Error::Denied => Self::Denied,
            bound::Error::Unavailable => Self::Unavailable,
            bound::Error::Other(text) => Self::Other(text),
        }
    }
}

impl From<told::UserTask> for history::UserTask {
    fn from(task: told::UserTask) -> Self {
        Self {
            id: task.id,
            plugin: task.plugin,
            kind: task.kind,
            state: task.state.into(),
            created_ms: task.created_ms,
            ended_ms: task.ended_ms,
            user: history::User { id: task.user.id, name: task.user.name },
            agent: task.agent.map(|agent| history::Agent {
                id: agent.id,
                name: agent.name,
                kind: agent.kind,
            }),
            output: task.output.map(|output| Payload::new(output.content_type, output.bytes)),
            failure: task
                .failure
                .map(|failure| history::TaskFailure { code: failure.code, message: failure.message }),
        }
    }
}

impl From<told::Statistics> for history::Statistics {
    fn from(summed: told::Statistics) -> Self {
        Self {
            plugin: summed.plugin,
            kind: summed.kind,
            state: summed.state.into(),
            count: summed.count,
            average_us: summed.average_us,
            minimum_us: summed.minimum_us,
            maximum_us: summed.maximum_us,
            p50_us: summed.p50_us,
            p95_us: summed.p95_us,
        }
    }
}

impl From<told::State> for history::State {
    fn from(state: told::State) -> Self {
        match state {
            told::State::Pending => Self::Pending,
            told::State::Running => Self::Running,
            told::State::Completed => Self::Completed,
            told::State::Failed => Self::Failed,
            told::State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<told::Error> for history::Error {
    fn from(error: told::Error) -> Self {
        match error {
            told::Error::InvalidInput(how) => Self::InvalidInput(how),
            told::Error::PageExceeded(limit) => Self::PageExceeded(limit),
            told::Error::NotFound(user) => Self::NotFound(user),
            told::Error::AnswerExceeded(limit) => Self::AnswerExceeded(limit),
            told::Error::Denied => Self::Denied,
            told::Error::Unavailable => Self::Unavailable,
            told::Error::Other(text) => Self::Other(text),
        }
    }
}
