//! What is counted: a tenant's tasks by state and its usage by day, and what became of an agent's tasks. Added up here
//! for a call, and written by each store in the transaction that changes it, so that the counts equal a recount at every
//! commit.

use std::collections::BTreeMap;

use keiko_core::id::{AgentId, GroupId, TenantId};
use keiko_core::task::TaskState;
pub(crate) use keiko_core::usage::Spent;

use crate::stored::stored_number;

/// How a tenant's numbers change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub(crate) live: i64,
    pub(crate) completed: i64,
    pub(crate) failed: i64,
    pub(crate) cancelled: i64,
}

/// How an agent's numbers change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AgentChange {
    pub(crate) total: i64,
    pub(crate) completed: i64,
    pub(crate) failed: i64,
    pub(crate) cancelled: i64,
    /// 1 when an attempt ended the task, which ran for `elapsed_us`.
    pub(crate) timed: i64,
    pub(crate) elapsed_us: i64,
}

impl AgentChange {
    /// A new task.
    pub(crate) const NEW: AgentChange =
        AgentChange { total: 1, completed: 0, failed: 0, cancelled: 0, timed: 0, elapsed_us: 0 };

    /// A task that ends, `by` 1, or whose end is taken back, `by` -1. `elapsed_us` is that of the attempt that ended it.
    pub(crate) fn end(state: TaskState, elapsed_us: Option<i64>, by: i64) -> AgentChange {
        let one = |of: TaskState| if state == of { by } else { 0 };
        AgentChange {
            total: 0,
            completed: one(TaskState::Completed),
            failed: one(TaskState::Failed),
            cancelled: one(TaskState::Cancelled),
            timed: elapsed_us.map_or(0, |_| by),
            elapsed_us: elapsed_us.unwrap_or_default().saturating_mul(by),
        }
    }
}

/// How a group's numbers change.
#[derive(Clone, Copy, Debug, Default)]
struct GroupChange {
    completed: i32,
    failed: i32,
    cancelled: i32,
    /// When that was.
    at_ms: i64,
}

/// Changes of one call, by tenant, by agent, and by group.
#[derive(Default)]
pub(crate) struct Changes {
    tenants: BTreeMap<i64, Change>,
    agents: BTreeMap<(i64, i64), AgentChange>,
    groups: BTreeMap<(i64, i64), GroupChange>,
}

impl Changes {
    /// Adds what changes for the agent that a task names, if it names one.
    pub(crate) fn add_agent(&mut self, tenant: TenantId, agent: Option<AgentId>, change: AgentChange) {
        let Some(agent) = agent else { return };
        let sum = self.agents.entry((agent.0, tenant.0)).or_default();
        sum.total += change.total;
        sum.completed += change.completed;
        sum.failed += change.failed;
        sum.cancelled += change.cancelled;
        sum.timed += change.timed;
        sum.elapsed_us = sum.elapsed_us.saturating_add(change.elapsed_us);
    }

    /// Agent, tenant, total, completed, failed, cancelled, timed, microseconds; in the order of the agents.
    #[allow(clippy::type_complexity, reason = "a row of a table")]
    pub(crate) fn agent_rows(&self) -> Vec<(i64, i64, i64, i64, i64, i64, i64, i64)> {
        let row = |(&(agent, tenant), change): (&(i64, i64), &AgentChange)| {
            let AgentChange { total, completed, failed, cancelled, timed, elapsed_us } = *change;
            (agent, tenant, total, completed, failed, cancelled, timed, elapsed_us)
        };
        self.agents.iter().map(row).collect()
    }

    /// Adds the end of a task, `by` 1, or that it was taken back, `by` -1, for the task's group, if it is in one.
    pub(crate) fn add_group(
        &mut self,
        tenant: TenantId,
        group: Option<GroupId>,
        state: TaskState,
        by: i32,
        now_ms: i64,
    ) {
        let Some(group) = group else { return };
        let sum = self.groups.entry((group.0, tenant.0)).or_default();
        sum.at_ms = now_ms;
        match state {
            TaskState::Completed => sum.completed += by,
            TaskState::Failed => sum.failed += by,
            TaskState::Cancelled => sum.cancelled += by,
            TaskState::Pending | TaskState::Running => {}
        }
    }

    /// Group, tenant, completed, failed, cancelled, time; in the order of the groups.
    pub(crate) fn group_rows(&self) -> Vec<(i64, i64, i32, i32, i32, i64)> {
        let row = |(&(group, tenant), change): (&(i64, i64), &GroupChange)| {
            let GroupChange { completed, failed, cancelled, at_ms } = *change;
            (group, tenant, completed, failed, cancelled, at_ms)
        };
        self.groups.iter().map(row).collect()
    }

    pub(crate) fn add(&mut self, tenant: TenantId, change: Change) {
        let sum = self.tenants.entry(tenant.0).or_default();
        sum.live += change.live;
        sum.completed += change.completed;
        sum.failed += change.failed;
        sum.cancelled += change.cancelled;
    }

    /// Whether no tenant's numbers change; an agent's change only with its tenant's.
    pub(crate) fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// Tenant, live, completed, failed, cancelled; in the order of the tenants.
    pub(crate) fn rows(&self) -> Vec<(i64, i64, i64, i64, i64)> {
        let row = |(tenant, change): (&i64, &Change)| {
            (*tenant, change.live, change.completed, change.failed, change.cancelled)
        };
        self.tenants.iter().map(row).collect()
    }
}

/// What the tenants of one call spent.
#[derive(Default)]
pub(crate) struct Usage(BTreeMap<i64, Spent>);

impl Usage {
    /// The sums of these.
    pub(crate) fn of(spent: impl IntoIterator<Item = (TenantId, Spent)>) -> Usage {
        let mut sums = Usage::default();
        spent.into_iter().for_each(|(tenant, spent)| sums.add(tenant, spent));
        sums
    }

    /// By tenant, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TenantId, Spent)> + '_ {
        self.0.iter().map(|(&tenant, &spent)| (TenantId(tenant), spent))
    }

    pub(crate) fn add(&mut self, tenant: TenantId, spent: Spent) {
        self.0.entry(tenant.0).or_default().add(spent);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tenant, attempts, completed, failed, fuel, microseconds; in the order of the tenants.
    pub(crate) fn rows(&self) -> Vec<(i64, i64, i64, i64, i64, i64)> {
        let row = |(tenant, spent): (&i64, &Spent)| {
            let [attempts, completed, failed, fuel_used, guest_us] =
                [spent.attempts, spent.completed, spent.failed, spent.fuel_used, spent.guest_us]
                    .map(stored_number);
            (*tenant, attempts, completed, failed, fuel_used, guest_us)
        };
        self.0.iter().map(row).collect()
    }
}
