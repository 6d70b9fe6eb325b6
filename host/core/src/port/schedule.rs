//! Where schedules are kept.

use async_trait::async_trait;

use super::StoreError;
use crate::code::Code;
use crate::id::TenantId;
use crate::name::ScheduleName;
use crate::schedule::Schedule;
use crate::task::{Submit, Submitted};

/// What became of a new schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is stored.
    Stored,
    /// The tenant has one of this name.
    Taken,
    /// The tenant has so many already, and may have no more.
    Full {
        /// Schedules of the tenant.
        count: u64,
    },
}

/// A schedule by its tenant and by what is stored as its name, which this release may not take for one.
pub type ScheduleKey = (TenantId, String);

/// Schedules that are to occur now.
#[derive(Debug, Default)]
pub struct DueSchedules {
    /// Those that were to occur first.
    pub schedules: Vec<Schedule>,
    /// Those among them that cannot be read, as what a newer release stored, and why.
    pub unreadable: Vec<(ScheduleKey, StoreError)>,
    /// Now, on the clock that all hosts compare with.
    pub now_ms: i64,
    /// When the first of the others occurs, on that clock.
    pub next_ms: Option<i64>,
}

/// A task to be submitted, or the code and the text that say why there is none.
pub type OccurrenceTask = Result<Submit, (Code, String)>;

/// What is done with a schedule that has come due.
#[derive(Clone, Debug)]
pub struct Firing {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub name: ScheduleName,
    /// When it was to occur; if that has changed, nothing is done.
    pub due_ms: i64,
    /// When it occurs next.
    pub next_ms: Option<i64>,
    /// The occurrence that counts, and its task, or why there is none; `None` when it was missed.
    pub occurrence: Option<(i64, OccurrenceTask)>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fired {
    /// It was somebody else's, or is not due any more.
    NotDue,
    /// It is written, without a task.
    Noted,
    /// It is written, and its task was submitted.
    Submitted(Submitted),
}

/// Schedules, and the tasks of their occurrences.
#[async_trait]
pub trait Schedules: Send + Sync + 'static {
    /// Stores a schedule of a tenant that may have `count_max`.
    async fn create(&self, schedule: Schedule, count_max: u64) -> Result<Created, StoreError>;

    /// Up to `limit` schedules of a tenant behind a name, by their names.
    async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<&ScheduleName>,
        limit: u32,
    ) -> Result<Vec<Schedule>, StoreError>;

    /// A schedule.
    async fn schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<Option<Schedule>, StoreError>;

    /// Pauses a schedule since then, or lets it occur again, next at `next_ms`; whether it was not so before. `None` when
    /// the tenant has none of this name.
    async fn pause_schedule(
        &self,
        tenant: TenantId,
        name: &ScheduleName,
        paused_ms: Option<i64>,
        next_ms: Option<i64>,
    ) -> Result<Option<bool>, StoreError>;

    /// Forgets a schedule; whether there was one. Its tasks stay.
    async fn remove_schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<bool, StoreError>;

    /// Up to `limit` schedules that are to occur, of every tenant, but for those that are `passed` over.
    async fn due_schedules(
        &self,
        now_ms: i64,
        passed: &[ScheduleKey],
        limit: u32,
    ) -> Result<DueSchedules, StoreError>;

    /// Writes an occurrence and submits its task in one transaction: once, whoever else does the same.
    async fn fire(&self, firing: Firing, now_ms: i64) -> Result<Fired, StoreError>;
}
