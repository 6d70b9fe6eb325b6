//! Submits that change nothing but their tenant's count, in one statement that is a transaction by itself; with a lease that
//! came along the tasks are this host's as soon as they are stored.
//!
//! - Only tasks that are due, of one tenant, of ordinary priority, and without key, agent, user, group, parent or slot.
//!   Whatever else there is goes the way of [`super::submit`], as does what is not granted here: so every refusal is found,
//!   and told, in one place.
//! - A lease takes what it came along with, if there is room for all of it: it came because nothing else was due.
//! - Numbers are given out once. A statement that runs again because its answer got lost finds them taken.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};

use keiko_core::id::{TaskId, TenantId, Token};
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::task::{LeasedTask, NewTask, Submit, Submitted};

use super::row::{get, stored_text};
use super::session::{Session, chunks, some};
use crate::admit::{asks_for_nothing, ends, place_ms, stored_type};
use crate::entry::AtOnce;
use crate::format::encode_budget;
use crate::transaction::Transactions;

/// Counts and stores tasks of the tenant `$4`, and leases them for the holder `$3` if there is one, which it prolongs: all of
/// that or nothing. Says how many are stored, how far the database's clock is before the caller's, and whether the first of
/// them has been stored before and has ended. Arrays are unnested as in [`super::settle`].
pub(crate) const AT_ONCE: &str = "
    WITH alive AS (
        UPDATE holder SET until_ms = greatest(until_ms, keiko_now($1) + $2)
        WHERE id = $3 AND NOT EXISTS (SELECT FROM pause WHERE tenant = $4) RETURNING id
    ), counted AS (
        UPDATE tenant_count SET live = live + $5 WHERE tenant = $4 AND live + $5 <= $6
            AND ($3 IS NULL OR (SELECT id FROM alive) IS NOT NULL)
            AND NOT EXISTS (SELECT FROM finished WHERE tenant = $4 AND id = ($7::bigint[])[1])
            AND (SELECT count(*) FROM kind WHERE tenant = $4 AND id = ANY($8)) = cardinality($8)
        RETURNING tenant
    ), stored AS (
        INSERT INTO task (id, tenant, kind, token, holder, created_ms, run_at_ms, root, budget, trace, input_type, input,
            start_by_ms, end_by_ms)
        SELECT n.id, counted.tenant, n.kind, CASE WHEN $3 IS NULL THEN 0 ELSE 1 END, $3, n.created_ms,
            n.run_at_ms + (SELECT keiko_now($1) - $1), n.id, n.budget, n.trace, n.input_type, n.input,
            n.start_by_ms + (SELECT keiko_now($1) - $1), n.end_by_ms + (SELECT keiko_now($1) - $1)
        FROM counted CROSS JOIN (SELECT unnest($7::bigint[]) AS id, unnest($9::bigint[]) AS kind,
            unnest($10::bigint[]) AS created_ms, unnest($11::bigint[]) AS run_at_ms, unnest($12::text[]) AS budget,
            unnest($13::text[]) AS trace, unnest($14::text[]) AS input_type, unnest($15::bytea[]) AS input,
            unnest($16::bigint[]) AS start_by_ms, unnest($17::bigint[]) AS end_by_ms) AS n
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM stored), keiko_now($1) - $1,
        EXISTS (SELECT FROM finished WHERE tenant = $4 AND id = ($7::bigint[])[1])";

/// When the next task comes due as the last lease knew, on this host's clock. One of this host's connections writes it, and
/// the one that submits reads it.
#[derive(Debug)]
pub(crate) struct Ahead(AtomicI64);

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead(AtomicI64::new(i64::MAX))
    }
}

