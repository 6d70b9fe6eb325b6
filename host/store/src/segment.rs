//! Segments: items that were added together, as one row. To write, find and delete a row for every item takes several times as
//! long as the rest of its life.
//!
//! - A segment has items of one group, whose ids are of one row of numbers without a gap and which were added at one time: at most
//!   [`ITEMS_MAX`] of them, [`BYTES_MAX`] bytes, and [`SPAN_MAX`] numbers from the first to the last. So no two segments of a
//!   group reach into each other, and its order is theirs.
//! - None of its items was handed over before, or waits for a time. An item that ends otherwise than by being done becomes a row
//!   of its own, with those that it was together with.
//! - A batch takes segments as they are; the one that it ends in is cut in two.

pub(crate) mod batch;
pub(crate) mod fate;
pub(crate) mod page;
pub(crate) mod task;

use std::collections::BTreeMap;

use bytes::Bytes;
use keiko_core::batch::{Item, ItemView, NewItem, size};
use keiko_core::id::{ItemId, TenantId};
use keiko_core::task::Payload;

use self::fate::ItemRow;
use crate::admit::{read_type, stored_type};
use crate::format::Undecodable;
use crate::gather::Candidate;

/// Items of one segment. The cost of a row is gone among so many of them, and few batches end inside of one.
const ITEMS_MAX: usize = 100;
/// Payload bytes of one segment; the first item always fits.
const BYTES_MAX: usize = 64 << 10;
/// How far the ids of one segment may reach, so that whoever looks for an id knows where its segment begins at the latest.
pub(crate) const SPAN_MAX: i64 = 10_000;
/// Segments that are read at once.
const READ_MAX: i64 = 64;
/// The number of the form in which items are stored.
const FORM: u8 = 1;

/// Items as somebody adds them, with their tenant.
type New<'a> = (TenantId, &'a NewItem);

/// A segment to be stored.
pub(crate) struct NewSegment<'a> {
    pub(crate) tenant: TenantId,
    pub(crate) processor: i64,
    pub(crate) key: &'a str,
    pub(crate) created_ms: i64,
    pub(crate) sum: Sum,
    pub(crate) bytes: Vec<u8>,
}

/// A segment without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) count: i64,
    /// What the items count towards limits in bytes.
    pub(crate) size: i64,
}

/// A segment that was read. Payloads are parts of the one value that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: i64,
    pub(crate) created_ms: i64,
    /// Ids and payloads, in order.
    pub(crate) items: Vec<(i64, Payload)>,
}

/// Which of these items become segments, and which rows of their own, because they are alone.
pub(crate) fn cut<'a>(items: &[New<'a>]) -> (Vec<New<'a>>, Vec<NewSegment<'a>>) {
    let mut cut = Cut::default();
    let mut before: Option<New<'a>> = None;
    for &(tenant, item) in items {
        let goes_on = before.is_some_and(|(of, before)| {
            of == tenant
                && before.id.0.checked_add(1) == Some(item.id.0)
                && before.created_ms == item.created_ms
        });
        if !goes_on {
            cut.close_all();
        }
        cut.push(tenant, item);
        before = Some((tenant, item));
    }
    cut.close_all();
    (cut.alone, cut.segments)
}

#[derive(Default)]
struct Cut<'a> {
    open: BTreeMap<(i64, &'a str), Open<'a>>,
    alone: Vec<New<'a>>,
    segments: Vec<NewSegment<'a>>,
}

#[derive(Default)]
struct Open<'a> {
    items: Vec<New<'a>>,
    bytes: usize,
}

impl<'a> Cut<'a> {
    fn push(&mut self, tenant: TenantId, item: &'a NewItem) {
        let open = self.open.entry((item.processor.0, item.key.as_str())).or_default();
        let bytes = item.payload.bytes.len();
        let first = open.items.first().map_or(item.id.0, |(_, first)| first.id.0);
        let is_full = open.items.len() >= ITEMS_MAX
            || open.bytes.saturating_add(bytes) > BYTES_MAX
            || item.id.0 - first >= SPAN_MAX;
        if is_full {
            let full = std::mem::take(open);
            close(full, &mut self.alone, &mut self.segments);
        }
        let open = self.open.entry((item.processor.0, item.key.as_str())).or_default();
        open.items.push((tenant, item));
        open.bytes += bytes;
    }

    fn close_all(&mut self) {
        for (_, open) in std::mem::take(&mut self.open) {
            close(open, &mut self.alone, &mut self.segments);
        }
    }
}

fn close<'a>(open: Open<'a>, alone: &mut Vec<New<'a>>, segments: &mut Vec<NewSegment<'a>>) {
    let (&[(tenant, first), .., (_, last)], count) = (&open.items[..], open.items.len()) else {
        alone.extend(open.items);
        return;
    };
    let sum = Sum {
        first: first.id.0,
        last: last.id.0,
        count: count as i64,
        size: open.items.iter().map(|(_, item)| item.size() as i64).sum(),
    };
    let bytes = pack(sum.first, open.items.iter().map(|(_, item)| (item.id.0, &item.payload)));
    let (processor, key, created_ms) = (first.processor.0, first.key.as_str(), first.created_ms);
    segments.push(NewSegment { tenant, processor, key, created_ms, sum, bytes });
}

