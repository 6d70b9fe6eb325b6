//! Slots: their rows, and the tasks that wait for them.

use std::collections::HashSet;

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::pause::PARKED_MS;
use keiko_core::port::{LeaseRequest, StoreError};
use keiko_core::slot::{Concurrencies, Slot};
use keiko_core::task::LeasedTask;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::store_error;
use super::session::{Session, json};
use crate::slot::{Decided, OVER_MAX, Slots, Standing, every, wanting};

/// The lease that has the slot of `u` is over, and it is kept for none that is to come, at `?1`.
macro_rules! is_over {
    () => {
        "NOT EXISTS (SELECT 1 FROM task AS t WHERE t.id = u.task AND (t.token = u.token AND t.state = 1
            OR t.token = u.token - 1 AND t.state = 0
                AND (t.run_at_ms = 2305843009213693952 OR t.run_at_ms <= ?1)))"
    };
}

pub(crate) const OVER: &str = concat!(
    "SELECT DISTINCT u.tenant, u.kind, u.key FROM slot_use AS u WHERE ",
    is_over!(),
    " ORDER BY u.tenant, u.kind, u.key LIMIT ?2"
);

// One that waits for another slot keeps those that it has.
const _: () = assert!(PARKED_MS == 2_305_843_009_213_693_952);

/// Forgets whose leases are over.
pub(crate) const FREE: &str = concat!(
    "DELETE FROM slot_use WHERE (tenant, kind, key, task) IN (
        SELECT u.tenant, u.kind, u.key, u.task FROM json_each(?2) AS s CROSS JOIN slot_use AS u
            ON u.tenant = s.value ->> 0 AND u.kind = s.value ->> 1 AND u.key = s.value ->> 2
        WHERE ",
    is_over!(),
    ")"
);

/// How slots stand, and for which of the tasks `?2` one is kept.
pub(crate) const STAND: &str = "
    SELECT s.value ->> 0, s.value ->> 1, s.value ->> 2, (SELECT count(*) FROM slot_use AS u
            WHERE u.tenant = s.value ->> 0 AND u.kind = s.value ->> 1 AND u.key = s.value ->> 2),
        (SELECT json_group_array(u.task) FROM json_each(?2) AS w CROSS JOIN slot_use AS u
            ON u.tenant = s.value ->> 0 AND u.kind = s.value ->> 1 AND u.key = s.value ->> 2 AND u.task = w.value),
        EXISTS (SELECT 1 FROM slot_wait AS w
            WHERE w.tenant = s.value ->> 0 AND w.kind = s.value ->> 1 AND w.key = s.value ->> 2)
    FROM json_each(?1) AS s";

/// Up to `?5` tasks that wait for a slot, parked at `?4`, in their order.
pub(crate) const FIRST: &str = "
    SELECT w.place_ms, w.task, t.token FROM slot_wait AS w CROSS JOIN task AS t ON t.id = w.task
    WHERE w.tenant = ?1 AND w.kind = ?2 AND w.key = ?3 AND t.state = 0 AND t.run_at_ms = ?4
    ORDER BY w.place_ms, w.task LIMIT ?5";

/// Gives those tasks, with the tokens of the leases to come, their due times again and keeps a slot for each: those with a
/// priority take their place with the next lease. What stands before the last of them, `?5` and `?6`, has ended.
const WAKE: &str = "
    UPDATE task SET run_at_ms = due_ms, due_ms = iif(priority IS NULL, NULL, due_ms)
        WHERE id IN (SELECT value ->> 0 FROM json_each(?4));
    INSERT OR REPLACE INTO slot_use (tenant, kind, key, task, token)
        SELECT ?1, ?2, ?3, value ->> 0, value ->> 1 FROM json_each(?4);
    DELETE FROM slot_wait WHERE tenant = ?1 AND kind = ?2 AND key = ?3 AND (place_ms, task) <= (?5, ?6)";

const TAKE: &str = "INSERT OR REPLACE INTO slot_use (tenant, kind, key, task, token)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?1)";

/// Parks tasks that were leased a moment ago, at `?2`, in the order of their places.
const PARK: &str = "
    INSERT OR IGNORE INTO slot_wait (tenant, kind, key, place_ms, task)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?1);
    UPDATE task NOT INDEXED SET state = 0, holder = NULL, due_ms = coalesce(due_ms, run_at_ms), run_at_ms = ?2
        WHERE id IN (SELECT value ->> 4 FROM json_each(?1))";

