//! Children of tasks that complete: rows of the same transaction, by the same code as submits. Their room in the
//! queue was reserved when the guest asked, so the quota is not looked at again.

use std::collections::HashMap;

use keiko_core::effect::Child;
use keiko_core::id::{Holder, TaskId};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::StoreError;
use keiko_core::task::{Key, Lineage, NewTask, Settled, Settlement};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::count::{Change, Changes};
use super::error::{store_error, undecodable};
use super::session::{Session, json};
use super::submit::{self, Keys};
use crate::format::decode_budget;

/// What a child takes from its parent's row; `?2` is the holder.
pub(crate) const PARENTS: &str = "SELECT id, tenant, token, root, depth, budget, trace FROM task NOT INDEXED
    WHERE id IN (SELECT value FROM json_each(?1)) AND state = 1 AND holder = ?2";

struct Parent {
    tenant: i64,
    token: i64,
    root: TaskId,
    depth: u32,
    budget: BudgetRequest,
    trace: Option<String>,
}

/// Writes the children of these settlements. Returns those that must not be settled, with their answers; of
/// them nothing is written.
pub(crate) async fn apply(
    session: &mut Session,
    holder: Holder,
    settlements: &[&Settlement],
    now_ms: i64,
    changes: &mut Changes,
) -> Result<HashMap<TaskId, Settled>, StoreError> {
    let mut refused = HashMap::new();
    let asking: Vec<_> = settlements.iter().filter(|one| !one.effects.is_empty()).collect();
    if asking.is_empty() {
        return Ok(refused);
    }
    let parents = parents(session, holder, &asking).await?;
    let mut named = Vec::new();
    for one in &asking {
        named.extend(one.effects.children.iter().filter_map(|child| Some((one.tenant, child.key.as_ref()?))));
    }
    let mut keys = Keys::load(session, &named).await?;
    let mut tasks = Vec::new();
    for one in asking {
        let parent = parents.get(&one.id);
        let Some(parent) = parent.filter(|row| row.tenant == one.tenant.0 && row.token == one.token.0) else {
            refused.insert(one.id, Settled::Stale);
            continue;
        };
        let Some(children) = without_known(one, &keys, now_ms) else {
            refused.insert(one.id, Settled::Conflict);
            continue;
        };
        for child in children {
            if let Some(key) = &child.key {
                keys.remember(one.tenant, key, child.id, 1, now_ms);
            }
            tasks.push((one.tenant, new_task(child, one.id, parent, now_ms)));
            changes.add(one.tenant, Change { live: 1, ..Change::default() });
        }
    }
    let tasks: Vec<_> = tasks.iter().map(|(tenant, task)| (*tenant, task)).collect();
    submit::insert(session, &tasks).await?;
    keys.store(session).await?;
    Ok(refused)
}

/// The children that do not exist yet; `None` when the key of one stands for another body.
fn without_known<'a>(one: &'a Settlement, keys: &Keys, now_ms: i64) -> Option<Vec<&'a Child>> {
    let mut own: HashMap<&str, &Key> = HashMap::new();
    let mut children = Vec::new();
    for child in &one.effects.children {
        let known = child.key.as_ref().and_then(|key| {
            let stored = keys.find(one.tenant, &key.text, now_ms).map(|known| known.body);
            let body = stored.or_else(|| own.get(key.text.as_str()).map(|own| own.body))?;
            Some(body == key.body)
        });
        match known {
            Some(false) => return None,
            Some(true) => {}
            None => {
                own.extend(child.key.as_ref().map(|key| (key.text.as_str(), key)));
                children.push(child);
            }
        }
    }
    Some(children)
}

fn new_task(child: &Child, parent_id: TaskId, parent: &Parent, now_ms: i64) -> NewTask {
    NewTask {
        id: child.id,
        kind: child.kind,
        input: child.input.clone(),
        created_ms: now_ms,
        run_at_ms: now_ms.saturating_add_unsigned(child.delay_ms),
        budget: parent.budget,
        lineage: Lineage {
            root: parent.root,
            parent: Some(parent_id),
            depth: parent.depth.saturating_add(1),
        },
        trace: parent.trace.clone(),
    }
}

async fn parents(
    session: &mut Session,
    holder: Holder,
    asking: &[&&Settlement],
) -> Result<HashMap<TaskId, Parent>, StoreError> {
    let ids: Vec<i64> = asking.iter().map(|one| one.id.0).collect();
    let rows = session.rows(sqlx::query(PARENTS).bind(json(&ids)).bind(holder.0)).await?;
    rows.iter().map(|row| Ok((TaskId(row.try_get(0).map_err(store_error)?), parent(row)?))).collect()
}

fn parent(row: &SqliteRow) -> Result<Parent, StoreError> {
    let budget: Option<&str> = row.try_get(5).map_err(store_error)?;
    Ok(Parent {
        tenant: row.try_get(1).map_err(store_error)?,
        token: row.try_get(2).map_err(store_error)?,
        root: TaskId(row.try_get(3).map_err(store_error)?),
        depth: row.try_get(4).map_err(store_error)?,
        budget: decode_budget(budget).map_err(undecodable)?,
        trace: row.try_get(6).map_err(store_error)?,
    })
}
