//! New items: quota, idempotency keys, rows. Adds of many callers become few statements, and what tasks and batches ask
//! for goes the same way.
//!
//! - What waits of a tenant is one row, which whoever adds, works or drops items writes. So an add looks at it without
//!   locking it, and locks it last, when it counts: if the items then no longer fit, the add is run again, and that time
//!   it locks it before it decides. The quota is exact at every commit, and a row that all want is locked for a moment only.
//! - Two adds with one key meet at the row of the key: the later one is run again, and finds it. Rows of keys come before
//!   what waits, in order, in every add, so that two of them wait for each other in no circle.
//! - Arrays are unnested in the list of a `SELECT`: in `FROM` each becomes a table that is written and read again, which
//!   took half the time of the whole statement. A column whose rows are all alike goes as one value.

use std::collections::{BTreeSet, HashMap};

use keiko_core::batch::{Add, Added, NewItem, Waiting};
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, StoreErrorKind};
use sqlx::postgres::PgRow;

use super::super::row::{get, large_count, stored_text};
use super::super::session::{Session, chunks};
use super::super::submit::{load_keys, store_keys};
use crate::admit::stored_type;
use crate::gather::{WaitingChanges, decide, still_fit};
use crate::segment::{self, NewSegment, Sum};

/// What waits of these tenants, and how far the database's clock is before the caller's, `$2`.
const LOOK: &str = "SELECT tenant, items, bytes, keiko_now($2) - $2 FROM batch_count WHERE tenant = ANY($1)";

/// The same, and nobody else changes it until the commit.
const LOCK: &str = "SELECT tenant, items, bytes, keiko_now($2) - $2 FROM batch_count WHERE tenant = ANY($1)
    ORDER BY tenant FOR UPDATE";

/// Only when every processor is its tenant's; the number tells. Times are moved to the database's clock.
const INSERT_ITEMS: &str =
    "INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type,
        bytes)
    SELECT n.id, coalesce(n.tenant, $6), coalesce(n.processor, $8), coalesce(n.key, $10), n.id,
        coalesce(n.created_ms, $12) + (SELECT keiko_now($1) - $1),
        coalesce(n.created_ms, $12) + (SELECT keiko_now($1) - $1),
        coalesce(n.size, $14), coalesce(n.type, $16), n.bytes
    FROM (SELECT unnest($4::bigint[]) AS id, unnest($5::bytea[]) AS bytes, unnest($7::bigint[]) AS tenant,
        unnest($9::bigint[]) AS processor, unnest($11::text[]) AS key, unnest($13::bigint[]) AS created_ms,
        unnest($15::bigint[]) AS size, unnest($17::text[]) AS type) AS n
    WHERE (SELECT count(*) FROM unnest($2::bigint[], $3::bigint[]) AS w (tenant, processor)
        JOIN processor AS p ON p.id = w.processor AND p.tenant = w.tenant) = cardinality($2)";

/// The same for segments. Those of one call are mostly of one group, which goes as one value then.
const INSERT_SEGMENTS: &str = "INSERT INTO batch_segment (id, last_id, tenant, processor, key, created_ms, item_count,
        size, items)
    SELECT n.id, n.last_id, coalesce(n.tenant, $8), coalesce(n.processor, $10), coalesce(n.key, $12),
        coalesce(n.created_ms, $14) + (SELECT keiko_now($1) - $1), n.item_count, n.size, n.items
    FROM (SELECT unnest($4::bigint[]) AS id, unnest($5::bigint[]) AS last_id, unnest($6::bigint[]) AS item_count,
        unnest($7::bigint[]) AS size, unnest($9::bigint[]) AS tenant, unnest($11::bigint[]) AS processor,
        unnest($13::text[]) AS key, unnest($15::bigint[]) AS created_ms, unnest($16::bytea[]) AS items) AS n
    WHERE (SELECT count(*) FROM unnest($2::bigint[], $3::bigint[]) AS w (tenant, processor)
        JOIN processor AS p ON p.id = w.processor AND p.tenant = w.tenant) = cardinality($2)";

const UPDATE_WAITING: &str = "UPDATE batch_count AS w SET items = w.items + c.items, bytes = w.bytes + c.bytes
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (tenant, items, bytes) WHERE w.tenant = c.tenant
    RETURNING w.tenant, w.items, w.bytes";

