//! Questions about many tasks at once: a user's tasks with everything around them, and statistics over a date range.

use crate::agent::{Agent, User};
use crate::name::{KindName, PluginName};
use crate::outcome::Failure;
use crate::task::{Payload, TaskState, TaskSummary};

/// What an item counts beside its texts and payloads, where answers are bounded in bytes.
const ITEM_BYTES_BASE: usize = 256;

/// A task of a user, with whom it was for and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserTask {
    /// The task.
    pub summary: TaskSummary,
    /// Whom it was for.
    pub user: User,
    /// Who worked on it.
    pub agent: Option<Agent>,
    /// Its one result, when it completed.
    pub result: Option<Payload>,
    /// Its one error, when it failed.
    pub failure: Option<Failure>,
}

impl UserTask {
    /// About how large it is in an answer.
    pub fn bytes(&self) -> usize {
        let result = self.result.as_ref().map_or(0, |result| result.content_type.len() + result.bytes.len());
        let failure = self.failure.as_ref().map_or(0, |failure| failure.message.len());
        let agent = self.agent.as_ref().map_or(0, |agent| agent.name.len() + agent.kind.as_str().len());
        let names =
            self.summary.plugin.as_str().len() + self.summary.kind.as_str().len() + self.user.name.len();
        ITEM_BYTES_BASE + result + failure + agent + names
    }
}

/// Times of creation, both ends included, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// The first.
    pub from_ms: i64,
    /// The last.
    pub to_ms: i64,
}

/// What is known of the tasks of one kind in one state. Durations are the running times of the attempts that ended
/// them, in microseconds; all 0 when none of them had one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// The plugin.
    pub plugin: PluginName,
    /// Which of its kinds.
    pub kind: KindName,
    /// Where the tasks stand.
    pub state: TaskState,
    /// How many there are.
    pub count: u64,
    /// Their average, rounded down.
    pub average_us: u64,
    /// The shortest.
    pub minimum_us: u64,
    /// The longest.
    pub maximum_us: u64,
    /// The smallest that is not below half of them (nearest rank).
    pub p50_us: u64,
    /// The smallest that is not below 95 in 100 of them (nearest rank).
    pub p95_us: u64,
}

impl Statistics {
    /// About how large it is in an answer.
    pub fn bytes(&self) -> usize {
        ITEM_BYTES_BASE + self.plugin.as_str().len() + self.kind.as_str().len()
    }
}
