//! Pauses: whose tasks are not leased. A tenant, one of its kinds, or what one host leases can be paused; submits go on, and
//! what runs already runs to its end.
//!
//! A lease does not look behind a paused kind each time: what it finds of one it *parks* at a place behind every time, so
//! that it finds each of them once. When the kind is resumed they are given their due time again, a part at a time.

use crate::id::{KindId, TenantId};

/// The place of a parked task, in milliseconds: later than any time that anybody waits for, and not that of a held one.
pub const PARKED_MS: i64 = 1 << 61;

// Places are moved by the difference of two clocks, which is less than that.
const _: () = assert!(crate::group::HELD_MS - PARKED_MS > PARKED_MS / 2);

/// What is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Paused {
    /// Whose tasks.
    pub tenant: TenantId,
    /// Only those of this kind; `None` is all.
    pub kind: Option<KindId>,
}

impl Paused {
    /// Whether a task of this tenant and kind is not to be leased.
    pub fn covers(&self, tenant: TenantId, kind: KindId) -> bool {
        self.tenant == tenant && self.kind.is_none_or(|own| own == kind)
    }
}

/// A pause as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// What.
    pub what: Paused,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// Whether it is over, and only waits for its parked tasks to be given their places.
    pub ending: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_covers_its_tenant_or_its_kind() {
        let (tenant, kind) = (TenantId(1), KindId(2));
        let check = |own: Option<KindId>, other: (i64, i64), expected| {
            let paused = Paused { tenant, kind: own };
            assert_eq!(paused.covers(TenantId(other.0), KindId(other.1)), expected, "{paused:?} {other:?}");
        };
        check(None, (1, 2), true);
        check(None, (1, 3), true);
        check(None, (2, 2), false);
        check(Some(kind), (1, 2), true);
        check(Some(kind), (1, 3), false);
        check(Some(kind), (2, 2), false);
    }
}
