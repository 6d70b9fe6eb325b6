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
use crate::gather::{self, Candidate};

const LOCK: &str =
    "SELECT stopped_ms IS NOT NULL FROM processor WHERE id = $1 AND tenant = $2 FOR NO KEY UPDATE";

/// Whether the holder is registered, and whether an ordered batch of the group is in flight.
const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM holder WHERE id = $1),
    EXISTS (SELECT 1 FROM batch WHERE processor = $2 AND key = $3 AND ordered)";

/// The first `$3` items of a group behind the place `$7` that are in no batch; of a group without order only those that are
/// due. A batch that reaches no further than that place has none of them, and need not be looked at. Those that count `$6` bytes at most come with their payload. Times are the caller's, whose now is `$4`.
pub(crate) const CANDIDATES: &str = "SELECT i.id, i.created_ms - (SELECT keiko_now($4) - $4),
        i.due_ms - (SELECT keiko_now($4) - $4), i.attempts, i.size, i.type, CASE WHEN i.size <= $6 THEN i.bytes END, i.place
    FROM batch_item AS i
    WHERE i.processor = $1 AND i.key = $2 AND i.place > $7 AND ($5 OR i.due_ms <= (SELECT keiko_now($4)))
        AND i.id NOT IN (SELECT unnest(b.items) FROM batch AS b
            WHERE b.processor = $1 AND b.key = $2 AND (b.last_place IS NULL OR b.last_place > $7))
    ORDER BY i.place LIMIT $3";

/// When the first item of a group is due that is in no batch and not among `$4`, on the caller's clock. The time of this
/// statement is later than that of the one before: what became due in between is found.
pub(crate) const NEXT: &str = "SELECT min(i.due_ms) - (SELECT keiko_now($3) - $3) FROM batch_item AS i
    WHERE i.processor = $1 AND i.key = $2 AND i.id <> ALL ($4)
        AND i.id NOT IN (SELECT unnest(b.items) FROM batch AS b WHERE b.processor = $1 AND b.key = $2)";

const INSERT_BATCH: &str =
    "INSERT INTO batch (id, tenant, processor, key, ordered, holder, token, formed_ms, items, last_place)
    VALUES ($1, $2, $3, $4, $5, $6, 1, keiko_now($7), $8, $9)";

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
    RETURNING b.id, b.tenant, b.processor, b.key, b.token, b.crashes, b.items";

/// Groups with items, from the one behind `$1` and `$2` on, on the caller's clock: a walk from group to group.
pub(crate) const GROUPS: &str = "WITH RECURSIVE walk (id, processor, key) AS (
        (SELECT id, processor, key FROM batch_item WHERE (processor, key) > ($1, $2)
            ORDER BY processor, key, place LIMIT 1)
        UNION ALL
        SELECT next.id, next.processor, next.key FROM walk, LATERAL (
            SELECT id, processor, key FROM batch_item AS i WHERE (i.processor, i.key) > (walk.processor, walk.key)
            ORDER BY i.processor, i.key, i.place LIMIT 1) AS next)
    SELECT i.tenant, i.processor, i.key, i.created_ms - (SELECT keiko_now($4) - $4)
    FROM (SELECT id FROM walk LIMIT $3) AS w JOIN batch_item AS i ON i.id = w.id";

/// Forms a batch when the group is due.
pub(super) async fn form(session: &mut Session, request: &FormRequest) -> Result<Formed, StoreError> {
    let FormRequest { holder, id, form, now_ms } = request;
    let Group { tenant, processor, key } = &form.group;
    let none = |left, lost| Ok(Formed { batch: None, left, lost });
    let row = session.row(sqlx::query(LOCK).bind(processor.0).bind(tenant.0)).await?;
    let stopped: Option<bool> = row.as_ref().map(|row| get(row, 0)).transpose()?;
    let row = session.row(sqlx::query(LOOK).bind(holder.0).bind(processor.0).bind(key)).await?;
    let (held, blocked): (bool, bool) = match &row {
        Some(row) => (get(row, 0)?, get(row, 1)?),
        None => (false, false),
    };
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
            let seen: Vec<i64> = candidates.iter().map(|candidate| candidate.id).collect();
            let row = session.row(query.bind(seen)).await?;
            gather::left(gathered.at_ms, row.map_or(Ok(None), |row| get(&row, 0))?)
        }
    };
    if gathered.ids.is_empty() {
        return none(left, false);
    }
    let query = sqlx::query(INSERT_BATCH).bind(id.0).bind(tenant.0).bind(processor.0).bind(key);
    let query = query.bind(form.ordered).bind(holder.0).bind(*now_ms).bind(&gathered.ids);
    session.run(query.bind(gathered.last_place)).await?;
    let items = load(session, &gathered.ids, &rows[..gathered.ids.len()], *now_ms).await?;
    let batch = LeasedBatch { id: *id, group: form.group.clone(), token: Token(1), crashes: 0, items };
    Ok(Formed { batch: Some(batch), left, lost: false })
}

