//! Groups: their rows, what they count, and the tasks that their windows let go.
//!
//! A group's row is taken after those of its tasks, tenants and agents, and the held tasks that it lets go after it: nobody
//! else changes those but a cancel, which is passed over.

use bytes::Bytes;
use keiko_core::group::{Group, HELD_MS, NewGroup, Outcome, release};
use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::port::StoreError;
use keiko_core::priority::AGEING_MS;
use keiko_core::task::{Payload, Submit, TaskState};
use sqlx::postgres::PgRow;

use super::end;
use super::pool::Pool;
use super::row::{self, get};
use super::session::Session;
use crate::admit::read_type;
use crate::count::Changes;
use crate::ending::End;
use crate::format::{Undecodable, decode_failure};
use crate::group::FAILING_MAX;
use crate::trouble::undecodable;

const INSERT: &str = "INSERT INTO task_group (id, tenant, count, live_max, fail_fast, released, created_ms,
        joined)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::integer[], $5::boolean[], $6::integer[],
        $7::bigint[], $8::boolean[])";

const COUNT: &str = "UPDATE task_group AS g SET completed = g.completed + c.completed, failed = g.failed + c.failed,
        cancelled = g.cancelled + c.cancelled,
        finished_ms = CASE WHEN g.completed + g.failed + g.cancelled + c.completed + c.failed + c.cancelled >= g.count
            THEN c.ended_ms END
    FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[], $6::bigint[])
        AS c (id, tenant, completed, failed, cancelled, ended_ms)
    WHERE g.id = c.id AND g.tenant = c.tenant
    RETURNING g.id, g.count, g.live_max, g.released, g.fail_fast AND g.failed > 0,
        g.joined AND g.finished_ms IS NOT NULL";

/// Gives the task that joins a group, `$1`, the place of its due time, at the caller's `$2`, if it is held still. Only a
/// cancel changes a held task beside this, and is passed over.
const RELEASE_JOIN: &str = "
    UPDATE task AS t SET
        run_at_ms = CASE WHEN t.due_ms > keiko_now($2) THEN t.due_ms ELSE t.due_ms - coalesce(t.priority, 0) * $3::bigint END,
        due_ms = CASE WHEN t.priority IS NOT NULL THEN t.due_ms END
    FROM (SELECT id FROM task WHERE id = $1 AND run_at_ms >= $4 FOR UPDATE SKIP LOCKED) AS held
    WHERE t.id = held.id";

/// Live tasks of the numbers from `$1` to below `$2`.
const LIVE: &str = "SELECT count(*) FROM task WHERE id >= $1 AND id < $2";

/// Gives up to `$3` held tasks of the numbers from `$1` to below `$2` the place of their due time, at the caller's `$4`.
const RELEASE: &str = "
    UPDATE task AS t SET
        run_at_ms = CASE WHEN t.due_ms > keiko_now($4) THEN t.due_ms ELSE t.due_ms - coalesce(t.priority, 0) * $5::bigint END,
        due_ms = CASE WHEN t.priority IS NOT NULL THEN t.due_ms END
    FROM (SELECT id FROM task WHERE id >= $1 AND id < $2 ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED) AS held
    WHERE t.id = held.id RETURNING t.id";

const GROUP: &str =
    "SELECT count, completed, failed, cancelled, live_max, fail_fast, created_ms, finished_ms,
        (SELECT min(t.id) FROM task AS t WHERE t.id >= g.id AND t.id < g.id + g.count AND t.tenant = $2)
    FROM task_group AS g WHERE g.id = $1 AND g.tenant = $2";

