//! Children of tasks that complete: which of them are made, and what they take from their parents. Their room in the
//! queue was reserved when the guest asked, so the quota is not looked at again.

use std::collections::HashMap;

use keiko_core::effect::Child;
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::Priority;
use keiko_core::task::{Key, Lineage, NewTask, Settled, Settlement, Transition};
use keiko_core::tree;

use crate::admit::{Keys, Stood};
use crate::count::{AgentChange, Change, Changes};
use crate::once::{Asking, Onces};

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

/// The keys that children give.
pub(crate) struct ChildKeys {
    /// Idempotency keys.
    pub(crate) keys: Keys,
    /// Keys of kinds.
    pub(crate) onces: Onces,
}

/// What children of these settlements ask of others of their kind.
pub(crate) fn asking_once<'a>(asking: &[&'a Settlement]) -> impl Iterator<Item = Asking<'a>> {
    asking.iter().copied().flat_map(|one| {
        one.effects.children.iter().map(|child| (one.tenant, child.kind, child.once.as_ref()))
    })
}

/// The children to write, of settlements that have some. Their keys are remembered in `named`, their number in `changes`;
/// settlements that must not be settled go into `refused` with their answers.
pub(crate) fn children(
    asking: &[&Settlement],
    parents: &HashMap<TaskId, Parent>,
    named: &mut ChildKeys,
    now_ms: i64,
    changes: &mut Changes,
    refused: &mut HashMap<TaskId, Settled>,
) -> Vec<(TenantId, NewTask)> {
    let ChildKeys { keys, onces } = named;
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
        let made: Vec<NewTask> =
            children.iter().map(|child| new_task(child, one.id, parent, now_ms)).collect();
        let Ok(plan) = onces.plan(one.tenant, &made, now_ms) else {
            refused.insert(one.id, Settled::Conflict);
            continue;
        };
        for child in &children {
            if let Some(key) = &child.key {
                keys.remember(one.tenant, key, Stood::one(plan.stands_for(child.id)), now_ms);
            }
        }
        onces.accept(plan);
        tasks.extend(made.into_iter().map(|task| (one.tenant, task)));
    }
    let shaped = onces.shape(tasks.iter().map(|(tenant, task)| (*tenant, task)));
    let shaped: Vec<_> = shaped.into_iter().map(|(tenant, task)| (tenant, task.into_owned())).collect();
    for (tenant, task) in &shaped {
        changes.add(*tenant, Change { live: 1, ..Change::default() });
        changes.add_agent(*tenant, task.agent, AgentChange::NEW);
    }
    shaped
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
    let run_at_ms = child.run_at_ms.unwrap_or(now_ms).max(now_ms).saturating_add_unsigned(child.delay_ms);
    let tree_end_ms = parent.tree_end_ms();
    let budget = parent.budget.inherited().changed_by(&child.budget);
    NewTask {
        id: child.id,
        kind: child.kind,
        input: child.input.clone(),
        created_ms: now_ms,
        run_at_ms,
        priority: child.priority.unwrap_or(parent.priority),
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
        slot_key: child.slot_key.clone(),
        once: child.once.clone(),
    }
}
