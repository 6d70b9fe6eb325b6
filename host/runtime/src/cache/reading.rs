//! Reading what memory does not have: whoever wants a key from the levels behind it joins a reading.
//!
//! - Who finds no reading that has yet to begin starts one, as a task of its own, and all who come before the runtime gets
//!   to that task go along. So a lone key waits for nothing, and many cost each level one question.
//! - A key is in one reading at a time. What was changed since it joined is not overwritten by what is found.
//! - Keys that a level has are answered before the next level is asked for the others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{Shared, join_all};
use keiko_core::cache::{CacheKey, Entry, Stamp, promoted};
use parking_lot::Mutex;
use quick_cache::DefaultHashBuilder;
use tokio::sync::oneshot;

use super::Inner;
use super::safeguard::{Safeguard, on};
use crate::service::spawn_beside;

/// Keys of one reading.
const KEYS_MAX: usize = 256;

/// What the levels behind memory know of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Far {
    pub(super) entry: Option<Entry>,
    /// Whether no level answered.
    pub(super) unknown: bool,
}

/// What is known of the keys of a reading after a level was asked, in their order; `None` of those that the next one is
/// asked for.
type Known = Arc<[Option<Far>]>;

struct Reading {
    keys: Mutex<Vec<CacheKey>>,
    /// By level, nearest first.
    known: Vec<Shared<oneshot::Receiver<Known>>>,
}

/// A key in a reading.
struct Flight {
    reading: Arc<Reading>,
    at: usize,
    /// The newest change that was heard of since.
    floor: Stamp,
}

/// The readings that go on.
#[derive(Default)]
pub(super) struct Readings(Mutex<Board>);

#[derive(Default)]
struct Board {
    flights: HashMap<CacheKey, Flight, DefaultHashBuilder>,
    /// The one that has yet to begin.
    next: Option<Arc<Reading>>,
}

impl Readings {
    /// Notes a change, so that a reading that began before does not bring back what was there.
    pub(super) fn raise(&self, key: &CacheKey, stamp: Stamp) {
        if let Some(flight) = self.0.lock().flights.get_mut(key) {
            flight.floor = flight.floor.max(stamp);
        }
    }

    /// Begins a reading: nobody joins it any more.
    fn close(&self, reading: &Arc<Reading>) -> Vec<CacheKey> {
        self.0.lock().next.take_if(|next| Arc::ptr_eq(next, reading));
        std::mem::take(&mut reading.keys.lock())
    }
}

impl Inner {
    /// Reads a key from the levels behind memory, together with whoever else does.
    pub(super) async fn read(self: &Arc<Inner>, key: &CacheKey) -> Far {
        if self.tiers.is_empty() {
            return Far::default();
        }
        let (reading, at) = self.join(key);
        for known in &reading.known {
            let Ok(known) = known.clone().await else { break };
            if let Some(far) = &known[at] {
                return far.clone();
            }
        }
        // It is gone without a word: it panicked, or the runtime ends.
        let flights = &mut self.readings.0.lock().flights;
        if flights.get(key).is_some_and(|flight| Arc::ptr_eq(&flight.reading, &reading)) {
            flights.remove(key);
        }
        Far { entry: None, unknown: true }
    }

    fn join(self: &Arc<Inner>, key: &CacheKey) -> (Arc<Reading>, usize) {
        let Board { flights, next } = &mut *self.readings.0.lock();
        if let Some(flight) = flights.get(key) {
            return (Arc::clone(&flight.reading), flight.at);
        }
        let reading = Arc::clone(next.get_or_insert_with(|| self.start()));
        let at = {
            let mut keys = reading.keys.lock();
            keys.push(key.clone());
            keys.len() - 1
        };
        if at + 1 == KEYS_MAX {
            *next = None;
        }
        let flight = Flight { reading: Arc::clone(&reading), at, floor: Stamp(0) };
        flights.insert(key.clone(), flight);
        (reading, at)
    }

