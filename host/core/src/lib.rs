//! The words, rules and seams of Keiko.
//!
//! Everything here is data and functions from data to data, with the time passed in; the traits in [`port`]
//! are what the other crates are to each other. Nothing here does I/O, spawns, or reads a clock.

pub mod address;
pub mod admission;
pub mod agent;
pub mod batch;
pub mod cache;
pub mod canary;
pub mod catalog;
pub mod code;
pub mod compile;
pub mod crash;
pub mod effect;
pub mod group;
pub mod history;
pub mod id;
pub mod join;
pub mod limit;
pub mod log;
pub mod manifest;
pub mod memo;
pub mod metric;
pub mod name;
pub mod once;
pub mod outcome;
pub mod output;
pub mod page;
pub mod pause;
pub mod policy;
pub mod port;
pub mod priority;
pub mod profile;
pub mod retention;
pub mod retry;
pub mod schedule;
pub mod share;
pub mod slot;
pub mod stop;
pub mod task;
pub mod time_out;
pub mod tree;
pub mod usage;

pub use code::Code;
pub use id::{
    AgentId, BatchId, Digest, GroupId, Holder, ItemId, KindId, PluginId, ProcessorId, TaskId, TenantId,
    Token, UserId, VersionId,
};
pub use name::{KindName, PluginName, ProcessorName, ScheduleName, TenantName, VersionName};
