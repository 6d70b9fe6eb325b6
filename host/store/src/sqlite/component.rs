//! Components by digest, in a file of their own: tens of megabytes each must not stand in the way of a task's
//! commit, nor in its backup.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::{Forgotten, StoreError};
use sqlx::sqlite::SqlitePool;
use sqlx::{ConnectOptions, Connection, Row};

use super::catalog::read_digest;
use super::error::store_error;
use super::open::{OpenError, pool_options, writer_options};

/// Connections to the file: a put and a get at once.
const CONNECTIONS: u32 = 2;
/// Page cache of a connection, in KiB as SQLite wants it: negative. Tens of megabytes pass through once, and would stay.
const CACHE: &str = "-1024";
/// Number of the file's form, in its `user_version`.
const FORMAT: i64 = 2;

/// What every older form becomes. When a component was put the last time stands apart: its bytes need not be written again for that.
/// Those of the first form count from now.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS component (
        digest BLOB NOT NULL PRIMARY KEY,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS kept (
        digest BLOB NOT NULL PRIMARY KEY,
        at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT OR IGNORE INTO kept SELECT digest, unixepoch() * 1000 FROM component;
    PRAGMA user_version = 2";
/// A component that nobody has kept again since its age was looked at.
const DELETE: &str = "DELETE FROM component WHERE digest = ?1
    AND EXISTS (SELECT 1 FROM kept WHERE digest = ?1 AND at_ms < ?2)";

/// Opens the file, making it when it is missing.
pub(crate) async fn open(path: &Path) -> Result<SqlitePool, OpenError> {
    let options = writer_options(path).row_buffer_size(1).pragma("cache_size", CACHE);
    let failed = || OpenError::database(path);
    let mut connection = options.connect().await.map_err(failed())?;
    let version = sqlx::query("PRAGMA user_version").fetch_one(&mut connection).await.map_err(failed())?;
    let version: i64 = version.try_get(0).map_err(failed())?;
    if version > FORMAT {
        let detail = format!("its format is {version}, this binary knows {FORMAT}");
        return Err(OpenError::Newer { path: path.to_owned(), detail });
    }
    if version < FORMAT {
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.map_err(failed())?;
    }
    connection.close().await.map_err(failed())?;
    Ok(pool_options(CONNECTIONS).connect_lazy_with(options))
}

/// Keeps bytes. Their age is written first, so that nothing forgets them in between.
pub(crate) async fn put(
    pool: &SqlitePool,
    digest: Digest,
    bytes: Bytes,
    now_ms: i64,
) -> Result<(), StoreError> {
    renew(pool, digest, now_ms).await?;
    let query = "INSERT INTO component (digest, bytes) VALUES (?1, ?2) ON CONFLICT (digest) DO NOTHING";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(&bytes[..]);
    query.execute(pool).await.map(drop).map_err(store_error)
}

async fn renew(pool: &SqlitePool, digest: Digest, now_ms: i64) -> Result<(), StoreError> {
    let query = "INSERT INTO kept AS k (digest, at_ms) VALUES (?1, ?2)
        ON CONFLICT (digest) DO UPDATE SET at_ms = max(k.at_ms, excluded.at_ms)";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(now_ms);
    query.execute(pool).await.map(drop).map_err(store_error)
}

/// Forgets what is not named and was put before a time; what is named is new when half of the time is over. The file keeps its
/// size: what comes next takes the room.
pub(crate) async fn forget(
    pool: &SqlitePool,
    named: &HashSet<Digest>,
    before_ms: i64,
    now_ms: i64,
) -> Result<Forgotten, StoreError> {
    let query =
        "SELECT c.digest, coalesce(k.at_ms, 0) FROM component AS c LEFT JOIN kept AS k USING (digest)";
    let rows = sqlx::query(query).fetch_all(pool).await.map_err(store_error)?;
    let mut forgotten = Forgotten::default();
    for row in &rows {
        let digest = read_digest(row, 0)?;
        let at_ms: i64 = row.try_get(1).map_err(store_error)?;
        let is_named = named.contains(&digest);
        if is_named && at_ms < i64::midpoint(before_ms, now_ms) {
            renew(pool, digest, now_ms).await?;
        }
        if !is_named && at_ms < before_ms && delete(pool, digest, before_ms).await? {
            forgotten.count += 1;
        } else {
            forgotten.kept.push(digest);
        }
    }
    Ok(forgotten)
}

async fn delete(pool: &SqlitePool, digest: Digest, before_ms: i64) -> Result<bool, StoreError> {
    let query = sqlx::query(DELETE).bind(&digest.0[..]).bind(before_ms);
    let deleted = query.execute(pool).await.map_err(store_error)?.rows_affected() > 0;
    let query = sqlx::query("DELETE FROM kept WHERE digest = ?1 AND at_ms < ?2");
    query.bind(&digest.0[..]).bind(before_ms).execute(pool).await.map_err(store_error)?;
    Ok(deleted)
}

/// The bytes under a digest.
pub(crate) async fn get(pool: &SqlitePool, digest: Digest) -> Result<Option<Bytes>, StoreError> {
    let query = sqlx::query("SELECT bytes FROM component WHERE digest = ?1").bind(&digest.0[..]);
    let row = query.fetch_optional(pool).await.map_err(store_error)?;
    let bytes: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(store_error)?;
    Ok(bytes.map(Bytes::from))
}
