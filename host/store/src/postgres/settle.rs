//! Settling: the ends of attempts, all of a call in a handful of statements.
//!
//! Every end is written by one statement that takes the live row, fenced by id, tenant, token and holder, and writes the
//! history of what it took: what it does not return was stale. Rows are taken in the order of their ids.

use std::collections::{HashMap, HashSet};

use keiko_core::code::Code;
use keiko_core::id::{AgentId, GroupId, Holder, TaskId};
use keiko_core::outcome::Failure;
use keiko_core::port::StoreError;
use keiko_core::task::{Payload, Settled, Settlement, TaskState, Transition};
use keiko_core::usage::day;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;

use super::count::{self as counts, agents, sum, usage};
use super::row::{self, get, stored_text};
use super::session::{Session, chunks};
use super::{batch, child, tree};
use crate::admit::stored_type;
use crate::count::Changes;
use crate::family::{self, Parent};
use crate::format::encode_end;
use crate::gather::{WaitingChanges, of_tasks};
use crate::stored::{Stored, count, statuses, stored_number};
use crate::tree::charges;

/// The task is still the one's who leased it, under the token of that lease. A build that leaves this out shows that the
/// checks notice: `cargo xtask check hosts --unfenced`.
#[cfg(not(feature = "unfenced"))]
macro_rules! fence {
    ($holder:literal) => {
        concat!("t.holder = ", $holder)
    };
    ($holder:literal, $token:literal) => {
        concat!("t.holder = ", $holder, " AND t.token = ", $token)
    };
}
#[cfg(feature = "unfenced")]
macro_rules! fence {
    ($holder:literal) => {
        concat!($holder, "::bigint IS NOT NULL")
    };
    ($holder:literal, $token:literal) => {
        concat!($holder, "::bigint IS NOT NULL AND ", $token, " IS NOT NULL")
    };
}

/// Tasks that the holder `$2` runs, which nobody else changes until the commit, and how far the database's clock is
/// before the caller's, `$3`.
pub(crate) const HOLD: &str = concat!(
    "SELECT t.id, t.tenant, t.token, t.root, t.depth, t.budget, t.trace, t.agent, t.app_user,
        t.priority, keiko_now($3) - $3, t.end_by_ms - (SELECT keiko_now($3) - $3), o.end_ms - (SELECT keiko_now($3) - $3)
    FROM unnest($1::bigint[]) AS s (id) JOIN task AS t ON t.id = s.id
        LEFT JOIN tree AS o ON o.root = t.root AND t.parent IS NOT NULL WHERE ",
    fence!("$2"),
    " ORDER BY t.id FOR UPDATE OF t"
);

/// Takes ended tasks away as `gone`, and writes them to the finished ones as `ended`, with their logs. The fence and the attempt
/// are `$1` to `$14`: see [`bind_attempts`]. The arrays are unnested in the list of a `SELECT`: in `FROM` each becomes a table
/// that is written and read again.
macro_rules! ended {
    ($which:literal) => {
        concat!(
            "WITH gone AS (
        DELETE FROM task AS t USING (SELECT unnest($1::bigint[]) AS id, unnest($2::bigint[]) AS tenant,
            unnest($3::bigint[]) AS token, unnest($4::bigint[]) AS started_ms, unnest($5::bigint[]) AS version,
            unnest($6::bigint[]) AS fuel_used, unnest($7::bigint[]) AS memory_bytes_peak,
            unnest($8::bigint[]) AS host_calls, unnest($9::bigint[]) AS elapsed_us, unnest($10::integer[]) AS taint,
            unnest($11::integer[]) AS effects, unnest($12::text[]) AS code, unnest($13::text[]) AS message,
            unnest($14::text[]) AS detail, unnest($15::smallint[]) AS state, unnest($16::text[]) AS result_type,
            unnest($17::bytea[]) AS result, unnest($18::bytea[]) AS log) AS s
        WHERE t.id = s.id AND t.tenant = s.tenant AND ",
            fence!("$19", "s.token"),
            $which,
            "
        RETURNING t.id, t.tenant, t.kind, t.token, t.attempts, t.crashes, t.earlier, t.created_ms,
            coalesce(t.due_ms, t.run_at_ms) AS run_at_ms, t.root, t.parent, t.depth, t.budget, t.trace, t.input_type,
            t.input, t.agent, t.app_user, t.priority, t.task_group, t.slot_key, s.started_ms, s.version, s.fuel_used,
            s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail,
            s.state, s.result_type, s.result, s.log),
    ended AS (INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, parent, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail, budget, trace, input_type, result_type, input, result,
        agent, app_user, priority, task_group, slot_key)
    SELECT id, tenant, kind, state, token, attempts + 1, crashes, earlier, created_ms, run_at_ms,
        $20, root, parent, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail, CASE WHEN state <> 2 THEN budget END,
        CASE WHEN state <> 2 THEN trace END, CASE WHEN state <> 2 THEN input_type END, result_type,
        CASE WHEN state <> 2 THEN input END, result, agent, app_user, priority, task_group,
        CASE WHEN state <> 2 THEN slot_key END
    FROM gone RETURNING id, earlier + attempts AS number, agent, task_group),
    logged AS (INSERT INTO attempt_log (task, attempt, tenant, bytes)
        SELECT id, earlier + attempts + 1, tenant, log FROM gone WHERE log IS NOT NULL)"
        )
    };
}

