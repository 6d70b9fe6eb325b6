//! Forming batches, taking over those whose host died, and finding groups that no host knows.
//!
//! A batch is formed under the lock of its processor's row, taken by a statement of its own: so the next one sees every
//! batch that was formed before, and no item is in two.

use std::collections::BTreeMap;

use bytes::Bytes;
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{Group, Item, LeasedBatch};
use keiko_core::id::{BatchId, Holder, ItemId, ProcessorId, TaskId, TenantId, Token};
use keiko_core::port::{FormRequest, Formed, FoundGroup, StoreError};
use keiko_core::task::Payload;
use sqlx::postgres::PgRow;

use super::super::pool::Pool;
use super::super::row::{count, get, large_count};
use super::super::session::Session;
use crate::admit::read_type;
use crate::gather::{self, Candidate, Placed};
use crate::segment::Segment;
use crate::segment::batch::{self, Has, Reading, Taken, Walked};
use crate::trouble::undecodable;

const LOCK: &str =
    "SELECT stopped_ms IS NOT NULL FROM processor WHERE id = $1 AND tenant = $2 FOR NO KEY UPDATE";

/// Whether the holder is registered, whether an ordered batch of the group is in flight, and whether the group has items that
/// are rows and segments behind the place `$4`. Before it they may be gone and not cleaned up.
const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM holder WHERE id = $1),
    EXISTS (SELECT 1 FROM batch WHERE processor = $2 AND key = $3 AND ordered),
    EXISTS (SELECT 1 FROM batch_item WHERE processor = $2 AND key = $3 AND place > $4),
    EXISTS (SELECT 1 FROM batch_segment WHERE processor = $2 AND key = $3 AND id > $4)";

/// The first `$3` items of a group behind the place `$7` that are in no batch; of a group without order only those that are
/// due. A batch that reaches no further than that place has none of them, and need not be looked at. Those that count `$6` bytes at most come with their payload. Times are the caller's, whose now is `$4`.
pub(crate) const CANDIDATES: &str = "SELECT i.id, i.created_ms - (SELECT keiko_now($4) - $4),
        i.due_ms - (SELECT keiko_now($4) - $4), i.attempts, i.size, i.type, CASE WHEN i.size <= $6 THEN i.bytes END, i.place
    FROM batch_item AS i
    WHERE i.processor = $1 AND i.key = $2 AND i.place > $7 AND ($5 OR i.due_ms <= (SELECT keiko_now($4)))
        AND i.id NOT IN (SELECT unnest(b.items) FROM batch AS b
            WHERE b.processor = $1 AND b.key = $2 AND (b.last_place IS NULL OR b.last_place > $7))
    ORDER BY i.place LIMIT $3";

/// The first `$3` segments of a group behind the place `$6` that are in no batch; of a group without order only those that are
/// due.
pub(crate) const SEGMENTS: &str =
    "SELECT s.id, s.created_ms - (SELECT keiko_now($4) - $4), s.items FROM batch_segment AS s
    WHERE s.processor = $1 AND s.key = $2 AND s.id > $6 AND ($5 OR s.created_ms <= (SELECT keiko_now($4)))
        AND s.id NOT IN (SELECT unnest(b.segments) FROM batch AS b
            WHERE b.processor = $1 AND b.key = $2 AND b.last_place > $6)
    ORDER BY s.id LIMIT $3";

/// When the first item of a group is due that is in no batch and neither among `$4` nor in one of the segments `$5`, on the
/// caller's clock. The time of this statement is later than that of the one before: what became due in between is found.
pub(crate) const NEXT: &str = "SELECT least(
        (SELECT min(i.due_ms) FROM batch_item AS i
            WHERE i.processor = $1 AND i.key = $2 AND i.id <> ALL ($4)
                AND i.id NOT IN (SELECT unnest(b.items) FROM batch AS b WHERE b.processor = $1 AND b.key = $2)),
        (SELECT min(s.created_ms) FROM batch_segment AS s
            WHERE s.processor = $1 AND s.key = $2 AND s.id <> ALL ($5)
                AND s.id NOT IN (SELECT unnest(b.segments) FROM batch AS b WHERE b.processor = $1 AND b.key = $2)))
    - (SELECT keiko_now($3) - $3)";

