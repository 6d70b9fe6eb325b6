//! The cache's entries beside the tasks: in tables that are not logged, by connections that see one tenant's rows. Each
//! use is one statement; a read writes nothing.

use bytes::Bytes;
use keiko_core::cache::{CacheKey, Installation};
use keiko_core::catalog::Tenant;
use keiko_core::id::TenantId;
use keiko_core::port::{Kept, LevelUsage, StoreError};
use sqlx::postgres::PgRow;

use super::pool::Pool;
use super::row::{get, large_count, name};
use crate::format::Undecodable;
use crate::trouble::undecodable;

const GET: &str = "SELECT namespace, key, bytes FROM cache
    WHERE tenant = $1 AND (namespace, key) IN (SELECT * FROM unnest($2::text[], $3::text[])) AND until_ms > $4";
const PUT: &str = "INSERT INTO cache (tenant, namespace, key, marker, stamp, until_ms, size, bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (tenant, namespace, key) DO UPDATE SET marker = excluded.marker, stamp = excluded.stamp,
        until_ms = excluded.until_ms, size = excluded.size, bytes = excluded.bytes
    WHERE cache.stamp <= excluded.stamp
    RETURNING 1";
const DISCARD: &str = "DELETE FROM cache WHERE tenant = $1 AND namespace = $2 AND key = $3";
const CLEAR: &str =
    "WITH gone AS (DELETE FROM cache WHERE tenant = $1 RETURNING 1) SELECT count(*) FROM gone";
pub(crate) const PRUNE_ENDED: &str = "WITH ended AS (DELETE FROM cache WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM cache WHERE tenant = $1 AND until_ms <= $2 LIMIT $3)) RETURNING 1),
    leases AS (DELETE FROM cache_lease WHERE tenant = $1 AND until_ms <= keiko_now($2))
    SELECT count(*) FROM ended";
/// The oldest of which those before are not yet as many bytes as there are too many.
pub(crate) const PRUNE_OLDEST: &str = "WITH oldest AS (DELETE FROM cache WHERE ctid = ANY (ARRAY(SELECT id FROM
        (SELECT id, sum(size) OVER (ORDER BY stamp, id) - size AS before FROM
            (SELECT ctid AS id, stamp, size FROM cache WHERE tenant = $1 AND NOT marker ORDER BY stamp LIMIT $2) AS o
        ) AS o WHERE before < $3)) AND tenant = $1 RETURNING 1)
    SELECT count(*) FROM oldest";
const USAGE: &str =
    "SELECT count(*), coalesce(sum(size), 0)::bigint FROM cache WHERE tenant = $1 AND NOT marker";
const TAKE_LEASE: &str = "INSERT INTO cache_lease (tenant, namespace, key, owner, until_ms)
    VALUES ($1, $2, $3, $4, keiko_now($5) + $6)
    ON CONFLICT (tenant, namespace, key) DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms
    WHERE cache_lease.owner = excluded.owner OR cache_lease.until_ms <= keiko_now($5)
    RETURNING 1";
const FREE_LEASE: &str = "DELETE FROM cache_lease
    WHERE tenant = $1 AND namespace = $2 AND key = $3 AND owner = $4 AND until_ms > keiko_now($5) RETURNING 1";

/// The random name of this database.
pub(crate) async fn installation(pool: &Pool) -> Result<Installation, StoreError> {
    let row = pool.system().await?.row(sqlx::query("SELECT name FROM installation")).await?;
    let row = row.ok_or_else(|| undecodable(Undecodable("installation")))?;
    name(&row, 0, "installation")
}

/// The one tenant whose keys these are.
fn tenant_of(keys: &[CacheKey]) -> Option<TenantId> {
    let tenant = keys.first()?.tenant().id;
    debug_assert!(keys.iter().all(|key| key.tenant().id == tenant), "keys of one tenant");
    Some(tenant)
}

