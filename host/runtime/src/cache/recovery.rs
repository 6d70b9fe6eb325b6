//! What a level has missed while it was away, and what other hosts have not been told: the newest change per key, repeated
//! when that works again.

use std::collections::HashMap;

use keiko_core::cache::{CacheKey, Content, Entry, Level, Stamp, removed};
use keiko_core::port::ChangeKind;
use parking_lot::Mutex;

use super::figures::Event;
use super::reading::nearer;
use super::safeguard::{Safeguard, on};
use super::tier::Tier;
use super::{Cache, Inner};

/// Changes that wait, of all levels together.
const CHANGES_MAX: usize = 10_000;
/// Bytes of their values.
const BYTES_MAX: usize = 64 << 20;
/// Changes that are repeated at once.
const AT_ONCE: usize = 100;

struct Missed {
    entry: Entry,
    kind: ChangeKind,
}

/// The changes that wait.
#[derive(Default)]
pub(super) struct Recovery(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    missed: HashMap<(Level, CacheKey), Missed>,
    bytes: usize,
}

impl Waiting {
    fn take(&mut self, at: &(Level, CacheKey)) -> Option<Missed> {
        let missed = self.missed.remove(at)?;
        self.bytes -= bytes(&missed.entry);
        Some(missed)
    }

    /// Adds a change unless a newer one waits; whether there was room.
    fn add(&mut self, at: (Level, CacheKey), missed: Missed) -> bool {
        let is_older = |old: &Missed| old.entry.stamp > missed.entry.stamp;
        if self.missed.get(&at).is_some_and(is_older) {
            return true;
        }
        self.take(&at);
        let size = bytes(&missed.entry);
        if self.missed.len() >= CHANGES_MAX || self.bytes + size > BYTES_MAX {
            return false;
        }
        self.bytes += size;
        self.missed.insert(at, missed);
        true
    }
}

fn bytes(entry: &Entry) -> usize {
    match &entry.content {
        Content::Value(value) => value.len(),
        Content::Absent | Content::Removed => 0,
    }
}

impl Recovery {
    pub(super) fn len(&self) -> usize {
        self.0.lock().missed.len()
    }

    /// Some of what a level has missed, oldest first.
    fn some(&self, level: Level) -> Vec<(Level, CacheKey)> {
        let waiting = self.0.lock();
        let mut missed: Vec<_> = waiting.missed.iter().filter(|((of, _), _)| *of == level).collect();
        missed.sort_by_key(|(_, missed)| missed.entry.stamp);
        missed.into_iter().take(AT_ONCE).map(|(at, _)| at.clone()).collect()
    }

    fn take(&self, at: &(Level, CacheKey)) -> Option<Missed> {
        self.0.lock().take(at)
    }
}

impl Inner {
    /// Notes that a level has missed a change.
    pub(super) fn missed(&self, level: Level, key: &CacheKey, entry: Entry, kind: ChangeKind) {
        let missed = Missed { entry, kind };
        if !self.recovery.0.lock().add((level, key.clone()), missed) {
            self.counters.event(Event::GivenUp);
        }
    }
}

impl Cache {
    /// Repeats what levels have missed, until they are away again or nothing is left.
    pub async fn recover(&self) {
        for tier in self.0.tiers.iter().filter(|_| on(Safeguard::Repeat)) {
            self.0.recover(tier).await;
        }
        if on(Safeguard::TellAgain) {
            self.0.tell_again().await;
        }
    }
}

impl Inner {
    async fn recover(&self, tier: &Tier) {
        loop {
            let some = self.recovery.some(tier.level);
            if some.is_empty() {
                return;
            }
            for at in some {
                let Some(missed) = self.recovery.take(&at) else { continue };
                let now_ms = self.clock.now_ms();
                // It has ended by itself, but what is older may last longer there.
                let ended = missed.entry.physical_ms <= now_ms;
                let stamp = missed.entry.stamp;
                let (mut newer, mut entry) = (false, missed.entry.clone());
                if ended {
                    entry = removed(stamp, now_ms);
                }
                // The last level knows of a newer change though it has ended; then that counts, or only what is older is
                // to go. The others are told, too: what they lost they may have taken from this one since.
                for one in self.tiers.iter().rev() {
                    match one.put(&at.1, &self.as_at(one, &entry, newer)).await {
                        Ok(true) => {}
                        Ok(false) => (newer, entry) = (true, self.newer_at(one, &at.1, stamp).await),
                        Err(_) if one.level == tier.level => {
                            self.recovery.0.lock().add(at, missed);
                            return;
                        }
                        Err(_) => self.missed(one.level, &at.1, missed.entry.clone(), missed.kind),
                    }
                }
                self.counters.event(Event::Repeated);
                // What this level had of before may have been read here, too.
                self.readings.raise(&at.1, stamp);
                self.memory.change(&at.1, missed.kind, stamp, now_ms);
                if (newer || ended) && missed.entry.content != Content::Removed {
                    self.memory.forget(&at.1, stamp);
                    self.doubt(&at.1, stamp).await;
                }
                if !self.tell(&at.1, missed.kind, stamp).await {
                    self.missed(Level::Memory, &at.1, missed.entry, missed.kind);
                }
            }
        }
    }

