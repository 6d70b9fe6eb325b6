//! Holders of leases, ids, which leases are over, and what becomes of tasks whose holder is gone.
//!
//! A holder's row is changed first, then its tasks: so a lease, which prolongs the row, is wholly before or wholly after
//! a rescue. Rescues and new holders follow one another, by the row of the holders' numbers.

use keiko_core::id::{Holder, TaskId, Token};
use keiko_core::port::{Beat, Dead, IdBlock, Rescued, StoreError, StoreErrorKind};

use super::row::get;
use super::session::Session;
use super::{batch, end, group, segment};
use crate::rescue::{Sorted, sort};

/// Takes `$3` numbers named `$1` that are above all earlier ones and not below `$2`; the last of them.
const TAKE_NUMBERS: &str =
    "UPDATE sequence SET last = greatest(last + 1, $2) + $3 - 1 WHERE name = $1 RETURNING last";

/// What looks for tasks by their holder walks all live ones: no index may look at the holder.
const WALK: &str =
    "SELECT set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true)";

/// Ends the connections of hosts that were stopped inside a transaction, or while they read an answer of one. They hold
/// rows, and no time-out of the server ends one that waits for its client to read. One of a host that is only slow is run
/// again. Parameter: how long they may, in milliseconds.
const END_STOPPED: &str = "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.usename = current_user
        AND CASE WHEN a.state LIKE 'idle in transaction%' THEN a.state_change
            WHEN a.wait_event = 'ClientWrite' THEN a.query_start
            END < clock_timestamp() - $1 * interval '1 millisecond'
        AND EXISTS (SELECT 1 FROM pg_locks AS l WHERE l.pid = a.pid AND l.mode IN ('RowExclusiveLock', 'RowShareLock')
            AND l.relation IN ('holder'::regclass, 'sequence'::regclass, 'task'::regclass, 'task_segment'::regclass, 'tenant_count'::regclass))";
/// Longest that a host may stand still, when the tasks of one are to be rescued.
const STILL_MS_MAX: i64 = 1_000;

/// Registers a holder. Its number starts from the clock, so that it is above every earlier one even when an older
/// database was put back.
pub(crate) async fn open(session: &mut Session, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
    let id = take_numbers(session, "holder", now_ms, 1).await?;
    let query = "INSERT INTO holder (id, opened_ms, until_ms) VALUES ($1, keiko_now($2), keiko_now($2) + $3)";
    session.run(sqlx::query(query).bind(id).bind(now_ms).bind(lease_ms)).await?;
    Ok(Holder(id))
}

/// Prolongs a holder's lease.
pub(crate) async fn beat(
    session: &mut Session,
    holder: Holder,
    now_ms: i64,
    lease_ms: i64,
) -> Result<Beat, StoreError> {
    let query = "UPDATE holder SET until_ms = greatest(until_ms, keiko_now($2) + $3) WHERE id = $1
        RETURNING (SELECT min(until_ms) FROM holder WHERE id <> $1) - (keiko_now($2) - $2),
            (SELECT last FROM sequence WHERE name = 'catalog')";
    let query = sqlx::query(query).bind(holder.0).bind(now_ms).bind(lease_ms);
    let Some(row) = session.row(query).await? else { return Ok(Beat::Lost) };
    Ok(Beat::Alive { others_end_ms: get(&row, 0)?, catalog: get(&row, 1)? })
}

/// Forgets a holder; returns how many tasks it gave back.
pub(crate) async fn close(session: &mut Session, holder: Holder) -> Result<u64, StoreError> {
    session.run(sqlx::query("DELETE FROM holder WHERE id = $1").bind(holder.0)).await?;
    session.rows(sqlx::query(WALK)).await?;
    let in_segments = segment::give_back_all(session, holder).await?;
    let query = "WITH held AS MATERIALIZED (SELECT id FROM task WHERE holder = $1 ORDER BY id FOR UPDATE)
        UPDATE task SET holder = NULL FROM held WHERE task.id = held.id";
    Ok(in_segments + session.run(sqlx::query(query).bind(holder.0)).await?)
}

/// Reserves task ids.
pub(crate) async fn reserve_ids(
    session: &mut Session,
    count: u32,
    now_ms: i64,
) -> Result<IdBlock, StoreError> {
    let last = take_numbers(session, "task", TaskId::floor(now_ms).0, i64::from(count)).await?;
    Ok(IdBlock { first: TaskId(last - i64::from(count) + 1), count })
}

async fn take_numbers(
    session: &mut Session,
    name: &'static str,
    floor: i64,
    count: i64,
) -> Result<i64, StoreError> {
    let row = session.row(sqlx::query(TAKE_NUMBERS).bind(name).bind(floor).bind(count)).await?;
    let row = row.ok_or_else(|| StoreError::new(StoreErrorKind::Integrity, "a sequence is missing"))?;
    get(&row, 0)
}

