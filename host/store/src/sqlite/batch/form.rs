//! Forming batches, taking over those whose host died, and finding groups that no host knows.

use std::collections::BTreeMap;

use bytes::Bytes;
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{Group, Item, LeasedBatch};
use keiko_core::id::{BatchId, Holder, ItemId, ProcessorId, TaskId, TenantId, Token};
use keiko_core::port::{FormRequest, Formed, FoundGroup, StoreError};
use keiko_core::task::Payload;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::super::error::store_error;
use super::super::session::{Session, json};
use crate::admit::read_type;
use crate::gather::{self, Candidate, Placed};
use crate::segment::Segment;
use crate::segment::batch::{self, Has, Reading, Taken, Walked};
use crate::trouble::undecodable;

/// Whether the holder `?1` is registered, whether the processor `?2` of the tenant `?3` is stopped, NULL when there is
/// none, whether an ordered batch of the key `?4` is in flight, and whether the group has items that are rows and segments
/// behind the place `?5`.
pub(crate) const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM holder WHERE id = ?1),
    (SELECT stopped_ms IS NOT NULL FROM processor WHERE id = ?2 AND tenant = ?3),
    EXISTS (SELECT 1 FROM batch INDEXED BY batch_ordered WHERE processor = ?2 AND key = ?4 AND ordered = 1),
    EXISTS (SELECT 1 FROM batch_item INDEXED BY batch_item_group
        WHERE processor = ?2 AND key = ?4 AND place > ?5),
    EXISTS (SELECT 1 FROM batch_segment INDEXED BY batch_segment_group
        WHERE processor = ?2 AND key = ?4 AND id > ?5)";

/// The first `?3` items of a group behind the place `?6` that are in no batch; those that are due at `?4`, or, with NULL,
/// all. A batch that reaches no further than that place has none of them, and need not be looked at. Those that count `?5` bytes at most come with their payload.
pub(crate) const CANDIDATES: &str = "SELECT id, created_ms, due_ms, attempts, size, type,
        CASE WHEN size <= ?5 THEN bytes END, place
    FROM batch_item INDEXED BY batch_item_group
    WHERE processor = ?1 AND key = ?2 AND place > ?6 AND (?4 IS NULL OR due_ms <= ?4)
        AND id NOT IN (SELECT m.value FROM batch AS b INDEXED BY batch_group, json_each(b.items) AS m
            WHERE b.processor = ?1 AND b.key = ?2 AND (b.last_place IS NULL OR b.last_place > ?6))
    ORDER BY place LIMIT ?3";

/// The first `?3` segments of a group behind the place `?5` that are in no batch; those that are due at `?4`, or, with NULL, all.
pub(crate) const SEGMENTS: &str =
    "SELECT id, created_ms, items FROM batch_segment INDEXED BY batch_segment_group
    WHERE processor = ?1 AND key = ?2 AND id > ?5 AND (?4 IS NULL OR created_ms <= ?4)
        AND id NOT IN (SELECT m.value FROM batch AS b INDEXED BY batch_group, json_each(b.segments) AS m
            WHERE b.processor = ?1 AND b.key = ?2 AND b.last_place > ?5)
    ORDER BY id LIMIT ?3";

/// When the first item of a group is due that is not at `?3`.
pub(crate) const NEXT: &str = "SELECT min(due_ms) FROM (
        SELECT due_ms FROM batch_item INDEXED BY batch_item_group WHERE processor = ?1 AND key = ?2 AND due_ms > ?3
        UNION ALL SELECT created_ms FROM batch_segment INDEXED BY batch_segment_group
            WHERE processor = ?1 AND key = ?2 AND created_ms > ?3)";

const INSERT_BATCH: &str =
    "INSERT INTO batch (id, tenant, processor, key, ordered, holder, token, formed_ms, items, last_place, segments)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8, ?9, ?10)";

/// Takes the rest of the segment `?1` out of it, as the segment `?2`.
const CUT: &str =
    "INSERT INTO batch_segment (id, last_id, tenant, processor, key, created_ms, item_count, size, items)
        SELECT ?2, last_id, tenant, processor, key, created_ms, ?3, ?4, ?5 FROM batch_segment WHERE id = ?1;
    UPDATE batch_segment SET last_id = ?6, item_count = ?7, size = ?8, items = ?9 WHERE id = ?1";

