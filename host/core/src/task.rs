//! A task: what is submitted, what is leased, what is settled, and what a reader sees.

use bytes::Bytes;

use crate::canary::FailedRun;
use crate::effect::Effects;
use crate::group::NewGroup;
use crate::id::{
    AgentId, Digest, GroupId, KindId, TASK_ID_AGE_MS_MAX, TaskId, TenantId, Token, UserId, VersionId,
};
use crate::limit::BULK_TASKS_MAX;
use crate::name::{KindName, PluginName, VersionName};
use crate::once::Once;
use crate::outcome::{Failure, Meter, Taint};
use crate::policy::BudgetRequest;
use crate::priority::Priority;
use crate::time_out::Ends;
use crate::tree::{Charge, Tree};

/// The media type of a payload that names none.
pub const JSON: &str = "application/json";

/// Bytes with the name of their format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Media type; at most [`crate::limit::CONTENT_TYPE_BYTES_MAX`] bytes of printable ASCII.
    pub content_type: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl Payload {
    /// A JSON payload of these bytes, which nobody checks here.
    pub fn json(bytes: impl Into<Bytes>) -> Payload {
        Payload { content_type: JSON.to_owned(), bytes: bytes.into() }
    }
}

/// Where a task stands. The numbers are stored: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// Waits for a lease; a retry waits for its `run_at` too.
    Pending = 0,
    /// Leased to a host.
    Running = 1,
    /// Has its one result.
    Completed = 2,
    /// Has its one error.
    Failed = 3,
    /// Was cancelled before it ended by itself.
    Cancelled = 4,
}

impl TaskState {
    /// Every state.
    pub const ALL: [TaskState; 5] = [
        TaskState::Pending,
        TaskState::Running,
        TaskState::Completed,
        TaskState::Failed,
        TaskState::Cancelled,
    ];

    /// The name that programs match on.
    pub const fn as_str(self) -> &'static str {
        match self {
            TaskState::Pending => "pending",
            TaskState::Running => "running",
            TaskState::Completed => "completed",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }

    /// The state with this name.
    pub fn named(text: &str) -> Option<TaskState> {
        TaskState::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// The state stored under this number.
    pub fn numbered(number: i64) -> Option<TaskState> {
        TaskState::ALL.into_iter().find(|state| *state as i64 == number)
    }

    /// Whether nothing follows this state by itself.
    pub const fn is_terminal(self) -> bool {
        matches!(self, TaskState::Completed | TaskState::Failed | TaskState::Cancelled)
    }
}

/// Where a task stands in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The task that started the tree; the task itself when nothing submitted it.
    pub root: TaskId,
    /// The task that submitted it.
    pub parent: Option<TaskId>,
    /// Levels below the root.
    pub depth: u32,
}

impl Lineage {
    /// A task that nothing submitted.
    pub fn root(id: TaskId) -> Lineage {
        Lineage { root: id, parent: None, depth: 0 }
    }
}

/// A task to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// From the host's reserved ids.
    pub id: TaskId,
    /// Which handler runs it.
    pub kind: KindId,
    /// What it is given.
    pub input: Payload,
    /// When it was submitted, in milliseconds since 1970.
    pub created_ms: i64,
    /// Not before this time.
    pub run_at_ms: i64,
    /// How urgent it is among its tenant's.
    pub priority: Priority,
    /// What it asks of the tenant's policy.
    pub budget: BudgetRequest,
    /// Where it stands in its tree.
    pub lineage: Lineage,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// W3C `traceparent` of the submit.
    pub trace: Option<String>,
    /// The group it belongs to.
    pub group: Option<GroupId>,
    /// Whether it waits until others of its group have ended.
    pub held: bool,
    /// When the time of its tree is over: see [`crate::tree::end_ms`].
    pub tree_end_ms: Option<i64>,
    /// The key of its kind under which few run at once: see [`crate::slot`].
    pub slot_key: Option<String>,
    /// What it asks of others of its kind and a key.
    pub once: Option<Once>,
}

