//! Submit further tasks from a running one. A run that submits is no longer pure. Capability `tasks`.
//!
//! Submitting is an effect: children appear in the transaction that stores this task's result, exactly once, and
//! never when the attempt does not complete.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Failure, Payload, host};

/// Submit one child; the answer is its task id, final unless its key finds an earlier task.
pub fn submit(child: Child) -> Result<String, Error> {
    if child.options.is_empty() {
        return host::submit(child);
    }
    let ids = host::submit_with(vec![child])?;
    ids.into_iter().next().ok_or(Error::Unavailable)
}

/// Submit up to 1,000 children, all or none; the ids are in the order of the children.
pub fn submit_many(children: Vec<Child>) -> Result<Vec<String>, Error> {
    if children.iter().all(|child| child.options.is_empty()) {
        host::submit_many(children)
    } else {
        host::submit_with(children)
    }
}

/// Submit up to 999 children as a group, and one more that starts when all of them have ended, however they did; all or
/// none. The ids are in the order of the children, that of `then` last.
///
/// None of them has a key that finds other tasks. The input of `then` is JSON and comes back as [`Joined::context`]: a handler of its kind takes a
/// `Joined`.
pub fn submit_joined(children: Vec<Child>, grouping: Grouping, then: Child) -> Result<Vec<String>, Error> {
    if children.iter().chain([&then]).all(|child| child.options.is_empty()) {
        host::submit_joined(children, grouping, then)
    } else {
        host::submit_joined_with(children, grouping, then)
    }
}

/// How children that are joined go on: by default all at once, and to the end whatever becomes of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grouping {
    /// So many of them stand in the queue or run at once, at least 1; `None` is all.
    pub live_max: Option<u32>,
    /// Whether the rest is cancelled as soon as one has failed.
    pub fail_fast: bool,
}

/// What a task is given that joins others.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Joined<C = serde_json::Value> {
    /// What the task that submitted them handed on.
    pub context: C,
    /// What became of them, in the order in which they were submitted.
    pub tasks: Vec<Outcome>,
}

/// What became of one of the tasks that are joined.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Outcome {
    /// Its id.
    pub task: String,
    /// `completed`, `failed`, `cancelled`, or `forgotten` when nothing is kept of it any more.
    pub state: String,
    /// Its result, when that is JSON and fits.
    #[serde(default)]
    pub result: Option<serde_json::Value>,
    /// Its result as base64, when that is not JSON.
    #[serde(default)]
    pub result_base64: Option<String>,
    /// The media type of `result_base64`.
    #[serde(default)]
    pub content_type: Option<String>,
    /// Whether its result was left out, as the input would have been larger than 2 MiB.
    #[serde(default)]
    pub result_omitted: bool,
    /// Why it did not complete.
    #[serde(default)]
    pub error: Option<OutcomeError>,
}

/// Why a task did not complete.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OutcomeError {
    /// The code, such as `trap`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A task to submit: `Child::json(&input)?.kind("resize").delay(Duration::from_secs(60)).priority(3)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The plugin that runs it; `None` means this plugin.
    pub plugin: Option<String>,
    /// One of that plugin's kinds; `None` means its only kind.
    pub kind: Option<String>,
    /// At most 2 MiB.
    pub input: Payload,
    /// Idempotency key, 1 to 255 bytes. While a task with the same key and the same body exists the child is that
    /// task; with another body this attempt fails with `conflict` when it is stored.
    pub key: Option<String>,
    /// Not before this long after the submitting task completes; at most 366 days.
    pub delay: Option<Duration>,
    /// What else it asks for.
    pub options: Options,
}

/// What a child asks for beside its input; nothing by default. A limit that it does not name is the submitting task's; a
/// time-out or a retry is its kind's. What it names must be within the tenant's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// From 0 to 9; `None` is the submitting task's.
    pub priority: Option<u8>,
    /// Not before this time, at most 366 days from now; excludes a delay.
    pub run_at: Option<SystemTime>,
    /// Units of fuel of an attempt.
    pub fuel: Option<u64>,
    /// Bytes of memory of an attempt.
    pub memory_bytes: Option<u64>,
    /// Wall clock of an attempt.
    pub timeout: Option<Duration>,
    /// Attempts in all.
    pub attempts: Option<u32>,
    /// Until its first attempt begins.
    pub queued_timeout: Option<Duration>,
    /// Until it ends.
    pub total_timeout: Option<Duration>,
    /// Without a sign of life from a host call.
    pub heartbeat_timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Option<Retry>,
    /// Of the tasks of its kind that name the same key few run at once; 1 to 255 bytes.
    pub concurrency_key: Option<String>,
    /// What it asks of others of its kind under a key of 1 to 255 bytes.
    pub once: Option<(String, Once)>,
}

impl Options {
    fn is_empty(&self) -> bool {
        *self == Options::default()
    }
}

/// When a child is tried again after a failed attempt; `None` leaves it to its kind, then to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retry {
    /// The wait after the first failed attempt, at most 24 hours.
    pub first: Option<Duration>,
    /// The longest wait, at most 24 hours.
    pub max: Option<Duration>,
    /// By how much the wait grows with every attempt, 1 to 10.
    pub factor: Option<u32>,
    /// How much of a wait is drawn by chance, 0 to 100.
    pub jitter_percent: Option<u32>,
    /// The error codes that are tried again, instead of those whose class says so.
    pub codes: Option<Vec<String>>,
}

