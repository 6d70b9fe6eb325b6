//! What all stores do alike with trees of tasks: what a settlement opens, and what it charges.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use keiko_core::id::{TaskId, TenantId};
use keiko_core::task::{LeasedTask, Settled, Settlement};
use keiko_core::tree::{Spending, Tree};

use crate::family::Parent;
use crate::stored::Stored;

/// A tree as it is opened.
pub(crate) struct Opened {
    pub(crate) root: TaskId,
    pub(crate) tenant: TenantId,
    pub(crate) tree: Tree,
    /// When its time is over, on the caller's clock.
    pub(crate) end_ms: Option<i64>,
}

/// The trees that roots open by completing with children.
pub(crate) fn opened(
    asking: &[&Settlement],
    parents: &HashMap<TaskId, Parent>,
    refused: &HashMap<TaskId, Settled>,
) -> Vec<Opened> {
    let open = |one: &&Settlement| {
        let charge = one.charge.filter(|_| !refused.contains_key(&one.id))?;
        let tree = Tree { max: charge.opens?, used: charge.used };
        let end_ms = parents.get(&one.id).and_then(Parent::tree_end_ms);
        Some(Opened { root: charge.root, tenant: one.tenant, tree, end_ms })
    };
    asking.iter().filter_map(open).collect()
}

/// What the attempts of stored settlements spent of trees that are open, in the order of the roots.
pub(crate) fn charges(stored: &[Stored<'_>]) -> BTreeMap<TaskId, Spending> {
    let mut charges: BTreeMap<TaskId, Spending> = BTreeMap::new();
    let of_tree =
        stored.iter().filter_map(|stored| stored.one.charge).filter(|charge| charge.opens.is_none());
    for charge in of_tree {
        let sum = charges.entry(charge.root).or_default();
        *sum = sum.plus(charge.used);
    }
    charges
}

/// The roots of leased tasks that are below one.
pub(crate) fn roots<'a>(tasks: impl Iterator<Item = &'a LeasedTask>) -> Vec<i64> {
    let below = tasks.filter(|task| task.lineage.parent.is_some());
    let roots: BTreeSet<i64> = below.map(|task| task.lineage.root.0).collect();
    roots.into_iter().collect()
}

/// A tree of its four stored numbers.
pub(crate) fn read([fuel_max, host_calls_max, fuel_used, host_calls_used]: [i64; 4]) -> Tree {
    let spending = |fuel: i64, host_calls: i64| Spending {
        fuel: fuel.max(0) as u64,
        host_calls: host_calls.max(0) as u64,
    };
    Tree { max: spending(fuel_max, host_calls_max), used: spending(fuel_used, host_calls_used) }
}
