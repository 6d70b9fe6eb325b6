//! Items that are in memory only: bounded by the memory of items, lost with the host, and dropped, counted, when there
//! is no room.

use std::collections::{HashMap, VecDeque};

use keiko_core::batch::flush::take;
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{Group, Item, size};
use parking_lot::Mutex;

use super::memory::Held;

/// An item with the memory it has.
struct Kept {
    item: Item,
    /// Not before this time.
    due_ms: i64,
    held: Held,
}

/// Items by group.
#[derive(Default)]
pub(super) struct Volatile(Mutex<HashMap<Group, VecDeque<Kept>>>);

impl Volatile {
    /// Adds an item that is due from then on, at its place in the order of ids: one that waits again stands before what
    /// came after it.
    pub(super) fn add(&self, group: &Group, item: Item, due_ms: i64, held: Held) {
        let mut groups = self.0.lock();
        let waiting = groups.entry(group.clone()).or_default();
        let at = waiting.partition_point(|kept| kept.item.id < item.id);
        waiting.insert(at, Kept { item, due_ms, held });
    }

    /// Whether a group has items here.
    pub(super) fn has(&self, group: &Group) -> bool {
        self.0.lock().contains_key(group)
    }

    /// Takes a batch out, and the memory of its items. Of an ordered group nothing goes before an item that waits.
    pub(super) fn form(&self, form: &Form, now_ms: i64) -> (Vec<(Item, Held)>, Left) {
        let mut groups = self.0.lock();
        let Some(waiting) = groups.get_mut(&form.group) else { return (Vec::new(), Left::Nothing) };
        let mut is_blocked = false;
        let is_ready = |kept: &Kept| {
            is_blocked |= form.ordered && kept.due_ms > now_ms;
            kept.due_ms <= now_ms && !is_blocked
        };
        let (mut ready, later): (VecDeque<Kept>, VecDeque<Kept>) = waiting.drain(..).partition(is_ready);
        let sizes: Vec<u64> = ready.iter().map(|kept| size(&form.group.key, &kept.item.payload)).collect();
        let rest = ready.split_off(take(&sizes, form.items_max, form.bytes_max));
        let next_ms = match form.ordered {
            true => later.front().map(|kept| kept.due_ms),
            false => later.iter().map(|kept| kept.due_ms).min(),
        };
        let left = match (rest.is_empty(), next_ms) {
            (false, _) => Left::Unknown,
            (true, Some(due_ms)) => Left::Due(due_ms),
            (true, None) => Left::Nothing,
        };
        let mut left_over: Vec<Kept> = rest.into_iter().chain(later).collect();
        left_over.sort_by_key(|kept| kept.item.id);
        waiting.extend(left_over);
        if waiting.is_empty() {
            groups.remove(&form.group);
        }
        (ready.into_iter().map(|kept| (kept.item, kept.held)).collect(), left)
    }

    /// Forgets everything; says how many items there were.
    pub(super) fn clear(&self) -> u64 {
        let groups = std::mem::take(&mut *self.0.lock());
        groups.values().map(|waiting| waiting.len() as u64).sum()
    }
}
