//! Groups: what they count, and the tasks that their windows let go.

use keiko_core::group::{Group, HELD_MS, NewGroup, Outcome, release};
use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::task::{Submit, TaskState};

use super::mutation::Mutation;
use super::state::{GroupRow, Row, State};
use crate::count::Changes;
use crate::ending::End;

impl State {
    /// Writes the group of a submit that was accepted.
    pub(super) fn insert_group(&mut self, submit: &Submit, now_ms: i64) {
        if let Some(row) = crate::group::row(submit, now_ms) {
            self.insert_group_row(row);
        }
    }

    /// Writes a group.
    pub(super) fn insert_group_row(&mut self, row: crate::group::Row) {
        let (id, tenant, count, live_max, fail_fast, released, created_ms, joined) = row;
        let group = Group {
            id: GroupId(id),
            count,
            completed: 0,
            failed: 0,
            cancelled: 0,
            asked: NewGroup { live_max, fail_fast },
            created_ms,
            finished_ms: None,
            next: None,
        };
        self.groups.insert(group.id, GroupRow { tenant: TenantId(tenant), group, released, joined });
    }

    /// Writes what became of groups' tasks, and lets held ones go.
    pub(super) fn count_groups(&mut self, changes: &Changes) {
        for (id, tenant, completed, failed, cancelled, now_ms) in changes.group_rows() {
            let retry_uncounted = self.breaks(Mutation::GroupRetryUncounted);
            let Some(row) = self.groups.get_mut(&GroupId(id)).filter(|row| row.tenant.0 == tenant) else {
                continue;
            };
            if retry_uncounted && completed + failed + cancelled < 0 {
                continue;
            }
            let group = &mut row.group;
            group.completed = group.completed.saturating_add_signed(completed);
            group.failed = group.failed.saturating_add_signed(failed);
            group.cancelled = group.cancelled.saturating_add_signed(cancelled);
            let ended = group.completed + group.failed + group.cancelled;
            group.finished_ms = (ended >= group.count).then_some(now_ms);
            let row = *row;
            if row.joined && row.group.finished_ms.is_some() && !self.breaks(Mutation::JoinNeverGoes) {
                self.let_join_go(row.group.task(row.group.count), now_ms);
            }
            let fails = row.group.asked.fail_fast && row.group.failed > 0;
            if row.released < row.group.count && !fails && !self.breaks(Mutation::WindowStands) {
                self.let_go(row, now_ms);
            }
        }
    }

    fn let_join_go(&mut self, join: TaskId, now_ms: i64) {
        let is_held = |row: &Row| row.state == TaskState::Pending && row.place_ms == HELD_MS;
        if self.tasks.get(&join).is_some_and(is_held) {
            self.change(join, |row| row.place_ms = row.priority.place_at_ms(row.run_at_ms, now_ms));
        }
    }

    fn let_go(&mut self, row: GroupRow, now_ms: i64) {
        let Group { id, count, asked, .. } = row.group;
        let Some(live_max) = asked.live_max else { return };
        let (edge, end) = (row.group.task(row.released), row.group.task(count));
        let is_live = |id: &TaskId| self.tasks.get(id).is_some_and(|row| !row.state.is_terminal());
        let live = self.tasks.range(TaskId(id.0)..edge).filter(|(id, _)| is_live(id)).count() as u64;
        let room = release(live_max, live) as usize + usize::from(self.breaks(Mutation::WindowOneMore));
        if room == 0 {
            return;
        }
        let held = self
            .tasks
            .range(edge..end)
            .filter(|(_, row)| row.state == TaskState::Pending && row.place_ms == HELD_MS);
        let held: Vec<TaskId> = held.map(|(id, _)| *id).take(room).collect();
        for id in &held {
            self.change(*id, |row| row.place_ms = row.priority.place_at_ms(row.run_at_ms, now_ms));
        }
        let numbers: Vec<i64> = held.iter().map(|id| id.0).collect();
        let released = crate::group::released(id.0, count, room as i64, &numbers);
        if let Some(row) = self.groups.get_mut(&id) {
            row.released = released;
        }
    }

    /// Groups that have failed fast and go on.
    pub(super) fn failing(&self) -> Vec<(TenantId, GroupId)> {
        let fails = |group: &Group| group.asked.fail_fast && group.failed > 0 && group.finished_ms.is_none();
        let failing = self.groups.iter().filter(|(_, row)| fails(&row.group));
        failing.map(|(id, row)| (row.tenant, *id)).take(crate::group::FAILING_MAX as usize).collect()
    }

    pub(super) fn group(&self, tenant: TenantId, id: GroupId) -> Option<Group> {
        let others = self.breaks(Mutation::GroupForOthers);
        let row = self.groups.get(&id).filter(|row| row.tenant == tenant || others)?;
        let tasks = self.tasks.range(TaskId(id.0)..row.group.task(row.group.count));
        let next = tasks.into_iter().find(|(_, row)| !row.state.is_terminal()).map(|(id, _)| *id);
        Some(Group { next, ..row.group })
    }

    pub(super) fn outcomes(&self, tenant: TenantId, tasks: (TaskId, TaskId), limit: u32) -> Vec<Outcome> {
        let found = self.tasks.range(tasks.0..tasks.1).filter(|(_, row)| row.tenant == tenant);
        let outcome = found.map(|(id, row)| Outcome {
            task: *id,
            state: row.state,
            result: row.result.clone(),
            failure: row.failure.clone(),
        });
        let (mut bytes, unbounded) = (0, self.breaks(Mutation::OutcomesUnbounded));
        let fits = |one: &Outcome| {
            let fits = bytes <= USER_RESULTS_BYTES_MAX || unbounded;
            bytes += one.result.as_ref().map_or(0, |result| result.bytes.len() as u64);
            fits
        };
        let mut outcomes: Vec<Outcome> = outcome.take(limit as usize).take_while(fits).collect();
        if self.breaks(Mutation::OutcomesBackwards) {
            outcomes.reverse();
        }
        outcomes
    }

    pub(super) fn cancel_group(
        &mut self,
        tenant: TenantId,
        id: GroupId,
        only_failed: bool,
        now_ms: i64,
        count_max: u32,
    ) -> Option<Vec<TaskId>> {
        let group = self.group(tenant, id)?;
        let fails = group.asked.fail_fast && group.failed > 0;
        if only_failed && !fails && !self.breaks(Mutation::FailFastOfAnyGroup) {
            return None;
        }
        let tasks = self.tasks.range(TaskId(id.0)..group.task(group.count)).rev();
        let live = tasks.filter(|(_, row)| !row.state.is_terminal()).map(|(id, _)| *id);
        let ids: Vec<TaskId> = live.take(count_max as usize).collect();
        self.finish(&ids, &End::cancelled(tenant), now_ms);
        Some(ids)
    }
}
