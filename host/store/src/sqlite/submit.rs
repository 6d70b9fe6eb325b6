//! New tasks: quota, idempotency keys, rows. Submits of many callers become few statements, and children of
//! tasks that complete go the same way.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use keiko_core::id::{TaskId, TenantId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::port::StoreError;
use keiko_core::task::{JSON, Key, NewTask, Payload, Submit, Submitted};
use sqlx::Row;

use super::count::{Change, Changes};
use super::error::store_error;
use super::session::{RowStatement, Session, json};
use crate::format::encode_budget;

/// Inputs larger than this are kept beside the task's row, in bytes: half a page, so that a state change
/// rewrites one page.
const INLINE_BYTES_MAX: usize = 2_048;

static INSERT_TASK: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, root, parent, depth, budget, trace,
            input_type, input_bytes, input)
         SELECT * FROM (VALUES) WHERE column1 IS NOT NULL",
        13,
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
        "INSERT INTO idempotency (tenant, key, first, count, body, expires_ms)
         SELECT * FROM (VALUES) WHERE column1 IS NOT NULL
         ON CONFLICT (tenant, key) DO UPDATE SET first = excluded.first, count = excluded.count,
            body = excluded.body, expires_ms = excluded.expires_ms",
        6,
    )
});

/// Stores submits, each with its own now; the answers are in their order.
pub(crate) async fn enqueue(
    session: &mut Session,
    submits: &[(&Submit, i64)],
) -> Result<Vec<Submitted>, StoreError> {
    let named: Vec<_> =
        submits.iter().filter_map(|(submit, _)| Some((submit.tenant, submit.key.as_ref()?))).collect();
    let mut keys = Keys::load(session, &named).await?;
    let mut live = live(session, submits.iter().map(|(submit, _)| submit.tenant).collect()).await?;
    let mut tasks = Vec::new();
    let mut answers = Vec::with_capacity(submits.len());
    for &(submit, now_ms) in submits {
        let answer = decide(submit, now_ms, &mut keys, live.entry(submit.tenant).or_insert(0));
        if let Submitted::Accepted { duplicate: false, .. } = answer {
            tasks.extend(submit.tasks.iter().map(|task| (submit.tenant, task)));
        }
        answers.push(answer);
    }
    insert(session, &tasks).await?;
    keys.store(session).await?;
    let mut changes = Changes::default();
    for &(tenant, _) in &tasks {
        changes.add(tenant, Change { live: 1, ..Change::default() });
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
    let query = "DELETE FROM idempotency WHERE (tenant, key) IN (SELECT tenant, key FROM idempotency
        INDEXED BY idempotency_expires WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2) RETURNING 1";
    let rows = session.rows(sqlx::query(query).bind(now_ms).bind(count_max)).await?;
    Ok(rows.len() as u64)
}

fn decide(submit: &Submit, now_ms: i64, keys: &mut Keys, live: &mut u64) -> Submitted {
    let wanted = submit.tasks.len() as u64;
    let known = submit.key.as_ref().and_then(|key| keys.find(submit.tenant, &key.text, now_ms));
    if let (Some(key), Some(known)) = (&submit.key, known) {
        return if known.body == key.body {
            Submitted::Accepted { first: known.first, count: known.count, duplicate: true }
        } else {
            Submitted::Conflict
        };
    }
    let Some(first) = submit.tasks.first().map(|task| task.id) else {
        return Submitted::Accepted { first: TaskId(0), count: 0, duplicate: false };
    };
    if *live + wanted > submit.queue_max {
        return Submitted::QueueFull { live: *live };
    }
    *live += wanted;
    let count = wanted as u32;
    if let Some(key) = &submit.key {
        keys.remember(submit.tenant, key, first, count, now_ms);
    }
    Submitted::Accepted { first, count, duplicate: false }
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
            binds.add(task.id.0).add(tenant.0).add(task.kind.0).add(task.created_ms).add(task.run_at_ms);
            let lineage = &task.lineage;
            binds.add(lineage.root.0).add(lineage.parent.map(|id| id.0)).add(lineage.depth);
            binds.add(encode_budget(&task.budget)).add(task.trace.as_deref());
            binds.add(stored_type(&task.input)).add((!inline).then_some(bytes.len() as i64));
            binds.add(inline.then_some(&bytes[..]));
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

/// The media type as a column holds it: most payloads are JSON and store none.
pub(crate) fn stored_type(payload: &Payload) -> Option<&str> {
    (payload.content_type != JSON).then_some(payload.content_type.as_str())
}

/// The media type that a column holds.
pub(crate) fn read_type(stored: Option<String>) -> String {
    stored.unwrap_or_else(|| JSON.to_owned())
}

/// What a key stands for.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) first: TaskId,
    pub(crate) count: u32,
    pub(crate) body: [u8; 32],
    expires_ms: i64,
}

