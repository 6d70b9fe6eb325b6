//! Ends that no attempt wrote: cancel, quarantine, a row that cannot be read. And the way back, a retry by hand.
//!
//! A retry by hand keeps the task's id, token and history. Its attempts count from none again; the numbers of
//! kept attempts and logs go on behind the earlier ones, so a number names one attempt for ever.

use keiko_core::code::Code;
use keiko_core::id::{AgentId, GroupId, KindId, TaskId, TenantId};
use keiko_core::port::{Expired, FailedByKind, StoreError, StoreErrorKind};
use keiko_core::priority::AGEING_MS;
use keiko_core::task::{Amendment, CancelAnswer, RetryAnswer, TaskState};
use keiko_core::time_out::Ends;
use sqlx::postgres::PgRow;

use super::count;
use super::once;
use super::row::{get, stored_text};
use super::segment;
use super::session::Session;
use super::submit::lock_tenants;
use crate::admit::stored_type;
use crate::count::{AgentChange, Change, Changes, Spent, Usage};
use crate::ending::End;
use crate::format::{Undecodable, decode_budget, encode_budget};
use crate::time_out::{Candidate, Over};
use crate::trouble::undecodable;

/// How often a cancel looks for a task that is between live and ended.
const LOOKS: usize = 5;

/// Moves live tasks, in order of their ids, to the finished ones.
pub(crate) const FINISH: &str = "
    WITH gone AS (
        DELETE FROM task AS t USING unnest($1::bigint[]) AS e (id)
        WHERE t.id = e.id AND t.tenant = coalesce($8, t.tenant) RETURNING t.*)
    INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, parent, depth, code, message, detail, budget, trace, input_type, input, agent, app_user,
        priority, task_group, slot_key, unique_key)
    SELECT id, tenant, kind, $2, token + $3, attempts, crashes + $4, earlier, created_ms, coalesce(due_ms, run_at_ms),
        $5, root, parent, depth, $6, $7, $9, budget, trace, input_type, input, agent, app_user, priority, task_group,
        slot_key, unique_key
    FROM gone RETURNING id, tenant, agent, task_group, kind";

/// Up to `$2` tasks whose time is over, which nobody else changes until the commit, with times on the caller's clock, `$1`:
/// those that wait too long for their first attempt, and those that should have ended.
pub(crate) const OVER: &str = "
    SELECT t.id, t.tenant, t.budget, t.start_by_ms - (SELECT keiko_now($1) - $1), t.end_by_ms - (SELECT keiko_now($1) - $1),
        t.holder IS NULL AND t.attempts = 0 AND t.crashes = 0, t.task_group
    FROM task AS t WHERE t.id IN (
        SELECT id FROM task WHERE start_by_ms IS NOT NULL AND start_by_ms <= keiko_now($1) AND holder IS NULL
            AND attempts = 0 AND crashes = 0
        UNION ALL SELECT id FROM task WHERE end_by_ms IS NOT NULL AND end_by_ms <= keiko_now($1)
        LIMIT $2)
    ORDER BY t.id FOR UPDATE SKIP LOCKED";

/// When the first time-out behind the caller's time, `$1`, is over, on its clock.
pub(crate) const NEXT_TIME_OUT: &str = "
    SELECT least(
        (SELECT min(start_by_ms) FROM task WHERE start_by_ms IS NOT NULL AND start_by_ms > keiko_now($1)),
        (SELECT min(end_by_ms) FROM task WHERE end_by_ms IS NOT NULL AND end_by_ms > keiko_now($1)))
        - (SELECT keiko_now($1) - $1)";

