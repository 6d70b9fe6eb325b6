//! Watching a task or a group: what changes of it, as soon as this host knows.
//!
//! Nothing of it is stored: a watch that begins tells how things stand, and one that goes on behind what it was told before
//! tells what is different now. What happens in between and is over again may stay untold. Progress is told by the host
//! that runs the task.

use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_core::group::{Group, GroupState};
use keiko_core::task::TaskState;
use keiko_core::{GroupId, TaskId, TenantId, Token};
use tokio::time::{Instant, sleep};

use crate::handle::Handle;
use crate::request::{Error, Progress, TaskDetail};

/// Between two looks at what a running attempt says of itself.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What changed of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// How it stands; nothing follows when it has ended.
    State(Box<TaskDetail>),
    /// What its attempt says of itself.
    Progress(Progress),
}

/// A task that is watched; dropping it ends the watch.
pub struct TaskWatch {
    handle: Handle,
    tenant: TenantId,
    id: TaskId,
    /// How the task stood when that was last told.
    told: Option<(Token, TaskState)>,
    progress: Option<Progress>,
}

impl TaskWatch {
    /// What changes next; `None` when nothing does any more, or the host stops. Safe to drop while it waits.
    ///
    /// Errors: `not_found`, `storage_*`.
    pub async fn next(&mut self) -> Result<Option<TaskEvent>, Error> {
        let shared = &self.handle.shared;
        loop {
            let waiter = shared.waiters.wait(self.id);
            let mut changed = std::pin::pin!(waiter.changed());
            let detail = self.handle.task(self.tenant, self.id).await?;
            let stands = (detail.view.token, detail.view.summary.state);
            if self.told != Some(stands) {
                self.told = Some(stands);
                self.progress = detail.progress.clone();
                return Ok(Some(TaskEvent::State(Box::new(detail))));
            }
            if stands.1.is_terminal() || !shared.accepting.load(Ordering::Acquire) {
                return Ok(None);
            }
            let until = Instant::now() + shared.options.look_again;
            while Instant::now() < until {
                let progress = shared.running.progress(self.id);
                if progress.is_some() && progress != self.progress {
                    self.progress = progress.clone();
                    return Ok(progress.map(TaskEvent::Progress));
                }
                let left = until.saturating_duration_since(Instant::now());
                tokio::select! {
                    () = &mut changed => break,
                    () = sleep(left.min(PROGRESS_EVERY)) => {}
                }
            }
        }
    }
}

/// A group that is watched; dropping it ends the watch.
pub struct GroupWatch {
    handle: Handle,
    tenant: TenantId,
    id: GroupId,
    /// The tasks that had ended when that was last told: completed, failed and cancelled ones.
    told: Option<[u32; 3]>,
}

impl GroupWatch {
    /// How the group stands as soon as more of its tasks have ended; `None` when all have and that was told, or the host
    /// stops. Safe to drop while it waits.
    ///
    /// Errors: `not_found`, `storage_*`.
    pub async fn next(&mut self) -> Result<Option<Group>, Error> {
        let shared = &self.handle.shared;
        loop {
            let group = self.handle.group(self.tenant, self.id).await?;
            let stands = [group.completed, group.failed, group.cancelled];
            if self.told != Some(stands) {
                self.told = Some(stands);
                return Ok(Some(group));
            }
            if group.state() != GroupState::Open || !shared.accepting.load(Ordering::Acquire) {
                return Ok(None);
            }
            let next = group.next.unwrap_or(TaskId(group.id.0));
            let waiter = shared.waiters.wait(next);
            // What happened before it waits is found by the look after.
            let _ = tokio::time::timeout(shared.options.look_again, waiter.changed()).await;
        }
    }
}

impl Handle {
    /// Watches a task; `told` is how it stood when that was last told, of which nothing is told again.
    pub fn watch(&self, tenant: TenantId, id: TaskId, told: Option<(Token, TaskState)>) -> TaskWatch {
        TaskWatch { handle: self.clone(), tenant, id, told, progress: None }
    }

    /// Watches a group; `told` are the completed, failed and cancelled tasks that were told.
    pub fn watch_group(&self, tenant: TenantId, id: GroupId, told: Option<[u32; 3]>) -> GroupWatch {
        GroupWatch { handle: self.clone(), tenant, id, told }
    }
}