/// Which of the leases of tasks `$1` under tokens `$2` are over. A token says which lease it was, so nobody's name is needed.
pub(crate) const STALE: &str = concat!(
    "SELECT l.id, l.token FROM (SELECT unnest($1::bigint[]) AS id, unnest($2::bigint[]) AS token) AS l
    WHERE (SELECT t.token FROM task AS t WHERE t.id = l.id AND t.holder IS NOT NULL) IS DISTINCT FROM l.token
        AND (SELECT s.token FROM ",
    segment::around!("l.id"),
    " AS s WHERE s.holder IS NOT NULL AND ",
    segment::is_in!("l.id"),
    ") IS DISTINCT FROM l.token"
);

/// Those of these leases that are over.
pub(crate) async fn stale(
    session: &mut Session,
    leases: &[(TaskId, Token)],
) -> Result<Vec<(TaskId, Token)>, StoreError> {
    let (ids, tokens): (Vec<i64>, Vec<i64>) = leases.iter().map(|(id, token)| (id.0, token.0)).unzip();
    let rows = session.rows(sqlx::query(STALE).bind(ids).bind(tokens)).await?;
    rows.iter().map(|row| Ok((TaskId(get(row, 0)?), Token(get(row, 1)?)))).collect()
}

/// Forgets the holders whose lease has ended, and those of tasks `$2` under tokens `$3`.
const FORGET_DEAD: &str = concat!(
    "DELETE FROM holder WHERE until_ms <= keiko_now($1) OR id IN (
    SELECT t.holder FROM unnest($2::bigint[], $3::bigint[]) AS s (id, token)
    JOIN task AS t ON t.id = s.id AND t.token = s.token
    UNION ALL SELECT s.holder FROM unnest($2::bigint[], $3::bigint[]) AS w (id, token) CROSS JOIN LATERAL ",
    segment::around!("w.id"),
    " AS s WHERE s.token = w.token AND ",
    segment::is_in!("w.id"),
    "
    UNION ALL SELECT b.holder FROM unnest($2::bigint[], $3::bigint[]) AS s (id, token)
    JOIN batch AS b ON b.id = s.id AND b.token = s.token)"
);

/// Running tasks of holders that were forgotten.
const HELD_BY_NOBODY: &str = "SELECT id, token, crashes::bigint FROM task
    WHERE holder IS NOT NULL AND NOT EXISTS (SELECT 1 FROM holder AS h WHERE h.id = task.holder)
    ORDER BY id FOR UPDATE";

/// Returns the tasks of dead holders. A holder without a row is dead, however that came about.
pub(crate) async fn rescue(
    session: &mut Session,
    dead: Dead,
    started: &[(TaskId, Token)],
    now_ms: i64,
) -> Result<Rescued, StoreError> {
    end_stopped(session).await?;
    session.row(sqlx::query("SELECT last FROM sequence WHERE name = 'holder' FOR UPDATE")).await?;
    let forget = match dead {
        Dead::AllBut(holder) => sqlx::query("DELETE FROM holder WHERE id <> $1").bind(holder.0),
        Dead::Expired => {
            let (ids, tokens): (Vec<i64>, Vec<i64>) =
                started.iter().map(|(id, token)| (id.0, token.0)).unzip();
            sqlx::query(FORGET_DEAD).bind(now_ms).bind(ids).bind(tokens)
        }
    };
    session.run(forget).await?;
    session.rows(sqlx::query(WALK)).await?;
    segment::dissolve_of_nobody(session).await?;
    let rows = session.rows(sqlx::query(HELD_BY_NOBODY)).await?;
    let running = rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?, get(row, 2)?)));
    let sorted = sort(running.collect::<Result<Vec<_>, StoreError>>()?, started);
    give_back(session, &sorted).await?;
    let failed = end::quarantine(session, &sorted.quarantined, now_ms).await?;
    batch::charge(session, started).await?;
    Ok(sorted.rescued(failed, group::failing(session).await?))
}

/// Only who connected may end connections of the same user, so the role is left for that one statement.
async fn end_stopped(session: &mut Session) -> Result<(), StoreError> {
    const WORK_AS: &str = "SELECT set_config('role', $1, true)";
    session.row(sqlx::query(WORK_AS).bind("none")).await?;
    let ended = session.rows(sqlx::query(END_STOPPED).bind(STILL_MS_MAX)).await?.len();
    session.row(sqlx::query(WORK_AS).bind("keiko_system")).await?;
    if ended > 0 {
        tracing::warn!(items = ended, "connections of a stopped host were ended");
    }
    Ok(())
}

async fn give_back(session: &mut Session, sorted: &Sorted) -> Result<(), StoreError> {
    if sorted.unstarted.is_empty() && sorted.crashed.is_empty() {
        return Ok(());
    }
    let query = "UPDATE task SET holder = NULL, crashes = crashes + c.more
        FROM (SELECT unnest($1::bigint[]) AS id, 0 AS more UNION ALL SELECT unnest($2::bigint[]), 1) AS c
        WHERE task.id = c.id";
    session
        .run(sqlx::query(query).bind(sorted.unstarted.clone()).bind(sorted.crashed.clone()))
        .await
        .map(drop)
}
