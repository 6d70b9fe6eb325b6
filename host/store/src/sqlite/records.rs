//! Reads: always one tenant's, always one statement, so that every answer is of one moment.

use std::collections::HashMap;

use bytes::Bytes;
use keiko_core::id::{AgentId, GroupId, TaskId, TenantId, Token, UserId};
use keiko_core::port::StoreError;
use keiko_core::task::{
    AttemptView, Lineage, Payload, TaskCounts, TaskFilter, TaskState, TaskSummary, TaskView,
};
use keiko_core::tree::Tree;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::catalog::read_name;
use super::error::store_error;
use crate::admit::read_type;
use crate::format::{Undecodable, check_end, decode_attempts, decode_budget, decode_failure, read_priority};
use crate::tree::read;
use crate::trouble::undecodable;

/// A task, live or ended, with its attempts as `format::decode_attempts` reads them: kept ones, and the one that
/// ended it.
pub(crate) const TASK: &str = "
    WITH head AS (
        SELECT id, tenant, kind, state, created_ms, coalesce(due_ms, run_at_ms) AS run_at_ms, NULL AS finished_ms, attempts, crashes,
            NULL AS code, root, parent, depth, token, NULL AS message, NULL AS detail, NULL AS result_type,
            NULL AS result, NULL AS last, agent, app_user, priority, budget, task_group, slot_key
        FROM task WHERE id = ?1 AND tenant = ?2
        UNION ALL
        SELECT f.id, f.tenant, f.kind, f.state, f.created_ms, f.run_at_ms, f.finished_ms, f.attempts, f.crashes,
            f.code, f.root, f.parent, f.depth, f.token, f.message, f.detail, f.result_type, f.result,
            iif(f.started_ms IS NULL, NULL, json_array(json_array(f.earlier + f.attempts, f.started_ms,
                f.fuel_used, f.memory_bytes_peak, f.host_calls, f.elapsed_us, f.taint, f.effects, f.version,
                v.name, nullif(hex(v.digest), ''), f.code, f.message, f.detail))), f.agent, f.app_user, f.priority,
            f.budget, f.task_group, f.slot_key
        FROM finished AS f LEFT JOIN plugin_version AS v ON v.id = f.version AND v.tenant = f.tenant
        WHERE f.id = ?1 AND f.tenant = ?2)
    SELECT h.id, p.name, k.name, h.state, h.created_ms, h.run_at_ms, h.finished_ms, h.attempts, h.crashes, h.code,
        h.root, h.parent, h.depth, h.agent, h.app_user, h.priority, h.token, h.message, h.detail, h.result_type, h.result, h.last,
        (SELECT json_group_array(json_array(a.number, a.started_ms, a.fuel_used, a.memory_bytes_peak,
                a.host_calls, a.elapsed_us, a.taint, a.effects, a.version, v.name, nullif(hex(v.digest), ''), a.code,
                a.message, a.detail) ORDER BY a.number)
            FROM attempt AS a LEFT JOIN plugin_version AS v ON v.id = a.version AND v.tenant = a.tenant
            WHERE a.task = h.id AND a.tenant = h.tenant) AS kept,
        o.fuel_max, o.host_calls_max, o.fuel_used, o.host_calls_used, h.budget, h.task_group, h.slot_key
    FROM head AS h
    JOIN kind AS k ON k.id = h.kind AND k.tenant = h.tenant
    JOIN plugin AS p ON p.id = k.plugin AND p.tenant = h.tenant
    LEFT JOIN tree AS o ON o.root = h.id AND o.tenant = h.tenant";

/// What a task is given: in its row, or beside it. It is not kept of what has completed.
pub(crate) const INPUT: &str = "
    SELECT h.input_type, coalesce(h.input, i.bytes)
    FROM (SELECT id, tenant, input_type, input FROM task WHERE id = ?1 AND tenant = ?2
        UNION ALL
        SELECT id, tenant, input_type, input FROM finished WHERE id = ?1 AND tenant = ?2 AND state <> 2) AS h
    LEFT JOIN task_input AS i ON h.input IS NULL AND i.task = h.id AND i.tenant = h.tenant";

/// Tasks in each state: pending ones are counted in their index, the others are kept counts.
pub(crate) const COUNTS: &str = "
    SELECT p.pending, c.live - p.pending, c.completed, c.failed, c.cancelled
    FROM tenant_count AS c, (SELECT count(*) AS pending FROM task INDEXED BY task_ready
        WHERE tenant = ?1 AND state = 0) AS p
    WHERE c.tenant = ?1";

/// A task with its result and its attempts.
pub(crate) async fn task(
    readers: &SqlitePool,
    tenant: TenantId,
    id: TaskId,
) -> Result<Option<TaskView>, StoreError> {
    let query = sqlx::query(TASK).bind(id.0).bind(tenant.0);
    let row = query.fetch_optional(readers).await.map_err(store_error)?;
    row.as_ref().map(view).transpose()
}

