//! Branches: everything below roots, or below other tasks of a tree, is cancelled together.

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

macro_rules! below_tasks {
    () => {
        "WITH RECURSIVE climb (id, at) AS (
            SELECT id, parent FROM task WHERE parent IS NOT NULL AND root = $1 AND tenant = $3
            UNION ALL
            SELECT id, coalesce((SELECT parent FROM task AS live WHERE live.id = climb.at),
                (SELECT parent FROM finished WHERE finished.id = climb.at))
            FROM climb WHERE at IS NOT NULL AND at NOT BETWEEN $2 AND $5)
        SELECT id FROM climb WHERE at BETWEEN $2 AND $5 LIMIT $4"
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
/// Up to `$4` live tasks below those from `$2` to `$5` in the tree of `$1`: each looks up along its parents, of which there
/// are as many as a tree is deep.
pub(crate) const BELOW_TASKS: &str = below_tasks!();
const LOCK_BELOW_ROOTS: &str = unlocked!(below_roots!());
const LOCK_BELOW_TASKS: &str = unlocked!(below_tasks!());

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
        Branch::Under { .. } => (BELOW_TASKS, LOCK_BELOW_TASKS),
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
    let query = |first: TaskId, second: TaskId| {
        sqlx::query(text).bind(first.0).bind(second.0).bind(tenant.0).bind(i64::from(count_max))
    };
    let query = match branch {
        Branch::Roots(first, last) => query(first, last),
        Branch::Under { root, first, last } => query(root, first).bind(last.0),
    };
    session.rows(query).await?.iter().map(|row| get(row, 0).map(TaskId)).collect()
}