/// Items by their ids, in the columns of [`CANDIDATES`].
const ITEMS: &str = "SELECT id, created_ms, due_ms, attempts, size, type, bytes, place FROM batch_item
    WHERE id IN (SELECT value FROM json_each(?1))";

/// Takes over up to `?2` batches of working processors whose holder has no row.
const TAKE_OVER: &str = "UPDATE batch SET holder = ?1, token = token + 1 WHERE id IN (
        SELECT b.id FROM batch AS b JOIN processor AS p ON p.id = b.processor
        WHERE p.stopped_ms IS NULL AND b.holder NOT IN (SELECT id FROM holder)
            AND EXISTS (SELECT 1 FROM holder WHERE id = ?1)
        ORDER BY b.id LIMIT ?2)
    RETURNING id, tenant, processor, key, token, crashes, items, segments";

/// Groups with items, from the one behind `?1` and `?2` on: a walk from group to group along those that are rows, and one along
/// segments.
pub(crate) const GROUPS: &str = "WITH RECURSIVE walk (id, processor, key) AS (
        SELECT * FROM (SELECT id, processor, key FROM batch_item INDEXED BY batch_item_group
            WHERE (processor, key) > (?1, ?2) ORDER BY processor, key, place LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM walk JOIN batch_item AS next ON next.id =
            (SELECT id FROM batch_item INDEXED BY batch_item_group
                WHERE (processor, key) > (walk.processor, walk.key) ORDER BY processor, key, place LIMIT 1)
        LIMIT ?3),
    stride (id, processor, key) AS (
        SELECT * FROM (SELECT id, processor, key FROM batch_segment INDEXED BY batch_segment_group
            WHERE (processor, key) > (?1, ?2) ORDER BY processor, key, id LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM stride JOIN batch_segment AS next ON next.id =
            (SELECT id FROM batch_segment INDEXED BY batch_segment_group
                WHERE (processor, key) > (stride.processor, stride.key) ORDER BY processor, key, id LIMIT 1)
        LIMIT ?3)
    SELECT tenant, processor, key, min(created_ms) FROM (
        SELECT i.tenant, i.processor, i.key, i.created_ms FROM walk JOIN batch_item AS i ON i.id = walk.id
        UNION ALL
        SELECT s.tenant, s.processor, s.key, s.created_ms FROM stride JOIN batch_segment AS s ON s.id = stride.id)
    GROUP BY processor, key, tenant ORDER BY processor, key, tenant LIMIT ?3";

/// Forms a batch when the group is due.
pub(super) async fn form(session: &mut Session, request: &FormRequest) -> Result<Formed, StoreError> {
    let FormRequest { holder, id, form, now_ms } = request;
    let Group { tenant, processor, key } = &form.group;
    let began = session.walks.begin(form);
    let query = sqlx::query(LOOK).bind(holder.0).bind(processor.0).bind(tenant.0).bind(key);
    let rows = session.rows(query.bind(began.unwrap_or(i64::MIN))).await?;
    let look = |row: &SqliteRow| {
        let has = Has { rows: row.try_get(3)?, segments: row.try_get(4)? };
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, has))
    };
    let (held, stopped, blocked, has): (bool, Option<bool>, bool, Has) =
        rows.first().ok_or(sqlx::Error::RowNotFound).and_then(look).map_err(store_error)?;
    let none = |left, lost| Ok(Formed { batch: None, left, lost });
    if !held || stopped != Some(false) {
        return none(Left::Nothing, !held);
    }
    if form.ordered && blocked {
        return none(Left::Blocked, false);
    }
    let Walked { rows, segments, candidates, is_full, began } =
        walk(session, form, began, has, *now_ms).await?;
    let gathered = gather::gather(&candidates, form, *now_ms);
    session.walks.end(form, began, is_full, gathered.last_place);
    let left = match gathered.left {
        Some(left) => left,
        None => {
            let query = sqlx::query(NEXT).bind(processor.0).bind(key).bind(*now_ms);
            let rows = session.rows(query).await?;
            let next_ms = rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(store_error)?;
            gather::left(gathered.at_ms, next_ms)
        }
    };
    if gathered.ids.is_empty() {
        return none(left, false);
    }
    let taken = &candidates[..gathered.ids.len()];
    let alone: Vec<i64> = taken.iter().filter(|one| !one.in_segment).map(|one| one.id).collect();
    let Taken { segments, rest } = batch::take(segments, taken.len() - alone.len());
    if let (Some(last), Some(rest)) = (segments.last(), &rest) {
        cut(session, key, last, rest).await?;
    }
    let whole: Vec<i64> = segments.iter().map(|segment| segment.id).collect();
    let query = sqlx::query(INSERT_BATCH).bind(id.0).bind(tenant.0).bind(processor.0).bind(key);
    let query = query.bind(form.ordered).bind(holder.0).bind(*now_ms).bind(json(&alone));
    session.run(query.bind(gathered.last_place).bind(json(&whole))).await?;
    let items = batch::items(load(session, &alone, &rows[..alone.len()]).await?, segments);
    let batch = LeasedBatch { id: *id, group: form.group.clone(), token: Token(1), crashes: 0, items };
    Ok(Formed { batch: Some(batch), left, lost: false })
}

