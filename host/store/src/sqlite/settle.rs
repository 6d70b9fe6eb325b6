//! Settling: the ends of attempts, all of a call in a handful of statements.
//!
//! Every end is written by a statement that joins the settlement with its task on id, tenant, token, holder and
//! state, and returns what it wrote: what it does not return was stale. History first, then the live row.

use std::collections::HashMap;
use std::sync::LazyLock;

use keiko_core::code::Code;
use keiko_core::id::{AgentId, GroupId, Holder, TaskId};
use keiko_core::outcome::Failure;
use keiko_core::port::StoreError;
use keiko_core::task::{AttemptRecord, Settled, Settlement, TaskState, Transition};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::count::Changes;
use super::error::store_error;
use super::session::{Binds, RowStatement, Session, json};
use super::{batch, child, tree};
use crate::admit::stored_type;
use crate::format::{Undecodable, encode_end};
use crate::gather::{WaitingChanges, of_tasks};
use crate::stored::{Stored, count, statuses, stored_number};
use crate::tree::charges;
use crate::trouble::undecodable;

/// Columns of every settlement: the fence and the attempt. See [`bind_attempt`].
const ATTEMPT_COLUMNS: usize = 12;

static END: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH s (id, tenant, token, holder, started_ms, version, fuel_used, memory_bytes_peak, host_calls, elapsed_us,
            taint, effects, state, finished_ms, code, message, detail, result_type, result) AS (VALUES)
         INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
            finished_ms, root, parent, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail, budget, trace, input_type, input_bytes,
            result_type, input, result, agent, app_user, priority, task_group, slot_key, unique_key)
         SELECT t.id, t.tenant, t.kind, s.state, t.token, t.attempts + 1, t.crashes, t.earlier, t.created_ms,
            coalesce(t.due_ms, t.run_at_ms), s.finished_ms, t.root, t.parent, t.depth, s.started_ms, s.version, s.fuel_used,
            s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail,
            iif(s.state = 2, NULL, t.budget), iif(s.state = 2, NULL, t.trace),
            iif(s.state = 2, NULL, t.input_type), iif(s.state = 2, NULL, t.input_bytes),
            s.result_type, iif(s.state = 2, NULL, t.input), s.result, t.agent, t.app_user, t.priority, t.task_group,
            iif(s.state = 2, NULL, t.slot_key), iif(s.state = 2, NULL, t.unique_key)
         FROM s CROSS JOIN task AS t NOT INDEXED
            ON t.id = s.id AND t.tenant = s.tenant AND t.token = s.token AND t.holder = s.holder AND t.state = 1
         RETURNING id, iif(earlier + attempts = 1 AND agent IS NULL AND task_group IS NULL, NULL,
            json_array(earlier + attempts, agent, task_group))",
        ATTEMPT_COLUMNS + 7,
    )
});

static KEEP_ATTEMPT: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH s (id, tenant, token, holder, started_ms, version, fuel_used, memory_bytes_peak, host_calls, elapsed_us,
            taint, effects, code, message, detail) AS (VALUES)
         INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail)
         SELECT t.id, t.earlier + t.attempts + 1, t.tenant, s.started_ms, s.version, s.fuel_used,
            s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail
         FROM s CROSS JOIN task AS t NOT INDEXED
            ON t.id = s.id AND t.tenant = s.tenant AND t.token = s.token AND t.holder = s.holder AND t.state = 1
         RETURNING task, json_array(number, NULL, NULL)",
        ATTEMPT_COLUMNS + 3,
    )
});

static INSERT_LOG: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO attempt_log (task, attempt, tenant, bytes)
         SELECT * FROM (VALUES) WHERE column1 IS NOT NULL",
        4,
    )
});

/// Takes tasks that ended, `?1`, from the live ones, and the inputs of those that completed, `?2`.
const DELETE_ENDED: &str = "DELETE FROM task WHERE id IN (SELECT value FROM json_each(?1));
    DELETE FROM task_input WHERE task IN (SELECT value FROM json_each(?2))";

/// Puts tasks back to pending with one more attempt: id, deadlines more, run_at.
const RETRY: &str = "UPDATE task NOT INDEXED SET state = 0, holder = NULL, attempts = attempts + 1,
        deadlines = deadlines + (r.value ->> 1), run_at_ms = r.value ->> 2,
        due_ms = iif(due_ms IS NULL, NULL, r.value ->> 2), start_by_ms = NULL
    FROM json_each(?1) AS r WHERE task.id = r.value ->> 0";