/// The idempotency keys that a call names: as they are stored, and as the call changes them.
#[derive(Default)]
pub(crate) struct Keys {
    known: HashMap<(TenantId, String), Known>,
    fresh: BTreeSet<(TenantId, String)>,
}

impl Keys {
    /// Reads those of the keys that are stored.
    pub(crate) async fn load(session: &mut Session, keys: &[(TenantId, &Key)]) -> Result<Keys, StoreError> {
        let wanted: Vec<(i64, &str)> =
            keys.iter().map(|(tenant, key)| (tenant.0, key.text.as_str())).collect();
        if wanted.is_empty() {
            return Ok(Keys::default());
        }
        let query = "SELECT i.tenant, i.key, i.first, i.count, i.body, i.expires_ms
            FROM json_each(?1) AS wanted CROSS JOIN idempotency AS i
            ON i.tenant = wanted.value ->> 0 AND i.key = wanted.value ->> 1";
        let rows = session.rows(sqlx::query(query).bind(json(&wanted))).await?;
        let known = rows.iter().map(known).collect::<Result<_, _>>().map_err(store_error)?;
        Ok(Keys { known, fresh: BTreeSet::new() })
    }

    /// What the key stands for, unless it has expired.
    pub(crate) fn find(&self, tenant: TenantId, text: &str, now_ms: i64) -> Option<Known> {
        let known = self.known.get(&(tenant, text.to_owned()))?;
        (known.expires_ms > now_ms).then_some(*known)
    }

    /// Makes the key stand for these tasks.
    pub(crate) fn remember(&mut self, tenant: TenantId, key: &Key, first: TaskId, count: u32, now_ms: i64) {
        let known = Known { first, count, body: key.body, expires_ms: now_ms.saturating_add(KEY_AGE_MS) };
        self.known.insert((tenant, key.text.clone()), known);
        self.fresh.insert((tenant, key.text.clone()));
    }

    /// Writes what was remembered.
    pub(crate) async fn store(self, session: &mut Session) -> Result<(), StoreError> {
        let fresh: Vec<_> = self.fresh.iter().filter_map(|key| Some((key, self.known.get(key)?))).collect();
        session
            .each(&UPSERT_KEY, &fresh, |((tenant, text), known), binds| {
                binds.add(tenant.0).add(text.as_str()).add(known.first.0).add(known.count);
                binds.add(&known.body[..]).add(known.expires_ms);
            })
            .await?;
        Ok(())
    }
}

fn known(row: &sqlx::sqlite::SqliteRow) -> Result<((TenantId, String), Known), sqlx::Error> {
    let body: Vec<u8> = row.try_get(4)?;
    let known = Known {
        first: TaskId(row.try_get(2)?),
        count: row.try_get(3)?,
        // A damaged hash equals no body's, so the key answers `Conflict`: nothing is stored twice.
        body: body.try_into().unwrap_or([0; 32]),
        expires_ms: row.try_get(5)?,
    };
    Ok(((TenantId(row.try_get(0)?), row.try_get(1)?), known))
}
