//! What keeps the promises of the cache, by name: a simulation goes without one at a time, and has to notice.
//!
//! Only the feature `simulation` can switch one off. Without it [`on`] is the constant `true`, and what asks it is compiled
//! as if it did not.

#[cfg(feature = "simulation")]
use std::cell::Cell;

/// One safeguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// Other hosts are told what changed.
    Tell,
    /// They are told when it is where they look, and not before.
    TellLast,
    /// What could not be told is told again.
    TellAgain,
    /// What a level has missed is repeated there.
    Repeat,
    /// What has proved not to be the newest is forgotten, when it is written and when it is repeated.
    Forget,
    /// Memory keeps the newer of two.
    MemoryNewer,
    /// What is heard of a change takes what is older out of memory.
    Hear,
    /// Everything is looked up again when messages are lost.
    HearLoss,
    /// While they are lost, everything is looked up again every second.
    BlindEnds,
    /// What is in memory is gone when somebody else has cleared.
    HearClear,
    /// A clear is noted, so that what is older stays gone.
    ClearedMarker,
    /// Stamps go on from those of others.
    SeeStamps,
    /// What goes to a nearer level keeps what is left of its lifetime.
    PromoteRest,
    /// What has ended is not served.
    Ends,
    /// Removed tags count for what is in memory.
    MarkersNear,
    /// Removed tags count for what is read from the levels behind.
    MarkersFar,
    /// The right to compute is one host's.
    Lease,
    /// It is prolonged while its holder lives.
    Prolong,
    /// It is given back by whoever gives up.
    FreeOnDrop,
    /// What was computed after the right had gone to another is not kept.
    Fence,
    /// A computed value is as old as the beginning of its computation, and known to be the newest of then alone.
    BeganThen,
}

#[cfg(feature = "simulation")]
impl Safeguard {
    /// Every one.
    pub const ALL: &'static [Safeguard] = &[
        Safeguard::Tell,
        Safeguard::TellLast,
        Safeguard::TellAgain,
        Safeguard::Repeat,
        Safeguard::Forget,
        Safeguard::MemoryNewer,
        Safeguard::Hear,
        Safeguard::HearLoss,
        Safeguard::BlindEnds,
        Safeguard::HearClear,
        Safeguard::ClearedMarker,
        Safeguard::SeeStamps,
        Safeguard::PromoteRest,
        Safeguard::Ends,
        Safeguard::MarkersNear,
        Safeguard::MarkersFar,
        Safeguard::Lease,
        Safeguard::Prolong,
        Safeguard::FreeOnDrop,
        Safeguard::Fence,
        Safeguard::BeganThen,
    ];

    /// Switches this one, or none, off for all caches of this thread.
    pub fn switch_off(off: Option<Safeguard>) {
        OFF.set(off);
    }
}

#[cfg(feature = "simulation")]
thread_local! {
    static OFF: Cell<Option<Safeguard>> = const { Cell::new(None) };
}

/// Whether a safeguard is on.
#[cfg(feature = "simulation")]
pub(super) fn on(safeguard: Safeguard) -> bool {
    OFF.get() != Some(safeguard)
}

/// Whether a safeguard is on: always.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub(super) const fn on(_: Safeguard) -> bool {
    true
}