/// What a task is given, until it completes.
pub(crate) async fn input(
    readers: &SqlitePool,
    tenant: TenantId,
    id: TaskId,
) -> Result<Option<Payload>, StoreError> {
    let query = sqlx::query(INPUT).bind(id.0).bind(tenant.0);
    let Some(row) = query.fetch_optional(readers).await.map_err(store_error)? else { return Ok(None) };
    let bytes: Option<Vec<u8>> = row.try_get(1).map_err(store_error)?;
    let bytes = bytes.ok_or_else(|| undecodable(Undecodable("input")))?;
    let content_type = read_type(row.try_get(0).map_err(store_error)?);
    Ok(Some(Payload { content_type, bytes: bytes.into() }))
}

fn view(row: &SqliteRow) -> Result<TaskView, StoreError> {
    let summary = summary(row)?;
    let (message, detail): (Option<String>, Option<&str>) =
        (row.try_get(17).map_err(store_error)?, row.try_get(18).map_err(store_error)?);
    let failure = match &summary.code {
        Some(code) => Some(decode_failure(code, message.unwrap_or_default(), detail).map_err(undecodable)?),
        None => None,
    };
    let result: Option<Vec<u8>> = row.try_get(20).map_err(store_error)?;
    let content_type = read_type(row.try_get(19).map_err(store_error)?);
    let attempts = attempts(row)?;
    check_end(summary.state, result.is_some(), failure.is_some()).map_err(undecodable)?;
    Ok(TaskView {
        token: Token(row.try_get(16).map_err(store_error)?),
        result: result.map(|bytes| Payload { content_type, bytes: bytes.into() }),
        tree: tree(row).map_err(store_error)?,
        group: row.try_get::<Option<i64>, _>(28).map_err(store_error)?.map(GroupId),
        slot_key: row.try_get(29).map_err(store_error)?,
        budget: decode_budget(row.try_get(27).map_err(store_error)?).unwrap_or_default(),
        summary,
        failure,
        attempts,
    })
}

fn tree(row: &SqliteRow) -> Result<Option<Tree>, sqlx::Error> {
    let Some(fuel_max) = row.try_get(23)? else { return Ok(None) };
    Ok(Some(read([fuel_max, row.try_get(24)?, row.try_get(25)?, row.try_get(26)?])))
}

fn attempts(row: &SqliteRow) -> Result<Vec<AttemptView>, StoreError> {
    let kept: Option<&str> = row.try_get(22).map_err(store_error)?;
    let last: Option<&str> = row.try_get(21).map_err(store_error)?;
    let mut attempts = Vec::new();
    for text in [kept, last].into_iter().flatten() {
        attempts.extend(decode_attempts(text).map_err(undecodable)?);
    }
    Ok(attempts)
}

pub(crate) fn summary(row: &SqliteRow) -> Result<TaskSummary, StoreError> {
    let state: i64 = row.try_get(3).map_err(store_error)?;
    let parent: Option<i64> = row.try_get(11).map_err(store_error)?;
    Ok(TaskSummary {
        id: TaskId(row.try_get(0).map_err(store_error)?),
        plugin: read_name(row, 1, "plugin name")?,
        kind: read_name(row, 2, "kind name")?,
        state: TaskState::numbered(state).ok_or_else(|| undecodable(Undecodable("task state")))?,
        created_ms: row.try_get(4).map_err(store_error)?,
        run_at_ms: row.try_get(5).map_err(store_error)?,
        finished_ms: row.try_get(6).map_err(store_error)?,
        attempts: row.try_get(7).map_err(store_error)?,
        crashes: row.try_get(8).map_err(store_error)?,
        code: row.try_get(9).map_err(store_error)?,
        lineage: Lineage {
            root: TaskId(row.try_get(10).map_err(store_error)?),
            parent: parent.map(TaskId),
            depth: row.try_get(12).map_err(store_error)?,
        },
        agent: row.try_get::<Option<i64>, _>(13).map_err(store_error)?.map(AgentId),
        user: row.try_get::<Option<i64>, _>(14).map_err(store_error)?.map(UserId),
        priority: read_priority(row.try_get(15).map_err(store_error)?).map_err(undecodable)?,
    })
}

