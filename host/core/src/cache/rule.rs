//! The rules of an entry's life, from data to data: when it is fresh, stale or gone, what of its lifetime goes along to
//! another level, and which of two changes counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{CacheKey, LIFETIME_MS_MAX, Level, MARKER_MS, REMOVED_MS, Tag};

/// Part of a lifetime that is taken away at random, at most: entries that were made together do not end together, and
/// none lives longer than was said.
const JITTER: f64 = 0.1;

/// When a change was made: microseconds since 1970, moved on so that a later change of one host, or of a host that knows
/// of the earlier one, has a higher stamp whatever the clocks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// Makes a host's stamps.
#[derive(Debug, Default)]
pub struct Stamps(AtomicU64);

impl Stamps {
    /// A stamp higher than every one that was made or seen here.
    pub fn next(&self, now_ms: i64) -> Stamp {
        let now = u64::try_from(now_ms).unwrap_or(0).saturating_mul(1000);
        let later = |last: u64| now.max(last.saturating_add(1));
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(later(last)));
        Stamp(later(last.unwrap_or_else(|last| last)))
    }

    /// Remembers another host's stamp.
    pub fn saw(&self, stamp: Stamp) {
        self.0.fetch_max(stamp.0, Ordering::Relaxed);
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A value.
    Value(Bytes),
    /// The knowledge that there is none, kept because somebody asked for that.
    Absent,
    /// Nothing: it was removed, and what is older does not come back.
    Removed,
}

/// What is kept under a key on one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was made; of a computed value, when the computation began.
    pub stamp: Stamp,
    /// What it holds.
    pub content: Content,
    /// Whether its lifetime was given, and is that of every level.
    pub given: bool,
    /// Until when it is fresh.
    pub logical_ms: i64,
    /// Until when it is kept.
    pub physical_ms: i64,
    /// From when on it is worth computing again while it is still fresh.
    pub eager_ms: Option<i64>,
    /// What it has in common with others.
    pub tags: Arc<[Tag]>,
}

impl Entry {
    /// Bytes that it takes in memory, roughly, with its key.
    pub fn weight(&self, key: &CacheKey) -> u64 {
        const OF_ITSELF: usize = 200;
        const OF_A_TAG: usize = 64;
        let value = match &self.content {
            Content::Value(value) => value.len(),
            Content::Absent | Content::Removed => 0,
        };
        let tags: usize = self.tags.iter().map(|tag| OF_A_TAG + tag.as_str().len()).sum();
        (OF_ITSELF + value + tags + key.text().len()) as u64
    }
}

/// A lifetime that is asked for, from 1 to [`LIFETIME_MS_MAX`] milliseconds: nothing is kept for no time at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lifetime(u64);

impl Lifetime {
    /// So many milliseconds; `None` for 0 and for more than the longest.
    pub const fn of_ms(ms: u64) -> Option<Lifetime> {
        if ms == 0 || ms > LIFETIME_MS_MAX { None } else { Some(Lifetime(ms)) }
    }

    /// In milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.0
    }
}

/// How somebody wants a value to be kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// How long it is fresh on every level; `None` leaves it to each level.
    pub lifetime: Option<Lifetime>,
    /// How long the knowledge is kept that there is no value; `None` does not keep it.
    pub absent: Option<Lifetime>,
    /// How long it is kept after that, in case a new one cannot be had.
    pub stale_ms: u64,
    /// The part of its lifetime, from 0 to 1, after which whoever asks for it has it computed again.
    pub eager: Option<f64>,
    /// What it has in common with others.
    pub tags: Vec<Tag>,
}

/// How long entries are fresh on each level when nobody says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// In memory.
    pub memory_ms: u64,
    /// In Redis.
    pub redis_ms: u64,
    /// In the database.
    pub database_ms: u64,
}

impl Default for Times {
    fn default() -> Times {
        Times { memory_ms: 300_000, redis_ms: 3_600_000, database_ms: 86_400_000 }
    }
}

impl Times {
    /// The lifetime on a level.
    pub fn of(&self, level: Level) -> u64 {
        match level {
            Level::Memory => self.memory_ms,
            Level::Redis => self.redis_ms,
            Level::Database => self.database_ms,
        }
    }
}

/// An entry for a level whose own lifetime is `level_ms`. `random` is drawn evenly from 0 to 1.
pub fn made(content: Content, stamp: Stamp, wish: &Wish, level_ms: u64, now_ms: i64, random: f64) -> Entry {
    let given = match content {
        Content::Absent => wish.absent.or(wish.lifetime),
        Content::Value(_) | Content::Removed => wish.lifetime,
    };
    let whole = given.map_or(level_ms, Lifetime::as_ms).clamp(1, LIFETIME_MS_MAX);
    let lifetime = ((whole as f64) * (1.0 - JITTER * random.clamp(0.0, 1.0))).ceil() as i64;
    let logical_ms = now_ms.saturating_add(lifetime);
    let stale = i64::try_from(wish.stale_ms.min(LIFETIME_MS_MAX)).unwrap_or(i64::MAX);
    let eager = wish.eager.map(|part| (lifetime as f64 * part.clamp(0.0, 1.0)) as i64);
    Entry {
        stamp,
        content,
        given: given.is_some(),
        logical_ms,
        physical_ms: logical_ms.saturating_add(stale),
        eager_ms: eager.map(|after| now_ms.saturating_add(after)),
        tags: wish.tags.clone().into(),
    }
}

