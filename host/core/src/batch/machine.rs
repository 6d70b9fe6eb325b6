//! What waits on this host, by group, and which batch is due next.
//!
//! Sans I/O: whoever drives it says what was added and what time it is, forms the batches it asks for, and says what came
//! of them. It knows what this host added and what it was told of a look into the store; the store knows the items.
//!
//! - Deadlines come before everything else: what has waited for as long as it may is due before what is full, however
//!   fast items come.
//! - Each group has its own clock. A processor has so many batches in flight, an ordered one a single one of each key.
//! - At most [`GROUPS_MAX`] groups are known at once; of more it only knows that it must look again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Group;
use super::flush::{self, Gathered, Why};
use super::settings::Settings;
use super::work::Health;
use crate::id::ProcessorId;

/// Groups that are known at once.
pub const GROUPS_MAX: usize = 100_000;
/// How long a group is left alone whose batch another host has, in milliseconds.
pub const BLOCKED_MS: i64 = 1_000;

/// A batch to form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Of which group.
    pub group: Group,
    /// Why now.
    pub why: Why,
    /// Items at most.
    pub items_max: u64,
    /// Bytes at most, beside the first item.
    pub bytes_max: u64,
    /// The age at which the oldest item makes the group due, in milliseconds.
    pub age_ms: u64,
    /// Whether there may be one batch of the group at a time.
    pub ordered: bool,
}

/// What a group has left behind a batch that was formed, or that was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Items, of which the first makes the group due at this time.
    Due(i64),
    /// As many as fitted were taken: nobody looked.
    Unknown,
    /// Another batch of the group is in flight, on whichever host.
    Blocked,
}

const NOTHING: Gathered = Gathered { items: 0, bytes: 0, oldest_ms: i64::MAX, requested: false };

/// What waits on this host.
#[derive(Debug, Default)]
pub struct Machine {
    processors: BTreeMap<ProcessorId, Processor>,
    groups: usize,
    /// Something waits that is not known.
    incomplete: bool,
    closing: bool,
}

#[derive(Debug)]
struct Processor {
    settings: Settings,
    /// Items of a batch now.
    size: u64,
    in_flight: u64,
    is_stopped: bool,
    health: Health,
    groups: HashMap<Group, Known>,
    /// Groups by when they are due, and in turn: those of `groups` that nothing keeps from being formed.
    due: BTreeSet<(Place, Group)>,
    turn: u64,
}

/// When a group is due; of two at the same time the one goes first that has been so for longer.
type Place = (i64, u64);

#[derive(Debug)]
struct Known {
    /// What waits; while a batch is formed, only what came since.
    gathered: Gathered,
    /// No batch of it is formed before this time.
    not_before_ms: i64,
    /// Batches that are formed or worked.
    in_flight: u64,
    /// What waited when a batch was asked for that is being formed.
    forming: Option<Gathered>,
    /// Its place in `due`.
    place: Option<Place>,
}

impl Machine {
    /// Tells of a processor, or that its settings have changed.
    pub fn set(&mut self, id: ProcessorId, settings: Settings, is_stopped: bool) {
        let processor = self.processors.entry(id).or_insert_with(|| Processor {
            settings,
            size: settings.first_size(),
            in_flight: 0,
            is_stopped,
            health: Health::default(),
            groups: HashMap::new(),
            due: BTreeSet::new(),
            turn: 0,
        });
        if processor.settings != settings {
            processor.settings = settings;
            processor.size = settings.first_size();
        }
        if processor.is_stopped && !is_stopped {
            // What still runs of before counts for what was.
            processor.health = Health::default();
        }
        processor.is_stopped = is_stopped;
    }

    /// Forgets processors that are not in `known`; what waits for them stays in the store.
    pub fn retain(&mut self, known: impl Fn(ProcessorId) -> bool) {
        self.processors.retain(|id, processor| known(*id) || processor.in_flight > 0);
        self.groups = self.processors.values().map(|processor| processor.groups.len()).sum();
    }

