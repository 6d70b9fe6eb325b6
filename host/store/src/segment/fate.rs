//! What becomes of the segments of batches that end: gone when all items are done, or written as rows.

use std::collections::HashMap;

use keiko_core::batch::{BatchSettlement, ItemEnd};
use keiko_core::id::TenantId;
use keiko_core::task::{Payload, Settled};

use super::{Segment, Sum};
use crate::gather::WaitingChanges;

/// A batch as it was stored when its lease held to the end.
pub(crate) struct Stored {
    pub(crate) ordered: bool,
    /// Items that are rows of their own.
    pub(crate) rows: Vec<i64>,
    pub(crate) segments: Vec<i64>,
}

/// The same with what became of it.
pub(crate) struct Fenced<'a> {
    pub(crate) one: &'a BatchSettlement,
    pub(crate) stored: Stored,
}

/// The batches among settlements whose lease held, by id, each once; and the answers to all settlements.
pub(crate) fn fenced<'a>(
    settlements: &'a [BatchSettlement],
    mut open: HashMap<i64, Stored>,
) -> (Vec<Settled>, Vec<Fenced<'a>>) {
    let mut fenced = Vec::new();
    let answer = |one: &'a BatchSettlement| match open.remove(&one.id.0) {
        Some(stored) => {
            fenced.push(Fenced { one, stored });
            Settled::Stored
        }
        None => Settled::Stale,
    };
    let answers = settlements.iter().map(answer).collect();
    (answers, fenced)
}

/// What becomes of the segments of batches that end.
#[derive(Default)]
pub(crate) struct Fates {
    /// Those whose items are all done with.
    gone: Vec<(TenantId, Sum)>,
    /// Of these it is not known before they are read.
    pub(crate) unclear: Vec<i64>,
    /// Those whose items are all done with and are kept as rows.
    kept: Vec<(TenantId, Sum, Segment)>,
    /// Those whose items become rows of their own, because they end in several ways.
    mixed: Vec<(Sum, Segment)>,
}

/// An item of a segment that is to be written as a row.
pub(crate) struct ItemRow<'a> {
    pub(crate) segment: i64,
    pub(crate) id: i64,
    pub(crate) size: i64,
    pub(crate) payload: &'a Payload,
}

/// Ends of items by id, of each the first: whether it is done.
struct Ends(Vec<(i64, bool)>);

impl Ends {
    fn of(one: &BatchSettlement) -> Ends {
        let mut ends: Vec<(i64, bool)> =
            one.ends.iter().map(|(id, end)| (id.0, matches!(end, ItemEnd::Done))).collect();
        ends.sort_by_key(|(id, _)| *id);
        ends.dedup_by_key(|(id, _)| *id);
        Ends(ends)
    }

    fn within(&self, first: i64, last: i64) -> &[(i64, bool)] {
        let from = self.0.partition_point(|(id, _)| *id < first);
        let to = self.0.partition_point(|(id, _)| *id <= last);
        &self.0[from..to.max(from)]
    }

    /// Whether an item is done; `None` for one without an end.
    fn find(&self, id: i64) -> Option<bool> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok().map(|at| self.0[at].1)
    }
}

impl Fates {
    /// Looks at the sums of segments of batches that end.
    pub(crate) fn of(fenced: &[Fenced<'_>], sums: &HashMap<i64, Sum>) -> Fates {
        let mut fates = Fates::default();
        for Fenced { one, stored } in fenced {
            let ends = Ends::of(one);
            for sum in stored.segments.iter().filter_map(|id| sums.get(id)) {
                let named = ends.within(sum.first, sum.last);
                let is_dense = sum.last - sum.first + 1 == sum.count;
                let all_done = named.len() as i64 == sum.count && named.iter().all(|(_, is_done)| *is_done);
                if is_dense && all_done && !one.keep_rows {
                    fates.gone.push((one.tenant, *sum));
                } else if !named.is_empty() {
                    fates.unclear.push(sum.first);
                }
            }
        }
        fates
    }

    /// Looks into those that were unclear, which are read by now. Items that become rows are their batches' from now on.
    pub(crate) fn decide(&mut self, fenced: &mut [Fenced<'_>], sums: &HashMap<i64, Sum>, read: Vec<Segment>) {
        if read.is_empty() {
            return;
        }
        let mut read: HashMap<i64, Segment> = read.into_iter().map(|segment| (segment.id, segment)).collect();
        for Fenced { one, stored } in fenced {
            let ends = Ends::of(one);
            for id in &stored.segments {
                let (Some(segment), Some(sum)) = (read.remove(id), sums.get(id)) else { continue };
                let find = |(id, _): &(i64, Payload)| ends.find(*id);
                if segment.items.iter().all(|item| find(item) == Some(true)) {
                    match one.keep_rows {
                        true => self.kept.push((one.tenant, *sum, segment)),
                        false => self.gone.push((one.tenant, *sum)),
                    }
                } else if segment.items.iter().any(|item| find(item).is_some()) {
                    stored.rows.extend(segment.items.iter().map(|(id, _)| *id));
                    self.mixed.push((*sum, segment));
                }
            }
        }
    }

    /// Items that are kept as rows.
    pub(crate) fn kept(&self) -> Vec<ItemRow<'_>> {
        self.kept.iter().flat_map(|(_, sum, segment)| segment.rows(sum)).collect()
    }

    /// Items that become rows of their own.
    pub(crate) fn mixed(&self) -> Vec<ItemRow<'_>> {
        self.mixed.iter().flat_map(|(sum, segment)| segment.rows(sum)).collect()
    }