/// Stores adds, each with its own now; the answers are in their order.
pub(crate) async fn add(session: &mut Session, adds: &[(&Add, i64)]) -> Result<Vec<Added>, StoreError> {
    let Some(&(_, now_ms)) = adds.first() else { return Ok(Vec::new()) };
    let tenants: BTreeSet<_> = adds.iter().map(|(add, _)| add.tenant).collect();
    let locks = std::mem::take(&mut session.locks_first);
    let (mut waiting, shift_ms) = look(session, LOOK, &tenants, now_ms).await?;
    let named: Vec<_> = adds.iter().filter_map(|(add, _)| Some((add.tenant, add.key.as_ref()?))).collect();
    let mut keys = load_keys(session, &named, shift_ms).await?;
    if locks {
        // Until the commit they are nobody else's; those of adds that are refused have expired already.
        store_keys(session, &keys.claims(&named, now_ms), shift_ms, now_ms).await?;
        (waiting, _) = look(session, LOCK, &tenants, now_ms).await?;
    }
    let mut taken = Vec::new();
    let mut answers = Vec::with_capacity(adds.len());
    for &(add, now_ms) in adds {
        let answer = decide(add, now_ms, &mut keys, waiting.entry(add.tenant).or_default());
        if let Added::Accepted { duplicate: false, .. } = answer {
            taken.push(add);
        }
        answers.push(answer);
    }
    let items: Vec<_> =
        taken.iter().flat_map(|add| add.items.iter().map(|item| (add.tenant, item))).collect();
    write(session, &items, now_ms).await?;
    store_keys(session, &keys, shift_ms, now_ms).await?;
    let mut changes = WaitingChanges::default();
    changes.add_items(&items);
    if !still_fit(&taken, count(session, &changes).await?) {
        session.locks_first = true;
        return Err(StoreError::new(StoreErrorKind::Busy, "more waits than when the add looked"));
    }
    Ok(answers)
}

/// What waits of tenants, and how far the database's clock is before the caller's; by [`LOOK`] or [`LOCK`].
async fn look(
    session: &mut Session,
    text: &'static str,
    tenants: &BTreeSet<TenantId>,
    now_ms: i64,
) -> Result<(HashMap<TenantId, Waiting>, i64), StoreError> {
    let ids: Vec<i64> = tenants.iter().map(|tenant| tenant.0).collect();
    let rows = session.rows(sqlx::query(text).bind(ids).bind(now_ms)).await?;
    let shift_ms = rows.first().map_or(Ok(0), |row| get(row, 3))?;
    Ok((rows.iter().map(waits).collect::<Result<_, _>>()?, shift_ms))
}

/// What waits of a tenant, of the first three columns.
fn waits(row: &PgRow) -> Result<(TenantId, Waiting), StoreError> {
    let sum = Waiting { items: large_count(row, 1)?, bytes: large_count(row, 2)? };
    Ok((TenantId(get(row, 0)?), sum))
}

/// Writes items, and counts them with what changes beside them.
pub(crate) async fn insert(
    session: &mut Session,
    items: &[(TenantId, &NewItem)],
    mut changes: WaitingChanges,
    now_ms: i64,
) -> Result<(), StoreError> {
    write(session, items, now_ms).await?;
    changes.add_items(items);
    count(session, &changes).await.map(drop)
}

/// Writes items, those that belong together as segments.
async fn write(session: &mut Session, items: &[(TenantId, &NewItem)], now_ms: i64) -> Result<(), StoreError> {
    let (alone, segments) = segment::cut(items);
    write_alone(session, &alone, now_ms).await?;
    write_segments(session, &segments, now_ms).await
}