/// The note that a key was removed.
pub fn removed(stamp: Stamp, now_ms: i64) -> Entry {
    let until = now_ms.saturating_add(REMOVED_MS);
    let tags = Arc::from([]);
    Entry {
        stamp,
        content: Content::Removed,
        given: true,
        logical_ms: until,
        physical_ms: until,
        eager_ms: None,
        tags,
    }
}

/// The note that a tag was removed, which is an entry under the tag's own key.
impl Entry {
    /// Everything with the tag that is not newer than `stamp` is gone.
    pub fn marker(stamp: Stamp, now_ms: i64) -> Entry {
        let until = now_ms.saturating_add(MARKER_MS);
        Entry { content: Content::Absent, logical_ms: until, physical_ms: until, ..removed(stamp, now_ms) }
    }
}

/// The same value, no longer fresh, kept in case a new one cannot be had.
pub fn expired(entry: &Entry, stamp: Stamp, now_ms: i64) -> Entry {
    Entry { stamp, logical_ms: entry.logical_ms.min(now_ms), eager_ms: None, ..entry.clone() }
}

/// A stale entry that is served for a while longer, because a new one could not be had just now.
pub fn throttled(entry: &Entry, throttle_ms: u64, now_ms: i64) -> Entry {
    let until = now_ms.saturating_add_unsigned(throttle_ms).min(entry.physical_ms);
    Entry { logical_ms: entry.logical_ms.max(until), eager_ms: None, ..entry.clone() }
}

/// An entry as it goes to a nearer level: it keeps what is left of its lifetime, and has no more than the level's own.
pub fn promoted(entry: &Entry, level_ms: u64, now_ms: i64) -> Entry {
    if entry.given {
        return entry.clone();
    }
    let logical_ms = entry.logical_ms.min(now_ms.saturating_add_unsigned(level_ms));
    let stale = entry.physical_ms.saturating_sub(entry.logical_ms);
    let physical_ms = entry.physical_ms.min(logical_ms.saturating_add(stale));
    Entry { logical_ms, physical_ms, ..entry.clone() }
}

/// Why there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Nothing is kept.
    Nothing,
    /// It was kept for as long as it should be.
    Expired,
    /// It was removed.
    Removed,
    /// One of its tags was removed.
    TagRemoved,
}

impl Why {
    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Nothing => "nothing",
            Why::Expired => "expired",
            Why::Removed => "removed",
            Why::TagRemoved => "tag_removed",
        }
    }
}

/// What an entry is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served.
    Fresh,
    /// It is served, and worth computing again.
    Eager,
    /// It is served only when a new one cannot be had.
    Stale,
    /// It is not served.
    Gone(Why),
}