const INSERT_BATCH: &str =
    "INSERT INTO batch (id, tenant, processor, key, ordered, holder, token, formed_ms, items, last_place, segments)
    VALUES ($1, $2, $3, $4, $5, $6, 1, keiko_now($7), $8, $9, $10)";

/// Takes the rest of the segment `$1` out of it, as the segment `$2`.
const CUT: &str = "WITH rest AS (
        INSERT INTO batch_segment (id, last_id, tenant, processor, key, created_ms, item_count, size, items)
        SELECT $2, last_id, tenant, processor, key, created_ms, $3, $4, $5 FROM batch_segment WHERE id = $1)
    UPDATE batch_segment SET last_id = $6, item_count = $7, size = $8, items = $9 WHERE id = $1";

/// Items by their ids, in the columns of [`CANDIDATES`].
const ITEMS: &str =
    "SELECT id, created_ms - (SELECT keiko_now($2) - $2), due_ms, attempts, size, type, bytes, place
    FROM batch_item WHERE id = ANY($1)";

/// Takes over up to `$2` batches of working processors whose holder has no row.
const TAKE_OVER: &str = "WITH orphan AS MATERIALIZED (
        SELECT b.id FROM batch AS b JOIN processor AS p ON p.id = b.processor
        WHERE p.stopped_ms IS NULL AND NOT EXISTS (SELECT 1 FROM holder AS h WHERE h.id = b.holder)
            AND EXISTS (SELECT 1 FROM holder WHERE id = $1)
        ORDER BY b.id LIMIT $2 FOR UPDATE OF b SKIP LOCKED)
    UPDATE batch AS b SET holder = $1, token = b.token + 1 FROM orphan WHERE b.id = orphan.id
    RETURNING b.id, b.tenant, b.processor, b.key, b.token, b.crashes, b.items, b.segments";

