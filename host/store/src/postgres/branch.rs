//! Branches: everything below a root, or below another task of its tree, is cancelled together.

use keiko_core::id::{TaskId, TenantId};
use keiko_core::port::StoreError;
use keiko_core::tree::{Branch, Cut};

use super::end;
use super::row::get;
use super::session::Session;
use crate::ending::End;

macro_rules! below_roots {
    () => {
        "SELECT id FROM task WHERE parent IS NOT NULL AND root >= $1 AND root <= $2 AND tenant = $3 LIMIT $4"
    };
}

macro_rules! below_task {
    () => {
        "WITH RECURSIVE climb (id, at) AS (
            SELECT id, parent FROM task WHERE parent IS NOT NULL AND root = $1 AND tenant = $3
            UNION ALL
            SELECT id, coalesce((SELECT parent FROM task AS live WHERE live.id = climb.at),
                (SELECT parent FROM finished WHERE finished.id = climb.at))
            FROM climb WHERE at IS NOT NULL AND at <> $2)
        SELECT id FROM climb WHERE at = $2 LIMIT $4"
    };
}

/// Of those that are below, the ones that nobody else is ending right now: those end by themselves.
macro_rules! unlocked {
    ($below:expr) => {
        concat!("SELECT id FROM task WHERE id IN (", $below, ") ORDER BY id FOR UPDATE SKIP LOCKED")
    };
}

/// Up to `$4` live tasks below the roots `$1` to `$2`.
pub(crate) const BELOW_ROOTS: &str = below_roots!();
/// Up to `$4` live tasks below `$2` in the tree of `$1`: each looks up along its parents, of which there are as many as a
/// tree is deep.
pub(crate) const BELOW_TASK: &str = below_task!();
const LOCK_BELOW_ROOTS: &str = unlocked!(below_roots!());
const LOCK_BELOW_TASK: &str = unlocked!(below_task!());

/// Cancels up to so many tasks of a branch.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    branch: Branch,
    now_ms: i64,
    count_max: u32,
) -> Result<Cut, StoreError> {
    let (look, lock) = match branch {
        Branch::Roots(..) => (BELOW_ROOTS, LOCK_BELOW_ROOTS),
        Branch::Under { .. } => (BELOW_TASK, LOCK_BELOW_TASK),
    };
    let ended = live(session, tenant, branch, lock, count_max).await?;
    end::finish(session, &ended, &End::cancelled(tenant), now_ms).await?;
    let left = !live(session, tenant, branch, look, 1).await?.is_empty();
    Ok(Cut { ended, left })
}

async fn live(
    session: &mut Session,
    tenant: TenantId,
    branch: Branch,
    text: &'static str,
    count_max: u32,
) -> Result<Vec<TaskId>, StoreError> {
    let (first, second) = match branch {
        Branch::Roots(first, last) => (first, last),
        Branch::Under { root, task } => (root, task),
    };
    let query = sqlx::query(text).bind(first.0).bind(second.0).bind(tenant.0).bind(i64::from(count_max));
    session.rows(query).await?.iter().map(|row| get(row, 0).map(TaskId)).collect()
}