/// Walks on behind what was taken last, or from the first item on.
async fn walk(
    session: &mut Session,
    form: &Form,
    mut began: Option<i64>,
    mut has: Has,
    now_ms: i64,
) -> Result<Walked<SqliteRow>, StoreError> {
    let (Group { processor, key, .. }, wanted) = (&form.group, gather::wanted(form));
    let due_ms = (!form.ordered).then_some(now_ms);
    loop {
        let behind = began.unwrap_or(i64::MIN);
        let mut rows = Vec::new();
        if has.rows {
            let query = sqlx::query(CANDIDATES).bind(processor.0).bind(key).bind(wanted).bind(due_ms);
            rows = session.rows(query.bind(gather::light_bytes(form)).bind(behind)).await?;
        }
        let mut reading = Reading::new(form);
        while let Some(count) = reading.next().filter(|_| has.segments) {
            let query = sqlx::query(SEGMENTS).bind(processor.0).bind(key).bind(count).bind(due_ms);
            let read = session.rows(query.bind(reading.last_place().unwrap_or(behind))).await?;
            reading.add(read.iter().map(read_segment).collect::<Result<_, _>>()?);
        }
        let of_rows = rows.iter().map(candidate).collect::<Result<Vec<_>, _>>().map_err(store_error)?;
        if let Some(walked) = reading.end(rows, of_rows, began) {
            return Ok(walked);
        }
        (began, has) = (None, Has::BOTH);
    }
}

/// A segment of its id, its time and its items.
pub(super) fn read_segment(row: &SqliteRow) -> Result<Segment, StoreError> {
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get::<Vec<u8>, _>(2)?));
    let (id, created_ms, bytes) = read().map_err(store_error)?;
    Segment::read(id, created_ms, &Bytes::from(bytes)).map_err(undecodable)
}

/// Makes what is left of a segment one of its own.
async fn cut(session: &mut Session, key: &str, taken: &Segment, rest: &Segment) -> Result<(), StoreError> {
    let (head, tail) = (taken.sum(key), rest.sum(key));
    let query = sqlx::query(CUT).bind(head.first).bind(tail.first).bind(tail.count).bind(tail.size);
    let query = query.bind(rest.pack()).bind(head.last).bind(head.count).bind(head.size);
    session.run(query.bind(taken.pack())).await
}

/// Segments by their ids, in no order.
pub(super) async fn load_segments(session: &mut Session, ids: &[i64]) -> Result<Vec<Segment>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let query =
        "SELECT id, created_ms, items FROM batch_segment WHERE id IN (SELECT value FROM json_each(?1))";
    session.rows(sqlx::query(query).bind(json(&ids))).await?.iter().map(read_segment).collect()
}

fn candidate(row: &SqliteRow) -> Result<Candidate, sqlx::Error> {
    Ok(Candidate {
        id: row.try_get(0)?,
        place: row.try_get(7)?,
        created_ms: row.try_get(1)?,
        due_ms: row.try_get(2)?,
        attempts: row.try_get(3)?,
        size: row.try_get::<i64, _>(4)?.max(0) as u64,
        in_segment: false,
    })
}

