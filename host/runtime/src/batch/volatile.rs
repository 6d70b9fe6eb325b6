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
    /// Adds an item that is due from then on.
    pub(super) fn add(&self, group: &Group, item: Item, due_ms: i64, held: Held) {
        let mut groups = self.0.lock();
        groups.entry(group.clone()).or_default().push_back(Kept { item, due_ms, held });
    }

    /// Takes a batch out, and the memory of its items.
    pub(super) fn form(&self, form: &Form, now_ms: i64) -> (Vec<(Item, Held)>, Left) {
        let mut groups = self.0.lock();
        let Some(waiting) = groups.get_mut(&form.group) else { return (Vec::new(), Left::Nothing) };
        let (ready, later): (VecDeque<Kept>, VecDeque<Kept>) =
            waiting.drain(..).partition(|kept| kept.due_ms <= now_ms);
        let sizes: Vec<u64> = ready.iter().map(|kept| size(&form.group.key, &kept.item.payload)).collect();
        let count = take(&sizes, form.items_max, form.bytes_max);
        let mut ready = ready;
        let rest = ready.split_off(count);
        let left = match (rest.is_empty(), later.iter().map(|kept| kept.due_ms).min()) {
            (false, _) => Left::Unknown,
            (true, Some(due_ms)) => Left::Due(due_ms),
            (true, None) => Left::Nothing,
        };
        waiting.extend(rest.into_iter().chain(later));
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
