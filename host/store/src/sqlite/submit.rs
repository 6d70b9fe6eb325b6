//! New tasks: quota, idempotency keys, rows. Submits of many callers become few statements, and children of
//! tasks that complete go the same way.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::once::Once;
use keiko_core::port::StoreError;
use keiko_core::task::{Key, NewTask, Submit, Submitted};
use sqlx::Row;

use super::count::{AgentChange, Change, Changes};
use super::error::store_error;
use super::session::{RowStatement, Session, json};
use super::{group, once};
pub(crate) use crate::admit::Keys;
use crate::admit::{
    Known, People, Stood, decide, ends, place_ms, read_body, stored_due_ms, stored_type, stores,
};
use crate::format::{decode_ids, encode_budget, encode_ids, stored_priority};
use crate::once::of_submits;
use crate::trouble::undecodable;

/// Inputs larger than this are kept beside the task's row, in bytes: half a page, so that a state change
/// rewrites one page.
pub(crate) const INLINE_BYTES_MAX: usize = 2_048;

static INSERT_TASK: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, root, parent, depth, budget, trace,
            input_type, input_bytes, input, agent, app_user, priority, due_ms, start_by_ms,
            end_by_ms, task_group, slot_key, unique_key)
         SELECT * FROM (VALUES) WHERE column1 IS NOT NULL",
        22,
    )
});

static INSERT_INPUT: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO task_input (task, tenant, bytes) SELECT * FROM (VALUES) WHERE column1 IS NOT NULL",
        3,
    )
});

static UPSERT_KEY: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO idempotency (tenant, key, first, count, body, expires_ms, ids)
         SELECT * FROM (VALUES) WHERE column1 IS NOT NULL
         ON CONFLICT (tenant, key) DO UPDATE SET first = excluded.first, count = excluded.count,
            body = excluded.body, expires_ms = excluded.expires_ms, ids = excluded.ids",
        7,
    )
});

/// The oldest keys that have expired.
pub(crate) const PRUNE_KEYS: &str =
    "DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
    INDEXED BY idempotency_expires WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2) RETURNING 1";

/// Stores submits, each with its own now; the answers are in their order.
pub(crate) async fn enqueue(
    session: &mut Session,
    submits: &[(&Submit, i64)],
) -> Result<Vec<Submitted>, StoreError> {
    let named: Vec<_> =
        submits.iter().filter_map(|(submit, _)| Some((submit.tenant, submit.key.as_ref()?))).collect();
    let mut keys = Keys::load(session, &named).await?;
    let known = People::load(session, submits).await?;
    let mut onces = once::load(session, of_submits(submits.iter().map(|(submit, _)| *submit))).await?;
    let mut live = live(session, submits.iter().map(|(submit, _)| submit.tenant).collect()).await?;
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
    insert(session, &tasks).await?;
    group::insert(session, &accepted).await?;
    keys.store(session).await?;
    once::store(session, &onces).await?;
    let mut changes = Changes::default();
    for &(tenant, task) in &tasks {
        changes.add(tenant, Change { live: 1, ..Change::default() });
        changes.add_agent(tenant, task.agent, AgentChange::NEW);
    }
    changes.store(session).await?;
    Ok(answers)
}

/// Forgets keys that have expired, at most so many.
pub(crate) async fn prune_keys(
    session: &mut Session,
    now_ms: i64,
    count_max: u32,
) -> Result<u64, StoreError> {
    let rows = session.rows(sqlx::query(PRUNE_KEYS).bind(now_ms).bind(count_max)).await?;
    Ok(rows.len() as u64 + once::prune(session, now_ms, count_max).await?)
}

impl People {
    async fn load(session: &mut Session, submits: &[(&Submit, i64)]) -> Result<People, StoreError> {
        let tasks = || submits.iter().flat_map(|(submit, _)| &submit.tasks);
        let agents: BTreeSet<i64> = tasks().filter_map(|task| Some(task.agent?.0)).collect();
        let users: BTreeSet<i64> = tasks().filter_map(|task| Some(task.user?.0)).collect();
        let mut people = People::default();
        if agents.is_empty() && users.is_empty() {
            return Ok(people);
        }
        let query = "SELECT 0, tenant, id FROM agent WHERE id IN (SELECT value FROM json_each(?1))
            UNION ALL SELECT 1, tenant, id FROM app_user WHERE id IN (SELECT value FROM json_each(?2))";
        let query = sqlx::query(query).bind(json(&agents)).bind(json(&users));
        for row in session.rows(query).await? {
            let read =
                || Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?));
            match read().map_err(store_error)? {
                (0, tenant, id) => people.agents.insert((tenant, AgentId(id))),
                (_, tenant, id) => people.users.insert((tenant, UserId(id))),
            };
        }
        Ok(people)
    }
}

