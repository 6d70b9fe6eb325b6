//! What settlements that were stored change beside their tasks: counts, usage, and the statuses of agents.

use std::collections::BTreeMap;

use keiko_core::agent::StatusChange;
use keiko_core::id::{AgentId, GroupId, TenantId};
use keiko_core::task::{Settled, Settlement, TaskState, Transition};

use crate::count::{AgentChange, Change, Changes, Spent, Usage};

/// A settlement that was stored.
pub(crate) struct Stored<'a> {
    pub(crate) one: &'a Settlement,
    /// The attempt's number.
    pub(crate) number: u32,
    /// The agent of a task that ended.
    pub(crate) agent: Option<AgentId>,
    /// The group of a task that ended.
    pub(crate) group: Option<GroupId>,
}

/// The state in which an attempt leaves its task, if it ends it.
fn end(one: &Settlement) -> Option<TaskState> {
    match one.transition {
        Transition::Complete(_) => Some(TaskState::Completed),
        Transition::Fail(_) => Some(TaskState::Failed),
        Transition::Retry { .. } | Transition::HandBack => None,
    }
}

/// Adds what was stored to what the children changed; returns the usage.
pub(crate) fn count(stored: &[Stored<'_>], now_ms: i64, changes: &mut Changes) -> Usage {
    let mut usage = Usage::default();
    for Stored { one, agent, group, .. } in stored {
        let (fuel_used, guest_us) = (one.attempt.meter.fuel_used, one.attempt.meter.elapsed_us);
        let mut spent = Spent { attempts: 1, fuel_used, guest_us, ..Spent::default() };
        if let Some(state) = end(one) {
            spent.completed = u64::from(state == TaskState::Completed);
            spent.failed = u64::from(state == TaskState::Failed);
            let (completed, failed) = (spent.completed as i64, spent.failed as i64);
            changes.add(one.tenant, Change { live: -1, completed, failed, cancelled: 0 });
            changes.add_agent(one.tenant, *agent, AgentChange::end(state, Some(stored_number(guest_us)), 1));
            changes.add_group(one.tenant, *group, state, 1, now_ms);
        }
        usage.add(one.tenant, spent);
    }
    usage
}

/// A count as a column holds it: 63 bits, which no meter reaches.
pub(crate) fn stored_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The statuses that the settlements of a call ask for, of those that completed their task: agent, tenant and status.
pub(crate) fn statuses(settlements: &[Settlement], answers: &[Settled]) -> Vec<(i64, i64, i64)> {
    let completed = |(one, answer): &(&Settlement, &Settled)| {
        **answer == Settled::Stored && matches!(one.transition, Transition::Complete(_))
    };
    let stored = settlements.iter().zip(answers).filter(completed);
    last_statuses(stored.flat_map(|(one, _)| one.effects.statuses.iter().map(|change| (one.tenant, *change))))
}

/// Statuses in the order of the agents: agent, tenant and status. Of an agent that is named twice the last counts.
pub(crate) fn last_statuses(
    changes: impl IntoIterator<Item = (TenantId, StatusChange)>,
) -> Vec<(i64, i64, i64)> {
    let pair = |(tenant, change): (TenantId, StatusChange)| ((change.agent, tenant), change.status as i64);
    let last: BTreeMap<(AgentId, TenantId), i64> = changes.into_iter().map(pair).collect();
    last.into_iter().map(|((agent, tenant), status)| (agent.0, tenant.0, status)).collect()
}

/// What one settlement carries, roughly.
pub(crate) fn payload_bytes(settlement: &Settlement) -> usize {
    let result = match &settlement.transition {
        Transition::Complete(result) => result.bytes.len(),
        Transition::Fail(_) | Transition::Retry { .. } | Transition::HandBack => 0,
    };
    let children = settlement.effects.children.iter().map(|child| child.input.bytes.len());
    let items = settlement.effects.items.iter().map(|item| item.payload.bytes.len());
    result + settlement.log.len() + children.chain(items).sum::<usize>()
}
