//! Reads of tasks: always one tenant's.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::group::{Group, Outcome};
use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::port::{Records, StoreError};
use keiko_core::task::{AttemptView, Payload, TaskCounts, TaskFilter, TaskState, TaskSummary, TaskView};

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::{Kept, Row, State};

#[async_trait]
impl Records for MemoryStore {
    async fn task(&self, tenant: TenantId, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        self.call(|state| Ok(state.view(tenant, id))).await
    }

    async fn input(&self, tenant: TenantId, id: TaskId) -> Result<Option<Payload>, StoreError> {
        self.call(|state| {
            let row = state.task_of(tenant, id, Mutation::InputForOthers);
            let has_one = row.filter(|row| {
                row.state != TaskState::Completed || state.breaks(Mutation::InputOfCompletedIsNothing)
            });
            Ok(has_one.map(|row| row.input.clone()))
        })
        .await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError> {
        self.call(|state| Ok(state.list(tenant, filter, limit))).await
    }

    async fn group(&self, tenant: TenantId, id: GroupId) -> Result<Option<Group>, StoreError> {
        self.call(|state| Ok(state.group(tenant, id))).await
    }

    async fn outcomes(
        &self,
        tenant: TenantId,
        tasks: (TaskId, TaskId),
        limit: u32,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.call(|state| Ok(state.outcomes(tenant, tasks, limit))).await
    }

    async fn counts(&self, tenant: TenantId) -> Result<TaskCounts, StoreError> {
        self.call(|state| Ok(state.counts(tenant))).await
    }

    async fn live(&self) -> Result<HashMap<TenantId, u64>, StoreError> {
        self.call(|state| {
            let live = state.tenants.keys().map(|tenant| (*tenant, state.live(*tenant)));
            Ok(live.filter(|(_, live)| *live > 0).collect())
        })
        .await
    }

    async fn logs(&self, tenant: TenantId, id: TaskId) -> Result<Vec<(u32, Bytes)>, StoreError> {
        self.call(|state| {
            let row = state.task_of(tenant, id, Mutation::LogsForOthers);
            let logs = row.into_iter().flat_map(|row| &row.logs);
            Ok(logs.map(|(number, log)| (*number, log.clone())).collect())
        })
        .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.call(|_| Ok(())).await
    }
}

impl State {
    fn view(&self, tenant: TenantId, id: TaskId) -> Option<TaskView> {
        let row = self.task_of(tenant, id, Mutation::ReadForOthers)?;
        let is_told = !self.breaks(Mutation::AskedUntold);
        Some(TaskView {
            summary: self.summary(id, row)?,
            token: row.token,
            result: row.result.clone(),
            failure: row.failure.clone(),
            tree: self.trees.get(&id).map(|row| row.tree),
            group: row.group.filter(|_| is_told),
            slot_key: row.slot_key.clone().filter(|_| is_told),
            budget: if is_told { row.budget } else { Default::default() },
            attempts: row
                .kept
                .iter()
                .chain(&row.last)
                .map(|kept| self.attempt_view(row.tenant, kept))
                .collect(),
        })
    }

    fn attempt_view(&self, tenant: TenantId, kept: &Kept) -> AttemptView {
        let version = kept.record.version.and_then(|id| self.versions.get(&id));
        let lost = self.breaks(Mutation::VersionLost);
        let version = version.filter(|version| version.tenant == tenant && !lost);
        AttemptView {
            record: kept.record.clone(),
            version: version.map(|version| version.name.clone()),
            digest: version.map(|version| version.digest),
            failure: kept.failure.clone(),
        }
    }

