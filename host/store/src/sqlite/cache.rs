//! The cache's entries, in a file of their own: they are large, many and worth nothing after a loss, and must not stand in
//! the way of a task's commit. One connection writes, each statement by itself; a read writes nothing.
//!
//! A file that is damaged, or another database's, is made anew: what was in it comes from its origin again.

use std::path::Path;

use bytes::Bytes;
use keiko_core::cache::{CacheKey, Installation};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Kept, LevelUsage, StoreError, StoreErrorKind};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::error::store_error;
use super::open::{OpenError, pool_options, reader_options, writer_options};

/// Number of the file's one form, in its `user_version`.
const FORMAT: i64 = 1;
/// Connections that read.
const READERS: u32 = 2;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS entry (
        -- With installation, tenant and namespace.
        key TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        -- Whether it notes the removal of a tag, and so must outlive what has the tag.
        marker INTEGER NOT NULL,
        -- When it was made, as the envelope says: the newer of two counts.
        stamp INTEGER NOT NULL,
        until_ms INTEGER NOT NULL,
        -- Length of `bytes`.
        size INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS entry_until ON entry (tenant, until_ms);
    CREATE INDEX IF NOT EXISTS entry_age ON entry (tenant, stamp, size) WHERE marker = 0;
    -- Who computes a value.
    CREATE TABLE IF NOT EXISTS lease (
        key TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        owner INTEGER NOT NULL,
        until_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS lease_until ON lease (tenant, until_ms);
    CREATE TABLE IF NOT EXISTS installation (name TEXT NOT NULL PRIMARY KEY) STRICT;
    PRAGMA user_version = 1";

const GET: &str = "SELECT key, bytes FROM entry
    WHERE key IN (SELECT value FROM json_each(?1)) AND until_ms > ?2";
const PUT: &str = "INSERT INTO entry (key, tenant, marker, stamp, until_ms, size, bytes)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (key) DO UPDATE SET marker = excluded.marker, stamp = excluded.stamp, until_ms = excluded.until_ms,
        size = excluded.size, bytes = excluded.bytes
    WHERE entry.stamp <= excluded.stamp";
const PRUNE_ENDED: &str = "DELETE FROM entry WHERE rowid IN
    (SELECT rowid FROM entry WHERE tenant = ?1 AND until_ms <= ?2 LIMIT ?3)";
const PRUNE_LEASES: &str = "DELETE FROM lease WHERE tenant = ?1 AND until_ms <= ?2";
/// The oldest of which those before are not yet as many bytes as there are too many.
const PRUNE_OLDEST: &str = "DELETE FROM entry WHERE rowid IN (SELECT id FROM
    (SELECT id, sum(size) OVER (ORDER BY stamp, id) - size AS before FROM
        (SELECT rowid AS id, stamp, size FROM entry WHERE tenant = ?1 AND marker = 0 ORDER BY stamp LIMIT ?2))
    WHERE before < ?3)";
const USAGE: &str = "SELECT count(*), coalesce(sum(size), 0) FROM entry WHERE tenant = ?1 AND marker = 0";
const TAKE_LEASE: &str = "INSERT INTO lease (key, tenant, owner, until_ms) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms
    WHERE lease.owner = excluded.owner OR lease.until_ms <= ?5";
const FREE_LEASE: &str = "DELETE FROM lease WHERE key = ?1 AND owner = ?2 AND until_ms > ?3";

/// The entries of one database.
pub(crate) struct CacheFile {
    installation: Installation,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl CacheFile {
    /// Opens the file, making it, or making it anew, when there is none of this database that is any good.
    pub(crate) async fn open(path: &Path, installation: Installation) -> Result<CacheFile, OpenError> {
        let options = || writer_options(path).synchronous(SqliteSynchronous::Normal).row_buffer_size(1);
        let made = match prepare(options(), &installation).await {
            Ok(ours) => ours,
            Err(error) if is_damaged(&error) => false,
            Err(error) => return Err(OpenError::database(path)(error)),
        };
        if !made {
            tracing::info!("the cache's file is damaged or another database's, and is made anew");
            for suffix in ["", "-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                // One that is not there is as good as removed; one that cannot be removed fails below.
                let _ = std::fs::remove_file(name);
            }
            prepare(options(), &installation).await.map_err(OpenError::database(path))?;
        }
        let writer = pool_options(1).connect_lazy_with(options());
        Ok(CacheFile {
            installation,
            writer,
            readers: pool_options(READERS).connect_lazy_with(reader_options(path)),
        })
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    pub(crate) fn installation(&self) -> &Installation {
        &self.installation
    }

    pub(crate) async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        let external: Vec<String> = keys.iter().map(|key| key.external(&self.installation)).collect();
        let query = sqlx::query(GET).bind(serde_json::json!(external).to_string()).bind(now_ms);
        let rows = query.fetch_all(&self.readers).await.map_err(store_error)?;
        let read = |row: SqliteRow| -> Result<(String, Vec<u8>), sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?))
        };
        let mut found = rows.into_iter().map(read).collect::<Result<Vec<_>, _>>().map_err(store_error)?;
        let mut take = |key: &String| {
            // Of a key that is asked for twice both get it.
            let bytes = found.iter_mut().find(|(found, _)| found == key).map(|(_, bytes)| bytes.clone());
            bytes.map(Bytes::from)
        };
        Ok(external.iter().map(&mut take).collect())
    }

    pub(crate) async fn put(&self, kept: Kept) -> Result<bool, StoreError> {
        let query = sqlx::query(PUT)
            .bind(kept.key.external(&self.installation))
            .bind(kept.key.tenant().name.as_str())
            .bind(kept.key.namespace().is_markers())
            .bind(kept.stamp.0 as i64)
            .bind(kept.until_ms)
            .bind(kept.bytes.len() as i64)
            .bind(&kept.bytes[..]);
        query.execute(&self.writer).await.map(|done| done.rows_affected() > 0).map_err(store_error)
    }

    pub(crate) async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM entry WHERE key = ?1").bind(key.external(&self.installation));
        query.execute(&self.writer).await.map(drop).map_err(store_error)
    }

    pub(crate) async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        let query = sqlx::query("DELETE FROM entry WHERE tenant = ?1").bind(tenant.name.as_str());
        query.execute(&self.writer).await.map(|done| done.rows_affected()).map_err(store_error)
    }

    pub(crate) async fn prune(
        &self,
        tenant: &Tenant,
        bytes_max: u64,
        now_ms: i64,
        count_max: u32,
    ) -> Result<u64, StoreError> {
        let name = tenant.name.as_str();
        let ended = sqlx::query(PRUNE_ENDED).bind(name).bind(now_ms).bind(count_max);
        let ended = ended.execute(&self.writer).await.map_err(store_error)?.rows_affected();
        let leases = sqlx::query(PRUNE_LEASES).bind(name).bind(now_ms);
        leases.execute(&self.writer).await.map_err(store_error)?;
        let left = u64::from(count_max).saturating_sub(ended);
        let excess = self.usage(tenant).await?.bytes.saturating_sub(bytes_max);
        if left == 0 || excess == 0 {
            return Ok(ended);
        }
        let oldest = sqlx::query(PRUNE_OLDEST).bind(name).bind(left as i64).bind(excess as i64);
        let oldest = oldest.execute(&self.writer).await.map_err(store_error)?.rows_affected();
        Ok(ended + oldest)
    }

    pub(crate) async fn usage(&self, tenant: &Tenant) -> Result<LevelUsage, StoreError> {
        let query = sqlx::query(USAGE).bind(tenant.name.as_str());
        let row = query.fetch_one(&self.readers).await.map_err(store_error)?;
        let number = |column: usize| row.try_get::<i64, _>(column).map_err(store_error);
        Ok(LevelUsage { entries: number(0)?.max(0) as u64, bytes: number(1)?.max(0) as u64 })
    }

    pub(crate) async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(TAKE_LEASE)
            .bind(key.external(&self.installation))
            .bind(key.tenant().name.as_str())
            .bind(owner as i64)
            .bind(now_ms.saturating_add_unsigned(lease_ms))
            .bind(now_ms);
        query.execute(&self.writer).await.map(|done| done.rows_affected() > 0).map_err(store_error)
    }

    pub(crate) async fn free_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(FREE_LEASE).bind(key.external(&self.installation)).bind(owner as i64);
        let done = query.bind(now_ms).execute(&self.writer).await;
        done.map(|done| done.rows_affected() > 0).map_err(store_error)
    }
}

