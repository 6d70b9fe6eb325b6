//! Dead letters: listed, made items again, forgotten.

use keiko_core::batch::{DeadLetter, ItemView};
use keiko_core::id::{ItemId, ProcessorId, TenantId};
use keiko_core::port::{DeadChanged, StoreError};
use sqlx::postgres::PgRow;

use super::super::pool::Pool;
use super::super::row::get;
use super::super::session::Session;
use super::add::count;
use super::read::view;
use crate::format::decode_failure;
use crate::gather::WaitingChanges;
use crate::trouble::undecodable;

const LIST: &str =
    "SELECT id, key, type, bytes, created_ms, attempts, dead_ms, code, message, detail FROM dead_letter
    WHERE tenant = $1 AND processor = $2 AND id > $3 ORDER BY id LIMIT $4";

/// Takes the dead letters away that a wish means: one, or the first of a processor. A limit inside `IN` may be taken again
/// for every row, so the choice is made once.
const TAKE: &str = "WITH chosen AS MATERIALIZED (
        SELECT id FROM dead_letter WHERE tenant = $1 AND processor = $2 AND id = coalesce($3, id)
        ORDER BY id LIMIT $4 FOR UPDATE)
    DELETE FROM dead_letter AS d USING chosen WHERE d.id = chosen.id RETURNING d.size";

const REVIVE: &str = "WITH chosen AS MATERIALIZED (
        SELECT id FROM dead_letter WHERE tenant = $1 AND processor = $2 AND id = coalesce($3, id)
        ORDER BY id LIMIT $4 FOR UPDATE),
    gone AS (DELETE FROM dead_letter AS d USING chosen WHERE d.id = chosen.id
        RETURNING d.id, d.tenant, d.processor, d.key, d.created_ms, d.size, d.type, d.bytes)
    INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type, bytes)
    SELECT id, tenant, processor, key, id, created_ms, keiko_now($5), size, type, bytes FROM gone RETURNING size";

/// Up to `limit` dead letters behind one.
pub(super) async fn list(
    pool: &Pool,
    tenant: TenantId,
    processor: ProcessorId,
    after: Option<ItemId>,
    limit: u32,
) -> Result<Vec<DeadLetter>, StoreError> {
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(LIST).bind(connection.id().0).bind(processor.0);
    let query = query.bind(after.map_or(i64::MIN, |after| after.0)).bind(i64::from(limit));
    let letter = |row: &PgRow| {
        let ItemView { id, key, payload, created_ms, attempts } = view(row)?;
        let failure = decode_failure(get(row, 7)?, get(row, 8)?, get(row, 9)?).map_err(undecodable)?;
        Ok(DeadLetter { id, key, payload, created_ms, dead_ms: get(row, 6)?, attempts, failure })
    };
    connection.rows(query).await?.iter().map(letter).collect()
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
    let query = sqlx::query(REVIVE).bind(tenant.0).bind(processor.0).bind(id.map(|id| id.0));
    let rows = session.rows(query.bind(i64::from(limit)).bind(now_ms)).await?;
    let changed = sum(&rows)?;
    let mut changes = WaitingChanges::default();
    if changed.count > 0 {
        changes.add(tenant, changed.count as i64, changed.bytes as i64);
    }
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
    let query = sqlx::query(TAKE).bind(tenant.0).bind(processor.0).bind(id.map(|id| id.0));
    sum(&session.rows(query.bind(i64::from(limit))).await?)
}

fn sum(rows: &[PgRow]) -> Result<DeadChanged, StoreError> {
    let mut changed = DeadChanged { count: rows.len() as u64, bytes: 0 };
    for row in rows {
        changed.bytes += get::<i64>(row, 0)?.max(0) as u64;
    }
    Ok(changed)
}