/// An idempotency key with a hash of the body it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// 1 to [`crate::limit::KEY_BYTES_MAX`] bytes.
    pub text: String,
    /// BLAKE3 of everything that must be equal for the same key to mean the same submit.
    pub body: [u8; 32],
}

/// Tasks of one tenant that are accepted together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Whose tasks.
    pub tenant: TenantId,
    /// One or more, with consecutive ids; none asks what the key stands for.
    pub tasks: Vec<NewTask>,
    /// Finds an earlier submit of the same body.
    pub key: Option<Key>,
    /// Refused when the tenant would have more live tasks than this.
    pub queue_max: u64,
    /// The group that the tasks are, of which none asks for anything of others; its number is the first one's.
    pub group: Option<NewGroup>,
}

/// What a submit became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The tasks are stored: their first id and how many there are.
    Accepted {
        /// The first id; the others follow without gaps.
        first: TaskId,
        /// How many tasks.
        count: u32,
        /// Whether an earlier submit with the same key had stored them.
        duplicate: bool,
        /// Whether this host has leased all of them already, by the lease that went with the submit.
        leased: bool,
    },
    /// Of several tasks some were there already, under keys of their kinds; the others are stored.
    Mixed {
        /// The tasks that they are, in the order of the submit.
        ids: Vec<TaskId>,
        /// How many of them were stored now.
        stored: u32,
    },
    /// The key stands for another body.
    Conflict,
    /// A task of the same kind and key is live.
    Taken {
        /// That one.
        task: TaskId,
        /// Which task of the submit it is in the way of, from 0.
        place: u32,
    },
    /// A task would be due so many milliseconds from now, which is later than a task may wait.
    TooLate {
        /// Milliseconds from now.
        ahead_ms: u64,
        /// Which task of the submit, from 0.
        place: u32,
    },
    /// The tenant has no such agent.
    NoAgent(AgentId),
    /// The tenant has no such user.
    NoUser(UserId),
    /// The tenant has this many live tasks and may have no more.
    QueueFull {
        /// Live tasks of the tenant.
        live: u64,
    },
}

/// A task that this host may run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedTask {
    /// The task.
    pub id: TaskId,
    /// Whose.
    pub tenant: TenantId,
    /// Which handler.
    pub kind: KindId,
    /// Proof of the lease.
    pub token: Token,
    /// Attempts it has used up before this one.
    pub attempts: u32,
    /// How many of them ended by their deadline.
    pub deadlines: u32,
    /// Times it ran when its host died.
    pub crashes: u32,
    /// When it was submitted.
    pub created_ms: i64,
    /// Where it stands among its tenant's tasks: see [`crate::priority`].
    pub place_ms: i64,
    /// How urgent it is among them.
    pub priority: Priority,
    /// What it is given.
    pub input: Payload,
    /// What it asks of the policy.
    pub budget: BudgetRequest,
    /// Where it stands in its tree.
    pub lineage: Lineage,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// W3C `traceparent` of the submit.
    pub trace: Option<String>,
    /// Until when it has to start and to end.
    pub ends: Ends,
    /// The group it belongs to.
    pub group: Option<GroupId>,
    /// Its tree, when it is below a root.
    pub tree: Option<Tree>,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<String>,
    /// Whether others may wait for a slot that it has.
    pub has_slot: bool,
    /// The first task of those that it is stored with as one, when the store keeps it so.
    pub segment: Option<TaskId>,
}

/// One run of a task, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// From 1 since the submit or the last retry by hand. Kept attempts and logs are numbered by the store, on from
    /// those before that retry, so that a number names one attempt for ever.
    pub number: u32,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// What it spent.
    pub meter: Meter,
    /// What it asked of the outside.
    pub taint: Taint,
    /// How many effects it asked for.
    pub effects: u32,
    /// The plugin version it ran; `None` when there was none to run.
    pub version: Option<VersionId>,
    /// The task whose kept result it has, when nothing was run.
    pub memoized_from: Option<TaskId>,
    /// The run on a canary that failed before this one, in the same attempt. It counts as none, and nothing else is kept of it.
    pub canary: Option<FailedRun>,
}

