//! Leasing: which tenants have due tasks, how the room is shared, and one update per distinct share.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use keiko_core::id::{AgentId, GroupId, KindId, TaskId, TenantId, Token, UserId};
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::priority::AGEING_MS;
use keiko_core::share::{Claim, shares};
use keiko_core::task::{LeasedTask, Lineage, Payload};
use keiko_core::time_out::Ends;
use serde::Deserialize;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::end::fail_undecodable;
use super::error::store_error;
use super::pause::park;
use super::session::{Session, json};
use super::slot;
use super::tree::trees;
use crate::admit::read_type;
use crate::format::{decode_budget, read_priority};
use crate::tree::roots;
use crate::turns::take_turns;

/// Inputs that one lease loads from beside their rows, in bytes; the first always fits. What does not fit is left
/// for the next lease.
const LEASE_BYTES_MAX: u64 = 64 << 20;
/// Tasks with a priority that one lease gives their place.
const RAISE_MAX: i64 = 1_000;

/// Tenants with due tasks that are not paused, from the one behind `?1` on and round to it, at most `?3`.
/// A walk from tenant to tenant: two looks into the index for each, however many tasks it has.
/// SQLite runs both walks one after the other and no further than the limit; only fairness depends on it.
pub(crate) const READY_TENANTS: &str = "
    WITH RECURSIVE behind (tenant, run_at_ms) AS (
        SELECT * FROM (SELECT tenant, run_at_ms FROM task INDEXED BY task_ready
            WHERE state = 0 AND tenant > ?1 ORDER BY tenant, run_at_ms LIMIT 1)
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM behind JOIN task AS next ON next.id =
            (SELECT id FROM task INDEXED BY task_ready
                WHERE state = 0 AND tenant > behind.tenant ORDER BY tenant, run_at_ms LIMIT 1)
    ), before (tenant, run_at_ms) AS (
        SELECT * FROM (SELECT tenant, run_at_ms FROM task INDEXED BY task_ready
            WHERE state = 0 AND tenant <= ?1 ORDER BY tenant, run_at_ms LIMIT 1)
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM before JOIN task AS next ON next.id =
            (SELECT id FROM task INDEXED BY task_ready
                WHERE state = 0 AND tenant > before.tenant AND tenant <= ?1 ORDER BY tenant, run_at_ms LIMIT 1)
    )
    SELECT tenant FROM (
        SELECT tenant, run_at_ms FROM behind WHERE run_at_ms <= ?2
        UNION ALL SELECT tenant, run_at_ms FROM before WHERE run_at_ms <= ?2) AS walk
    WHERE NOT EXISTS (SELECT 1 FROM pause WHERE pause.tenant = walk.tenant AND pause.kind = 0) LIMIT ?3";

/// Leases up to `?3` due tasks of each tenant in `?1` for the holder `?4`. Each value of a row is allocated on its way here, so
/// what most tasks do not have comes as one, [`More`].
pub(crate) const LEASE_TASKS: &str = "
    UPDATE task SET state = 1, token = token + 1, holder = ?4
    WHERE id IN (
        SELECT due.id FROM json_each(?1) AS tenants CROSS JOIN task AS due ON due.id IN (
            SELECT id FROM task INDEXED BY task_ready
            WHERE tenant = tenants.value AND state = 0 AND run_at_ms <= ?2
            ORDER BY run_at_ms, id LIMIT ?3))
    RETURNING id, tenant, kind, token, created_ms, run_at_ms, input,
        CASE WHEN attempts <> 0 OR deadlines <> 0 OR crashes <> 0 OR depth <> 0 OR root <> id
                OR coalesce(parent, agent, app_user, task_group, start_by_ms, end_by_ms, input_bytes, priority) IS NOT NULL
                OR coalesce(budget, trace, input_type, slot_key) IS NOT NULL
                OR EXISTS (SELECT 1 FROM pause WHERE pause.tenant = task.tenant AND pause.kind = task.kind AND NOT ending)
            THEN json_array(attempts, deadlines, crashes, root, parent, depth, budget, trace, input_type, input_bytes, agent,
                app_user, start_by_ms, end_by_ms, task_group, slot_key, priority,
                EXISTS (SELECT 1 FROM pause WHERE pause.tenant = task.tenant AND pause.kind = task.kind AND NOT ending))
            END";

/// Due tasks of each tenant in `?1`, in that order, counted up to `?3`.
pub(crate) const COUNT_DUE: &str = "
    SELECT (SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_ready
        WHERE tenant = tenants.value AND state = 0 AND run_at_ms <= ?2 LIMIT ?3))
    FROM json_each(?1) AS tenants ORDER BY tenants.key";

