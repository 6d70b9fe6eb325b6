//! Reads: always one tenant's, always one statement, so that every answer is of one moment.

use std::collections::HashMap;

use bytes::Bytes;
use keiko_core::id::{AgentId, GroupId, TaskId, TenantId, Token, UserId};
use keiko_core::port::StoreError;
use keiko_core::task::{
    AttemptView, Lineage, Payload, TaskCounts, TaskFilter, TaskState, TaskSummary, TaskView,
};
use keiko_core::tree::Tree;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::pool::Pool;
use super::row::{count, get, large_count, name};
use super::segment::{around, is_in};
use crate::admit::read_type;
use crate::format::{Undecodable, check_end, decode_attempts, decode_budget, decode_failure, read_priority};
use crate::segment::task::input_of;
use crate::tree::read;
use crate::trouble::undecodable;

/// A task, live or ended, with its attempts as `format::decode_attempts` reads them: kept ones, and the one that
/// ended it.
pub(crate) const TASK: &str = concat!(
    "
    WITH head AS (
        SELECT id, tenant, kind, CASE WHEN holder IS NULL THEN 0 ELSE 1 END AS state, created_ms,
            coalesce(due_ms, run_at_ms) AS run_at_ms, NULL::bigint AS finished_ms, attempts, crashes, NULL AS code, root, parent, depth, token, NULL AS message,
            NULL AS detail, NULL AS result_type, NULL::bytea AS result, NULL AS last, agent, app_user,
            priority, budget, task_group, slot_key
        FROM task WHERE id = $1 AND tenant = $2
        UNION ALL
        SELECT $1, tenant, kind, CASE WHEN holder IS NULL THEN 0 ELSE 1 END, created_ms, run_at_ms, NULL, 0, 0, NULL, $1,
            NULL, 0, token, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, budget, NULL, NULL
        FROM ",
    around!("$1"),
    " AS s WHERE s.tenant = $2 AND ",
    is_in!("$1"),
    "
        UNION ALL
        SELECT f.id, f.tenant, f.kind, f.state, f.created_ms, f.run_at_ms, f.finished_ms, f.attempts, f.crashes,
            f.code, f.root, f.parent, f.depth, f.token, f.message, f.detail, f.result_type, f.result,
            CASE WHEN f.started_ms IS NOT NULL THEN json_build_array(json_build_array(f.earlier + f.attempts,
                f.started_ms, f.fuel_used, f.memory_bytes_peak, f.host_calls, f.elapsed_us, f.taint, f.effects,
                f.version, v.name, encode(v.digest, 'hex'), f.code, f.message, f.detail))::text END,
            f.agent, f.app_user, f.priority, f.budget, f.task_group, f.slot_key
        FROM finished AS f LEFT JOIN plugin_version AS v ON v.id = f.version AND v.tenant = f.tenant
        WHERE f.id = $1 AND f.tenant = $2)
    SELECT h.id, p.name, k.name, h.state, h.created_ms, h.run_at_ms, h.finished_ms, h.attempts, h.crashes, h.code,
        h.root, h.parent, h.depth, h.agent, h.app_user, h.priority, h.token, h.message, h.detail, h.result_type, h.result, h.last,
        (SELECT json_agg(json_build_array(a.number, a.started_ms, a.fuel_used, a.memory_bytes_peak,
                a.host_calls, a.elapsed_us, a.taint, a.effects, a.version, v.name, encode(v.digest, 'hex'), a.code,
                a.message, a.detail) ORDER BY a.number)::text
            FROM attempt AS a LEFT JOIN plugin_version AS v ON v.id = a.version AND v.tenant = a.tenant
            WHERE a.task = h.id AND a.tenant = h.tenant) AS kept,
        o.fuel_max, o.host_calls_max, o.fuel_used, o.host_calls_used, h.budget, h.task_group, h.slot_key
    FROM head AS h
    LEFT JOIN tree AS o ON o.root = h.id AND o.tenant = h.tenant
    JOIN kind AS k ON k.id = h.kind AND k.tenant = h.tenant
    JOIN plugin AS p ON p.id = k.plugin AND p.tenant = h.tenant"
);

