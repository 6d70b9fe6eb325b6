//! New items: quota, idempotency keys, rows. Adds of many callers become few statements, and what tasks and batches ask
//! for goes the same way.
//!
//! The rows of what waits are locked first: the quota is exact, and two adds of a tenant, from whichever host, see each
//! other's keys.

use std::collections::{BTreeSet, HashMap};

use keiko_core::batch::{Add, Added, NewItem, Waiting};
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, StoreErrorKind};

use super::super::row::{get, large_count, stored_text};
use super::super::session::{Session, chunks};
use super::super::submit::{load_keys, store_keys};
use crate::admit::stored_type;
use crate::gather::{WaitingChanges, decide};

/// What waits of these tenants, which nobody else changes until the commit, and how far the database's clock is before
/// the caller's, `$2`.
const LOCK: &str = "SELECT tenant, items, bytes, keiko_now($2) - $2 FROM batch_count WHERE tenant = ANY($1)
    ORDER BY tenant FOR UPDATE";

/// Only items whose processor is their tenant's; the number tells. Times are moved to the database's clock.
const INSERT_ITEMS: &str =
    "INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type,
        bytes)
    SELECT n.id, n.tenant, n.processor, n.key, n.id, n.created_ms + (SELECT keiko_now($9) - $9),
        n.created_ms + (SELECT keiko_now($9) - $9), n.size, n.type, n.bytes
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[],
        $5::bigint[], $6::bigint[], $7::text[], $8::bytea[])
        AS n (id, tenant, processor, key, created_ms, size, type, bytes)
    JOIN processor AS p ON p.id = n.processor AND p.tenant = n.tenant";

const UPDATE_WAITING: &str = "UPDATE batch_count AS w SET items = w.items + c.items, bytes = w.bytes + c.bytes
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (tenant, items, bytes) WHERE w.tenant = c.tenant";

/// Stores adds, each with its own now; the answers are in their order.
pub(crate) async fn add(session: &mut Session, adds: &[(&Add, i64)]) -> Result<Vec<Added>, StoreError> {
    let Some(&(_, now_ms)) = adds.first() else { return Ok(Vec::new()) };
    let tenants = adds.iter().map(|(add, _)| add.tenant).collect();
    let (mut waiting, shift_ms) = lock(session, tenants, now_ms).await?;
    let named: Vec<_> = adds.iter().filter_map(|(add, _)| Some((add.tenant, add.key.as_ref()?))).collect();
    let mut keys = load_keys(session, &named, shift_ms).await?;
    let mut items = Vec::new();
    let mut answers = Vec::with_capacity(adds.len());
    for &(add, now_ms) in adds {
        let answer = decide(add, now_ms, &mut keys, waiting.entry(add.tenant).or_default());
        if let Added::Accepted { duplicate: false, .. } = answer {
            items.extend(add.items.iter().map(|item| (add.tenant, item)));
        }
        answers.push(answer);
    }
    insert(session, &items, WaitingChanges::default(), now_ms).await?;
    store_keys(session, &keys, shift_ms, now_ms).await?;
    Ok(answers)
}

async fn lock(
    session: &mut Session,
    tenants: BTreeSet<TenantId>,
    now_ms: i64,
) -> Result<(HashMap<TenantId, Waiting>, i64), StoreError> {
    let ids: Vec<i64> = tenants.iter().map(|tenant| tenant.0).collect();
    let (mut waiting, mut shift_ms) = (HashMap::new(), 0);
    for row in &session.rows(sqlx::query(LOCK).bind(ids).bind(now_ms)).await? {
        let sum = Waiting { items: large_count(row, 1)?, bytes: large_count(row, 2)? };
        waiting.insert(TenantId(get(row, 0)?), sum);
        shift_ms = get(row, 3)?;
    }
    Ok((waiting, shift_ms))
}

/// Writes the rows of items, and counts them with what changes beside them.
pub(crate) async fn insert(
    session: &mut Session,
    items: &[(TenantId, &NewItem)],
    mut changes: WaitingChanges,
    now_ms: i64,
) -> Result<(), StoreError> {
    for chunk in chunks(items, |(_, item)| item.payload.bytes.len()) {
        let numbers = |of: fn(&NewItem) -> i64| chunk.iter().map(|(_, item)| of(item)).collect::<Vec<i64>>();
        let tenants: Vec<i64> = chunk.iter().map(|(tenant, _)| tenant.0).collect();
        let keys: Vec<&str> = chunk.iter().map(|(_, item)| item.key.as_str()).collect();
        let types: Vec<Option<String>> =
            chunk.iter().map(|(_, item)| stored_type(&item.payload).map(stored_text)).collect();
        let bytes: Vec<&[u8]> = chunk.iter().map(|(_, item)| &item.payload.bytes[..]).collect();
        let query = sqlx::query(INSERT_ITEMS).bind(numbers(|item| item.id.0)).bind(tenants);
        let query = query.bind(numbers(|item| item.processor.0)).bind(keys);
        let query = query.bind(numbers(|item| item.created_ms)).bind(numbers(|item| item.size() as i64));
        let query = query.bind(types).bind(bytes).bind(now_ms);
        if session.run(query).await? != chunk.len() as u64 {
            let message = "an item's processor is not its tenant's";
            return Err(StoreError::new(StoreErrorKind::Refused, message));
        }
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
    let column = |of: fn(&(i64, i64, i64)) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = sqlx::query(UPDATE_WAITING).bind(column(|row| row.0)).bind(column(|row| row.1));
    session.run(query.bind(column(|row| row.2))).await.map(drop)
}
