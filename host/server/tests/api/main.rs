//! The whole program: HTTP over real connections, and the command line as processes. One binary, because it links
//! wasmtime.

#![allow(missing_docs, reason = "a test binary has no readers of its interface")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agents;
mod auth;
mod batches;
mod bounds;
mod cli;
mod cluster;
mod commands;
mod database;
mod drain;
mod guest;
mod http;
mod inputs;
mod limits;
mod pauses;
mod plugins;
mod problems;
mod runs;
mod schedules;
mod signatures;
mod sources;
mod streams;
mod tasks;
mod watched;
mod world;
