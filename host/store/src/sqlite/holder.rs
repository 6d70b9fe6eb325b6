//! Holders of leases, task ids, which leases are over, and what becomes of tasks whose holder is gone.

use keiko_core::id::{Holder, TaskId, Token};
use keiko_core::port::{Beat, Dead, IdBlock, Rescued, StoreError};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::error::store_error;
use super::session::{Session, json};
use super::{batch, end, group};
use crate::rescue::{Sorted, sort};

/// Takes `?3` numbers named `?1` that are above all earlier ones and not below `?2`; the last of them.
const TAKE_NUMBERS: &str =
    "UPDATE sequence SET last = max(last + 1, ?2) + ?3 - 1 WHERE name = ?1 RETURNING last";

/// Forgets the holders whose lease has ended, and those of tasks and tokens `?2`.
const FORGET_DEAD: &str = "DELETE FROM holder WHERE until_ms <= ?1 OR id IN (
    SELECT t.holder FROM json_each(?2) AS s CROSS JOIN task AS t
    ON t.id = s.value ->> 0 AND t.token = s.value ->> 1 AND t.state = 1
    UNION ALL SELECT b.holder FROM json_each(?2) AS s CROSS JOIN batch AS b
    ON b.id = s.value ->> 0 AND b.token = s.value ->> 1)";

/// Running tasks of holders that were forgotten.
const HELD_BY_NOBODY: &str = "SELECT id, token, crashes FROM task INDEXED BY task_running
    WHERE state = 1 AND holder NOT IN (SELECT id FROM holder)";

/// Which of these leases, tasks and tokens `?1`, are over.
pub(crate) const STALE: &str =
    "SELECT l.value ->> 0, l.value ->> 1 FROM json_each(?1) AS l WHERE NOT EXISTS (
    SELECT 1 FROM task AS t WHERE t.id = l.value ->> 0 AND t.token = l.value ->> 1 AND t.state = 1)";

/// Registers a holder. Its number starts from the clock, so that it is above every earlier one even when an
/// older file was put back.
pub(crate) async fn open(session: &mut Session, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
    let id = take_numbers(session, "holder", now_ms, 1).await?;
    let query = "INSERT INTO holder (id, opened_ms, until_ms) VALUES (?1, ?2, ?3)";
    session.run(sqlx::query(query).bind(id).bind(now_ms).bind(now_ms.saturating_add(lease_ms))).await?;
    Ok(Holder(id))
}

/// Prolongs a holder's lease.
pub(crate) async fn beat(
    session: &mut Session,
    holder: Holder,
    now_ms: i64,
    lease_ms: i64,
) -> Result<Beat, StoreError> {
    let query = "UPDATE holder SET until_ms = max(until_ms, ?2) WHERE id = ?1
        RETURNING (SELECT min(until_ms) FROM holder WHERE id <> ?1), (SELECT last FROM sequence WHERE name = 'catalog')";
    let until_ms = now_ms.saturating_add(lease_ms);
    let rows = session.rows(sqlx::query(query).bind(holder.0).bind(until_ms)).await?;
    let Some(row) = rows.first() else { return Ok(Beat::Lost) };
    let beat = || Ok(Beat::Alive { others_end_ms: row.try_get(0)?, catalog: row.try_get(1)? });
    beat().map_err(store_error)
}

/// Forgets a holder; returns how many tasks it gave back.
pub(crate) async fn close(session: &mut Session, holder: Holder) -> Result<u64, StoreError> {
    let query = "UPDATE task INDEXED BY task_running SET state = 0, holder = NULL
        WHERE state = 1 AND holder = ?1 RETURNING id;
        DELETE FROM holder WHERE id = ?1";
    let given_back = session.rows(sqlx::query(query).bind(holder.0)).await?;
    Ok(given_back.len() as u64)
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
    let rows = session.rows(sqlx::query(TAKE_NUMBERS).bind(name).bind(floor).bind(count)).await?;
    let row = rows.first().ok_or_else(|| store_error(sqlx::Error::RowNotFound))?;
    row.try_get(0).map_err(store_error)
}

/// Those of these leases that are over. A token says which lease it was, so nobody's name is needed.
pub(crate) async fn stale(
    readers: &SqlitePool,
    leases: &[(TaskId, Token)],
) -> Result<Vec<(TaskId, Token)>, StoreError> {
    let leases: Vec<(i64, i64)> = leases.iter().map(|(id, token)| (id.0, token.0)).collect();
    let query = sqlx::query(STALE).bind(json(&leases));
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let lease = |row: &SqliteRow| Ok((TaskId(row.try_get(0)?), Token(row.try_get(1)?)));
    rows.iter().map(lease).collect::<Result<_, _>>().map_err(store_error)
}

/// Returns the tasks of dead holders. A holder without a row is dead, however that came about.
pub(crate) async fn rescue(
    session: &mut Session,
    dead: Dead,
    started: &[(TaskId, Token)],
    now_ms: i64,
) -> Result<Rescued, StoreError> {
    let forget = match dead {
        Dead::AllBut(holder) => sqlx::query("DELETE FROM holder WHERE id <> ?1").bind(holder.0),
        Dead::Expired => {
            let started: Vec<(i64, i64)> = started.iter().map(|(id, token)| (id.0, token.0)).collect();
            sqlx::query(FORGET_DEAD).bind(now_ms).bind(json(&started))
        }
    };
    session.run(forget).await?;
    let rows = session.rows(sqlx::query(HELD_BY_NOBODY)).await?;
    let running = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)));
    let sorted = sort(running.collect::<Result<Vec<_>, _>>().map_err(store_error)?, started);
    give_back(session, &sorted).await?;
    let failed = end::quarantine(session, &sorted.quarantined, now_ms).await?;
    batch::charge(session, started).await?;
    Ok(sorted.rescued(failed, group::failing(session).await?))
}

async fn give_back(session: &mut Session, sorted: &Sorted) -> Result<(), StoreError> {
    let query = "UPDATE task SET state = 0, holder = NULL WHERE id IN (SELECT value FROM json_each(?1));
        UPDATE task SET state = 0, holder = NULL, crashes = crashes + 1
        WHERE id IN (SELECT value FROM json_each(?2))";
    if sorted.unstarted.is_empty() && sorted.crashed.is_empty() {
        return Ok(());
    }
    session.run(sqlx::query(query).bind(json(&sorted.unstarted)).bind(json(&sorted.crashed))).await
}
