//! What becomes of batches: the ends of all items of a call in a handful of statements, with everything that their
//! processors asked for.

use std::collections::HashMap;
use std::sync::LazyLock;

use keiko_core::batch::BatchSettlement;
use keiko_core::id::{Holder, TenantId};
use keiko_core::port::StoreError;
use keiko_core::task::Settled;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::super::error::store_error;
use super::super::session::{RowStatement, Session, json};
use super::super::settle::SET_STATUSES;
use super::add::insert;
use crate::format::encode_detail;
use crate::gather::{Ends, WaitingChanges};
use crate::stored::last_statuses;

/// Ends the batches `?1`, fenced by id, tenant, token and the holder `?2`.
const FENCE: &str = "DELETE FROM batch WHERE holder = ?2 AND (id, tenant, token) IN
        (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1))
    RETURNING id, items, ordered";

const KEEP_ROWS: &str = "INSERT INTO batch_row (id, tenant, processor, key, created_ms, type, bytes)
    SELECT id, tenant, processor, key, created_ms, type, bytes FROM batch_item
    WHERE id IN (SELECT value FROM json_each(?1))";

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
    let mut open = fence(session, holder, settlements).await?;
    let mut ends = Ends::default();
    let mut statuses = Vec::new();
    let answers = settlements.iter().map(|one| {
        // Taken out, so that a batch that is settled twice is settled once.
        let Some((items, ordered)) = open.remove(&one.id.0) else { return Settled::Stale };
        ends.add(one, &items, ordered);
        statuses.extend(one.effects.statuses.iter().map(|change| (one.tenant, *change)));
        Settled::Stored
    });
    let answers = answers.collect();
    write(session, &ends, now_ms).await?;
    let statuses = last_statuses(statuses);
    if !statuses.is_empty() {
        session.run(sqlx::query(SET_STATUSES).bind(json(&statuses)).bind(now_ms)).await?;
    }
    Ok(answers)
}

/// Items and order of the batches whose lease holds, by id.
async fn fence(
    session: &mut Session,
    holder: Holder,
    settlements: &[BatchSettlement],
) -> Result<HashMap<i64, (Vec<i64>, bool)>, StoreError> {
    let batches: Vec<_> = settlements.iter().map(|one| (one.id.0, one.tenant.0, one.token.0)).collect();
    let rows = session.rows(sqlx::query(FENCE).bind(json(&batches)).bind(holder.0)).await?;
    let read = |row: &SqliteRow| {
        let items: Vec<i64> =
            serde_json::from_str(row.try_get(1)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok((row.try_get(0)?, (items, row.try_get(2)?)))
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(store_error)
}

async fn write(session: &mut Session, ends: &Ends<'_>, now_ms: i64) -> Result<(), StoreError> {
    if !ends.kept.is_empty() {
        session.run(sqlx::query(KEEP_ROWS).bind(json(&ends.kept))).await?;
    }
    session
        .each(&KEEP_DEAD, &ends.dead, |(id, failure), binds| {
            binds.add(*id).add(now_ms).add(failure.code.as_str()).add(failure.message.as_str());
            binds.add(encode_detail(failure));
        })
        .await?;
    let mut changes = WaitingChanges::default();
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
