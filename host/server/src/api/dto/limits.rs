//! What a task asked for, in the words of a submit.

use keiko_core::limit::MIB;
use keiko_core::policy::BudgetRequest;
use keiko_core::retry::RetryRequest;
use serde::Serialize;

/// What stands there was asked for. A plugin may ask for its children in bytes and milliseconds, which are rounded up.
#[derive(Serialize)]
pub(super) struct LimitsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queued_timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_host_calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree_timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "RetryRequest::is_empty")]
    retry: RetryRequest,
}

impl LimitsJson {
    /// `None` when nothing was asked for.
    pub(super) fn of(budget: &BudgetRequest) -> Option<LimitsJson> {
        if budget.is_empty() {
            return None;
        }
        let seconds = |ms: u64| ms.div_ceil(1_000);
        Some(LimitsJson {
            fuel: budget.fuel,
            memory_mib: budget.memory_bytes.map(|bytes| bytes.div_ceil(MIB)),
            timeout_s: budget.wall_ms.map(seconds),
            attempts: budget.attempts,
            queued_timeout_s: budget.queued_ms.map(seconds),
            total_timeout_s: budget.total_ms.map(seconds),
            heartbeat_timeout_s: budget.heartbeat_ms.map(seconds),
            tree_fuel: budget.tree_fuel,
            tree_host_calls: budget.tree_host_calls,
            tree_timeout_s: budget.tree_ms.map(seconds),
            retry: budget.retry,
        })
    }
}
