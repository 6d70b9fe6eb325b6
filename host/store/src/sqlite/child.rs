//! Children of tasks that complete: rows of the same transaction, by the same code as submits. Their room in the
//! queue was reserved when the guest asked, so the quota is not looked at again.

use std::collections::HashMap;

use keiko_core::id::{AgentId, Holder, TaskId, UserId};
use keiko_core::port::StoreError;
use keiko_core::task::{Settled, Settlement};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::count::Changes;
use super::error::store_error;
use super::session::{Session, json};
use super::submit::{self, Keys};
use super::{group, once, tree};
use crate::family::{self, ChildKeys, Parent};
use crate::format::{decode_budget, read_priority};
use crate::group::joined;
use crate::tree::opened;
use crate::trouble::undecodable;

/// What a child takes from its parent's row; `?2` is the holder.
pub(crate) const PARENTS: &str =
    "SELECT t.id, t.tenant, t.token, t.root, t.depth, t.budget, t.trace, t.agent, t.app_user, t.priority, t.end_by_ms,
        (SELECT o.end_ms FROM tree AS o WHERE o.root = t.root AND t.parent IS NOT NULL)
    FROM task AS t NOT INDEXED
    WHERE t.id IN (SELECT value FROM json_each(?1)) AND t.state = 1 AND t.holder = ?2";

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
    let asking: Vec<_> = settlements.iter().copied().filter(|one| family::asks(one)).collect();
    if asking.is_empty() {
        return Ok(refused);
    }
    let parents = parents(session, holder, &asking).await?;
    let mut named = Vec::new();
    for one in &asking {
        named.extend(one.effects.children.iter().filter_map(|child| Some((one.tenant, child.key.as_ref()?))));
    }
    let mut named = ChildKeys {
        keys: Keys::load(session, &named).await?,
        onces: once::load(session, family::asking_once(&asking)).await?,
    };
    let tasks = family::children(&asking, &parents, &mut named, now_ms, changes, &mut refused);
    let tasks: Vec<_> = tasks.iter().map(|(tenant, task)| (*tenant, task)).collect();
    submit::insert(session, &tasks).await?;
    group::insert_rows(session, &joined(&asking, &refused, now_ms)).await?;
    tree::open(session, &opened(&asking, &parents, &refused)).await?;
    named.keys.store(session).await?;
    once::store(session, &named.onces).await?;
    Ok(refused)
}

async fn parents(
    session: &mut Session,
    holder: Holder,
    asking: &[&Settlement],
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
        agent: row.try_get::<Option<i64>, _>(7).map_err(store_error)?.map(AgentId),
        user: row.try_get::<Option<i64>, _>(8).map_err(store_error)?.map(UserId),
        priority: read_priority(row.try_get(9).map_err(store_error)?).map_err(undecodable)?,
        end_by_ms: row.try_get(10).map_err(store_error)?,
        of_tree_ms: row.try_get(11).map_err(store_error)?,
    })
}
