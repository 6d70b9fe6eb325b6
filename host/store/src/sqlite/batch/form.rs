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
use crate::gather::{self, Candidate};

/// Whether the holder `?1` is registered, whether the processor `?2` of the tenant `?3` is stopped, NULL when there is
/// none, and whether an ordered batch of the key `?4` is in flight.
pub(crate) const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM holder WHERE id = ?1),
    (SELECT stopped_ms IS NOT NULL FROM processor WHERE id = ?2 AND tenant = ?3),
    EXISTS (SELECT 1 FROM batch INDEXED BY batch_ordered WHERE processor = ?2 AND key = ?4 AND ordered = 1)";

/// The first `?3` items of a group behind the place `?6` that are in no batch; those that are due at `?4`, or, with NULL,
/// all. A batch that reaches no further than that place has none of them, and need not be looked at. Those that count `?5` bytes at most come with their payload.
pub(crate) const CANDIDATES: &str = "SELECT id, created_ms, due_ms, attempts, size, type,
        CASE WHEN size <= ?5 THEN bytes END, place
    FROM batch_item INDEXED BY batch_item_group
    WHERE processor = ?1 AND key = ?2 AND place > ?6 AND (?4 IS NULL OR due_ms <= ?4)
        AND id NOT IN (SELECT m.value FROM batch AS b INDEXED BY batch_group, json_each(b.items) AS m
            WHERE b.processor = ?1 AND b.key = ?2 AND (b.last_place IS NULL OR b.last_place > ?6))
    ORDER BY place LIMIT ?3";

/// When the first item of a group is due that is not at `?3`.
pub(crate) const NEXT: &str = "SELECT min(due_ms) FROM batch_item INDEXED BY batch_item_group
    WHERE processor = ?1 AND key = ?2 AND due_ms > ?3";

const INSERT_BATCH: &str =
    "INSERT INTO batch (id, tenant, processor, key, ordered, holder, token, formed_ms, items, last_place)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8, ?9)";

/// Items by their ids, in the columns of [`CANDIDATES`].
const ITEMS: &str = "SELECT id, created_ms, due_ms, attempts, size, type, bytes, place FROM batch_item
    WHERE id IN (SELECT value FROM json_each(?1))";

/// Takes over up to `?2` batches of working processors whose holder has no row.
const TAKE_OVER: &str = "UPDATE batch SET holder = ?1, token = token + 1 WHERE id IN (
        SELECT b.id FROM batch AS b JOIN processor AS p ON p.id = b.processor
        WHERE p.stopped_ms IS NULL AND b.holder NOT IN (SELECT id FROM holder)
            AND EXISTS (SELECT 1 FROM holder WHERE id = ?1)
        ORDER BY b.id LIMIT ?2)
    RETURNING id, tenant, processor, key, token, crashes, items";

/// Groups with items that are in no batch, from the one behind `?1` and `?2` on: a walk from group to group.
pub(crate) const GROUPS: &str = "WITH RECURSIVE walk (id, processor, key) AS (
        SELECT * FROM (SELECT id, processor, key FROM batch_item INDEXED BY batch_item_group
            WHERE (processor, key) > (?1, ?2) ORDER BY processor, key, place LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM walk JOIN batch_item AS next ON next.id =
            (SELECT id FROM batch_item INDEXED BY batch_item_group
                WHERE (processor, key) > (walk.processor, walk.key) ORDER BY processor, key, place LIMIT 1)
        LIMIT ?3)
    SELECT i.tenant, i.processor, i.key, i.created_ms FROM walk JOIN batch_item AS i ON i.id = walk.id";

