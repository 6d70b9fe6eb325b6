//! Pauses: their rows, and the tasks that wait behind them.

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::pause::{PARKED_MS, Pause, Paused};
use keiko_core::port::StoreError;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::error::store_error;
use super::session::{Session, json};
use crate::pause::{stored_kind, told_kind};

const PAUSE: &str = "INSERT INTO pause (tenant, kind, since_ms) SELECT ?1, ?2, ?3
        WHERE ?2 = 0 OR EXISTS (SELECT 1 FROM kind WHERE id = ?2 AND tenant = ?1)
    ON CONFLICT (tenant, kind) DO UPDATE SET since_ms = excluded.since_ms, ending = 0 WHERE ending RETURNING 1;
    UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";

/// A tenant's pause leaves nothing parked; a kind's ends when its tasks have their places.
const RESUME: &str = "DELETE FROM pause WHERE tenant = ?1 AND kind = ?2 AND kind = 0 RETURNING 1;
    UPDATE pause SET ending = 1 WHERE tenant = ?1 AND kind = ?2 AND NOT ending RETURNING 1;
    UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";

/// Parks tasks that were leased a moment ago, at `?2`, and remembers when they come due.
const PARK: &str = "UPDATE task NOT INDEXED SET state = 0, holder = NULL, due_ms = coalesce(due_ms, run_at_ms), run_at_ms = ?2
    WHERE id IN (SELECT value FROM json_each(?1))";

/// Gives up to `?3` tasks of a kind that are parked, at `?4`, their due times again: those with a priority take their place
/// with the next lease.
pub(crate) const UNPARK: &str = "
    UPDATE task SET run_at_ms = due_ms, due_ms = iif(priority IS NULL, NULL, due_ms) WHERE id IN (
        SELECT id FROM task INDEXED BY task_ready WHERE tenant = ?1 AND state = 0 AND run_at_ms = ?4 AND kind = ?2
            AND EXISTS (SELECT 1 FROM pause WHERE tenant = ?1 AND kind = ?2 AND ending) LIMIT ?3)
    RETURNING 1";

/// Pauses a tenant or a kind of it.
pub(crate) async fn pause(session: &mut Session, what: Paused, now_ms: i64) -> Result<bool, StoreError> {
    let query = sqlx::query(PAUSE).bind(what.tenant.0).bind(stored_kind(what)).bind(now_ms);
    Ok(!session.rows(query).await?.is_empty())
}

/// Ends a pause.
pub(crate) async fn resume(session: &mut Session, what: Paused) -> Result<bool, StoreError> {
    let query = sqlx::query(RESUME).bind(what.tenant.0).bind(stored_kind(what));
    Ok(!session.rows(query).await?.is_empty())
}

/// Gives parked tasks of a kind their due times.
pub(crate) async fn unpark(session: &mut Session, what: Paused, count_max: u32) -> Result<u64, StoreError> {
    let (tenant, kind) = (what.tenant.0, stored_kind(what));
    let query = sqlx::query(UNPARK).bind(tenant).bind(kind).bind(count_max).bind(PARKED_MS);
    let count = session.rows(query).await?.len() as u64;
    if count < u64::from(count_max) {
        let query = "DELETE FROM pause WHERE tenant = ?1 AND kind = ?2 AND ending";
        session.run(sqlx::query(query).bind(tenant).bind(kind)).await?;
    }
    Ok(count)
}

/// Parks tasks that a lease took of paused kinds.
pub(crate) async fn park(session: &mut Session, ids: &[TaskId]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    session.run(sqlx::query(PARK).bind(json(&ids)).bind(PARKED_MS)).await
}

/// Every pause.
pub(crate) async fn pauses(readers: &SqlitePool) -> Result<Vec<Pause>, StoreError> {
    let query = "SELECT tenant, kind, since_ms, ending FROM pause ORDER BY tenant, kind";
    let rows = sqlx::query(query).fetch_all(readers).await.map_err(store_error)?;
    let read = |row: &SqliteRow| {
        let what = Paused { tenant: TenantId(row.try_get(0)?), kind: told_kind(KindId(row.try_get(1)?)) };
        Ok(Pause { what, since_ms: row.try_get(2)?, ending: row.try_get(3)? })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(store_error)
}
