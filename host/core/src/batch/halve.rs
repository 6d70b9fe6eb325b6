//! How a batch is halved around the items that its processor cannot take.
//!
//! A part that fails is run again in two halves until what fails stands alone: a *leaf*. One such item among `n` costs at
//! most `2 * ceil(log2 n) + 1` runs, `k` of them at most `k` times that.

use crate::id::BatchId;

/// A part of a batch: the places of its items from `start` to `end`, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its first item.
    pub start: usize,
    /// Behind its last item.
    pub end: usize,
    /// A `0` for every first half, a `1` for every second; empty for the whole batch.
    path: String,
}

impl Part {
    /// How many items it has.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The id that the processor is told: the batch's own, or one that follows from it, so that the same part of the
    /// same batch has the same id whenever it is run.
    pub fn id(&self, batch: BatchId) -> String {
        if self.path.is_empty() { batch.to_string() } else { format!("{batch}-{}", self.path) }
    }
}

/// The parts of a batch that are still to be run, the next one last.
#[derive(Clone, Debug)]
pub struct Halving {
    open: Vec<Part>,
    runs: u32,
}

impl Halving {
    /// A batch of so many items.
    pub fn new(items: usize) -> Halving {
        let whole = Part { start: 0, end: items, path: String::new() };
        Halving { open: if items == 0 { Vec::new() } else { vec![whole] }, runs: 0 }
    }

    /// The next part to run; in the order of the items.
    pub fn next_part(&self) -> Option<&Part> {
        self.open.last()
    }

    /// The part that was run is over and done with.
    pub fn taken(&mut self) -> Option<Part> {
        self.runs += 1;
        self.open.pop()
    }

    /// The part that was run failed: it is run again in halves, or its place is returned when it was a leaf.
    pub fn failed(&mut self) -> Option<usize> {
        let part = self.taken()?;
        self.halve(&part)
    }

    /// A part that was over and done with failed after all. The same, without a run.
    pub fn halve(&mut self, part: &Part) -> Option<usize> {
        if part.len() == 1 {
            return Some(part.start);
        }
        let middle = part.start + part.len() / 2;
        let half = |start, end, letter| Part { start, end, path: format!("{}{letter}", part.path) };
        self.open.push(half(middle, part.end, '1'));
        self.open.push(half(part.start, middle, '0'));
        None
    }

    /// Runs so far.
    pub fn runs(&self) -> u32 {
        self.runs
    }
}

/// The most runs that `poison` items among `items` cost.
pub fn runs_max(items: usize, poison: usize) -> u32 {
    let levels = items.max(1).next_power_of_two().trailing_zeros();
    (2 * levels + 1) * u32::try_from(poison.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Runs a batch; the leaves, and how many runs it took.
    fn run(items: usize, poison: &BTreeSet<usize>) -> (BTreeSet<usize>, u32) {
        let mut halving = Halving::new(items);
        let (mut leaves, mut done, mut ids) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        while let Some(part) = halving.next_part().cloned() {
            assert!(ids.insert(part.id(BatchId(1))), "{part:?} has the id of another");
            if poison.range(part.start..part.end).next().is_some() {
                leaves.extend(halving.failed());
            } else {
                halving.taken();
                for place in part.start..part.end {
                    assert!(done.insert(place), "{place} was handed over twice with success");
                }
            }
        }
        assert_eq!(done.len() + leaves.len(), items);
        (leaves, halving.runs())
    }

    #[test]
    fn one_item_among_a_thousand_costs_at_most_21_runs_and_ten_at_most_210() {
        assert_eq!((runs_max(1_000, 1), runs_max(1_000, 10)), (21, 210));
        for place in [0, 1, 499, 500, 777, 999] {
            let poison = BTreeSet::from([place]);
            let (leaves, runs) = run(1_000, &poison);
            assert_eq!(leaves, poison);
            assert!(runs <= 21, "{runs} runs for {place}");
        }
        let poison: BTreeSet<usize> = (0..10).map(|n| n * 100 + 7).collect();
        let (leaves, runs) = run(1_000, &poison);
        assert_eq!(leaves, poison);
        assert!(runs <= 210, "{runs} runs");
    }

    #[test]
    fn ids_of_parts_follow_from_the_batch() {
        let mut halving = Halving::new(3);
        let id = |halving: &Halving| halving.next_part().map(|part| part.id(BatchId(1)));
        let whole = BatchId(1).to_string();
        assert_eq!(id(&halving), Some(whole.clone()));
        assert_eq!(halving.failed(), None);
        assert_eq!(id(&halving), Some(format!("{whole}-0")));
        assert_eq!(halving.failed(), Some(0));
        assert_eq!(halving.failed(), None);
        assert_eq!(id(&halving), Some(format!("{whole}-10")));
        halving.taken();
        halving.taken();
        assert_eq!((halving.next_part(), halving.runs()), (None, 5));
        assert_eq!(Halving::new(0).next_part(), None);
    }

    proptest! {
        #[test]
        fn whatever_is_poison_is_found_within_the_bound(
            items in 1usize..300,
            places in prop::collection::btree_set(0usize..300, 0..12),
        ) {
            let poison: BTreeSet<usize> = places.into_iter().filter(|place| *place < items).collect();
            let (leaves, runs) = run(items, &poison);
            prop_assert!(runs <= runs_max(items, poison.len()), "{} runs", runs);
            prop_assert_eq!(leaves, poison);
        }
    }
}
