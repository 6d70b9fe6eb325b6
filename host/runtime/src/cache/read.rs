//! Reading: from this host's memory, then from the levels behind it, once for however many ask at the same time.

use std::sync::Arc;

use bytes::Bytes;
use keiko_core::cache::{CacheKey, Content, Entry, Level, Stamp, Verdict, Why, judge, removed};

use super::Cache;
use super::figures::Outcome;
use super::memory::Held;
use super::safeguard::{Safeguard, on};

/// How long it is known, at most, that a tag was not removed, in milliseconds.
const NO_MARKER_MS: i64 = 300_000;

/// What there is under a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Look {
    /// It is served.
    Fresh(Content),
    /// It is served, and worth computing again.
    Eager(Content),
    /// It is served when a new one cannot be had.
    Stale(Entry),
    /// There is nothing.
    Gone(Why),
}

/// What memory alone says.
enum Near {
    Sure(Look),
    /// What is held, if anything, must be looked up again.
    Unsure(Option<Arc<Held>>),
}

impl Cache {
    /// What there is under a key.
    pub(crate) async fn look(&self, key: &CacheKey) -> Look {
        match self.near(key) {
            Near::Sure(look) => self.counted(key, look),
            Near::Unsure(held) => {
                self.0.counters.level(Level::Memory, Outcome::Miss);
                self.look_far(key, held).await
            }
        }
    }

    /// The value of a key if this host's memory has it and it is fresh: the quick way, which waits for nothing.
    pub fn peek(&self, key: &CacheKey) -> Option<Bytes> {
        match self.near(key) {
            Near::Sure(Look::Fresh(Content::Value(value))) => {
                self.0.counters.level(Level::Memory, Outcome::Hit);
                Some(value)
            }
            _ => None,
        }
    }

    fn counted(&self, key: &CacheKey, look: Look) -> Look {
        let outcome = match &look {
            Look::Fresh(_) | Look::Eager(_) => Outcome::Hit,
            Look::Stale(_) | Look::Gone(_) => Outcome::Miss,
        };
        self.0.counters.level(Level::Memory, outcome);
        traced(Level::Memory, key, look)
    }

    fn near(&self, key: &CacheKey) -> Near {
        let now_ms = self.0.clock.about_now_ms();
        let Some(held) = self.0.memory.get(key) else { return Near::Unsure(None) };
        let epoch = self.0.epoch.now(now_ms);
        if !held.is_of(epoch) {
            return Near::Unsure(Some(held));
        }
        let mut marker = None;
        for key in held.markers.iter().filter(|_| on(Safeguard::MarkersNear)) {
            match self.0.memory.get(key).filter(|marker| marker.is_of(epoch)) {
                Some(known) if known.entry.logical_ms > now_ms => {
                    marker = marker.max(Some(known.entry.stamp));
                }
                _ => return Near::Unsure(Some(held)),
            }
        }
        match judge(&held.entry, marker, if on(Safeguard::Ends) { now_ms } else { 0 }) {
            // Another level may have it for longer.
            Verdict::Gone(Why::Expired | Why::Nothing) => Near::Unsure(None),
            verdict => Near::Sure(look(&held.entry, verdict)),
        }
    }

    async fn look_far(&self, key: &CacheKey, held: Option<Arc<Held>>) -> Look {
        let look = self.look_behind(key, held).await;
        traced(self.0.tiers.last().map_or(Level::Memory, |tier| tier.level), key, look)
    }