    pub(super) fn summary(&self, id: TaskId, row: &Row) -> Option<TaskSummary> {
        let kind = self.kinds.get(&row.kind)?;
        let plugin = self.plugins.get(&kind.plugin)?;
        if plugin.removed && self.breaks(Mutation::RemovedHidesTasks) {
            return None;
        }
        Some(TaskSummary {
            id,
            plugin: plugin.name.clone(),
            kind: kind.name.clone(),
            state: row.state,
            created_ms: row.created_ms,
            run_at_ms: row.run_at_ms,
            finished_ms: row.finished_ms,
            attempts: row.attempts,
            crashes: row.crashes,
            code: row.failure.as_ref().map(|failure| failure.code.as_str().to_owned()),
            lineage: row.lineage,
            agent: row.agent,
            user: row.user,
            priority: row.priority,
        })
    }

    fn list(&self, tenant: TenantId, filter: &TaskFilter, limit: u32) -> Vec<TaskSummary> {
        let before = filter.before.map_or(TaskId(i64::MAX), |before| match self.mutation {
            Some(Mutation::PageRepeatsItsEdge) => TaskId(before.0 + 1),
            Some(Mutation::PageSkipsItsEdge) => TaskId(before.0 - 1),
            _ => before,
        });
        let limit = limit as usize + usize::from(self.breaks(Mutation::PageOneMore));
        let range = match self.mutation {
            Some(Mutation::ListForOthers) => {
                (TenantId(i64::MIN), TaskId(i64::MIN))..(TenantId(i64::MAX), before)
            }
            _ => (tenant, TaskId(i64::MIN))..(tenant, before),
        };
        let found = self.owned.range(range).filter(|(_, id)| *id < before);
        let found = found.filter_map(|(_, id)| self.summary(*id, self.tasks.get(id)?));
        let fits = |task: &TaskSummary| self.fits(filter, task);
        if self.breaks(Mutation::ListOldestFirst) {
            return found.filter(fits).take(limit).collect();
        }
        found.rev().filter(fits).take(limit).collect()
    }

    fn fits(&self, filter: &TaskFilter, task: &TaskSummary) -> bool {
        let any = |mutation| self.breaks(mutation);
        (filter.state.is_none_or(|state| state == task.state) || any(Mutation::ListOfAnyState))
            && (filter.plugin.as_ref().is_none_or(|name| *name == task.plugin)
                || any(Mutation::ListOfAnyPlugin))
            && (filter.kind.as_ref().is_none_or(|name| *name == task.kind) || any(Mutation::ListOfAnyKind))
            && (filter.parent.is_none()
                || filter.parent == task.lineage.parent
                || any(Mutation::ListOfAnyParent))
            && (filter.root.is_none_or(|root| root == task.lineage.root) || any(Mutation::ListOfAnyRoot))
            && (filter.group.is_none()
                || filter.group == self.group_of(task.id)
                || any(Mutation::ListOfAnyGroup))
            && (filter.created.has(task.created_ms)
                && (filter.finished.is_all() || task.finished_ms.is_some_and(|at| filter.finished.has(at)))
                || any(Mutation::ListOfAnyTime))
            && (filter.agent.is_none() || filter.agent == task.agent || any(Mutation::ListOfAnyAgent))
            && (filter.user.is_none() || filter.user == task.user || any(Mutation::ListOfAnyUser))
    }

    fn group_of(&self, id: TaskId) -> Option<GroupId> {
        self.tasks.get(&id)?.group
    }

    fn counts(&self, tenant: TenantId) -> TaskCounts {
        let Some(row) = self.tenants.get(&tenant) else { return TaskCounts::default() };
        let pending = self.owned.range((tenant, TaskId(i64::MIN))..=(tenant, TaskId(i64::MAX)));
        let is_pending = |id: &TaskId| self.tasks.get(id).is_some_and(|row| row.state == TaskState::Pending);
        let pending = pending.filter(|(_, id)| is_pending(id)).count() as u64;
        let number = |number: i64| number.max(0) as u64;
        TaskCounts {
            pending,
            running: number(row.live).saturating_sub(pending),
            completed: number(row.completed),
            failed: number(row.failed),
            cancelled: number(row.cancelled),
        }
    }
}
