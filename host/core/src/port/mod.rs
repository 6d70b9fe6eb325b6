//! What the crates are to each other. A trait stands here when it has two real implementations, or when it
//! breaks a cycle between layers.

mod agent;
mod batch;
mod cache;
mod canary;
mod catalog;
mod clock;
mod runner;
mod schedule;
mod signal;
mod task;
mod usage;

pub use agent::{Agents, History};
pub use batch::{BatchRecords, BatchStore, DeadChanged, FormRequest, Formed, FoundGroup};
pub use cache::{Backplane, CacheLevel, Change, ChangeKind, Heard, Kept, LevelUsage};
pub use canary::CanaryStore;
pub use catalog::{ArtifactName, CatalogStore, Components, Forgotten};
pub use clock::Clock;
pub use runner::{
    AskError, Attempt, AttemptFacts, BatchOutcome, BatchReport, BatchRun, CacheFill, CacheFilling,
    CacheRefused, Compiled, HostPort, InstallError, ItemsError, Keep, Keeping, ReserveError, Reserved,
    Runner, Stage,
};
pub use schedule::{Created, DueSchedules, Fired, Firing, OccurrenceTask, ScheduleKey, Schedules};
pub use signal::{Said, Saying, Signal, Signals, Watched};
pub use task::{
    Ask, Beat, Dead, Expired, FailedByKind, IdBlock, Lease, LeaseRequest, Pruned, Records, Rescued,
    StoreError, StoreErrorKind, TaskStore, Until,
};
pub use usage::Usage;
