//! Components by digest, and the machine code that hosts have made of them: tables that belong to nobody, because equal bytes are
//! kept once.

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::{ArtifactName, Forgotten, StoreError};

use super::pool::Pool;
use super::row::{self, get};

/// Artifacts of one component: hosts of as many sorts, or releases, find what another one has made.
const ARTIFACTS_MAX: i64 = 4;

/// Keeps bytes. One statement, which commits by itself.
pub(crate) async fn put(pool: &Pool, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
    let query = "INSERT INTO component AS c (digest, bytes, kept_ms) VALUES ($1, $2, $3)
        ON CONFLICT (digest) DO UPDATE SET kept_ms = greatest(c.kept_ms, excluded.kept_ms)";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(&bytes[..]).bind(now_ms);
    pool.system().await?.rows(query).await.map(drop)
}

/// Components that a version names whose plugin is not removed.
macro_rules! named {
    () => {
        "(SELECT v.digest FROM plugin_version AS v JOIN plugin AS p ON p.id = v.plugin AND NOT p.removed)"
    };
}

/// Forgets what nothing needs. Whoever keeps one of them again at the same moment waits for the statement or it for them, and
/// finds it new, or makes it.
pub(crate) async fn forget(pool: &Pool, before_ms: i64, now_ms: i64) -> Result<Forgotten, StoreError> {
    let mut connection = pool.system().await?;
    let query = concat!("UPDATE component SET kept_ms = $1 WHERE kept_ms < $2 AND digest IN ", named!());
    let query = sqlx::query(query).bind(now_ms).bind(i64::midpoint(before_ms, now_ms));
    connection.rows(query).await?;
    let query =
        concat!("DELETE FROM component WHERE kept_ms < $1 AND digest NOT IN ", named!(), " RETURNING digest");
    let count = connection.rows(sqlx::query(query).bind(before_ms)).await?.len() as u64;
    let rows = connection.rows(sqlx::query("SELECT digest FROM component")).await?;
    let kept = rows.iter().map(|row| row::digest(row, 0)).collect::<Result<_, _>>()?;
    Ok(Forgotten { count, kept })
}

/// The bytes under a digest.
pub(crate) async fn get_bytes(pool: &Pool, digest: Digest) -> Result<Option<Bytes>, StoreError> {
    let query = sqlx::query("SELECT bytes FROM component WHERE digest = $1").bind(&digest.0[..]);
    let row = pool.system().await?.row(query).await?;
    row.map(|row| get::<Vec<u8>>(&row, 0).map(Bytes::from)).transpose()
}

/// Keeps machine code of a component that is kept, in place of what has the same name and of the oldest beyond so many.
pub(crate) async fn put_artifact(
    pool: &Pool,
    digest: Digest,
    name: ArtifactName,
    bytes: Bytes,
) -> Result<(), StoreError> {
    let mut connection = pool.system().await?;
    let older = "DELETE FROM artifact WHERE digest = $1 AND (name = $2 OR number <= (
        SELECT number FROM artifact WHERE digest = $1 ORDER BY number DESC OFFSET $3 LIMIT 1))";
    let older = sqlx::query(older).bind(&digest.0[..]).bind(&name.0[..]).bind(ARTIFACTS_MAX - 1);
    connection.rows(older).await?;
    // Another host may have made the same at the same moment.
    let query =
        "INSERT INTO artifact (digest, name, bytes) SELECT digest, $2, $3 FROM component WHERE digest = $1
        ON CONFLICT (digest, name) DO NOTHING";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(&name.0[..]).bind(&bytes[..]);
    connection.rows(query).await.map(drop)
}

/// Machine code of a component under a name.
pub(crate) async fn artifact(
    pool: &Pool,
    digest: Digest,
    name: ArtifactName,
) -> Result<Option<Bytes>, StoreError> {
    let query = sqlx::query("SELECT bytes FROM artifact WHERE digest = $1 AND name = $2");
    let row = pool.system().await?.row(query.bind(&digest.0[..]).bind(&name.0[..])).await?;
    row.map(|row| get::<Vec<u8>>(&row, 0).map(Bytes::from)).transpose()
}