/// What a task becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It has its result; its effects are applied.
    Complete(Payload),
    /// It has its error.
    Fail(Failure),
    /// It is tried again at this time; the attempt is kept with its error.
    Retry {
        /// Milliseconds since 1970.
        run_at_ms: i64,
        /// Why this attempt failed.
        failure: Failure,
    },
    /// It goes back to the queue as if it had never been leased.
    HandBack,
}

/// What the store is told about one attempt that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The task.
    pub id: TaskId,
    /// Whose.
    pub tenant: TenantId,
    /// The lease it ran under; a stale one changes nothing.
    pub token: Token,
    /// What it becomes.
    pub transition: Transition,
    /// The attempt; ignored by a hand-back.
    pub attempt: AttemptRecord,
    /// Written if and only if it completes.
    pub effects: Effects,
    /// The attempt's log, encoded by [`crate::log`]; empty when it wrote none.
    pub log: Bytes,
    /// The tree that the attempt is charged to.
    pub charge: Option<Charge>,
    /// The task's group, as its lease said.
    pub group: Option<GroupId>,
    /// What it is stored with, as its lease said.
    pub segment: Option<TaskId>,
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is stored.
    Stored,
    /// The lease was stale: nothing was written.
    Stale,
    /// A child's idempotency key stands for another body: nothing was written, the lease still holds.
    Conflict,
}

/// What a cancel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It is cancelled now; whoever ran it has a stale token.
    Cancelled,
    /// It had ended before, in this state.
    AlreadyTerminal(TaskState),
    /// The tenant has no such task.
    NotFound,
}

/// What a retry by hand changes of a task; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// What it is given from now on.
    pub input: Option<Payload>,
    /// What it asks of the policy, where this names something: see [`BudgetRequest::changed_by`].
    pub budget: BudgetRequest,
}

impl Amendment {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.input.is_none() && self.budget.is_empty()
    }
}

/// What a retry by hand did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAnswer {
    /// It is pending again, with all its attempts.
    Retried,
    /// Only failed and cancelled tasks can be retried; it is in this state.
    NotRetryable(TaskState),
    /// It is to be the only one of its kind and key, for which this live task stands: see [`crate::once`].
    Taken(TaskId),
    /// The tenant has as many live tasks as it may.
    QueueFull {
        /// Live tasks of the tenant.
        live: u64,
    },
    /// The tenant has no such task.
    NotFound,
}

/// What dropping a task did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropAnswer {
    /// It is forgotten, with its attempts and logs.
    Dropped,
    /// Only ended tasks are dropped; it is in this state.
    Live(TaskState),
    /// Tasks of a group are dropped when all of them have ended; it is in this one, which is open.
    OpenGroup(GroupId),
    /// The tenant has no such task.
    NotFound,
}

/// A task as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSummary {
    /// The task.
    pub id: TaskId,
    /// The plugin that handles it.
    pub plugin: PluginName,
    /// Which of its kinds.
    pub kind: KindName,
    /// Where it stands.
    pub state: TaskState,
    /// When it was submitted.
    pub created_ms: i64,
    /// Not before this time; for ended tasks, as it was last.
    pub run_at_ms: i64,
    /// When it ended.
    pub finished_ms: Option<i64>,
    /// Attempts used up so far.
    pub attempts: u32,
    /// Times it ran when its host died.
    pub crashes: u32,
    /// The code it failed with.
    pub code: Option<String>,
    /// Where it stands in its tree.
    pub lineage: Lineage,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// How urgent it is among its tenant's.
    pub priority: Priority,
}

