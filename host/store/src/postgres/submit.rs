//! New tasks: quota, idempotency keys, rows. Submits of many callers become few statements, and children of tasks that
//! complete go the same way.
//!
//! The rows of the tenants' counts are taken first: the quota is exact, and two submits of a tenant, from whichever
//! host, see each other's keys. They are written in the same moment, as if everything were accepted, and put right in
//! the end where something was not.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::port::{StoreError, StoreErrorKind};
use keiko_core::task::{Key, NewTask, Submit, Submitted};
use sqlx::postgres::PgRow;

use super::count;
use super::row::{self, get, stored_text};
use super::session::{Session, chunks, some};
use super::{group, once, segment};
use crate::admit::{
    Keys, Known, People, Stood, decide, ends, place_ms, read_body, stored_due_ms, stored_type, stores,
};
use crate::count::{AgentChange, Change, Changes};
use crate::format::{decode_ids, encode_budget, encode_ids, stored_priority};
use crate::once::of_submits;
use crate::segment::task::cut;
use crate::trouble::undecodable;

/// Live tasks of these tenants, whose counts nobody else changes until the commit, and how far the database's clock is
/// before the caller's, `$2`.
const LOCK_TENANTS: &str = "SELECT tenant, live, keiko_now($2) - $2 FROM tenant_count WHERE tenant = ANY($1)
    ORDER BY tenant FOR UPDATE";

/// The same, with so many more tasks of each tenant; the live tasks are those without them.
const COUNT_IN: &str = "UPDATE tenant_count AS t SET live = t.live + more.count
    FROM unnest($1::bigint[], $3::bigint[]) AS more (tenant, count) WHERE t.tenant = more.tenant
    RETURNING t.tenant, t.live - more.count, keiko_now($2) - $2";

const KEYS: &str = "SELECT i.tenant, i.key, i.first, i.count, i.body, i.expires_ms, i.ids
    FROM unnest($1::bigint[], $2::text[]) AS wanted (tenant, key)
    JOIN idempotency AS i ON i.tenant = wanted.tenant AND i.key = wanted.key";

/// A key that somebody else took in the meantime stays theirs, and is missing in the answer.
const UPSERT_KEYS: &str = "INSERT INTO idempotency AS i (tenant, key, first, count, body, expires_ms, ids)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::integer[], $5::bytea[], $6::bigint[], $8::text[])
    ON CONFLICT (tenant, key) DO UPDATE SET first = excluded.first, count = excluded.count,
        body = excluded.body, expires_ms = excluded.expires_ms, ids = excluded.ids
    WHERE i.expires_ms <= keiko_now($7)";

/// Only when every kind is its tenant's, of which `$22` and `$23` are each one once; the number tells. Arrays are unnested in
/// the list of a `SELECT`: in `FROM` each becomes a table that is written and read again.
const INSERT_TASKS: &str = "INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, root, parent, depth, budget,
        trace, input_type, input, agent, app_user, priority, due_ms, start_by_ms, end_by_ms,
        task_group, slot_key, unique_key)
    SELECT n.id, n.tenant, n.kind, n.created_ms, n.run_at_ms, n.root, n.parent, n.depth, n.budget,
        n.trace, n.input_type, n.input, n.agent, n.app_user, n.priority, n.due_ms, n.start_by_ms,
        n.end_by_ms, n.task_group, n.slot_key, n.unique_key
    FROM (SELECT unnest($1::bigint[]) AS id, unnest($2::bigint[]) AS tenant, unnest($3::bigint[]) AS kind,
        unnest($4::bigint[]) AS created_ms, unnest($5::bigint[]) AS run_at_ms, unnest($6::bigint[]) AS root,
        unnest($7::bigint[]) AS parent, unnest($8::integer[]) AS depth, unnest($9::text[]) AS budget,
        unnest($10::text[]) AS trace, unnest($11::text[]) AS input_type, unnest($12::bytea[]) AS input,
        unnest($13::bigint[]) AS agent, unnest($14::bigint[]) AS app_user, unnest($15::smallint[]) AS priority,
        unnest($16::bigint[]) AS due_ms, unnest($17::bigint[]) AS start_by_ms, unnest($18::bigint[]) AS end_by_ms,
        unnest($19::bigint[]) AS task_group, unnest($20::text[]) AS slot_key, unnest($21::text[]) AS unique_key) AS n
    WHERE (SELECT count(*) FROM unnest($22::bigint[], $23::bigint[]) AS w (tenant, kind)
        JOIN kind AS k ON k.id = w.kind AND k.tenant = w.tenant) = cardinality($22)";

