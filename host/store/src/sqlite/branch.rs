//! Branches: everything below roots, or below other tasks of a tree, is cancelled together.

use keiko_core::id::{TaskId, TenantId};
use keiko_core::port::StoreError;
use keiko_core::tree::{Branch, Cut};
use sqlx::Row;

use super::end;
use super::error::store_error;
use super::session::Session;
use crate::ending::End;

/// Up to `?4` live tasks below the roots `?1` to `?2`.
pub(crate) const BELOW_ROOTS: &str = "
    SELECT id FROM task INDEXED BY task_root
    WHERE parent IS NOT NULL AND root >= ?1 AND root <= ?2 AND tenant = ?3 LIMIT ?4";

/// Up to `?4` live tasks below those from `?2` to `?5` in the tree of `?1`: each looks up along its parents, of which there
/// are as many as a tree is deep.
pub(crate) const BELOW_TASKS: &str = "
    WITH RECURSIVE climb (id, at) AS (
        SELECT id, parent FROM task INDEXED BY task_root WHERE parent IS NOT NULL AND root = ?1 AND tenant = ?3
        UNION ALL
        SELECT id, coalesce((SELECT parent FROM task AS live WHERE live.id = climb.at),
            (SELECT parent FROM finished WHERE finished.id = climb.at))
        FROM climb WHERE at IS NOT NULL AND at NOT BETWEEN ?2 AND ?5)
    SELECT id FROM climb WHERE at BETWEEN ?2 AND ?5 LIMIT ?4";

/// Cancels up to so many tasks of a branch.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    branch: Branch,
    now_ms: i64,
    count_max: u32,
) -> Result<Cut, StoreError> {
    let ended = live(session, tenant, branch, count_max).await?;
    end::finish(session, &ended, &End::cancelled(tenant), now_ms).await?;
    let left = !ended.is_empty() && !live(session, tenant, branch, 1).await?.is_empty();
    Ok(Cut { ended, left })
}

async fn live(
    session: &mut Session,
    tenant: TenantId,
    branch: Branch,
    count_max: u32,
) -> Result<Vec<TaskId>, StoreError> {
    let query = |text: &'static str, first: TaskId, second: TaskId| {
        sqlx::query(text).bind(first.0).bind(second.0).bind(tenant.0).bind(count_max)
    };
    let query = match branch {
        Branch::Roots(first, last) => query(BELOW_ROOTS, first, last),
        Branch::Under { root, first, last } => query(BELOW_TASKS, root, first).bind(last.0),
    };
    let rows = session.rows(query).await?;
    rows.iter().map(|row| row.try_get(0).map(TaskId)).collect::<Result<_, _>>().map_err(store_error)
}