/// What a child asks of the other tasks of its kind and a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// While one of them has not ended there is no other: that one is the child.
    Unique,
    /// The same, but this attempt fails with `conflict` when it is stored.
    UniqueOrConflict,
    /// While one of them waits for its first attempt it takes this input, and is the child. Excludes a delay and a time.
    Debounce {
        /// It is due when none has come for so long; at most 366 days.
        wait: Duration,
        /// And no later than so long after the first; `None` is any time.
        max: Option<Duration>,
    },
    /// It is due no sooner than so long after the one before; at most 366 days.
    Throttle(Duration),
}

impl Child {
    /// A task of this plugin's only kind, with any payload.
    pub fn new(input: Payload) -> Self {
        Self { plugin: None, kind: None, input, key: None, delay: None, options: Options::default() }
    }

    /// A task of this plugin's only kind, with JSON.
    pub fn json(input: &impl Serialize) -> Result<Self, Failure> {
        Payload::json(input).map(Self::new)
    }

    /// Let another plugin run it.
    pub fn plugin(mut self, plugin: impl Into<String>) -> Self {
        self.plugin = Some(plugin.into());
        self
    }

    /// Which of the plugin's kinds it is.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Its idempotency key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long it waits after the submitting task completes.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Not before this time.
    pub fn run_at(mut self, time: SystemTime) -> Self {
        self.options.run_at = Some(time);
        self
    }

    /// How urgent it is, from 0 to 9.
    pub fn priority(mut self, level: u8) -> Self {
        self.options.priority = Some(level);
        self
    }

    /// Attempts in all.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.options.attempts = Some(attempts);
        self
    }

    /// Wall clock of an attempt.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.options.timeout = Some(time);
        self
    }

    /// Until it ends, however often it is tried.
    pub fn total_timeout(mut self, time: Duration) -> Self {
        self.options.total_timeout = Some(time);
        self
    }

    /// When it is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.options.retry = Some(retry);
        self
    }

    /// The key of its kind under which few run at once.
    pub fn concurrency_key(mut self, key: impl Into<String>) -> Self {
        self.options.concurrency_key = Some(key.into());
        self
    }

    /// What it asks of others of its kind and a key.
    pub fn once(mut self, key: impl Into<String>, rule: Once) -> Self {
        self.options.once = Some((key.into(), rule));
        self
    }
}

/// Why children were not taken. Nothing was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The tenant has no such plugin or kind; the text names what was looked for.
    NotFound(String),
    /// The child is malformed; the text says how.
    InvalidInput(String),
    /// The child's input is larger than this many bytes.
    InputTooLarge(u64),
    /// This task has submitted as many children as it may: this many.
    FanOutExceeded(u64),
    /// A child would be deeper below its root than this.
    DepthExceeded(u32),
    /// This attempt has asked for as many effects as it may: this many.
    EffectsExceeded(u64),
    /// This attempt's effects together would be larger than this many bytes.
    EffectBytesExceeded(u64),
    /// The tenant's queue holds as many tasks as it may: this many.
    QueueFull(u64),
    /// The tenant's policy does not grant `tasks`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(what) => write!(f, "child not taken: no {what}"),
            Self::InvalidInput(how) => write!(f, "child not taken: {how}"),
            Self::InputTooLarge(limit) => write!(f, "the child's input exceeds the limit of {limit} bytes"),
            Self::FanOutExceeded(limit) => write!(f, "the task exceeds the limit of {limit} children"),
            Self::DepthExceeded(limit) => write!(f, "the child exceeds the depth of {limit} below its root"),
            Self::EffectsExceeded(limit) => write!(f, "the attempt exceeds the limit of {limit} effects"),
            Self::EffectBytesExceeded(limit) => {
                write!(f, "the attempt's effects exceed the limit of {limit} bytes")
            }
            Self::QueueFull(limit) => write!(f, "the queue is at its limit of {limit} tasks"),
            Self::Denied => f.write_str("the policy does not grant `tasks`"),
            Self::Unavailable => f.write_str("submitting is unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

/// What another attempt may not meet is retryable: a full queue, a host that cannot answer. The rest is permanent.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::QueueFull(_) | Error::Unavailable | Error::Other(_) => {
                Self::retryable(error.to_string(), None)
            }
            _ => Self::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let retried = [Error::QueueFull(100_000), Error::Unavailable, Error::Other("odd".into())];
        for error in retried {
            assert!(matches!(error.clone().into(), Failure::Retryable { .. }), "{error}");
        }
        for error in [Error::Denied, Error::NotFound("plugin x".into()), Error::FanOutExceeded(1_000)] {
            assert!(matches!(error.clone().into(), Failure::Permanent(_)), "{error}");
        }
    }

    #[test]
    fn a_limit_carries_its_number() {
        assert_eq!(
            Error::InputTooLarge(2_097_152).to_string(),
            "the child's input exceeds the limit of 2097152 bytes"
        );
    }
}
