//! Which segments a batch takes: they are read, put in order with the items that are rows, and cut where the batch ends.

use keiko_core::batch::Item;
use keiko_core::batch::machine::Form;

use super::{ITEMS_MAX, READ_MAX, Segment};
use crate::gather::{Candidate, wanted};

/// How items of a group are stored behind a place.
#[derive(Clone, Copy)]
pub(crate) struct Has {
    pub(crate) rows: bool,
    pub(crate) segments: bool,
}

impl Has {
    /// Either way, as far as anybody knows.
    pub(crate) const BOTH: Has = Has { rows: true, segments: true };
}

/// What a walk through a group has found.
pub(crate) struct Walked<R> {
    /// Items as their store reads them, of which the candidates that are rows were made.
    pub(crate) rows: Vec<R>,
    pub(crate) segments: Vec<Segment>,
    /// What a batch may take, in order.
    pub(crate) candidates: Vec<Candidate>,
    /// Whether that is more than a batch takes.
    pub(crate) is_full: bool,
    /// Behind which place it began.
    pub(crate) began: Option<i64>,
}

/// Segments of a group that are read for a batch: a few at a time, until there are as many items as it may take.
pub(crate) struct Reading<'a> {
    form: &'a Form,
    pub(crate) segments: Vec<Segment>,
    items: i64,
    bytes: u64,
    step: i64,
    /// There are no more.
    is_over: bool,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(form: &'a Form) -> Reading<'a> {
        let step = (wanted(form) / ITEMS_MAX as i64).saturating_add(1).min(READ_MAX);
        Reading { form, segments: Vec::new(), items: 0, bytes: 0, step, is_over: false }
    }

    /// How many to read next; `None` when there are enough, or no more.
    pub(crate) fn next(&self) -> Option<i64> {
        (!self.is_over && !self.is_full()).then_some(self.step)
    }

    /// The place of the last item that was read.
    pub(crate) fn last_place(&self) -> Option<i64> {
        self.segments.last().map(|segment| segment.items.last().map_or(segment.id, |(id, _)| *id))
    }

    /// Takes what was read. Where segments are small there are more of them the next time.
    pub(crate) fn add(&mut self, read: Vec<Segment>) {
        self.is_over = (read.len() as i64) < self.step;
        self.step = self.step.saturating_mul(2).min(READ_MAX);
        for segment in read {
            let sum = segment.sum(&self.form.group.key);
            self.items = self.items.saturating_add(sum.count);
            self.bytes = self.bytes.saturating_add_signed(sum.size);
            self.segments.push(segment);
        }
    }

    fn is_full(&self) -> bool {
        self.items >= wanted(self.form) || self.bytes > self.form.bytes_max
    }

    /// What a walk comes to that began behind `began`, with the rows it has read. `None` when that is less than a batch takes
    /// and something may stand before it: the walk begins anew, at the first item.
    pub(crate) fn end<R>(
        self,
        rows: Vec<R>,
        of_rows: Vec<Candidate>,
        began: Option<i64>,
    ) -> Option<Walked<R>> {
        let (candidates, is_full) = self.candidates(of_rows);
        let is_whole = began.is_none() || is_full;
        is_whole.then_some(Walked { rows, segments: self.segments, candidates, is_full, began })
    }

    /// The candidates among those and among rows, in order; and whether a batch cannot take all of them.
    fn candidates(&self, mut rows: Vec<Candidate>) -> (Vec<Candidate>, bool) {
        // What stands behind the last one that was read has others before it that were not.
        if let Some(last) = self.last_place().filter(|_| !self.is_over) {
            rows.retain(|row| row.place <= last);
        }
        let key = self.form.group.key.as_str();
        let of_segments = self.segments.iter().flat_map(|segment| segment.candidates(key));
        let mut all = merge(rows, of_segments.collect(), |candidate| candidate.place);
        let wanted = usize::try_from(wanted(self.form)).unwrap_or(usize::MAX);
        let is_full = all.len() >= wanted || self.bytes > self.form.bytes_max;
        all.truncate(wanted);
        (all, is_full)
    }
}

/// Two lists in order as one: of equal places the first list's comes first.
fn merge<T>(first: Vec<T>, second: Vec<T>, place: impl Fn(&T) -> i64) -> Vec<T> {
    if first.is_empty() {
        return second;
    }
    if second.is_empty() {
        return first;
    }
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let mut second = second.into_iter().peekable();
    for one in first {
        while let Some(other) = second.next_if(|other| place(other) < place(&one)) {
            merged.push(other);
        }
        merged.push(one);
    }
    merged.extend(second);
    merged
}

/// The items of a batch in order, of rows with their places in order and of segments.
pub(crate) fn items(rows: Vec<(i64, Item)>, segments: Vec<Segment>) -> Vec<Item> {
    let mut of_segments: Vec<(i64, Item)> = segments.into_iter().flat_map(Segment::into_items).collect();
    // A batch that is taken over has them in no order.
    if !of_segments.is_sorted_by_key(|(place, _)| *place) {
        of_segments.sort_unstable_by_key(|(place, _)| *place);
    }
    merge(rows, of_segments, |(place, _)| *place).into_iter().map(|(_, item)| item).collect()
}

