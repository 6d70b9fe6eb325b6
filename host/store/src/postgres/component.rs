//! Components by digest, and the machine code that hosts have made of them: tables that belong to nobody, because equal bytes are
//! kept once.

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::{ArtifactName, StoreError};

use super::pool::Pool;
use super::row::get;

/// Artifacts of one component: hosts of as many sorts, or releases, find what another one has made.
const ARTIFACTS_MAX: i64 = 4;

/// Keeps bytes. One statement, which commits by itself.
pub(crate) async fn put(pool: &Pool, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
    let query = "INSERT INTO component (digest, bytes) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING";
    let query = sqlx::query(query).bind(&digest.0[..]).bind(&bytes[..]);
    pool.system().await?.rows(query).await.map(drop)
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
