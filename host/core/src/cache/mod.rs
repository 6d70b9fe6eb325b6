//! What the cache keeps, under which keys, and by which rules it lives and ends. No I/O: the levels are behind
//! [`crate::port::CacheLevel`].
//!
//! - A [`CacheKey`] carries the tenant by its type; its text form carries the installation, too. There is no other way to
//!   a level than by such a key.
//! - A change is an [`Entry`] with a [`Stamp`]; of two changes of one key the newer wins on every level, whatever the order
//!   in which they arrive. A removal is an entry, too, so that a late write does not undo it.
//! - What is stored is an envelope: it has a format number, and a checksum over itself and its key, so that whatever else
//!   stands in its place is never taken for a value.

mod breaker;
mod envelope;
mod key;
mod rule;

pub use breaker::Breaker;
pub use envelope::{Undecodable, decode, encode};
pub use key::{CacheKey, Installation, InvalidKey, Namespace, Tag};
pub use rule::{
    Content, Entry, Lifetime, Stamp, Stamps, Times, Verdict, Why, Wish, expired, judge, made, promoted,
    removed, throttled,
};

/// Longest key of an entry, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 128;
/// Tags of one entry.
pub const TAGS_MAX: usize = 16;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 2 << 20;
/// Keys of one call.
pub const KEYS_MAX: usize = 100;
/// Longest lifetime, in milliseconds: 30 days.
pub const LIFETIME_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;
/// How long a removal is remembered, in milliseconds: longer than a late write can be under way.
pub const REMOVED_MS: i64 = 10 * 60 * 1000;
/// How long it is remembered that a tag was removed, in milliseconds: longer than anything that has it.
pub const MARKER_MS: i64 = 2 * LIFETIME_MS_MAX as i64;

/// One of the places where entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// This host's memory.
    Memory,
    /// A Redis server that hosts share.
    Redis,
    /// The database.
    Database,
}

impl Level {
    /// From the nearest to the last.
    pub const ALL: [Level; 3] = [Level::Memory, Level::Redis, Level::Database];

    /// Its name in metrics and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Memory => "memory",
            Level::Redis => "redis",
            Level::Database => "database",
        }
    }
}
