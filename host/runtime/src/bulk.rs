//! Cancels, retries and drops of every task that a filter names, a page at a time: each task for itself, so that what ends or
//! starts in between is answered as if it had been asked for alone.

use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, RetryAnswer, TaskFilter, TaskState, TaskSummary,
};
use keiko_core::{TaskId, TenantId};

use crate::handle::{Handle, queue_full};
use crate::request::Error;

/// Tasks that are asked for at once: the store puts them into few transactions.
const AT_ONCE: usize = 100;

/// What became of a page of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bulk {
    /// Tasks that the filter named.
    pub matched: u64,
    /// Those of them that were changed; the others had ended or started in between, are to be the only one of a key for
    /// which another one is live, or were to be dropped out of a group that is open.
    pub changed: u64,
    /// Where the next page begins; `None` when this was the last.
    pub next: Option<TaskId>,
}

impl Handle {
    /// Ends up to `limit` live tasks that the filter names, newest first.
    ///
    /// Errors: `invalid_input` when it names tasks that have ended, or all; `storage_*`.
    pub async fn cancel_many(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Bulk, Error> {
        let states = match filter.state {
            None => &[TaskState::Pending, TaskState::Running][..],
            Some(TaskState::Pending) => &[TaskState::Pending],
            Some(TaskState::Running) => &[TaskState::Running],
            Some(_) => return Err(invalid("only pending and running tasks can be cancelled")),
        };
        let (page, next) = self.page(tenant, filter, states, limit).await?;
        let mut changed = 0;
        let now_ms = self.shared.clock.now_ms();
        for part in page.chunks(AT_ONCE) {
            let answers =
                join_all(part.iter().map(|task| self.shared.tasks.cancel(tenant, task.id, now_ms))).await;
            let (mut ended, mut failed) = (Vec::new(), None);
            for (task, answer) in part.iter().zip(answers) {
                match answer {
                    Ok(CancelAnswer::Cancelled) => ended.push(task.id),
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
            }
            changed += ended.len() as u64;
            self.shared.cancelled(tenant, ended);
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(Bulk { matched: page.len() as u64, changed, next })
    }

    /// Makes up to `limit` failed or cancelled tasks that the filter names pending again, newest first, as far as the queue
    /// has room: then `next` is where it had none.
    ///
    /// Errors: `invalid_input` when it names tasks in other states, or in all; `queue_full` when there is no room for the
    /// first; `storage_*`.
    pub async fn retry_many(&self, tenant: TenantId, filter: &TaskFilter, limit: u32) -> Result<Bulk, Error> {
        let states = match filter.state {
            Some(TaskState::Failed) => &[TaskState::Failed],
            Some(TaskState::Cancelled) => &[TaskState::Cancelled],
            _ => return Err(invalid("a retry of many tasks names `state`: failed or cancelled")),
        };
        let (page, next) = self.page(tenant, filter, states, limit).await?;
        let entry = self.entry(tenant)?;
        let queue_max = entry.policy.queue_max.saturating_sub(self.shared.gauge.promised(tenant));
        let mut bulk = Bulk { matched: page.len() as u64, changed: 0, next };
        let (now_ms, mut before) = (self.shared.clock.now_ms(), filter.before);
        for part in page.chunks(AT_ONCE) {
            let retry = |task: &TaskSummary| {
                self.shared.tasks.retry(tenant, task.id, Amendment::default(), queue_max, now_ms)
            };
            let answers = join_all(part.iter().map(retry)).await;
            // All of them were asked for, whatever the first that did not go was answered.
            let (mut changed, mut full, mut failed) = (0, None, None);
            for (task, answer) in part.iter().zip(answers) {
                match answer {
                    Ok(RetryAnswer::Retried) => changed += 1,
                    Ok(RetryAnswer::QueueFull { live }) => full = full.or(Some((before, live))),
                    Ok(RetryAnswer::NotRetryable(_) | RetryAnswer::Taken(_) | RetryAnswer::NotFound) => {}
                    Err(error) => failed = Some(error),
                }
                before = Some(task.id);
            }
            bulk.changed += changed;
            self.retried(tenant, changed);
            if let Some(error) = failed {
                return Err(error.into());
            }
            if let Some((next, live)) = full {
                if bulk.changed == 0 {
                    return Err(queue_full(entry, live + 1));
                }
                bulk.next = next;
                break;
            }
        }
        Ok(bulk)
    }

    /// So many tasks are pending again.
    pub(crate) fn retried(&self, tenant: TenantId, count: u64) {
        if count > 0 {
            self.shared.gauge.change(tenant, count as i64);
            self.shared.time_outs.look();
            self.shared.ready();
        }
    }

    /// Forgets up to `limit` ended tasks that the filter names, newest first, with everything that is kept of them.
    ///
    /// Errors: `invalid_input` when it does not name the state of ended tasks; `storage_*`.
    pub async fn drop_many(&self, tenant: TenantId, filter: &TaskFilter, limit: u32) -> Result<Bulk, Error> {
        let Some(state) = filter.state.filter(|state| state.is_terminal()) else {
            return Err(invalid("a drop of many tasks names `state`: completed, failed or cancelled"));
        };
        let (page, next) = self.page(tenant, filter, &[state], limit).await?;
        let mut bulk = Bulk { matched: page.len() as u64, changed: 0, next };
        for part in page.chunks(AT_ONCE) {
            let drops = part.iter().map(|task| self.shared.tasks.drop_task(tenant, task.id));
            for answer in join_all(drops).await {
                bulk.changed += u64::from(answer? == DropAnswer::Dropped);
            }
        }
        Ok(bulk)
    }

    /// Up to `limit` tasks in these states that the filter names, newest first, and where the next page begins.
    async fn page(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        states: &[TaskState],
        limit: u32,
    ) -> Result<(Vec<TaskSummary>, Option<TaskId>), Error> {
        if filter.is_all() {
            let text = "a filter names something: state, plugin, kind, parent, root, group, agent, user, or when tasks \
                were created or ended";
            return Err(invalid(text));
        }
        filter.check().map_err(invalid)?;
        let mut page = Vec::new();
        for state in states {
            let filter = TaskFilter { state: Some(*state), ..filter.clone() };
            page.extend(self.shared.records.list(tenant, &filter, limit.saturating_add(1)).await?);
        }
        page.sort_unstable_by_key(|task| std::cmp::Reverse(task.id));
        // One that started between the two lists stands in both.
        page.dedup_by_key(|task| task.id);
        let more = page.len() > limit as usize;
        page.truncate(limit as usize);
        let next = page.last().filter(|_| more).map(|last| last.id);
        Ok((page, next))
    }
}

fn invalid(text: &str) -> Error {
    Error::new(Code::InvalidInput, text)
}
