//! What is known of trees whose tasks this host has leased: how far each is spent, at least.
//!
//! Two things are known: what the store said with the last lease, and what attempts of this host have spent since. Both
//! only grow, and neither is ever more than the truth, so that no attempt is refused what its tree still has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use keiko_core::TaskId;
use keiko_core::tree::{Spending, Tree};
use parking_lot::Mutex;

/// Trees that are not looked at any more are forgotten when there are so many, and twice as many as are.
const SWEEP: usize = 64;

/// The trees of leased tasks, by root.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    known: Mutex<Swept>,
}

#[derive(Debug, Default)]
struct Swept {
    trees: HashMap<TaskId, Weak<Known>>,
    /// Left by the last sweep.
    left: usize,
}

/// A tree that a leased task is of.
#[derive(Debug)]
pub(crate) struct Known {
    max: Spending,
    fuel: AtomicU64,
    host_calls: AtomicU64,
}

impl Trees {
    /// The tree of a task that was just leased, of which the store said this.
    pub(crate) fn know(&self, root: TaskId, told: Tree) -> Arc<Known> {
        let mut known = self.known.lock();
        if let Some(tree) = known.trees.get(&root).and_then(Weak::upgrade) {
            tree.fuel.fetch_max(told.used.fuel, Ordering::Relaxed);
            tree.host_calls.fetch_max(told.used.host_calls, Ordering::Relaxed);
            return tree;
        }
        if known.trees.len() >= SWEEP.max(2 * known.left) {
            known.trees.retain(|_, tree| tree.strong_count() > 0);
            known.left = known.trees.len();
        }
        let Spending { fuel, host_calls } = told.used;
        let tree = Arc::new(Known { max: told.max, fuel: fuel.into(), host_calls: host_calls.into() });
        known.trees.insert(root, Arc::downgrade(&tree));
        tree
    }
}

impl Known {
    /// How it stands, as far as is known.
    pub(crate) fn now(&self) -> Tree {
        let (fuel, host_calls) = (self.fuel.load(Ordering::Relaxed), self.host_calls.load(Ordering::Relaxed));
        Tree { max: self.max, used: Spending { fuel, host_calls } }
    }

    /// An attempt of this host ended. To be told before the store is.
    pub(crate) fn spent(&self, used: Spending) {
        self.fuel.fetch_add(used.fuel, Ordering::Relaxed);
        self.host_calls.fetch_add(used.host_calls, Ordering::Relaxed);
    }

    /// The store charges nothing for an attempt that was told of.
    pub(crate) fn spared(&self, used: Spending) {
        self.fuel.fetch_sub(used.fuel, Ordering::Relaxed);
        self.host_calls.fetch_sub(used.host_calls, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fuel: u64) -> Tree {
        let spending = |fuel| Spending { fuel, host_calls: 0 };
        Tree { max: spending(100), used: spending(fuel) }
    }

    #[test]
    fn of_what_is_known_the_larger_counts() {
        let trees = Trees::default();
        let tree = trees.know(TaskId(1), told(10));
        tree.spent(Spending { fuel: 5, host_calls: 2 });
        assert_eq!(trees.know(TaskId(1), told(12)).now().used, Spending { fuel: 15, host_calls: 2 });
        tree.spared(Spending { fuel: 5, host_calls: 2 });
        assert_eq!(tree.now().used, Spending { fuel: 10, host_calls: 0 });
        assert_eq!(trees.know(TaskId(1), told(40)).now().used.fuel, 40, "another host's attempts");
        assert_eq!(trees.know(TaskId(2), told(1)).now().used.fuel, 1);
    }

    #[test]
    fn trees_of_which_nothing_is_leased_are_forgotten() {
        let trees = Trees::default();
        let kept = trees.know(TaskId(0), told(7));
        for root in 1..10_000 {
            trees.know(TaskId(root), told(1));
        }
        assert!(trees.known.lock().trees.len() <= 2 * SWEEP);
        assert!(Arc::ptr_eq(&kept, &trees.know(TaskId(0), told(1))));
    }
}
