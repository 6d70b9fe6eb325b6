//! Groups: their rows, what they count, and the tasks that their windows let go.

use bytes::Bytes;
use keiko_core::group::{Group, HELD_MS, NewGroup, Outcome, release};
use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::port::StoreError;
use keiko_core::priority::AGEING_MS;
use keiko_core::task::{Payload, Submit, TaskState};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::end;
use super::error::store_error;
use super::session::{Session, json};
use crate::admit::read_type;
use crate::count::Changes;
use crate::ending::End;
use crate::format::{Undecodable, decode_failure};
use crate::group::FAILING_MAX;
use crate::trouble::undecodable;

const INSERT: &str = "INSERT INTO task_group (id, tenant, count, live_max, fail_fast, released, created_ms, joined)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
    FROM json_each(?1)";

const COUNT: &str = "UPDATE task_group NOT INDEXED SET completed = completed + (c.value ->> 2),
        failed = failed + (c.value ->> 3), cancelled = cancelled + (c.value ->> 4),
        finished_ms = iif(completed + failed + cancelled + (c.value ->> 2) + (c.value ->> 3) + (c.value ->> 4) >= count,
            c.value ->> 5, NULL)
    FROM json_each(?1) AS c WHERE task_group.id = c.value ->> 0 AND tenant = c.value ->> 1
    RETURNING task_group.id, count, live_max, released, fail_fast AND failed > 0, joined AND finished_ms IS NOT NULL";

/// Gives the task that joins a group, `?1`, the place of its due time, at `?2`, if it is held still.
const RELEASE_JOIN: &str = "
    UPDATE task SET run_at_ms = iif(due_ms > ?2, due_ms, due_ms - coalesce(priority, 0) * ?3),
        due_ms = iif(priority IS NULL, NULL, due_ms)
    WHERE id = ?1 AND run_at_ms = ?4";

/// Live tasks of the numbers from `?1` to below `?2`.
const LIVE: &str = "SELECT count(*) FROM task WHERE id >= ?1 AND id < ?2";

/// Gives up to `?3` held tasks of the numbers from `?1` to below `?2` the place of their due time, at `?4`.
pub(crate) const RELEASE: &str = "
    UPDATE task SET run_at_ms = iif(due_ms > ?4, due_ms, due_ms - coalesce(priority, 0) * ?5),
        due_ms = iif(priority IS NULL, NULL, due_ms)
    WHERE id IN (SELECT id FROM task WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3) RETURNING id";

const GROUP: &str =
    "SELECT count, completed, failed, cancelled, live_max, fail_fast, created_ms, finished_ms,
        (SELECT min(t.id) FROM task AS t WHERE t.id >= g.id AND t.id < g.id + g.count)
    FROM task_group AS g WHERE g.id = ?1 AND g.tenant = ?2";

/// Tasks of a tenant with numbers from `?2` to below `?3`, in order, with their ends.
pub(crate) const OUTCOMES: &str = "
    WITH found AS MATERIALIZED (SELECT id, ended, bytes FROM (
            SELECT * FROM (SELECT id, 0 AS ended, 0 AS bytes FROM task WHERE id >= ?2 AND id < ?3 AND tenant = ?1
                ORDER BY id LIMIT ?4)
            UNION ALL
            SELECT * FROM (SELECT id, 1 AS ended, coalesce(length(result), 0) AS bytes FROM finished NOT INDEXED
                WHERE id >= ?2 AND id < ?3 AND tenant = ?1 ORDER BY id LIMIT ?4))
        ORDER BY id LIMIT ?4),
    page AS MATERIALIZED (SELECT id, ended FROM (
            SELECT id, ended, sum(bytes) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS older
            FROM found)
        WHERE coalesce(older, 0) <= ?5)
    SELECT t.id, t.state, NULL, NULL, NULL, NULL, NULL
    FROM page CROSS JOIN task AS t ON t.id = page.id AND page.ended = 0
    UNION ALL
    SELECT t.id, t.state, t.code, t.message, t.detail, t.result_type, t.result
    FROM page CROSS JOIN finished AS t ON t.id = page.id AND page.ended = 1
    ORDER BY 1";

/// Groups that have failed fast and go on, oldest first.
pub(crate) const FAILING: &str = "SELECT tenant, id FROM task_group INDEXED BY task_group_failing
    WHERE fail_fast AND failed > 0 AND finished_ms IS NULL ORDER BY id LIMIT ?1";

/// Groups that have failed fast and go on.
pub(crate) async fn failing(session: &mut Session) -> Result<Vec<(TenantId, GroupId)>, StoreError> {
    let rows = session.rows(sqlx::query(FAILING).bind(FAILING_MAX)).await?;
    let group = |row: &SqliteRow| Ok((TenantId(row.try_get(0)?), GroupId(row.try_get(1)?)));
    rows.iter().map(group).collect::<Result<_, _>>().map_err(store_error)
}

/// Writes the groups of submits that were accepted.
pub(crate) async fn insert(session: &mut Session, submits: &[(&Submit, i64)]) -> Result<(), StoreError> {
    let rows = submits.iter().filter_map(|&(submit, now_ms)| crate::group::row(submit, now_ms));
    insert_rows(session, &rows.collect::<Vec<_>>()).await
}

/// Writes groups.
pub(crate) async fn insert_rows(session: &mut Session, rows: &[crate::group::Row]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    session.run(sqlx::query(INSERT).bind(json(&rows))).await
}

