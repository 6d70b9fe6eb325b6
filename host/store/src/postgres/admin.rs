//! What an operator asks of the database: its state, and whether it holds together. Hosts may work beside: everything is
//! read in one snapshot.

use keiko_core::port::StoreError;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Row};

use super::PostgresStore;
use super::error::store_error;
use super::migrate::newest;
use super::open::{Named, OpenError, prepare};
use super::options::PostgresOptions;
use crate::admin::{
    AdminError, Finding, HolderStatus, Numbers, RECOUNT, RULES, Status, TenantStatus, recount, require_schema,
};

/// The database's size and those of the tables that grow, with their indexes; of those that are there.
const SIZES: &str = "SELECT 'database', pg_database_size(current_database())
    UNION ALL SELECT name, pg_total_relation_size(to_regclass(name))
    FROM unnest(ARRAY['task', 'task_segment', 'finished', 'attempt', 'attempt_log', 'component', 'artifact', 'agent', 'app_user']) AS name
    WHERE to_regclass(name) IS NOT NULL";

/// Rules that need what only a server has.
const SERVER_RULES: &[(&str, &str)] = &[
    (RECOUNT, recount!("(SELECT tenant FROM task UNION ALL SELECT tenant FROM task_segment, generate_series(1, live))")),
    (
        "every segment's kind is its tenant's, and whoever has leased it is there",
        "SELECT count(*) FROM task_segment AS s
        WHERE NOT EXISTS (SELECT FROM kind AS k WHERE k.id = s.kind AND k.tenant = s.tenant)
            OR (s.holder IS NOT NULL AND NOT EXISTS (SELECT FROM holder AS h WHERE h.id = s.holder))",
    ),
    (
        "no segment is above the last number given out",
        "SELECT count(*) FROM task_segment WHERE first > (SELECT last FROM sequence WHERE name = 'task')",
    ),
    (
        "a segment says how many of its tasks have not left",
        "SELECT count(*) FROM task_segment WHERE live <> 128 - bit_count(gone)",
    ),
    (
        "no task of a segment is a row or has ended too",
        "SELECT count(*) FROM (SELECT first + place AS id FROM task_segment, generate_series(0, 127) AS place
            WHERE get_bit(gone, place) = 0) AS s
        WHERE EXISTS (SELECT FROM task AS t WHERE t.id = s.id) OR EXISTS (SELECT FROM finished AS f WHERE f.id = s.id)",
    ),
    (
        "every table of tenants is guarded by row-level security",
        "SELECT count(*) FROM pg_class AS c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
            AND EXISTS (SELECT FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped)
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity)",
    ),
    (
        "every index is complete",
        "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
        WHERE c.relnamespace = current_schema()::regnamespace AND NOT i.indisvalid",
    ),
];

/// Brings the database to this binary's schema.
pub async fn migrate(options: &PostgresOptions) -> Result<(), OpenError> {
    prepare(options).await
}

/// What is in the database.
pub async fn status(options: &PostgresOptions) -> Result<Status, AdminError> {
    let mut connection = connect(options).await?;
    let version = sqlx::query("SHOW server_version").fetch_one(&mut connection).await?.try_get(0)?;
    let schema = schema(&mut connection).await?;
    let mut status = Status {
        engine: "postgresql",
        version,
        schema,
        schema_known: newest(),
        sizes: sizes(&mut connection).await?,
        tenants: Vec::new(),
        holders: Vec::new(),
    };
    if schema > 0 {
        begin(&mut connection).await?;
        let query = "SELECT t.id, t.name, c.live, c.completed, c.failed, c.cancelled
            FROM tenant AS t JOIN tenant_count AS c ON c.tenant = t.id ORDER BY t.id";
        let rows = sqlx::query(query).fetch_all(&mut connection).await?;
        status.tenants = rows.iter().map(tenant).collect::<Result<_, _>>()?;
        let query = "SELECT h.id, h.opened_ms, h.until_ms, coalesce(t.running, 0)
            FROM holder AS h LEFT JOIN (SELECT holder, sum(live)::bigint AS running FROM (
                    SELECT holder, 1 AS live FROM task UNION ALL SELECT holder, live FROM task_segment) AS leased
                WHERE holder IS NOT NULL GROUP BY holder) AS t ON t.holder = h.id
            ORDER BY h.id";
        let rows = sqlx::query(query).fetch_all(&mut connection).await?;
        status.holders = rows.iter().map(holder).collect::<Result<_, _>>()?;
    }
    connection.close().await?;
    Ok(status)
}

/// Looks whether the database holds together.
pub async fn check(options: &PostgresOptions) -> Result<Vec<Finding>, AdminError> {
    let mut connection = connect(options).await?;
    require_schema(schema(&mut connection).await?, newest())?;
    begin(&mut connection).await?;
    let mut findings = Vec::new();
    for (rule, statement) in SERVER_RULES.iter().chain(RULES) {
        let broken: i64 = sqlx::query(*statement).fetch_one(&mut connection).await?.try_get(0)?;
        findings.push(Finding { rule, broken: broken.unsigned_abs() });
    }
    connection.close().await?;
    Ok(findings)
}

impl PostgresStore {
    /// The last numbers given out.
    pub async fn numbers(&self) -> Result<Numbers, StoreError> {
        let query = "SELECT (SELECT last FROM sequence WHERE name = 'holder'),
            (SELECT last FROM sequence WHERE name = 'task')";
        let row = self.pool().system().await?.row(sqlx::query(query)).await?;
        let row = row.ok_or_else(|| store_error(sqlx::Error::RowNotFound))?;
        let read = |place: usize| row.try_get(place).map_err(store_error);
        Ok(Numbers { holder: read(0)?, task: read(1)? })
    }
}

async fn connect(options: &PostgresOptions) -> Result<PgConnection, AdminError> {
    let connect = options.owner()?;
    let named = Named::of(options, &connect);
    Ok(connect.connect().await.map_err(|error| named.refused(error))?)
}

/// One snapshot of every tenant's rows.
async fn begin(connection: &mut PgConnection) -> Result<(), AdminError> {
    let text = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL ROLE keiko_system";
    sqlx::raw_sql(text).execute(connection).await?;
    Ok(())
}

async fn schema(connection: &mut PgConnection) -> Result<i64, AdminError> {
    let query = "SELECT to_regclass('migration') IS NOT NULL";
    if !sqlx::query(query).fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        return Ok(0);
    }
    let query = "SELECT coalesce(max(number), 0) FROM migration";
    Ok(sqlx::query(query).fetch_one(&mut *connection).await?.try_get(0)?)
}

async fn sizes(connection: &mut PgConnection) -> Result<Vec<(String, u64)>, AdminError> {
    let rows = sqlx::query(SIZES).fetch_all(connection).await?;
    let size = |row: &PgRow| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.unsigned_abs()));
    Ok(rows.iter().map(size).collect::<Result<_, sqlx::Error>>()?)
}

fn tenant(row: &PgRow) -> Result<TenantStatus, sqlx::Error> {
    let count = |place: usize| row.try_get::<i64, _>(place).map(i64::unsigned_abs);
    Ok(TenantStatus {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        live: count(2)?,
        completed: count(3)?,
        failed: count(4)?,
        cancelled: count(5)?,
    })
}

fn holder(row: &PgRow) -> Result<HolderStatus, sqlx::Error> {
    let running = row.try_get::<i64, _>(3)?.unsigned_abs();
    Ok(HolderStatus { id: row.try_get(0)?, opened_ms: row.try_get(1)?, until_ms: row.try_get(2)?, running })
}