/// When the first task that is not due at `?1` comes due: one look per tenant.
pub(crate) const NEXT_RUN_AT: &str = "
    WITH RECURSIVE waiting (tenant) AS (
        SELECT * FROM (SELECT tenant FROM task INDEXED BY task_ready WHERE state = 0 ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT next.tenant FROM waiting JOIN task AS next ON next.id =
            (SELECT id FROM task INDEXED BY task_ready
                WHERE state = 0 AND tenant > waiting.tenant ORDER BY tenant LIMIT 1)
    )
    SELECT min((SELECT run_at_ms FROM task INDEXED BY task_ready
        WHERE tenant = waiting.tenant AND state = 0 AND run_at_ms > ?1 ORDER BY run_at_ms LIMIT 1)) FROM waiting
    WHERE NOT EXISTS (SELECT 1 FROM pause WHERE pause.tenant = waiting.tenant AND pause.kind = 0)";

macro_rules! raise {
    () => {
        "UPDATE task SET run_at_ms = due_ms - priority * ?4 WHERE id IN (SELECT id FROM task INDEXED BY task_raise
            WHERE run_at_ms = due_ms AND due_ms <= ?3 ORDER BY due_ms LIMIT ?5)"
    };
}

/// Prolongs the holder `?1` to `?2`, says whether anybody has a slot, and moves up to `?5` tasks with a priority that have come due by `?3` to their place,
/// each level being worth `?4`. Tasks without a priority are not in the index: then this is one look at nothing.
const PROLONG_AND_RAISE: &str = concat!(
    "UPDATE holder SET until_ms = max(until_ms, ?2) WHERE id = ?1
        RETURNING EXISTS (SELECT 1 FROM slot_use); ",
    raise!()
);

/// The second half, whose plan is checked.
#[cfg(test)]
pub(crate) const RAISE: &str = raise!();

/// Leases due tasks. A holder that is not registered gets nothing: its tasks could never be rescued.
pub(crate) async fn lease(session: &mut Session, request: &LeaseRequest) -> Result<Lease, StoreError> {
    let until_ms = request.now_ms.saturating_add(request.lease_ms);
    let query = sqlx::query(PROLONG_AND_RAISE).bind(request.holder.0).bind(until_ms);
    let query = query.bind(request.now_ms).bind(AGEING_MS).bind(RAISE_MAX);
    let alive = session.rows(query).await?;
    let Some(alive) = alive.first() else { return Ok(Lease { lost: true, ..Lease::default() }) };
    let slots: bool = alive.try_get(0).map_err(store_error)?;
    let claims = claims(session, request).await?;
    let first_shares = shares(&claims, request.room, request.after);
    let mut rows = Vec::new();
    take(session, request, claims, &mut rows).await?;
    let Decoded { mut taken, paused, mut undecodable } = Decoded::of(&rows);
    park(session, &paused).await?;
    take_turns(&mut taken, &first_shares, |taken| (taken.task.tenant, taken.task.place_ms, taken.task.id));
    let moved = slot::take(session, request, slots, &mut taken, |taken| &mut taken.task).await?;
    let fitted = load_inputs(session, &mut taken, &mut undecodable).await?;
    fail_undecodable(session, &undecodable, request.now_ms).await?;
    let trees = trees(session, roots(taken.iter().map(|taken| &taken.task))).await?;
    taken.iter_mut().for_each(|taken| taken.task.tree = trees.get(&taken.task.lineage.root).copied());
    let next_run_at_ms = match (fitted && paused.is_empty() && !moved, taken.len() < request.room) {
        // What did not fit is due, for the next lease, and so may be what stands behind paused ones.
        (false, _) => Some(request.now_ms),
        (true, true) => next_run_at(session, request.now_ms).await?,
        (true, false) => None,
    };
    let after = first_shares.last().map(|&(tenant, _)| tenant).or(request.after);
    let tasks = taken.into_iter().map(|taken| taken.task).collect();
    Ok(Lease { tasks, after, next_run_at_ms, lost: false })
}

/// Leases in even shares; what tenants with less than their share leave goes to those who have more, which are
/// counted only then.
async fn take(
    session: &mut Session,
    request: &LeaseRequest,
    mut claims: Vec<Claim>,
    rows: &mut Vec<SqliteRow>,
) -> Result<(), StoreError> {
    take_shares(session, request, &mut claims, rows).await?;
    let room = request.room - rows.len();
    if room == 0 || claims.is_empty() {
        return Ok(());
    }
    count_due(session, &mut claims, room, request.now_ms).await?;
    take_shares(session, request, &mut claims, rows).await
}

