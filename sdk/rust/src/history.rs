//! What became of the tenant's tasks. A run that asks is no longer pure. Capability `history`.
//!
//! Answers show what is stored, and are at most 4 MiB large.

use std::fmt;

use crate::{Failure, Payload, host};

/// The tasks of a user with agents and results, newest first, in one query.
///
/// `before` is [`Page::next`] of the page before. A page has at most `limit` tasks, 1 to 100, and 100 for `None`; it has
/// fewer when they would be larger than 4 MiB together, but one at the least.
pub fn user_tasks(user: &str, before: Option<&str>, limit: Option<u32>) -> Result<Page, Error> {
    host::user_tasks(user, before, limit)
}

/// Statistics of the tasks that were submitted from `from_ms` to `to_ms`, both included and in milliseconds since 1970,
/// by plugin, kind and state, in that order.
pub fn summarize(from_ms: u64, to_ms: u64) -> Result<Vec<Statistics>, Error> {
    host::summarize(from_ms, to_ms)
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waits, for a host or for the time of its next attempt.
    Pending,
    /// Runs.
    Running,
    /// Has its one result.
    Completed,
    /// Has its one error.
    Failed,
    /// Was cancelled before it ended by itself.
    Cancelled,
}

impl State {
    /// Its name, as HTTP and the command line write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a task was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Their id.
    pub id: String,
    /// What people call them.
    pub name: String,
}

/// Who worked on a task. What it does now is what [`crate::agents`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is for: a word of the tenant's own.
    pub kind: String,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// The code, for programs.
    pub code: String,
    /// What happened, for people; at most 4 KiB.
    pub message: String,
}

/// A task of a user, with whom it was for and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTask {
    /// Its id.
    pub id: String,
    /// The plugin that handles it.
    pub plugin: String,
    /// Which of its kinds.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// When it was submitted, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it ended, in milliseconds since 1970; `None` while it has not.
    pub ended_ms: Option<u64>,
    /// Whom it was for.
    pub user: User,
    /// Who worked on it; `None` when it named no agent.
    pub agent: Option<Agent>,
    /// Its result; `None` unless it completed.
    pub output: Option<Payload>,
    /// Its error; `None` unless it failed.
    pub failure: Option<TaskFailure>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The tasks, newest first.
    pub tasks: Vec<UserTask>,
    /// What to ask the next page with, as `before`; `None` when this is the last.
    pub next: Option<String>,
}

/// What is known of the tasks of one kind in one state. Durations are the running times of the attempts that ended the
/// tasks, in microseconds; all 0 when none of them had one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// The plugin.
    pub plugin: String,
    /// Which of its kinds.
    pub kind: String,
    /// Where the tasks stand.
    pub state: State,
    /// How many there are.
    pub count: u64,
    /// Their average, rounded down.
    pub average_us: u64,
    /// The shortest.
    pub minimum_us: u64,
    /// The longest.
    pub maximum_us: u64,
    /// The smallest that is not below half of them.
    pub p50_us: u64,
    /// The smallest that is not below 95 in 100 of them.
    pub p95_us: u64,
}

/// Why the host does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An id is not what it stands for, a range ends before it begins, or a page of 0 was asked for; the text says
    /// which.
    InvalidInput(String),
    /// A page of more than this many was asked for.
    PageExceeded(u64),
    /// The tenant has no user with this id.
    NotFound(String),
    /// The answer would be larger than this many bytes; a shorter range may have a smaller one.
    AnswerExceeded(u64),
    /// The tenant's policy does not grant `history`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidInput(how) => write!(f, "history not told: {how}"),
            Self::PageExceeded(limit) => write!(f, "the page exceeds the limit of {limit} tasks"),
            Self::NotFound(user) => write!(f, "no user {user}"),
            Self::AnswerExceeded(limit) => write!(f, "the answer exceeds the limit of {limit} bytes"),
            Self::Denied => f.write_str("the policy does not grant `history`"),
            Self::Unavailable => f.write_str("the history is unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

/// Only a host that cannot answer is worth another attempt. The rest is permanent.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
            _ => Self::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for error in [Error::Unavailable, Error::Other("odd".into())] {
            assert!(matches!(error.clone().into(), Failure::Retryable { .. }), "{error}");
        }
        for error in [Error::Denied, Error::NotFound("user_1".into()), Error::AnswerExceeded(4_194_304)] {
            assert!(matches!(error.clone().into(), Failure::Permanent(_)), "{error}");
        }
    }
}
