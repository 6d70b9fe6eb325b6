//! Cancels that follow the tree: what is below a task ends with it.

use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::port::{StoreError, StoreErrorKind};
use keiko_core::tree::{Branch, Cut};
use keiko_core::{TaskId, TenantId};
use tokio::time::Instant;

use crate::handle::Handle;
use crate::request::{Error, TaskDetail};
use crate::shared::Shared;

/// Tasks that are cancelled in one transaction.
const CANCEL_COUNT: u32 = 1_000;
/// Time between two looks at tasks that are ending by themselves, and how long that may go on.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(10));

impl Handle {
    /// Ends a task, unless it has ended, and everything below it that has not. Returns the task, and how many there were
    /// below it.
    ///
    /// Errors: `not_found`; `storage_busy` when tasks below it are being ended elsewhere for long; `storage_*`.
    pub async fn cancel_tree(&self, tenant: TenantId, id: TaskId) -> Result<(TaskDetail, u64), Error> {
        let task = match self.cancel(tenant, id).await {
            Err(error) if error.code == Code::Conflict => self.task(tenant, id).await?,
            cancelled => cancelled?,
        };
        let root = task.view.summary.lineage.root;
        let below = cut(&self.shared, tenant, Branch::below(root, id, id)).await?;
        Ok((task, below))
    }
}

/// Ends what is left of a branch, stops what runs of it here, and tells whoever waits; returns how many there were.
pub(crate) async fn cut(shared: &Shared, tenant: TenantId, branch: Branch) -> Result<u64, StoreError> {
    let (began, mut count) = (Instant::now(), 0);
    loop {
        let (ended, left) = cut_some(shared, tenant, branch).await?;
        count += ended;
        if !left {
            return Ok(count);
        }
        if ended == 0 {
            if began.elapsed() > LOOK_AGAIN.1 {
                let message = "tasks of this tree are being ended elsewhere; ask again";
                return Err(StoreError::new(StoreErrorKind::Busy, message));
            }
            tokio::time::sleep(LOOK_AGAIN.0).await;
        }
    }
}

/// The same for as many as one transaction ends; how many those were, and whether some are left.
pub(crate) async fn cut_some(
    shared: &Shared,
    tenant: TenantId,
    branch: Branch,
) -> Result<(u64, bool), StoreError> {
    let now_ms = shared.clock.now_ms();
    let Cut { ended, left } = shared.tasks.cancel_branch(tenant, branch, now_ms, CANCEL_COUNT).await?;
    let count = ended.len() as u64;
    shared.cancelled(tenant, ended);
    Ok((count, left))
}
