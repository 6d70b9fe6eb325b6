//! Calls into a guest, and the one place that says how they ended.

pub(crate) mod batch;
mod classify;
pub(crate) mod command;
pub(crate) mod task;

pub(crate) use classify::{Ended, Ending, outcome, trace, trial_failure};