/// What a task is given; of one in a segment, with the first number of that, what all in it are given. It is not kept of what
/// has completed.
pub(crate) const INPUT: &str = concat!(
    "SELECT input_type, input, NULL::bigint AS first FROM task WHERE id = $1 AND tenant = $2
    UNION ALL
    SELECT NULL, s.tasks, s.first FROM ",
    around!("$1"),
    " AS s WHERE s.tenant = $2 AND ",
    is_in!("$1"),
    "
    UNION ALL
    SELECT input_type, input, NULL FROM finished WHERE id = $1 AND tenant = $2 AND state <> 2"
);

/// Tasks in each state: pending ones are counted, the others are kept counts.
pub(crate) const COUNTS: &str = "
    SELECT p.pending, c.live - p.pending, c.completed, c.failed, c.cancelled
    FROM tenant_count AS c, (SELECT (SELECT count(*) FROM task WHERE tenant = $1 AND holder IS NULL)
        + (SELECT coalesce(sum(live), 0) FROM task_segment WHERE tenant = $1 AND holder IS NULL) AS pending) AS p
    WHERE c.tenant = $1";

/// A task with its result and its attempts.
pub(crate) async fn task(pool: &Pool, tenant: TenantId, id: TaskId) -> Result<Option<TaskView>, StoreError> {
    let mut connection = pool.by_key(tenant).await?;
    let row = connection.row(sqlx::query(TASK).bind(id.0).bind(connection.id().0)).await?;
    row.as_ref().map(view).transpose()
}

/// What a task is given, until it completes.
pub(crate) async fn input(pool: &Pool, tenant: TenantId, id: TaskId) -> Result<Option<Payload>, StoreError> {
    let mut connection = pool.by_key(tenant).await?;
    let row = connection.row(sqlx::query(INPUT).bind(id.0).bind(connection.id().0)).await?;
    let Some(row) = row else { return Ok(None) };
    let bytes: Option<Vec<u8>> = get(&row, 1)?;
    let bytes = Bytes::from(bytes.ok_or_else(|| undecodable(Undecodable("input")))?);
    match get::<Option<i64>>(&row, 2)? {
        Some(first) => input_of(first, &bytes, id).map(Some).map_err(undecodable),
        None => Ok(Some(Payload { content_type: read_type(get(&row, 0)?), bytes })),
    }
}

fn view(row: &PgRow) -> Result<TaskView, StoreError> {
    let summary = summary(row)?;
    let (message, detail): (Option<String>, Option<&str>) = (get(row, 17)?, get(row, 18)?);
    let failure = match &summary.code {
        Some(code) => Some(decode_failure(code, message.unwrap_or_default(), detail).map_err(undecodable)?),
        None => None,
    };
    let result: Option<Vec<u8>> = get(row, 20)?;
    let content_type = read_type(get(row, 19)?);
    check_end(summary.state, result.is_some(), failure.is_some()).map_err(undecodable)?;
    Ok(TaskView {
        token: Token(get(row, 16)?),
        result: result.map(|bytes| Payload { content_type, bytes: bytes.into() }),
        attempts: attempts(row)?,
        tree: tree(row)?,
        group: get::<Option<i64>>(row, 28)?.map(GroupId),
        slot_key: get(row, 29)?,
        budget: decode_budget(get(row, 27)?).unwrap_or_default(),
        summary,
        failure,
    })
}

fn tree(row: &PgRow) -> Result<Option<Tree>, StoreError> {
    let Some(fuel_max) = get(row, 23)? else { return Ok(None) };
    Ok(Some(read([fuel_max, get(row, 24)?, get(row, 25)?, get(row, 26)?])))
}

