//! The time-outs of a task beside its attempts' own wall clock, and the rule of which has ended it.
//!
//! | time-out | from | until | who looks |
//! | --- | --- | --- | --- |
//! | `queued_ms` | when the task is due | its first attempt begins | the store's `expire`, and the host that begins it |
//! | `total_ms` | when the task is due | its end | the store's `expire`; no attempt begins or is waited for beyond it |
//! | `tree_ms` | when the root is due | the end of every task below it | as `total_ms` |
//! | `heartbeat_ms` | the last thing that moved in a host call | the next one | the engine |
//!
//! They end a task with `deadline_exceeded` and the limit's own name. The first three are no attempt's fault: the task is not
//! tried again.

use crate::code::Code;
use crate::limit::{LimitFact, SetBy};
use crate::outcome::Failure;
use crate::policy::BudgetRequest;

/// A time-out of a whole task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TimeOut {
    /// It did not start in time.
    Queued,
    /// It did not end in time.
    Total,
    /// Its tree did not end in time.
    Tree,
}

impl TimeOut {
    /// The limit's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            TimeOut::Queued => "queued_ms",
            TimeOut::Total => "total_ms",
            TimeOut::Tree => "tree_ms",
        }
    }

    /// How a task fails that was given so long.
    pub fn failure(self, limit_ms: u64) -> Failure {
        let name = self.as_str().to_owned();
        let fact = LimitFact { name, limit: limit_ms, asked: None, set_by: SetBy::Task };
        let what = match self {
            TimeOut::Queued => "the task did not start in time",
            TimeOut::Total => "the task did not end in time",
            TimeOut::Tree => "the tree of the task did not end in time",
        };
        let mut failure = Failure::new(Code::DeadlineExceeded, format!("{what}: {fact}"));
        failure.limit = Some(fact);
        failure
    }

    /// The time-out by its own name, of a task with this budget, and how long it was given: what ends a task may be the end
    /// of its tree.
    pub fn told(self, budget: &BudgetRequest) -> (TimeOut, u64) {
        let own = match self {
            TimeOut::Queued => return (self, budget.queued_ms.unwrap_or_default()),
            TimeOut::Total | TimeOut::Tree => budget.total_ms,
        };
        match (own, budget.tree_ms) {
            (Some(own), Some(tree)) if own <= tree => (TimeOut::Total, own),
            (_, Some(tree)) => (TimeOut::Tree, tree),
            (own, None) => (TimeOut::Total, own.unwrap_or_default()),
        }
    }
}

/// Until when a task has to start and to end, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Its first attempt begins by then; `None` when it may wait for ever, or has begun one.
    pub start_by_ms: Option<i64>,
    /// It ends by then.
    pub end_by_ms: Option<i64>,
}

impl Ends {
    /// Of a task that is due at this time.
    pub fn of(budget: &BudgetRequest, due_ms: i64) -> Ends {
        let from = |wish: Option<u64>| wish.map(|ms| due_ms.saturating_add_unsigned(ms));
        let end_ms = budget.total_ms.into_iter().chain(budget.tree_ms).min();
        Ends { start_by_ms: from(budget.queued_ms), end_by_ms: from(end_ms) }
    }

    /// The same in a tree whose time is over by then.
    #[must_use]
    pub fn within(self, tree_end_ms: Option<i64>) -> Ends {
        Ends { end_by_ms: self.end_by_ms.into_iter().chain(tree_end_ms).min(), ..self }
    }

    /// The time-out that has ended the task by now. `waits` is whether no attempt of it has begun.
    pub fn over(self, waits: bool, now_ms: i64) -> Option<TimeOut> {
        let is_over = |by_ms: Option<i64>| by_ms.is_some_and(|by_ms| by_ms <= now_ms);
        if is_over(self.end_by_ms) {
            Some(TimeOut::Total)
        } else if waits && is_over(self.start_by_ms) {
            Some(TimeOut::Queued)
        } else {
            None
        }
    }

    /// The first of the two.
    pub fn first_ms(self) -> Option<i64> {
        self.start_by_ms.into_iter().chain(self.end_by_ms).min()
    }

    /// The same on a clock that is so far before this one.
    #[must_use]
    pub fn shifted(self, shift_ms: i64) -> Ends {
        let shift = |by_ms: Option<i64>| by_ms.map(|by_ms| by_ms.saturating_add(shift_ms));
        Ends { start_by_ms: shift(self.start_by_ms), end_by_ms: shift(self.end_by_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_over_at_its_times_and_not_before() {
        let check = |queued_ms, total_ms, waits, now_ms, expected| {
            let budget = BudgetRequest { queued_ms, total_ms, ..BudgetRequest::default() };
            let got = Ends::of(&budget, 1_000).over(waits, now_ms);
            assert_eq!(
                got, expected,
                "queued {queued_ms:?}, total {total_ms:?}, waits {waits}, now {now_ms}"
            );
        };
        check(None, None, true, i64::MAX, None);
        check(Some(5), None, true, 1_004, None);
        check(Some(5), None, true, 1_005, Some(TimeOut::Queued));
        check(Some(5), None, false, 9_999, None);
        check(None, Some(7), false, 1_006, None);
        check(None, Some(7), false, 1_007, Some(TimeOut::Total));
        check(Some(5), Some(7), true, 1_007, Some(TimeOut::Total));
        check(Some(u64::MAX), Some(u64::MAX), true, i64::MAX - 1, None);
    }

    #[test]
    fn the_first_end_is_the_sooner_one() {
        let ends = |start_by_ms, end_by_ms| Ends { start_by_ms, end_by_ms }.first_ms();
        assert_eq!(ends(None, None), None);
        assert_eq!(ends(Some(3), None), Some(3));
        assert_eq!(ends(Some(3), Some(2)), Some(2));
    }

    #[test]
    fn what_ends_a_task_is_told_by_its_own_name() {
        let told = |total_ms, tree_ms| {
            let budget = BudgetRequest { queued_ms: Some(1), total_ms, tree_ms, ..BudgetRequest::default() };
            assert_eq!(TimeOut::Queued.told(&budget), (TimeOut::Queued, 1));
            assert_eq!(Ends::of(&budget, 1_000).end_by_ms, Some(1_005));
            TimeOut::Total.told(&budget)
        };
        assert_eq!(told(Some(5), None), (TimeOut::Total, 5));
        assert_eq!(told(None, Some(5)), (TimeOut::Tree, 5));
        assert_eq!(told(Some(6), Some(5)), (TimeOut::Tree, 5));
        assert_eq!(told(Some(5), Some(6)), (TimeOut::Total, 5));
    }

    #[test]
    fn a_tree_ends_its_tasks_with_it() {
        let ends = |end_by_ms, tree_end_ms| Ends { start_by_ms: Some(1), end_by_ms }.within(tree_end_ms);
        assert_eq!(ends(Some(5), None).end_by_ms, Some(5));
        assert_eq!(ends(None, Some(5)).end_by_ms, Some(5));
        assert_eq!(ends(Some(6), Some(5)), Ends { start_by_ms: Some(1), end_by_ms: Some(5) });
    }

    #[test]
    fn a_time_out_names_itself() {
        let failure = TimeOut::Queued.failure(250);
        assert_eq!(failure.code, Code::DeadlineExceeded);
        let fact = failure.limit.unwrap();
        assert_eq!((fact.name.as_str(), fact.limit, fact.set_by), ("queued_ms", 250, SetBy::Task));
        assert!(failure.message.contains("did not start in time"), "{}", failure.message);
    }
}