/// Groups with items, from the one behind `$1` and `$2` on, on the caller's clock: a walk from group to group along those that
/// are rows, and one along segments.
pub(crate) const GROUPS: &str = "WITH RECURSIVE walk (id, processor, key) AS (
        (SELECT id, processor, key FROM batch_item WHERE (processor, key) > ($1, $2)
            ORDER BY processor, key, place LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM walk, LATERAL (
            SELECT id, processor, key FROM batch_item AS i WHERE (i.processor, i.key) > (walk.processor, walk.key)
            ORDER BY i.processor, i.key, i.place LIMIT 1) AS next),
    stride (id, processor, key) AS (
        (SELECT id, processor, key FROM batch_segment WHERE (processor, key) > ($1, $2)
            ORDER BY processor, key, id LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM stride, LATERAL (
            SELECT id, processor, key FROM batch_segment AS s WHERE (s.processor, s.key) > (stride.processor, stride.key)
            ORDER BY s.processor, s.key, s.id LIMIT 1) AS next)
    SELECT tenant, processor, key, min(created_ms) - (SELECT keiko_now($4) - $4) FROM (
        SELECT i.tenant, i.processor, i.key, i.created_ms
        FROM (SELECT id FROM walk LIMIT $3) AS w JOIN batch_item AS i ON i.id = w.id
        UNION ALL
        SELECT s.tenant, s.processor, s.key, s.created_ms
        FROM (SELECT id FROM stride LIMIT $3) AS w JOIN batch_segment AS s ON s.id = w.id) AS g
    GROUP BY processor, key, tenant ORDER BY processor, key, tenant LIMIT $3";

/// Forms a batch when the group is due.
pub(super) async fn form(session: &mut Session, request: &FormRequest) -> Result<Formed, StoreError> {
    let FormRequest { holder, id, form, now_ms } = request;
    let Group { tenant, processor, key } = &form.group;
    let none = |left, lost| Ok(Formed { batch: None, left, lost });
    let row = session.row(sqlx::query(LOCK).bind(processor.0).bind(tenant.0)).await?;
    let stopped: Option<bool> = row.as_ref().map(|row| get(row, 0)).transpose()?;
    let began = session.walks.begin(form);
    let query = sqlx::query(LOOK).bind(holder.0).bind(processor.0).bind(key);
    let row = session.row(query.bind(began.unwrap_or(i64::MIN))).await?;
    let Some(row) = &row else { return none(Left::Nothing, true) };
    let (held, blocked): (bool, bool) = (get(row, 0)?, get(row, 1)?);
    let has = Has { rows: get(row, 2)?, segments: get(row, 3)? };
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
            let seen = |in_segment| candidates.iter().filter(move |one| one.in_segment == in_segment);
            let query = query.bind(seen(false).map(|one| one.id).collect::<Vec<i64>>());
            let row = session.row(query.bind(ids(&segments))).await?;
            gather::left(gathered.at_ms, row.map_or(Ok(None), |row| get(&row, 0))?)
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
    let query = sqlx::query(INSERT_BATCH).bind(id.0).bind(tenant.0).bind(processor.0).bind(key);
    let query = query.bind(form.ordered).bind(holder.0).bind(*now_ms).bind(&alone);
    session.run(query.bind(gathered.last_place).bind(ids(&segments))).await?;
    let items = batch::items(load(session, &alone, &rows[..alone.len()], *now_ms).await?, segments);
    let batch = LeasedBatch { id: *id, group: form.group.clone(), token: Token(1), crashes: 0, items };
    Ok(Formed { batch: Some(batch), left, lost: false })
}

fn ids(segments: &[Segment]) -> Vec<i64> {
    segments.iter().map(|segment| segment.id).collect()
}

/// Walks on behind what was taken last, or from the first item on.
async fn walk(
    session: &mut Session,
    form: &Form,
    mut began: Option<i64>,
    mut has: Has,
    now_ms: i64,
) -> Result<Walked<PgRow>, StoreError> {
    let (Group { processor, key, .. }, wanted) = (&form.group, gather::wanted(form));
    loop {
        let behind = began.unwrap_or(i64::MIN);
        let mut rows = Vec::new();
        if has.rows {
            let query = sqlx::query(CANDIDATES).bind(processor.0).bind(key).bind(wanted).bind(now_ms);
            let query = query.bind(form.ordered).bind(gather::light_bytes(form));
            rows = session.rows(query.bind(behind)).await?;
        }
        let mut reading = Reading::new(form);
        while let Some(count) = reading.next().filter(|_| has.segments) {
            let query = sqlx::query(SEGMENTS).bind(processor.0).bind(key).bind(count).bind(now_ms);
            let query = query.bind(form.ordered).bind(reading.last_place().unwrap_or(behind));
            reading.add(session.rows(query).await?.iter().map(read_segment).collect::<Result<_, _>>()?);
        }
        let of_rows = rows.iter().map(candidate).collect::<Result<Vec<_>, _>>()?;
        if let Some(walked) = reading.end(rows, of_rows, began) {
            return Ok(walked);
        }
        (began, has) = (None, Has::BOTH);
    }
}

/// A segment of its id, its time and its items.
pub(super) fn read_segment(row: &PgRow) -> Result<Segment, StoreError> {
    let bytes: Vec<u8> = get(row, 2)?;
    Segment::read(get(row, 0)?, get(row, 1)?, &Bytes::from(bytes)).map_err(undecodable)
}

/// Makes what is left of a segment one of its own.
async fn cut(session: &mut Session, key: &str, taken: &Segment, rest: &Segment) -> Result<(), StoreError> {
    let (head, tail) = (taken.sum(key), rest.sum(key));
    let query = sqlx::query(CUT).bind(head.first).bind(tail.first).bind(tail.count).bind(tail.size);
    let query = query.bind(rest.pack()).bind(head.last).bind(head.count).bind(head.size);
    session.run(query.bind(taken.pack())).await.map(drop)
}

/// Segments by their ids, in no order, with times on the caller's clock.
pub(super) async fn load_segments(
    session: &mut Session,
    ids: &[i64],
    now_ms: i64,
) -> Result<Vec<Segment>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let query =
        "SELECT id, created_ms - (SELECT keiko_now($2) - $2), items FROM batch_segment WHERE id = ANY($1)";
    session.rows(sqlx::query(query).bind(ids).bind(now_ms)).await?.iter().map(read_segment).collect()
}

fn candidate(row: &PgRow) -> Result<Candidate, StoreError> {
    Ok(Candidate {
        id: get(row, 0)?,
        place: get(row, 7)?,
        created_ms: get(row, 1)?,
        due_ms: get(row, 2)?,
        attempts: count(row, 3)?,
        size: large_count(row, 4)?,
        in_segment: false,
    })
}

