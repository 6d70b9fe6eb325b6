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

/// Adds to what tenants spent on a day, given as a source of rows.
macro_rules! usage {
    ($day:literal, $($source:tt)*) => {
        concat!(
            "INSERT INTO usage AS u (tenant, day, attempts, completed, failed, fuel_used, guest_us)
    SELECT tenant, ",
            $day,
            ", attempts, completed, failed, fuel_used, guest_us
    FROM ",
            $($source)*,
            " AS c (tenant, attempts, completed, failed, fuel_used, guest_us)
    ON CONFLICT (tenant, day) DO UPDATE SET attempts = u.attempts + excluded.attempts,
        completed = u.completed + excluded.completed, failed = u.failed + excluded.failed,
        fuel_used = u.fuel_used + excluded.fuel_used, guest_us = u.guest_us + excluded.guest_us"
        )
    };
}

/// Adds to agents' numbers, given as a source of rows.
macro_rules! agents {
    ($($source:tt)*) => {
        concat!(
            "INSERT INTO agent_count AS a (agent, tenant, total, completed, failed, cancelled, timed, elapsed_us)
    SELECT * FROM ",
            $($source)*,
            " AS c ON CONFLICT (agent) DO UPDATE SET total = a.total + excluded.total,
        completed = a.completed + excluded.completed, failed = a.failed + excluded.failed,
        cancelled = a.cancelled + excluded.cancelled, timed = a.timed + excluded.timed,
        elapsed_us = a.elapsed_us + excluded.elapsed_us"
        )
    };
}

/// A sum of numbers that are never negative, as a column holds it.
macro_rules! sum {
    ($column:literal) => {
        concat!("least(sum(", $column, "), 9223372036854775807)::bigint")
    };
}
pub(crate) use {agents, sum, usage};

/// Adds to tenants' numbers, given as five arrays: see [`bind_tenants`].
macro_rules! tenants {
    () => {
        "UPDATE tenant_count AS t SET live = t.live + c.live, completed = t.completed + c.completed,
            failed = t.failed + c.failed, cancelled = t.cancelled + c.cancelled
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
            AS c (tenant, live, completed, failed, cancelled) WHERE t.tenant = c.tenant"
    };
}

const TENANTS: &str = tenants!();

const AGENTS: &str = agents!(
    "unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])"
);

/// What tenants spent, given as six arrays and the day, with how their numbers change.
const TENANTS_AND_USAGE: &str = concat!(
    "WITH counted AS (",
    tenants!(),
    ") ",
    usage!(
        "$12",
        "unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[])"
    )
);

/// Writes what changed.
pub(crate) async fn store(session: &mut Session, changes: &Changes) -> Result<(), StoreError> {
    let rows = changes.rows();
    if !rows.is_empty() {
        session.run(bind_tenants(sqlx::query(TENANTS), &rows)).await?;
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
    if usage.is_empty() {
        return store(session, changes).await;
    }
    type Row = (i64, i64, i64, i64, i64, i64);
    let rows = usage.rows();
    let column = |of: fn(&Row) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = bind_tenants(sqlx::query(TENANTS_AND_USAGE), &changes.rows());
    let query = query.bind(column(|row| row.0)).bind(column(|row| row.1)).bind(column(|row| row.2));
    let query = query.bind(column(|row| row.3)).bind(column(|row| row.4)).bind(column(|row| row.5));
    session.run(query.bind(day(now_ms))).await?;
    store_others(session, changes).await
}

/// A row of tenants' numbers: see [`Changes::rows`].
type TenantRow = (i64, i64, i64, i64, i64);

/// Binds five arrays.
fn bind_tenants<'q>(
    query: Query<'q, Postgres, PgArguments>,
    rows: &[TenantRow],
) -> Query<'q, Postgres, PgArguments> {
    let column = |of: fn(&TenantRow) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = query.bind(column(|row| row.0)).bind(column(|row| row.1));
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
