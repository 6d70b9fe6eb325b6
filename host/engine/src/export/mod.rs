//! Calls into a guest, and the one place that says how they ended.

mod classify;
pub(crate) mod command;
mod task;

pub(crate) use classify::{Ending, outcome, trace, trial_failure};
pub(crate) use task::{Returned, run, typecheck};