const HAND_BACK: &str = "UPDATE task NOT INDEXED SET state = 0, holder = NULL FROM json_each(?1) AS h
    WHERE task.id = h.value ->> 0 AND tenant = h.value ->> 1 AND token = h.value ->> 2 AND holder = ?2 AND state = 1
    RETURNING task.id";

/// Gives agents the statuses that completed tasks ask for; an agent of another tenant is none.
pub(crate) const SET_STATUSES: &str = "UPDATE agent NOT INDEXED SET status = s.value ->> 2, updated_ms = ?2
    FROM json_each(?1) AS s WHERE agent.id = s.value ->> 0 AND agent.tenant = s.value ->> 1";

/// Writes the ends of attempts; the answers are in their order.
pub(crate) async fn settle(
    session: &mut Session,
    holder: Holder,
    settlements: &[Settlement],
    now_ms: i64,
) -> Result<Vec<Settled>, StoreError> {
    let mut answers = vec![Settled::Stale; settlements.len()];
    let mut rest: Vec<usize> = (0..settlements.len()).collect();
    while !rest.is_empty() {
        // A statement sees every task once, so a task that is settled twice takes two rounds, in order.
        let mut places = HashMap::new();
        let (round, later): (Vec<usize>, Vec<usize>) =
            rest.into_iter().partition(|&at| *places.entry(settlements[at].id).or_insert(at) == at);
        let round = round.into_iter().map(|at| &settlements[at]).collect();
        for (id, settled) in settle_round(session, holder, round, now_ms).await? {
            if let Some(&at) = places.get(&id) {
                answers[at] = settled;
            }
        }
        rest = later;
    }
    let statuses = statuses(settlements, &answers);
    if !statuses.is_empty() {
        session.run(sqlx::query(SET_STATUSES).bind(json(&statuses)).bind(now_ms)).await?;
    }
    batch::insert(session, &of_tasks(settlements, &answers), WaitingChanges::default()).await?;
    Ok(answers)
}

/// Settles tasks of which each is named once; tasks that are not in the answer were stale.
async fn settle_round(
    session: &mut Session,
    holder: Holder,
    round: Vec<&Settlement>,
    now_ms: i64,
) -> Result<HashMap<TaskId, Settled>, StoreError> {
    let (mut ended, other): (Vec<_>, Vec<_>) = round
        .into_iter()
        .partition(|one| matches!(one.transition, Transition::Complete(_) | Transition::Fail(_)));
    let (retried, handed_back): (Vec<_>, Vec<_>) =
        other.into_iter().partition(|one| matches!(one.transition, Transition::Retry { .. }));
    let mut changes = Changes::default();
    let mut answers = child::apply(session, holder, &ended, now_ms, &mut changes).await?;
    ended.retain(|one| !answers.contains_key(&one.id));

    let mut stored = Vec::new();
    let written = end(session, holder, &ended, now_ms).await?;
    stored.extend(ended.iter().filter_map(|one| written.stored(one)));
    let written = retry(session, holder, &retried).await?;
    stored.extend(retried.iter().filter_map(|one| written.stored(one)));
    keep_logs(session, &stored).await?;
    let usage = count(&stored, now_ms, &mut changes);
    changes.store_with(&usage, now_ms, session).await?;
    tree::charge(session, &charges(&stored)).await?;

    answers.extend(stored.iter().map(|stored| (stored.one.id, Settled::Stored)));
    for id in hand_back(session, holder, &handed_back).await? {
        answers.insert(id, Settled::Stored);
    }
    Ok(answers)
}

/// The attempt's number and the task's agent and group of every settlement that was not stale.
struct Written(HashMap<TaskId, (u32, Option<AgentId>, Option<GroupId>)>);

impl Written {
    fn read(rows: &[SqliteRow]) -> Result<Written, StoreError> {
        let read = |row: &SqliteRow| {
            let id = TaskId(row.try_get(0).map_err(store_error)?);
            let more: Option<&str> = row.try_get(1).map_err(store_error)?;
            // NULL is the first attempt of a task of nobody, as most are.
            let more: (u32, Option<i64>, Option<i64>) = match more {
                None => (1, None, None),
                Some(more) => serde_json::from_str(more).map_err(|_| undecodable(Undecodable("attempt")))?,
            };
            Ok((id, (more.0, more.1.map(AgentId), more.2.map(GroupId))))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map(Written)
    }

    fn stored<'a>(&self, one: &'a Settlement) -> Option<Stored<'a>> {
        let &(number, agent, group) = self.0.get(&one.id)?;
        Some(Stored { one, number, agent, group })
    }
}

