//! The engine with guests as text: limits at their edge and one above, classification, grants, taint, artifacts.
//!
//! One binary, because each one links wasmtime.

#![allow(clippy::unwrap_used, reason = "what cannot go on in a test fails it")]

mod guest;
mod host;
mod worker;

mod artifacts;
mod batches;
mod cache;
mod calls;
mod composed;
mod concurrency;
mod data;
mod ends;
mod install;
mod limits;
mod metrics;
mod mutants;
mod programs;
mod purity;
mod reuse;
mod symbols;
mod time;