/// A finished attempt, as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptView {
    /// What was kept of it.
    pub record: AttemptRecord,
    /// The version's name.
    pub version: Option<VersionName>,
    /// The component it ran.
    pub digest: Option<Digest>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// A task with everything that is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// What a list shows.
    pub summary: TaskSummary,
    /// Its last token.
    pub token: Token,
    /// Its one result, when it completed.
    pub result: Option<Payload>,
    /// Its one error, when it failed.
    pub failure: Option<Failure>,
    /// Its ended attempts, in order.
    pub attempts: Vec<AttemptView>,
    /// The tree below it, when it is a root whose tree has not been forgotten.
    pub tree: Option<Tree>,
    /// The group it belongs to.
    pub group: Option<GroupId>,
    /// The key of its kind under which few run at once; not kept when it has completed.
    pub slot_key: Option<String>,
    /// What it asks of the policy; not kept when it has completed. Nothing where what is stored cannot be read: that ends the
    /// task, which is still to be seen.
    pub budget: BudgetRequest,
}

/// From a time to another, both included, in milliseconds since 1970; what is `None` has no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// Not before this.
    pub from_ms: Option<i64>,
    /// Not after this.
    pub to_ms: Option<i64>,
}

impl TimeRange {
    /// Whether every time is in it.
    pub fn is_all(&self) -> bool {
        *self == TimeRange::default()
    }

    /// Whether this time is in it.
    pub fn has(&self, at_ms: i64) -> bool {
        self.from_ms.is_none_or(|from| from <= at_ms) && self.to_ms.is_none_or(|to| at_ms <= to)
    }
}

/// Which tasks to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those of this plugin.
    pub plugin: Option<PluginName>,
    /// Only those of this kind.
    pub kind: Option<KindName>,
    /// Only children of this task.
    pub parent: Option<TaskId>,
    /// Only this task, which is a root, and what is below it.
    pub root: Option<TaskId>,
    /// Only those of this group.
    pub group: Option<GroupId>,
    /// Only those of this agent.
    pub agent: Option<AgentId>,
    /// Only those for this user.
    pub user: Option<UserId>,
    /// Only those that were created then.
    pub created: TimeRange,
    /// Only those that ended then.
    pub finished: TimeRange,
    /// Only those older than this one: where the page before ended.
    pub before: Option<TaskId>,
}

impl TaskFilter {
    /// Whether it names nothing but where a page begins.
    pub fn is_all(&self) -> bool {
        *self == TaskFilter { before: self.before, ..TaskFilter::default() }
    }

    /// Whether it contradicts itself: no task that has not ended has an end.
    pub fn fits_nothing(&self) -> bool {
        !self.finished.is_all() && self.state.is_some_and(|state| !state.is_terminal())
    }

    /// Whether it can be answered: not when it contradicts itself, or when the whole history would be walked for it.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.fits_nothing() {
            return Err("`finished_from` and `finished_to` are of tasks that have ended");
        }
        // Few do not complete, and they are found by themselves; of all others the whole history would be looked at.
        let few = matches!(self.state, Some(TaskState::Failed | TaskState::Cancelled));
        if self.finished.from_ms.is_some() && self.created.from_ms.is_none() && !few {
            return Err("`finished_from` goes with `created_from`, or with a `state`: failed or cancelled");
        }
        Ok(())
    }

    /// The ids that such tasks can have: from the first on, and below the second.
    pub fn ids(&self) -> (TaskId, TaskId) {
        let (mut from, mut below) = (TaskId(i64::MIN), self.before.unwrap_or(TaskId(i64::MAX)));
        if let Some(from_ms) = self.created.from_ms {
            from = TaskId::floor(from_ms.saturating_sub(TASK_ID_AGE_MS_MAX));
        }
        for to_ms in [self.created.to_ms, self.finished.to_ms].into_iter().flatten() {
            below = below.min(TaskId::floor(to_ms.saturating_add(TASK_ID_AGE_MS_MAX)));
        }
        if let Some(GroupId(first)) = self.group {
            from = from.max(TaskId(first));
            below = below.min(TaskId(first.saturating_add(BULK_TASKS_MAX as i64)));
        }
        (from, below)
    }
}

