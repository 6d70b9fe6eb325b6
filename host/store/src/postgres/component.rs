//! Components by digest: the one table that belongs to nobody, because equal bytes are kept once.

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::StoreError;

use super::pool::Pool;
use super::row::get;

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
