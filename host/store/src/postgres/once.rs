//! Keys of kinds: which tasks they stand for. The row of the tenant's counts is locked before, so that two submits of a
//! tenant, from whichever host, see each other's keys.

use std::collections::{BTreeSet, HashMap, HashSet};

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::{Last, Once, OnceRule, Stands};
use keiko_core::pause::PARKED_MS;
use keiko_core::port::StoreError;
use sqlx::postgres::PgRow;

use super::row::{get, stored_text};
use super::session::Session;
use crate::admit::stored_type;
use crate::once::{Asking, Name, Onces, Replaced, names};

pub(crate) const LOAD: &str = "
    SELECT k.tenant, k.kind, k.key, k.task, k.due_ms, t.created_ms,
        t.holder IS NULL AND t.attempts = 0 AND t.crashes = 0
    FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS wanted (tenant, kind, key)
    JOIN task_key AS k ON k.tenant = wanted.tenant AND k.kind = wanted.kind AND k.key = wanted.key
    LEFT JOIN task AS t ON t.id = k.task";

/// Those of the tasks that wait for their first attempt and that nobody else changes until the commit. Whoever changes one
/// now waits for the tenant's counts, which are ours: it is not waited for.
const WAITING: &str =
    "SELECT id FROM task WHERE id = ANY($1) AND holder IS NULL AND attempts = 0 AND crashes = 0
    ORDER BY id FOR UPDATE SKIP LOCKED";

const UPSERT: &str = "INSERT INTO task_key (tenant, kind, key, task, due_ms, expires_ms)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    ON CONFLICT (tenant, kind, key) DO UPDATE SET task = excluded.task, due_ms = excluded.due_ms,
        expires_ms = excluded.expires_ms";

/// Gives a task that waits another input and the due time `$5`. A parked one stays parked, at `$6`.
pub(crate) const REPLACE: &str = "
    UPDATE task SET input_type = $3, input = $4, run_at_ms = CASE WHEN run_at_ms = $6 THEN run_at_ms ELSE $5 END,
        due_ms = CASE WHEN priority IS NOT NULL OR run_at_ms = $6 THEN $5 END,
        start_by_ms = $5 + (budget::json ->> 'queued_ms')::bigint,
        end_by_ms = least($5 + (budget::json ->> 'total_ms')::bigint, $5 + (budget::json ->> 'tree_ms')::bigint,
            (SELECT o.end_ms FROM tree AS o WHERE o.root = task.root AND task.parent IS NOT NULL))
    WHERE id = $1 AND tenant = $2";

/// Puts off up to `$2` keys that have expired and whose task is live.
pub(crate) const PUT_OFF: &str = "UPDATE task_key SET expires_ms = keiko_now($1) + $3
    WHERE (tenant, kind, key) IN (SELECT tenant, kind, key FROM task_key WHERE expires_ms <= keiko_now($1)
        ORDER BY expires_ms LIMIT $2 FOR UPDATE SKIP LOCKED)
    AND EXISTS (SELECT FROM task AS t WHERE t.id = task_key.task)";

/// Forgets up to `$2` keys that have expired and whose task is not live.
pub(crate) const PRUNE: &str = "DELETE FROM task_key
    WHERE (tenant, kind, key) IN (SELECT tenant, kind, key FROM task_key WHERE expires_ms <= keiko_now($1)
        ORDER BY expires_ms LIMIT $2 FOR UPDATE SKIP LOCKED)
    AND NOT EXISTS (SELECT FROM task AS t WHERE t.id = task_key.task)";

/// Reads those of the keys that are stored, and how their tasks stand, with times on the caller's clock.
pub(crate) async fn load<'a>(
    session: &mut Session,
    asking: impl Iterator<Item = Asking<'a>>,
    shift_ms: i64,
) -> Result<Onces, StoreError> {
    let (wanted, debounced) = names(asking);
    if wanted.is_empty() {
        return Ok(Onces::default());
    }
    let tenants: Vec<i64> = wanted.iter().map(|(tenant, ..)| tenant.0).collect();
    let kinds: Vec<i64> = wanted.iter().map(|(_, kind, _)| kind.0).collect();
    let keys: Vec<&str> = wanted.iter().map(|(_, _, key)| key.as_str()).collect();
    let rows = session.rows(sqlx::query(LOAD).bind(tenants).bind(kinds).bind(keys)).await?;
    let mut known = HashMap::new();
    for row in &rows {
        let (name, last) = read(row, shift_ms)?;
        known.insert(name, last);
    }
    keep_waiting(session, &mut known, &debounced).await?;
    Ok(Onces::of(known))
}

