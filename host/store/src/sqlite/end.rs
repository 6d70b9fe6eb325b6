//! Ends that no attempt wrote: cancel, quarantine, a row that cannot be read. And the way back, a retry by hand.
//!
//! A retry by hand keeps the task's id, token and history. Its attempts count from none again; the numbers of
//! kept attempts and logs go on behind the earlier ones, so a number names one attempt for ever.

use keiko_core::code::Code;
use keiko_core::id::{AgentId, GroupId, KindId, TaskId, TenantId};
use keiko_core::port::{Expired, FailedByKind, StoreError};
use keiko_core::priority::AGEING_MS;
use keiko_core::task::{Amendment, CancelAnswer, RetryAnswer, TaskState};
use keiko_core::time_out::Ends;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::count::{AgentChange, Change, Changes, Spent, Usage};
use super::error::store_error;
use super::once;
use super::session::{Session, json};
use super::submit::INLINE_BYTES_MAX;
use crate::admit::stored_type;
use crate::ending::End;
use crate::format::{Undecodable, decode_budget, encode_budget};
use crate::time_out::{Candidate, Over};
use crate::trouble::undecodable;

/// Copies live tasks to the finished ones.
pub(crate) const FINISH: &str = "
    INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, parent, depth, code, message, detail, budget, trace, input_type, input_bytes, input, agent,
        app_user, priority, task_group, slot_key, unique_key)
    SELECT id, tenant, kind, ?2, token + ?3, attempts, crashes + ?4, earlier, created_ms, coalesce(due_ms, run_at_ms),
        ?5, root, parent, depth, ?6, ?7, ?9, budget, trace, input_type, input_bytes, input, agent, app_user, priority,
        task_group, slot_key, unique_key
    FROM task WHERE id IN (SELECT value FROM json_each(?1)) AND tenant = coalesce(?8, tenant)
    RETURNING id, tenant, agent, task_group, kind";

/// Up to `?2` tasks whose time is over at `?1`: those that wait too long for their first attempt, and those that should
/// have ended.
pub(crate) const OVER: &str = "
    SELECT id, tenant, budget, start_by_ms, end_by_ms, state = 0 AND attempts = 0 AND crashes = 0, task_group
    FROM task
    WHERE id IN (
        SELECT id FROM task INDEXED BY task_start_by
            WHERE start_by_ms IS NOT NULL AND start_by_ms <= ?1 AND state = 0 AND attempts = 0 AND crashes = 0
        UNION ALL SELECT id FROM task INDEXED BY task_end_by WHERE end_by_ms IS NOT NULL AND end_by_ms <= ?1
        LIMIT ?2)";

/// When the first time-out behind `?1` is over.
pub(crate) const NEXT_TIME_OUT: &str = "
    SELECT min(at_ms) FROM (
        SELECT min(start_by_ms) AS at_ms FROM task INDEXED BY task_start_by
            WHERE start_by_ms IS NOT NULL AND start_by_ms > ?1
        UNION ALL SELECT min(end_by_ms) FROM task INDEXED BY task_end_by
            WHERE end_by_ms IS NOT NULL AND end_by_ms > ?1)";

/// Copies an ended task back, and the attempt that ended it to the others.
const REVIVE: &str = "
    INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail)
    SELECT id, earlier + attempts, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail
    FROM finished WHERE id = ?1 AND tenant = ?2 AND started_ms IS NOT NULL;
    INSERT INTO task (id, tenant, kind, token, earlier, created_ms, run_at_ms, root, parent, depth, budget, trace,
        input_type, input_bytes, input, agent, app_user, priority, due_ms, start_by_ms, end_by_ms, task_group, slot_key,
        unique_key)
    SELECT id, tenant, kind, token, earlier + attempts, created_ms, ?3 - coalesce(priority, 0) * ?4, root, parent, depth,
        budget, trace, input_type, input_bytes, input, agent, app_user, priority, iif(priority IS NULL, NULL, ?3),
        ?3 + (budget ->> 'queued_ms'),
        ?3 + coalesce(min(budget ->> 'total_ms', budget ->> 'tree_ms'), budget ->> 'total_ms', budget ->> 'tree_ms'),
        task_group, slot_key, unique_key
    FROM finished WHERE id = ?1 AND tenant = ?2;
    DELETE FROM finished WHERE id = ?1 AND tenant = ?2";