/// Up to `limit` tasks, newest first.
pub(crate) async fn list(
    readers: &SqlitePool,
    tenant: TenantId,
    filter: &TaskFilter,
    limit: u32,
) -> Result<Vec<TaskSummary>, StoreError> {
    if filter.fits_nothing() {
        return Ok(Vec::new());
    }
    let (from, below) = filter.ids();
    let query = sqlx::query(AssertSqlSafe(list_text(filter)))
        .bind(tenant.0)
        .bind(below.0)
        .bind(limit)
        .bind(filter.plugin.as_ref().map(|name| name.as_str()))
        .bind(filter.kind.as_ref().map(|name| name.as_str()))
        .bind(filter.parent.map(|parent| parent.0))
        .bind(filter.agent.map(|agent| agent.0))
        .bind(filter.user.map(|user| user.0))
        .bind(filter.root.map(|root| root.0))
        .bind(filter.group.map(|group| group.0))
        .bind(from.0)
        .bind(filter.created.from_ms)
        .bind(filter.created.to_ms)
        .bind(filter.finished.from_ms)
        .bind(filter.finished.to_ms);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(summary).collect()
}

/// The statement for a filter, made of fixed pieces only; values are always parameters: tenant, the id that all are below,
/// limit, plugin, kind, parent, agent, user, root, group, the first id, and the times of creation and end. Each branch finds
/// a page of ids in the index that serves it; the rows are looked up for the page alone.
pub(crate) fn list_text(filter: &TaskFilter) -> String {
    let (created, finished) = (filter.created, filter.finished);
    let conditions = asked(&[
        (true, "t.tenant = ?1 AND t.id < ?2"),
        (filter.parent.is_some(), " AND t.parent = ?6"),
        (filter.agent.is_some(), " AND t.agent = ?7"),
        (filter.user.is_some(), " AND t.app_user = ?8"),
        (filter.group.is_some(), " AND t.task_group = ?10"),
        (filter.group.is_some() || created.from_ms.is_some(), " AND t.id >= ?11"),
        (created.from_ms.is_some(), " AND t.created_ms >= ?12"),
        (created.to_ms.is_some(), " AND t.created_ms <= ?13"),
        (finished.from_ms.is_some(), " AND t.finished_ms >= ?14"),
        (finished.to_ms.is_some(), " AND t.finished_ms <= ?15"),
    ]);
    let named = [(filter.plugin.is_some(), " AND p.name = ?4"), (filter.kind.is_some(), " AND k.name = ?5")];
    let names = asked(&named);
    let kinds = format!(
        "SELECT k.id FROM kind AS k JOIN plugin AS p ON p.id = k.plugin AND p.tenant = k.tenant
         WHERE k.tenant = ?1{names}"
    );
    let branch = |Branch { ended, table, index, state, root }: Branch| {
        let by = if index == BY_ID { "NOT INDEXED".to_owned() } else { format!("INDEXED BY {index}") };
        let page = |more: &str| {
            format!(
                "SELECT t.id FROM {table} AS t {by} WHERE {conditions}{state}{root}{more}
                 ORDER BY t.id DESC LIMIT ?3"
            )
        };
        if names.is_empty() {
            return format!("SELECT *, {ended} AS ended FROM ({})", page(""));
        }
        if index != BY_KIND {
            return format!(
                "SELECT *, {ended} AS ended FROM ({})",
                page(&format!(" AND t.kind IN ({kinds})"))
            );
        }
        // A page of each kind, of which the newest make the page.
        format!(
            "SELECT one.id, {ended} AS ended FROM ({kinds}) AS wanted
             CROSS JOIN {table} AS one ON one.id IN ({})",
            page(" AND t.kind = wanted.id")
        )
    };
    let branches: Vec<String> = branches(filter).into_iter().map(branch).collect();
    let columns = "t.id, p.name, k.name, t.state, t.created_ms";
    let lineage = "t.root, t.parent, t.depth, t.agent, t.app_user, t.priority";
    // In this order: whatever the page is taken for, the names are looked up for its rows.
    let names = "CROSS JOIN kind AS k ON k.id = t.kind AND k.tenant = t.tenant
        CROSS JOIN plugin AS p ON p.id = k.plugin AND p.tenant = t.tenant";
    format!(
        "WITH page AS MATERIALIZED (SELECT id, ended FROM ({}) ORDER BY id DESC LIMIT ?3)
         SELECT {columns}, coalesce(t.due_ms, t.run_at_ms), NULL, t.attempts, t.crashes, NULL, {lineage}
         FROM page CROSS JOIN task AS t ON t.id = page.id AND page.ended = 0 {names}
         UNION ALL
         SELECT {columns}, t.run_at_ms, t.finished_ms, t.attempts, t.crashes, t.code, {lineage}
         FROM page CROSS JOIN finished AS t ON t.id = page.id AND page.ended = 1 {names}
         ORDER BY 1 DESC",
        branches.join(" UNION ALL ")
    )
}

/// Those of the conditions that are asked for.
fn asked(conditions: &[(bool, &str)]) -> String {
    conditions.iter().filter(|(asked, _)| *asked).map(|(_, condition)| *condition).collect()
}

