//! Where Keiko keeps its tasks, plugins and components. The only crate that names sqlx.
//!
//! [`sqlite`] is the embedded store: files in one folder, one process. [`postgres`] is the store of many hosts,
//! [`memory`] the one of simulations and tests. What is stored as JSON, whatever the engine, has its formats in `format`;
//! how writes become few transactions is in `transaction`. Rules that all stores keep stand here too, without SQL:
//! `admit` (submits), `gather` (batches), `family` (children), `turns` (the order of a lease), `rescue` and `ending` (ends without an
//! attempt), `count` (what is counted). What an operator asks is in [`admin`].

// So that unit tests and the others share what makes databases.
#[cfg(test)]
extern crate self as keiko_store;

pub mod admin;
mod admit;
mod count;
mod ending;
mod entry;
mod family;
mod format;
mod gather;
mod group;
mod lenient;
mod level;
pub mod memory;
mod once;
mod pause;
mod places;
pub mod postgres;
mod prune;
pub mod redis;
mod rescue;
mod schedule;
mod segment;
mod slot;
pub mod sqlite;
mod stored;
mod time_out;
mod transaction;
mod tree;
mod trouble;
mod turns;
#[cfg(test)]
#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
#[path = "../tests/conformance/world.rs"]
mod world;
