//! Forgetting ended tasks.

use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::port::{Pruned, StoreError};
use keiko_core::retention::KeptFrom;
use keiko_core::task::{DropAnswer, TaskState};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::store_error;
use super::session::{Session, json};
use crate::format::Undecodable;
use crate::prune::{Ended, answer, changes, doomed, end_of_walk};
use crate::trouble::undecodable;

/// The oldest ended tasks of a tenant behind one, below another; without an end where their group is open.
pub(crate) const WALK: &str = "SELECT id, state,
        iif((SELECT g.finished_ms IS NULL FROM task_group AS g WHERE g.id = finished.task_group), NULL, finished_ms)
    FROM finished INDEXED BY finished_tenant WHERE tenant = ?1 AND id > ?2 AND id < ?3 ORDER BY id LIMIT ?4";

/// The group of an ended task, if it is open.
const OPEN_GROUP: &str = "SELECT g.id FROM finished AS f CROSS JOIN task_group AS g ON g.id = f.task_group
    WHERE f.id = ?1 AND f.tenant = ?2 AND g.finished_ms IS NULL";

/// A group is forgotten with its first task, a tree with its root.
const FORGET: &str = "DELETE FROM attempt WHERE task IN (SELECT value FROM json_each(?1));
    DELETE FROM attempt_log WHERE task IN (SELECT value FROM json_each(?1));
    DELETE FROM task_input WHERE task IN (SELECT value FROM json_each(?1));
    DELETE FROM task_group WHERE id IN (SELECT value FROM json_each(?1)) AND tenant = ?2 AND finished_ms IS NOT NULL;
    DELETE FROM tree WHERE root IN (SELECT value FROM json_each(?1)) AND tenant = ?2;
    DELETE FROM finished WHERE id IN (SELECT value FROM json_each(?1)) AND tenant = ?2";

/// Walks up to so many ended tasks and forgets those that are not kept.
pub(crate) async fn finished(
    session: &mut Session,
    tenant: TenantId,
    kept: &KeptFrom,
    after: Option<TaskId>,
    count_max: u32,
) -> Result<Pruned, StoreError> {
    let Some(end) = end_of_walk(kept) else { return Ok(Pruned::default()) };
    let query = sqlx::query(WALK).bind(tenant.0).bind(after.map_or(i64::MIN, |id| id.0)).bind(end.0);
    let rows = session.rows(query.bind(count_max)).await?;
    let walked = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let doomed = doomed(&walked, kept);
    if !doomed.is_empty() {
        let ids: Vec<i64> = doomed.iter().map(|(id, _)| id.0).collect();
        session.run(sqlx::query(FORGET).bind(json(&ids)).bind(tenant.0)).await?;
        changes(tenant, doomed.iter().map(|(_, state)| *state)).store(session).await?;
    }
    Ok(answer(&walked, doomed.len(), count_max))
}

/// Forgets one ended task.
pub(crate) async fn one(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
) -> Result<DropAnswer, StoreError> {
    let query = "SELECT state FROM finished WHERE id = ?1 AND tenant = ?2
        UNION ALL SELECT state FROM task WHERE id = ?1 AND tenant = ?2";
    let rows = session.rows(sqlx::query(query).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = rows.first() else { return Ok(DropAnswer::NotFound) };
    let state = TaskState::numbered(row.try_get(0).map_err(store_error)?);
    let state = state.ok_or_else(|| undecodable(Undecodable("task state")))?;
    if !state.is_terminal() {
        return Ok(DropAnswer::Live(state));
    }
    let open = session.rows(sqlx::query(OPEN_GROUP).bind(id.0).bind(tenant.0)).await?;
    if let Some(row) = open.first() {
        return Ok(DropAnswer::OpenGroup(GroupId(row.try_get(0).map_err(store_error)?)));
    }
    session.run(sqlx::query(FORGET).bind(json(&[id.0])).bind(tenant.0)).await?;
    changes(tenant, std::iter::once(state)).store(session).await?;
    Ok(DropAnswer::Dropped)
}

fn read(row: &SqliteRow) -> Result<Ended, StoreError> {
    let state: i64 = row.try_get(1).map_err(store_error)?;
    let state = TaskState::numbered(state).ok_or_else(|| undecodable(Undecodable("task state")))?;
    let read = || Ok((TaskId(row.try_get(0)?), state, row.try_get(2)?));
    read().map_err(store_error)
}