fn attempts(row: &PgRow) -> Result<Vec<AttemptView>, StoreError> {
    let (kept, last): (Option<&str>, Option<&str>) = (get(row, 22)?, get(row, 21)?);
    let mut attempts = Vec::new();
    for text in [kept, last].into_iter().flatten() {
        attempts.extend(decode_attempts(text).map_err(undecodable)?);
    }
    Ok(attempts)
}

/// The first sixteen columns of a task: see [`list_text`].
pub(crate) fn summary(row: &PgRow) -> Result<TaskSummary, StoreError> {
    let state = TaskState::numbered(i64::from(get::<i32>(row, 3)?));
    Ok(TaskSummary {
        id: TaskId(get(row, 0)?),
        plugin: name(row, 1, "plugin name")?,
        kind: name(row, 2, "kind name")?,
        state: state.ok_or_else(|| undecodable(Undecodable("task state")))?,
        created_ms: get(row, 4)?,
        run_at_ms: get(row, 5)?,
        finished_ms: get(row, 6)?,
        attempts: count(row, 7)?,
        crashes: count(row, 8)?,
        code: get(row, 9)?,
        lineage: Lineage {
            root: TaskId(get(row, 10)?),
            parent: get::<Option<i64>>(row, 11)?.map(TaskId),
            depth: count(row, 12)?,
        },
        agent: get::<Option<i64>>(row, 13)?.map(AgentId),
        user: get::<Option<i64>>(row, 14)?.map(UserId),
        priority: read_priority(get::<Option<i16>>(row, 15)?.map(i64::from)).map_err(undecodable)?,
    })
}

/// Up to `limit` tasks, newest first.
pub(crate) async fn list(
    pool: &Pool,
    tenant: TenantId,
    filter: &TaskFilter,
    limit: u32,
) -> Result<Vec<TaskSummary>, StoreError> {
    if filter.fits_nothing() {
        return Ok(Vec::new());
    }
    let (from, below) = filter.ids();
    let query = |tenant: TenantId| {
        sqlx::query(AssertSqlSafe(list_text(filter)))
            .bind(tenant.0)
            .bind(below.0)
            .bind(i64::from(limit))
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
            .bind(filter.finished.to_ms)
    };
    pool.list(tenant, query).await?.iter().map(summary).collect()
}

