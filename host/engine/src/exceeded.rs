//! Why the host itself ends a run: the errors that we raise inside a call and classify outside of it.

use keiko_core::stop::StopReason;

/// A limit that a run met, or an order to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    /// Guest and host calls together used more fuel than the budget has.
    #[error("the attempt used up its fuel")]
    Fuel,
    /// One host call more than the budget has.
    #[error("the attempt used up its host calls")]
    HostCalls,
    /// The wall clock of the attempt is over.
    #[error("the attempt reached its deadline")]
    Deadline,
    /// Nothing moved in a host call for as long as the budget lets it.
    #[error("nothing moved in a host call")]
    Heartbeat,
    /// All memories together would hold this many bytes.
    #[error("the memories would hold {asked} bytes")]
    Memory {
        /// The sum after the growth.
        asked: u64,
    },
    /// All tables together would hold this many elements.
    #[error("the tables would hold {asked} elements")]
    TableElements {
        /// The sum after the growth.
        asked: u64,
    },
    /// The component model's concurrency has no room for one task, stream, future or set of waitables more.
    #[error("the attempt has too many waitables")]
    Waitables,
    /// One call asked for this many random bytes.
    #[error("{asked} random bytes in one call")]
    RandomBytes {
        /// The length asked for.
        asked: u64,
    },
    /// A program printed a result of this many bytes.
    #[error("a result of {asked} bytes")]
    ResultBytes {
        /// Its length so far.
        asked: u64,
    },
    /// The runtime ends the attempt.
    #[error("the attempt was stopped")]
    Stopped(StopReason),
}