/// Items that are rows with their places, of which `rows` may have some with their payloads.
async fn load(session: &mut Session, ids: &[i64], rows: &[SqliteRow]) -> Result<Vec<Placed>, StoreError> {
    let mut items = read(rows).map_err(store_error)?;
    let rest: Vec<i64> = ids.iter().copied().filter(|id| !items.contains_key(id)).collect();
    if !rest.is_empty() {
        let rows = session.rows(sqlx::query(ITEMS).bind(json(&rest))).await?;
        items.extend(read(&rows).map_err(store_error)?);
    }
    Ok(gather::in_order(ids, items))
}

/// Those that came with their payloads, by id.
fn read(rows: &[SqliteRow]) -> Result<BTreeMap<i64, Placed>, sqlx::Error> {
    rows.iter().filter_map(|row| item(row).transpose()).collect()
}

fn item(row: &SqliteRow) -> Result<Option<(i64, Placed)>, sqlx::Error> {
    let Some(bytes) = row.try_get::<Option<Vec<u8>>, _>(6)? else { return Ok(None) };
    let payload = Payload { content_type: read_type(row.try_get(5)?), bytes: Bytes::from(bytes) };
    let (id, place): (i64, i64) = (row.try_get(0)?, row.try_get(7)?);
    let item = Item { id: ItemId(id), payload, created_ms: row.try_get(1)?, attempts: row.try_get(3)? };
    Ok(Some((id, (place, item))))
}

/// Takes over batches whose holder is gone, oldest first.
pub(super) async fn take_over(
    session: &mut Session,
    holder: Holder,
    room: usize,
) -> Result<Vec<LeasedBatch>, StoreError> {
    let rows = session.rows(sqlx::query(TAKE_OVER).bind(holder.0).bind(room as i64)).await?;
    let mut batches = Vec::with_capacity(rows.len());
    for row in &rows {
        let (mut batch, ids, whole) = leased(row).map_err(store_error)?;
        let segments = load_segments(session, &whole).await?;
        batch.items = batch::items(load(session, &ids, &[]).await?, segments);
        batches.push(batch);
    }
    batches.sort_unstable_by_key(|batch| batch.id);
    Ok(batches)
}

/// A batch without its items, which of them are rows, and its segments.
fn leased(row: &SqliteRow) -> Result<(LeasedBatch, Vec<i64>, Vec<i64>), sqlx::Error> {
    let group = Group {
        tenant: TenantId(row.try_get(1)?),
        processor: ProcessorId(row.try_get(2)?),
        key: row.try_get(3)?,
    };
    let batch = LeasedBatch {
        id: BatchId(row.try_get(0)?),
        group,
        token: Token(row.try_get(4)?),
        crashes: row.try_get(5)?,
        items: Vec::new(),
    };
    Ok((batch, read_ids(row, 6)?, read_ids(row, 7)?))
}

/// Ids in a column that is a JSON array or NULL.
pub(super) fn read_ids(row: &SqliteRow, column: usize) -> Result<Vec<i64>, sqlx::Error> {
    let Some(text) = row.try_get::<Option<&str>, _>(column)? else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Charges batches a crash that were being worked when their host died. Their holder's row is gone by then.
pub(crate) async fn charge(session: &mut Session, started: &[(TaskId, Token)]) -> Result<(), StoreError> {
    if started.is_empty() {
        return Ok(());
    }
    let pairs: Vec<(i64, i64)> = started.iter().map(|(id, token)| (id.0, token.0)).collect();
    let query = "UPDATE batch SET crashes = crashes + 1 FROM json_each(?1) AS s
        WHERE batch.id = s.value ->> 0 AND token = s.value ->> 1 AND holder NOT IN (SELECT id FROM holder)";
    session.run(sqlx::query(query).bind(json(&pairs))).await
}

/// Groups with items, behind one.
pub(super) async fn groups(
    readers: &SqlitePool,
    after: Option<(ProcessorId, String)>,
    limit: u32,
) -> Result<Vec<FoundGroup>, StoreError> {
    let (processor, key) = after.unwrap_or((ProcessorId(i64::MIN), String::new()));
    let query = sqlx::query(GROUPS).bind(processor.0).bind(key).bind(limit);
    let found = |row: &SqliteRow| {
        let group = Group {
            tenant: TenantId(row.try_get(0)?),
            processor: ProcessorId(row.try_get(1)?),
            key: row.try_get(2)?,
        };
        Ok(FoundGroup { group, oldest_ms: row.try_get(3)? })
    };
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(found).collect::<Result<_, _>>().map_err(store_error)
}
