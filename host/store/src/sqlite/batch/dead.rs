//! Dead letters: listed, made items again, forgotten.

use keiko_core::batch::{DeadLetter, ItemView};
use keiko_core::id::{ItemId, ProcessorId, TenantId};
use keiko_core::port::{DeadChanged, StoreError};
use sqlx::Row;
use sqlx::sqlite::SqlitePool;

use super::super::error::store_error;
use super::super::session::{Session, json};
use super::add::count;
use super::read::view;
use crate::format::decode_failure;
use crate::gather::WaitingChanges;
use crate::trouble::undecodable;

pub(crate) const LIST: &str =
    "SELECT id, key, type, bytes, created_ms, attempts, dead_ms, code, message, detail
    FROM dead_letter INDEXED BY dead_letter_processor
    WHERE tenant = ?1 AND processor = ?2 AND id > ?3 ORDER BY id LIMIT ?4";

/// The dead letters that a wish means: one, or the first of a processor.
const MEANT: &str = "SELECT id, size FROM dead_letter INDEXED BY dead_letter_processor
    WHERE tenant = ?1 AND processor = ?2 AND id = coalesce(?3, id) ORDER BY id LIMIT ?4";

const REVIVE: &str =
    "INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type, bytes)
    SELECT id, tenant, processor, key, id, created_ms, ?2, size, type, bytes FROM dead_letter
    WHERE id IN (SELECT value FROM json_each(?1))";

const FORGET: &str = "DELETE FROM dead_letter WHERE id IN (SELECT value FROM json_each(?1))";

/// Up to `limit` dead letters behind one.
pub(super) async fn list(
    readers: &SqlitePool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<DeadLetter>, StoreError> {
    let query = sqlx::query(LIST).bind(tenant.0).bind(processor.0);
    let query = query.bind(after.map_or(i64::MIN, |after| after.0)).bind(limit);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let letter = |row| {
        let ItemView { id, key, payload, created_ms, attempts } = view(row)?;
        let text = |column: usize| row.try_get::<&str, _>(column).map_err(store_error);
        let detail: Option<&str> = row.try_get(9).map_err(store_error)?;
        let failure = decode_failure(text(7)?, text(8)?.to_owned(), detail).map_err(undecodable)?;
        let dead_ms = row.try_get(6).map_err(store_error)?;
        Ok(DeadLetter { id, key, payload, created_ms, dead_ms, attempts, failure })
    };
    rows.iter().map(letter).collect()
}

/// Makes dead letters items again.
pub(super) async fn retry(
    session: &mut Session,
    tenant: TenantId,
    processor: ProcessorId,
    id: Option<ItemId>,
    limit: u32,
    now_ms: i64,
) -> Result<DeadChanged, StoreError> {
    let (ids, changed) = meant(session, tenant, processor, id, limit).await?;
    if ids.is_empty() {
        return Ok(changed);
    }
    session.run(sqlx::query(REVIVE).bind(json(&ids)).bind(now_ms)).await?;
    session.run(sqlx::query(FORGET).bind(json(&ids))).await?;
    let mut changes = WaitingChanges::default();
    changes.add(tenant, changed.count as i64, changed.bytes as i64);
    count(session, &changes).await?;
    Ok(changed)
}

/// Forgets dead letters.
pub(super) async fn forget(
    session: &mut Session,
    tenant: TenantId,
    processor: ProcessorId,
    id: Option<ItemId>,
    limit: u32,
) -> Result<DeadChanged, StoreError> {
    let (ids, changed) = meant(session, tenant, processor, id, limit).await?;
    if !ids.is_empty() {
        session.run(sqlx::query(FORGET).bind(json(&ids))).await?;
    }
    Ok(changed)
}

async fn meant(
    session: &mut Session,
    tenant: TenantId,
    processor: ProcessorId,
    id: Option<ItemId>,
    limit: u32,
) -> Result<(Vec<i64>, DeadChanged), StoreError> {
    let query = sqlx::query(MEANT).bind(tenant.0).bind(processor.0).bind(id.map(|id| id.0)).bind(limit);
    let (mut ids, mut changed) = (Vec::new(), DeadChanged::default());
    for row in session.rows(query).await? {
        let (id, size): (i64, i64) =
            row.try_get(0).and_then(|id| Ok((id, row.try_get(1)?))).map_err(store_error)?;
        ids.push(id);
        changed.count += 1;
        changed.bytes += size.max(0) as u64;
    }
    Ok((ids, changed))
}