/// Stores submits, each with its own now; the answers are in their order.
pub(crate) async fn enqueue(
    session: &mut Session,
    submits: &[(&Submit, i64)],
) -> Result<Vec<Submitted>, StoreError> {
    let Some(&(_, now_ms)) = submits.first() else { return Ok(Vec::new()) };
    let mut wanted: BTreeMap<TenantId, i64> = BTreeMap::new();
    for (submit, _) in submits {
        *wanted.entry(submit.tenant).or_default() += submit.tasks.len() as i64;
    }
    let (mut live, shift_ms) = count_in(session, &wanted, now_ms).await?;
    let named: Vec<_> =
        submits.iter().filter_map(|(submit, _)| Some((submit.tenant, submit.key.as_ref()?))).collect();
    let mut keys = load_keys(session, &named, shift_ms).await?;
    let known = people(session, submits).await?;
    let asking = of_submits(submits.iter().map(|(submit, _)| *submit));
    let mut onces = once::load(session, asking, shift_ms).await?;
    let mut accepted = Vec::new();
    let mut answers = Vec::with_capacity(submits.len());
    for &(submit, now_ms) in submits {
        let live = live.entry(submit.tenant).or_insert(0);
        let answer = decide(submit, now_ms, &mut keys, &known, &mut onces, live);
        if stores(&answer) {
            accepted.push((submit, now_ms));
        }
        answers.push(answer);
    }
    let tasks = accepted.iter().flat_map(|(submit, _)| submit.tasks.iter().map(|task| (submit.tenant, task)));
    let tasks = onces.shape(tasks);
    let tasks: Vec<_> = tasks.iter().map(|(tenant, task)| (*tenant, task.as_ref())).collect();
    insert(session, &tasks, shift_ms).await?;
    group::insert(session, &accepted).await?;
    store_keys(session, &keys, shift_ms, now_ms).await?;
    once::store(session, &onces, shift_ms).await?;
    count::store(session, &rest(wanted, &tasks)).await?;
    Ok(answers)
}

/// What is still to be counted: agents' tasks, and those that were counted in and are not among the stored `tasks`.
fn rest(mut wanted: BTreeMap<TenantId, i64>, tasks: &[(TenantId, &NewTask)]) -> Changes {
    let mut changes = Changes::default();
    for &(tenant, task) in tasks {
        *wanted.entry(tenant).or_default() -= 1;
        changes.add_agent(tenant, task.agent, AgentChange::NEW);
    }
    for (tenant, refused) in wanted.into_iter().filter(|(_, refused)| *refused != 0) {
        changes.add(tenant, Change { live: -refused, ..Change::default() });
    }
    changes
}

/// The oldest keys that have expired and that nobody else forgets just now.
pub(crate) const PRUNE_KEYS: &str =
    "DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
    WHERE expires_ms <= keiko_now($1) ORDER BY expires_ms LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// Forgets keys that have expired, at most so many.
pub(crate) async fn prune_keys(
    session: &mut Session,
    now_ms: i64,
    count_max: u32,
) -> Result<u64, StoreError> {
    let pruned = session.run(sqlx::query(PRUNE_KEYS).bind(now_ms).bind(i64::from(count_max))).await?;
    Ok(pruned + once::prune(session, now_ms, count_max).await?)
}

/// Live tasks of these tenants, whose counts are the transaction's from now on, and how far the database's clock is
/// before the caller's.
pub(crate) async fn lock_tenants(
    session: &mut Session,
    tenants: BTreeSet<TenantId>,
    now_ms: i64,
) -> Result<(HashMap<TenantId, u64>, i64), StoreError> {
    let ids: Vec<i64> = tenants.iter().map(|tenant| tenant.0).collect();
    live_and_shift(&session.rows(sqlx::query(LOCK_TENANTS).bind(ids).bind(now_ms)).await?)
}