/// Items as they are stored: how far each id is from the one before, which is `first` for the first of them, its type (nothing for
/// JSON), its payload.
fn pack<'a>(first: i64, items: impl Iterator<Item = (i64, &'a Payload)>) -> Vec<u8> {
    let mut bytes = vec![FORM];
    let mut before = first;
    for (id, payload) in items {
        number(&mut bytes, id.wrapping_sub(before) as u64);
        before = id;
        let named = stored_type(payload);
        number(&mut bytes, named.map_or(0, |named| named.len() as u64 + 1));
        bytes.extend_from_slice(named.unwrap_or_default().as_bytes());
        number(&mut bytes, payload.bytes.len() as u64);
        bytes.extend_from_slice(&payload.bytes);
    }
    bytes
}

/// A number as few bytes: seven bits each, the lowest first, the highest bit telling that there are more.
fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// What [`pack`] wrote, from the first id on.
fn unpack(first: i64, bytes: &Bytes) -> Option<Vec<(i64, Payload)>> {
    if bytes.first() != Some(&FORM) {
        return None;
    }
    let (mut unpack, mut last, mut items) = (Unpack { bytes, at: 1 }, first, Vec::new());
    while unpack.at < bytes.len() {
        items.push(unpack.item(&mut last)?);
    }
    Some(items)
}

/// Reads it from the front.
struct Unpack<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Unpack<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<Bytes> {
        let end = self.at.checked_add(usize::try_from(count).ok()?).filter(|end| *end <= self.bytes.len())?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Some(taken)
    }

    fn item(&mut self, id: &mut i64) -> Option<(i64, Payload)> {
        *id = id.wrapping_add(self.number()? as i64);
        let named = match self.number()? {
            0 => None,
            count => Some(String::from_utf8(self.take(count - 1)?.into()).ok()?),
        };
        let count = self.number()?;
        Some((*id, Payload { content_type: read_type(named), bytes: self.take(count)? }))
    }
}

impl Segment {
    /// A segment of its stored parts.
    pub(crate) fn read(id: i64, created_ms: i64, bytes: &Bytes) -> Result<Segment, Undecodable> {
        let items = unpack(id, bytes).ok_or(Undecodable("items of a segment"))?;
        Ok(Segment { id, created_ms, items })
    }

    /// What is stored of it beside its group.
    pub(crate) fn sum(&self, key: &str) -> Sum {
        let last = self.items.last().map_or(self.id, |(id, _)| *id);
        let size = self.items.iter().map(|(_, payload)| size(key, payload) as i64).sum();
        Sum { first: self.id, last, count: self.items.len() as i64, size }
    }

    pub(crate) fn pack(&self) -> Vec<u8> {
        pack(self.id, self.items.iter().map(|(id, payload)| (*id, payload)))
    }

    fn candidates<'a>(&'a self, key: &'a str) -> impl Iterator<Item = Candidate> + 'a {
        self.items.iter().map(move |(id, payload)| Candidate {
            id: *id,
            place: *id,
            created_ms: self.created_ms,
            due_ms: self.created_ms,
            attempts: 0,
            size: size(key, payload),
            in_segment: true,
        })
    }

    /// Its items as rows. What each counts beside its payload is alike for all.
    fn rows(&self, sum: &Sum) -> impl Iterator<Item = ItemRow<'_>> {
        let bytes: i64 = self.items.iter().map(|(_, payload)| payload.bytes.len() as i64).sum();
        let base = (sum.size - bytes) / sum.count.max(1);
        self.items.iter().map(move |(id, payload)| {
            let size = base + payload.bytes.len() as i64;
            ItemRow { segment: self.id, id: *id, size, payload }
        })
    }

    fn into_items(self) -> impl Iterator<Item = (i64, Item)> {
        let created_ms = self.created_ms;
        let item = move |(id, payload)| (id, Item { id: ItemId(id), payload, created_ms, attempts: 0 });
        self.items.into_iter().map(item)
    }

    /// Its items as a list shows them.
    pub(crate) fn into_views(self, key: &str) -> impl Iterator<Item = ItemView> {
        let (created_ms, key) = (self.created_ms, key.to_owned());
        self.items.into_iter().map(move |(id, payload)| ItemView {
            id: ItemId(id),
            key: key.clone(),
            payload,
            created_ms,
            attempts: 0,
        })
    }
}

/// A segment of items of so many bytes.
#[cfg(test)]
fn of_sizes(items: &[(i64, usize)]) -> Segment {
    let payload = |len| keiko_core::batch::payload_of(len);
    let items: Vec<_> = items.iter().map(|(id, bytes)| (*id, payload(*bytes))).collect();
    Segment { id: items[0].0, created_ms: 10_000, items }
}

#[cfg(test)]
mod tests {
    use keiko_core::batch::payload_of;
    use keiko_core::id::ProcessorId;

    use super::*;

    const NOW: i64 = 10_000;