/// Moves an ended task back, and the attempt that ended it to the others; whose counts change, and how.
const REVIVE: &str = "
    WITH gone AS (DELETE FROM finished WHERE id = $1 AND tenant = $2 AND state = $4 RETURNING *),
    kept AS (
        INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail)
        SELECT id, earlier + attempts, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail
        FROM gone WHERE started_ms IS NOT NULL),
    revived AS (
        INSERT INTO task (id, tenant, kind, token, earlier, created_ms, run_at_ms, root, parent, depth, budget, trace,
            input_type, input, agent, app_user, priority, due_ms, start_by_ms, end_by_ms, task_group, slot_key,
            unique_key)
        SELECT id, tenant, kind, token, earlier + attempts, created_ms,
            keiko_now($3) - coalesce(priority, 0) * $5::bigint, root, parent, depth, budget, trace, input_type,
            coalesce(input, ''), agent, app_user, priority, CASE WHEN priority IS NOT NULL THEN keiko_now($3) END,
            keiko_now($3) + (budget::json ->> 'queued_ms')::bigint, keiko_now($3) + least((budget::json ->> 'total_ms')::bigint,
                (budget::json ->> 'tree_ms')::bigint), task_group, slot_key, unique_key
        FROM gone)
    SELECT agent, elapsed_us, task_group FROM gone";

/// Cancels a task that has not ended.
pub(crate) async fn cancel(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    now_ms: i64,
) -> Result<CancelAnswer, StoreError> {
    for _ in 0..LOOKS {
        if !finish(session, &[id], &End::cancelled(tenant), now_ms).await?.is_empty() {
            return Ok(CancelAnswer::Cancelled);
        }
        match state(session, tenant, id).await? {
            None => return Ok(CancelAnswer::NotFound),
            Some(state) if state.is_terminal() => return Ok(CancelAnswer::AlreadyTerminal(state)),
            // Retried by hand in between.
            Some(_) => {}
        }
    }
    Err(StoreError::new(StoreErrorKind::Busy, "the task is ended and retried all the time"))
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
    let rows = session.rows(sqlx::query(OVER).bind(now_ms).bind(i64::from(count_max))).await?;
    let over = Over::of(rows.iter().map(candidate).collect::<Result<_, _>>()?, now_ms);
    let mut failed = FailedByKind::default();
    for (ids, end) in over.ends() {
        for (kind, count) in finish(session, ids, &end, now_ms).await? {
            *failed.entry(kind).or_default() += count;
        }
    }
    let next = session.row(sqlx::query(NEXT_TIME_OUT).bind(now_ms)).await?;
    let next_ms = next.as_ref().map_or(Ok(None), |row| get(row, 0))?;
    Ok(over.expired(failed, rows.len() == count_max as usize, next_ms, now_ms))
}