    /// Takes back from levels what another one knows a newer change of: there that one has ended, or was lost.
    pub(super) async fn take_back(&self, key: &CacheKey, stamp: Stamp, answers: &[Option<bool>]) {
        if !answers.contains(&Some(true)) {
            return;
        }
        let mut newest = removed(stamp, self.clock.now_ms());
        if let Some(knows) = answers.iter().rposition(|answer| *answer == Some(false)) {
            newest = self.newer_at(&self.tiers[knows], key, stamp).await;
        }
        for (tier, answer) in self.tiers.iter().zip(answers) {
            let entry = self.as_at(tier, &newest, true);
            if *answer == Some(true) && tier.put(key, &entry).await.is_err() {
                self.missed(tier.level, key, entry, ChangeKind::Remove);
            }
        }
        self.doubt(key, stamp).await;
    }

    /// What a level has that is newer than this and has not ended, or the note that everything until then is gone.
    async fn newer_at(&self, tier: &Tier, key: &CacheKey, stamp: Stamp) -> Entry {
        let found = tier.get_one(key).await.ok().flatten();
        let now_ms = self.clock.now_ms();
        let counts = |found: &Entry| found.stamp > stamp && found.physical_ms > now_ms;
        found.filter(counts).unwrap_or_else(|| removed(stamp, now_ms))
    }

    /// An entry as a level has it, when it is `of_another` level.
    fn as_at(&self, tier: &Tier, entry: &Entry, of_another: bool) -> Entry {
        match of_another && entry.content != Content::Removed {
            true => nearer(entry, self.options.times.of(tier.level), self.clock.now_ms()),
            false => entry.clone(),
        }
    }

    /// Tells hosts that may have taken what was there for a moment to look again. It is a hint: they may keep it until it ends.
    async fn doubt(&self, key: &CacheKey, stamp: Stamp) {
        self.tell(key, ChangeKind::Set, Stamp(stamp.0.saturating_add(1))).await;
    }

    /// What other hosts' memories have missed.
    async fn tell_again(&self) {
        for at in self.recovery.some(Level::Memory) {
            let Some(missed) = self.recovery.take(&at) else { continue };
            if !self.tell(&at.1, missed.kind, missed.entry.stamp).await {
                self.recovery.0.lock().add(at, missed);
                return;
            }
            self.counters.event(Event::Repeated);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keiko_core::TenantId;
    use keiko_core::cache::{Namespace, Wish, made};
    use keiko_core::catalog::Tenant;

    use super::*;

    fn key(text: &str) -> CacheKey {
        let tenant = Tenant { id: TenantId(1), name: "ada".parse().unwrap() };
        CacheKey::new(&tenant, &Namespace::of_host("test"), text).unwrap()
    }

    fn missed(stamp: u64, bytes: usize) -> Missed {
        let value = Content::Value(Bytes::from(vec![0; bytes]));
        let entry = made(value, Stamp(stamp), &Wish::default(), 1_000, 0, 0.0);
        Missed { entry, kind: ChangeKind::Set }
    }

    #[test]
    fn the_newest_change_of_a_key_waits() {
        let mut waiting = Waiting::default();
        for (stamp, bytes) in [(5, 10), (4, 20), (6, 30)] {
            assert!(waiting.add((Level::Redis, key("k")), missed(stamp, bytes)));
        }
        assert!(waiting.add((Level::Database, key("k")), missed(4, 20)));
        assert_eq!((waiting.missed.len(), waiting.bytes), (2, 50));
        let newest = waiting.take(&(Level::Redis, key("k"))).unwrap();
        assert_eq!((newest.entry.stamp, waiting.bytes), (Stamp(6), 20));
    }

    #[test]
    fn what_waits_has_a_number_and_a_size() {
        let mut waiting = Waiting::default();
        for number in 0..CHANGES_MAX {
            assert!(waiting.add((Level::Redis, key(&number.to_string())), missed(1, 0)));
        }
        assert!(!waiting.add((Level::Redis, key("more")), missed(1, 0)));
        assert!(
            waiting.add((Level::Redis, key("1")), missed(2, 0)),
            "a newer change of the same key has room"
        );
        let mut waiting = Waiting::default();
        assert!(waiting.add((Level::Redis, key("k")), missed(1, BYTES_MAX)));
        assert!(!waiting.add((Level::Redis, key("more")), missed(1, 1)));
    }
}