    fn new(id: i64, key: &str, bytes: usize) -> NewItem {
        let (id, key, payload) = (ItemId(id), key.to_owned(), payload_of(bytes));
        NewItem { id, processor: ProcessorId(7), key, payload, created_ms: NOW }
    }

    fn of_one(items: &[NewItem]) -> Vec<New<'_>> {
        items.iter().map(|item| (TenantId(1), item)).collect()
    }

    /// What becomes of items: those that stay alone, and of each segment the first, the last, and how many.
    fn check_cut(items: &[New<'_>], alone: &[i64], segments: &[(i64, i64, i64)]) {
        let (left, new) = cut(items);
        let left: Vec<i64> = left.iter().map(|(_, item)| item.id.0).collect();
        let sums: Vec<_> = new.iter().map(|new| (new.sum.first, new.sum.last, new.sum.count)).collect();
        assert_eq!((left.as_slice(), sums.as_slice()), (alone, segments));
    }

    #[test]
    fn what_was_added_together_is_one_and_what_is_alone_a_row() {
        let items = |ids: &[i64]| ids.iter().map(|id| new(*id, "", 1)).collect::<Vec<_>>();
        check_cut(&[], &[], &[]);
        check_cut(&of_one(&items(&[5])), &[5], &[]);
        check_cut(&of_one(&items(&[5, 6, 7])), &[], &[(5, 7, 3)]);
        check_cut(&of_one(&items(&[5, 6, 8, 10, 11])), &[8], &[(5, 6, 2), (10, 11, 2)]);
        let mut later = items(&[5, 6, 7]);
        later[2].created_ms += 1;
        check_cut(&of_one(&later), &[7], &[(5, 6, 2)]);
        let two = items(&[5, 6]);
        check_cut(&[(TenantId(1), &two[0]), (TenantId(2), &two[1])], &[5, 6], &[]);
    }

    #[test]
    fn keys_have_segments_of_their_own_that_do_not_reach_into_each_other() {
        let keyed: Vec<NewItem> = (0..6).map(|at| new(at, ["a", "b"][at as usize % 2], 1)).collect();
        check_cut(&of_one(&keyed), &[], &[(0, 4, 3), (1, 5, 3)]);
        let rare: Vec<NewItem> =
            (0..SPAN_MAX + 1).map(|at| new(at, if at % SPAN_MAX == 0 { "rare" } else { "" }, 1)).collect();
        let (alone, _) = cut(&of_one(&rare));
        assert_eq!(alone.len(), 2, "those that are too far from each other");
        let near = &rare[1..];
        let segments = cut(&of_one(near)).1;
        assert!(segments.iter().all(|new| new.sum.last - new.sum.first < SPAN_MAX));
    }

    #[test]
    fn a_segment_keeps_to_its_limits_and_a_first_item_always_fits() {
        let items = |count: i64, bytes| (0..count).map(|id| new(id, "", bytes)).collect::<Vec<_>>();
        let most = ITEMS_MAX as i64;
        check_cut(&of_one(&items(most, 1)), &[], &[(0, most - 1, most)]);
        check_cut(&of_one(&items(most + 1, 1)), &[most], &[(0, most - 1, most)]);
        check_cut(&of_one(&items(4, BYTES_MAX / 2)), &[], &[(0, 1, 2), (2, 3, 2)]);
        check_cut(&of_one(&items(2, BYTES_MAX / 2 + 1)), &[0, 1], &[]);
        check_cut(&of_one(&items(2, BYTES_MAX + 1)), &[0, 1], &[]);
    }

    fn typed(content_type: &str, bytes: &'static [u8]) -> Payload {
        Payload { content_type: content_type.to_owned(), bytes: bytes.into() }
    }

    #[test]
    fn the_first_form_of_items_is_read_for_ever() {
        let items = vec![
            (1_000, Payload::json("{\"a\": 1}")),
            (1_001, typed("text/plain", b"one")),
            (1_200, typed("", b"")),
        ];
        let sample = b"\x01\0\0\x08{\"a\": 1}\x01\x0btext/plain\x03one\xc7\x01\x01\0";
        let expected = Segment { id: 1_000, created_ms: NOW, items };
        assert_eq!(Segment::read(1_000, NOW, &Bytes::from_static(sample)), Ok(expected.clone()));
        assert_eq!(expected.pack(), sample);
        assert_eq!(expected.sum("kk"), Sum { first: 1_000, last: 1_200, count: 3, size: 3 * 130 + 11 });
    }

    #[test]
    fn what_is_damaged_is_not_read() {
        let good = Bytes::from(of_sizes(&[(5, 300), (9, 2)]).pack());
        for end in 0..good.len() {
            let cut = Segment::read(5, NOW, &good.slice(..end));
            // Whole items are items; how many there should be stands in the row.
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.items.len() < 2), "{end}");
        }
        let check =
            |bytes: &'static [u8]| assert!(Segment::read(5, NOW, &Bytes::from_static(bytes)).is_err());
        check(b"\x02\0\0\x01x");
        check(b"\x01\0\x03\xff\xff\0");
        check(b"\x01\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        check(b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    }
}