/// Gives an ended task another input: in its row, `?5`, or beside it, `?6`.
const AMEND_INPUT: &str = "
    UPDATE finished SET input_type = ?3, input_bytes = ?4, input = ?5 WHERE id = ?1 AND tenant = ?2;
    DELETE FROM task_input WHERE task = ?1 AND tenant = ?2;
    INSERT INTO task_input (task, tenant, bytes) SELECT ?1, ?2, ?6 WHERE ?6 IS NOT NULL";

/// Cancels a task that has not ended.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    now_ms: i64,
) -> Result<CancelAnswer, StoreError> {
    if !finish(session, &[id], &End::cancelled(tenant), now_ms).await?.is_empty() {
        return Ok(CancelAnswer::Cancelled);
    }
    let found = find(session, tenant, id).await?;
    Ok(found.map_or(CancelAnswer::NotFound, |found| CancelAnswer::AlreadyTerminal(found.state)))
}

/// Ends tasks that crashed their host alone.
pub(crate) async fn quarantine(
    session: &mut Session,
    ids: &[TaskId],
    now_ms: i64,
) -> Result<FailedByKind, StoreError> {
    finish(session, ids, &End::QUARANTINED, now_ms).await
}

/// Ends tasks whose rows cannot be read, so that they do not stop others.
pub(crate) async fn fail_undecodable(
    session: &mut Session,
    ids: &[TaskId],
    now_ms: i64,
) -> Result<(), StoreError> {
    let ended: u64 = finish(session, ids, &End::UNDECODABLE, now_ms).await?.values().sum();
    if ended > 0 {
        tracing::error!(items = ended, "tasks that cannot be read were ended");
    }
    Ok(())
}

/// Ends tasks whose time is over.
pub(crate) async fn expire(
    session: &mut Session,
    now_ms: i64,
    count_max: u32,
) -> Result<Expired, StoreError> {
    let rows = session.rows(sqlx::query(OVER).bind(now_ms).bind(count_max)).await?;
    let over = Over::of(rows.iter().map(candidate).collect::<Result<_, _>>()?, now_ms);
    let mut failed = FailedByKind::default();
    for (ids, end) in over.ends() {
        for (kind, count) in finish(session, ids, &end, now_ms).await? {
            *failed.entry(kind).or_default() += count;
        }
    }
    let next = session.rows(sqlx::query(NEXT_TIME_OUT).bind(now_ms)).await?;
    let next_ms = next.first().map_or(Ok(None), |row| row.try_get(0)).map_err(store_error)?;
    Ok(over.expired(failed, rows.len() == count_max as usize, next_ms, now_ms))
}

fn candidate(row: &SqliteRow) -> Result<Candidate, StoreError> {
    let budget: Option<&str> = row.try_get(2).map_err(store_error)?;
    Ok(Candidate {
        id: TaskId(row.try_get(0).map_err(store_error)?),
        tenant: TenantId(row.try_get(1).map_err(store_error)?),
        // What cannot be read names no number, and is over all the same.
        budget: decode_budget(budget).unwrap_or_default(),
        ends: Ends {
            start_by_ms: row.try_get(3).map_err(store_error)?,
            end_by_ms: row.try_get(4).map_err(store_error)?,
        },
        waits: row.try_get(5).map_err(store_error)?,
        group: row.try_get::<Option<i64>, _>(6).map_err(store_error)?.map(GroupId),
    })
}

/// Makes a failed or cancelled task pending again, changed by the amendment.
pub(crate) async fn retry(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    amendment: &Amendment,
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
    let onces = match once::take_again(session, tenant, id, now_ms).await? {
        Ok(onces) => onces,
        Err(other) => return Ok(RetryAnswer::Taken(other)),
    };
    if live >= queue_max {
        return Ok(RetryAnswer::QueueFull { live });
    }
    once::store(session, &onces).await?;
    amend(session, tenant, id, amendment).await?;
    session.run(sqlx::query(REVIVE).bind(id.0).bind(tenant.0).bind(now_ms).bind(AGEING_MS)).await?;
    let mut changes = Changes::default();
    changes.add(tenant, change);
    changes.add_agent(tenant, found.agent, AgentChange::end(state, found.elapsed_us, -1));
    changes.add_group(tenant, found.group, state, -1, now_ms);
    changes.store(session).await?;
    Ok(RetryAnswer::Retried)
}