/// Live tasks of these tenants.
async fn live(
    session: &mut Session,
    tenants: BTreeSet<TenantId>,
) -> Result<HashMap<TenantId, u64>, StoreError> {
    let ids: Vec<i64> = tenants.iter().map(|tenant| tenant.0).collect();
    let query = "SELECT tenant, live FROM tenant_count WHERE tenant IN (SELECT value FROM json_each(?1))";
    let rows = session.rows(sqlx::query(query).bind(json(&ids))).await?;
    let pair = |row: &sqlx::sqlite::SqliteRow| {
        Ok((TenantId(row.try_get(0)?), row.try_get::<i64, _>(1)?.max(0) as u64))
    };
    rows.iter().map(pair).collect::<Result<_, _>>().map_err(store_error)
}

/// Writes the rows of tasks, without counting them.
pub(crate) async fn insert(session: &mut Session, tasks: &[(TenantId, &NewTask)]) -> Result<(), StoreError> {
    session
        .each(&INSERT_TASK, tasks, |(tenant, task), binds| {
            let bytes = &task.input.bytes;
            let inline = bytes.len() <= INLINE_BYTES_MAX;
            let ends = ends(task);
            binds.add(task.id.0).add(tenant.0).add(task.kind.0).add(task.created_ms).add(place_ms(task));
            let lineage = &task.lineage;
            binds.add(lineage.root.0).add(lineage.parent.map(|id| id.0)).add(lineage.depth);
            binds.add(encode_budget(&task.budget)).add(task.trace.as_deref());
            binds.add(stored_type(&task.input)).add((!inline).then_some(bytes.len() as i64));
            binds
                .add(inline.then_some(&bytes[..]))
                .add(task.agent.map(|id| id.0))
                .add(task.user.map(|id| id.0))
                .add(stored_priority(task.priority))
                .add(stored_due_ms(task))
                .add(ends.start_by_ms)
                .add(ends.end_by_ms)
                .add(task.group.map(|id| id.0))
                .add(task.slot_key.as_deref())
                .add(task.once.as_ref().and_then(Once::unique_key));
        })
        .await?;
    let large: Vec<_> = tasks.iter().filter(|(_, task)| task.input.bytes.len() > INLINE_BYTES_MAX).collect();
    session
        .each(&INSERT_INPUT, &large, |(tenant, task), binds| {
            binds.add(task.id.0).add(tenant.0).add(&task.input.bytes[..]);
        })
        .await?;
    Ok(())
}

impl Keys {
    /// Reads those of the keys that are stored.
    pub(crate) async fn load(session: &mut Session, keys: &[(TenantId, &Key)]) -> Result<Keys, StoreError> {
        let wanted: Vec<(i64, &str)> =
            keys.iter().map(|(tenant, key)| (tenant.0, key.text.as_str())).collect();
        if wanted.is_empty() {
            return Ok(Keys::default());
        }
        let query = "SELECT i.tenant, i.key, i.first, i.count, i.body, i.expires_ms, i.ids
            FROM json_each(?1) AS wanted CROSS JOIN idempotency AS i
            ON i.tenant = wanted.value ->> 0 AND i.key = wanted.value ->> 1";
        let rows = session.rows(sqlx::query(query).bind(json(&wanted))).await?;
        Ok(Keys::of(rows.iter().map(known).collect::<Result<_, _>>()?))
    }

    /// Writes what was remembered.
    pub(crate) async fn store(self, session: &mut Session) -> Result<(), StoreError> {
        session
            .each(&UPSERT_KEY, &self.fresh(), |((tenant, text), known), binds| {
                binds.add(tenant.0).add(text.as_str()).add(known.tasks.first.0).add(known.tasks.count);
                binds.add(&known.body[..]).add(known.expires_ms);
                binds.add(known.tasks.ids.as_deref().map(encode_ids));
            })
            .await?;
        Ok(())
    }
}

fn known(row: &sqlx::sqlite::SqliteRow) -> Result<((TenantId, String), Known), StoreError> {
    let read = || Ok((TenantId(row.try_get(0)?), row.try_get(1)?, TaskId(row.try_get(2)?), row.try_get(3)?));
    let (tenant, key, first, count) = read().map_err(store_error)?;
    let ids: Option<&str> = row.try_get(6).map_err(store_error)?;
    let ids = ids.map(decode_ids).transpose().map_err(undecodable)?;
    let known = Known {
        tasks: Stood { first, count, ids },
        body: read_body(row.try_get(4).map_err(store_error)?),
        expires_ms: row.try_get(5).map_err(store_error)?,
    };
    Ok(((tenant, key), known))
}
