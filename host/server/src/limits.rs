//! What may be asked for a task, once: as answers show it, as the command line takes it in flags, and as it sends it.
//!
//! It promises the names of a submit, and leaves out what was not asked for. It checks nothing. Bodies are not read here:
//! what they do not know is refused with its name and its place, which a part that several of them share cannot do.

use keiko_core::limit::MIB;
use keiko_core::policy::BudgetRequest;
use keiko_core::retry::RetryRequest;
use serde::Serialize;

/// All that a submit may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args, Serialize)]
#[group(skip)]
pub(crate) struct Limits {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) task: TaskLimits,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) tree: TreeLimits,
}

/// What is about the task itself: all that a retry by hand changes, and a kind's manifest shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args, Serialize)]
#[group(id = "limits")]
pub(crate) struct TaskLimits {
    /// Fuel for each attempt
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fuel: Option<u64>,
    /// Memory for each attempt, in MiB
    #[arg(long = "memory", value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_mib: Option<u64>,
    /// Time for each attempt, in seconds
    #[arg(long = "timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_s: Option<u64>,
    /// Attempts at most
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<u64>,
    /// Fail when the first attempt has not begun after so many seconds
    #[arg(long = "queued-timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queued_timeout_s: Option<u64>,
    /// Fail when the task has not ended after so many seconds
    #[arg(long = "total-timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_timeout_s: Option<u64>,
    /// End an attempt when nothing moves in one of its host calls for so many seconds
    #[arg(long = "heartbeat-timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heartbeat_timeout_s: Option<u64>,
    /// When to try again: JSON with first_ms, max_ms, factor, jitter_percent and codes, of which any may be left out
    #[arg(long, value_name = "JSON", value_parser = retry_policy)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryRequest>,
}

/// What is about the task and all below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args, Serialize)]
#[group(skip)]
pub(crate) struct TreeLimits {
    /// Fuel for the task and all below it
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_fuel: Option<u64>,
    /// Host calls of the task and all below it
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_host_calls: Option<u64>,
    /// End the task and all below it after so many seconds
    #[arg(long = "tree-timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_timeout_s: Option<u64>,
}

impl Limits {
    /// What a task asked for; `None` when that is nothing. A plugin may ask for its children in bytes and milliseconds, which
    /// are rounded up.
    pub(crate) fn of(budget: &BudgetRequest) -> Option<Limits> {
        if budget.is_empty() {
            return None;
        }
        let seconds = |ms: u64| ms.div_ceil(1_000);
        Some(Limits {
            task: TaskLimits {
                fuel: budget.fuel,
                memory_mib: budget.memory_bytes.map(|bytes| bytes.div_ceil(MIB)),
                timeout_s: budget.wall_ms.map(seconds),
                attempts: budget.attempts,
                queued_timeout_s: budget.queued_ms.map(seconds),
                total_timeout_s: budget.total_ms.map(seconds),
                heartbeat_timeout_s: budget.heartbeat_ms.map(seconds),
                retry: asked(budget.retry),
            },
            tree: TreeLimits {
                tree_fuel: budget.tree_fuel,
                tree_host_calls: budget.tree_host_calls,
                tree_timeout_s: budget.tree_ms.map(seconds),
            },
        })
    }
}

/// The policy, unless it says nothing.
pub(crate) fn asked(retry: RetryRequest) -> Option<RetryRequest> {
    (!retry.is_empty()).then_some(retry)
}

fn retry_policy(text: &str) -> Result<RetryRequest, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