/// What an entry is good for at a time. `marker` is the newest removal of one of its tags.
pub fn judge(entry: &Entry, marker: Option<Stamp>, now_ms: i64) -> Verdict {
    if entry.physical_ms <= now_ms {
        return Verdict::Gone(if entry.content == Content::Removed { Why::Nothing } else { Why::Expired });
    }
    if entry.content == Content::Removed {
        return Verdict::Gone(Why::Removed);
    }
    if marker.is_some_and(|marker| marker >= entry.stamp) {
        return Verdict::Gone(Why::TagRemoved);
    }
    if entry.logical_ms <= now_ms {
        return Verdict::Stale;
    }
    if entry.eager_ms.is_some_and(|eager_ms| eager_ms <= now_ms) {
        return Verdict::Eager;
    }
    Verdict::Fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn value(lifetime_ms: Option<u64>, stale_ms: u64) -> Entry {
        let wish = Wish { lifetime: lifetime_ms.and_then(Lifetime::of_ms), stale_ms, ..Wish::default() };
        made(Content::Value(Bytes::from_static(b"v")), Stamp(5), &wish, 300_000, NOW, 0.0)
    }

    #[test]
    fn an_entry_is_fresh_then_eager_then_stale_then_gone() {
        let wish =
            Wish { lifetime: Lifetime::of_ms(1_000), stale_ms: 500, eager: Some(0.8), ..Wish::default() };
        let entry = made(Content::Absent, Stamp(5), &wish, 300_000, NOW, 0.0);
        let check = |after_ms: i64, marker: Option<u64>, expected: Verdict| {
            let verdict = judge(&entry, marker.map(Stamp), NOW + after_ms);
            assert_eq!(verdict, expected, "{after_ms} {marker:?}");
        };
        check(0, None, Verdict::Fresh);
        check(799, None, Verdict::Fresh);
        check(800, None, Verdict::Eager);
        check(999, None, Verdict::Eager);
        check(1_000, None, Verdict::Stale);
        check(1_499, None, Verdict::Stale);
        check(1_500, None, Verdict::Gone(Why::Expired));
        check(0, Some(4), Verdict::Fresh);
        check(0, Some(5), Verdict::Gone(Why::TagRemoved));
        check(1_200, Some(6), Verdict::Gone(Why::TagRemoved));
        let gone = removed(Stamp(5), NOW);
        assert_eq!(judge(&gone, None, NOW), Verdict::Gone(Why::Removed));
        assert_eq!(judge(&gone, None, NOW + REMOVED_MS), Verdict::Gone(Why::Nothing));
        assert_eq!(judge(&Entry::marker(Stamp(5), NOW), None, NOW + MARKER_MS - 1), Verdict::Fresh);
    }

    #[test]
    fn a_lifetime_that_is_given_is_that_of_every_level() {
        assert_eq!(value(None, 0).logical_ms, NOW + 300_000);
        for level_ms in [1, 300_000, 86_400_000] {
            let wish = Wish { lifetime: Lifetime::of_ms(7_000), ..Wish::default() };
            let entry = made(Content::Absent, Stamp(5), &wish, level_ms, NOW, 0.0);
            assert_eq!((entry.logical_ms, entry.given), (NOW + 7_000, true));
            assert_eq!(promoted(&entry, 1, NOW + 6_000), entry);
        }
        let longest = value(Some(LIFETIME_MS_MAX), LIFETIME_MS_MAX);
        assert!(longest.physical_ms - NOW <= MARKER_MS, "what is removed by its tag does not come back");
    }

    #[test]
    fn nothing_is_kept_for_no_time_and_nothing_for_ever() {
        for (ms, taken) in [(0, false), (1, true), (LIFETIME_MS_MAX, true), (LIFETIME_MS_MAX + 1, false)] {
            assert_eq!(Lifetime::of_ms(ms).map(Lifetime::as_ms), taken.then_some(ms));
        }
    }

    #[test]
    fn that_there_is_no_value_has_a_lifetime_of_its_own() {
        let wish = Wish { lifetime: Lifetime::of_ms(9_000), absent: Lifetime::of_ms(500), ..Wish::default() };
        let until = |content| made(content, Stamp(1), &wish, 300_000, NOW, 0.0).logical_ms - NOW;
        assert_eq!(until(Content::Absent), 500);
        assert_eq!(until(Content::Value(Bytes::new())), 9_000);
    }

    /// The origin began the whole lifetime anew with every promotion.
    #[test]
    fn a_promotion_keeps_what_is_left_of_the_lifetime() {
        let far = Entry { logical_ms: NOW + 10_000, physical_ms: NOW + 15_000, ..value(None, 5_000) };
        let check = |level_ms: u64, after_ms: i64, logical: i64, physical: i64| {
            let near = promoted(&far, level_ms, NOW + after_ms);
            assert_eq!(
                (near.logical_ms, near.physical_ms),
                (NOW + logical, NOW + physical),
                "{level_ms} {after_ms}"
            );
        };
        check(300_000, 0, 10_000, 15_000);
        check(300_000, 9_000, 10_000, 15_000);
        check(4_000, 0, 4_000, 9_000);
        check(4_000, 9_000, 10_000, 15_000);
        check(4_000, 12_000, 10_000, 15_000);
    }

    #[test]
    fn jitter_takes_up_to_a_tenth_and_adds_nothing() {
        let wish = Wish { lifetime: Lifetime::of_ms(1_000), ..Wish::default() };
        let check = |random: f64, expected: i64| {
            let entry = made(Content::Absent, Stamp(1), &wish, 1, NOW, random);
            assert_eq!(entry.logical_ms - NOW, expected, "{random}");
        };
        check(0.0, 1_000);
        check(0.5, 950);
        check(1.0, 900);
        check(7.0, 900);
        let shortest = Wish { lifetime: Lifetime::of_ms(1), ..Wish::default() };
        assert_eq!(made(Content::Absent, Stamp(1), &shortest, 1, NOW, 1.0).logical_ms, NOW + 1);
    }

    #[test]
    fn a_stale_entry_is_served_a_while_longer_but_not_for_ever() {
        let entry = value(Some(1_000), 5_000);
        let later = throttled(&entry, 300, NOW + 2_000);
        assert_eq!(judge(&later, None, NOW + 2_299), Verdict::Fresh);
        assert_eq!(judge(&later, None, NOW + 2_300), Verdict::Stale);
        assert_eq!(throttled(&entry, 60_000, NOW + 2_000).logical_ms, entry.physical_ms);
        let ended = expired(&entry, Stamp(9), NOW + 10);
        assert_eq!(judge(&ended, None, NOW + 10), Verdict::Stale);
        assert_eq!((ended.stamp, ended.physical_ms), (Stamp(9), entry.physical_ms));
    }

    #[test]
    fn stamps_rise_whatever_the_clock_does() {
        let stamps = Stamps::default();
        let first = stamps.next(NOW);
        assert_eq!(first, Stamp(NOW as u64 * 1000));
        assert!(stamps.next(NOW - 5_000) > first);
        stamps.saw(Stamp(first.0 + 1_000_000));
        assert_eq!(stamps.next(NOW), Stamp(first.0 + 1_000_001));
    }
}