impl Ahead {
    /// What a lease said.
    pub(crate) fn learn(&self, next_run_at_ms: Option<i64>) {
        self.0.store(next_run_at_ms.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn next_run_at_ms(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&at| at < i64::MAX)
    }
}

/// Stores submits at once, or nothing of them.
pub(crate) async fn submit(
    session: &mut Session,
    submits: &[(&Submit, i64)],
    lease: Option<&LeaseRequest>,
) -> Result<AtOnce, StoreError> {
    let Some((tenant, tasks)) = plain(submits) else { return Ok(None) };
    // Of so many some may be alike, and cost less as segments.
    if submits.iter().any(|(submit, _)| submit.tasks.len() >= session.segment_min) {
        return Ok(None);
    }
    if lease.is_some_and(|request| room(request, tenant) < tasks.len() || !request.slots.is_empty()) {
        return Ok(None);
    }
    let now_ms = submits.iter().map(|(_, now_ms)| *now_ms).min().unwrap_or_default();
    let queue_max = submits.iter().map(|(submit, _)| submit.queue_max).min().unwrap_or_default();
    let ids: Vec<i64> = tasks.iter().map(|task| task.id.0).collect();
    let kinds: BTreeSet<i64> = tasks.iter().map(|task| task.kind.0).collect();
    let texts = |of: fn(&NewTask) -> Option<String>| some(tasks.iter().map(|task| of(task)));
    let times = |of: fn(&NewTask) -> i64| tasks.iter().map(|task| of(task)).collect::<Vec<_>>();
    let perhaps = |of: fn(&NewTask) -> Option<i64>| some(tasks.iter().map(|task| of(task)));
    let inputs: Vec<&[u8]> = tasks.iter().map(|task| &task.input.bytes[..]).collect();
    let query = sqlx::query(AT_ONCE).bind(now_ms).bind(lease.map_or(0, |request| request.lease_ms));
    let query = query.bind(lease.map(|request| request.holder.0)).bind(tenant.0).bind(tasks.len() as i64);
    let query = query.bind(i64::try_from(queue_max).unwrap_or(i64::MAX)).bind(ids);
    let query = query.bind(kinds.into_iter().collect::<Vec<_>>()).bind(times(|task| task.kind.0));
    let query = query.bind(times(|task| task.created_ms)).bind(times(place_ms));
    let query = query.bind(texts(|task| encode_budget(&task.budget)));
    let query = query.bind(texts(|task| task.trace.as_deref().map(stored_text)));
    let query = query.bind(texts(|task| stored_type(&task.input).map(stored_text))).bind(inputs);
    let query = query.bind(perhaps(|task| ends(task).start_by_ms)).bind(perhaps(|task| ends(task).end_by_ms));
    session.alone().await?;
    let Some(row) = session.row_or_taken(query).await? else {
        return Ok(Some((accepted(submits, false), None)));
    };
    let (stored, shift_ms): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
    if stored == 0 && !get::<bool>(&row, 2)? {
        return Ok(None);
    }
    let lease = lease.filter(|_| stored > 0).map(|request| Lease {
        tasks: tasks.iter().map(|task| leased(tenant, task, shift_ms)).collect(),
        after: Some(tenant),
        next_run_at_ms: session.ahead.next_run_at_ms().filter(|_| tasks.len() < request.room),
        lost: false,
    });
    Ok(Some((accepted(submits, lease.is_some()), lease)))
}

/// The tenant and the tasks of submits that fit into the statement.
fn plain<'a>(submits: &[(&'a Submit, i64)]) -> Option<(TenantId, Vec<&'a NewTask>)> {
    let tenant = submits.first()?.0.tenant;
    let is_plain = |(submit, now_ms): &(&Submit, i64)| {
        submit.tenant == tenant
            && submit.key.is_none()
            && submit.group.is_none()
            && !submit.tasks.is_empty()
            && submit.tasks.iter().all(|task| asks_for_nothing(task) && task.run_at_ms <= *now_ms)
    };
    let tasks: Vec<&NewTask> = submits.iter().flat_map(|(submit, _)| &submit.tasks).collect();
    let fits = submits.iter().all(is_plain) && chunks(&tasks, |task| task.input.bytes.len()).len() == 1;
    fits.then_some((tenant, tasks))
}

/// How many tasks of a tenant may be leased.
fn room(request: &LeaseRequest, tenant: TenantId) -> usize {
    request.caps.get(&tenant).copied().unwrap_or(request.cap_default).min(request.room)
}

fn accepted(submits: &[(&Submit, i64)], leased: bool) -> Vec<Submitted> {
    let answer = |(submit, _): &(&Submit, i64)| Submitted::Accepted {
        first: submit.tasks.first().map_or(TaskId(0), |task| task.id),
        count: submit.tasks.len() as u32,
        duplicate: false,
        leased,
    };
    submits.iter().map(answer).collect()
}

/// The task as a lease of the row would say it.
fn leased(tenant: TenantId, task: &NewTask, shift_ms: i64) -> LeasedTask {
    LeasedTask {
        id: task.id,
        tenant,
        kind: task.kind,
        token: Token(1),
        attempts: 0,
        deadlines: 0,
        crashes: 0,
        created_ms: task.created_ms,
        place_ms: place_ms(task).saturating_add(shift_ms),
        priority: task.priority,
        input: task.input.clone(),
        budget: task.budget,
        lineage: task.lineage,
        agent: None,
        user: None,
        trace: task.trace.as_deref().map(stored_text),
        ends: ends(task),
        group: None,
        tree: None,
        slot_key: None,
        has_slot: false,
        segment: None,
    }
}