    async fn look_behind(&self, key: &CacheKey, held: Option<Arc<Held>>) -> Look {
        let far = self.0.read(key).await;
        let now_ms = self.0.clock.now_ms();
        let entry = match (far.entry, &held) {
            // What was changed here in the meantime is newer than what was read.
            (Some(entry), _) => match self.0.memory.get(key).filter(|now| now.entry.stamp > entry.stamp) {
                Some(now) if now.is_of(self.0.epoch.now(now_ms)) => now.entry.clone(),
                // What was read came late; what is here may be followed by something that has ended.
                Some(_) => return Look::Gone(Why::Nothing),
                None => entry,
            },
            // Nobody could say whether it is the newest: it is served as long as it would be here.
            (None, Some(held)) if far.unknown => held.entry.clone(),
            // Without a level behind it, memory is all there is.
            (None, Some(held)) if self.0.tiers.is_empty() => held.entry.clone(),
            (None, _) => match self.0.memory.get(key).filter(|now| now.is_of(self.0.epoch.now(now_ms))) {
                Some(now) => now.entry.clone(),
                None => return Look::Gone(Why::Nothing),
            },
        };
        if matches!(judge(&entry, None, now_ms), Verdict::Gone(_)) {
            return look(&entry, judge(&entry, None, now_ms));
        }
        let marker = self.newest_marker(key, &entry, now_ms).await;
        let verdict = judge(&entry, marker, now_ms);
        if verdict == Verdict::Gone(Why::TagRemoved) {
            // Memory has just taken it, and asks nobody whether everything was cleared since.
            self.0.memory.forget(key, entry.stamp);
        }
        look(&entry, verdict)
    }

    /// The newest removal of one of an entry's tags.
    pub(super) async fn newest_marker(&self, key: &CacheKey, entry: &Entry, now_ms: i64) -> Option<Stamp> {
        let mut newest = None;
        for tag in entry.tags.iter().filter(|_| on(Safeguard::MarkersFar)) {
            newest = newest.max(self.marker(&key.marker(tag), now_ms).await);
        }
        if self.0.cleared_applies(key) {
            newest = newest.max(self.marker(&CacheKey::cleared(key.tenant()), now_ms).await);
            // A level that has missed the note does not hide it from who has heard of it.
            newest = newest.max(self.0.memory.cleared_at(key.tenant().id));
        }
        newest
    }

    /// When a tag was removed, as far as anybody knows.
    async fn marker(&self, key: &CacheKey, now_ms: i64) -> Option<Stamp> {
        let epoch = self.0.epoch.now(now_ms);
        let held = self.0.memory.get(key);
        if let Some(held) = held.as_ref().filter(|held| held.is_of(epoch) && held.entry.logical_ms > now_ms) {
            return Some(held.entry.stamp);
        }
        // Hardly ever, so that it makes nobody's look larger.
        let far = Box::pin(self.0.read(key)).await;
        let known = far.entry.as_ref().map(|entry| entry.stamp).max(held.map(|held| held.entry.stamp));
        if far.entry.is_none() && !far.unknown {
            // It is worth knowing that there is none.
            let until_ms = now_ms.saturating_add(NO_MARKER_MS);
            let none = Entry {
                logical_ms: until_ms,
                physical_ms: until_ms,
                ..removed(known.unwrap_or(Stamp(0)), now_ms)
            };
            self.0.memory.put(key, none, epoch);
        }
        known
    }
}

/// Says at `trace` why a key is not served, as far as this level. Keys are a tenant's own words, which no other level of the
/// log shows.
fn traced(level: Level, key: &CacheKey, look: Look) -> Look {
    let outcome = match &look {
        Look::Fresh(_) | Look::Eager(_) => return look,
        Look::Stale(_) => "stale",
        Look::Gone(why) => why.as_str(),
    };
    tracing::trace!(
        level = level.as_str(),
        tenant = %key.tenant().name,
        namespace = key.namespace().as_str(),
        key = key.text(),
        outcome,
        "the cache has no fresh value"
    );
    look
}

fn look(entry: &Entry, verdict: Verdict) -> Look {
    match verdict {
        Verdict::Fresh => Look::Fresh(entry.content.clone()),
        Verdict::Eager => Look::Eager(entry.content.clone()),
        Verdict::Stale => Look::Stale(entry.clone()),
        Verdict::Gone(why) => Look::Gone(why),
    }
}