/// Moves ended tasks away.
async fn end(
    session: &mut Session,
    holder: Holder,
    ended: &[&Settlement],
    now_ms: i64,
) -> Result<Written, StoreError> {
    let rows = session
        .each(&END, ended, |one, binds| {
            bind_attempt(one, holder, binds);
            let (state, result, failure) = match &one.transition {
                Transition::Complete(result) => (TaskState::Completed, Some(result), None),
                Transition::Fail(failure) => (TaskState::Failed, None, Some(failure)),
                Transition::Retry { .. } | Transition::HandBack => return,
            };
            binds.add(state as i64).add(now_ms);
            bind_failure(failure, &one.attempt, binds);
            binds.add(result.and_then(stored_type)).add(result.map(|result| &result.bytes[..]));
        })
        .await?;
    let written = Written::read(&rows)?;
    if written.0.is_empty() {
        return Ok(written);
    }
    let stored: Vec<i64> = written.0.keys().map(|id| id.0).collect();
    let completed = |one: &&&Settlement| {
        matches!(one.transition, Transition::Complete(_)) && written.0.contains_key(&one.id)
    };
    let completed: Vec<i64> = ended.iter().filter(completed).map(|one| one.id.0).collect();
    session.run(sqlx::query(DELETE_ENDED).bind(json(&stored)).bind(json(&completed))).await?;
    Ok(written)
}

/// Puts tasks back for another attempt.
async fn retry(
    session: &mut Session,
    holder: Holder,
    retried: &[&Settlement],
) -> Result<Written, StoreError> {
    let rows = session
        .each(&KEEP_ATTEMPT, retried, |one, binds| {
            bind_attempt(one, holder, binds);
            let failure = match &one.transition {
                Transition::Retry { failure, .. } => Some(failure),
                _ => None,
            };
            bind_failure(failure, &one.attempt, binds);
        })
        .await?;
    let written = Written::read(&rows)?;
    let change = |one: &&Settlement| match &one.transition {
        Transition::Retry { run_at_ms, failure } if written.0.contains_key(&one.id) => {
            Some((one.id.0, i32::from(failure.code == Code::DeadlineExceeded), *run_at_ms))
        }
        _ => None,
    };
    let pending: Vec<(i64, i32, i64)> = retried.iter().filter_map(change).collect();
    if !pending.is_empty() {
        session.run(sqlx::query(RETRY).bind(json(&pending))).await?;
    }
    Ok(written)
}

async fn hand_back(
    session: &mut Session,
    holder: Holder,
    handed_back: &[&Settlement],
) -> Result<Vec<TaskId>, StoreError> {
    if handed_back.is_empty() {
        return Ok(Vec::new());
    }
    let tasks: Vec<_> = handed_back.iter().map(|one| (one.id.0, one.tenant.0, one.token.0)).collect();
    let rows = session.rows(sqlx::query(HAND_BACK).bind(json(&tasks)).bind(holder.0)).await?;
    rows.iter().map(|row| row.try_get(0).map(TaskId)).collect::<Result<_, _>>().map_err(store_error)
}

async fn keep_logs(session: &mut Session, stored: &[Stored<'_>]) -> Result<(), StoreError> {
    let logs: Vec<_> = stored.iter().filter(|stored| !stored.one.log.is_empty()).collect();
    session
        .each(&INSERT_LOG, &logs, |Stored { one, number, .. }, binds| {
            binds.add(one.id.0).add(*number).add(one.tenant.0).add(&one.log[..]);
        })
        .await?;
    Ok(())
}

/// Binds the first [`ATTEMPT_COLUMNS`]. The number is not among them: the row knows it.
fn bind_attempt(one: &Settlement, holder: Holder, binds: &mut Binds) {
    let AttemptRecord { started_ms, meter, taint, effects, version, .. } = &one.attempt;
    binds.add(one.id.0).add(one.tenant.0).add(one.token.0).add(holder.0);
    binds.add(*started_ms).add(version.map(|version| version.0)).add(stored_number(meter.fuel_used));
    binds.add(stored_number(meter.memory_bytes_peak)).add(stored_number(meter.host_calls));
    binds.add(stored_number(meter.elapsed_us)).add(taint.0).add(*effects);
}

fn bind_failure(failure: Option<&Failure>, attempt: &AttemptRecord, binds: &mut Binds) {
    binds.add(failure.map(|failure| failure.code.as_str()));
    binds.add(failure.map(|failure| failure.message.as_str()));
    binds.add(encode_end(failure, attempt));
}

/// The statements whose plans are checked.
#[cfg(test)]
pub(crate) fn texts() -> [&'static str; 5] {
    [END.text(), KEEP_ATTEMPT.text(), RETRY, HAND_BACK, SET_STATUSES]
}