    /// Segments that are no more.
    pub(crate) fn over(&self) -> Vec<i64> {
        let gone = self.gone.iter().map(|(_, sum)| sum.first);
        let kept = self.kept.iter().map(|(_, sum, _)| sum.first);
        gone.chain(kept).chain(self.mixed.iter().map(|(sum, _)| sum.first)).collect()
    }

    /// How what waits changes.
    pub(crate) fn changes(&self) -> WaitingChanges {
        let gone = self.gone.iter().map(|(tenant, sum)| (*tenant, sum));
        let kept = self.kept.iter().map(|(tenant, sum, _)| (*tenant, sum));
        let mut changes = WaitingChanges::default();
        gone.chain(kept).for_each(|(tenant, sum)| changes.add(tenant, -sum.count, -sum.size));
        changes
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::effect::Effects;
    use keiko_core::id::{BatchId, ItemId, Token};

    use super::super::of_sizes;
    use super::*;

    const NOW: i64 = 10_000;

    fn settlement(ends: &[(i64, bool)], keep_rows: bool) -> BatchSettlement {
        let end = |is_done| if is_done { ItemEnd::Done } else { ItemEnd::Retry { due_ms: NOW } };
        BatchSettlement {
            id: BatchId(1),
            tenant: TenantId(1),
            token: Token(1),
            ends: ends.iter().map(|(id, is_done)| (ItemId(*id), end(*is_done))).collect(),
            keep_rows,
            effects: Effects::default(),
            version: None,
        }
    }

    /// What becomes of one segment: what is over, what is read for it, what is kept, what becomes a row.
    fn check_fate(items: &[i64], ends: &[(i64, bool)], keep_rows: bool, expected: [&[i64]; 4]) {
        let segment = of_sizes(&items.iter().map(|id| (*id, 1)).collect::<Vec<_>>());
        let sums = HashMap::from([(segment.id, segment.sum(""))]);
        let settlements = [settlement(ends, keep_rows), settlement(ends, keep_rows)];
        let stored = Stored { ordered: false, rows: Vec::new(), segments: vec![segment.id] };
        let (answers, mut fenced) = fenced(&settlements, HashMap::from([(1, stored)]));
        assert_eq!(answers, [Settled::Stored, Settled::Stale]);
        let mut fates = Fates::of(&fenced, &sums);
        let unclear = fates.unclear.clone();
        let read = if unclear.is_empty() { Vec::new() } else { vec![segment] };
        fates.decide(&mut fenced, &sums, read);
        let ids = |rows: Vec<ItemRow<'_>>| rows.iter().map(|row| row.id).collect::<Vec<_>>();
        let seen = [fates.over(), unclear, ids(fates.kept()), ids(fates.mixed())];
        assert_eq!(seen.each_ref().map(Vec::as_slice), expected, "{items:?} {ends:?}");
        assert_eq!(fenced[0].stored.rows, expected[3]);
        assert!(fates.kept().iter().chain(&fates.mixed()).all(|row| row.size == 129));
        let waits = if expected[0].is_empty() || !expected[3].is_empty() { 0 } else { items.len() as i64 };
        let changes = fates.changes().rows();
        assert_eq!(changes.first().map_or(0, |(_, items, _)| -items), waits);
    }

    #[test]
    fn a_segment_goes_when_all_are_done_and_becomes_rows_when_they_are_not() {
        let done = |ids: &[i64]| ids.iter().map(|id| (*id, true)).collect::<Vec<_>>();
        check_fate(&[5, 6, 7], &done(&[5, 6, 7]), false, [&[5], &[], &[], &[]]);
        check_fate(&[5, 6, 7], &done(&[7, 4, 6, 5, 5, 8]), false, [&[5], &[], &[], &[]]);
        check_fate(&[5, 6, 7], &[], false, [&[], &[], &[], &[]]);
        check_fate(&[5, 6, 7], &done(&[1, 8]), false, [&[], &[], &[], &[]]);
        check_fate(&[5, 6, 7], &done(&[5, 6]), false, [&[5], &[5], &[], &[5, 6, 7]]);
        let again = [(5, true), (6, false), (7, true)];
        check_fate(&[5, 6, 7], &again, false, [&[5], &[5], &[], &[5, 6, 7]]);
        check_fate(&[5, 6, 7], &again, true, [&[5], &[5], &[], &[5, 6, 7]]);
        check_fate(&[5, 6, 7], &done(&[5, 6, 7]), true, [&[5], &[5], &[5, 6, 7], &[]]);
        // With gaps, the numbers between are others'.
        check_fate(&[5, 7, 9], &done(&[5, 7, 9]), false, [&[5], &[5], &[], &[]]);
        check_fate(&[5, 7, 9], &done(&[5, 6, 9]), false, [&[5], &[5], &[], &[5, 7, 9]]);
        check_fate(&[5, 7, 9], &done(&[6, 8]), false, [&[], &[5], &[], &[]]);
        // The first end of an item counts.
        check_fate(&[5, 6], &[(5, true), (6, true), (5, false)], false, [&[5], &[], &[], &[]]);
    }
}
