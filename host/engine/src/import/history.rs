//! `keiko:history`.

use keiko_core::history::{DateRange as Range, Statistics as Summed, UserTask as Row};
use keiko_core::id::{NotATaskId, NotAUserId};
use keiko_core::limit::GUEST_PAGE_MAX;
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;
use keiko_core::port::AskError;
use keiko_core::task::TaskState;
use keiko_core::{TaskId, UserId};

use super::agents::since_1970;
use crate::bindings::keiko::history::history::{
    Agent, DateRange, Error, Failure, Host, Page, Payload, State as StateOf, Statistics, User, UserTask,
};
use crate::gate::{Call, Verdict};
use crate::state::State;

const USER_TASKS: Call = Call {
    name: "keiko:history/history.user-tasks",
    capability: Some(Capability::History),
    taint: Taint::HISTORY,
};
const SUMMARIZE: Call = Call { name: "keiko:history/history.summarize", ..USER_TASKS };

impl Host for State {
    async fn user_tasks(
        &mut self,
        user: String,
        before: Option<String>,
        limit: Option<u32>,
    ) -> wasmtime::Result<Result<Page, Error>> {
        let texts = before.iter().chain([&user]);
        if self.gate.pass(&USER_TASKS, texts.map(String::len).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        Ok(self.page_of_tasks(&user, before.as_deref(), limit).await)
    }

    async fn summarize(&mut self, range: DateRange) -> wasmtime::Result<Result<Vec<Statistics>, Error>> {
        if self.gate.pass(&SUMMARIZE, 0)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        Ok(self.summed_up(range).await)
    }
}

impl State {
    async fn page_of_tasks(
        &mut self,
        user: &str,
        before: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, Error> {
        let limit = match limit {
            None => GUEST_PAGE_MAX,
            Some(0) => return Err(Error::InvalidInput("a page has 1 task at the least".to_owned())),
            Some(limit) if limit > GUEST_PAGE_MAX => return Err(Error::PageExceeded(GUEST_PAGE_MAX.into())),
            Some(limit) => limit,
        };
        let user: UserId =
            user.parse().map_err(|error: NotAUserId| Error::InvalidInput(error.to_string()))?;
        let before: Option<TaskId> = before
            .map(str::parse)
            .transpose()
            .map_err(|error: NotATaskId| Error::InvalidInput(error.to_string()))?;
        let page = self.port.user_tasks(user, before, limit).await?;
        self.gate.charge_bytes(page.items.iter().map(Row::bytes).sum());
        let next = page.items.last().filter(|_| page.more).map(|last| last.summary.id.to_string());
        Ok(Page { tasks: page.items.into_iter().map(UserTask::from).collect(), next })
    }

    async fn summed_up(&mut self, range: DateRange) -> Result<Vec<Statistics>, Error> {
        if range.from_ms > range.to_ms {
            return Err(Error::InvalidInput("the range ends before it begins".to_owned()));
        }
        // What is later than any time a row can have is as late as can be.
        let time = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let range = Range { from_ms: time(range.from_ms), to_ms: time(range.to_ms) };
        let statistics = self.port.statistics(range).await?;
        self.gate.charge_bytes(statistics.iter().map(Summed::bytes).sum());
        Ok(statistics.into_iter().map(Statistics::from).collect())
    }
}

impl From<Row> for UserTask {
    fn from(row: Row) -> UserTask {
        UserTask {
            id: row.summary.id.to_string(),
            plugin: row.summary.plugin.as_str().to_owned(),
            kind: row.summary.kind.as_str().to_owned(),
            state: row.summary.state.into(),
            created_ms: since_1970(row.summary.created_ms),
            ended_ms: row.summary.finished_ms.map(since_1970),
            user: User { id: row.user.id.to_string(), name: row.user.name },
            agent: row.agent.map(|agent| Agent {
                id: agent.id.to_string(),
                name: agent.name,
                kind: agent.kind.as_str().to_owned(),
            }),
            output: row
                .result
                .map(|result| Payload { content_type: result.content_type, bytes: result.bytes.into() }),
            failure: row
                .failure
                .map(|failure| Failure { code: failure.code.as_str().to_owned(), message: failure.message }),
        }
    }
}

impl From<Summed> for Statistics {
    fn from(summed: Summed) -> Statistics {
        Statistics {
            plugin: summed.plugin.as_str().to_owned(),
            kind: summed.kind.as_str().to_owned(),
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

impl From<TaskState> for StateOf {
    fn from(state: TaskState) -> StateOf {
        match state {
            TaskState::Pending => StateOf::Pending,
            TaskState::Running => StateOf::Running,
            TaskState::Completed => StateOf::Completed,
            TaskState::Failed => StateOf::Failed,
            TaskState::Cancelled => StateOf::Cancelled,
        }
    }
}

impl From<AskError> for Error {
    fn from(error: AskError) -> Error {
        match error {
            AskError::NoUser(user) => Error::NotFound(user.to_string()),
            AskError::TooLarge(limit) => Error::AnswerExceeded(limit),
            AskError::Unavailable => Error::Unavailable,
        }
    }
}
