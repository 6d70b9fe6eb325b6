//! Children of tasks that complete: rows of the same transaction, by the same code as submits.

use std::collections::HashMap;

use keiko_core::id::{AgentId, TaskId, UserId};
use keiko_core::port::StoreError;
use keiko_core::task::{Settled, Settlement};
use sqlx::postgres::PgRow;

use super::row::{count, get};
use super::session::Session;
use super::settle::Held;
use super::{group, once, submit, tree};
use crate::count::Changes;
use crate::family::{self, ChildKeys, Parent};
use crate::format::{decode_budget, read_priority};
use crate::group::joined;
use crate::tree::opened;
use crate::trouble::undecodable;

/// Writes the children of these settlements, whose tasks are `held`. Returns those that must not be settled, with their
/// answers; of them nothing is written.
pub(crate) async fn apply(
    session: &mut Session,
    settlements: &[&Settlement],
    held: &Held,
    now_ms: i64,
    changes: &mut Changes,
) -> Result<HashMap<TaskId, Settled>, StoreError> {
    let mut refused = HashMap::new();
    let asking: Vec<_> = settlements.iter().copied().filter(|one| family::asks(one)).collect();
    if asking.is_empty() {
        return Ok(refused);
    }
    let mut named = Vec::new();
    for one in &asking {
        named.extend(one.effects.children.iter().filter_map(|child| Some((one.tenant, child.key.as_ref()?))));
    }
    if family::asking_once(&asking).any(|(.., once)| once.is_some()) {
        // Keys of kinds are read and written under the counts of their tenants, which are taken in one order with those
        // of everything else that this transaction ends.
        let tenants = settlements.iter().map(|one| one.tenant).collect();
        submit::lock_tenants(session, tenants, now_ms).await?;
    }
    let mut named = ChildKeys {
        keys: submit::load_keys(session, &named, held.shift_ms).await?,
        onces: once::load(session, family::asking_once(&asking), held.shift_ms).await?,
    };
    let tasks = family::children(&asking, &held.parents, &mut named, now_ms, changes, &mut refused);
    let tasks: Vec<_> = tasks.iter().map(|(tenant, task)| (*tenant, task)).collect();
    submit::insert(session, &tasks, held.shift_ms).await?;
    group::insert_rows(session, &joined(&asking, &refused, now_ms)).await?;
    tree::open(session, &opened(&asking, &held.parents, &refused), held.shift_ms).await?;
    submit::store_keys(session, &named.keys, held.shift_ms, now_ms).await?;
    once::store(session, &named.onces, held.shift_ms).await?;
    Ok(refused)
}

/// A row of the tasks that a settlement holds: id, tenant, token, root, depth, budget, trace, agent, user, priority, the
/// clock's shift, and the ends of its own time and of its tree's.
pub(crate) fn parent(row: &PgRow) -> Result<(TaskId, Parent), StoreError> {
    let parent = Parent {
        tenant: get(row, 1)?,
        token: get(row, 2)?,
        root: TaskId(get(row, 3)?),
        depth: count(row, 4)?,
        budget: decode_budget(get(row, 5)?).map_err(undecodable)?,
        trace: get(row, 6)?,
        agent: get::<Option<i64>>(row, 7)?.map(AgentId),
        user: get::<Option<i64>>(row, 8)?.map(UserId),
        priority: read_priority(get::<Option<i16>>(row, 9)?.map(i64::from)).map_err(undecodable)?,
        end_by_ms: get(row, 11)?,
        of_tree_ms: get(row, 12)?,
    };
    Ok((TaskId(get(row, 0)?), parent))
}
