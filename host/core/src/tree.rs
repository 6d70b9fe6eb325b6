//! What a root and everything below it may spend together.
//!
//! A tree is opened when its root completes with children: until then the root's own budget is all there is. From then on
//! every attempt of a task below the root is charged to the tree, and begins with what is left of it at most. Attempts
//! that run at once each begin with what was left, so a tree spends more than its budget by no more than those do.

use crate::code::Code;
use crate::id::TaskId;
use crate::limit::{LimitFact, SetBy};
use crate::outcome::Failure;
use crate::policy::{Budget, BudgetRequest, Limit};

/// Fuel and host calls: what a tree is given, or has spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// Units of fuel.
    pub fuel: u64,
    /// Host calls.
    pub host_calls: u64,
}

impl Spending {
    /// Both, and the other's.
    #[must_use]
    pub fn plus(self, other: Spending) -> Spending {
        Spending {
            fuel: self.fuel.saturating_add(other.fuel),
            host_calls: self.host_calls.saturating_add(other.host_calls),
        }
    }
}

/// Tasks below others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// All below the roots with numbers from the first to the last.
    Roots(TaskId, TaskId),
    /// All below the tasks with numbers from the first to the last of the tree with this root, as far as the ended tasks
    /// between are still kept.
    Under {
        /// The root.
        root: TaskId,
        /// The first of the tasks, which are below the root.
        first: TaskId,
        /// The last of them: one task, or a group of children.
        last: TaskId,
    },
}

impl Branch {
    /// All below the tasks with numbers from the first to the last, which are roots, or children of one task of the tree with
    /// this root.
    pub fn below(root: TaskId, first: TaskId, last: TaskId) -> Branch {
        if (first..=last).contains(&root) {
            Branch::Roots(first, last)
        } else {
            Branch::Under { root, first, last }
        }
    }
}

/// What a cancel of a branch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The tasks that it ended.
    pub ended: Vec<TaskId>,
    /// Whether some are left: there were more, or they are ending by themselves and may leave children.
    pub left: bool,
}

/// A tree as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// What it may spend.
    pub max: Spending,
    /// What its ended attempts have spent, the root's last one among them.
    pub used: Spending,
}

impl Tree {
    /// Cuts the budget of an attempt to what is left, or tells why it does not begin.
    pub fn cut(&self, budget: &mut Budget) -> Result<(), Failure> {
        let pairs = [
            ("tree_fuel", Code::FuelExhausted, self.max.fuel, self.used.fuel, &mut budget.fuel),
            (
                "tree_host_calls",
                Code::HostcallBudget,
                self.max.host_calls,
                self.used.host_calls,
                &mut budget.host_calls,
            ),
        ];
        for (name, code, max, used, limit) in pairs {
            let left = max.saturating_sub(used);
            if left == 0 {
                return Err(spent(name, code, max));
            }
            if left < limit.value {
                *limit = Limit { value: left, set_by: SetBy::Tree };
            }
        }
        Ok(())
    }
}

fn spent(name: &str, code: Code, max: u64) -> Failure {
    let fact = LimitFact { name: name.to_owned(), limit: max, asked: None, set_by: SetBy::Tree };
    let mut failure = Failure::new(code, format!("the tree of this task has spent its budget: {fact}"));
    failure.limit = Some(fact);
    failure
}

/// What an attempt is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The tree.
    pub root: TaskId,
    /// What the attempt spent.
    pub used: Spending,
    /// What the tree may spend, when this end of its root opens it.
    pub opens: Option<Spending>,
}

/// When the time of a whole tree is over, of its root's budget and end: both count from when the root was due.
pub fn end_ms(root: &BudgetRequest, end_by_ms: Option<i64>) -> Option<i64> {
    let (tree_ms, end_by_ms) = (root.tree_ms?, end_by_ms?);
    let first_ms = root.total_ms.map_or(tree_ms, |total_ms| total_ms.min(tree_ms));
    Some(end_by_ms.saturating_add_unsigned(tree_ms - first_ms))
}

/// The budget of a child that is due at this time in a tree whose time is over at `tree_end_ms`: of the child's own
/// time-out and the tree's the one is kept that is over first.
#[must_use]
pub fn under(mut child: BudgetRequest, due_ms: i64, tree_end_ms: Option<i64>) -> BudgetRequest {
    let own_ms = child.total_ms.map(|ms| due_ms.saturating_add_unsigned(ms));
    if let Some(tree_end_ms) = tree_end_ms
        && own_ms.is_some_and(|own_ms| tree_end_ms <= own_ms)
    {
        child.total_ms = None;
    }
    child
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::budget;
    use crate::policy::TenantPolicy;

    fn cut(max: Spending, used: Spending) -> Result<(Limit, Limit), String> {
        let none = BudgetRequest::default();
        let mut policy = TenantPolicy::default();
        (policy.default.fuel, policy.default.host_calls) = (100, 10);
        let mut budget = budget(&policy, &none, &none);
        let limit = |failure: Failure| failure.limit.map(|fact| fact.name).unwrap_or_default();
        Tree { max, used }.cut(&mut budget).map_err(limit)?;
        Ok((budget.fuel, budget.host_calls))
    }

    #[test]
    fn an_attempt_begins_with_what_is_left_of_its_tree() {
        let max = Spending { fuel: 150, host_calls: 15 };
        let used = |fuel, host_calls| Spending { fuel, host_calls };
        let (own, tree) =
            (|value| Limit { value, set_by: SetBy::Tenant }, |value| Limit { value, set_by: SetBy::Tree });
        assert_eq!(cut(max, used(50, 5)), Ok((own(100), own(10))));
        assert_eq!(cut(max, used(51, 6)), Ok((tree(99), tree(9))));
        assert_eq!(cut(max, used(149, 14)), Ok((tree(1), tree(1))));
        assert_eq!(cut(max, used(150, 0)), Err("tree_fuel".to_owned()));
        assert_eq!(cut(max, used(0, 15)), Err("tree_host_calls".to_owned()));
        assert_eq!(cut(max, used(u64::MAX, 0)), Err("tree_fuel".to_owned()));
    }

    #[test]
    fn a_tree_ends_so_long_after_its_root_was_due() {
        let asks = |total_ms, tree_ms| BudgetRequest { total_ms, tree_ms, ..BudgetRequest::default() };
        assert_eq!(end_ms(&asks(None, Some(70)), Some(1_070)), Some(1_070));
        assert_eq!(end_ms(&asks(Some(50), Some(70)), Some(1_050)), Some(1_070));
        assert_eq!(end_ms(&asks(Some(90), Some(70)), Some(1_070)), Some(1_070));
        assert_eq!(end_ms(&asks(Some(90), None), Some(1_090)), None);
    }

    #[test]
    fn a_child_keeps_the_time_out_that_is_over_first() {
        let total = |total_ms, tree_end_ms| {
            let child = BudgetRequest { total_ms, tree_ms: Some(500), ..BudgetRequest::default() };
            under(child, 1_000, tree_end_ms).total_ms
        };
        assert_eq!(total(Some(100), Some(1_101)), Some(100));
        assert_eq!(total(Some(100), Some(1_100)), None);
        assert_eq!(total(Some(100), None), Some(100));
        assert_eq!(total(None, Some(1_001)), None);
    }
}
