//! New items: quota, idempotency keys, rows. Adds of many callers become few statements, and what tasks and batches ask
//! for goes the same way.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use keiko_core::batch::{Add, Added, NewItem, Waiting};
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, StoreErrorKind};
use sqlx::Row;

use super::super::error::store_error;
use super::super::session::{RowStatement, Session, json};
use super::super::submit::Keys;
use crate::admit::stored_type;
use crate::gather::{WaitingChanges, decide};
use crate::segment::{self, Sum};

/// Only items whose processor is their tenant's; the number tells.
static INSERT_ITEM: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH n (id, tenant, processor, key, created_ms, size, type, bytes) AS (VALUES)
         INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type, bytes)
         SELECT n.id, n.tenant, n.processor, n.key, n.id, n.created_ms, n.created_ms, n.size, n.type, n.bytes
         FROM n CROSS JOIN processor AS p ON p.id = n.processor AND p.tenant = n.tenant
         WHERE n.id IS NOT NULL RETURNING 1",
        8,
    )
});

/// The same for segments.
static INSERT_SEGMENT: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH n (id, last_id, tenant, processor, key, created_ms, item_count, size, items) AS (VALUES)
         INSERT INTO batch_segment (id, last_id, tenant, processor, key, created_ms, item_count, size, items)
         SELECT n.id, n.last_id, n.tenant, n.processor, n.key, n.created_ms, n.item_count, n.size, n.items
         FROM n CROSS JOIN processor AS p ON p.id = n.processor AND p.tenant = n.tenant
         WHERE n.id IS NOT NULL RETURNING 1",
        9,
    )
});

const UPDATE_WAITING: &str =
    "UPDATE batch_count SET items = items + (c.value ->> 1), bytes = bytes + (c.value ->> 2)
    FROM json_each(?1) AS c WHERE tenant = c.value ->> 0";

/// Stores adds, each with its own now; the answers are in their order.
pub(crate) async fn add(session: &mut Session, adds: &[(&Add, i64)]) -> Result<Vec<Added>, StoreError> {
    let named: Vec<_> = adds.iter().filter_map(|(add, _)| Some((add.tenant, add.key.as_ref()?))).collect();
    let mut keys = Keys::load(session, &named).await?;
    let mut waiting = waiting(session, adds.iter().map(|(add, _)| add.tenant).collect()).await?;
    let mut items = Vec::new();
    let mut answers = Vec::with_capacity(adds.len());
    for &(add, now_ms) in adds {
        let answer = decide(add, now_ms, &mut keys, waiting.entry(add.tenant).or_default());
        if let Added::Accepted { duplicate: false, .. } = answer {
            items.extend(add.items.iter().map(|item| (add.tenant, item)));
        }
        answers.push(answer);
    }
    insert(session, &items, WaitingChanges::default()).await?;
    keys.store(session).await?;
    Ok(answers)
}

/// Writes items, those that belong together as segments, and counts them with what changes beside them.
pub(crate) async fn insert(
    session: &mut Session,
    items: &[(TenantId, &NewItem)],
    mut changes: WaitingChanges,
) -> Result<(), StoreError> {
    let (alone, segments) = segment::cut(items);
    let rows = session
        .each(&INSERT_ITEM, &alone, |(tenant, item), binds| {
            binds.add(item.id.0).add(tenant.0).add(item.processor.0).add(item.key.as_str());
            binds.add(item.created_ms).add(item.size() as i64);
            binds.add(stored_type(&item.payload)).add(&item.payload.bytes[..]);
        })
        .await?;
    let together = session
        .each(&INSERT_SEGMENT, &segments, |new, binds| {
            let Sum { first, last, count, size } = new.sum;
            binds.add(first).add(last).add(new.tenant.0).add(new.processor).add(new.key);
            binds.add(new.created_ms).add(count).add(size).add(&new.bytes[..]);
        })
        .await?;
    if (rows.len(), together.len()) != (alone.len(), segments.len()) {
        return Err(StoreError::new(StoreErrorKind::Refused, "an item's processor is not its tenant's"));
    }
    changes.add_items(items);
    count(session, &changes).await
}

/// Writes how what waits has changed.
pub(super) async fn count(session: &mut Session, changes: &WaitingChanges) -> Result<(), StoreError> {
    let rows = changes.rows();
    if rows.is_empty() {
        return Ok(());
    }
    session.run(sqlx::query(UPDATE_WAITING).bind(json(&rows))).await
}

/// What waits of these tenants.
async fn waiting(
    session: &mut Session,
    tenants: BTreeSet<TenantId>,
) -> Result<HashMap<TenantId, Waiting>, StoreError> {
    let ids: Vec<i64> = tenants.iter().map(|tenant| tenant.0).collect();
    let query =
        "SELECT tenant, items, bytes FROM batch_count WHERE tenant IN (SELECT value FROM json_each(?1))";
    let rows = session.rows(sqlx::query(query).bind(json(&ids))).await?;
    let pair = |row: &sqlx::sqlite::SqliteRow| {
        let number = |column: usize| row.try_get::<i64, _>(column).map(|number| number.max(0) as u64);
        Ok((TenantId(row.try_get(0)?), Waiting { items: number(1)?, bytes: number(2)? }))
    };
    rows.iter().map(pair).collect::<Result<_, _>>().map_err(store_error)
}