/// Leases a share for each claim, and leaves the claims that got all of it and may have more.
async fn take_shares(
    session: &mut Session,
    request: &LeaseRequest,
    claims: &mut Vec<Claim>,
    rows: &mut Vec<SqliteRow>,
) -> Result<(), StoreError> {
    let shares = shares(claims, request.room - rows.len(), request.after);
    let mut missing: HashMap<TenantId, usize> = shares.into_iter().collect();
    for claim in claims.iter_mut() {
        claim.cap -= missing.get(&claim.tenant).copied().unwrap_or_default();
    }
    for (share, tenants) in by_share(&missing) {
        let query = sqlx::query(LEASE_TASKS).bind(json(&tenants)).bind(request.now_ms).bind(share);
        for row in session.rows(query.bind(request.holder.0)).await? {
            let tenant = TenantId(row.try_get(1).map_err(store_error)?);
            missing.entry(tenant).and_modify(|missing| *missing = missing.saturating_sub(1));
            rows.push(row);
        }
    }
    claims.retain(|claim| claim.cap > 0 && missing.get(&claim.tenant).is_none_or(|missing| *missing == 0));
    Ok(())
}

/// Caps the claims at the due tasks there are, counting no further than the room.
async fn count_due(
    session: &mut Session,
    claims: &mut [Claim],
    room: usize,
    now_ms: i64,
) -> Result<(), StoreError> {
    let tenants: Vec<i64> = claims.iter().map(|claim| claim.tenant.0).collect();
    let query = sqlx::query(COUNT_DUE).bind(json(&tenants)).bind(now_ms).bind(room as i64);
    let rows = session.rows(query).await?;
    for (claim, row) in claims.iter_mut().zip(&rows) {
        let due: i64 = row.try_get(0).map_err(store_error)?;
        claim.cap = claim.cap.min(due.max(0) as usize);
    }
    Ok(())
}

/// Gives a lease back whose caller went away before it was told.
pub(crate) async fn give_back(session: &mut Session, leases: &[(TaskId, Token)]) -> Result<(), StoreError> {
    let pairs: Vec<(i64, i64)> = leases.iter().map(|(id, token)| (id.0, token.0)).collect();
    let query = "UPDATE task NOT INDEXED SET state = 0, holder = NULL FROM json_each(?1) AS l
        WHERE task.id = l.value ->> 0 AND token = l.value ->> 1 AND state = 1";
    session.run(sqlx::query(query).bind(json(&pairs))).await
}

/// Tenants with due tasks in their order, as many as can matter.
async fn claims(session: &mut Session, request: &LeaseRequest) -> Result<Vec<Claim>, StoreError> {
    if request.room == 0 {
        return Ok(Vec::new());
    }
    // One task each for the first `room` tenants fills the room; tenants that take nothing do not count.
    let zero_caps = request.caps.values().filter(|&&cap| cap == 0).count();
    let limit = if request.cap_default == 0 { i64::MAX } else { (request.room + zero_caps) as i64 };
    let after = request.after.map_or(i64::MIN, |tenant| tenant.0);
    let query = sqlx::query(READY_TENANTS).bind(after).bind(request.now_ms).bind(limit);
    let rows = session.rows(query).await?;
    let mut tenants: Vec<i64> =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(store_error)?;
    tenants.sort_unstable();
    let claim = |tenant: i64| {
        let tenant = TenantId(tenant);
        Claim { tenant, cap: request.caps.get(&tenant).copied().unwrap_or(request.cap_default) }
    };
    Ok(tenants.into_iter().map(claim).collect())
}

/// Tenants that get equally much share a statement; sharing evenly makes few distinct shares.
fn by_share(shares: &HashMap<TenantId, usize>) -> BTreeMap<i64, Vec<i64>> {
    let mut tenants: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (&tenant, &share) in shares {
        tenants.entry(share as i64).or_default().push(tenant.0);
    }
    tenants
}

struct Taken {
    task: LeasedTask,
    /// Size of the input that is still to be loaded.
    input_bytes: Option<u64>,
}

/// What a lease took.
#[derive(Default)]
struct Decoded {
    taken: Vec<Taken>,
    /// Tasks of paused kinds.
    paused: Vec<TaskId>,
    /// Those that cannot be read: one bad row must not stop the queue.
    undecodable: Vec<TaskId>,
}

impl Decoded {
    fn of(rows: &[SqliteRow]) -> Decoded {
        let mut decoded = Decoded::default();
        for row in rows {
            let Ok(id) = row.try_get(0).map(TaskId) else { continue };
            match More::of(row) {
                Some(more) if more.is_paused != 0 => decoded.paused.push(id),
                more => match more.and_then(|more| decode_row(row, id, more)) {
                    Some(task) => decoded.taken.push(task),
                    None => decoded.undecodable.push(id),
                },
            }
        }
        decoded
    }
}