async fn write_segments(
    session: &mut Session,
    segments: &[NewSegment<'_>],
    now_ms: i64,
) -> Result<(), StoreError> {
    for chunk in chunks(segments, |segment| segment.bytes.len()) {
        let owners: BTreeSet<_> = chunk.iter().map(|segment| (segment.tenant.0, segment.processor)).collect();
        let (owner, owned): (Vec<i64>, Vec<i64>) = owners.into_iter().unzip();
        let numbers =
            |of: fn(&Sum) -> i64| chunk.iter().map(|segment| of(&segment.sum)).collect::<Vec<i64>>();
        let tenants = Column::of(chunk.iter().map(|segment| segment.tenant.0));
        let processors = Column::of(chunk.iter().map(|segment| segment.processor));
        let keys = Column::of(chunk.iter().map(|segment| segment.key));
        let created = Column::of(chunk.iter().map(|segment| segment.created_ms));
        let bytes: Vec<&[u8]> = chunk.iter().map(|segment| &segment.bytes[..]).collect();
        let query = sqlx::query(INSERT_SEGMENTS).bind(now_ms).bind(owner).bind(owned);
        let query = query.bind(numbers(|sum| sum.first)).bind(numbers(|sum| sum.last));
        let query = query.bind(numbers(|sum| sum.count)).bind(numbers(|sum| sum.size));
        let query = query.bind(tenants.all).bind(tenants.each).bind(processors.all).bind(processors.each);
        let query = query.bind(keys.all).bind(keys.each).bind(created.all).bind(created.each).bind(bytes);
        all_written(session.run(query).await?, chunk.len())?;
    }
    Ok(())
}

/// Rows of a processor that is another tenant's are not written.
fn all_written(rows: u64, expected: usize) -> Result<(), StoreError> {
    if rows != expected as u64 {
        let message = "an item's processor is not its tenant's";
        return Err(StoreError::new(StoreErrorKind::Refused, message));
    }
    Ok(())
}

async fn write_alone(
    session: &mut Session,
    items: &[(TenantId, &NewItem)],
    now_ms: i64,
) -> Result<(), StoreError> {
    for chunk in chunks(items, |(_, item)| item.payload.bytes.len()) {
        let numbers = |of: fn(&NewItem) -> i64| chunk.iter().map(move |(_, item)| of(item));
        let owners: BTreeSet<_> = chunk.iter().map(|(tenant, item)| (tenant.0, item.processor.0)).collect();
        let (owner, owned): (Vec<i64>, Vec<i64>) = owners.into_iter().unzip();
        let bytes: Vec<&[u8]> = chunk.iter().map(|(_, item)| &item.payload.bytes[..]).collect();
        let tenants = Column::of(chunk.iter().map(|(tenant, _)| tenant.0));
        let processors = Column::of(numbers(|item| item.processor.0));
        let keys = Column::of(chunk.iter().map(|(_, item)| item.key.as_str()));
        let (created, sizes) =
            (Column::of(numbers(|item| item.created_ms)), Column::of(numbers(|item| item.size() as i64)));
        let types = Column::of(chunk.iter().map(|(_, item)| stored_type(&item.payload).map(stored_text)));
        let query = sqlx::query(INSERT_ITEMS).bind(now_ms).bind(owner).bind(owned);
        let query = query.bind(numbers(|item| item.id.0).collect::<Vec<i64>>()).bind(bytes);
        let query = query.bind(tenants.all).bind(tenants.each);
        let query = query.bind(processors.all).bind(processors.each).bind(keys.all).bind(keys.each);
        let query = query.bind(created.all).bind(created.each).bind(sizes.all).bind(sizes.each);
        let query = query.bind(types.all.flatten()).bind(types.each);
        all_written(session.run(query).await?, chunk.len())?;
    }
    Ok(())
}

/// A column of rows: one value when it is the same in all of them.
struct Column<T> {
    all: Option<T>,
    /// Empty when there is one for all.
    each: Vec<T>,
}

impl<T: PartialEq> Column<T> {
    fn of(values: impl Iterator<Item = T> + Clone) -> Column<T> {
        let mut rest = values.clone();
        let first = rest.next();
        let is_one = first.as_ref().is_none_or(|first| rest.all(|value| value == *first));
        match is_one {
            true => Column { all: first, each: Vec::new() },
            false => Column { all: None, each: values.collect() },
        }
    }
}

/// Writes how what waits has changed; what waits with it, of the tenants for which it has.
pub(super) async fn count(
    session: &mut Session,
    changes: &WaitingChanges,
) -> Result<HashMap<TenantId, Waiting>, StoreError> {
    let rows = changes.rows();
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let column = |of: fn(&(i64, i64, i64)) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    let query = sqlx::query(UPDATE_WAITING).bind(column(|row| row.0)).bind(column(|row| row.1));
    session.rows(query.bind(column(|row| row.2))).await?.iter().map(waits).collect()
}
