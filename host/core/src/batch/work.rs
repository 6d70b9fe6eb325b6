//! One batch, from its first run to the end of every item. Says what to run next and what came of it; runs nothing
//! itself.
//!
//! - A run that ends is asked for each item: done, later, or never.
//! - A run that traps or leaves its budget is halved ([`super::halve`]) until what fails stands alone; such an item
//!   becomes a dead letter.
//! - [`BAD_LEAVES_MAX`] items in a row that fail alone, without one run that ends, say that it is the processor that is
//!   broken: then every item of the batch is kept.
//! - A run that failed by a fault of the host is no item's fault: its items wait and are handed over again.

use super::halve::{Halving, Part};
use super::{ItemEnd, ItemOutcome};
use crate::code::{Code, RetryClass};
use crate::limit::BAD_LEAVES_MAX;
use crate::outcome::{Failure, RetryWish};
use crate::retry::{RetryPolicy, wait_ms};

/// What the processor answered in one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// One outcome for every item of the part.
    Answered(Vec<ItemOutcome>),
    /// It did not end by itself.
    Failed(Failure),
}

impl Ran {
    /// Why a run of so many items was not done with all of them, as its first item that it was not done with tells it.
    pub fn failure(&self, items: usize) -> Option<Failure> {
        match self {
            Ran::Answered(outcomes) if outcomes.len() != items => Some(miscounted(outcomes.len(), items)),
            Ran::Answered(outcomes) => outcomes.iter().find_map(|outcome| match outcome {
                ItemOutcome::Done => None,
                ItemOutcome::Reject(reason) | ItemOutcome::Retry { reason, .. } => {
                    Some(Failure::new(Code::PluginFailed, reason.clone()))
                }
            }),
            Ran::Failed(failure) => Some(failure.clone()),
        }
    }
}

fn miscounted(outcomes: usize, items: usize) -> Failure {
    let message = format!("the processor answered {outcomes} outcomes for {items} items");
    Failure::new(Code::PluginFailed, message)
}

/// Items of one processor that failed alone since the last run that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health(u32);

impl Health {
    /// Whether the processor is broken.
    pub fn is_broken(self) -> bool {
        self.0 >= BAD_LEAVES_MAX
    }

    /// How many items failed alone in a row.
    pub fn bad_leaves(self) -> u32 {
        self.0
    }
}

/// A batch that is worked.
#[derive(Debug)]
pub struct Work {
    halving: Halving,
    attempts: Vec<u32>,
    attempts_max: u32,
    ends: Vec<Option<ItemEnd>>,
    health: Health,
    /// The items that failed alone.
    leaves: Vec<usize>,
    /// The failure of the last of them.
    last: Option<Failure>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worked {
    /// An end for each item, in order; `None` for those that wait as before.
    pub ends: Vec<Option<ItemEnd>>,
    /// Runs of the processor.
    pub runs: u32,
    /// How the processor does.
    pub health: Health,
    /// Why it is broken, when it is.
    pub broken: Option<Failure>,
}

impl Work {
    /// A batch whose items were handed over so many times before, each at most `attempts_max` times.
    pub fn new(attempts: Vec<u32>, attempts_max: u32, health: Health) -> Work {
        let ends = vec![None; attempts.len()];
        let halving = Halving::new(attempts.len());
        Work { halving, attempts, attempts_max, ends, health, leaves: Vec::new(), last: None }
    }

    /// What to run next; `None` when there is nothing more to run.
    pub fn next_part(&self) -> Option<&Part> {
        if self.health.is_broken() { None } else { self.halving.next_part() }
    }

    /// Takes what came of the part that was run. `random` is evenly drawn from 0 to 1.
    pub fn ran(&mut self, ran: Ran, now_ms: i64, random: f64) {
        let Some(part) = self.halving.next_part().cloned() else { return };
        match ran {
            Ran::Answered(outcomes) if outcomes.len() == part.len() => {
                self.halving.taken();
                self.health = Health::default();
                for (place, outcome) in (part.start..part.end).zip(outcomes) {
                    self.ends[place] = Some(self.end(place, outcome, now_ms, random));
                }
            }
            Ran::Answered(outcomes) => self.failed(miscounted(outcomes.len(), part.len())),
            Ran::Failed(failure) if is_hosts(failure.code) => {
                self.halving.taken();
                for place in part.start..part.end {
                    self.ends[place] = Some(self.later(place, failure.clone(), now_ms, random));
                }
            }
            Ran::Failed(failure) => self.failed(failure),
        }
    }

