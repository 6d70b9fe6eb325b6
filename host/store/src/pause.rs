//! How all databases write what is paused: a kind by its number, and a whole tenant by none.

use keiko_core::id::KindId;
use keiko_core::pause::Paused;

/// The number that stands for every kind; no kind has it.
const EVERY: KindId = KindId(0);

/// The kind as a column holds it.
pub(crate) fn stored_kind(what: Paused) -> i64 {
    what.kind.unwrap_or(EVERY).0
}

/// The kind that a column holds.
pub(crate) fn told_kind(stored: KindId) -> Option<KindId> {
    (stored != EVERY).then_some(stored)
}
