//! What becomes of batches: the ends of all items of a call in a handful of statements, with everything that their
//! processors asked for.

use std::sync::LazyLock;

use keiko_core::agent::StatusChange;
use keiko_core::batch::BatchSettlement;
use keiko_core::effect::Effects;
use keiko_core::id::{Holder, TenantId};
use keiko_core::port::StoreError;
use keiko_core::task::Settled;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::super::error::store_error;
use super::super::session::{RowStatement, Session, json};
use super::super::settle::SET_STATUSES;
use super::add::insert;
use super::form::{load_segments, read_ids};
use crate::admit::stored_type;
use crate::format::encode_detail;
use crate::gather::{Ends, WaitingChanges};
use crate::segment::Sum;
use crate::segment::fate::{self, Fates, Fenced, Stored};
use crate::stored::last_statuses;
use crate::trouble::taken;

/// Ends the batches `?1`, fenced by id, tenant, token and the holder `?2`.
const FENCE: &str = "DELETE FROM batch WHERE holder = ?2 AND (id, tenant, token) IN
        (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1))
    RETURNING id, items, ordered, segments";

const KEEP_ROWS: &str = "INSERT INTO batch_row (id, tenant, processor, key, created_ms, type, bytes)
    SELECT id, tenant, processor, key, created_ms, type, bytes FROM batch_item
    WHERE id IN (SELECT value FROM json_each(?1))";

/// Items of segments as rows of their own.
static EXPLODE: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH n (id, segment, size, type, bytes) AS (VALUES)
         INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, type, bytes)
         SELECT n.id, s.tenant, s.processor, s.key, n.id, s.created_ms, s.created_ms, n.size, n.type, n.bytes
         FROM n CROSS JOIN batch_segment AS s ON s.id = n.segment WHERE n.id IS NOT NULL",
        5,
    )
});

/// The same as rows that are kept.
static KEEP: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH n (id, segment, type, bytes) AS (VALUES)
         INSERT INTO batch_row (id, tenant, processor, key, created_ms, type, bytes)
         SELECT n.id, s.tenant, s.processor, s.key, s.created_ms, n.type, n.bytes
         FROM n CROSS JOIN batch_segment AS s ON s.id = n.segment WHERE n.id IS NOT NULL",
        4,
    )
});

const SUMS: &str = "SELECT id, last_id, item_count, size FROM batch_segment
    WHERE id IN (SELECT value FROM json_each(?1))";

const DELETE_SEGMENTS: &str = "DELETE FROM batch_segment WHERE id IN (SELECT value FROM json_each(?1))";

static KEEP_DEAD: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "WITH d (id, dead_ms, code, message, detail) AS (VALUES)
         INSERT INTO dead_letter (id, tenant, processor, key, created_ms, dead_ms, attempts, size, type, bytes, code,
            message, detail)
         SELECT i.id, i.tenant, i.processor, i.key, i.created_ms, d.dead_ms, i.attempts + 1, i.size, i.type, i.bytes,
            d.code, d.message, d.detail
         FROM d CROSS JOIN batch_item AS i ON i.id = d.id",
        5,
    )
});

const SUM: &str = "SELECT tenant, count(*), sum(size) FROM batch_item
    WHERE id IN (SELECT value FROM json_each(?1)) GROUP BY tenant";

const DELETE: &str = "DELETE FROM batch_item WHERE id IN (SELECT value FROM json_each(?1))";

const AGAIN: &str = "UPDATE batch_item SET attempts = attempts + 1, place = coalesce(a.value ->> 1, place),
        due_ms = a.value ->> 2
    FROM json_each(?1) AS a WHERE batch_item.id = a.value ->> 0";

/// Writes what became of batches; the answers are in their order.
pub(super) async fn settle(
    session: &mut Session,
    holder: Holder,
    settlements: &[BatchSettlement],
    now_ms: i64,
) -> Result<Vec<Settled>, StoreError> {
    let (answers, mut fenced) = fence(session, holder, settlements).await?;
    let fates = fates(session, &mut fenced).await?;
    let (mut ends, mut statuses) = (Ends::default(), Vec::new());
    for Fenced { one, stored } in &fenced {
        ends.add(one, &stored.rows, stored.ordered);
        statuses.extend(one.effects.statuses.iter().map(|change| (one.tenant, *change)));
    }
    let changes = write_segments(session, &fates).await?;
    write(session, &ends, changes, now_ms).await?;
    set_statuses(session, statuses, now_ms).await?;
    Ok(answers)
}

