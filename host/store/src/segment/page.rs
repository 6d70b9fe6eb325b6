//! Lists of items of which some are in segments.

use keiko_core::batch::ItemView;

use super::{ITEMS_MAX, READ_MAX, SPAN_MAX, Segment};

/// A page of a list of items, of which some are in segments. Those are read first: what becomes a row in between is found twice
/// then, and never missed.
pub(crate) struct Page {
    after: i64,
    limit: usize,
    /// The first items behind `after`, in order.
    views: Vec<ItemView>,
    /// The first id of the segment that was read last.
    cursor: i64,
    is_over: bool,
}

impl Page {
    /// A page of the first `limit` items behind an id.
    pub(crate) fn new(after: i64, limit: u32) -> Page {
        // A segment that has one of these items begins no earlier.
        let cursor = after.saturating_sub(SPAN_MAX);
        Page { after, limit: limit as usize, views: Vec::new(), cursor, is_over: false }
    }

    /// Behind which segment to read how many more; `None` when all are there that belong on the page.
    pub(crate) fn next(&self) -> Option<(i64, i64)> {
        let last = self.views.get(self.limit.checked_sub(1)?).map_or(i64::MAX, |view| view.id.0);
        let step = (self.limit / ITEMS_MAX) as i64 + 2;
        (!self.is_over && self.cursor < last).then_some((self.cursor, step.min(READ_MAX)))
    }

    /// Takes segments with their keys that were read, as many as were asked for unless there are no more.
    pub(crate) fn add(&mut self, read: Vec<(String, Segment)>, asked: i64) {
        self.is_over = (read.len() as i64) < asked;
        let mut views = std::mem::take(&mut self.views);
        for (key, segment) in read {
            self.cursor = segment.id;
            views.extend(segment.into_views(&key).filter(|view| view.id.0 > self.after));
        }
        self.views = self.first(views);
    }

    /// The page, with those of its items that are rows.
    pub(crate) fn finish(mut self, rows: Vec<ItemView>) -> Vec<ItemView> {
        let mut views = std::mem::take(&mut self.views);
        views.extend(rows);
        self.first(views)
    }

    fn first(&self, mut views: Vec<ItemView>) -> Vec<ItemView> {
        views.sort_by_key(|view| view.id);
        views.dedup_by_key(|view| view.id);
        views.truncate(self.limit);
        views
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::batch::payload_of;
    use keiko_core::id::ItemId;

    use super::super::of_sizes as segment;
    use super::*;

    const NOW: i64 = 10_000;

    fn keyed(items: &[i64]) -> (String, Segment) {
        let items: Vec<(i64, usize)> = items.iter().map(|id| (*id, 1)).collect();
        ("k".to_owned(), segment(&items))
    }

    fn view(id: i64) -> ItemView {
        let (id, key, payload) = (ItemId(id), String::new(), payload_of(1));
        ItemView { id, key, payload, created_ms: NOW, attempts: 1 }
    }

    #[test]
    fn a_page_has_the_first_items_wherever_they_are_stored() {
        let mut page = Page::new(20_004, 3);
        assert_eq!(page.next(), Some((10_004, 2)), "an item's segment begins no further before it");
        page.add(vec![keyed(&[20_000, 20_006]), keyed(&[20_001, 20_003, 20_010])], 2);
        assert_eq!(page.next(), Some((20_001, 2)));
        page.add(vec![keyed(&[20_007, 20_008]), keyed(&[20_009, 20_011])], 2);
        assert_eq!(page.next(), None, "those behind begin behind the last of the page");
        let page = page.finish(vec![view(20_005), view(20_007), view(20_012)]);
        let seen: Vec<_> = page.iter().map(|view| (view.id.0, view.attempts)).collect();
        assert_eq!(seen, [(20_005, 1), (20_006, 0), (20_007, 0)]);
        let mut all = Page::new(i64::MIN, 1_000);
        let (_, asked) = all.next().unwrap();
        all.add(vec![keyed(&[1, 2])], asked);
        assert_eq!((all.next(), all.finish(Vec::new()).len()), (None, 2));
    }
}