/// The same, with so many more live tasks of each tenant from now on.
async fn count_in(
    session: &mut Session,
    more: &BTreeMap<TenantId, i64>,
    now_ms: i64,
) -> Result<(HashMap<TenantId, u64>, i64), StoreError> {
    let (ids, counts): (Vec<i64>, Vec<i64>) = more.iter().map(|(tenant, count)| (tenant.0, *count)).unzip();
    live_and_shift(&session.rows(sqlx::query(COUNT_IN).bind(ids).bind(now_ms).bind(counts)).await?)
}

fn live_and_shift(rows: &[PgRow]) -> Result<(HashMap<TenantId, u64>, i64), StoreError> {
    let mut live = HashMap::new();
    let mut shift_ms = 0;
    for row in rows {
        live.insert(TenantId(get(row, 0)?), row::large_count(row, 1)?);
        shift_ms = get(row, 2)?;
    }
    Ok((live, shift_ms))
}

/// The agents and users that submits name, as far as they exist.
async fn people(session: &mut Session, submits: &[(&Submit, i64)]) -> Result<People, StoreError> {
    let tasks = || submits.iter().flat_map(|(submit, _)| &submit.tasks);
    let agents: BTreeSet<i64> = tasks().filter_map(|task| Some(task.agent?.0)).collect();
    let users: BTreeSet<i64> = tasks().filter_map(|task| Some(task.user?.0)).collect();
    let mut people = People::default();
    if agents.is_empty() && users.is_empty() {
        return Ok(people);
    }
    let query = "SELECT 0, tenant, id FROM agent WHERE id = ANY($1)
        UNION ALL SELECT 1, tenant, id FROM app_user WHERE id = ANY($2)";
    let (agents, users) = (agents.into_iter().collect::<Vec<_>>(), users.into_iter().collect::<Vec<_>>());
    for row in session.rows(sqlx::query(query).bind(agents).bind(users)).await? {
        match (get::<i32>(&row, 0)?, get(&row, 1)?, get(&row, 2)?) {
            (0, tenant, id) => people.agents.insert((tenant, AgentId(id))),
            (_, tenant, id) => people.users.insert((tenant, UserId(id))),
        };
    }
    Ok(people)
}

/// Writes tasks, without counting them. `shift_ms` moves due times to the database's clock.
pub(crate) async fn insert(
    session: &mut Session,
    tasks: &[(TenantId, &NewTask)],
    shift_ms: i64,
) -> Result<(), StoreError> {
    let (rows, segments) = cut(tasks, session.segment_min);
    if segment::insert(session, &segments, shift_ms).await? && insert_rows(session, &rows, shift_ms).await? {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Refused, "a task's kind is not its tenant's"))
}

