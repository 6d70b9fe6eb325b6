//! Questions about many tasks at once, each one statement.

use keiko_core::agent::User;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{TaskId, TenantId, UserId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::port::StoreError;
use keiko_core::task::{Payload, TaskState};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::agents::read_from;
use super::catalog::read_name;
use super::error::store_error;
use super::records::summary;
use crate::admit::read_type;
use crate::format::{Undecodable, decode_failure};
use crate::trouble::undecodable;

/// A page of a user's tasks: ids first, from the two partial indexes, then the rows of the page alone. Columns: a
/// summary (16), message, detail, media type of the result, result, the user (3), the agent (6). A user without tasks is
/// one row without a task, and nobody is no row.
pub(crate) const USER_TASKS: &str = "
    WITH found AS MATERIALIZED (SELECT id, ended, bytes FROM (
            SELECT * FROM (SELECT id, 0 AS ended, 0 AS bytes FROM task INDEXED BY task_user
                WHERE tenant = ?1 AND app_user = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4)
            UNION ALL
            SELECT * FROM (SELECT id, 1 AS ended, coalesce(length(result), 0) AS bytes FROM finished INDEXED BY finished_user
                WHERE tenant = ?1 AND app_user = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4))
        ORDER BY id DESC LIMIT ?4),
    page AS MATERIALIZED (SELECT id, ended FROM (
            SELECT id, ended, sum(bytes) OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer
            FROM found)
        WHERE coalesce(newer, 0) <= ?5),
    rows AS (
        SELECT t.id, t.tenant, t.kind, t.state, t.created_ms, coalesce(t.due_ms, t.run_at_ms) AS run_at_ms,
            NULL AS finished_ms, t.attempts, t.crashes, NULL AS code, t.root, t.parent, t.depth, t.agent, t.app_user,
            t.priority, NULL AS message, NULL AS detail,
            NULL AS result_type, NULL AS result
        FROM page CROSS JOIN task AS t ON t.id = page.id AND page.ended = 0
        UNION ALL
        SELECT t.id, t.tenant, t.kind, t.state, t.created_ms, t.run_at_ms, t.finished_ms, t.attempts, t.crashes,
            t.code, t.root, t.parent, t.depth, t.agent, t.app_user, t.priority, t.message, t.detail, t.result_type, t.result
        FROM page CROSS JOIN finished AS t ON t.id = page.id AND page.ended = 1)
    SELECT r.id, p.name, k.name, r.state, r.created_ms, r.run_at_ms, r.finished_ms, r.attempts, r.crashes, r.code,
        r.root, r.parent, r.depth, r.agent, r.app_user, r.priority, r.message, r.detail, r.result_type, r.result,
        u.id, u.name, u.created_ms, a.id, a.name, a.kind, a.status, a.created_ms, a.updated_ms
    FROM app_user AS u
    LEFT JOIN rows AS r ON r.app_user = u.id AND r.tenant = u.tenant
    LEFT JOIN kind AS k ON k.id = r.kind AND k.tenant = r.tenant
    LEFT JOIN plugin AS p ON p.id = k.plugin AND p.tenant = r.tenant
    LEFT JOIN agent AS a ON a.id = r.agent AND a.tenant = r.tenant
    WHERE u.id = ?2 AND u.tenant = ?1
    ORDER BY r.id DESC";

/// Tasks by plugin, kind and state. Durations are those of ended tasks that ran; percentiles are nearest ranks.
pub(crate) const STATISTICS: &str = "
    WITH task_of (kind, state, elapsed_us) AS (
        SELECT kind, state, elapsed_us FROM finished INDEXED BY finished_created
            WHERE tenant = ?1 AND created_ms BETWEEN ?2 AND ?3
        UNION ALL SELECT kind, state, NULL FROM task INDEXED BY task_ready
            WHERE tenant = ?1 AND state = 0 AND created_ms BETWEEN ?2 AND ?3
        UNION ALL SELECT kind, state, NULL FROM task INDEXED BY task_running
            WHERE tenant = ?1 AND state = 1 AND created_ms BETWEEN ?2 AND ?3),
    ranked AS (
        SELECT kind, state, elapsed_us,
            count(elapsed_us) OVER (PARTITION BY kind, state) AS timed,
            row_number() OVER (PARTITION BY kind, state ORDER BY elapsed_us NULLS LAST) AS rank
        FROM task_of)
    SELECT p.name, k.name, r.state, count(*),
        coalesce(sum(elapsed_us) / nullif(count(elapsed_us), 0), 0),
        coalesce(min(elapsed_us), 0), coalesce(max(elapsed_us), 0),
        coalesce(min(elapsed_us) FILTER (WHERE rank * 100 >= timed * 50), 0),
        coalesce(min(elapsed_us) FILTER (WHERE rank * 100 >= timed * 95), 0)
    FROM ranked AS r
    JOIN kind AS k ON k.id = r.kind AND k.tenant = ?1
    JOIN plugin AS p ON p.id = k.plugin AND p.tenant = ?1
    GROUP BY r.kind, r.state ORDER BY p.name, k.name, r.state";

pub(crate) async fn user_tasks(
    readers: &SqlitePool,
    tenant: TenantId,
    user: UserId,
    before: Option<TaskId>,
    limit: u32,
) -> Result<Option<Vec<UserTask>>, StoreError> {
    let query = sqlx::query(USER_TASKS).bind(tenant.0).bind(user.0);
    let query = query.bind(before.map_or(i64::MAX, |before| before.0)).bind(limit);
    let query = query.bind(USER_RESULTS_BYTES_MAX as i64);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    if rows.is_empty() {
        return Ok(None);
    }
    rows.iter().filter_map(|row| user_task(row).transpose()).collect::<Result<_, _>>().map(Some)
}

/// The task of a row, if there is one in it.
fn user_task(row: &SqliteRow) -> Result<Option<UserTask>, StoreError> {
    if row.try_get::<Option<i64>, _>(0).map_err(store_error)?.is_none() {
        return Ok(None);
    }
    let summary = summary(row)?;
    let (message, detail): (Option<String>, Option<&str>) =
        (row.try_get(16).map_err(store_error)?, row.try_get(17).map_err(store_error)?);
    let failure = match &summary.code {
        Some(code) => Some(decode_failure(code, message.unwrap_or_default(), detail).map_err(undecodable)?),
        None => None,
    };
    let result: Option<Vec<u8>> = row.try_get(19).map_err(store_error)?;
    let content_type = read_type(row.try_get(18).map_err(store_error)?);
    let user = User {
        id: UserId(row.try_get(20).map_err(store_error)?),
        name: row.try_get(21).map_err(store_error)?,
        created_ms: row.try_get(22).map_err(store_error)?,
    };
    let agent: Option<i64> = row.try_get(23).map_err(store_error)?;
    let agent = agent.map(|_| read_from(row, 23)).transpose()?;
    let result = result.map(|bytes| Payload { content_type, bytes: bytes.into() });
    Ok(Some(UserTask { summary, user, agent, result, failure }))
}

pub(crate) async fn statistics(
    readers: &SqlitePool,
    tenant: TenantId,
    range: DateRange,
) -> Result<Vec<Statistics>, StoreError> {
    let query = sqlx::query(STATISTICS).bind(tenant.0).bind(range.from_ms).bind(range.to_ms);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(read_statistics).collect()
}

fn read_statistics(row: &SqliteRow) -> Result<Statistics, StoreError> {
    let number =
        |column: usize| row.try_get::<i64, _>(column).map(|number| number.max(0) as u64).map_err(store_error);
    let state: i64 = row.try_get(2).map_err(store_error)?;
    Ok(Statistics {
        plugin: read_name(row, 0, "plugin name")?,
        kind: read_name(row, 1, "kind name")?,
        state: TaskState::numbered(state).ok_or_else(|| undecodable(Undecodable("task state")))?,
        count: number(3)?,
        average_us: number(4)?,
        minimum_us: number(5)?,
        maximum_us: number(6)?,
        p50_us: number(7)?,
        p95_us: number(8)?,
    })
}