fn read(row: &PgRow, shift_ms: i64) -> Result<(Name, Last<TaskId>), StoreError> {
    let stands = match (get::<Option<i64>>(row, 5)?, get::<Option<bool>>(row, 6)?) {
        (None, _) => Stands::Ended,
        (Some(created_ms), Some(true)) => Stands::Waits { created_ms },
        (Some(_), _) => Stands::Begun,
    };
    let name = (TenantId(get(row, 0)?), KindId(get(row, 1)?), get(row, 2)?);
    let due_ms = get::<i64>(row, 4)?.saturating_sub(shift_ms);
    Ok((name, Last { task: TaskId(get(row, 3)?), due_ms, stands }))
}

/// Keeps tasks waiting that may be given another input, and finds those that begin just now.
async fn keep_waiting(
    session: &mut Session,
    known: &mut HashMap<Name, Last<TaskId>>,
    debounced: &BTreeSet<Name>,
) -> Result<(), StoreError> {
    let waits = |last: &Last<TaskId>| matches!(last.stands, Stands::Waits { .. });
    let of = |name: &Name| known.get(name).filter(|last| waits(last)).map(|last| last.task.0);
    let ids: Vec<i64> = debounced.iter().filter_map(of).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut kept = HashSet::new();
    for row in session.rows(sqlx::query(WAITING).bind(ids)).await? {
        kept.insert(TaskId(get(&row, 0)?));
    }
    for name in debounced {
        let Some(last) = known.get_mut(name) else { continue };
        if waits(last) && !kept.contains(&last.task) {
            last.stands = Stands::Begun;
        }
    }
    Ok(())
}

/// What the key of an ended task stands for when that is tried again, if it is to be the only one; or which other task of
/// the key is live.
pub(crate) async fn take_again(
    session: &mut Session,
    tenant: TenantId,
    id: TaskId,
    now_ms: i64,
    shift_ms: i64,
) -> Result<Result<Onces, TaskId>, StoreError> {
    let query =
        "SELECT kind, unique_key FROM finished WHERE id = $1 AND tenant = $2 AND unique_key IS NOT NULL";
    let row = session.row(sqlx::query(query).bind(id.0).bind(tenant.0)).await?;
    let Some(row) = row else { return Ok(Ok(Onces::default())) };
    let kind = KindId(get(&row, 0)?);
    let once = Once { key: get(&row, 1)?, rule: OnceRule::Unique { refuse: true } };
    let mut onces = load(session, std::iter::once((tenant, kind, Some(&once))), shift_ms).await?;
    Ok(onces.take_again((tenant, kind, once.key), id, now_ms).map(|()| onces))
}

/// Writes what a call decided.
pub(crate) async fn store(session: &mut Session, onces: &Onces, shift_ms: i64) -> Result<(), StoreError> {
    for (id, Replaced { tenant, input, due_ms }) in onces.replaced() {
        let query = sqlx::query(REPLACE).bind(id.0).bind(tenant.0).bind(stored_type(input).map(stored_text));
        let query = query.bind(&input.bytes[..]).bind(due_ms.saturating_add(shift_ms)).bind(PARKED_MS);
        session.run(query).await?;
    }
    let fresh = onces.fresh();
    if fresh.is_empty() {
        return Ok(());
    }
    let tenants: Vec<i64> = fresh.iter().map(|((tenant, ..), ..)| tenant.0).collect();
    let kinds: Vec<i64> = fresh.iter().map(|((_, kind, _), ..)| kind.0).collect();
    let keys: Vec<&str> = fresh.iter().map(|((_, _, key), ..)| key.as_str()).collect();
    let tasks: Vec<i64> = fresh.iter().map(|(_, task, ..)| task.0).collect();
    let due: Vec<i64> = fresh.iter().map(|(_, _, due_ms, _)| due_ms.saturating_add(shift_ms)).collect();
    let expires: Vec<i64> =
        fresh.iter().map(|(.., expires_ms)| expires_ms.saturating_add(shift_ms)).collect();
    let query = sqlx::query(UPSERT).bind(tenants).bind(kinds).bind(keys).bind(tasks).bind(due).bind(expires);
    session.run(query).await.map(drop)
}

/// Forgets keys that have expired; returns how many.
pub(crate) async fn prune(session: &mut Session, now_ms: i64, count_max: u32) -> Result<u64, StoreError> {
    let query = sqlx::query(PUT_OFF).bind(now_ms).bind(i64::from(count_max)).bind(KEY_AGE_MS);
    session.run(query).await?;
    session.run(sqlx::query(PRUNE).bind(now_ms).bind(i64::from(count_max))).await
}