    fn start(self: &Arc<Inner>) -> Arc<Reading> {
        let ways = self.tiers.iter().map(|_| oneshot::channel());
        let (tell, known) = ways.map(|(tell, known)| (tell, known.shared())).unzip();
        let reading = Arc::new(Reading { keys: Mutex::default(), known });
        spawn_beside(Arc::clone(self).serve(Arc::clone(&reading), tell));
        reading
    }

    async fn serve(self: Arc<Inner>, reading: Arc<Reading>, tell: Vec<oneshot::Sender<Known>>) {
        let keys = self.readings.close(&reading);
        // What is read is the newest of when the reading began.
        let epoch = self.epoch.now(self.clock.now_ms());
        let mut left: Vec<usize> = (0..keys.len()).collect();
        let mut unknown = true;
        for ((nearer, tier), tell) in self.tiers.iter().enumerate().zip(tell) {
            if left.is_empty() {
                return;
            }
            let asked = match nearer {
                0 => Cow::from(&keys),
                _ => left.iter().map(|&at| keys[at].clone()).collect(),
            };
            let answer = tier.get(&asked).await;
            unknown &= answer.is_err();
            let found = answer.unwrap_or_else(|_| vec![None; asked.len()]);
            let now_ms = self.clock.now_ms();
            let is_last = nearer + 1 == self.tiers.len();
            let mut known = vec![None; keys.len()];
            let (mut next, mut newest) = (Vec::new(), Vec::new());
            for (at, entry) in left.into_iter().zip(found) {
                if entry.is_none() && !is_last {
                    next.push(at);
                    continue;
                }
                if self.land(&keys[at], entry.as_ref(), epoch, now_ms) && nearer > 0 {
                    newest.push((&keys[at], entry.clone()));
                }
                known[at] = Some(Far { unknown: unknown && entry.is_none(), entry });
            }
            let promote = |(key, entry): (_, Option<Entry>)| self.promote(key, entry, nearer);
            join_all(newest.into_iter().map(promote)).await;
            // Whoever asked may be gone.
            let _ = tell.send(known.into());
            left = next;
        }
    }

    /// Ends the reading of a key and takes what was found to memory, unless something newer was heard of meanwhile;
    /// whether it did.
    fn land(&self, key: &CacheKey, found: Option<&Entry>, epoch: u64, now_ms: i64) -> bool {
        // Held until memory has it: whoever hears of a change raises the floor first and looks into memory then.
        let flights = &mut self.readings.0.lock().flights;
        let Some(flight) = flights.remove(key) else { return false };
        let Some(entry) = found else { return false };
        if on(Safeguard::SeeStamps) {
            self.stamps.saw(entry.stamp);
        }
        if entry.stamp < flight.floor {
            return false;
        }
        let near = nearer(entry, self.options.times.memory_ms, now_ms);
        self.memory.put(key, near, epoch);
        true
    }

    /// Takes what the level of this number has to the nearer ones.
    async fn promote(&self, key: &CacheKey, entry: Option<Entry>, found_at: usize) {
        let Some(entry) = entry else { return };
        let now_ms = self.clock.now_ms();
        for tier in &self.tiers[..found_at] {
            let near = nearer(&entry, self.options.times.of(tier.level), now_ms);
            // A level that does not take it has it taken there by the next one who misses it.
            let _ = tier.put(key, &near).await;
        }
    }
}

/// An entry as it goes to a nearer level.
pub(super) fn nearer(entry: &Entry, level_ms: u64, now_ms: i64) -> Entry {
    if on(Safeguard::PromoteRest) || entry.given {
        return promoted(entry, level_ms, now_ms);
    }
    let stale_ms = entry.physical_ms - entry.logical_ms;
    let logical_ms = now_ms.saturating_add_unsigned(level_ms);
    Entry { logical_ms, physical_ms: logical_ms + stale_ms, ..entry.clone() }
}
