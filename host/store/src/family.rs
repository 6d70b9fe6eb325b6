//! Children of tasks that complete: which of them are made, and what they take from their parents. Their room in the
//! queue was reserved when the guest asked, so the quota is not looked at again.

use std::collections::HashMap;

use keiko_core::effect::Child;
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::Priority;
use keiko_core::task::{Key, Lineage, NewTask, Settled, Settlement, Transition};
use keiko_core::tree;

use crate::admit::Keys;
use crate::count::{AgentChange, Change, Changes};

/// What a child takes from its parent's row, and the row's fence.
pub(crate) struct Parent {
    pub(crate) tenant: i64,
    pub(crate) token: i64,
    pub(crate) root: TaskId,
    pub(crate) depth: u32,
    pub(crate) budget: BudgetRequest,
    pub(crate) trace: Option<String>,
    pub(crate) agent: Option<AgentId>,
    pub(crate) user: Option<UserId>,
    pub(crate) priority: Priority,
    /// When its own time is over.
    pub(crate) end_by_ms: Option<i64>,
    /// When that of its tree is, when it is below a root.
    pub(crate) of_tree_ms: Option<i64>,
}

impl Parent {
    /// When the time of its tree is over.
    pub(crate) fn tree_end_ms(&self) -> Option<i64> {
        if self.depth == 0 { tree::end_ms(&self.budget, self.end_by_ms) } else { self.of_tree_ms }
    }
}

/// Whether a settlement has children to write: effects are those of a task that completes.
pub(crate) fn asks(one: &Settlement) -> bool {
    matches!(one.transition, Transition::Complete(_)) && !one.effects.children.is_empty()
}

/// The children to write, of settlements that have some. Their keys are remembered in `keys`, their number in `changes`;
/// settlements that must not be settled go into `refused` with their answers.
pub(crate) fn children(
    asking: &[&Settlement],
    parents: &HashMap<TaskId, Parent>,
    keys: &mut Keys,
    now_ms: i64,
    changes: &mut Changes,
    refused: &mut HashMap<TaskId, Settled>,
) -> Vec<(TenantId, NewTask)> {
    let mut tasks = Vec::new();
    for &one in asking {
        let parent = parents.get(&one.id);
        let Some(parent) = parent.filter(|row| row.tenant == one.tenant.0 && is_current(row, one)) else {
            refused.insert(one.id, Settled::Stale);
            continue;
        };
        let Some(children) = without_known(one, keys, now_ms) else {
            refused.insert(one.id, Settled::Conflict);
            continue;
        };
        for child in children {
            if let Some(key) = &child.key {
                keys.remember(one.tenant, key, child.id, 1, now_ms);
            }
            tasks.push((one.tenant, new_task(child, one.id, parent, now_ms)));
            changes.add(one.tenant, Change { live: 1, ..Change::default() });
            changes.add_agent(one.tenant, parent.agent, AgentChange::NEW);
        }
    }
    tasks
}

/// Whether the task still has the token under which it was settled, unless this build leaves the fence out.
fn is_current(parent: &Parent, one: &Settlement) -> bool {
    parent.token == one.token.0 || cfg!(feature = "unfenced")
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
    let run_at_ms = now_ms.saturating_add_unsigned(child.delay_ms);
    let tree_end_ms = parent.tree_end_ms();
    let budget = parent.budget.inherited().with_time_outs_of(&child.budget);
    NewTask {
        id: child.id,
        kind: child.kind,
        input: child.input.clone(),
        created_ms: now_ms,
        run_at_ms,
        priority: parent.priority,
        budget: tree::under(budget, run_at_ms, tree_end_ms),
        lineage: Lineage {
            root: parent.root,
            parent: Some(parent_id),
            depth: parent.depth.saturating_add(1),
        },
        agent: parent.agent,
        user: parent.user,
        trace: parent.trace.clone(),
        group: child.group,
        held: child.held,
        tree_end_ms,
        slot_key: None,
    }
}