/// The index of ended tasks by kind.
const BY_KIND: &str = "finished_kind";
/// The table's own order.
const BY_ID: &str = "";

/// Where some of the tasks are found that a filter names.
struct Branch {
    /// Whether they ended, as a number.
    ended: u8,
    table: &'static str,
    index: &'static str,
    /// What holds for their state.
    state: &'static str,
    /// What holds for their root.
    root: &'static str,
}

/// Where tasks of a filter's states are found: in the index of what it names that is most selective. A root is found beside
/// what is below it.
fn branches(filter: &TaskFilter) -> Vec<Branch> {
    let by_kind = filter.kind.is_some() || filter.plugin.is_some();
    let all = if by_kind { BY_KIND } else { "finished_tenant" };
    let incomplete = "finished_incomplete";
    let (pending, running) = ((0, "task_ready", " AND t.state = 0"), (0, "task_running", " AND t.state = 1"));
    let states = match filter.state {
        None => vec![pending, running, (1, all, "")],
        Some(TaskState::Pending) => vec![pending],
        Some(TaskState::Running) => vec![running],
        Some(TaskState::Completed) => vec![(1, all, " AND t.state = 2")],
        Some(TaskState::Failed) => vec![(1, incomplete, " AND t.state <> 2 AND t.state = 3")],
        Some(TaskState::Cancelled) => vec![(1, incomplete, " AND t.state <> 2 AND t.state = 4")],
    };
    let mut branches = Vec::new();
    for (ended, by_state, state) in states {
        let is_live = ended == 0;
        if is_live && !filter.finished.is_all() {
            continue;
        }
        let own = |live, finished| if is_live { live } else { finished };
        let table = own("task", "finished");
        let mut add = |index, root| branches.push(Branch { ended, table, index, state, root });
        match filter {
            TaskFilter { root: Some(_), .. } => {
                add(own("task_root", "finished_root"), " AND t.root = ?9 AND t.parent IS NOT NULL");
                add(BY_ID, " AND t.root = ?9 AND t.id = ?9");
            }
            TaskFilter { group: Some(_), .. } => add(BY_ID, ""),
            TaskFilter { user: Some(_), .. } => add(own("task_user", "finished_user"), ""),
            TaskFilter { agent: Some(_), .. } => add(own("task_agent", "finished_agent"), ""),
            TaskFilter { parent: Some(_), .. } => add(own("task_parent", "finished_parent"), ""),
            _ => add(by_state, ""),
        }
    }
    branches
}

/// How many tasks there are in each state.
pub(crate) async fn counts(readers: &SqlitePool, tenant: TenantId) -> Result<TaskCounts, StoreError> {
    let row = sqlx::query(COUNTS).bind(tenant.0).fetch_optional(readers).await.map_err(store_error)?;
    let Some(row) = row else { return Ok(TaskCounts::default()) };
    let number = |column: usize| row.try_get::<i64, _>(column).map(|number| number.max(0) as u64);
    let counts = || {
        Ok(TaskCounts {
            pending: number(0)?,
            running: number(1)?,
            completed: number(2)?,
            failed: number(3)?,
            cancelled: number(4)?,
        })
    };
    counts().map_err(store_error)
}

/// Live tasks of every tenant that has any.
pub(crate) async fn live(readers: &SqlitePool) -> Result<HashMap<TenantId, u64>, StoreError> {
    let query = sqlx::query("SELECT tenant, live FROM tenant_count WHERE live > 0");
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let pair = |row: &SqliteRow| Ok((TenantId(row.try_get(0)?), row.try_get::<i64, _>(1)?.max(0) as u64));
    rows.iter().map(pair).collect::<Result<_, _>>().map_err(store_error)
}

/// The kept logs of a task's attempts.
pub(crate) async fn logs(
    readers: &SqlitePool,
    tenant: TenantId,
    id: TaskId,
) -> Result<Vec<(u32, Bytes)>, StoreError> {
    let query = "SELECT attempt, bytes FROM attempt_log WHERE task = ?1 AND tenant = ?2 ORDER BY attempt";
    let rows = sqlx::query(query).bind(id.0).bind(tenant.0).fetch_all(readers).await.map_err(store_error)?;
    let pair = |row: &SqliteRow| Ok((row.try_get(0)?, Bytes::from(row.try_get::<Vec<u8>, _>(1)?)));
    rows.iter().map(pair).collect::<Result<_, _>>().map_err(store_error)
}

/// Whether the file answers.
pub(crate) async fn ping(readers: &SqlitePool) -> Result<(), StoreError> {
    let query = sqlx::query("SELECT last FROM sequence WHERE name = 'task'");
    query.fetch_one(readers).await.map(drop).map_err(store_error)
}