    fn failed(&mut self, failure: Failure) {
        let Some(leaf) = self.halving.failed() else { return };
        self.health.0 += 1;
        self.leaves.push(leaf);
        self.last = Some(failure.clone());
        self.ends[leaf] = Some(ItemEnd::Dead(failure));
    }

    fn end(&self, place: usize, outcome: ItemOutcome, now_ms: i64, random: f64) -> ItemEnd {
        match outcome {
            ItemOutcome::Done => ItemEnd::Done,
            ItemOutcome::Reject(reason) => ItemEnd::Dead(Failure::new(Code::PluginFailed, reason)),
            ItemOutcome::Retry { after_ms, reason } => {
                let mut failure = Failure::new(Code::PluginFailed, reason);
                failure.retry = RetryWish::After(after_ms);
                self.later(place, failure, now_ms, random)
            }
        }
    }

    /// Waits for another time, unless this was the last one.
    fn later(&self, place: usize, failure: Failure, now_ms: i64, random: f64) -> ItemEnd {
        let attempt = self.attempts[place].saturating_add(1);
        if attempt >= self.attempts_max {
            return ItemEnd::Dead(failure);
        }
        let wait_ms = wait_ms(&RetryPolicy::default(), attempt, failure.retry, random);
        ItemEnd::Retry { due_ms: now_ms.saturating_add_unsigned(wait_ms) }
    }

