//! Writes what is counted, in the transaction that changes it: tenants first, then agents, then groups, each in order, so that two
//! transactions wait for each other in one direction only.

use keiko_core::port::StoreError;
use keiko_core::usage::day;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use super::group;
use super::session::Session;
use crate::count::{Changes, Usage};

macro_rules! tenants {
    () => {
        "UPDATE tenant_count AS t SET live = t.live + c.live, completed = t.completed + c.completed,
            failed = t.failed + c.failed, cancelled = t.cancelled + c.cancelled
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
            AS c (tenant, live, completed, failed, cancelled)
        WHERE t.tenant = c.tenant"
    };
}

const TENANTS: &str = tenants!();

const AGENTS: &str = "INSERT INTO agent_count AS a
        (agent, tenant, total, completed, failed, cancelled, timed, elapsed_us)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[])
    ON CONFLICT (agent) DO UPDATE SET total = a.total + excluded.total, completed = a.completed + excluded.completed,
        failed = a.failed + excluded.failed, cancelled = a.cancelled + excluded.cancelled,
        timed = a.timed + excluded.timed, elapsed_us = a.elapsed_us + excluded.elapsed_us";

/// A row of usage: see [`Usage::rows`].
type Row = (i64, i64, i64, i64, i64, i64);

/// What tenants spent, with how their numbers change: nearly every end of an attempt writes both.
const TENANTS_AND_USAGE: &str = concat!(
    "WITH counted AS (",
    tenants!(),
    ")
    INSERT INTO usage AS u (tenant, day, attempts, completed, failed, fuel_used, guest_us)
    SELECT tenant, $12, attempts, completed, failed, fuel_used, guest_us
    FROM unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[])
        AS c (tenant, attempts, completed, failed, fuel_used, guest_us)
    ON CONFLICT (tenant, day) DO UPDATE SET attempts = u.attempts + excluded.attempts,
        completed = u.completed + excluded.completed, failed = u.failed + excluded.failed,
        fuel_used = u.fuel_used + excluded.fuel_used, guest_us = u.guest_us + excluded.guest_us"
);

/// Writes what changed.
pub(crate) async fn store(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
    let rows = changes.rows();
    if !rows.is_empty() {
        session.run(bind_tenants(TENANTS, &rows)).await?;
    }
    store_others(session, changes).await
}

/// Writes what changed and what was spent.
pub(crate) async fn store_with(
    session: &mut Session,
    changes: &Changes,
    usage: &Usage,
    now_ms: i64,
) -> Result<(), StoreError> {
    let rows = usage.rows();
    if rows.is_empty() {
        return store(session, changes).await;
    }
    let column = |of: fn(&Row) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let tenants = changes.rows();
    let query = bind_tenants(TENANTS_AND_USAGE, &tenants).bind(column(|row| row.0)).bind(column(|row| row.1));
    let query = query.bind(column(|row| row.2)).bind(column(|row| row.3)).bind(column(|row| row.4));
    session.run(query.bind(column(|row| row.5)).bind(day(now_ms))).await?;
    store_others(session, changes).await
}

/// A row of tenants' numbers: see [`Changes::rows`].
type TenantRow = (i64, i64, i64, i64, i64);

fn bind_tenants<'q>(text: &'static str, rows: &[TenantRow]) -> Query<'q, Postgres, PgArguments> {
    let column = |of: fn(&TenantRow) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = sqlx::query(text).bind(column(|row| row.0)).bind(column(|row| row.1));
    query.bind(column(|row| row.2)).bind(column(|row| row.3)).bind(column(|row| row.4))
}

/// Writes what changed for agents and groups.
async fn store_others(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
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
