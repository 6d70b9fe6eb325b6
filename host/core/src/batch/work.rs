//! One batch, from its first run to the end of every item. Says what to run next and what came of it; runs nothing
//! itself.
//!
//! - A run that ends is asked for each item: done, later, or never.
//! - A run that traps or leaves its budget is halved ([`super::halve`]) until what fails stands alone; such an item
//!   becomes a dead letter.
//! - [`BAD_LEAVES_MAX`] items in a row that fail alone, without one run that ends, say that it is the processor that is
//!   broken: then every item of the batch is kept. They are counted over all batches of the processor on this host
//!   together ([`Health`]); each host counts for itself.
//! - A run that failed by a fault of the host is no item's fault: its items wait and are handed over again.
//! - A run whose effects the database refuses is halved as one that fails, within the same number of runs: what is
//!   refused alone becomes a dead letter. It says nothing of the processor, which did end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// Items of one processor that failed alone since the last run that ended: the one count of all its batches on this host,
/// which share it. It stays where it says that the processor is broken.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicU32>);

impl Health {
    /// Whether the processor is broken.
    pub fn is_broken(&self) -> bool {
        self.bad_leaves() >= BAD_LEAVES_MAX
    }

    /// How many items failed alone in a row.
    pub fn bad_leaves(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Counts an item that failed alone; whether it is the one that says that the processor is broken.
    fn bad_leaf(&self) -> bool {
        self.0.fetch_add(1, Ordering::AcqRel) + 1 == BAD_LEAVES_MAX
    }

    /// Notes a run that ended. What is broken by then stays so: whoever found that out tells of it.
    fn ran(&self) {
        let zero = |bad| (bad < BAD_LEAVES_MAX).then_some(0);
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, zero);
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
    /// The failure of the one of them that said that the processor is broken.
    broken: Option<Failure>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worked {
    /// An end for each item, in order; `None` for those that wait as before.
    pub ends: Vec<Option<ItemEnd>>,
    /// Runs of the processor.
    pub runs: u32,
    /// Why the processor is broken, when it is this batch that has found that out.
    pub broken: Option<Failure>,
}

impl Work {
    /// A batch whose items were handed over so many times before, each at most `attempts_max` times; `health` is its
    /// processor's.
    pub fn new(attempts: Vec<u32>, attempts_max: u32, health: Health) -> Work {
        let ends = vec![None; attempts.len()];
        let halving = Halving::new(attempts.len());
        Work { halving, attempts, attempts_max, ends, health, leaves: Vec::new(), broken: None }
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
                self.health.ran();
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

    /// Takes back what a part was answered, because the database refuses what that run asked for: it is run again in
    /// halves, or dead when it is one item.
    pub fn refused(&mut self, part: &Part) {
        self.ends[part.start..part.end].fill(None);
        if let Some(leaf) = self.halving.halve(part) {
            let failure = Failure::new(Code::Internal, "the database refused what the item asked for");
            self.ends[leaf] = Some(ItemEnd::Dead(failure));
        }
    }

    fn failed(&mut self, failure: Failure) {
        let Some(leaf) = self.halving.failed() else { return };
        if self.health.bad_leaf() {
            self.broken = Some(failure.clone());
        }
        self.leaves.push(leaf);
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

    /// What became of the batch so far. What was not run waits as before; when the processor is broken, everything does that
    /// it did not answer for.
    pub fn worked(&self) -> Worked {
        let mut ends = self.ends.clone();
        if self.health.is_broken() {
            for &leaf in &self.leaves {
                ends[leaf] = None;
            }
        }
        Worked { ends, runs: self.halving.runs(), broken: self.broken.clone() }
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
        work.worked()
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
        let health = Health::default();
        let worked = work(1_000, &all, health.clone());
        assert_eq!(worked.ends, vec![None; 1_000]);
        assert_eq!(worked.broken.map(|failure| failure.code), Some(Code::Trap));
        assert_eq!(health.bad_leaves(), BAD_LEAVES_MAX);
        // One below and at the limit, over batches of one.
        let health = Health::default();
        for _ in 1..BAD_LEAVES_MAX {
            let worked = work(1, &[0], health.clone());
            assert_eq!((dead(&worked), worked.broken), (1, None));
        }
        let worked = work(1, &[0], health.clone());
        assert_eq!(dead(&worked), 0);
        assert!(worked.broken.is_some());
        let worked = work(1, &[], health);
        assert_eq!((worked.ends, worked.runs, worked.broken), (vec![None], 0, None), "nothing more is run");
    }

    #[test]
    fn bad_leaves_of_batches_that_run_at_once_add_up() {
        let check = |batches: usize, broken: usize| {
            let health = Health::default();
            let mut works: Vec<Work> = (0..batches).map(|_| Work::new(vec![0], 5, health.clone())).collect();
            works.iter_mut().for_each(|work| work.ran(trap(), NOW, 1.0));
            let worked: Vec<Worked> = works.iter().map(Work::worked).collect();
            let told = worked.iter().filter(|worked| worked.broken.is_some()).count();
            let dead: usize = worked.iter().map(dead).sum();
            assert_eq!((told, dead), (broken, if broken > 0 { 0 } else { batches }), "{batches} at once");
        };
        check(BAD_LEAVES_MAX as usize - 1, 0);
        check(BAD_LEAVES_MAX as usize, 1);
        // Of more than it takes, one tells.
        check(BAD_LEAVES_MAX as usize + 1, 1);
    }

    #[test]
    fn a_run_that_ends_counts_for_every_batch_of_the_processor() {
        let health = Health::default();
        let mut bad = Work::new(vec![0; 2], 5, health.clone());
        bad.ran(trap(), NOW, 1.0);
        bad.ran(trap(), NOW, 1.0);
        assert_eq!(health.bad_leaves(), 1);
        assert_eq!(dead(&work(3, &[], health.clone())), 0);
        assert_eq!(health.bad_leaves(), 0);
        bad.ran(trap(), NOW, 1.0);
        assert_eq!((health.bad_leaves(), dead(&bad.worked())), (1, 2));
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
        let worked = work.worked();
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
        let worked = work.worked();
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
        let health = Health::default();
        let mut work = Work::new(vec![0, 4], 5, health.clone());
        work.ran(Ran::Failed(Failure::new(Code::Internal, "no room")), NOW, 1.0);
        let worked = work.worked();
        assert_eq!((worked.runs, health.bad_leaves()), (1, 0));
        assert_eq!(worked.ends[0], Some(ItemEnd::Retry { due_ms: NOW + 1_000 }));
        assert!(matches!(&worked.ends[1], Some(ItemEnd::Dead(failure)) if failure.code == Code::Internal));
    }

    #[test]
    fn an_answer_of_another_length_is_a_failure_of_the_part() {
        let mut work = Work::new(vec![0; 2], 5, Health::default());
        work.ran(done(1), NOW, 1.0);
        work.ran(done(1), NOW, 1.0);
        work.ran(done(0), NOW, 1.0);
        let worked = work.worked();
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

    /// Works a batch of which what some places ask for is refused, and some trap.
    fn sift(items: usize, refused: &[usize], poison: &[usize]) -> Worked {
        let mut work = Work::new(vec![0; items], 5, Health::default());
        let has = |places: &[usize], part: &Part| places.iter().any(|at| (part.start..part.end).contains(at));
        let mut asked = Vec::new();
        let run = |work: &mut Work| {
            let part = work.next_part().cloned()?;
            let ran = if has(poison, &part) { trap() } else { done(part.len()) };
            let answered = matches!(ran, Ran::Answered(_));
            work.ran(ran, NOW, 1.0);
            Some((part, answered))
        };
        while let Some((part, answered)) = run(&mut work) {
            asked.extend(answered.then_some(part));
        }
        // Written as a whole it was refused: every part is looked at.
        asked.reverse();
        while let Some(part) = asked.pop() {
            if has(refused, &part) {
                work.refused(&part);
            }
            while let Some((part, answered)) = run(&mut work) {
                if answered && has(refused, &part) {
                    work.refused(&part);
                }
            }
        }
        work.worked()
    }

    #[test]
    fn what_is_refused_is_found_like_poison_within_the_same_runs() {
        let check = |refused: &[usize], poison: &[usize]| {
            let worked = sift(1_000, refused, poison);
            let bad = refused.len() + poison.len();
            assert_eq!((count(&worked, is_done), dead(&worked)), (1_000 - bad, bad));
            assert!(worked.runs <= 21 * bad as u32, "{} runs for {refused:?} and {poison:?}", worked.runs);
            for place in refused {
                let Some(ItemEnd::Dead(failure)) = &worked.ends[*place] else {
                    panic!("{place} is not dead")
                };
                assert_eq!(failure.message, "the database refused what the item asked for");
            }
            assert_eq!(worked.broken, None);
        };
        check(&[0], &[]);
        check(&[777], &[]);
        check(&[3, 4, 999], &[]);
        check(&[123, 124], &[125, 700]);
    }

    #[test]
    fn what_was_not_run_waits_as_before() {
        let mut work = Work::new(vec![0; 4], 5, Health::default());
        work.ran(trap(), NOW, 1.0);
        work.ran(done(2), NOW, 1.0);
        let worked = work.worked();
        assert_eq!(worked.ends, [Some(ItemEnd::Done), Some(ItemEnd::Done), None, None]);
    }
}
