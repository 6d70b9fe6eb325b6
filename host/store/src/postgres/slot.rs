//! Slots: their rows, and the tasks that wait for them.
//!
//! Whoever takes, frees or keeps one of a slot holds the slot's lock until the commit, several in one order; what runs out
//! of a lease is not told to anybody. No row stands for a slot: the lock is the hash of its name.

use std::collections::HashSet;

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::pause::PARKED_MS;
use keiko_core::port::{LeaseRequest, StoreError};
use keiko_core::slot::{Concurrencies, Slot};
use keiko_core::task::LeasedTask;
use sqlx::postgres::PgRow;

use super::row::{get, large_count};
use super::session::Session;
use crate::slot::{Decided, OVER_MAX, Slots, Standing, every, wanting};

/// The lease that has the slot of `u` is over, and it is kept for none that is to come, at the caller's time.
macro_rules! is_over {
    ($now:literal) => {
        concat!(
            "NOT EXISTS (SELECT FROM task AS t WHERE t.id = u.task AND (t.token = u.token AND t.holder IS NOT NULL
                OR t.token = u.token - 1 AND t.holder IS NULL AND (t.run_at_ms = 2305843009213693952
                    OR t.run_at_ms <= keiko_now(",
            $now,
            "))))"
        )
    };
}
pub(crate) use is_over;

// One that waits for another slot keeps those that it has.
const _: () = assert!(PARKED_MS == 2_305_843_009_213_693_952);

const OVER: &str = concat!(
    "SELECT DISTINCT u.tenant, u.kind, u.key FROM slot_use AS u WHERE ",
    is_over!("$1"),
    " ORDER BY u.tenant, u.kind, u.key LIMIT $2"
);

const LOCK: &str = "SELECT pg_advisory_xact_lock(o.hash) FROM (
        SELECT DISTINCT hashtextextended(s.key, s.tenant * 1000003 + s.kind) AS hash
        FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS s (tenant, kind, key) ORDER BY hash) AS o";

const FREE: &str = concat!(
    "DELETE FROM slot_use AS u USING unnest($2::bigint[], $3::bigint[], $4::text[]) AS s (tenant, kind, key)
    WHERE u.tenant = s.tenant AND u.kind = s.kind AND u.key = s.key AND ",
    is_over!("$1")
);

/// How slots stand, and for which of the tasks `$4` one is kept.
pub(crate) const STAND: &str = "
    SELECT s.tenant, s.kind, s.key, count(u.task), array_agg(u.task) FILTER (WHERE u.task = ANY($4)),
        EXISTS (SELECT FROM slot_wait AS w WHERE w.tenant = s.tenant AND w.kind = s.kind AND w.key = s.key)
    FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS s (tenant, kind, key)
    LEFT JOIN slot_use AS u ON u.tenant = s.tenant AND u.kind = s.kind AND u.key = s.key
    GROUP BY s.tenant, s.kind, s.key";

/// Gives tasks that wait for slots, parked at `$5`, their due times again and keeps a slot for each: those with a priority
/// take their place with the next lease. What stands before the last of them has ended.
pub(crate) const WAKE: &str = "
    WITH given AS (
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[]) AS g (tenant, kind, key, count)
    ), next AS MATERIALIZED (
        SELECT g.tenant, g.kind, g.key, g.count, first.place_ms, first.task, first.token FROM given AS g
        CROSS JOIN LATERAL (
            SELECT w.place_ms, w.task, t.token FROM slot_wait AS w JOIN task AS t ON t.id = w.task
            WHERE w.tenant = g.tenant AND w.kind = g.kind AND w.key = g.key
                AND t.holder IS NULL AND t.run_at_ms = $5
            ORDER BY w.place_ms, w.task LIMIT g.count FOR UPDATE OF t) AS first
    ), woken AS (
        SELECT tenant, kind, key, count(*) AS count FROM next GROUP BY tenant, kind, key
    ), back AS (
        UPDATE task AS t SET run_at_ms = t.due_ms, due_ms = CASE WHEN t.priority IS NOT NULL THEN t.due_ms END
        FROM (SELECT DISTINCT task FROM next) AS n WHERE t.id = n.task
    ), kept AS (
        INSERT INTO slot_use (tenant, kind, key, task, token) SELECT tenant, kind, key, task, token + 1 FROM next
        ON CONFLICT (tenant, kind, key, task) DO UPDATE SET token = excluded.token
    ), last AS (
        SELECT DISTINCT ON (tenant, kind, key) tenant, kind, key, place_ms, task FROM next
        ORDER BY tenant, kind, key, place_ms DESC, task DESC
    ), gone AS (
        DELETE FROM slot_wait AS w USING given AS g
            LEFT JOIN woken AS n ON n.tenant = g.tenant AND n.kind = g.kind AND n.key = g.key
            LEFT JOIN last AS l ON l.tenant = g.tenant AND l.kind = g.kind AND l.key = g.key
        WHERE w.tenant = g.tenant AND w.kind = g.kind AND w.key = g.key AND (w.place_ms, w.task) <= (
            CASE WHEN n.count = g.count THEN l.place_ms ELSE 9223372036854775807 END,
            CASE WHEN n.count = g.count THEN l.task ELSE 9223372036854775807 END)
    )
    SELECT tenant, kind, key, count FROM woken";

const TAKE: &str = "INSERT INTO slot_use (tenant, kind, key, task, token)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
    ON CONFLICT (tenant, kind, key, task) DO UPDATE SET token = excluded.token";

