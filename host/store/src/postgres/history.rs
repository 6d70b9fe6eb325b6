//! Questions about many tasks at once, each one statement.

use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{TaskId, TenantId, UserId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::port::StoreError;
use keiko_core::task::{Payload, TaskState};
use sqlx::postgres::PgRow;

use super::agents::{read_from, read_user};
use super::pool::Pool;
use super::records::summary;
use super::row::{get, large_count, name};
use crate::admit::read_type;
use crate::format::{Undecodable, decode_failure};
use crate::trouble::undecodable;

/// A page of a user's tasks: ids first, from the two partial indexes, then the rows of the page alone. Columns: a
/// summary (16), message, detail, media type of the result, result, the user (3), the agent (6). A user without tasks is
/// one row without a task, and nobody is no row.
pub(crate) const USER_TASKS: &str = "
    WITH found AS MATERIALIZED (SELECT id, ended, bytes FROM (
            (SELECT id, 0 AS ended, 0 AS bytes FROM task WHERE tenant = $1 AND app_user = $2 AND id < $3
                ORDER BY id DESC LIMIT $4)
            UNION ALL
            (SELECT id, 1 AS ended, coalesce(octet_length(result), 0) AS bytes FROM finished WHERE tenant = $1 AND app_user = $2 AND id < $3
                ORDER BY id DESC LIMIT $4)) AS both_tables
        ORDER BY id DESC LIMIT $4),
    page AS MATERIALIZED (SELECT id, ended FROM (
            SELECT id, ended, sum(bytes) OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer
            FROM found) AS summed
        WHERE coalesce(newer, 0) <= $5),
    wanted AS (
        SELECT t.id, t.tenant, t.kind, CASE WHEN t.holder IS NULL THEN 0 ELSE 1 END AS state, t.created_ms,
            coalesce(t.due_ms, t.run_at_ms) AS run_at_ms, NULL::bigint AS finished_ms, t.attempts, t.crashes,
            NULL AS code, t.root, t.parent, t.depth, t.agent, t.app_user, t.priority, NULL AS message, NULL AS detail, NULL AS result_type, NULL::bytea AS result
        FROM page JOIN task AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 0
        UNION ALL
        SELECT t.id, t.tenant, t.kind, t.state, t.created_ms, t.run_at_ms, t.finished_ms, t.attempts, t.crashes,
            t.code, t.root, t.parent, t.depth, t.agent, t.app_user, t.priority, t.message, t.detail, t.result_type, t.result
        FROM page JOIN finished AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 1)
    SELECT r.id, p.name, k.name, r.state, r.created_ms, r.run_at_ms, r.finished_ms, r.attempts, r.crashes, r.code,
        r.root, r.parent, r.depth, r.agent, r.app_user, r.priority, r.message, r.detail, r.result_type, r.result,
        u.id, u.name, u.created_ms, a.id, a.name, a.kind, a.status, a.created_ms, a.updated_ms
    FROM app_user AS u
    LEFT JOIN wanted AS r ON r.app_user = u.id AND r.tenant = u.tenant
    LEFT JOIN kind AS k ON k.id = r.kind AND k.tenant = r.tenant
    LEFT JOIN plugin AS p ON p.id = k.plugin AND p.tenant = r.tenant
    LEFT JOIN agent AS a ON a.id = r.agent AND a.tenant = r.tenant
    WHERE u.id = $2 AND u.tenant = $1
    ORDER BY r.id DESC";

/// Tasks by plugin, kind and state. Durations are those of ended tasks that ran; percentiles are nearest ranks.
pub(crate) const STATISTICS: &str = "
    WITH task_of AS (
        SELECT kind, state::integer AS state, elapsed_us FROM finished
            WHERE tenant = $1 AND created_ms BETWEEN $2 AND $3
        UNION ALL
        SELECT kind, CASE WHEN holder IS NULL THEN 0 ELSE 1 END, NULL FROM task
            WHERE tenant = $1 AND created_ms BETWEEN $2 AND $3
        UNION ALL
        SELECT kind, CASE WHEN holder IS NULL THEN 0 ELSE 1 END, NULL FROM task_segment
            CROSS JOIN LATERAL generate_series(1, live) WHERE tenant = $1 AND created_ms BETWEEN $2 AND $3),
    counted AS (
        SELECT kind, state, count(*) AS count,
            coalesce(div(sum(elapsed_us), nullif(count(elapsed_us), 0)), 0)::bigint AS average,
            coalesce(min(elapsed_us), 0) AS minimum, coalesce(max(elapsed_us), 0) AS maximum,
            coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY elapsed_us), 0) AS p50,
            coalesce(percentile_disc(0.95) WITHIN GROUP (ORDER BY elapsed_us), 0) AS p95
        FROM task_of GROUP BY kind, state)
    SELECT p.name, k.name, c.state, c.count, c.average, c.minimum, c.maximum, c.p50, c.p95
    FROM counted AS c
    JOIN kind AS k ON k.id = c.kind AND k.tenant = $1
    JOIN plugin AS p ON p.id = k.plugin AND p.tenant = $1
    ORDER BY p.name COLLATE \"C\", k.name COLLATE \"C\", c.state";