/// Changes what an ended task is given and asks for.
async fn amend(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    amendment: &Amendment,
) -> Result<(), StoreError> {
    if !amendment.budget.is_empty() {
        let query = sqlx::query("SELECT budget FROM finished WHERE id = ?1 AND tenant = ?2");
        let rows = session.rows(query.bind(id.0).bind(tenant.0)).await?;
        let stored: Option<&str> =
            rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(store_error)?;
        let budget = decode_budget(stored).map_err(undecodable)?.changed_by(&amendment.budget);
        let query = sqlx::query("UPDATE finished SET budget = ?3 WHERE id = ?1 AND tenant = ?2");
        session.run(query.bind(id.0).bind(tenant.0).bind(encode_budget(&budget))).await?;
    }
    if let Some(input) = &amendment.input {
        let bytes = &input.bytes;
        let inline = bytes.len() <= INLINE_BYTES_MAX;
        let query = sqlx::query(AMEND_INPUT).bind(id.0).bind(tenant.0).bind(stored_type(input));
        let query = query.bind((!inline).then_some(bytes.len() as i64)).bind(inline.then_some(&bytes[..]));
        session.run(query.bind((!inline).then_some(&bytes[..]))).await?;
    }
    Ok(())
}

/// What a cancel or a retry looks at.
struct Found {
    state: TaskState,
    agent: Option<AgentId>,
    group: Option<GroupId>,
    /// Running time of the attempt that ended the task.
    elapsed_us: Option<i64>,
    /// Live tasks of the tenant.
    live: u64,
}

async fn find(session: &mut Session, tenant: TenantId, id: TaskId) -> Result<Option<Found>, StoreError> {
    let query = "SELECT t.state, c.live, t.agent, t.elapsed_us, t.task_group FROM (
            SELECT tenant, state, agent, NULL AS elapsed_us, task_group FROM task WHERE id = ?1 AND tenant = ?2
            UNION ALL SELECT tenant, state, agent, elapsed_us, task_group FROM finished WHERE id = ?1 AND tenant = ?2) AS t
        JOIN tenant_count AS c ON c.tenant = t.tenant";
    let rows = session.rows(sqlx::query(query).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let number: i64 = row.try_get(0).map_err(store_error)?;
    let state = TaskState::numbered(number).ok_or_else(|| undecodable(Undecodable("task state")))?;
    let live: i64 = row.try_get(1).map_err(store_error)?;
    let agent: Option<i64> = row.try_get(2).map_err(store_error)?;
    let elapsed_us = row.try_get(3).map_err(store_error)?;
    let group = row.try_get::<Option<i64>, _>(4).map_err(store_error)?.map(GroupId);
    Ok(Some(Found { state, agent: agent.map(AgentId), group, elapsed_us, live: live.max(0) as u64 }))
}

/// Moves live tasks to the finished ones and counts them; returns how many there were of each kind.
pub(crate) async fn finish(
    session: &mut Session,
    ids: &[TaskId],
    end: &End,
    now_ms: i64,
) -> Result<FailedByKind, StoreError> {
    let mut kinds = FailedByKind::default();
    if ids.is_empty() {
        return Ok(kinds);
    }
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let query = sqlx::query(FINISH).bind(json(&ids)).bind(end.state as i64).bind(end.token).bind(end.crashes);
    let query = query.bind(now_ms).bind(end.code.map(Code::as_str)).bind(end.message.as_deref());
    let query = query.bind(end.tenant.map(|tenant| tenant.0)).bind(end.detail.as_deref());
    let rows = session.rows(query).await?;
    let (mut changes, mut usage) = (Changes::default(), Usage::default());
    let mut moved: Vec<i64> = Vec::new();
    for row in &rows {
        moved.push(row.try_get(0).map_err(store_error)?);
        let tenant = TenantId(row.try_get(1).map_err(store_error)?);
        *kinds.entry((tenant, KindId(row.try_get(4).map_err(store_error)?))).or_default() += 1;
        let agent: Option<i64> = row.try_get(2).map_err(store_error)?;
        changes.add_agent(tenant, agent.map(AgentId), AgentChange::end(end.state, None, 1));
        let group: Option<i64> = row.try_get(3).map_err(store_error)?;
        changes.add_group(tenant, group.map(GroupId), end.state, 1, now_ms);
        let failed = i64::from(end.state == TaskState::Failed);
        let cancelled = i64::from(end.state == TaskState::Cancelled);
        changes.add(tenant, Change { live: -1, completed: 0, failed, cancelled });
        if failed > 0 {
            usage.add(tenant, Spent { failed: 1, ..Spent::default() });
        }
    }
    if !moved.is_empty() {
        let delete = "DELETE FROM task WHERE id IN (SELECT value FROM json_each(?1))";
        session.run(sqlx::query(delete).bind(json(&moved))).await?;
        changes.store_with(&usage, now_ms, session).await?;
    }
    Ok(kinds)
}