    /// Tells that items were added.
    pub fn added(&mut self, group: Group, items: u64, bytes: u64, now_ms: i64) {
        self.change(group, now_ms, |known| {
            known.wait(Gathered { items, bytes, oldest_ms: now_ms, requested: false });
        });
    }

    /// Tells what a look found: that a group has items, of which the first makes it due at this time.
    pub fn found(&mut self, group: Group, at_ms: i64, now_ms: i64) {
        let Some(settings) = self.settings(group.processor) else { return };
        self.change(group, now_ms, |known| known.wait(one(at_ms, &settings)));
    }

    /// Asks for a flush of every group of a processor, oldest items first; says how many groups it knows.
    pub fn flush(&mut self, id: ProcessorId, now_ms: i64) -> usize {
        let Some(processor) = self.processors.get_mut(&id) else { return 0 };
        let order = |(group, known): (&Group, &Known)| (known.gathered.oldest_ms, group.clone());
        let groups: BTreeSet<(i64, Group)> = processor.groups.iter().map(order).collect();
        for (_, group) in &groups {
            processor.change(group, now_ms, Known::request);
        }
        groups.len()
    }

    /// Asks for a flush of everything: the host stops.
    pub fn close(&mut self, now_ms: i64) {
        self.closing = true;
        let ids: Vec<ProcessorId> = self.processors.keys().copied().collect();
        for id in ids {
            self.flush(id, now_ms);
        }
    }

    /// The batch to form next, if one is due: of what is due the one that has been for longest, and of those at the same time
    /// the one with the oldest item.
    pub fn next_form(&mut self, now_ms: i64) -> Option<Form> {
        loop {
            let heads = self.processors.iter().filter(|(_, processor)| processor.has_room());
            let (_, id) = heads
                .filter_map(|(id, processor)| Some((processor.head()?, *id)))
                .min()
                .filter(|((due_ms, _), _)| *due_ms <= now_ms)?;
            let form = self.processors.get_mut(&id).and_then(|processor| processor.form(now_ms));
            if form.is_some() {
                return form;
            }
        }
    }

    /// When the next batch is due, if nothing happens before.
    pub fn next_due_ms(&self) -> Option<i64> {
        let heads = self.processors.values().filter(|processor| processor.has_room());
        heads.filter_map(|processor| Some(processor.due.first()?.0.0)).min()
    }

    /// Tells what came of a batch to form: how many items and bytes are in it, none when none was formed, and what the
    /// group has left.
    pub fn formed(&mut self, group: &Group, items: u64, bytes: u64, left: Left, now_ms: i64) {
        let Some(processor) = self.processors.get_mut(&group.processor) else { return };
        let (size, settings) = (processor.size, processor.settings);
        let unused = u64::from(items == 0);
        processor.in_flight = processor.in_flight.saturating_sub(unused);
        processor.change(group, now_ms, |known| {
            known.in_flight = known.in_flight.saturating_sub(unused);
            let Some(before) = known.forming.take() else { return };
            match left {
                Left::Nothing => {}
                Left::Due(at_ms) => {
                    known.wait(one(at_ms, &settings));
                    if settings.ordered && before.requested {
                        // Behind the first, which waits, is what was asked for as well.
                        known.gathered.requested = true;
                        known.not_before_ms = at_ms;
                    }
                }
                Left::Blocked => {
                    known.wait(before);
                    known.not_before_ms = now_ms.saturating_add(BLOCKED_MS);
                }
                // What was full may still be: the store knows. It had its turn, and goes behind what is due by now.
                Left::Unknown => known.wait(Gathered {
                    items: before.items.saturating_sub(items).max(size),
                    bytes: before.bytes.saturating_sub(bytes),
                    oldest_ms: before.oldest_ms.max(now_ms.saturating_sub_unsigned(settings.age_ms)),
                    requested: before.requested,
                }),
            }
        });
        self.forget(group);
    }

