//! What becomes of batches: the ends of all items of a call in a handful of statements, with everything that their
//! processors asked for.

use keiko_core::batch::BatchSettlement;
use keiko_core::effect::Effects;
use keiko_core::id::{Holder, TenantId};
use keiko_core::port::StoreError;
use keiko_core::task::Settled;

use super::super::row::{get, stored_text};
use super::super::session::{Session, chunks};
use super::super::settle::set_statuses;
use super::add::insert;
use super::form::load_segments;
use crate::admit::stored_type;
use crate::format::encode_detail;
use crate::gather::{Ends, WaitingChanges, ranges};
use crate::segment::Sum;
use crate::segment::fate::{self, Fates, Fenced, ItemRow, Stored};
use crate::stored::last_statuses;
use crate::trouble::taken;

/// Ends batches, fenced by id, tenant, token and the holder `$4`.
const FENCE: &str =
    "DELETE FROM batch AS b USING unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (id, tenant, token)
    WHERE b.id = s.id AND b.tenant = s.tenant AND b.token = s.token AND b.holder = $4
    RETURNING b.id, b.items, b.ordered, b.segments";

const KEEP_ROWS: &str = "INSERT INTO batch_row (id, tenant, processor, key, created_ms, type, bytes)
    SELECT i.id, i.tenant, i.processor, i.key, i.created_ms, i.type, i.bytes
    FROM unnest($1::bigint[], $2::bigint[]) AS r (first, last)
    JOIN batch_item AS i ON i.id >= r.first AND i.id <= r.last";

const SUMS: &str = "SELECT id, last_id, item_count, size FROM batch_segment WHERE id = ANY($1)";

/// Items of segments as rows of their own.
const EXPLODE: &str =
    "INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type, bytes)
    SELECT n.id, s.tenant, s.processor, s.key, n.id, s.created_ms, s.created_ms, n.size, n.type, n.bytes
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[]) AS n (segment, id, size, type, bytes)
    JOIN batch_segment AS s ON s.id = n.segment";

/// The same as rows that are kept.
const KEEP: &str = "INSERT INTO batch_row (id, tenant, processor, key, created_ms, type, bytes)
    SELECT n.id, s.tenant, s.processor, s.key, s.created_ms, n.type, n.bytes
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[]) AS n (segment, id, size, type, bytes)
    JOIN batch_segment AS s ON s.id = n.segment";

const DELETE_SEGMENTS: &str = "DELETE FROM batch_segment WHERE id = ANY($1)";

const KEEP_DEAD: &str = "INSERT INTO dead_letter (id, tenant, processor, key, created_ms, dead_ms, attempts, size, type,
        bytes, code, message, detail)
    SELECT i.id, i.tenant, i.processor, i.key, i.created_ms, keiko_now($5), i.attempts + 1, i.size, i.type, i.bytes,
        d.code, d.message, d.detail
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS d (id, code, message, detail)
    JOIN batch_item AS i ON i.id = d.id";

/// Takes items away; how many and how large they were.
pub(crate) const DELETE: &str = "WITH gone AS (
        DELETE FROM batch_item AS i USING unnest($1::bigint[], $2::bigint[]) AS r (first, last)
        WHERE i.id >= r.first AND i.id <= r.last RETURNING i.tenant, i.size)
    SELECT tenant, count(*), sum(size)::bigint FROM gone GROUP BY tenant";

/// Times come from the caller's clock, whose now is `$4`.
const AGAIN: &str =
    "UPDATE batch_item AS i SET attempts = i.attempts + 1, place = coalesce(a.place, i.place),
        due_ms = a.due_ms + (SELECT keiko_now($4) - $4)
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS a (id, place, due_ms) WHERE i.id = a.id";

/// Writes what became of batches; the answers are in their order.
pub(super) async fn settle(
    session: &mut Session,
    holder: Holder,
    settlements: &[BatchSettlement],
    now_ms: i64,
) -> Result<Vec<Settled>, StoreError> {
    let (answers, mut fenced) = fence(session, holder, settlements).await?;
    let fates = fates(session, &mut fenced, now_ms).await?;
    let (mut ends, mut statuses) = (Ends::default(), Vec::new());
    for Fenced { one, stored } in &fenced {
        ends.add(one, &stored.rows, stored.ordered);
        statuses.extend(one.effects.statuses.iter().map(|change| (one.tenant, *change)));
    }
    // Agents come before what waits of their tenant, as where tasks end.
    set_statuses(session, &last_statuses(statuses), now_ms).await?;
    let changes = write_segments(session, &fates).await?;
    write(session, &ends, changes, now_ms).await?;
    Ok(answers)
}

/// Whether the database takes what a batch asked for. Nothing of it stays; what else is in the transaction does.
pub(super) async fn accepts(
    session: &mut Session,
    tenant: TenantId,
    effects: &Effects,
    now_ms: i64,
) -> Result<bool, StoreError> {
    session.run(sqlx::query("SAVEPOINT look")).await?;
    let tried = ask(session, tenant, effects, now_ms).await;
    session.run(sqlx::query("ROLLBACK TO SAVEPOINT look")).await?;
    session.run(sqlx::query("RELEASE SAVEPOINT look")).await?;
    taken(tried)
}