/// Moves ended tasks to the finished ones; the caller counts them.
pub(crate) const END: &str = concat!(ended!(""), " SELECT id, number, agent, task_group FROM ended");

/// Moves ended tasks that are in no group, and counts them: all that such an end changes, in one statement.
pub(crate) const END_PLAIN: &str = concat!(
    ended!(" AND t.task_group IS NULL"),
    ", total AS (
        SELECT tenant, count(*) AS ended, count(*) FILTER (WHERE state = 2) AS completed, sum(fuel_used) AS fuel_used, ",
    sum!("elapsed_us"),
    " AS guest_us FROM gone GROUP BY tenant ORDER BY tenant),
    counted AS (
        UPDATE tenant_count AS t SET live = t.live - c.ended, completed = t.completed + c.completed,
            failed = t.failed + c.ended - c.completed
        FROM total AS c WHERE t.tenant = c.tenant),
    spent AS (",
    usage!("$21", "(SELECT tenant, ended, completed, ended - completed, fuel_used, guest_us FROM total)"),
    "), agents AS (",
    agents!(
        "(SELECT agent, tenant, 0, count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 3), 0, count(*), ",
        sum!("elapsed_us"),
        " FROM gone WHERE agent IS NOT NULL GROUP BY agent, tenant ORDER BY agent)"
    ),
    ") SELECT id FROM ended"
);

/// Puts tasks back to pending with one more attempt, and keeps that. Due times are the caller's, by the clock of `$18`.
pub(crate) const RETRY: &str = concat!(
    "
    WITH back AS (
        UPDATE task AS t SET holder = NULL, attempts = t.attempts + 1, deadlines = t.deadlines + s.deadlines,
            run_at_ms = s.run_at_ms + (SELECT keiko_now($18) - $18),
            due_ms = CASE WHEN t.due_ms IS NOT NULL THEN s.run_at_ms + (SELECT keiko_now($18) - $18) END, start_by_ms = NULL
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
            $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::integer[], $11::integer[], $12::text[],
            $13::text[], $14::text[], $15::integer[], $16::bigint[])
            AS s (id, tenant, token, started_ms, version, fuel_used, memory_bytes_peak, host_calls, elapsed_us, taint,
                effects, code, message, detail, deadlines, run_at_ms)
        WHERE t.id = s.id AND t.tenant = s.tenant AND ",
    fence!("$17", "s.token"),
    "
        RETURNING t.id, t.tenant, t.earlier, t.attempts, t.agent, s.started_ms, s.version, s.fuel_used,
            s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail),
    kept AS (
        INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail)
        SELECT id, earlier + attempts, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail FROM back)
    SELECT id, earlier + attempts, agent, NULL::bigint FROM back"
);

pub(crate) const HAND_BACK: &str = concat!(
    "UPDATE task AS t SET holder = NULL
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (id, tenant, token)
    WHERE t.id = s.id AND t.tenant = s.tenant AND ",
    fence!("$4", "s.token"),
    " RETURNING t.id"
);

const INSERT_LOGS: &str = "INSERT INTO attempt_log (task, attempt, tenant, bytes)
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bytea[])";