/// Lets the tasks that a lease took have the slots they need, and parks those for which there are none. With `used`, wakes
/// who waits for slots whose leases are over. Returns whether there may be more to take.
pub(crate) async fn take<T>(
    session: &mut Session,
    request: &LeaseRequest,
    used: bool,
    tasks: &mut Vec<T>,
    task: impl Fn(&mut T) -> &mut LeasedTask,
) -> Result<bool, StoreError> {
    let wanting = wanting(tasks.iter_mut().map(&task), &request.slots);
    let over = if used { over(session, request.now_ms).await? } else { Vec::new() };
    let more = over.len() == OVER_MAX as usize;
    let slots = every(&wanting, over);
    if slots.is_empty() {
        return Ok(false);
    }
    let names: Vec<_> = slots.iter().map(|slot| (slot.tenant.0, slot.kind.0, slot.key.as_str())).collect();
    let ids: Vec<i64> = wanting.iter().map(|one| one.task.0).collect();
    session.run(sqlx::query(FREE).bind(request.now_ms).bind(json(&names))).await?;
    let rows = session.rows(sqlx::query(STAND).bind(json(&names)).bind(json(&ids))).await?;
    let standing = rows.iter().map(standing).collect::<Result<_, _>>().map_err(store_error)?;
    let mut slots = Slots(standing);
    let woken = wake(session, &mut slots, &request.slots).await?;
    let Decided { taken, parked } = slots.decide(wanting, &request.slots);
    let row =
        |slot: &Slot, first: i64, second: i64| (slot.tenant.0, slot.kind.0, slot.key.clone(), first, second);
    if !taken.is_empty() {
        let rows: Vec<_> = taken.iter().map(|(slot, id, token)| row(slot, id.0, token.0)).collect();
        session.run(sqlx::query(TAKE).bind(json(&rows))).await?;
    }
    if !parked.is_empty() {
        let rows: Vec<_> = parked.iter().map(|(slot, place_ms, id)| row(slot, *place_ms, id.0)).collect();
        session.run(sqlx::query(PARK).bind(json(&rows)).bind(PARKED_MS)).await?;
        let parked: HashSet<TaskId> = parked.iter().map(|(.., id)| *id).collect();
        tasks.retain_mut(|one| !parked.contains(&task(one).id));
    }
    Ok(more || woken || !parked.is_empty())
}

/// Slots of which a lease is over.
async fn over(session: &mut Session, now_ms: i64) -> Result<Vec<Slot>, StoreError> {
    let rows = session.rows(sqlx::query(OVER).bind(now_ms).bind(OVER_MAX)).await?;
    rows.iter().map(slot).collect::<Result<_, _>>().map_err(store_error)
}

/// Wakes who waits for what is free; whether there was anybody.
async fn wake(
    session: &mut Session,
    slots: &mut Slots,
    declared: &Concurrencies,
) -> Result<bool, StoreError> {
    let mut any = false;
    for (slot, count) in slots.to_wake(declared) {
        let (tenant, kind) = (slot.tenant.0, slot.kind.0);
        let query = sqlx::query(FIRST).bind(tenant).bind(kind).bind(&slot.key);
        let rows = session.rows(query.bind(PARKED_MS).bind(count as i64)).await?;
        let read = |row: &SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get::<i64, _>(2)?));
        let first: Vec<(i64, i64, i64)> =
            rows.iter().map(read).collect::<Result<_, _>>().map_err(store_error)?;
        let whole = (first.len() as u64) < count;
        let last = first.last().filter(|_| !whole).map_or((i64::MAX, i64::MAX), |(at, id, _)| (*at, *id));
        let kept: Vec<(i64, i64)> = first.iter().map(|(_, id, token)| (*id, token + 1)).collect();
        let query = sqlx::query(WAKE).bind(tenant).bind(kind).bind(&slot.key).bind(json(&kept));
        session.run(query.bind(last.0).bind(last.1)).await?;
        slots.woke(&slot, first.len() as u64);
        any |= !first.is_empty();
    }
    Ok(any)
}

fn slot(row: &SqliteRow) -> Result<Slot, sqlx::Error> {
    Ok(Slot { tenant: TenantId(row.try_get(0)?), kind: KindId(row.try_get(1)?), key: row.try_get(2)? })
}

fn standing(row: &SqliteRow) -> Result<(Slot, Standing), sqlx::Error> {
    let kept: Vec<i64> = serde_json::from_str(row.try_get(4)?).unwrap_or_default();
    let (used, waits): (i64, bool) = (row.try_get(3)?, row.try_get(5)?);
    let kept = kept.into_iter().map(TaskId).collect();
    Ok((slot(row)?, Standing { used: used.max(0) as u64, waits, kept }))
}
