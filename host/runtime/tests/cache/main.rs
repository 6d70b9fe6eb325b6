//! What the cache promises: levels, one computation, stale values, tags, other hosts, and levels that fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod computing;
mod levels;
mod plugins;
mod simulation;
#[allow(dead_code, reason = "shared with the tests of tasks, which use more of it")]
#[path = "../support/mod.rs"]
mod support;
mod world;
