//! Keys of kinds: which tasks they stand for.

use std::collections::HashMap;

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::{Last, Once, OnceRule, Stands};
use keiko_core::pause::PARKED_MS;
use keiko_core::port::StoreError;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::store_error;
use super::session::{Session, json};
use super::submit::INLINE_BYTES_MAX;
use crate::admit::stored_type;
use crate::once::{Asking, Name, Onces, Replaced, names};

pub(crate) const LOAD: &str = "
    SELECT k.tenant, k.kind, k.key, k.task, k.due_ms, t.created_ms, t.state = 0 AND t.attempts = 0 AND t.crashes = 0
    FROM json_each(?1) AS wanted CROSS JOIN task_key AS k
        ON k.tenant = wanted.value ->> 0 AND k.kind = wanted.value ->> 1 AND k.key = wanted.value ->> 2
    LEFT JOIN task AS t ON t.id = k.task";

const UPSERT: &str = "INSERT INTO task_key (tenant, kind, key, task, due_ms, expires_ms)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(?1) WHERE true
    ON CONFLICT (tenant, kind, key) DO UPDATE SET task = excluded.task, due_ms = excluded.due_ms,
        expires_ms = excluded.expires_ms";

/// Gives a task that waits another input, in its row, `?5`, or beside it, `?6`, and the due time `?7`. A parked one stays
/// parked, at `?8`.
pub(crate) const REPLACE: &str = "
    UPDATE task NOT INDEXED SET input_type = ?3, input_bytes = ?4, input = ?5,
        run_at_ms = iif(run_at_ms = ?8, run_at_ms, ?7),
        due_ms = iif(priority IS NULL AND run_at_ms <> ?8, NULL, ?7),
        start_by_ms = ?7 + (budget ->> 'queued_ms'),
        end_by_ms = (SELECT min(value) FROM json_each(json_array(
            ?7 + (budget ->> 'total_ms'), ?7 + (budget ->> 'tree_ms'),
            (SELECT o.end_ms FROM tree AS o WHERE o.root = task.root AND task.parent IS NOT NULL))))
    WHERE id = ?1 AND tenant = ?2 AND state = 0;
    DELETE FROM task_input WHERE task = ?1 AND tenant = ?2;
    INSERT INTO task_input (task, tenant, bytes) SELECT ?1, ?2, ?6 WHERE ?6 IS NOT NULL";

/// Puts off up to `?2` keys that have expired by `?1` and whose task is live; they expire again after `?3`.
pub(crate) const PUT_OFF: &str = "
    UPDATE task_key SET expires_ms = ?1 + ?3 WHERE (tenant, kind, key) IN (SELECT tenant, kind, key FROM task_key
        INDEXED BY task_key_expires WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2)
        AND EXISTS (SELECT 1 FROM task AS t WHERE t.id = task_key.task)";

/// Forgets up to `?2` keys that have expired by `?1` and whose task is not live.
pub(crate) const PRUNE: &str = "
    DELETE FROM task_key WHERE (tenant, kind, key) IN (SELECT tenant, kind, key FROM task_key
        INDEXED BY task_key_expires WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2)
        AND NOT EXISTS (SELECT 1 FROM task AS t WHERE t.id = task_key.task) RETURNING 1";

/// Reads those of the keys that are stored, and how their tasks stand.
pub(crate) async fn load<'a>(
    session: &mut Session,
    asking: impl Iterator<Item = Asking<'a>>,
) -> Result<Onces, StoreError> {
    let (wanted, _) = names(asking);
    if wanted.is_empty() {
        return Ok(Onces::default());
    }
    let wanted: Vec<(i64, i64, String)> =
        wanted.into_iter().map(|(tenant, kind, key)| (tenant.0, kind.0, key)).collect();
    let rows = session.rows(sqlx::query(LOAD).bind(json(&wanted))).await?;
    let known: Result<HashMap<_, _>, _> = rows.iter().map(known).collect();
    Ok(Onces::of(known.map_err(store_error)?))
}

fn known(row: &SqliteRow) -> Result<(Name, Last<TaskId>), sqlx::Error> {
    let created_ms: Option<i64> = row.try_get(5)?;
    let waits: Option<bool> = row.try_get(6)?;
    let stands = match (created_ms, waits) {
        (None, _) => Stands::Ended,
        (Some(created_ms), Some(true)) => Stands::Waits { created_ms },
        (Some(_), _) => Stands::Begun,
    };
    let name = (TenantId(row.try_get(0)?), KindId(row.try_get(1)?), row.try_get(2)?);
    Ok((name, Last { task: TaskId(row.try_get(3)?), due_ms: row.try_get(4)?, stands }))
}

/// What the key of an ended task stands for when that is tried again, if it is to be the only one; or which other task of
/// the key is live.
pub(crate) async fn take_again(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    now_ms: i64,
) -> Result<Result<Onces, TaskId>, StoreError> {
    let query =
        "SELECT kind, unique_key FROM finished WHERE id = ?1 AND tenant = ?2 AND unique_key IS NOT NULL";
    let rows = session.rows(sqlx::query(query).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = rows.first() else { return Ok(Ok(Onces::default())) };
    let kind = KindId(row.try_get(0).map_err(store_error)?);
    let once = Once { key: row.try_get(1).map_err(store_error)?, rule: OnceRule::Unique { refuse: true } };
    let mut onces = load(session, std::iter::once((tenant, kind, Some(&once)))).await?;
    Ok(onces.take_again((tenant, kind, once.key), id, now_ms).map(|()| onces))
}

/// Writes what a call decided.
pub(crate) async fn store(session: &mut Session, onces: &Onces) -> Result<(), StoreError> {
    for (id, Replaced { tenant, input, due_ms }) in onces.replaced() {
        let bytes = &input.bytes;
        let inline = bytes.len() <= INLINE_BYTES_MAX;
        let query = sqlx::query(REPLACE).bind(id.0).bind(tenant.0).bind(stored_type(input));
        let query = query.bind((!inline).then_some(bytes.len() as i64)).bind(inline.then_some(&bytes[..]));
        session.run(query.bind((!inline).then_some(&bytes[..])).bind(*due_ms).bind(PARKED_MS)).await?;
    }
    let fresh: Vec<_> = onces.fresh();
    if fresh.is_empty() {
        return Ok(());
    }
    let row = |((tenant, kind, key), task, due_ms, expires_ms): &(&Name, TaskId, i64, i64)| {
        (tenant.0, kind.0, key.clone(), task.0, *due_ms, *expires_ms)
    };
    let rows: Vec<_> = fresh.iter().map(row).collect();
    session.run(sqlx::query(UPSERT).bind(json(&rows))).await
}

/// Forgets keys that have expired; returns how many.
pub(crate) async fn prune(session: &mut Session, now_ms: i64, count_max: u32) -> Result<u64, StoreError> {
    session.run(sqlx::query(PUT_OFF).bind(now_ms).bind(count_max).bind(KEY_AGE_MS)).await?;
    let rows = session.rows(sqlx::query(PRUNE).bind(now_ms).bind(count_max)).await?;
    Ok(rows.len() as u64)
}
