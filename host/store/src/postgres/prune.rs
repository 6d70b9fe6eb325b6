//! Forgetting ended tasks.

use std::collections::HashSet;

use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::port::{Pruned, StoreError, StoreErrorKind};
use keiko_core::retention::KeptFrom;
use keiko_core::task::{DropAnswer, TaskState};
use sqlx::postgres::PgRow;

use super::count;
use super::row::get;
use super::segment;
use super::session::Session;
use crate::format::Undecodable;
use crate::prune::{Ended, answer, changes, doomed, end_of_walk};
use crate::trouble::undecodable;

/// The oldest ended tasks of a tenant behind one, below another; without an end where their group is open.
pub(crate) const WALK: &str = "SELECT id, state,
        CASE WHEN (SELECT g.finished_ms IS NULL FROM task_group AS g WHERE g.id = finished.task_group) IS NOT TRUE
            THEN finished_ms END
    FROM finished WHERE tenant = $1 AND id > $2 AND id < $3 ORDER BY id LIMIT $4";

/// The group of an ended task, if it is open.
const OPEN_GROUP: &str = "SELECT g.id FROM finished AS f JOIN task_group AS g ON g.id = f.task_group
    WHERE f.id = $1 AND f.tenant = $2 AND g.finished_ms IS NULL";

/// A task that was tried again by hand in the meantime is not among the ended ones any more, and keeps what it has.
/// A group is forgotten with its first task, a tree with its root.
const FORGET: &str = "
    WITH gone AS (DELETE FROM finished WHERE tenant = $1 AND id = ANY ($2::bigint[]) RETURNING id),
    attempts AS (DELETE FROM attempt WHERE task IN (SELECT id FROM gone)),
    logs AS (DELETE FROM attempt_log WHERE task IN (SELECT id FROM gone)),
    trees AS (DELETE FROM tree WHERE tenant = $1 AND root IN (SELECT id FROM gone)),
    groups AS (DELETE FROM task_group WHERE tenant = $1 AND id IN (SELECT id FROM gone) AND finished_ms IS NOT NULL)
    SELECT id FROM gone";

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
    let rows = session.rows(query.bind(i64::from(count_max))).await?;
    let walked = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let doomed = doomed(&walked, kept);
    let mut pruned = 0;
    if !doomed.is_empty() {
        let ids: Vec<i64> = doomed.iter().map(|(id, _)| id.0).collect();
        let gone = session.rows(sqlx::query(FORGET).bind(tenant.0).bind(ids)).await?;
        let gone = gone.iter().map(|row| get(row, 0).map(TaskId)).collect::<Result<HashSet<_>, _>>()?;
        pruned = gone.len();
        let states = doomed.iter().filter(|(id, _)| gone.contains(id)).map(|(_, state)| *state);
        count::store(session, &changes(tenant, states)).await?;
    }
    Ok(answer(&walked, pruned, count_max))
}

/// Forgets one ended task.
pub(crate) async fn one(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
) -> Result<DropAnswer, StoreError> {
    const STATE: &str = concat!(
        "SELECT state::integer FROM finished WHERE tenant = $2 AND id = $1
        UNION ALL SELECT CASE WHEN holder IS NULL THEN 0 ELSE 1 END FROM task WHERE id = $1 AND tenant = $2 UNION ALL ",
        segment::state!()
    );
    let row = session.row(sqlx::query(STATE).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = row else { return Ok(DropAnswer::NotFound) };
    let state = TaskState::numbered(i64::from(get::<i32>(&row, 0)?));
    let state = state.ok_or_else(|| undecodable(Undecodable("task state")))?;
    if !state.is_terminal() {
        return Ok(DropAnswer::Live(state));
    }
    let open = session.row(sqlx::query(OPEN_GROUP).bind(id.0).bind(tenant.0)).await?;
    if let Some(row) = open {
        return Ok(DropAnswer::OpenGroup(GroupId(get(&row, 0)?)));
    }
    let gone = session.rows(sqlx::query(FORGET).bind(tenant.0).bind(vec![id.0])).await?;
    if gone.is_empty() {
        return Err(StoreError::new(StoreErrorKind::Busy, "the task was changed at the same time"));
    }
    count::store(session, &changes(tenant, std::iter::once(state))).await?;
    Ok(DropAnswer::Dropped)
}

fn read(row: &PgRow) -> Result<Ended, StoreError> {
    let state = TaskState::numbered(i64::from(get::<i16>(row, 1)?));
    let state = state.ok_or_else(|| undecodable(Undecodable("task state")))?;
    Ok((TaskId(get(row, 0)?), state, get(row, 2)?))
}