/// Gives agents the statuses that completed tasks ask for; an agent of another tenant is none.
pub(crate) const SET_STATUSES: &str = "UPDATE agent AS a SET status = s.status, updated_ms = $4
    FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) AS s (id, tenant, status)
    WHERE a.id = s.id AND a.tenant = s.tenant";

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
        let mut round: Vec<&Settlement> = round.into_iter().map(|at| &settlements[at]).collect();
        round.sort_unstable_by_key(|one| one.id);
        for (id, settled) in settle_round(session, holder, round, now_ms).await? {
            if let Some(&at) = places.get(&id) {
                answers[at] = settled;
            }
        }
        rest = later;
    }
    set_statuses(session, &statuses(settlements, &answers), now_ms).await?;
    batch::insert(session, &of_tasks(settlements, &answers), WaitingChanges::default(), now_ms).await?;
    Ok(answers)
}

/// Settles tasks of which each is named once; tasks that are not in the answer were stale.
async fn settle_round(
    session: &mut Session,
    holder: Holder,
    round: Vec<&Settlement>,
    now_ms: i64,
) -> Result<HashMap<TaskId, Settled>, StoreError> {
    let held = hold(session, holder, &round, now_ms).await?;
    let (mut ended, other): (Vec<_>, Vec<_>) = round
        .into_iter()
        .partition(|one| matches!(one.transition, Transition::Complete(_) | Transition::Fail(_)));
    let (retried, handed_back): (Vec<_>, Vec<_>) =
        other.into_iter().partition(|one| matches!(one.transition, Transition::Retry { .. }));
    let mut changes = Changes::default();
    let mut answers = child::apply(session, &ended, &held, now_ms, &mut changes).await?;
    ended.retain(|one| !answers.contains_key(&one.id));

    let ends = end(session, holder, &ended, now_ms).await?;
    let mut stored: Vec<_> = ended.iter().filter_map(|one| ends.stored(one)).collect();
    let retries = retry(session, holder, &retried, now_ms).await?;
    let again: Vec<_> = retried.iter().filter_map(|one| retries.stored(one)).collect();
    keep_logs(session, &again).await?;
    stored.extend(again);
    let handed_back = hand_back(session, holder, &handed_back).await?;
    let usage = count(&stored, now_ms, &mut changes);
    counts::store_with(session, &changes, &usage, now_ms).await?;
    tree::charge(session, &charges(&stored)).await?;

    answers.extend(stored.iter().map(|stored| (stored.one.id, Settled::Stored)));
    answers.extend(handed_back.into_iter().map(|id| (id, Settled::Stored)));
    Ok(answers)
}

/// The tasks of a round, as far as they had to be held before anything is written.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) parents: HashMap<TaskId, Parent>,
    /// How far the database's clock is before the caller's.
    pub(crate) shift_ms: i64,
}

/// Holds the tasks of a round that takes more than one statement, so that rows are still taken in one order, and that
/// the children of a task go with its end.
async fn hold(
    session: &mut Session,
    holder: Holder,
    round: &[&Settlement],
    now_ms: i64,
) -> Result<Held, StoreError> {
    let class = |one: &&Settlement| match one.transition {
        Transition::Complete(_) | Transition::Fail(_) => 0,
        Transition::Retry { .. } => 1,
        Transition::HandBack => 2,
    };
    let mixed = round.windows(2).any(|pair| class(&pair[0]) != class(&pair[1]));
    let large = chunks(round, |one| carried(one)).len() > 1;
    let mut held = Held::default();
    if !mixed && !large && !round.iter().any(|one| family::asks(one)) {
        return Ok(held);
    }
    let ids: Vec<i64> = round.iter().map(|one| one.id.0).collect();
    for row in &session.rows(sqlx::query(HOLD).bind(ids).bind(holder.0).bind(now_ms)).await? {
        let (id, parent) = child::parent(row)?;
        held.parents.insert(id, parent);
        held.shift_ms = get(row, 10)?;
    }
    Ok(held)
}

/// The attempt's number and the task's agent and group of every settlement that was not stale.
#[derive(Default)]
struct Written(HashMap<TaskId, (u32, Option<AgentId>, Option<GroupId>)>);