/// What a batch takes of segments that were read.
pub(crate) struct Taken {
    pub(crate) segments: Vec<Segment>,
    /// What is left of the last of them, which is a segment of its own from now on.
    pub(crate) rest: Option<Segment>,
}

/// Takes the first `count` items.
pub(crate) fn take(mut segments: Vec<Segment>, count: usize) -> Taken {
    let (mut open, mut whole) = (count, 0);
    for segment in &segments {
        if open == 0 {
            break;
        }
        open = open.saturating_sub(segment.items.len());
        whole += 1;
    }
    segments.truncate(whole);
    let items: usize = segments.iter().map(|segment| segment.items.len()).sum();
    let rest = segments.last_mut().filter(|_| items > count).and_then(|last| {
        let left = last.items.split_off(last.items.len() - (items - count));
        let id = left.first()?.0;
        Some(Segment { id, created_ms: last.created_ms, items: left })
    });
    Taken { segments, rest }
}

#[cfg(test)]
mod tests {
    use keiko_core::batch::flush::Why;
    use keiko_core::batch::{Group, payload_of};
    use keiko_core::id::{ItemId, ProcessorId, TenantId};

    use super::super::of_sizes as segment;
    use super::*;

    const NOW: i64 = 10_000;

    fn form(items_max: u64, bytes_max: u64) -> Form {
        let group = Group { tenant: TenantId(1), processor: ProcessorId(7), key: String::new() };
        Form { group, why: Why::Full, items_max, bytes_max, age_ms: 1_000, ordered: false }
    }

    fn row(id: i64, place: i64) -> Candidate {
        let (created_ms, due_ms) = (NOW, NOW);
        Candidate { id, place, created_ms, due_ms, attempts: 1, size: 129, in_segment: false }
    }

    fn ids(candidates: &[Candidate]) -> Vec<i64> {
        candidates.iter().map(|candidate| candidate.id).collect()
    }

    #[test]
    fn segments_are_read_until_a_batch_is_full() {
        let form = form(4, 1 << 20);
        let mut reading = Reading::new(&form);
        assert_eq!((reading.next(), reading.last_place()), (Some(1), None));
        reading.add(vec![segment(&[(10, 1), (11, 1)])]);
        assert_eq!((reading.next(), reading.last_place()), (Some(2), Some(11)));
        let (candidates, is_full) = reading.candidates(vec![row(3, 3), row(1, 10), row(12, 12)]);
        assert_eq!((ids(&candidates), is_full), (vec![3, 1, 10, 11], false), "12 may have others before it");
        reading.add(vec![segment(&[(20, 1), (21, 1)])]);
        assert_eq!(reading.next(), None, "there are no more");
        let (candidates, is_full) = reading.candidates(vec![row(12, 12)]);
        assert_eq!((ids(&candidates), is_full), (vec![10, 11, 12, 20, 21], true));
        let (candidates, _) = reading.candidates(vec![row(30, 30), row(31, 31)]);
        assert_eq!(ids(&candidates), [10, 11, 20, 21, 30], "one more than a batch takes");
    }

    #[test]
    fn segments_are_read_until_a_batch_has_its_bytes() {
        let form = form(10_000, 600);
        let mut reading = Reading::new(&form);
        assert_eq!(reading.next(), Some(READ_MAX));
        reading.add((0..READ_MAX).map(|at| segment(&[(10 * at, 100), (10 * at + 1, 100)])).collect());
        assert_eq!(reading.next(), None);
        assert!(reading.candidates(Vec::new()).1, "a batch cannot take all");
    }

    #[test]
    fn a_batch_takes_whole_segments_and_cuts_the_last() {
        let read = || vec![segment(&[(1, 1), (2, 1), (3, 1)]), segment(&[(5, 1), (7, 1), (9, 1)])];
        let check = |count, whole: &[&[i64]], rest: Option<&[i64]>| {
            let Taken { segments, rest: left } = take(read(), count);
            let of = |segment: &Segment| segment.items.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(segments.iter().map(of).collect::<Vec<_>>(), whole, "{count}");
            assert_eq!(left.as_ref().map(of).as_deref(), rest, "{count}");
            assert!(left.is_none_or(|left| left.id == left.items[0].0));
        };
        check(0, &[], None);
        check(1, &[&[1]], Some(&[2, 3]));
        check(3, &[&[1, 2, 3]], None);
        check(5, &[&[1, 2, 3], &[5, 7]], Some(&[9]));
        check(6, &[&[1, 2, 3], &[5, 7, 9]], None);
    }

    #[test]
    fn items_of_a_batch_are_in_order_wherever_they_are_stored() {
        let item = |id: i64| Item { id: ItemId(id), payload: payload_of(1), created_ms: NOW, attempts: 1 };
        let rows = vec![(2, item(2)), (6, item(4)), (8, item(8))];
        let all = items(rows, vec![segment(&[(6, 1), (7, 1)]), segment(&[(1, 1), (3, 1)])]);
        assert_eq!(all.iter().map(|item| item.id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 7, 8]);
    }
}
