//! What the outside asks of a running host, and what it answers.

use std::collections::BTreeMap;

use keiko_core::batch::Wish;
use keiko_core::code::{Code, RetryClass};
use keiko_core::limit::LimitFact;
use keiko_core::log::Kept;
use keiko_core::name::{PluginName, ProcessorName, TenantName, VersionName};
use keiko_core::once::Once;
use keiko_core::outcome::{AttemptReport, Failure};
use keiko_core::policy::{BudgetRequest, TenantPolicy};
use keiko_core::port::{InstallError, Stage, StoreError};
use keiko_core::priority::Priority;
use keiko_core::task::{Payload, TaskView};
use keiko_core::{AgentId, Digest, TaskId, UserId};

/// A tenant as the configuration declares it.
#[derive(Clone, Debug)]
pub struct TenantOptions {
    /// Its name.
    pub name: TenantName,
    /// What it may do.
    pub policy: TenantPolicy,
    /// Settings granted to its plugins, by plugin.
    pub settings: BTreeMap<PluginName, BTreeMap<String, String>>,
    /// Processors that the host works itself: it keeps their items as rows.
    pub processors: BTreeMap<ProcessorName, Wish>,
}

/// A task as a client asks for it.
#[derive(Clone, Debug)]
pub struct TaskRequest {
    /// The plugin; `None` finds the one plugin that has the kind.
    pub plugin: Option<String>,
    /// The kind; `None` is the plugin's only one.
    pub kind: Option<String>,
    /// What it is given.
    pub input: Payload,
    /// What it asks of the policy.
    pub budget: BudgetRequest,
    /// Not before this many milliseconds from now.
    pub delay_ms: u64,
    /// Not before this time, in milliseconds since 1970; excludes a delay.
    pub run_at_ms: Option<i64>,
    /// How urgent it is among its tenant's.
    pub priority: Priority,
    /// What it asks of others of its kind and a key.
    pub once: Option<Once>,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<String>,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// W3C `traceparent`.
    pub trace: Option<String>,
}

/// A run as a client asks for it: no task, answered when it ends.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The plugin; `None` finds the one plugin that has the kind.
    pub plugin: Option<String>,
    /// The kind; `None` is the plugin's only one.
    pub kind: Option<String>,
    /// What it is given.
    pub input: Payload,
    /// What it asks of the policy.
    pub budget: BudgetRequest,
    /// W3C `traceparent`.
    pub trace: Option<String>,
}

/// What became of a run.
#[derive(Debug)]
pub struct RunReport {
    /// How it ended and what it spent.
    pub report: AttemptReport,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// The plugin version that ran; `None` when none could.
    pub version: Option<(VersionName, Digest)>,
}

/// Stored tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The first id.
    pub first: TaskId,
    /// How many tasks.
    pub count: u32,
    /// Whether there were all of them already.
    pub duplicate: bool,
    /// All ids, when some of the tasks were there already and these do not follow each other.
    pub(crate) mixed: Option<Vec<TaskId>>,
}

impl Accepted {
    /// The ids in the order of the request.
    pub fn ids(&self) -> std::vec::IntoIter<TaskId> {
        match &self.mixed {
            Some(ids) => ids.clone().into_iter(),
            None => (self.first.0..self.first.0 + i64::from(self.count))
                .map(TaskId)
                .collect::<Vec<_>>()
                .into_iter(),
        }
    }
}

/// How far a running task says it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// From 0 to 1.
    pub fraction: f64,
    /// In the plugin's words.
    pub message: String,
}

/// A task, and its progress while it runs on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskDetail {
    /// What is stored.
    pub view: TaskView,
    /// What it last reported.
    pub progress: Option<Progress>,
}

/// The log of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptLog {
    /// From 1.
    pub attempt: u32,
    /// Its lines.
    pub kept: Kept,
}

/// The host could not do what it was asked; one shape for every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub code: Code,
    /// For the client.
    pub message: String,
    /// The limit that was met, if one was.
    pub limit: Option<LimitFact>,
    /// Ids of many that the tenant does not have.
    pub unknown: Vec<String>,
    /// Trying again may help after this many seconds.
    pub retry_after_s: Option<u64>,
    /// Where an upload was refused.
    pub stage: Option<Stage>,
}

impl Error {
    /// An error with nothing but its code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        let may_help = code.retry_class() != RetryClass::Permanent;
        let retry_after_s = (may_help && matches!(code.http_status(), 429 | 503)).then_some(1);
        Error { code, message: message.into(), limit: None, unknown: Vec::new(), retry_after_s, stage: None }
    }

    /// A limit was met.
    pub fn at_limit(code: Code, fact: LimitFact) -> Error {
        let mut error = Error::new(code, fact.to_string());
        error.limit = Some(fact);
        error
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        tracing::warn!(error = %error, error_kind = ?error.kind(), "the store failed a request");
        // What is inside a database error is for the log, not for a client.
        Error::new(error.code(), error.code().meaning().trim())
    }
}

impl From<InstallError> for Error {
    fn from(error: InstallError) -> Error {
        Error { limit: error.limit, stage: error.stage, ..Error::new(error.code, error.message) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error { limit: failure.limit, ..Error::new(failure.code, failure.message) }
    }
}