/// Parks tasks that were leased a moment ago, at `$6`, in the order of their places.
const PARK: &str = "
    WITH parked AS (
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
            AS p (tenant, kind, key, place_ms, task)
    ), waits AS (
        INSERT INTO slot_wait (tenant, kind, key, place_ms, task) SELECT * FROM parked ON CONFLICT DO NOTHING)
    UPDATE task AS t SET holder = NULL, due_ms = coalesce(t.due_ms, t.run_at_ms), run_at_ms = $6
    FROM parked WHERE t.id = parked.task";

/// Lets the tasks that a lease took have the slots they need, and parks those for which there are none. With `freed`, wakes
/// who waits for slots whose leases are over. Returns whether there may be more to take.
pub(crate) async fn take<T>(
    session: &mut Session,
    request: &LeaseRequest,
    freed: bool,
    tasks: &mut Vec<T>,
    task: impl Fn(&mut T) -> &mut LeasedTask,
) -> Result<bool, StoreError> {
    let wanting = wanting(tasks.iter_mut().map(&task), &request.slots);
    let over = if freed { over(session, request.now_ms).await? } else { Vec::new() };
    let more = over.len() == OVER_MAX as usize;
    let slots = Names::of(every(&wanting, over).iter());
    if slots.tenants.is_empty() {
        return Ok(false);
    }
    let (tenants, kinds, keys) = slots.binds();
    session.rows(sqlx::query(LOCK).bind(tenants).bind(kinds).bind(keys)).await?;
    let (tenants, kinds, keys) = slots.binds();
    session.run(sqlx::query(FREE).bind(request.now_ms).bind(tenants).bind(kinds).bind(keys)).await?;
    let (tenants, kinds, keys) = slots.binds();
    let ids: Vec<i64> = wanting.iter().map(|one| one.task.0).collect();
    let query = sqlx::query(STAND).bind(tenants).bind(kinds).bind(keys).bind(ids);
    let mut slots = Slots(session.rows(query).await?.iter().map(standing).collect::<Result<_, _>>()?);
    let woken = wake(session, &mut slots, &request.slots).await?;
    let Decided { taken, parked } = slots.decide(wanting, &request.slots);
    if !taken.is_empty() {
        let (tenants, kinds, keys) = Names::of(taken.iter().map(|(slot, ..)| slot)).binds();
        let (ids, tokens): (Vec<i64>, Vec<i64>) = taken.iter().map(|(_, id, token)| (id.0, token.0)).unzip();
        session.run(sqlx::query(TAKE).bind(tenants).bind(kinds).bind(keys).bind(ids).bind(tokens)).await?;
    }
    if !parked.is_empty() {
        let (tenants, kinds, keys) = Names::of(parked.iter().map(|(slot, ..)| slot)).binds();
        let (places, ids): (Vec<i64>, Vec<i64>) = parked.iter().map(|(_, at, id)| (*at, id.0)).unzip();
        let query = sqlx::query(PARK).bind(tenants).bind(kinds).bind(keys).bind(places).bind(ids);
        session.run(query.bind(PARKED_MS)).await?;
        let parked: HashSet<TaskId> = parked.iter().map(|(.., id)| *id).collect();
        tasks.retain_mut(|one| !parked.contains(&task(one).id));
    }
    Ok(more || woken || !parked.is_empty())
}

/// Slots of which a lease is over.
async fn over(session: &mut Session, now_ms: i64) -> Result<Vec<Slot>, StoreError> {
    let query = sqlx::query(OVER).bind(now_ms).bind(i64::from(OVER_MAX));
    session.rows(query).await?.iter().map(slot).collect()
}

/// Wakes who waits for what is free; whether there was anybody.
async fn wake(
    session: &mut Session,
    slots: &mut Slots,
    declared: &Concurrencies,
) -> Result<bool, StoreError> {
    let free = slots.to_wake(declared);
    if free.is_empty() {
        return Ok(false);
    }
    let (tenants, kinds, keys) = Names::of(free.iter().map(|(slot, _)| slot)).binds();
    let counts: Vec<i64> = free.iter().map(|(_, count)| *count as i64).collect();
    let query = sqlx::query(WAKE).bind(tenants).bind(kinds).bind(keys).bind(counts).bind(PARKED_MS);
    let woken = session.rows(query).await?;
    for row in &woken {
        slots.woke(&slot(row)?, large_count(row, 3)?);
    }
    Ok(!woken.is_empty())
}

/// Names of slots as columns.
struct Names {
    tenants: Vec<i64>,
    kinds: Vec<i64>,
    keys: Vec<String>,
}

impl Names {
    fn of<'a>(slots: impl Iterator<Item = &'a Slot>) -> Names {
        let mut names = Names { tenants: Vec::new(), kinds: Vec::new(), keys: Vec::new() };
        for Slot { tenant, kind, key } in slots {
            names.tenants.push(tenant.0);
            names.kinds.push(kind.0);
            names.keys.push(key.clone());
        }
        names
    }

    fn binds(&self) -> (Vec<i64>, Vec<i64>, Vec<String>) {
        (self.tenants.clone(), self.kinds.clone(), self.keys.clone())
    }
}

fn slot(row: &PgRow) -> Result<Slot, StoreError> {
    Ok(Slot { tenant: TenantId(get(row, 0)?), kind: KindId(get(row, 1)?), key: get(row, 2)? })
}

fn standing(row: &PgRow) -> Result<(Slot, Standing), StoreError> {
    let kept = get::<Option<Vec<i64>>>(row, 4)?.unwrap_or_default();
    let kept = kept.into_iter().map(TaskId).collect();
    Ok((slot(row)?, Standing { used: large_count(row, 3)?, waits: get(row, 5)?, kept }))
}
