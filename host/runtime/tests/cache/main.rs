//! What the cache promises: levels, one computation, stale values, tags, other hosts, and levels that fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod computing;
mod levels;
mod simulation;
mod world;
