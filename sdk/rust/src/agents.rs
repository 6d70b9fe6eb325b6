//! The agents of the tenant. A run that asks is no longer pure. Capability `agents`.
//!
//! Setting a status is an effect: it appears in the transaction that stores this task's result, and never when the
//! attempt does not complete.

use std::fmt;

use crate::{Failure, host};

/// Load up to 1,000 agents in one query, in the order of the ids; `None` where the tenant has no such agent.
///
/// Statuses that this attempt has set are seen, though nobody else sees them yet.
pub fn load(ids: &[&str]) -> Result<Vec<Option<Agent>>, Error> {
    host::load_agents(ids)
}

/// List agents with what became of their tasks, newest first, in one query. Statuses that this attempt has set are not
/// seen.
pub fn list(filter: &Filter) -> Result<Page, Error> {
    host::list_agents(filter)
}

/// Give up to 1,000 agents new statuses, all or none. Of an agent that is named twice the last counts; unknown ids are
/// told here.
pub fn set_statuses(changes: &[Change]) -> Result<(), Error> {
    host::set_statuses(changes)
}

/// What an agent does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Waits for work.
    Idle,
    /// Works.
    Active,
    /// Takes no work until somebody says so.
    Paused,
    /// Cannot work.
    Failed,
    /// Is kept for its history only.
    Retired,
}

impl Status {
    /// Every status.
    pub const ALL: [Status; 5] =
        [Status::Idle, Status::Active, Status::Paused, Status::Failed, Status::Retired];

    /// Its name, as HTTP and the command line write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An agent as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is for: a word of the tenant's own.
    pub kind: String,
    /// What it does now.
    pub status: Status,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_ms: u64,
}

/// What became of an agent's tasks, also of those that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Every task that named the agent.
    pub total: u64,
    /// Those with a result.
    pub completed: u64,
    /// Those with an error.
    pub failed: u64,
    /// Those that were cancelled.
    pub cancelled: u64,
    /// Average running time of the attempts that ended tasks, in microseconds; 0 when there are none.
    pub average_us: u64,
    /// Completed tasks in all tasks, from 0 to 1; 0 when there are none.
    pub success_rate: f64,
}

/// An agent with what became of its tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The agent.
    pub agent: Agent,
    /// What became of its tasks; all 0 when it had none.
    pub statistics: Statistics,
}

/// Which agents to list: `Filter::default()` is the newest 100 of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this kind.
    pub kind: Option<String>,
    /// Only those with this status.
    pub status: Option<Status>,
    /// Only those older than this one: [`Page::next`] of the page before.
    pub before: Option<String>,
    /// At most this many, 1 to 100; `None` means 100.
    pub limit: Option<u32>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The agents, newest first.
    pub agents: Vec<Listed>,
    /// What to ask the next page with, as [`Filter::before`]; `None` when this is the last.
    pub next: Option<String>,
}

/// A new status for one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The agent's id.
    pub agent: String,
    /// Its new status.
    pub status: Status,
}

impl Change {
    /// Gives this agent this status.
    pub fn new(agent: impl Into<String>, status: Status) -> Self {
        Self { agent: agent.into(), status }
    }
}

/// Why the host does not answer. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An id is not an agent's id, a kind is not a kind's name, or a page of 0 was asked for; the text says which.
    InvalidInput(String),
    /// More ids or changes than this many were handed over.
    IdsExceeded(u64),
    /// A page of more than this many was asked for.
    PageExceeded(u64),
    /// The tenant has no agents with these ids.
    NotFound(Vec<String>),
    /// This attempt has asked for as many effects as it may: this many.
    EffectsExceeded(u64),
    /// This attempt's effects together would be larger than this many bytes.
    EffectBytesExceeded(u64),
    /// The tenant's policy does not grant `agents`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidInput(how) => write!(f, "agents not found: {how}"),
            Self::IdsExceeded(limit) => write!(f, "the call exceeds the limit of {limit} agents"),
            Self::PageExceeded(limit) => write!(f, "the page exceeds the limit of {limit} agents"),
            Self::NotFound(ids) => write!(f, "no agent {}", ids.join(", ")),
            Self::EffectsExceeded(limit) => write!(f, "the attempt exceeds the limit of {limit} effects"),
            Self::EffectBytesExceeded(limit) => {
                write!(f, "the attempt's effects exceed the limit of {limit} bytes")
            }
            Self::Denied => f.write_str("the policy does not grant `agents`"),
            Self::Unavailable => f.write_str("the agents are unavailable"),
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
        for error in [Error::Denied, Error::NotFound(vec!["agent_1".into()]), Error::EffectsExceeded(1_000)] {
            assert!(matches!(error.clone().into(), Failure::Permanent(_)), "{error}");
        }
    }

    #[test]
    fn unknown_agents_are_named() {
        assert_eq!(Error::NotFound(vec!["a".into(), "b".into()]).to_string(), "no agent a, b");
    }
}