impl Written {
    fn add(&mut self, written: &[PgRow]) -> Result<(), StoreError> {
        for one in written {
            let agent = get::<Option<i64>>(one, 2)?.map(AgentId);
            let group = get::<Option<i64>>(one, 3)?.map(GroupId);
            self.0.insert(TaskId(get(one, 0)?), (row::count(one, 1)?, agent, group));
        }
        Ok(())
    }

    fn stored<'a>(&self, one: &'a Settlement) -> Option<Stored<'a>> {
        let &(number, agent, group) = self.0.get(&one.id)?;
        Some(Stored { one, number, agent, group })
    }
}

/// Whether nothing but counts changes with these ends, so that one statement writes them: no task is named twice, none is
/// known to be in a group, none has effects or is charged to a tree.
pub(crate) fn are_plain(settlements: &[Settlement]) -> bool {
    let is_plain = |one: &Settlement| {
        matches!(one.transition, Transition::Complete(_) | Transition::Fail(_))
            && one.group.is_none()
            && one.effects.is_empty()
            && one.charge.is_none()
    };
    let mut seen = HashSet::with_capacity(settlements.len());
    settlements.iter().all(|one| is_plain(one) && seen.insert(one.id))
        && chunks(settlements, carried).len() == 1
}

/// Writes such ends by one statement, which may run twice: what it took is gone. The tasks that it ended.
pub(crate) async fn end_plain(
    session: &mut Session,
    holder: Holder,
    settlements: &[Settlement],
    now_ms: i64,
) -> Result<HashSet<TaskId>, StoreError> {
    let mut sorted: Vec<&Settlement> = settlements.iter().collect();
    sorted.sort_unstable_by_key(|one| one.id);
    let query = bind_ends(sqlx::query(END_PLAIN), &sorted, holder, now_ms).bind(day(now_ms));
    session.rows(query).await?.iter().map(|row| get(row, 0).map(TaskId)).collect()
}

/// Moves ended tasks away.
async fn end(
    session: &mut Session,
    holder: Holder,
    ended: &[&Settlement],
    now_ms: i64,
) -> Result<Written, StoreError> {
    let mut written = Written::default();
    for chunk in chunks(ended, |one| carried(one)) {
        written.add(&session.rows(bind_ends(sqlx::query(END), chunk, holder, now_ms)).await?)?;
    }
    Ok(written)
}

