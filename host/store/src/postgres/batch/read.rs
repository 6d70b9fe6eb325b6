//! What is seen of processors and their items.

use keiko_core::batch::{ItemView, Processor, ProcessorCounts, Stopped, Waiting};
use keiko_core::id::{ItemId, ProcessorId, TenantId, VersionId};
use keiko_core::port::StoreError;
use keiko_core::task::Payload;
use sqlx::postgres::PgRow;

use super::super::pool::Pool;
use super::super::row::{count, get, large_count, name};
use super::form::read_segment;
use crate::admit::read_type;
use crate::format::decode_failure;
use crate::segment::page::Page;
use crate::trouble::undecodable;

const PROCESSORS: &str = "SELECT p.id, p.tenant, p.name, p.stopped_ms, p.stopped_version, p.code, p.message, p.detail,
        i.items, i.oldest_ms,
        (SELECT count(*) FROM batch AS b WHERE b.processor = p.id),
        (SELECT count(*) FROM dead_letter AS d WHERE d.tenant = p.tenant AND d.processor = p.id),
        (SELECT count(*) FROM batch_row AS r WHERE r.tenant = p.tenant AND r.processor = p.id)
    FROM processor AS p, LATERAL (
        SELECT sum(part.items)::bigint AS items, min(part.oldest_ms) AS oldest_ms FROM (
            SELECT count(*) AS items, min(created_ms) AS oldest_ms FROM batch_item AS i WHERE i.processor = p.id
            UNION ALL
            SELECT coalesce(sum(s.item_count), 0), min(s.created_ms) FROM batch_segment AS s
                WHERE s.processor = p.id) AS part) AS i
    WHERE p.tenant = $1 ORDER BY p.name COLLATE \"C\"";

const ITEMS: &str = "SELECT id, key, type, bytes, created_ms, attempts FROM batch_item
    WHERE tenant = $1 AND processor = $2 AND id > $3 ORDER BY id LIMIT $4";

/// The first `$5` segments behind the one `$4` that have items behind `$3`.
const SEGMENTS: &str = "SELECT id, created_ms, items, key FROM batch_segment
    WHERE tenant = $1 AND processor = $2 AND last_id > $3 AND id > $4 ORDER BY id LIMIT $5";

const ROWS: &str = "SELECT id, key, type, bytes, created_ms, 0 FROM batch_row
    WHERE tenant = $1 AND processor = $2 AND id > $3 ORDER BY id LIMIT $4";

pub(super) async fn processors(
    pool: &Pool,
    tenant: TenantId,
) -> Result<Vec<(Processor, ProcessorCounts)>, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(PROCESSORS).bind(connection.id().0);
    let read = |row: &PgRow| {
        let counts = ProcessorCounts {
            items: large_count(row, 8)?,
            oldest_ms: get(row, 9)?,
            batches: large_count(row, 10)?,
            dead: large_count(row, 11)?,
            rows: large_count(row, 12)?,
        };
        Ok((processor(row)?, counts))
    };
    connection.rows(query).await?.iter().map(read).collect()
}

/// A processor of its first eight columns.
pub(super) fn processor(row: &PgRow) -> Result<Processor, StoreError> {
    let stopped = match get::<Option<i64>>(row, 3)? {
        None => None,
        Some(at_ms) => Some(Stopped {
            at_ms,
            version: get::<Option<i64>>(row, 4)?.map(VersionId),
            failure: decode_failure(get(row, 5)?, get(row, 6)?, get(row, 7)?).map_err(undecodable)?,
        }),
    };
    Ok(Processor {
        id: ProcessorId(get(row, 0)?),
        tenant: TenantId(get(row, 1)?),
        name: name(row, 2, "processor name")?,
        stopped,
    })
}

pub(super) async fn waiting(pool: &Pool) -> Result<Vec<(TenantId, Waiting)>, StoreError> {
    let query = sqlx::query("SELECT tenant, items, bytes FROM batch_count WHERE items > 0 ORDER BY tenant");
    let read = |row: &PgRow| {
        Ok((TenantId(get(row, 0)?), Waiting { items: large_count(row, 1)?, bytes: large_count(row, 2)? }))
    };
    pool.system().await?.rows(query).await?.iter().map(read).collect()
}

pub(super) async fn items(
    pool: &Pool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    let after = after.map_or(i64::MIN, |after| after.0);
    let mut all = Page::new(after, limit);
    let mut connection = pool.tenant(tenant).await?;
    while let Some((behind, count)) = all.next() {
        let query = sqlx::query(SEGMENTS).bind(connection.id().0).bind(processor.0).bind(after);
        let read = connection.rows(query.bind(behind).bind(count)).await?;
        let segment = |row| Ok((get(row, 3)?, read_segment(row)?));
        all.add(read.iter().map(segment).collect::<Result<_, StoreError>>()?, count);
    }
    drop(connection);
    Ok(all.finish(page(pool, ITEMS, tenant, processor, Some(ItemId(after)), limit).await?))
}

pub(super) async fn rows(
    pool: &Pool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    page(pool, ROWS, tenant, processor, after, limit).await
}

async fn page(
    pool: &Pool,
    text: &'static str,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<ItemView>, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(text).bind(connection.id().0).bind(processor.0);
    let query = query.bind(after.map_or(i64::MIN, |after| after.0)).bind(i64::from(limit));
    connection.rows(query).await?.iter().map(view).collect()
}

/// An item of its first six columns.
pub(super) fn view(row: &PgRow) -> Result<ItemView, StoreError> {
    let bytes: Vec<u8> = get(row, 3)?;
    Ok(ItemView {
        id: ItemId(get(row, 0)?),
        key: get(row, 1)?,
        payload: Payload { content_type: read_type(get(row, 2)?), bytes: bytes.into() },
        created_ms: get(row, 4)?,
        attempts: count(row, 5)?,
    })
}