/// Tasks of a tenant with numbers from `$2` to below `$3`, in order, with their ends.
const OUTCOMES: &str = "
    WITH found AS MATERIALIZED (SELECT id, ended, bytes FROM (
            (SELECT id, 0 AS ended, 0 AS bytes FROM task WHERE id >= $2 AND id < $3 AND tenant = $1
                ORDER BY id LIMIT $4)
            UNION ALL
            (SELECT id, 1 AS ended, coalesce(octet_length(result), 0) AS bytes FROM finished
                WHERE tenant = $1 AND id >= $2 AND id < $3 ORDER BY id LIMIT $4)) AS both_tables
        ORDER BY id LIMIT $4),
    page AS MATERIALIZED (SELECT id, ended FROM (
            SELECT id, ended, sum(bytes) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS older
            FROM found) AS summed
        WHERE coalesce(older, 0) <= $5)
    SELECT t.id, CASE WHEN t.holder IS NULL THEN 0 ELSE 1 END, NULL, NULL, NULL, NULL, NULL::bytea
    FROM page JOIN task AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 0
    UNION ALL
    SELECT t.id, t.state, t.code, t.message, t.detail, t.result_type, t.result
    FROM page JOIN finished AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 1
    ORDER BY 1";

/// Groups that have failed fast and go on, oldest first.
pub(crate) const FAILING: &str = "SELECT tenant, id FROM task_group
    WHERE fail_fast AND failed > 0 AND finished_ms IS NULL ORDER BY id LIMIT $1";

/// Groups that have failed fast and go on.
pub(crate) async fn failing(session: &mut Session) -> Result<Vec<(TenantId, GroupId)>, StoreError> {
    let rows = session.rows(sqlx::query(FAILING).bind(FAILING_MAX)).await?;
    rows.iter().map(|row| Ok((TenantId(get(row, 0)?), GroupId(get(row, 1)?)))).collect()
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
    let ids: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let tenants: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let counts: Vec<i32> = rows.iter().map(|row| row.2 as i32).collect();
    // The column has as many bits as a window: what is beyond an integer stands there as one below zero, and is read back.
    let windows: Vec<Option<i32>> = rows.iter().map(|row| row.3.map(|live_max| live_max as i32)).collect();
    let fast: Vec<bool> = rows.iter().map(|row| row.4).collect();
    let released: Vec<i32> = rows.iter().map(|row| row.5 as i32).collect();
    let created: Vec<i64> = rows.iter().map(|row| row.6).collect();
    let joined: Vec<bool> = rows.iter().map(|row| row.7).collect();
    let query = sqlx::query(INSERT).bind(ids).bind(tenants).bind(counts).bind(windows).bind(fast);
    session.run(query.bind(released).bind(created).bind(joined)).await.map(drop)
}

