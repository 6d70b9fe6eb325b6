//! Ends that no attempt wrote: cancel, quarantine, a row that cannot be read. And the way back, a retry by hand.
//!
//! A retry by hand keeps the task's id, token and history. Its attempts count from none again; the numbers of
//! kept attempts and logs go on behind the earlier ones, so a number names one attempt for ever.

use keiko_core::code::Code;
use keiko_core::id::{AgentId, TaskId, TenantId};
use keiko_core::port::StoreError;
use keiko_core::priority::AGEING_MS;
use keiko_core::task::{CancelAnswer, RetryAnswer, TaskState};
use sqlx::Row;

use super::count::{AgentChange, Change, Changes, Spent, Usage};
use super::error::store_error;
use super::session::{Session, json};
use crate::ending::End;
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// Copies live tasks to the finished ones.
pub(crate) const FINISH: &str = "
    INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, parent, depth, code, message, budget, trace, input_type, input_bytes, input, agent,
        app_user, priority)
    SELECT id, tenant, kind, ?2, token + ?3, attempts, crashes + ?4, earlier, created_ms, coalesce(due_ms, run_at_ms),
        ?5, root, parent, depth, ?6, ?7, budget, trace, input_type, input_bytes, input, agent, app_user, priority
    FROM task WHERE id IN (SELECT value FROM json_each(?1)) AND tenant = coalesce(?8, tenant)
    RETURNING id, tenant, agent";

/// Copies an ended task back, and the attempt that ended it to the others.
const REVIVE: &str = "
    INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail)
    SELECT id, earlier + attempts, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail
    FROM finished WHERE id = ?1 AND tenant = ?2 AND started_ms IS NOT NULL;
    INSERT INTO task (id, tenant, kind, token, earlier, created_ms, run_at_ms, root, parent, depth, budget, trace,
        input_type, input_bytes, input, agent, app_user, priority, due_ms)
    SELECT id, tenant, kind, token, earlier + attempts, created_ms, ?3 - coalesce(priority, 0) * ?4, root, parent, depth,
        budget, trace, input_type, input_bytes, input, agent, app_user, priority, iif(priority IS NULL, NULL, ?3)
    FROM finished WHERE id = ?1 AND tenant = ?2;
    DELETE FROM finished WHERE id = ?1 AND tenant = ?2";

/// Cancels a task that has not ended.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    now_ms: i64,
) -> Result<CancelAnswer, StoreError> {
    if finish(session, &[id], &End::cancelled(tenant), now_ms).await? > 0 {
        return Ok(CancelAnswer::Cancelled);
    }
    let found = find(session, tenant, id).await?;
    Ok(found.map_or(CancelAnswer::NotFound, |found| CancelAnswer::AlreadyTerminal(found.state)))
}

/// Ends tasks that crashed their host alone.
pub(crate) async fn quarantine(session: &mut Session, ids: &[TaskId], now_ms: i64) -> Result<(), StoreError> {
    finish(session, ids, &End::QUARANTINED, now_ms).await.map(drop)
}

/// Ends tasks whose rows cannot be read, so that they do not stop others.
pub(crate) async fn fail_undecodable(
    session: &mut Session,
    ids: &[TaskId],
    now_ms: i64,
) -> Result<(), StoreError> {
    let ended = finish(session, ids, &End::UNDECODABLE, now_ms).await?;
    if ended > 0 {
        tracing::error!(items = ended, "tasks that cannot be read were ended");
    }
    Ok(())
}

/// Makes a failed or cancelled task pending again.
pub(crate) async fn retry(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    queue_max: u64,
    now_ms: i64,
) -> Result<RetryAnswer, StoreError> {
    let Some(found) = find(session, tenant, id).await? else { return Ok(RetryAnswer::NotFound) };
    let (state, live) = (found.state, found.live);
    let change = match state {
        TaskState::Failed => Change { live: 1, failed: -1, ..Change::default() },
        TaskState::Cancelled => Change { live: 1, cancelled: -1, ..Change::default() },
        TaskState::Pending | TaskState::Running | TaskState::Completed => {
            return Ok(RetryAnswer::NotRetryable(state));
        }
    };
    if live >= queue_max {
        return Ok(RetryAnswer::QueueFull { live });
    }
    session.run(sqlx::query(REVIVE).bind(id.0).bind(tenant.0).bind(now_ms).bind(AGEING_MS)).await?;
    let mut changes = Changes::default();
    changes.add(tenant, change);
    changes.add_agent(tenant, found.agent, AgentChange::end(state, found.elapsed_us, -1));
    changes.store(session).await?;
    Ok(RetryAnswer::Retried)
}

/// What a cancel or a retry looks at.
struct Found {
    state: TaskState,
    agent: Option<AgentId>,
    /// Running time of the attempt that ended the task.
    elapsed_us: Option<i64>,
    /// Live tasks of the tenant.
    live: u64,
}

async fn find(session: &mut Session, tenant: TenantId, id: TaskId) -> Result<Option<Found>, StoreError> {
    let query = "SELECT t.state, c.live, t.agent, t.elapsed_us FROM (
            SELECT tenant, state, agent, NULL AS elapsed_us FROM task WHERE id = ?1 AND tenant = ?2
            UNION ALL SELECT tenant, state, agent, elapsed_us FROM finished WHERE id = ?1 AND tenant = ?2) AS t
        JOIN tenant_count AS c ON c.tenant = t.tenant";
    let rows = session.rows(sqlx::query(query).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let number: i64 = row.try_get(0).map_err(store_error)?;
    let state = TaskState::numbered(number).ok_or_else(|| undecodable(Undecodable("task state")))?;
    let live: i64 = row.try_get(1).map_err(store_error)?;
    let agent: Option<i64> = row.try_get(2).map_err(store_error)?;
    let elapsed_us = row.try_get(3).map_err(store_error)?;
    Ok(Some(Found { state, agent: agent.map(AgentId), elapsed_us, live: live.max(0) as u64 }))
}

/// Moves live tasks to the finished ones and counts them; returns how many there were.
async fn finish(session: &mut Session, ids: &[TaskId], end: &End, now_ms: i64) -> Result<usize, StoreError> {
    if ids.is_empty() {
        return Ok(0);
    }
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let query = sqlx::query(FINISH).bind(json(&ids)).bind(end.state as i64).bind(end.token).bind(end.crashes);
    let query = query.bind(now_ms).bind(end.code.map(Code::as_str)).bind(end.message);
    let rows = session.rows(query.bind(end.tenant.map(|tenant| tenant.0))).await?;
    let (mut changes, mut usage) = (Changes::default(), Usage::default());
    let mut moved: Vec<i64> = Vec::new();
    for row in &rows {
        moved.push(row.try_get(0).map_err(store_error)?);
        let tenant = TenantId(row.try_get(1).map_err(store_error)?);
        let agent: Option<i64> = row.try_get(2).map_err(store_error)?;
        changes.add_agent(tenant, agent.map(AgentId), AgentChange::end(end.state, None, 1));
        let failed = i64::from(end.state == TaskState::Failed);
        let cancelled = i64::from(end.state == TaskState::Cancelled);
        changes.add(tenant, Change { live: -1, completed: 0, failed, cancelled });
        if failed > 0 {
            usage.add(tenant, Spent { failed, ..Spent::default() });
        }
    }
    if !moved.is_empty() {
        let delete = "DELETE FROM task WHERE id IN (SELECT value FROM json_each(?1))";
        session.run(sqlx::query(delete).bind(json(&moved))).await?;
        changes.store_with(&usage, now_ms, session).await?;
    }
    Ok(moved.len())
}