    /// Tells that a batch could not be formed, and when to try again.
    pub fn not_formed(&mut self, group: &Group, again_ms: i64, now_ms: i64) {
        let Some(processor) = self.processors.get_mut(&group.processor) else { return };
        processor.in_flight = processor.in_flight.saturating_sub(1);
        processor.change(group, now_ms, |known| {
            known.in_flight = known.in_flight.saturating_sub(1);
            if let Some(before) = known.forming.take() {
                known.wait(before);
            }
            known.not_before_ms = again_ms;
        });
    }

    /// Tells that a batch is over. `again_ms` is when the first of its items that wait again is due; `worked` how many
    /// items a run had and how many milliseconds it took.
    pub fn ended(&mut self, group: &Group, again_ms: Option<i64>, worked: Option<(u64, u64)>, now_ms: i64) {
        let Some(processor) = self.processors.get_mut(&group.processor) else { return };
        let settings = processor.settings;
        processor.in_flight = processor.in_flight.saturating_sub(1);
        if let Some((items, elapsed_ms)) = worked {
            processor.size = processor.settings.next_size(processor.size, items, elapsed_ms);
        }
        processor.change(group, now_ms, |known| {
            known.in_flight = known.in_flight.saturating_sub(1);
            if let Some(again_ms) = again_ms {
                known.wait(one(again_ms, &settings));
            }
        });
        self.forget(group);
    }

    /// Tells of a batch that this host has from another, so that it counts as in flight.
    pub fn taken_over(&mut self, group: Group, now_ms: i64) {
        let id = group.processor;
        self.change(group, now_ms, |known| known.in_flight += 1);
        if let Some(processor) = self.processors.get_mut(&id) {
            processor.in_flight += 1;
        }
    }

    /// How a processor does: the count that each of its batches adds to while it is worked. A broken one is stopped.
    pub fn health(&self, id: ProcessorId) -> Health {
        self.processors.get(&id).map_or_else(Health::default, |processor| processor.health.clone())
    }

    /// Tells that whoever found a processor broken has told of it. Where it is not stopped by now, it was started again since.
    pub fn told_broken(&mut self, id: ProcessorId) {
        if let Some(processor) = self.processors.get_mut(&id)
            && !processor.is_stopped
        {
            processor.health = Health::default();
        }
    }

    /// The settings of a processor.
    pub fn settings(&self, id: ProcessorId) -> Option<Settings> {
        self.processors.get(&id).map(|processor| processor.settings)
    }

    /// Whether something waits that is not known, now that there is room to know it. Asking forgets it.
    pub fn must_look(&mut self) -> bool {
        self.groups <= GROUPS_MAX / 2 && std::mem::take(&mut self.incomplete)
    }

    /// Batches that are formed or worked.
    pub fn in_flight(&self) -> u64 {
        self.processors.values().map(|processor| processor.in_flight).sum()
    }

    /// Groups that are known.
    pub fn groups(&self) -> usize {
        self.groups
    }

    fn change(&mut self, group: Group, now_ms: i64, change: impl FnOnce(&mut Known)) {
        // What waits for nobody stays in the store, for whoever comes.
        let Some(processor) = self.processors.get_mut(&group.processor) else { return };
        if !processor.groups.contains_key(&group) {
            if self.groups >= GROUPS_MAX {
                self.incomplete = true;
                return;
            }
            self.groups += 1;
            processor.groups.insert(group.clone(), Known::new());
        }
        let closing = self.closing;
        processor.change(&group, now_ms, |known| {
            change(known);
            if closing {
                known.request();
            }
        });
    }

    /// Forgets a group that has nothing.
    fn forget(&mut self, group: &Group) {
        let Some(processor) = self.processors.get_mut(&group.processor) else { return };
        let is_idle = |known: &Known| known.gathered.items == 0 && known.in_flight == 0;
        if processor.groups.get(group).is_some_and(is_idle) {
            processor.groups.remove(group);
            self.groups -= 1;
        }
    }
}

