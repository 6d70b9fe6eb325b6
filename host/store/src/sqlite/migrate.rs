//! Brings a database file to the schema of this binary.
//!
//! Our own instead of sqlx's migrator, whose cargo feature brings hashing, file walking and macros for what is
//! a loop here: the files are compiled in, each runs in one transaction with its row in `migration`, and a file
//! that another binary has written further is refused.

use keiko_core::cache::{Installation, InvalidKey};
use sqlx::{Connection, Row, SqliteConnection};

/// Migrations in order, by name; the number is the place, from 1.
const MIGRATIONS: &[(&str, &str)] = &[
    ("init", include_str!("../../../../migrations/sqlite/0001_init.sql")),
    ("agents", include_str!("../../../../migrations/sqlite/0002_agents.sql")),
    ("priority", include_str!("../../../../migrations/sqlite/0003_priority.sql")),
    ("time_outs", include_str!("../../../../migrations/sqlite/0004_time_outs.sql")),
    ("incomplete", include_str!("../../../../migrations/sqlite/0005_incomplete.sql")),
    ("groups", include_str!("../../../../migrations/sqlite/0006_groups.sql")),
    ("plugin_generations", include_str!("../../../../migrations/sqlite/0007_plugin_generations.sql")),
    ("batches", include_str!("../../../../migrations/sqlite/0008_batches.sql")),
    ("cache", include_str!("../../../../migrations/sqlite/0009_cache.sql")),
    ("tree", include_str!("../../../../migrations/sqlite/0010_tree.sql")),
    ("pauses", include_str!("../../../../migrations/sqlite/0011_pauses.sql")),
    ("task_keys", include_str!("../../../../migrations/sqlite/0012_task_keys.sql")),
    ("canaries", include_str!("../../../../migrations/sqlite/0013_canaries.sql")),
    ("task_root", include_str!("../../../../migrations/sqlite/0014_task_root.sql")),
    ("joins", include_str!("../../../../migrations/sqlite/0015_joins.sql")),
    ("slots", include_str!("../../../../migrations/sqlite/0016_slots.sql")),
    ("schedules", include_str!("../../../../migrations/sqlite/0017_schedules.sql")),
    ("key_tasks", include_str!("../../../../migrations/sqlite/0018_key_tasks.sql")),
    ("failing_groups", include_str!("../../../../migrations/sqlite/0019_failing_groups.sql")),
    ("artifacts", include_str!("../../../../migrations/sqlite/0020_artifacts.sql")),
    ("batch_places", include_str!("../../../../migrations/sqlite/0021_batch_places.sql")),
    ("finished_root", include_str!("../../../../migrations/sqlite/0022_finished_root.sql")),
    ("batch_segments", include_str!("../../../../migrations/sqlite/0023_batch_segments.sql")),
    ("components_kept", include_str!("../../../../migrations/sqlite/0024_components_kept.sql")),
    ("task_segments", include_str!("../../../../migrations/sqlite/0025_task_segments.sql")),
    ("unique_retry", include_str!("../../../../migrations/sqlite/0026_unique_retry.sql")),
];

/// Why a database cannot be brought to this schema.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    /// Somebody else's migration stands where one of ours would.
    #[error("the database has migration {number} `{name}`, which this binary does not know")]
    Unknown { number: i64, name: String },
    #[error("the database could not be brought to this binary's schema")]
    Database(#[from] sqlx::Error),
}

/// The number of this binary's newest migration.
pub(crate) fn newest() -> i64 {
    MIGRATIONS.len() as i64
}

/// The random name of a database.
pub(crate) async fn installation(connection: &mut SqliteConnection) -> Result<Installation, sqlx::Error> {
    let row = sqlx::query("SELECT name FROM installation").fetch_one(connection).await?;
    row.try_get::<String, _>(0)?.parse().map_err(|error: InvalidKey| sqlx::Error::Decode(error.into()))
}

/// Runs what is missing, or refuses.
pub(crate) async fn migrate(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    let create = "CREATE TABLE IF NOT EXISTS migration (
        number INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_ms INTEGER NOT NULL) STRICT";
    sqlx::query(create).execute(&mut *connection).await?;
    let rows =
        sqlx::query("SELECT number, name FROM migration ORDER BY number").fetch_all(&mut *connection).await?;
    for row in &rows {
        let (number, name): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        let ours = usize::try_from(number - 1).ok().and_then(|place| MIGRATIONS.get(place));
        if ours.is_none_or(|(ours, _)| *ours != name) {
            return Err(MigrateError::Unknown { number, name });
        }
    }
    for (place, (name, text)) in MIGRATIONS.iter().enumerate().skip(rows.len()) {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(*text).execute(&mut *transaction).await?;
        // A note for people, so the database's clock is good enough.
        let insert = "INSERT INTO migration (number, name, applied_ms) VALUES (?1, ?2, unixepoch() * 1000)";
        sqlx::query(insert).bind(place as i64 + 1).bind(*name).execute(&mut *transaction).await?;
        transaction.commit().await?;
        tracing::info!(migration = name, "migrated the database");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_compiled_in_under_its_number_and_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/sqlite");
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