async fn insert_rows(
    session: &mut Session,
    tasks: &[(TenantId, &NewTask)],
    shift_ms: i64,
) -> Result<bool, StoreError> {
    for chunk in chunks(tasks, |(_, task)| task.input.bytes.len()) {
        let ids = |of: fn(&NewTask) -> i64| chunk.iter().map(|(_, task)| of(task)).collect::<Vec<i64>>();
        let perhaps = |of: fn(&NewTask) -> Option<i64>| some(chunk.iter().map(|(_, task)| of(task)));
        let texts = |of: fn(&NewTask) -> Option<String>| some(chunk.iter().map(|(_, task)| of(task)));
        let tenants: Vec<i64> = chunk.iter().map(|(tenant, _)| tenant.0).collect();
        let places = chunk.iter().map(|(_, task)| place_ms(task).saturating_add(shift_ms));
        let priorities =
            chunk.iter().map(|(_, task)| stored_priority(task.priority).map(|level| level as i16));
        let due = chunk.iter().map(|(_, task)| Some(stored_due_ms(task)?.saturating_add(shift_ms)));
        let ends = chunk.iter().map(|(_, task)| ends(task).shifted(shift_ms));
        let (start_by, end_by): (Vec<_>, Vec<_>) =
            ends.map(|ends| (ends.start_by_ms, ends.end_by_ms)).unzip();
        let depths: Vec<i32> = chunk.iter().map(|(_, task)| depth(task)).collect();
        let inputs: Vec<&[u8]> = chunk.iter().map(|(_, task)| &task.input.bytes[..]).collect();
        let query = sqlx::query(INSERT_TASKS).bind(ids(|task| task.id.0)).bind(tenants);
        let query = query.bind(ids(|task| task.kind.0)).bind(ids(|task| task.created_ms));
        let query = query.bind(places.collect::<Vec<i64>>()).bind(ids(|task| task.lineage.root.0));
        let query = query.bind(perhaps(|task| Some(task.lineage.parent?.0))).bind(depths);
        let query = query.bind(texts(|task| encode_budget(&task.budget)));
        let query = query.bind(texts(|task| task.trace.as_deref().map(stored_text)));
        let query = query.bind(texts(|task| stored_type(&task.input).map(stored_text))).bind(inputs);
        let query = query.bind(perhaps(|task| Some(task.agent?.0))).bind(perhaps(|task| Some(task.user?.0)));
        let query = query.bind(some(priorities)).bind(some(due));
        let query = query
            .bind(some(start_by.into_iter()))
            .bind(some(end_by.into_iter()))
            .bind(perhaps(|task| Some(task.group?.0)));
        let query = query.bind(texts(|task| task.slot_key.as_deref().map(stored_text)));
        let query = query.bind(texts(|task| Some(task.once.as_ref()?.unique_key()?.to_owned())));
        let owners: BTreeSet<_> = chunk.iter().map(|(tenant, task)| (tenant.0, task.kind.0)).collect();
        let (owner, owned): (Vec<i64>, Vec<i64>) = owners.into_iter().unzip();
        let query = query.bind(owner).bind(owned);
        if session.run(query).await? != chunk.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn depth(task: &NewTask) -> i32 {
    i32::try_from(task.lineage.depth).unwrap_or(i32::MAX)
}

/// Reads those of the keys that are stored, with their ends on the caller's clock.
pub(crate) async fn load_keys(
    session: &mut Session,
    keys: &[(TenantId, &Key)],
    shift_ms: i64,
) -> Result<Keys, StoreError> {
    if keys.is_empty() {
        return Ok(Keys::default());
    }
    let tenants: Vec<i64> = keys.iter().map(|(tenant, _)| tenant.0).collect();
    let texts: Vec<&str> = keys.iter().map(|(_, key)| key.text.as_str()).collect();
    let rows = session.rows(sqlx::query(KEYS).bind(tenants).bind(texts)).await?;
    Ok(Keys::of(rows.iter().map(|row| known(row, shift_ms)).collect::<Result<_, _>>()?))
}

fn known(row: &PgRow, shift_ms: i64) -> Result<((TenantId, String), Known), StoreError> {
    let ids = get::<Option<&str>>(row, 6)?.map(decode_ids).transpose().map_err(undecodable)?;
    let known = Known {
        tasks: Stood { first: TaskId(get(row, 2)?), count: row::count(row, 3)?, ids },
        body: read_body(get(row, 4)?),
        expires_ms: get::<i64>(row, 5)?.saturating_sub(shift_ms),
    };
    Ok(((TenantId(get(row, 0)?), get(row, 1)?), known))
}

/// Writes what was remembered.
pub(crate) async fn store_keys(
    session: &mut Session,
    keys: &Keys,
    shift_ms: i64,
    now_ms: i64,
) -> Result<(), StoreError> {
    let fresh = keys.fresh();
    if fresh.is_empty() {
        return Ok(());
    }
    let tenants: Vec<i64> = fresh.iter().map(|((tenant, _), _)| tenant.0).collect();
    let texts: Vec<&str> = fresh.iter().map(|((_, text), _)| text.as_str()).collect();
    let firsts: Vec<i64> = fresh.iter().map(|(_, known)| known.tasks.first.0).collect();
    let counts: Vec<i32> = fresh.iter().map(|(_, known)| known.tasks.count as i32).collect();
    let bodies: Vec<&[u8]> = fresh.iter().map(|(_, known)| &known.body[..]).collect();
    let expires = fresh.iter().map(|(_, known)| known.expires_ms.saturating_add(shift_ms));
    let query = sqlx::query(UPSERT_KEYS).bind(tenants).bind(texts).bind(firsts).bind(counts).bind(bodies);
    let ids: Vec<_> = fresh.iter().map(|(_, known)| known.tasks.ids.as_deref().map(encode_ids)).collect();
    let query = query.bind(expires.collect::<Vec<i64>>()).bind(now_ms).bind(ids);
    if session.run(query).await? != fresh.len() as u64 {
        // Looked at again, the keys are known.
        return Err(StoreError::new(StoreErrorKind::Busy, "a key was taken at the same time"));
    }
    Ok(())
}
