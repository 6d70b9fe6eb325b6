//! What the cache has counted since the host started.

use std::sync::atomic::{AtomicU64, Ordering};

use keiko_core::cache::Level;

/// How a level answered a question, or took a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had a value that is fresh.
    Hit,
    /// It had one that was served though it is not.
    Stale,
    /// It had nothing.
    Miss,
    /// It had something else than what was stored.
    Garbage,
    /// It failed, or was too slow.
    Failed,
    /// It was not asked, because it rests.
    Rested,
    /// It kept a change.
    Kept,
    /// It did not keep a change.
    Unkept,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 8] = [
        Outcome::Hit,
        Outcome::Stale,
        Outcome::Miss,
        Outcome::Garbage,
        Outcome::Failed,
        Outcome::Rested,
        Outcome::Kept,
        Outcome::Unkept,
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Stale => "stale",
            Outcome::Miss => "miss",
            Outcome::Garbage => "garbage",
            Outcome::Failed => "failed",
            Outcome::Rested => "rested",
            Outcome::Kept => "kept",
            Outcome::Unkept => "unkept",
        }
    }
}

/// Something that is counted whatever the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A value was computed.
    Computed,
    /// A computation failed or was given up.
    Uncomputed,
    /// Somebody waited for another's computation.
    Waited,
    /// A computation ended after its right to be kept had gone to another.
    Fenced,
    /// A value was too large to be kept, and was handed on all the same.
    TooLarge,
    /// A change that a level had missed was repeated there.
    Repeated,
    /// A change that a level had missed was given up.
    GivenUp,
    /// A change that another host told.
    Heard,
    /// Changes of other hosts may have been missed, so that everything in memory is looked up again.
    Doubted,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 9] = [
        Event::Computed,
        Event::Uncomputed,
        Event::Waited,
        Event::Fenced,
        Event::TooLarge,
        Event::Repeated,
        Event::GivenUp,
        Event::Heard,
        Event::Doubted,
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Event::Computed => "computed",
            Event::Uncomputed => "uncomputed",
            Event::Waited => "waited",
            Event::Fenced => "fenced",
            Event::TooLarge => "too_large",
            Event::Repeated => "repeated",
            Event::GivenUp => "given_up",
            Event::Heard => "heard",
            Event::Doubted => "doubted",
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    levels: [[AtomicU64; Outcome::ALL.len()]; Level::ALL.len()],
    events: [AtomicU64; Event::ALL.len()],
}

impl Counters {
    pub(crate) fn level(&self, level: Level, outcome: Outcome) {
        self.levels[level as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn event(&self, event: Event) {
        self.events[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheFigures {
            levels: std::array::from_fn(|level| std::array::from_fn(|at| read(&self.levels[level][at]))),
            events: std::array::from_fn(|at| read(&self.events[at])),
            memory_entries: 0,
            memory_bytes: 0,
            unrepeated: 0,
        }
    }
}

/// A look at the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    levels: [[u64; Outcome::ALL.len()]; Level::ALL.len()],
    events: [u64; Event::ALL.len()],
    /// Entries in this host's memory.
    pub memory_entries: u64,
    /// Bytes that they take.
    pub memory_bytes: u64,
    /// Changes that a level has missed and that wait to be repeated.
    pub unrepeated: usize,
}

impl CacheFigures {
    /// How often a level answered so.
    pub fn level(&self, level: Level, outcome: Outcome) -> u64 {
        self.levels[level as usize][outcome as usize]
    }

    /// How often this happened.
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }
}
