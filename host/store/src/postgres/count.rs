//! Writes what is counted, in the transaction that changes it: tenants first, then agents, then groups, each in order, so that two
//! transactions wait for each other in one direction only.

use keiko_core::port::StoreError;
use keiko_core::usage::day;

use super::group;
use super::session::Session;
use crate::count::{Changes, Usage};

const TENANTS: &str =
    "UPDATE tenant_count AS t SET live = t.live + c.live, completed = t.completed + c.completed,
        failed = t.failed + c.failed, cancelled = t.cancelled + c.cancelled
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
        AS c (tenant, live, completed, failed, cancelled)
    WHERE t.tenant = c.tenant";

const AGENTS: &str = "INSERT INTO agent_count AS a
        (agent, tenant, total, completed, failed, cancelled, timed, elapsed_us)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[])
    ON CONFLICT (agent) DO UPDATE SET total = a.total + excluded.total, completed = a.completed + excluded.completed,
        failed = a.failed + excluded.failed, cancelled = a.cancelled + excluded.cancelled,
        timed = a.timed + excluded.timed, elapsed_us = a.elapsed_us + excluded.elapsed_us";

/// A row of usage: see [`Usage::rows`].
type Row = (i64, i64, i64, i64, i64, i64);

const USAGE: &str = "INSERT INTO usage AS u (tenant, day, attempts, completed, failed, fuel_used, guest_us)
    SELECT tenant, $7, attempts, completed, failed, fuel_used, guest_us
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS c (tenant, attempts, completed, failed, fuel_used, guest_us)
    ON CONFLICT (tenant, day) DO UPDATE SET attempts = u.attempts + excluded.attempts,
        completed = u.completed + excluded.completed, failed = u.failed + excluded.failed,
        fuel_used = u.fuel_used + excluded.fuel_used, guest_us = u.guest_us + excluded.guest_us";

/// Writes what changed.
pub(crate) async fn store(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
    let rows = changes.rows();
    if !rows.is_empty() {
        let column = |of: fn(&(i64, i64, i64, i64, i64)) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
        let query = sqlx::query(TENANTS).bind(column(|row| row.0)).bind(column(|row| row.1));
        let query = query.bind(column(|row| row.2)).bind(column(|row| row.3)).bind(column(|row| row.4));
        session.run(query).await?;
    }
    let rows = changes.agent_rows();
    if !rows.is_empty() {
        type AgentRow = (i64, i64, i64, i64, i64, i64, i64, i64);
        let column = |of: fn(&AgentRow) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
        let query = sqlx::query(AGENTS).bind(column(|row| row.0)).bind(column(|row| row.1));
        let query = query.bind(column(|row| row.2)).bind(column(|row| row.3)).bind(column(|row| row.4));
        let query = query.bind(column(|row| row.5)).bind(column(|row| row.6)).bind(column(|row| row.7));
        session.run(query).await?;
    }
    group::count(session, changes).await
}

/// Writes what changed and what was spent.
pub(crate) async fn store_with(
    session: &mut Session,
    changes: &Changes,
    usage: &Usage,
    now_ms: i64,
) -> Result<(), StoreError> {
    store(session, changes).await?;
    let rows = usage.rows();
    if rows.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Row) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = sqlx::query(USAGE).bind(column(|row| row.0)).bind(column(|row| row.1));
    let query = query.bind(column(|row| row.2)).bind(column(|row| row.3)).bind(column(|row| row.4));
    session.run(query.bind(column(|row| row.5)).bind(day(now_ms))).await.map(drop)
}