/// Writes what became of groups' tasks, and lets held ones go, but for groups of which the rest is to be cancelled.
pub(crate) async fn count(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
    let rows = changes.group_rows();
    let Some(now_ms) = rows.iter().map(|row| row.5).max() else { return Ok(()) };
    let counted = session.rows(sqlx::query(COUNT).bind(json(&rows))).await?;
    for row in &counted {
        let read =
            || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?));
        let (id, count, live_max, released, fails): (i64, u32, Option<u32>, u32, bool) =
            read().map_err(store_error)?;
        if row.try_get::<bool, _>(5).map_err(store_error)? {
            let query = sqlx::query(RELEASE_JOIN).bind(id + i64::from(count)).bind(now_ms).bind(AGEING_MS);
            session.run(query.bind(HELD_MS)).await?;
        }
        if let Some(live_max) = live_max.filter(|_| released < count && !fails) {
            let_go(session, id, count, live_max, released, now_ms).await?;
        }
    }
    Ok(())
}

async fn let_go(
    session: &mut Session,
    id: i64,
    count: u32,
    live_max: u32,
    released: u32,
    now_ms: i64,
) -> Result<(), StoreError> {
    let (held, end) = (id + i64::from(released), id + i64::from(count));
    let rows = session.rows(sqlx::query(LIVE).bind(id).bind(held)).await?;
    let live: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(store_error)?;
    let room = release(live_max, live.max(0) as u64) as i64;
    if room == 0 {
        return Ok(());
    }
    let query = sqlx::query(RELEASE).bind(held).bind(end).bind(room).bind(now_ms).bind(AGEING_MS);
    let rows = session.rows(query).await?;
    let ids = rows.iter().map(|row| row.try_get::<i64, _>(0)).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(store_error)?;
    let released = crate::group::released(id, count, room, &ids);
    let query = "UPDATE task_group SET released = ?2 WHERE id = ?1";
    session.run(sqlx::query(query).bind(id).bind(released)).await
}

/// Cancels up to so many tasks of a group that have not ended; `None` when the tenant has no such group, or only one that has not
/// failed fast and that is asked for.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    id: GroupId,
    only_failed: bool,
    now_ms: i64,
    count_max: u32,
) -> Result<Option<Vec<TaskId>>, StoreError> {
    let query =
        sqlx::query("SELECT count, fail_fast AND failed > 0 FROM task_group WHERE id = ?1 AND tenant = ?2")
            .bind(id.0)
            .bind(tenant.0);
    let rows = session.rows(query).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let count: i64 = row.try_get(0).map_err(store_error)?;
    if only_failed && !row.try_get::<bool, _>(1).map_err(store_error)? {
        return Ok(None);
    }
    let query = "SELECT id FROM task WHERE id >= ?1 AND id < ?2 AND tenant = ?3 ORDER BY id DESC LIMIT ?4";
    let query = sqlx::query(query).bind(id.0).bind(id.0 + count).bind(tenant.0).bind(count_max);
    let rows = session.rows(query).await?;
    let ids = rows.iter().map(|row| row.try_get(0).map(TaskId)).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(store_error)?;
    end::finish(session, &ids, &End::cancelled(tenant), now_ms).await?;
    Ok(Some(ids))
}

/// A group as it stands.
pub(crate) async fn group(
    readers: &SqlitePool,
    tenant: TenantId,
    id: GroupId,
) -> Result<Option<Group>, StoreError> {
    let query = sqlx::query(GROUP).bind(id.0).bind(tenant.0);
    let row = query.fetch_optional(readers).await.map_err(store_error)?;
    let read = |row: &SqliteRow| {
        Ok(Group {
            id,
            count: row.try_get(0)?,
            completed: row.try_get(1)?,
            failed: row.try_get(2)?,
            cancelled: row.try_get(3)?,
            asked: NewGroup { live_max: row.try_get(4)?, fail_fast: row.try_get(5)? },
            created_ms: row.try_get(6)?,
            finished_ms: row.try_get(7)?,
            next: row.try_get::<Option<i64>, _>(8)?.map(TaskId),
        })
    };
    row.as_ref().map(read).transpose().map_err(store_error)
}

/// Up to `limit` outcomes of tasks with numbers from `first` to below `end`, in order; fewer when they are large.
pub(crate) async fn outcomes(
    readers: &SqlitePool,
    tenant: TenantId,
    (first, end): (TaskId, TaskId),
    limit: u32,
) -> Result<Vec<Outcome>, StoreError> {
    let query = sqlx::query(OUTCOMES).bind(tenant.0).bind(first.0).bind(end.0).bind(limit);
    let query = query.bind(USER_RESULTS_BYTES_MAX as i64);
    query.fetch_all(readers).await.map_err(store_error)?.iter().map(outcome).collect()
}

fn outcome(row: &SqliteRow) -> Result<Outcome, StoreError> {
    let state = TaskState::numbered(row.try_get(1).map_err(store_error)?);
    let code: Option<&str> = row.try_get(2).map_err(store_error)?;
    let message: Option<String> = row.try_get(3).map_err(store_error)?;
    let detail = row.try_get(4).map_err(store_error)?;
    let failure = code.map(|code| decode_failure(code, message.unwrap_or_default(), detail));
    let result: Option<Vec<u8>> = row.try_get(6).map_err(store_error)?;
    let content_type = read_type(row.try_get(5).map_err(store_error)?);
    Ok(Outcome {
        task: TaskId(row.try_get(0).map_err(store_error)?),
        state: state.ok_or_else(|| undecodable(Undecodable("task state")))?,
        result: result.map(|bytes| Payload { content_type, bytes: Bytes::from(bytes) }),
        failure: failure.transpose().map_err(undecodable)?,
    })
}
