//! The life of tasks and batches on one host: lease, attempt, settle, heartbeat, rescue, drain.
//!
//! Data flows one way: [`Handle`] → store → dispatcher → local queue → workers → settler → store → waiters.
//! Everything is reached through the seams of `keiko_core::port`; nothing here names a database or a sandbox.

mod ahead;
mod attempt;
mod batch;
mod branch;
mod bulk;
pub mod cache;
mod canary;
mod catalog;
mod cores;
mod data;
mod direct;
mod dispatcher;
mod expirer;
mod gauge;
mod groups;
mod handle;
mod heart;
mod ids;
mod joins;
mod journal;
mod listener;
mod long;
mod memo;
mod meters;
mod metrics;
mod options;
mod pauses;
mod plugins;
mod point;
mod port;
mod pulse;
mod queue;
mod relay;
mod repeat;
mod request;
mod rescuer;
mod running;
mod runtime;
mod schedules;
mod service;
mod settler;
mod shared;
mod stale;
mod tenure;
mod trees;
mod upkeep;
mod voice;
mod waiters;
mod watch;
mod worker;

pub use batch::{AddedItems, BatchFigures, ProcessorView};
pub use bulk::Bulk;
pub use cores::{CORES_MAX, Cores};
pub use data::NewAgent;
pub use handle::Handle;
pub use metrics::{MetricValue, MetricView, TaskErrors};
pub use options::{Options, Retention};
pub use pauses::{PauseTarget, PauseView, PausedKind};
pub use point::{KillAt, Point};
pub use request::{
    Accepted, AttemptLog, Error, Progress, RunReport, RunRequest, TaskDetail, TaskRequest, TenantOptions,
};
pub use runtime::{DrainReport, Parts, Runtime};
pub use schedules::ScheduleRequest;
pub use shared::Figures;
pub use watch::{GroupWatch, TaskEvent, TaskPlace, TaskWatch};