/// Tasks of a tenant in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Waiting for a lease.
    pub pending: u64,
    /// Leased.
    pub running: u64,
    /// With a result.
    pub completed: u64,
    /// With an error.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_back_from_name_and_number() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::named(state.as_str()), Some(state));
            assert_eq!(TaskState::numbered(state as i64), Some(state));
        }
        assert_eq!(TaskState::numbered(5), None);
        assert_eq!(TaskState::named("done"), None);
    }

    fn since(from_ms: i64) -> TimeRange {
        TimeRange { from_ms: Some(from_ms), to_ms: None }
    }

    #[test]
    fn a_range_has_both_its_ends() {
        let range = TimeRange { from_ms: Some(5), to_ms: Some(7) };
        assert_eq!([4, 5, 6, 7, 8].map(|at| range.has(at)), [false, true, true, true, false]);
        assert!(!range.is_all() && TimeRange::default().is_all() && TimeRange::default().has(i64::MIN));
        assert!(since(5).has(i64::MAX) && !since(5).has(4));
    }

    #[test]
    fn a_filter_that_would_walk_the_history_is_refused() {
        let until = TimeRange { from_ms: None, to_ms: Some(9) };
        let check = |state, created, finished, fits: bool| {
            let filter = TaskFilter { state, created, finished, ..TaskFilter::default() };
            assert_eq!(filter.check().is_ok(), fits, "{filter:?}");
        };
        let all = TimeRange::default();
        check(None, all, all, true);
        check(Some(TaskState::Pending), since(1), all, true);
        check(Some(TaskState::Running), all, until, false);
        check(None, all, until, true);
        check(None, all, since(1), false);
        check(Some(TaskState::Completed), all, since(1), false);
        check(Some(TaskState::Failed), all, since(1), true);
        check(Some(TaskState::Cancelled), all, since(1), true);
        check(None, since(1), since(1), true);
        check(None, until, since(1), false);
    }

    #[test]
    fn a_filter_says_which_ids_its_tasks_can_have() {
        const AT: i64 = 1_800_000_000_000;
        let check = |filter: TaskFilter, from: TaskId, below: TaskId| {
            assert_eq!(filter.ids(), (from, below), "{filter:?}");
        };
        let (least, most) = (TaskId(i64::MIN), TaskId(i64::MAX));
        check(TaskFilter::default(), least, most);
        check(TaskFilter { before: Some(TaskId(7)), ..TaskFilter::default() }, least, TaskId(7));
        let (early, late) = (TaskId::floor(AT - TASK_ID_AGE_MS_MAX), TaskId::floor(AT + TASK_ID_AGE_MS_MAX));
        check(TaskFilter { created: since(AT), ..TaskFilter::default() }, early, most);
        let until = TimeRange { from_ms: None, to_ms: Some(AT) };
        check(TaskFilter { created: until, ..TaskFilter::default() }, least, late);
        check(TaskFilter { finished: until, ..TaskFilter::default() }, least, late);
        check(TaskFilter { finished: since(AT), ..TaskFilter::default() }, least, most);
        let group = Some(GroupId(late.0));
        let last = TaskId(late.0 + BULK_TASKS_MAX as i64);
        check(TaskFilter { group, created: since(AT), ..TaskFilter::default() }, late, last);
        check(TaskFilter { group, before: Some(TaskId(7)), ..TaskFilter::default() }, late, TaskId(7));
        let never = TimeRange { from_ms: Some(i64::MIN), to_ms: Some(i64::MAX) };
        let last = TaskId::floor(i64::MAX);
        assert!(last.0 > 0 && last > late);
        check(TaskFilter { created: never, ..TaskFilter::default() }, TaskId(0), last);
    }
}