/// What most tasks do not have: an array of [`LEASE_TASKS`], in this order. NULL when a task has nothing of it.
#[derive(Default, Deserialize)]
struct More {
    attempts: u32,
    deadlines: u32,
    crashes: u32,
    root: Option<i64>,
    parent: Option<i64>,
    depth: u32,
    budget: Option<String>,
    trace: Option<String>,
    input_type: Option<String>,
    input_bytes: Option<u64>,
    agent: Option<i64>,
    user: Option<i64>,
    start_by_ms: Option<i64>,
    end_by_ms: Option<i64>,
    group: Option<i64>,
    slot_key: Option<String>,
    priority: Option<i64>,
    is_paused: u8,
}

impl More {
    fn of(row: &SqliteRow) -> Option<More> {
        let more: Option<&str> = row.try_get(7).ok()?;
        more.map_or_else(|| Some(More::default()), |more| serde_json::from_str(more).ok())
    }
}

fn decode_row(row: &SqliteRow, id: TaskId, more: More) -> Option<Taken> {
    let input: Option<&[u8]> = row.try_get(6).ok()?;
    if input.is_none() == more.input_bytes.is_none() {
        return None;
    }
    let task = LeasedTask {
        id,
        tenant: TenantId(row.try_get(1).ok()?),
        kind: KindId(row.try_get(2).ok()?),
        token: Token(row.try_get(3).ok()?),
        attempts: more.attempts,
        deadlines: more.deadlines,
        crashes: more.crashes,
        created_ms: row.try_get(4).ok()?,
        place_ms: row.try_get(5).ok()?,
        priority: read_priority(more.priority).ok()?,
        input: Payload {
            content_type: read_type(more.input_type),
            bytes: Bytes::copy_from_slice(input.unwrap_or_default()),
        },
        budget: decode_budget(more.budget.as_deref()).ok()?,
        lineage: Lineage {
            root: more.root.map_or(id, TaskId),
            parent: more.parent.map(TaskId),
            depth: more.depth,
        },
        agent: more.agent.map(AgentId),
        user: more.user.map(UserId),
        trace: more.trace,
        ends: Ends { start_by_ms: more.start_by_ms, end_by_ms: more.end_by_ms },
        group: more.group.map(GroupId),
        tree: None,
        slot_key: more.slot_key,
        has_slot: false,
        segment: None,
    };
    Some(Taken { task, input_bytes: more.input_bytes })
}

/// Loads the inputs that are kept beside the rows, as many as fit, and gives the tasks of the others back.
/// Returns whether all fitted.
async fn load_inputs(
    session: &mut Session,
    taken: &mut Vec<Taken>,
    undecodable: &mut Vec<TaskId>,
) -> Result<bool, StoreError> {
    let mut wanted: Vec<i64> = Vec::new();
    let mut left: HashSet<TaskId> = HashSet::new();
    let mut sum = 0;
    for large in taken.iter().filter(|taken| taken.input_bytes.is_some()) {
        sum += large.input_bytes.unwrap_or_default();
        if wanted.is_empty() || sum <= LEASE_BYTES_MAX {
            wanted.push(large.task.id.0);
        } else {
            left.insert(large.task.id);
        }
    }
    if wanted.is_empty() {
        return Ok(true);
    }
    let query = "SELECT task, bytes FROM task_input WHERE task IN (SELECT value FROM json_each(?1))";
    let rows = session.rows(sqlx::query(query).bind(json(&wanted))).await?;
    let mut inputs: HashMap<i64, Vec<u8>> =
        rows.iter().filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))).collect();
    let mut given_back = Vec::new();
    taken.retain_mut(|taken| {
        if left.contains(&taken.task.id) {
            given_back.push((taken.task.id, taken.task.token));
            return false;
        }
        let Some(size) = taken.input_bytes else { return true };
        match inputs.remove(&taken.task.id.0).filter(|input| input.len() as u64 == size) {
            Some(input) => taken.task.input.bytes = input.into(),
            None => undecodable.push(taken.task.id),
        }
        !undecodable.contains(&taken.task.id)
    });
    if !given_back.is_empty() {
        give_back(session, &given_back).await?;
    }
    Ok(given_back.is_empty())
}

async fn next_run_at(session: &mut Session, now_ms: i64) -> Result<Option<i64>, StoreError> {
    let rows = session.rows(sqlx::query(NEXT_RUN_AT).bind(now_ms)).await?;
    rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(store_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_go_together() {
        let shares = [(TenantId(1), 2), (TenantId(2), 3), (TenantId(3), 2)].into_iter().collect();
        let mut grouped = by_share(&shares);
        grouped.values_mut().for_each(|tenants| tenants.sort_unstable());
        assert_eq!(grouped, BTreeMap::from([(2, vec![1, 3]), (3, vec![2])]));
    }
}