pub(crate) async fn user_tasks(
    pool: &Pool,
    tenant: TenantId,
    user: UserId,
    before: Option<TaskId>,
    limit: u32,
) -> Result<Option<Vec<UserTask>>, StoreError> {
    let query = |tenant: TenantId| {
        let query = sqlx::query(USER_TASKS).bind(tenant.0).bind(user.0);
        let query = query.bind(before.map_or(i64::MAX, |before| before.0)).bind(i64::from(limit));
        query.bind(USER_RESULTS_BYTES_MAX as i64)
    };
    let rows = pool.list(tenant, query).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    rows.iter().filter_map(|row| user_task(row).transpose()).collect::<Result<_, _>>().map(Some)
}

/// The task of a row, if there is one in it.
fn user_task(row: &PgRow) -> Result<Option<UserTask>, StoreError> {
    if get::<Option<i64>>(row, 0)?.is_none() {
        return Ok(None);
    }
    let summary = summary(row)?;
    let (message, detail): (Option<String>, Option<&str>) = (get(row, 16)?, get(row, 17)?);
    let failure = match &summary.code {
        Some(code) => Some(decode_failure(code, message.unwrap_or_default(), detail).map_err(undecodable)?),
        None => None,
    };
    let result: Option<Vec<u8>> = get(row, 19)?;
    let content_type = read_type(get(row, 18)?);
    let agent = get::<Option<i64>>(row, 23)?.map(|_| read_from(row, 23)).transpose()?;
    let result = result.map(|bytes| Payload { content_type, bytes: bytes.into() });
    Ok(Some(UserTask { summary, user: read_user(row, 20)?, agent, result, failure }))
}

pub(crate) async fn statistics(
    pool: &Pool,
    tenant: TenantId,
    range: DateRange,
) -> Result<Vec<Statistics>, StoreError> {
    let query =
        |tenant: TenantId| sqlx::query(STATISTICS).bind(tenant.0).bind(range.from_ms).bind(range.to_ms);
    pool.list(tenant, query).await?.iter().map(read_statistics).collect()
}

fn read_statistics(row: &PgRow) -> Result<Statistics, StoreError> {
    let state = TaskState::numbered(i64::from(get::<i32>(row, 2)?));
    Ok(Statistics {
        plugin: name(row, 0, "plugin name")?,
        kind: name(row, 1, "kind name")?,
        state: state.ok_or_else(|| undecodable(Undecodable("task state")))?,
        count: large_count(row, 3)?,
        average_us: large_count(row, 4)?,
        minimum_us: large_count(row, 5)?,
        maximum_us: large_count(row, 6)?,
        p50_us: large_count(row, 7)?,
        p95_us: large_count(row, 8)?,
    })
}
