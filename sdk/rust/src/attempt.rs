//! Facts about the run a plugin is in. A run that asks is no longer pure. Capability `attempt`.

use std::fmt;
use std::time::Duration;

use crate::{Failure, host};

/// The facts of this attempt.
pub fn facts() -> Result<Facts, Error> {
    host::facts()
}

/// Wall clock left to this attempt; zero when the deadline has come.
pub fn remaining() -> Result<Duration, Error> {
    host::remaining_ms().map(Duration::from_millis)
}

/// What does not change during the attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The tenant's name.
    pub tenant: String,
    /// The task's id.
    pub task: String,
    /// The task that started this tree of tasks; the task's own id when nothing submitted it.
    pub root: String,
    /// The task that submitted this one; `None` for a root.
    pub parent: Option<String>,
    /// How many parents there are above this task: 0 for a root.
    pub depth: u32,
    /// Number of this attempt, from 1.
    pub number: u32,
    /// Attempts the task may have in all.
    pub attempts_max: u32,
    /// W3C `traceparent` of the attempt; `None` when the submit carried none.
    pub trace: Option<String>,
}

/// Why the host does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The tenant's policy does not grant `attempt`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("the policy does not grant `attempt`"),
            Self::Unavailable => f.write_str("the attempt's facts are unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Denied => Self::permanent(error.to_string()),
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
        }
    }
}