fn candidate(row: &PgRow) -> Result<Candidate, StoreError> {
    Ok(Candidate {
        id: TaskId(get(row, 0)?),
        tenant: TenantId(get(row, 1)?),
        // What cannot be read names no number, and is over all the same.
        budget: decode_budget(get(row, 2)?).unwrap_or_default(),
        ends: Ends { start_by_ms: get(row, 3)?, end_by_ms: get(row, 4)? },
        waits: get(row, 5)?,
        group: get::<Option<i64>>(row, 6)?.map(GroupId),
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
    // First, as every submit does: the quota is exact, and submits under its key are seen.
    let (live, shift_ms) = lock_tenants(session, [tenant].into(), now_ms).await?;
    let Some(state) = state(session, tenant, id).await? else { return Ok(RetryAnswer::NotFound) };
    let change = match state {
        TaskState::Failed => Change { live: 1, failed: -1, ..Change::default() },
        TaskState::Cancelled => Change { live: 1, cancelled: -1, ..Change::default() },
        TaskState::Pending | TaskState::Running | TaskState::Completed => {
            return Ok(RetryAnswer::NotRetryable(state));
        }
    };
    let live = live.get(&tenant).copied().unwrap_or_default();
    let onces = match once::take_again(session, tenant, id, now_ms, shift_ms).await? {
        Ok(onces) => onces,
        Err(other) => return Ok(RetryAnswer::Taken(other)),
    };
    if live >= queue_max {
        return Ok(RetryAnswer::QueueFull { live });
    }
    once::store(session, &onces, shift_ms).await?;
    amend(session, tenant, id, amendment).await?;
    let query = sqlx::query(REVIVE).bind(id.0).bind(tenant.0).bind(now_ms).bind(state as i16).bind(AGEING_MS);
    let Some(row) = session.row(query).await? else {
        return Err(StoreError::new(StoreErrorKind::Busy, "the task was changed at the same time"));
    };
    let agent = get::<Option<i64>>(&row, 0)?.map(AgentId);
    let mut changes = Changes::default();
    changes.add(tenant, change);
    changes.add_agent(tenant, agent, AgentChange::end(state, get(&row, 1)?, -1));
    changes.add_group(tenant, get::<Option<i64>>(&row, 2)?.map(GroupId), state, -1, now_ms);
    count::store(session, &changes).await?;
    Ok(RetryAnswer::Retried)
}

/// Changes what an ended task is given and asks for; nothing when somebody changes it at the same time, which the caller
/// finds out.
async fn amend(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    amendment: &Amendment,
) -> Result<(), StoreError> {
    if !amendment.budget.is_empty() {
        let query = sqlx::query("SELECT budget FROM finished WHERE id = $1 AND tenant = $2 FOR UPDATE");
        let row = session.row(query.bind(id.0).bind(tenant.0)).await?;
        let Some(row) = row else { return Ok(()) };
        let budget = decode_budget(get(&row, 0)?).map_err(undecodable)?.changed_by(&amendment.budget);
        let query = sqlx::query("UPDATE finished SET budget = $3 WHERE id = $1 AND tenant = $2");
        session.run(query.bind(id.0).bind(tenant.0).bind(encode_budget(&budget))).await?;
    }
    if let Some(input) = &amendment.input {
        let query = "UPDATE finished SET input_type = $3, input = $4 WHERE id = $1 AND tenant = $2";
        let query = sqlx::query(query).bind(id.0).bind(tenant.0).bind(stored_type(input).map(stored_text));
        session.run(query.bind(&input.bytes[..])).await?;
    }
    Ok(())
}

/// The state of a task.
async fn state(session: &mut Session, tenant: TenantId, id: TaskId) -> Result<Option<TaskState>, StoreError> {
    const STATE: &str = concat!(
        "SELECT CASE WHEN holder IS NULL THEN 0 ELSE 1 END FROM task WHERE id = $1 AND tenant = $2
        UNION ALL SELECT state FROM finished WHERE id = $1 AND tenant = $2 UNION ALL ",
        segment::state!()
    );
    let Some(row) = session.row(sqlx::query(STATE).bind(id.0).bind(tenant.0)).await? else { return Ok(None) };
    let state = TaskState::numbered(i64::from(get::<i32>(&row, 0)?));
    state.map(Some).ok_or_else(|| undecodable(Undecodable("task state")))
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
    let mut ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    segment::leave(session, &ids, end.tenant).await?;
    let query = sqlx::query(FINISH).bind(ids).bind(end.state as i16).bind(end.token).bind(end.crashes as i32);
    let query = query.bind(now_ms).bind(end.code.map(Code::as_str)).bind(end.message.as_deref());
    let query = query.bind(end.tenant.map(|tenant| tenant.0)).bind(end.detail.as_deref());
    let rows = session.rows(query).await?;
    let (mut changes, mut usage) = (Changes::default(), Usage::default());
    for row in &rows {
        let tenant = TenantId(get(row, 1)?);
        *kinds.entry((tenant, KindId(get(row, 4)?))).or_default() += 1;
        let failed = i64::from(end.state == TaskState::Failed);
        let cancelled = i64::from(end.state == TaskState::Cancelled);
        changes.add(tenant, Change { live: -1, completed: 0, failed, cancelled });
        let agent = get::<Option<i64>>(row, 2)?.map(AgentId);
        changes.add_agent(tenant, agent, AgentChange::end(end.state, None, 1));
        let group = get::<Option<i64>>(row, 3)?.map(GroupId);
        changes.add_group(tenant, group, end.state, 1, now_ms);
        if failed > 0 {
            usage.add(tenant, Spent { failed: 1, ..Spent::default() });
        }
    }
    count::store_with(session, &changes, &usage, now_ms).await?;
    Ok(kinds)
}