async fn set_statuses(
    session: &mut Session,
    statuses: Vec<(TenantId, StatusChange)>,
    now_ms: i64,
) -> Result<(), StoreError> {
    let statuses = last_statuses(statuses);
    if statuses.is_empty() {
        return Ok(());
    }
    session.run(sqlx::query(SET_STATUSES).bind(json(&statuses)).bind(now_ms)).await
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
    session.run(sqlx::query("ROLLBACK TO look")).await?;
    session.run(sqlx::query("RELEASE look")).await?;
    taken(tried)
}

async fn ask(
    session: &mut Session,
    tenant: TenantId,
    effects: &Effects,
    now_ms: i64,
) -> Result<(), StoreError> {
    let items: Vec<_> = effects.items.iter().map(|item| (tenant, item)).collect();
    insert(session, &items, WaitingChanges::default()).await?;
    let statuses = effects.statuses.iter().map(|change| (tenant, *change)).collect();
    set_statuses(session, statuses, now_ms).await
}

/// The batches whose lease holds, each once, and the answers to all.
async fn fence<'a>(
    session: &mut Session,
    holder: Holder,
    settlements: &'a [BatchSettlement],
) -> Result<(Vec<Settled>, Vec<Fenced<'a>>), StoreError> {
    let batches: Vec<_> = settlements.iter().map(|one| (one.id.0, one.tenant.0, one.token.0)).collect();
    let rows = session.rows(sqlx::query(FENCE).bind(json(&batches)).bind(holder.0)).await?;
    let read = |row: &SqliteRow| {
        let items = Stored { ordered: row.try_get(2)?, rows: read_ids(row, 1)?, segments: read_ids(row, 3)? };
        Ok((row.try_get(0)?, items))
    };
    let open = rows.iter().map(read).collect::<Result<_, _>>().map_err(store_error)?;
    Ok(fate::fenced(settlements, open))
}

/// What becomes of the segments of these batches.
async fn fates(session: &mut Session, fenced: &mut [Fenced<'_>]) -> Result<Fates, StoreError> {
    let ids: Vec<i64> = fenced.iter().flat_map(|one| one.stored.segments.iter().copied()).collect();
    if ids.is_empty() {
        return Ok(Fates::default());
    }
    let sum = |row: &SqliteRow| {
        let (first, last, count, size) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok((first, Sum { first, last, count, size }))
    };
    let rows = session.rows(sqlx::query(SUMS).bind(json(&ids))).await?;
    let sums = rows.iter().map(sum).collect::<Result<_, _>>().map_err(store_error)?;
    let mut fates = Fates::of(fenced, &sums);
    let read = load_segments(session, &fates.unclear).await?;
    fates.decide(fenced, &sums, read);
    Ok(fates)
}

/// Writes what becomes of segments; how what waits changes by it.
async fn write_segments(session: &mut Session, fates: &Fates) -> Result<WaitingChanges, StoreError> {
    session
        .each(&KEEP, &fates.kept(), |row, binds| {
            binds.add(row.id).add(row.segment).add(stored_type(row.payload)).add(&row.payload.bytes[..]);
        })
        .await?;
    session
        .each(&EXPLODE, &fates.mixed(), |row, binds| {
            binds.add(row.id).add(row.segment).add(row.size);
            binds.add(stored_type(row.payload)).add(&row.payload.bytes[..]);
        })
        .await?;
    let over = fates.over();
    if !over.is_empty() {
        session.run(sqlx::query(DELETE_SEGMENTS).bind(json(&over))).await?;
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
        session.run(sqlx::query(KEEP_ROWS).bind(json(&ends.kept))).await?;
    }
    session
        .each(&KEEP_DEAD, &ends.dead, |(id, failure), binds| {
            binds.add(*id).add(now_ms).add(failure.code.as_str()).add(failure.message.as_str());
            binds.add(encode_detail(failure));
        })
        .await?;
    if !ends.gone.is_empty() {
        let gone = json(&ends.gone);
        for row in session.rows(sqlx::query(SUM).bind(&gone)).await? {
            let read = || Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?));
            let (tenant, items, bytes) = read().map_err(store_error)?;
            changes.add(TenantId(tenant), -items, -bytes);
        }
        session.run(sqlx::query(DELETE).bind(&gone)).await?;
    }
    if !ends.again.is_empty() {
        session.run(sqlx::query(AGAIN).bind(json(&ends.again))).await?;
    }
    insert(session, &ends.items, changes).await
}