/// What a walk through a group has found.
struct Walked {
    rows: Vec<PgRow>,
    candidates: Vec<Candidate>,
    /// Behind which place it began.
    began: Option<i64>,
}

/// Walks on behind what was taken last, or from the first item on.
async fn walk(session: &mut Session, form: &Form, now_ms: i64) -> Result<Walked, StoreError> {
    let (Group { processor, key, .. }, wanted) = (&form.group, gather::wanted(form));
    let mut began = session.walks.begin(form);
    loop {
        let query = sqlx::query(CANDIDATES).bind(processor.0).bind(key).bind(wanted).bind(now_ms);
        let query = query.bind(form.ordered).bind(gather::light_bytes(form));
        let rows = session.rows(query.bind(began.unwrap_or(i64::MIN))).await?;
        let candidates = rows.iter().map(candidate).collect::<Result<Vec<_>, _>>()?;
        if began.is_none() || candidates.len() as i64 >= wanted {
            return Ok(Walked { rows, candidates, began });
        }
        began = None;
    }
}

fn candidate(row: &PgRow) -> Result<Candidate, StoreError> {
    Ok(Candidate {
        id: get(row, 0)?,
        place: get(row, 7)?,
        created_ms: get(row, 1)?,
        due_ms: get(row, 2)?,
        attempts: count(row, 3)?,
        size: large_count(row, 4)?,
    })
}

/// The items of a batch, of which `rows` may have some with their payloads.
async fn load(
    session: &mut Session,
    ids: &[i64],
    rows: &[PgRow],
    now_ms: i64,
) -> Result<Vec<Item>, StoreError> {
    let mut items = read(rows)?;
    let rest: Vec<i64> = ids.iter().copied().filter(|id| !items.contains_key(id)).collect();
    if !rest.is_empty() {
        items.extend(read(&session.rows(sqlx::query(ITEMS).bind(rest).bind(now_ms)).await?)?);
    }
    Ok(gather::in_order(ids, items))
}

/// Those that came with their payloads, by id.
fn read(rows: &[PgRow]) -> Result<BTreeMap<i64, Item>, StoreError> {
    rows.iter().filter_map(|row| item(row).transpose()).collect()
}

fn item(row: &PgRow) -> Result<Option<(i64, Item)>, StoreError> {
    let Some(bytes) = get::<Option<Vec<u8>>>(row, 6)? else { return Ok(None) };
    let payload = Payload { content_type: read_type(get(row, 5)?), bytes: Bytes::from(bytes) };
    let id: i64 = get(row, 0)?;
    Ok(Some((id, Item { id: ItemId(id), payload, created_ms: get(row, 1)?, attempts: count(row, 3)? })))
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
        let (mut batch, ids) = leased(row)?;
        batch.items = load(session, &ids, &[], now_ms).await?;
        batches.push(batch);
    }
    batches.sort_unstable_by_key(|batch| batch.id);
    Ok(batches)
}

fn leased(row: &PgRow) -> Result<(LeasedBatch, Vec<i64>), StoreError> {
    let group =
        Group { tenant: TenantId(get(row, 1)?), processor: ProcessorId(get(row, 2)?), key: get(row, 3)? };
    let batch = LeasedBatch {
        id: BatchId(get(row, 0)?),
        group,
        token: Token(get(row, 4)?),
        crashes: count(row, 5)?,
        items: Vec::new(),
    };
    Ok((batch, get(row, 6)?))
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