impl Known {
    fn new() -> Known {
        Known { gathered: NOTHING, not_before_ms: i64::MIN, in_flight: 0, forming: None, place: None }
    }

    fn wait(&mut self, more: Gathered) {
        self.gathered.items = self.gathered.items.saturating_add(more.items);
        self.gathered.bytes = self.gathered.bytes.saturating_add(more.bytes);
        self.gathered.oldest_ms = self.gathered.oldest_ms.min(more.oldest_ms);
        self.gathered.requested |= more.requested;
    }

    fn request(&mut self) {
        self.gathered.requested = self.gathered.items > 0;
        if let Some(forming) = &mut self.forming {
            forming.requested = true;
        }
    }

    /// When a batch of it may be formed, if one may.
    fn due_ms(&self, settings: &Settings, size: u64, now_ms: i64) -> Option<i64> {
        if self.gathered.items == 0 || self.forming.is_some() || settings.ordered && self.in_flight > 0 {
            return None;
        }
        let deadline_ms = flush::deadline_ms(self.gathered.oldest_ms, settings);
        // What is full or asked for has been due from the moment it became so.
        let due_ms = match flush::due(&self.gathered, settings, size, now_ms) {
            Some(Why::Full | Why::Requested) => {
                self.place.map_or(now_ms, |(place_ms, _)| place_ms.min(now_ms))
            }
            Some(Why::Age) | None => deadline_ms,
        };
        Some(due_ms.max(self.not_before_ms))
    }
}

impl Processor {
    fn has_room(&self) -> bool {
        !self.is_stopped && !self.health.is_broken() && self.in_flight < self.settings.in_flight_max
    }

    /// When its first group is due, and how old what waits there is.
    fn head(&self) -> Option<(i64, i64)> {
        let ((due_ms, _), group) = self.due.first()?;
        Some((*due_ms, self.groups.get(group)?.gathered.oldest_ms))
    }

    /// Changes a group and its place among those that are due.
    fn change(&mut self, group: &Group, now_ms: i64, change: impl FnOnce(&mut Known)) {
        let Some(known) = self.groups.get_mut(group) else { return };
        change(known);
        let due_ms = known.due_ms(&self.settings, self.size, now_ms);
        if known.place.map(|(place_ms, _)| place_ms) == due_ms {
            return;
        }
        self.turn += 1;
        let place = due_ms.map(|due_ms| (due_ms, self.turn));
        if let Some(place) = std::mem::replace(&mut known.place, place) {
            self.due.remove(&(place, group.clone()));
        }
        if let Some(place) = place {
            self.due.insert((place, group.clone()));
        }
    }

    /// Takes the first group out, which is due, and says what to form of it; `None` when it is not due any more.
    fn form(&mut self, now_ms: i64) -> Option<Form> {
        let (place, group) = self.due.pop_first()?;
        let known = self.groups.get_mut(&group)?;
        known.place = None;
        let Some(due) = flush::due(&known.gathered, &self.settings, self.size, now_ms) else {
            // Its clock was set back, or its size grew: it has another time now.
            debug_assert!(place.0 <= now_ms);
            self.change(&group, now_ms, |_| ());
            return None;
        };
        // What was asked for goes, of whatever age it is where it is stored.
        let why = if known.gathered.requested { Why::Requested } else { due };
        known.forming = Some(std::mem::replace(&mut known.gathered, NOTHING));
        known.in_flight += 1;
        self.in_flight += 1;
        let Settings { bytes_max, age_ms, ordered, .. } = self.settings;
        Some(Form { group, why, items_max: self.size, bytes_max, age_ms, ordered })
    }
}

/// Something that waits, of which nobody knows more than when it is due.
fn one(at_ms: i64, settings: &Settings) -> Gathered {
    let oldest_ms = at_ms.saturating_sub_unsigned(settings.age_ms);
    Gathered { items: 1, bytes: 0, oldest_ms, requested: false }
}

#[cfg(test)]
#[path = "machine/tests.rs"]
mod tests;