/// The statement for a filter, made of fixed pieces only; values are always parameters: tenant, the id that all are below,
/// limit, plugin, kind, parent, agent, user, root, group, the first id, and the times of creation and end. Each branch finds
/// a page of ids in the index that serves it, kind by kind when kinds are asked for; the rows are looked up for the page
/// alone.
pub(crate) fn list_text(filter: &TaskFilter) -> String {
    let (created, finished) = (filter.created, filter.finished);
    let conditions = asked(&[
        (true, "t.tenant = $1 AND t.id < $2"),
        (filter.parent.is_some(), " AND t.parent = $6"),
        (filter.agent.is_some(), " AND t.agent = $7"),
        (filter.user.is_some(), " AND t.app_user = $8"),
        (filter.group.is_some(), " AND t.task_group = $10"),
        (filter.group.is_some() || created.from_ms.is_some(), " AND t.id >= $11"),
        (created.from_ms.is_some(), " AND t.created_ms >= $12"),
        (created.to_ms.is_some(), " AND t.created_ms <= $13"),
        (finished.from_ms.is_some(), " AND t.finished_ms >= $14"),
        (finished.to_ms.is_some(), " AND t.finished_ms <= $15"),
    ]);
    let names =
        asked(&[(filter.plugin.is_some(), " AND p.name = $4"), (filter.kind.is_some(), " AND k.name = $5")]);
    let branch = |Branch { ended, table, state, root }: Branch| {
        let page = |more: &str| {
            format!(
                "SELECT t.id, {ended} AS ended FROM {table} AS t WHERE {conditions}{state}{root}{more}
                 ORDER BY t.id DESC LIMIT $3"
            )
        };
        if names.is_empty() {
            return format!("({})", page(""));
        }
        format!(
            "SELECT one.id, one.ended FROM kind AS k JOIN plugin AS p ON p.id = k.plugin AND p.tenant = k.tenant
             CROSS JOIN LATERAL ({}) AS one WHERE k.tenant = $1{names}",
            page(" AND t.kind = k.id")
        )
    };
    let branches: Vec<String> =
        branches(filter).into_iter().map(branch).chain(segments(filter, &names)).collect();
    let lineage = "t.root, t.parent, t.depth, t.agent, t.app_user, t.priority";
    let names = "JOIN kind AS k ON k.id = t.kind AND k.tenant = t.tenant
        JOIN plugin AS p ON p.id = k.plugin AND p.tenant = t.tenant";
    // Parameters that a filter does not use still have to have a type.
    format!(
        "WITH page AS MATERIALIZED (SELECT id, ended FROM ({}) AS found ORDER BY id DESC LIMIT $3),
         unused AS (SELECT $4::text, $5::text, $6::bigint, $7::bigint, $8::bigint, $9::bigint, $10::bigint, $11::bigint,
            $12::bigint, $13::bigint, $14::bigint, $15::bigint)
         SELECT t.id, p.name, k.name, CASE WHEN t.holder IS NULL THEN 0 ELSE 1 END, t.created_ms,
            coalesce(t.due_ms, t.run_at_ms), NULL::bigint, t.attempts, t.crashes, NULL, {lineage}
         FROM page JOIN task AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 0 {names}
         UNION ALL
         SELECT page.id, p.name, k.name, CASE WHEN t.holder IS NULL THEN 0 ELSE 1 END, t.created_ms, t.run_at_ms,
            NULL, 0, 0, NULL, page.id, NULL, 0, NULL, NULL, NULL
         FROM page CROSS JOIN LATERAL {around} AS t {names}
         WHERE page.ended = 2
         UNION ALL
         SELECT t.id, p.name, k.name, t.state, t.created_ms, t.run_at_ms,
            t.finished_ms, t.attempts, t.crashes, t.code, {lineage}
         FROM page JOIN finished AS t ON t.id = page.id AND t.tenant = $1 AND page.ended = 1 {names}
         ORDER BY 1 DESC",
        branches.join(" UNION ALL "),
        around = around!("page.id"),
    )
}

/// Where tasks of a filter are found in segments, each of which has one at least: all that is asked for is theirs in common, but
/// for their ids. A page ends in the segment behind its last one at most.
fn segments(filter: &TaskFilter, names: &str) -> Option<String> {
    let is_nobodys = filter.parent.is_none() && filter.agent.is_none() && filter.user.is_none();
    let may_fit = is_nobodys && filter.group.is_none() && filter.finished.is_all();
    let state = match filter.state {
        None => "",
        Some(TaskState::Pending) => " AND t.holder IS NULL",
        Some(TaskState::Running) => " AND t.holder IS NOT NULL",
        Some(_) => return None,
    };
    let common = asked(&[
        (true, state),
        (filter.created.from_ms.is_some(), " AND t.first >= $11 - 127 AND t.created_ms >= $12"),
        (filter.created.to_ms.is_some(), " AND t.created_ms <= $13"),
        (filter.root.is_some(), " AND t.first <= $9 AND t.first >= $9 - 127"),
    ]);
    let own = asked(&[
        (filter.created.from_ms.is_some(), " AND t.first + place >= $11"),
        (filter.root.is_some(), " AND t.first + place = $9"),
    ]);
    let (from, named) = match names {
        "" => ("task_segment AS t", ""),
        _ => (
            "kind AS k JOIN plugin AS p ON p.id = k.plugin AND p.tenant = k.tenant JOIN task_segment AS t ON t.kind = k.id",
            " AND k.tenant = $1",
        ),
    };
    may_fit.then(|| {
        format!(
            "(SELECT t.first + place AS id, 2 AS ended FROM (
                SELECT t.first, t.gone FROM {from} WHERE t.tenant = $1 AND t.first < $2{common}{named}{names}
                ORDER BY t.first DESC LIMIT $3 + 1) AS t
             CROSS JOIN generate_series(0, 127) AS place
             WHERE get_bit(t.gone, place) = 0 AND t.first + place < $2{own} ORDER BY id DESC LIMIT $3)"
        )
    })
}