/// Forms a batch when the group is due.
pub(super) async fn form(session: &mut Session, request: &FormRequest) -> Result<Formed, StoreError> {
    let FormRequest { holder, id, form, now_ms } = request;
    let Group { tenant, processor, key } = &form.group;
    let query = sqlx::query(LOOK).bind(holder.0).bind(processor.0).bind(tenant.0).bind(key);
    let rows = session.rows(query).await?;
    let look = |row: &SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    let (held, stopped, blocked): (bool, Option<bool>, bool) =
        rows.first().ok_or(sqlx::Error::RowNotFound).and_then(look).map_err(store_error)?;
    let none = |left, lost| Ok(Formed { batch: None, left, lost });
    if !held || stopped != Some(false) {
        return none(Left::Nothing, !held);
    }
    if form.ordered && blocked {
        return none(Left::Blocked, false);
    }
    let Walked { rows, candidates, began } = walk(session, form, *now_ms).await?;
    let gathered = gather::gather(&candidates, form, *now_ms);
    session.walks.end(form, began, candidates.len(), gathered.last_place);
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
    let query = sqlx::query(INSERT_BATCH).bind(id.0).bind(tenant.0).bind(processor.0).bind(key);
    let query = query.bind(form.ordered).bind(holder.0).bind(*now_ms).bind(json(&gathered.ids));
    session.run(query.bind(gathered.last_place)).await?;
    let items = load(session, &gathered.ids, &rows[..gathered.ids.len()]).await?;
    let batch = LeasedBatch { id: *id, group: form.group.clone(), token: Token(1), crashes: 0, items };
    Ok(Formed { batch: Some(batch), left, lost: false })
}

/// What a walk through a group has found.
struct Walked {
    rows: Vec<SqliteRow>,
    candidates: Vec<Candidate>,
    /// Behind which place it began.
    began: Option<i64>,
}

/// Walks on behind what was taken last, or from the first item on.
async fn walk(session: &mut Session, form: &Form, now_ms: i64) -> Result<Walked, StoreError> {
    let (Group { processor, key, .. }, wanted) = (&form.group, gather::wanted(form));
    let due_ms = (!form.ordered).then_some(now_ms);
    let mut began = session.walks.begin(form);
    loop {
        let query = sqlx::query(CANDIDATES).bind(processor.0).bind(key).bind(wanted).bind(due_ms);
        let query = query.bind(gather::light_bytes(form)).bind(began.unwrap_or(i64::MIN));
        let rows = session.rows(query).await?;
        let candidates = rows.iter().map(candidate).collect::<Result<Vec<_>, _>>().map_err(store_error)?;
        if began.is_none() || candidates.len() as i64 >= wanted {
            return Ok(Walked { rows, candidates, began });
        }
        began = None;
    }
}

fn candidate(row: &SqliteRow) -> Result<Candidate, sqlx::Error> {
    Ok(Candidate {
        id: row.try_get(0)?,
        place: row.try_get(7)?,
        created_ms: row.try_get(1)?,
        due_ms: row.try_get(2)?,
        attempts: row.try_get(3)?,
        size: row.try_get::<i64, _>(4)?.max(0) as u64,
    })
}

/// The items of a batch, of which `rows` may have some with their payloads.
async fn load(session: &mut Session, ids: &[i64], rows: &[SqliteRow]) -> Result<Vec<Item>, StoreError> {
    let mut items = read(rows).map_err(store_error)?;
    let rest: Vec<i64> = ids.iter().copied().filter(|id| !items.contains_key(id)).collect();
    if !rest.is_empty() {
        let rows = session.rows(sqlx::query(ITEMS).bind(json(&rest))).await?;
        items.extend(read(&rows).map_err(store_error)?);
    }
    Ok(gather::in_order(ids, items))
}

/// Those that came with their payloads, by id.
fn read(rows: &[SqliteRow]) -> Result<BTreeMap<i64, Item>, sqlx::Error> {
    rows.iter().filter_map(|row| item(row).transpose()).collect()
}

fn item(row: &SqliteRow) -> Result<Option<(i64, Item)>, sqlx::Error> {
    let Some(bytes) = row.try_get::<Option<Vec<u8>>, _>(6)? else { return Ok(None) };
    let payload = Payload { content_type: read_type(row.try_get(5)?), bytes: Bytes::from(bytes) };
    let id: i64 = row.try_get(0)?;
    Ok(Some((id, Item { id: ItemId(id), payload, created_ms: row.try_get(1)?, attempts: row.try_get(3)? })))
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
        let (mut batch, ids) = leased(row).map_err(store_error)?;
        batch.items = load(session, &ids, &[]).await?;
        batches.push(batch);
    }
    batches.sort_unstable_by_key(|batch| batch.id);
    Ok(batches)
}

fn leased(row: &SqliteRow) -> Result<(LeasedBatch, Vec<i64>), sqlx::Error> {
    let ids = serde_json::from_str(row.try_get(6)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
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
    Ok((batch, ids))
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