/// Writes what became of groups' tasks, and lets held ones go, but for groups of which the rest is to be cancelled.
pub(crate) async fn count(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
    let rows = changes.group_rows();
    let Some(now_ms) = rows.iter().map(|row| row.5).max() else { return Ok(()) };
    let ids: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let tenants: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let completed: Vec<i32> = rows.iter().map(|row| row.2).collect();
    let failed: Vec<i32> = rows.iter().map(|row| row.3).collect();
    let cancelled: Vec<i32> = rows.iter().map(|row| row.4).collect();
    let ended: Vec<i64> = rows.iter().map(|row| row.5).collect();
    let query = sqlx::query(COUNT).bind(ids).bind(tenants).bind(completed).bind(failed).bind(cancelled);
    for one in &session.rows(query.bind(ended)).await? {
        let (id, live_max) = (get::<i64>(one, 0)?, get::<Option<i32>>(one, 2)?);
        let (count, released) = (row::count(one, 1)?, row::count(one, 3)?);
        let fails: bool = get(one, 4)?;
        if get(one, 5)? {
            let query = sqlx::query(RELEASE_JOIN).bind(id + i64::from(count)).bind(now_ms).bind(AGEING_MS);
            // The place of a held task is moved by the difference of the clocks, as every time is.
            session.run(query.bind(HELD_MS / 2)).await?;
        }
        if let Some(live_max) = live_max.filter(|_| released < count && !fails) {
            let_go(session, id, count, live_max as u32, released, now_ms).await?;
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
    let row = session.row(sqlx::query(LIVE).bind(id).bind(held)).await?;
    let live: i64 = row.as_ref().map_or(Ok(0), |row| get(row, 0))?;
    let room = release(live_max, live.max(0) as u64) as i64;
    if room == 0 {
        return Ok(());
    }
    let query = sqlx::query(RELEASE).bind(held).bind(end).bind(room).bind(now_ms).bind(AGEING_MS);
    let rows = session.rows(query).await?;
    let ids = rows.iter().map(|row| get(row, 0)).collect::<Result<Vec<i64>, _>>()?;
    let released = crate::group::released(id, count, room, &ids);
    let query = "UPDATE task_group SET released = $2 WHERE id = $1";
    session.run(sqlx::query(query).bind(id).bind(released as i32)).await.map(drop)
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
        sqlx::query("SELECT count, fail_fast AND failed > 0 FROM task_group WHERE id = $1 AND tenant = $2")
            .bind(id.0)
            .bind(tenant.0);
    let Some(row) = session.row(query).await? else { return Ok(None) };
    let count = i64::from(row::count(&row, 0)?);
    if only_failed && !get::<bool>(&row, 1)? {
        return Ok(None);
    }
    // What somebody else is ending right now ends by itself.
    let query = "SELECT id FROM task WHERE id >= $1 AND id < $2 AND tenant = $3 ORDER BY id DESC LIMIT $4
        FOR UPDATE SKIP LOCKED";
    let query = sqlx::query(query).bind(id.0).bind(id.0 + count).bind(tenant.0).bind(i64::from(count_max));
    let rows = session.rows(query).await?;
    let ids = rows.iter().map(|row| get(row, 0).map(TaskId)).collect::<Result<Vec<_>, _>>()?;
    end::finish(session, &ids, &End::cancelled(tenant), now_ms).await?;
    Ok(Some(ids))
}

/// A group as it stands.
pub(crate) async fn group(pool: &Pool, tenant: TenantId, id: GroupId) -> Result<Option<Group>, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(GROUP).bind(id.0).bind(connection.id().0);
    let Some(row) = connection.row(query).await? else { return Ok(None) };
    let live_max = get::<Option<i32>>(&row, 4)?.map(|live_max| live_max as u32);
    Ok(Some(Group {
        id,
        count: row::count(&row, 0)?,
        completed: row::count(&row, 1)?,
        failed: row::count(&row, 2)?,
        cancelled: row::count(&row, 3)?,
        asked: NewGroup { live_max, fail_fast: get(&row, 5)? },
        created_ms: get(&row, 6)?,
        finished_ms: get(&row, 7)?,
        next: get::<Option<i64>>(&row, 8)?.map(TaskId),
    }))
}

/// Up to `limit` outcomes of tasks with numbers from `first` to below `end`, in order; fewer when they are large.
pub(crate) async fn outcomes(
    pool: &Pool,
    tenant: TenantId,
    (first, end): (TaskId, TaskId),
    limit: u32,
) -> Result<Vec<Outcome>, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let query =
        sqlx::query(OUTCOMES).bind(connection.id().0).bind(first.0).bind(end.0).bind(i64::from(limit));
    connection.rows(query.bind(USER_RESULTS_BYTES_MAX as i64)).await?.iter().map(outcome).collect()
}

fn outcome(row: &PgRow) -> Result<Outcome, StoreError> {
    let state = TaskState::numbered(i64::from(get::<i32>(row, 1)?));
    let (code, message): (Option<&str>, Option<String>) = (get(row, 2)?, get(row, 3)?);
    let detail = get(row, 4)?;
    let failure = code.map(|code| decode_failure(code, message.unwrap_or_default(), detail));
    let (content_type, result): (_, Option<Vec<u8>>) = (read_type(get(row, 5)?), get(row, 6)?);
    Ok(Outcome {
        task: TaskId(get(row, 0)?),
        state: state.ok_or_else(|| undecodable(Undecodable("task state")))?,
        result: result.map(|bytes| Payload { content_type, bytes: Bytes::from(bytes) }),
        failure: failure.transpose().map_err(undecodable)?,
    })
}
