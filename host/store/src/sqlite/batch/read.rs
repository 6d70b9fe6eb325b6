//! What is seen of processors and their items.

use keiko_core::batch::{ItemView, Processor, ProcessorCounts, Stopped, Waiting};
use keiko_core::id::{ItemId, ProcessorId, TenantId, VersionId};
use keiko_core::port::StoreError;
use keiko_core::task::Payload;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::super::catalog::read_name;
use super::super::error::store_error;
use super::form::read_segment;
use crate::admit::read_type;
use crate::format::decode_failure;
use crate::segment::page::Page;
use crate::trouble::undecodable;

const PROCESSORS: &str =
    "SELECT p.id, p.tenant, p.name, p.stopped_ms, p.stopped_version, p.code, p.message, p.detail,
        (SELECT count(*) FROM batch_item AS i INDEXED BY batch_item_group WHERE i.processor = p.id)
            + (SELECT coalesce(sum(s.item_count), 0) FROM batch_segment AS s INDEXED BY batch_segment_group
                WHERE s.processor = p.id),
        (SELECT min(created_ms) FROM (
            SELECT created_ms FROM batch_item AS i INDEXED BY batch_item_group WHERE i.processor = p.id
            UNION ALL SELECT created_ms FROM batch_segment AS s INDEXED BY batch_segment_group
                WHERE s.processor = p.id)),
        (SELECT count(*) FROM batch AS b INDEXED BY batch_group WHERE b.processor = p.id),
        (SELECT count(*) FROM dead_letter AS d INDEXED BY dead_letter_processor
            WHERE d.tenant = p.tenant AND d.processor = p.id),
        (SELECT count(*) FROM batch_row AS r INDEXED BY batch_row_processor
            WHERE r.tenant = p.tenant AND r.processor = p.id)
    FROM processor AS p WHERE p.tenant = ?1 ORDER BY p.name";

const ITEMS: &str = "SELECT id, key, type, bytes, created_ms, attempts FROM batch_item NOT INDEXED
    WHERE tenant = ?1 AND processor = ?2 AND id > ?3 ORDER BY id LIMIT ?4";

/// The first `?5` segments behind the one `?4` that have items behind `?3`.
const SEGMENTS: &str = "SELECT id, created_ms, items, key FROM batch_segment NOT INDEXED
    WHERE tenant = ?1 AND processor = ?2 AND last_id > ?3 AND id > ?4 ORDER BY id LIMIT ?5";

pub(crate) const ROWS: &str =
    "SELECT id, key, type, bytes, created_ms, 0 FROM batch_row INDEXED BY batch_row_processor
    WHERE tenant = ?1 AND processor = ?2 AND id > ?3 ORDER BY id LIMIT ?4";

pub(super) async fn processors(
    readers: &SqlitePool,
    tenant: TenantId,
) -> Result<Vec<(Processor, ProcessorCounts)>, StoreError> {
    let rows = sqlx::query(PROCESSORS).bind(tenant.0).fetch_all(readers).await.map_err(store_error)?;
    let read = |row| {
        let number = |column: usize| row_count(row, column).map_err(store_error);
        let counts = ProcessorCounts {
            items: number(8)?,
            oldest_ms: row.try_get(9).map_err(store_error)?,
            batches: number(10)?,
            dead: number(11)?,
            rows: number(12)?,
        };
        Ok((processor(row)?, counts))
    };
    rows.iter().map(read).collect()
}

fn row_count(row: &SqliteRow, column: usize) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(|number| number.max(0) as u64)
}

/// A processor of its first eight columns.
pub(super) fn processor(row: &SqliteRow) -> Result<Processor, StoreError> {
    let stopped_ms: Option<i64> = row.try_get(3).map_err(store_error)?;
    let stopped = match stopped_ms {
        None => None,
        Some(at_ms) => {
            let code: &str = row.try_get(5).map_err(store_error)?;
            let (message, detail) = (
                row.try_get(6).map_err(store_error)?,
                row.try_get::<Option<&str>, _>(7).map_err(store_error)?,
            );
            let version: Option<i64> = row.try_get(4).map_err(store_error)?;
            let failure = decode_failure(code, message, detail).map_err(undecodable)?;
            Some(Stopped { at_ms, version: version.map(VersionId), failure })
        }
    };
    Ok(Processor {
        id: ProcessorId(row.try_get(0).map_err(store_error)?),
        tenant: TenantId(row.try_get(1).map_err(store_error)?),
        name: read_name(row, 2, "processor name")?,
        stopped,
    })
}

pub(super) async fn waiting(readers: &SqlitePool) -> Result<Vec<(TenantId, Waiting)>, StoreError> {
    let query = sqlx::query("SELECT tenant, items, bytes FROM batch_count WHERE items > 0 ORDER BY tenant");
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let read = |row: &SqliteRow| {
        Ok((TenantId(row.try_get(0)?), Waiting { items: row_count(row, 1)?, bytes: row_count(row, 2)? }))
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(store_error)
}

pub(super) async fn items(
    readers: &SqlitePool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    let after = after.map_or(i64::MIN, |after| after.0);
    let mut all = Page::new(after, limit);
    while let Some((behind, count)) = all.next() {
        let query = sqlx::query(SEGMENTS).bind(tenant.0).bind(processor.0).bind(after);
        let read = query.bind(behind).bind(count).fetch_all(readers).await.map_err(store_error)?;
        let segment = |row| Ok((SqliteRow::try_get(row, 3).map_err(store_error)?, read_segment(row)?));
        all.add(read.iter().map(segment).collect::<Result<_, StoreError>>()?, count);
    }
    Ok(all.finish(page(readers, ITEMS, tenant, processor, Some(ItemId(after)), limit).await?))
}

pub(super) async fn rows(
    readers: &SqlitePool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    page(readers, ROWS, tenant, processor, after, limit).await
}

async fn page(
    readers: &SqlitePool,
    text: &'static str,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    let query = sqlx::query(text).bind(tenant.0).bind(processor.0);
    let query = query.bind(after.map_or(i64::MIN, |after| after.0)).bind(limit);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(view).collect()
}

/// An item of its first six columns.
pub(super) fn view(row: &SqliteRow) -> Result<ItemView, StoreError> {
    let read = || {
        let bytes: Vec<u8> = row.try_get(3)?;
        Ok(ItemView {
            id: ItemId(row.try_get(0)?),
            key: row.try_get(1)?,
            payload: Payload { content_type: read_type(row.try_get(2)?), bytes: bytes.into() },
            created_ms: row.try_get(4)?,
            attempts: row.try_get(5)?,
        })
    };
    read().map_err(store_error)
}