async fn ask(
    session: &mut Session,
    tenant: TenantId,
    effects: &Effects,
    now_ms: i64,
) -> Result<(), StoreError> {
    let statuses: Vec<_> = effects.statuses.iter().map(|change| (tenant, *change)).collect();
    set_statuses(session, &last_statuses(statuses), now_ms).await?;
    let items: Vec<_> = effects.items.iter().map(|item| (tenant, item)).collect();
    insert(session, &items, WaitingChanges::default(), now_ms).await
}

/// The batches whose lease holds, each once, and the answers to all.
async fn fence<'a>(
    session: &mut Session,
    holder: Holder,
    settlements: &'a [BatchSettlement],
) -> Result<(Vec<Settled>, Vec<Fenced<'a>>), StoreError> {
    let column = |of: fn(&BatchSettlement) -> i64| settlements.iter().map(of).collect::<Vec<i64>>();
    let query = sqlx::query(FENCE).bind(column(|one| one.id.0)).bind(column(|one| one.tenant.0));
    let rows = session.rows(query.bind(column(|one| one.token.0)).bind(holder.0)).await?;
    let read = |row| {
        let segments = get::<Option<Vec<i64>>>(row, 3)?.unwrap_or_default();
        Ok::<_, StoreError>((get(row, 0)?, Stored { ordered: get(row, 2)?, rows: get(row, 1)?, segments }))
    };
    let open = rows.iter().map(read).collect::<Result<_, _>>()?;
    Ok(fate::fenced(settlements, open))
}

/// What becomes of the segments of these batches.
async fn fates(session: &mut Session, fenced: &mut [Fenced<'_>], now_ms: i64) -> Result<Fates, StoreError> {
    let ids: Vec<i64> = fenced.iter().flat_map(|one| one.stored.segments.iter().copied()).collect();
    if ids.is_empty() {
        return Ok(Fates::default());
    }
    let sum = |row| {
        let (first, last, count, size) = (get(row, 0)?, get(row, 1)?, get(row, 2)?, get(row, 3)?);
        Ok::<_, StoreError>((first, Sum { first, last, count, size }))
    };
    let rows = session.rows(sqlx::query(SUMS).bind(ids)).await?;
    let sums = rows.iter().map(sum).collect::<Result<_, _>>()?;
    let mut fates = Fates::of(fenced, &sums);
    let read = load_segments(session, &fates.unclear, now_ms).await?;
    fates.decide(fenced, &sums, read);
    Ok(fates)
}

/// Writes what becomes of segments; how what waits changes by it.
async fn write_segments(session: &mut Session, fates: &Fates) -> Result<WaitingChanges, StoreError> {
    for (text, rows) in [(KEEP, fates.kept()), (EXPLODE, fates.mixed())] {
        for chunk in chunks(&rows, |row| row.payload.bytes.len()) {
            let numbers = |of: fn(&ItemRow<'_>) -> i64| chunk.iter().map(of).collect::<Vec<i64>>();
            let query = sqlx::query(text).bind(numbers(|row| row.segment)).bind(numbers(|row| row.id));
            let types = chunk.iter().map(|row| stored_type(row.payload).map(stored_text));
            let query = query.bind(numbers(|row| row.size)).bind(types.collect::<Vec<_>>());
            let bytes: Vec<&[u8]> = chunk.iter().map(|row| &row.payload.bytes[..]).collect();
            session.run(query.bind(bytes)).await?;
        }
    }
    let over = fates.over();
    if !over.is_empty() {
        session.run(sqlx::query(DELETE_SEGMENTS).bind(over)).await?;
    }
    Ok(fates.changes())
}

async fn write(
    session: &mut Session,
    ends: &Ends<'_>,
    mut changes: WaitingChanges,
    now_ms: i64,
) -> Result<(), StoreError> {
    if !ends.kept.is_empty() {
        let (first, last) = columns(&ends.kept);
        session.run(sqlx::query(KEEP_ROWS).bind(first).bind(last)).await?;
    }
    if !ends.dead.is_empty() {
        let ids: Vec<i64> = ends.dead.iter().map(|(id, _)| *id).collect();
        let codes: Vec<&str> = ends.dead.iter().map(|(_, failure)| failure.code.as_str()).collect();
        let messages: Vec<String> =
            ends.dead.iter().map(|(_, failure)| stored_text(&failure.message)).collect();
        let details: Vec<Option<String>> =
            ends.dead.iter().map(|(_, failure)| encode_detail(failure)).collect();
        let query = sqlx::query(KEEP_DEAD).bind(ids).bind(codes).bind(messages).bind(details);
        session.run(query.bind(now_ms)).await?;
    }
    if !ends.gone.is_empty() {
        let (first, last) = columns(&ends.gone);
        for row in &session.rows(sqlx::query(DELETE).bind(first).bind(last)).await? {
            changes.add(TenantId(get(row, 0)?), -get::<i64>(row, 1)?, -get::<i64>(row, 2)?);
        }
    }
    if !ends.again.is_empty() {
        let ids: Vec<i64> = ends.again.iter().map(|(id, ..)| *id).collect();
        let places: Vec<Option<i64>> = ends.again.iter().map(|(_, place, _)| *place).collect();
        let due: Vec<i64> = ends.again.iter().map(|(.., due_ms)| *due_ms).collect();
        session.run(sqlx::query(AGAIN).bind(ids).bind(places).bind(due).bind(now_ms)).await?;
    }
    insert(session, &ends.items, changes, now_ms).await
}

/// Ranges of ids as two columns.
fn columns(ids: &[i64]) -> (Vec<i64>, Vec<i64>) {
    ranges(ids).into_iter().unzip()
}