/// Brings the file to its form; whether it is this database's.
async fn prepare(options: SqliteConnectOptions, installation: &Installation) -> Result<bool, sqlx::Error> {
    let mut connection = options.connect().await?;
    let ours = form(&mut connection, installation).await;
    connection.close().await?;
    ours
}

async fn form(connection: &mut SqliteConnection, installation: &Installation) -> Result<bool, sqlx::Error> {
    let version = sqlx::query("PRAGMA user_version").fetch_one(&mut *connection).await?;
    let version: i64 = version.try_get(0)?;
    if version > FORMAT {
        return Ok(false);
    }
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    let whose = sqlx::query("SELECT name FROM installation").fetch_optional(&mut *connection).await?;
    let Some(whose) = whose else {
        let insert = sqlx::query("INSERT INTO installation (name) VALUES (?1)").bind(installation.as_str());
        return insert.execute(connection).await.map(|_| true);
    };
    Ok(whose.try_get::<String, _>(0)? == installation.as_str())
}

fn is_damaged(error: &sqlx::Error) -> bool {
    let text = matches!(error, sqlx::Error::Database(_)).then(|| error.to_string()).unwrap_or_default();
    text.contains("not a database")
        || text.contains("malformed")
        || store_error_kind(error) == StoreErrorKind::Integrity
}

fn store_error_kind(error: &sqlx::Error) -> StoreErrorKind {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreErrorKind::Integrity,
        _ => StoreErrorKind::Internal,
    }
}