/// Puts tasks back for another attempt.
async fn retry(
    session: &mut Session,
    holder: Holder,
    retried: &[&Settlement],
    now_ms: i64,
) -> Result<Written, StoreError> {
    let mut written = Written::default();
    for chunk in chunks(retried, |_| 0) {
        let again = |one: &&Settlement| match &one.transition {
            Transition::Retry { run_at_ms, failure } => {
                (i32::from(failure.code == Code::DeadlineExceeded), *run_at_ms)
            }
            _ => (0, now_ms),
        };
        let (deadlines, run_at): (Vec<i32>, Vec<i64>) = chunk.iter().map(again).unzip();
        let query = bind_attempts(sqlx::query(RETRY), chunk).bind(deadlines).bind(run_at);
        written.add(&session.rows(query.bind(holder.0).bind(now_ms)).await?)?;
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
    let column = |of: fn(&Settlement) -> i64| handed_back.iter().map(|one| of(one)).collect::<Vec<i64>>();
    let query = sqlx::query(HAND_BACK).bind(column(|one| one.id.0)).bind(column(|one| one.tenant.0));
    let rows = session.rows(query.bind(column(|one| one.token.0)).bind(holder.0)).await?;
    rows.iter().map(|row| get(row, 0).map(TaskId)).collect()
}

async fn keep_logs(session: &mut Session, stored: &[Stored<'_>]) -> Result<(), StoreError> {
    let logs: Vec<_> = stored.iter().filter(|stored| !stored.one.log.is_empty()).collect();
    for chunk in chunks(&logs, |stored| stored.one.log.len()) {
        let ids: Vec<i64> = chunk.iter().map(|stored| stored.one.id.0).collect();
        let numbers: Vec<i32> = chunk.iter().map(|stored| stored.number as i32).collect();
        let tenants: Vec<i64> = chunk.iter().map(|stored| stored.one.tenant.0).collect();
        let bytes: Vec<&[u8]> = chunk.iter().map(|stored| &stored.one.log[..]).collect();
        session.run(sqlx::query(INSERT_LOGS).bind(ids).bind(numbers).bind(tenants).bind(bytes)).await?;
    }
    Ok(())
}

pub(crate) async fn set_statuses(
    session: &mut Session,
    statuses: &[(i64, i64, i64)],
    now_ms: i64,
) -> Result<(), StoreError> {
    if statuses.is_empty() {
        return Ok(());
    }
    let agents: Vec<i64> = statuses.iter().map(|row| row.0).collect();
    let tenants: Vec<i64> = statuses.iter().map(|row| row.1).collect();
    let numbers: Vec<i16> = statuses.iter().map(|row| row.2 as i16).collect();
    let query = sqlx::query(SET_STATUSES).bind(agents).bind(tenants).bind(numbers).bind(now_ms);
    session.run(query).await.map(drop)
}

fn result(one: &Settlement) -> Option<&Payload> {
    match &one.transition {
        Transition::Complete(result) => Some(result),
        _ => None,
    }
}

/// Bytes that an end carries.
fn carried(one: &Settlement) -> usize {
    result(one).map_or(0, |result| result.bytes.len()) + one.log.len()
}

fn failure(one: &Settlement) -> Option<&Failure> {
    match &one.transition {
        Transition::Fail(failure) | Transition::Retry { failure, .. } => Some(failure),
        _ => None,
    }
}

/// Binds the 20 parameters of an end.
fn bind_ends<'q>(
    query: Query<'q, Postgres, PgArguments>,
    chunk: &[&'q Settlement],
    holder: Holder,
    now_ms: i64,
) -> Query<'q, Postgres, PgArguments> {
    let state = |one: &&Settlement| match one.transition {
        Transition::Complete(_) => TaskState::Completed as i16,
        _ => TaskState::Failed as i16,
    };
    let types = chunk.iter().map(|one| result(one).and_then(stored_type).map(stored_text));
    let results = chunk.iter().map(|one| result(one).map(|result| &result.bytes[..]));
    let logs = chunk.iter().map(|one| (!one.log.is_empty()).then_some(&one.log[..]));
    let query = bind_attempts(query, chunk).bind(chunk.iter().map(state).collect::<Vec<_>>());
    let query = query.bind(types.collect::<Vec<_>>()).bind(results.collect::<Vec<Option<&[u8]>>>());
    query.bind(logs.collect::<Vec<Option<&[u8]>>>()).bind(holder.0).bind(now_ms)
}

/// Binds the first 14 parameters, a column each: the fence, the attempt, the failure. The number is not among them: the
/// row knows it.
fn bind_attempts<'q>(
    query: Query<'q, Postgres, PgArguments>,
    chunk: &[&'q Settlement],
) -> Query<'q, Postgres, PgArguments> {
    let column = |of: fn(&Settlement) -> i64| chunk.iter().map(|one| of(one)).collect::<Vec<i64>>();
    let text = |of: fn(&Settlement) -> Option<String>| chunk.iter().map(|one| of(one)).collect::<Vec<_>>();
    let versions: Vec<Option<i64>> =
        chunk.iter().map(|one| one.attempt.version.map(|version| version.0)).collect();
    let taints: Vec<i32> = chunk.iter().map(|one| one.attempt.taint.0 as i32).collect();
    let effects: Vec<i32> = chunk.iter().map(|one| one.attempt.effects as i32).collect();
    query
        .bind(column(|one| one.id.0))
        .bind(column(|one| one.tenant.0))
        .bind(column(|one| one.token.0))
        .bind(column(|one| one.attempt.started_ms))
        .bind(versions)
        .bind(column(|one| stored_number(one.attempt.meter.fuel_used)))
        .bind(column(|one| stored_number(one.attempt.meter.memory_bytes_peak)))
        .bind(column(|one| stored_number(one.attempt.meter.host_calls)))
        .bind(column(|one| stored_number(one.attempt.meter.elapsed_us)))
        .bind(taints)
        .bind(effects)
        .bind(text(|one| failure(one).map(|failure| failure.code.as_str().to_owned())))
        .bind(text(|one| failure(one).map(|failure| stored_text(&failure.message))))
        .bind(text(|one| encode_end(failure(one), &one.attempt)))
}