/// Items that are rows with their places, of which `rows` may have some with their payloads.
async fn load(
    session: &mut Session,
    ids: &[i64],
    rows: &[PgRow],
    now_ms: i64,
) -> Result<Vec<Placed>, StoreError> {
    let mut items = read(rows)?;
    let rest: Vec<i64> = ids.iter().copied().filter(|id| !items.contains_key(id)).collect();
    if !rest.is_empty() {
        items.extend(read(&session.rows(sqlx::query(ITEMS).bind(rest).bind(now_ms)).await?)?);
    }
    Ok(gather::in_order(ids, items))
}

/// Those that came with their payloads, by id.
fn read(rows: &[PgRow]) -> Result<BTreeMap<i64, Placed>, StoreError> {
    rows.iter().filter_map(|row| item(row).transpose()).collect()
}

fn item(row: &PgRow) -> Result<Option<(i64, Placed)>, StoreError> {
    let Some(bytes) = get::<Option<Vec<u8>>>(row, 6)? else { return Ok(None) };
    let payload = Payload { content_type: read_type(get(row, 5)?), bytes: Bytes::from(bytes) };
    let (id, place): (i64, i64) = (get(row, 0)?, get(row, 7)?);
    let item = Item { id: ItemId(id), payload, created_ms: get(row, 1)?, attempts: count(row, 3)? };
    Ok(Some((id, (place, item))))
}

/// Takes over batches whose holder is gone, oldest first.
pub(super) async fn take_over(
    session: &mut Session,
    holder: Holder,
    room: usize,
    now_ms: i64,
) -> Result<Vec<LeasedBatch>, StoreError> {
    let rows = session.rows(sqlx::query(TAKE_OVER).bind(holder.0).bind(room as i64)).await?;
    let mut batches = Vec::with_capacity(rows.len());
    for row in &rows {
        let (mut batch, ids, whole) = leased(row)?;
        let segments = load_segments(session, &whole, now_ms).await?;
        batch.items = batch::items(load(session, &ids, &[], now_ms).await?, segments);
        batches.push(batch);
    }
    batches.sort_unstable_by_key(|batch| batch.id);
    Ok(batches)
}

/// A batch without its items, which of them are rows, and its segments.
fn leased(row: &PgRow) -> Result<(LeasedBatch, Vec<i64>, Vec<i64>), StoreError> {
    let group =
        Group { tenant: TenantId(get(row, 1)?), processor: ProcessorId(get(row, 2)?), key: get(row, 3)? };
    let batch = LeasedBatch {
        id: BatchId(get(row, 0)?),
        group,
        token: Token(get(row, 4)?),
        crashes: count(row, 5)?,
        items: Vec::new(),
    };
    Ok((batch, get(row, 6)?, get::<Option<Vec<i64>>>(row, 7)?.unwrap_or_default()))
}

/// Charges batches a crash that were being worked when their host died. Their holder's row is gone by then.
pub(crate) async fn charge(session: &mut Session, started: &[(TaskId, Token)]) -> Result<(), StoreError> {
    if started.is_empty() {
        return Ok(());
    }
    let (ids, tokens): (Vec<i64>, Vec<i64>) = started.iter().map(|(id, token)| (id.0, token.0)).unzip();
    let query = "UPDATE batch AS b SET crashes = b.crashes + 1
        FROM unnest($1::bigint[], $2::bigint[]) AS s (id, token)
        WHERE b.id = s.id AND b.token = s.token AND NOT EXISTS (SELECT 1 FROM holder AS h WHERE h.id = b.holder)";
    session.run(sqlx::query(query).bind(ids).bind(tokens)).await.map(drop)
}

/// Groups with items, behind one.
pub(super) async fn groups(
    pool: &Pool,
    after: Option<(ProcessorId, String)>,
    limit: u32,
    now_ms: i64,
) -> Result<Vec<FoundGroup>, StoreError> {
    let (processor, key) = after.unwrap_or((ProcessorId(i64::MIN), String::new()));
    let query = sqlx::query(GROUPS).bind(processor.0).bind(key).bind(i64::from(limit)).bind(now_ms);
    let found = |row: &PgRow| {
        let group =
            Group { tenant: TenantId(get(row, 0)?), processor: ProcessorId(get(row, 1)?), key: get(row, 2)? };
        Ok(FoundGroup { group, oldest_ms: get(row, 3)? })
    };
    pool.system().await?.rows(query).await?.iter().map(found).collect()
}