pub(crate) async fn load(
    pool: &Pool,
    keys: &[CacheKey],
    now_ms: i64,
) -> Result<Vec<Option<Bytes>>, StoreError> {
    let Some(tenant) = tenant_of(keys) else { return Ok(Vec::new()) };
    let namespaces: Vec<&str> = keys.iter().map(|key| key.namespace().as_str()).collect();
    let texts: Vec<&str> = keys.iter().map(CacheKey::text).collect();
    let query = sqlx::query(GET).bind(tenant.0).bind(&namespaces).bind(&texts).bind(now_ms);
    let rows = pool.tenant(tenant).await?.rows(query).await?;
    let read = |row: &PgRow| -> Result<(String, String, Bytes), StoreError> {
        Ok((get(row, 0)?, get(row, 1)?, get::<Vec<u8>>(row, 2)?.into()))
    };
    let found = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let of = |key: &CacheKey| {
        let is = |(namespace, text, _): &&(String, String, Bytes)| {
            namespace == key.namespace().as_str() && text == key.text()
        };
        // Of another tenant nothing is asked, and so nothing is found.
        let same_tenant = key.tenant().id == tenant;
        found.iter().find(is).filter(|_| same_tenant).map(|(_, _, bytes)| bytes.clone())
    };
    Ok(keys.iter().map(of).collect())
}

pub(crate) async fn put(pool: &Pool, kept: Kept) -> Result<bool, StoreError> {
    let key = &kept.key;
    let query = sqlx::query(PUT)
        .bind(key.tenant().id.0)
        .bind(key.namespace().as_str())
        .bind(key.text())
        .bind(key.namespace().is_markers())
        .bind(kept.stamp.0 as i64)
        .bind(kept.until_ms)
        .bind(i32::try_from(kept.bytes.len()).unwrap_or(i32::MAX))
        .bind(&kept.bytes[..]);
    Ok(pool.by_key(key.tenant().id).await?.row(query).await?.is_some())
}

pub(crate) async fn discard(pool: &Pool, key: &CacheKey) -> Result<(), StoreError> {
    let query = sqlx::query(DISCARD).bind(key.tenant().id.0).bind(key.namespace().as_str()).bind(key.text());
    pool.by_key(key.tenant().id).await?.rows(query).await.map(drop)
}

pub(crate) async fn clear(pool: &Pool, tenant: &Tenant) -> Result<u64, StoreError> {
    let row = pool.tenant(tenant.id).await?.row(sqlx::query(CLEAR).bind(tenant.id.0)).await?;
    row.map_or(Ok(0), |row| large_count(&row, 0))
}

pub(crate) async fn prune(
    pool: &Pool,
    tenant: &Tenant,
    bytes_max: u64,
    now_ms: i64,
    count_max: u32,
) -> Result<u64, StoreError> {
    let mut connection = pool.tenant(tenant.id).await?;
    let query = sqlx::query(PRUNE_ENDED).bind(tenant.id.0).bind(now_ms).bind(i64::from(count_max));
    let ended = connection.row(query).await?.map_or(Ok(0), |row| large_count(&row, 0))?;
    let left = i64::from(count_max) - ended as i64;
    let usage = connection.row(sqlx::query(USAGE).bind(tenant.id.0)).await?;
    let excess = usage.map_or(Ok(0), |row| large_count(&row, 1))?.saturating_sub(bytes_max);
    if left <= 0 || excess == 0 {
        return Ok(ended);
    }
    let query = sqlx::query(PRUNE_OLDEST).bind(tenant.id.0).bind(left).bind(excess as i64);
    let oldest = connection.row(query).await?.map_or(Ok(0), |row| large_count(&row, 0))?;
    Ok(ended + oldest)
}

pub(crate) async fn usage(pool: &Pool, tenant: &Tenant) -> Result<LevelUsage, StoreError> {
    let row = pool.tenant(tenant.id).await?.row(sqlx::query(USAGE).bind(tenant.id.0)).await?;
    let Some(row) = row else { return Ok(LevelUsage::default()) };
    Ok(LevelUsage { entries: large_count(&row, 0)?, bytes: large_count(&row, 1)? })
}

pub(crate) async fn take_lease(
    pool: &Pool,
    key: &CacheKey,
    owner: u64,
    lease_ms: u64,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let query = sqlx::query(TAKE_LEASE)
        .bind(key.tenant().id.0)
        .bind(key.namespace().as_str())
        .bind(key.text())
        .bind(owner as i64)
        .bind(now_ms)
        .bind(lease_ms as i64);
    Ok(pool.by_key(key.tenant().id).await?.row(query).await?.is_some())
}

pub(crate) async fn free_lease(
    pool: &Pool,
    key: &CacheKey,
    owner: u64,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let query = sqlx::query(FREE_LEASE)
        .bind(key.tenant().id.0)
        .bind(key.namespace().as_str())
        .bind(key.text())
        .bind(owner as i64)
        .bind(now_ms);
    Ok(pool.by_key(key.tenant().id).await?.row(query).await?.is_some())
}
