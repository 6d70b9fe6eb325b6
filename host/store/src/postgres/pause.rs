//! Pauses: their rows, and the tasks that wait behind them.

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::pause::{PARKED_MS, Pause, Paused};
use keiko_core::port::StoreError;
use sqlx::postgres::PgRow;

use super::catalog::one_after_the_other;
use super::pool::Pool;
use super::row::get;
use super::session::Session;
use crate::pause::{stored_kind, told_kind};

const PAUSE: &str = "WITH grown AS (UPDATE sequence SET last = last + 1 WHERE name = 'catalog')
    INSERT INTO pause AS p (tenant, kind, since_ms) SELECT $1, $2, $3
        WHERE $2 = 0 OR EXISTS (SELECT FROM kind WHERE id = $2 AND tenant = $1)
    ON CONFLICT (tenant, kind) DO UPDATE SET since_ms = excluded.since_ms, ending = false WHERE p.ending";

/// A tenant's pause leaves nothing parked; a kind's ends when its tasks have their places.
const RESUME: &str = "WITH grown AS (UPDATE sequence SET last = last + 1 WHERE name = 'catalog'),
    gone AS (DELETE FROM pause WHERE tenant = $1 AND kind = $2 AND kind = 0 RETURNING 1),
    ended AS (UPDATE pause SET ending = true WHERE tenant = $1 AND kind = $2 AND kind <> 0 AND NOT ending RETURNING 1)
    SELECT 1 FROM gone UNION ALL SELECT 1 FROM ended";

/// Gives tasks back that were leased a moment ago of kinds that were paused, and parks them, at `$2`, when they still are:
/// whoever resumes one meanwhile waits, and finds them parked.
const PARK: &str = "
    WITH paused AS MATERIALIZED (
        SELECT p.kind FROM pause AS p WHERE NOT p.ending AND p.kind = ANY($3) ORDER BY p.kind FOR SHARE)
    UPDATE task AS t SET holder = NULL,
        due_ms = CASE WHEN t.kind IN (SELECT kind FROM paused) THEN coalesce(t.due_ms, t.run_at_ms) ELSE t.due_ms END,
        run_at_ms = CASE WHEN t.kind IN (SELECT kind FROM paused) THEN $2 ELSE t.run_at_ms END
    FROM unnest($1::bigint[]) AS l (id) WHERE t.id = l.id";

/// Gives up to `$3` tasks of a kind that are parked, at `$4`, their due times again: those with a priority take their place
/// with the next lease.
pub(crate) const UNPARK: &str = "
    UPDATE task AS t SET run_at_ms = t.due_ms, due_ms = CASE WHEN t.priority IS NOT NULL THEN t.due_ms END
    FROM (SELECT id FROM task WHERE tenant = $1 AND run_at_ms = $4 AND kind = $2
        AND EXISTS (SELECT FROM pause WHERE tenant = $1 AND kind = $2 AND ending)
        LIMIT $3 FOR UPDATE) AS parked
    WHERE t.id = parked.id";

/// Pauses a tenant or a kind of it.
pub(crate) async fn pause(session: &mut Session, what: Paused, now_ms: i64) -> Result<bool, StoreError> {
    one_after_the_other(session).await?;
    let query = sqlx::query(PAUSE).bind(what.tenant.0).bind(stored_kind(what)).bind(now_ms);
    Ok(session.run(query).await? > 0)
}

/// Ends a pause.
pub(crate) async fn resume(session: &mut Session, what: Paused) -> Result<bool, StoreError> {
    one_after_the_other(session).await?;
    let query = sqlx::query(RESUME).bind(what.tenant.0).bind(stored_kind(what));
    Ok(session.row(query).await?.is_some())
}

/// Gives parked tasks of a kind their due times.
pub(crate) async fn unpark(session: &mut Session, what: Paused, count_max: u32) -> Result<u64, StoreError> {
    let (tenant, kind) = (what.tenant.0, stored_kind(what));
    // Whoever pauses it again meanwhile waits.
    one_after_the_other(session).await?;
    let query = sqlx::query(UNPARK).bind(tenant).bind(kind).bind(i64::from(count_max)).bind(PARKED_MS);
    let count = session.run(query).await?;
    if count < u64::from(count_max) {
        let query = "DELETE FROM pause WHERE tenant = $1 AND kind = $2 AND ending";
        session.run(sqlx::query(query).bind(tenant).bind(kind)).await?;
    }
    Ok(count)
}

/// Parks tasks that a lease took of paused kinds.
pub(crate) async fn park(session: &mut Session, tasks: &[(TaskId, KindId)]) -> Result<(), StoreError> {
    if tasks.is_empty() {
        return Ok(());
    }
    let (ids, kinds): (Vec<i64>, Vec<i64>) = tasks.iter().map(|(id, kind)| (id.0, kind.0)).unzip();
    session.run(sqlx::query(PARK).bind(ids).bind(PARKED_MS).bind(kinds)).await.map(drop)
}

/// Every pause.
pub(crate) async fn pauses(pool: &Pool) -> Result<Vec<Pause>, StoreError> {
    let query = sqlx::query("SELECT tenant, kind, since_ms, ending FROM pause ORDER BY tenant, kind");
    let rows = pool.system().await?.rows(query).await?;
    let read = |row: &PgRow| {
        let what = Paused { tenant: TenantId(get(row, 0)?), kind: told_kind(KindId(get(row, 1)?)) };
        Ok(Pause { what, since_ms: get(row, 2)?, ending: get(row, 3)? })
    };
    rows.iter().map(read).collect()
}