/// Those of the conditions that are asked for.
fn asked(conditions: &[(bool, &str)]) -> String {
    conditions.iter().filter(|(asked, _)| *asked).map(|(_, condition)| *condition).collect()
}

/// Where some of the tasks are found that a filter names.
struct Branch {
    /// Whether they ended, as a number.
    ended: u8,
    table: &'static str,
    /// What holds for their state.
    state: &'static str,
    /// What holds for their root.
    root: &'static str,
}

/// Where tasks of a filter's states are found. A root is found beside what is below it.
fn branches(filter: &TaskFilter) -> Vec<Branch> {
    let states = match filter.state {
        None => vec![(0, "task", ""), (1, "finished", "")],
        Some(TaskState::Pending) => vec![(0, "task", " AND t.holder IS NULL")],
        Some(TaskState::Running) => vec![(0, "task", " AND t.holder IS NOT NULL")],
        Some(TaskState::Completed) => vec![(1, "finished", " AND t.state = 2")],
        Some(TaskState::Failed) => vec![(1, "finished", " AND t.state <> 2 AND t.state = 3")],
        Some(TaskState::Cancelled) => vec![(1, "finished", " AND t.state <> 2 AND t.state = 4")],
    };
    let roots: &[&str] = match filter.root {
        None => &[""],
        Some(_) => &[" AND t.root = $9 AND t.parent IS NOT NULL", " AND t.root = $9 AND t.id = $9"],
    };
    let states = states.into_iter().filter(|(ended, ..)| *ended == 1 || filter.finished.is_all());
    let branches = states
        .flat_map(|(ended, table, state)| roots.iter().map(move |root| Branch { ended, table, state, root }));
    branches.collect()
}

/// How many tasks there are in each state.
pub(crate) async fn counts(pool: &Pool, tenant: TenantId) -> Result<TaskCounts, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let row = connection.row(sqlx::query(COUNTS).bind(connection.id().0)).await?;
    let Some(row) = row else { return Ok(TaskCounts::default()) };
    Ok(TaskCounts {
        pending: large_count(&row, 0)?,
        running: large_count(&row, 1)?,
        completed: large_count(&row, 2)?,
        failed: large_count(&row, 3)?,
        cancelled: large_count(&row, 4)?,
    })
}

/// Live tasks of every tenant that has any.
pub(crate) async fn live(pool: &Pool) -> Result<HashMap<TenantId, u64>, StoreError> {
    let query = sqlx::query("SELECT tenant, live FROM tenant_count WHERE live > 0");
    let rows = pool.system().await?.rows(query).await?;
    rows.iter().map(|row| Ok((TenantId(get(row, 0)?), large_count(row, 1)?))).collect()
}

/// The kept logs of a task's attempts.
pub(crate) async fn logs(pool: &Pool, tenant: TenantId, id: TaskId) -> Result<Vec<(u32, Bytes)>, StoreError> {
    let mut connection = pool.by_key(tenant).await?;
    let query = "SELECT attempt, bytes FROM attempt_log WHERE task = $1 AND tenant = $2 ORDER BY attempt";
    let rows = connection.rows(sqlx::query(query).bind(id.0).bind(connection.id().0)).await?;
    rows.iter().map(|row| Ok((count(row, 0)?, Bytes::from(get::<Vec<u8>>(row, 1)?)))).collect()
}

/// Whether the database answers.
pub(crate) async fn ping(pool: &Pool) -> Result<(), StoreError> {
    pool.system().await?.row(sqlx::query("SELECT last FROM sequence WHERE name = 'task'")).await.map(drop)
}
