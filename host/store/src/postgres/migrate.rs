//! Brings a database to the schema of this binary, whoever else does so at the same time.
//!
//! - A lock of the server's keeps hosts apart. It is polled for and never waited for: a host that waits in a statement
//!   holds a snapshot, and an index that is built concurrently waits for every snapshot.
//! - A file runs in one transaction together with its row in `migration`. One that starts with [`ALONE`] holds one
//!   statement that cannot run in a transaction, and must do no harm when it runs twice.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::time::Instant;

/// Migrations in order, by name; the number is the place, from 1.
const MIGRATIONS: &[(&str, &str)] = &[
    ("init", include_str!("../../../../migrations/postgres/0001_init.sql")),
    ("agents", include_str!("../../../../migrations/postgres/0002_agents.sql")),
    ("priority", include_str!("../../../../migrations/postgres/0003_priority.sql")),
    ("time_outs", include_str!("../../../../migrations/postgres/0004_time_outs.sql")),
    ("incomplete", include_str!("../../../../migrations/postgres/0005_incomplete.sql")),
    ("groups", include_str!("../../../../migrations/postgres/0006_groups.sql")),
    ("plugin_generations", include_str!("../../../../migrations/postgres/0007_plugin_generations.sql")),
    ("batches", include_str!("../../../../migrations/postgres/0008_batches.sql")),
    ("cache", include_str!("../../../../migrations/postgres/0009_cache.sql")),
    ("tree", include_str!("../../../../migrations/postgres/0010_tree.sql")),
    ("pauses", include_str!("../../../../migrations/postgres/0011_pauses.sql")),
    ("task_keys", include_str!("../../../../migrations/postgres/0012_task_keys.sql")),
    ("canaries", include_str!("../../../../migrations/postgres/0013_canaries.sql")),
    ("task_root", include_str!("../../../../migrations/postgres/0014_task_root.sql")),
    ("joins", include_str!("../../../../migrations/postgres/0015_joins.sql")),
    ("slots", include_str!("../../../../migrations/postgres/0016_slots.sql")),
    ("schedules", include_str!("../../../../migrations/postgres/0017_schedules.sql")),
    ("key_tasks", include_str!("../../../../migrations/postgres/0018_key_tasks.sql")),
    ("failing_groups", include_str!("../../../../migrations/postgres/0019_failing_groups.sql")),
    ("artifacts", include_str!("../../../../migrations/postgres/0020_artifacts.sql")),
    ("batch_places", include_str!("../../../../migrations/postgres/0021_batch_places.sql")),
    ("finished_root", include_str!("../../../../migrations/postgres/0022_finished_root.sql")),
    ("batch_segments", include_str!("../../../../migrations/postgres/0023_batch_segments.sql")),
    ("components_kept", include_str!("../../../../migrations/postgres/0024_components_kept.sql")),
    ("task_segments", include_str!("../../../../migrations/postgres/0025_task_segments.sql")),
    ("unique_retry", include_str!("../../../../migrations/postgres/0026_unique_retry.sql")),
];

/// How a file starts that cannot run in a transaction.
const ALONE: &str = "-- no-transaction";
/// The number of the lock: any number, as long as it is always this one.
const LOCK: i64 = 0x6b65_696b_6f01;
/// How often the lock is tried, and for how long another host may migrate.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(600));

/// Why a database cannot be brought to this schema.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    /// Somebody else's migration stands where one of ours would.
    #[error("the database has migration {number} `{name}`, which this binary does not know")]
    Unknown { number: i64, name: String },
    /// Another host holds the lock for too long.
    #[error("another host has been migrating the database for {} s", POLL.1.as_secs())]
    Locked,
    #[error("the database could not be brought to this binary's schema")]
    Database(#[from] sqlx::Error),
}

/// The number of this binary's newest migration.
pub(crate) fn newest() -> i64 {
    MIGRATIONS.len() as i64
}

/// Runs what is missing, or refuses.
pub(crate) async fn migrate(connection: &mut PgConnection) -> Result<(), MigrateError> {
    if missing(connection).await?.is_empty() {
        return Ok(());
    }
    lock(connection).await?;
    let outcome = locked(connection).await;
    // Goes with the connection at the latest.
    let unlock = sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(connection).await;
    outcome.and(unlock.map(drop).map_err(MigrateError::from))
}

async fn lock(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let end = Instant::now() + POLL.1;
    loop {
        let query = sqlx::query("SELECT pg_try_advisory_lock($1)").bind(LOCK);
        if query.fetch_one(&mut *connection).await?.try_get(0)? {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(MigrateError::Locked);
        }
        tokio::time::sleep(POLL.0).await;
    }
}

async fn locked(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let create = "CREATE TABLE IF NOT EXISTS migration (
        number bigint NOT NULL PRIMARY KEY, name text NOT NULL, applied_ms bigint NOT NULL)";
    sqlx::query(create).execute(&mut *connection).await?;
    for (number, name, text) in missing(connection).await? {
        if text.starts_with(ALONE) {
            sqlx::raw_sql(text).execute(&mut *connection).await?;
            note(connection, number, name).await?;
        } else {
            let mut transaction = connection.begin().await?;
            sqlx::raw_sql(text).execute(&mut *transaction).await?;
            note(&mut transaction, number, name).await?;
            transaction.commit().await?;
        }
        tracing::info!(migration = name, "migrated the database");
    }
    Ok(())
}

/// The migrations that the database does not have: number, name, text.
async fn missing(
    connection: &mut PgConnection,
) -> Result<Vec<(i64, &'static str, &'static str)>, MigrateError> {
    let query = sqlx::query("SELECT to_regclass('migration') IS NOT NULL");
    let mut had = 0;
    if query.fetch_one(&mut *connection).await?.try_get(0)? {
        let query = sqlx::query("SELECT number, name FROM migration ORDER BY number");
        for row in query.fetch_all(&mut *connection).await? {
            let (number, name): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
            let ours = usize::try_from(number - 1).ok().and_then(|place| MIGRATIONS.get(place));
            if ours.is_none_or(|(ours, _)| *ours != name) {
                return Err(MigrateError::Unknown { number, name });
            }
            had += 1;
        }
    }
    let numbered = (1..).zip(MIGRATIONS).skip(had);
    Ok(numbered.map(|(number, (name, text))| (number, *name, *text)).collect())
}

async fn note(connection: &mut PgConnection, number: i64, name: &str) -> Result<(), sqlx::Error> {
    // For people, so the database's clock is good enough.
    let insert = "INSERT INTO migration (number, name, applied_ms)
        VALUES ($1, $2, (extract(epoch FROM statement_timestamp()) * 1000)::bigint)";
    sqlx::query(insert).bind(number).bind(name).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_compiled_in_under_its_number_and_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let numbered = MIGRATIONS.iter().enumerate();
        let names: Vec<String> =
            numbered.map(|(place, (name, _))| format!("{:04}_{name}.sql", place + 1)).collect();
        assert_eq!(files, names);
    }
}