    /// What became of the batch. What was not run waits as before; when the processor is broken, everything does that
    /// it did not answer for.
    pub fn finish(mut self) -> Worked {
        let broken = self.last.filter(|_| self.health.is_broken());
        if broken.is_some() {
            for &leaf in &self.leaves {
                self.ends[leaf] = None;
            }
        }
        Worked { ends: self.ends, runs: self.halving.runs(), health: self.health, broken }
    }
}

/// Whether a failure is the host's fault, so that halving would find nothing.
fn is_hosts(code: Code) -> bool {
    code.retry_class() == RetryClass::Retryable
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn trap() -> Ran {
        Ran::Failed(Failure::new(Code::Trap, "unreachable"))
    }

    fn done(count: usize) -> Ran {
        Ran::Answered(vec![ItemOutcome::Done; count])
    }

    /// Works a batch whose processor traps on some places.
    fn work(items: usize, poison: &[usize], health: Health) -> Worked {
        let mut work = Work::new(vec![0; items], 5, health);
        while let Some(part) = work.next_part().cloned() {
            let bad = poison.iter().any(|place| (part.start..part.end).contains(place));
            work.ran(if bad { trap() } else { done(part.len()) }, NOW, 1.0);
        }
        work.finish()
    }

    fn count(worked: &Worked, of: fn(&Option<ItemEnd>) -> bool) -> usize {
        worked.ends.iter().filter(|end| of(end)).count()
    }

    fn dead(worked: &Worked) -> usize {
        count(worked, |end| matches!(end, Some(ItemEnd::Dead(_))))
    }

    fn is_done(end: &Option<ItemEnd>) -> bool {
        *end == Some(ItemEnd::Done)
    }

    #[test]
    fn one_bad_item_stops_none_of_the_others() {
        let worked = work(1_000, &[123], Health::default());
        assert_eq!((count(&worked, is_done), dead(&worked)), (999, 1));
        assert!(worked.runs <= 21, "{} runs", worked.runs);
        assert_eq!(worked.broken, None);
        let poison: Vec<usize> = (0..10).map(|n| 3 + n * 99).collect();
        let worked = work(1_000, &poison, Health::default());
        assert_eq!((count(&worked, is_done), dead(&worked)), (990, 10));
        assert!(worked.runs <= 210, "{} runs", worked.runs);
    }

    #[test]
    fn twenty_bad_leaves_without_one_success_are_a_broken_processor_that_keeps_its_items() {
        let all: Vec<usize> = (0..1_000).collect();
        let worked = work(1_000, &all, Health::default());
        assert_eq!(worked.ends, vec![None; 1_000]);
        assert_eq!(worked.broken.map(|failure| failure.code), Some(Code::Trap));
        assert_eq!(worked.health.bad_leaves(), BAD_LEAVES_MAX);
        // One above and at the limit, over batches of one.
        let mut health = Health::default();
        for _ in 1..BAD_LEAVES_MAX {
            let worked = work(1, &[0], health);
            assert_eq!((dead(&worked), worked.broken), (1, None));
            health = worked.health;
        }
        let worked = work(1, &[0], health);
        assert_eq!(dead(&worked), 0);
        assert!(worked.broken.is_some());
    }

    #[test]
    fn one_success_between_bad_leaves_says_that_the_processor_works() {
        let poison: Vec<usize> = (0..60).filter(|place| place % 10 != 9).collect();
        let worked = work(60, &poison, Health::default());
        assert_eq!((count(&worked, is_done), dead(&worked)), (6, 54));
        assert_eq!(worked.broken, None);
    }

    #[test]
    fn what_a_broken_processor_answered_before_stays() {
        let mut work = Work::new(vec![0; 64], 5, Health::default());
        while let Some(part) = work.next_part().cloned() {
            // The first item alone is answered, and the second is rejected; everything behind them traps.
            let ran = match (part.start, part.len()) {
                (0, 1) => done(1),
                (1, 1) => Ran::Answered(vec![ItemOutcome::Reject("no".to_owned())]),
                _ => trap(),
            };
            work.ran(ran, NOW, 1.0);
        }
        let worked = work.finish();
        assert!(worked.broken.is_some());
        assert_eq!((count(&worked, is_done), dead(&worked)), (1, 1));
    }

    #[test]
    fn items_are_tried_again_later_and_not_for_ever() {
        let later = |after_ms| ItemOutcome::Retry { after_ms, reason: "busy".to_owned() };
        let mut work = Work::new(vec![0, 2, 3, 4, 0], 5, Health::default());
        let never = ItemOutcome::Reject("odd".to_owned());
        work.ran(
            Ran::Answered(vec![later(None), later(Some(60_000)), later(None), later(None), never]),
            NOW,
            1.0,
        );
        let worked = work.finish();
        let due = |wait: i64| Some(ItemEnd::Retry { due_ms: NOW + wait });
        assert_eq!(worked.ends[..3], [due(1_000), due(60_000), due(8_000)]);
        for (place, message) in [(3, "busy"), (4, "odd")] {
            let Some(ItemEnd::Dead(failure)) = &worked.ends[place] else {
                panic!("{:?}", worked.ends[place])
            };
            assert_eq!((failure.code, failure.message.as_str()), (Code::PluginFailed, message));
        }
    }

    #[test]
    fn a_fault_of_the_host_is_no_items_fault() {
        let mut work = Work::new(vec![0, 4], 5, Health::default());
        work.ran(Ran::Failed(Failure::new(Code::Internal, "no room")), NOW, 1.0);
        let worked = work.finish();
        assert_eq!((worked.runs, worked.health), (1, Health::default()));
        assert_eq!(worked.ends[0], Some(ItemEnd::Retry { due_ms: NOW + 1_000 }));
        assert!(matches!(&worked.ends[1], Some(ItemEnd::Dead(failure)) if failure.code == Code::Internal));
    }

    #[test]
    fn an_answer_of_another_length_is_a_failure_of_the_part() {
        let mut work = Work::new(vec![0; 2], 5, Health::default());
        work.ran(done(1), NOW, 1.0);
        work.ran(done(1), NOW, 1.0);
        work.ran(done(0), NOW, 1.0);
        let worked = work.finish();
        assert_eq!(worked.ends[0], Some(ItemEnd::Done));
        let Some(ItemEnd::Dead(failure)) = &worked.ends[1] else { panic!("{:?}", worked.ends[1]) };
        assert_eq!(failure.message, "the processor answered 0 outcomes for 1 items");
    }

    #[test]
    fn a_run_tells_why_it_was_not_done_with_every_item() {
        let later = ItemOutcome::Retry { after_ms: None, reason: "busy".to_owned() };
        let never = ItemOutcome::Reject("odd".to_owned());
        let check = |ran: &Ran, items| ran.failure(items).map(|failure| (failure.code, failure.message));
        let told = |code, text: &str| Some((code, text.to_owned()));
        assert_eq!(check(&done(3), 3), None);
        let ran = Ran::Answered(vec![ItemOutcome::Done, later, never.clone()]);
        assert_eq!(check(&ran, 3), told(Code::PluginFailed, "busy"));
        assert_eq!(check(&Ran::Answered(vec![never]), 1), told(Code::PluginFailed, "odd"));
        let miscounted = told(Code::PluginFailed, "the processor answered 1 outcomes for 2 items");
        assert_eq!(check(&done(1), 2), miscounted);
        assert_eq!(check(&trap(), 1), told(Code::Trap, "unreachable"));
    }

    #[test]
    fn what_was_not_run_waits_as_before() {
        let mut work = Work::new(vec![0; 4], 5, Health::default());
        work.ran(trap(), NOW, 1.0);
        work.ran(done(2), NOW, 1.0);
        let worked = work.finish();
        assert_eq!(worked.ends, [Some(ItemEnd::Done), Some(ItemEnd::Done), None, None]);
    }
}
