//! Components by digest, in a file of their own: tens of megabytes each must not stand in the way of a task's
//! commit, nor in its backup.

use std::path::Path;

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::StoreError;
use sqlx::sqlite::SqlitePool;
use sqlx::{ConnectOptions, Connection, Row};

use super::error::store_error;
use super::open::{OpenError, pool_options, writer_options};

/// Connections to the file: a put and a get at once.
const CONNECTIONS: u32 = 2;
/// Number of the file's one form, in its `user_version`.
const FORMAT: i64 = 1;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS component (
        digest BLOB NOT NULL PRIMARY KEY,
        bytes BLOB NOT NULL
    ) STRICT;
    PRAGMA user_version = 1";

/// Opens the file, making it when it is missing.
pub(crate) async fn open(path: &Path) -> Result<SqlitePool, OpenError> {
    let options = writer_options(path).row_buffer_size(1);
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

/// Keeps bytes. One statement, which commits by itself.
pub(crate) async fn put(pool: &SqlitePool, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
    let query = "INSERT INTO component (digest, bytes) VALUES (?1, ?2) ON CONFLICT (digest) DO NOTHING";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(&bytes[..]);
    query.execute(pool).await.map(drop).map_err(store_error)
}

/// The bytes under a digest.
pub(crate) async fn get(pool: &SqlitePool, digest: Digest) -> Result<Option<Bytes>, StoreError> {
    let query = sqlx::query("SELECT bytes FROM component WHERE digest = ?1").bind(&digest.0[..]);
    let row = query.fetch_optional(pool).await.map_err(store_error)?;
    let bytes: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(store_error)?;
    Ok(bytes.map(Bytes::from))
}
