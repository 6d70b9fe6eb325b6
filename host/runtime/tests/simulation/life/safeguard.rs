//! What keeps the promises, each of which can be switched off: a life without it must break one.

use std::fmt;
use std::time::Duration;

use keiko_runtime::Options;
use keiko_store::memory::Mutation;

/// Longer than any life.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// One safeguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// A promise of the store.
    Store(Mutation),
    /// A host stops its attempts before its lease ends, when it hears nothing of its database.
    SelfCancel,
    /// A host that holds tasks beats well within its lease.
    Beat,
    /// A host looks for tasks though nobody tells it of any.
    Poll,
    /// A caller that waits looks again though nobody tells it that its task has ended.
    LookAgain,
    /// What ran when a process died is known to the next one.
    Journal,
    /// What is leased by a call whose answer was lost goes back to the queue.
    ForgetfulLease,
}

impl Safeguard {
    /// Every one. What no life can tell is left to the suite of the stores: a rescue of the living, say, which fences cover.
    pub const ALL: &'static [Safeguard] = &[
        Safeguard::SelfCancel,
        Safeguard::Beat,
        Safeguard::Poll,
        Safeguard::LookAgain,
        Safeguard::Journal,
        Safeguard::ForgetfulLease,
        // Fencing of settles, and that nothing is leased twice.
        Safeguard::Store(Mutation::NoFence),
        Safeguard::Store(Mutation::LeaseTwice),
        Safeguard::Store(Mutation::LeaseWithoutToken),
        // Leases, rescue, and what a host gives back.
        Safeguard::Store(Mutation::BeatProlongsNothing),
        Safeguard::Store(Mutation::BeatHidesOthers),
        Safeguard::Store(Mutation::RescueNothing),
        Safeguard::Store(Mutation::HandBackCharged),
        Safeguard::Store(Mutation::CloseKeepsTasks),
        // Crashes.
        Safeguard::Store(Mutation::CrashUncharged),
        Safeguard::Store(Mutation::CrashChargedToUnstarted),
        Safeguard::Store(Mutation::ThirdCrashReturns),
        // Idempotency.
        Safeguard::Store(Mutation::KeyIgnored),
        Safeguard::Store(Mutation::KeyTakesAnyBody),
        Safeguard::Store(Mutation::KeyAnswersNewIds),
        // The result with its effects.
        Safeguard::Store(Mutation::ResultLost),
        Safeguard::Store(Mutation::EffectsLost),
        Safeguard::Store(Mutation::EffectsThoughStale),
        Safeguard::Store(Mutation::TaskItemsLost),
        Safeguard::Store(Mutation::DoneItemStays),
        // Slots.
        Safeguard::Store(Mutation::SlotsIgnored),
        Safeguard::Store(Mutation::SlotNeverFree),
        Safeguard::Store(Mutation::SlotWakesNobody),
        Safeguard::Store(Mutation::SlotNotKept),
        // Keys of kinds.
        Safeguard::Store(Mutation::OnceIgnored),
        Safeguard::Store(Mutation::OnceForEver),
        Safeguard::Store(Mutation::OnceReplacesBegun),
        Safeguard::Store(Mutation::ReplaceKeepsInput),
        Safeguard::Store(Mutation::ReplaceKeepsTime),
        // Groups and joins.
        Safeguard::Store(Mutation::WindowIgnored),
        Safeguard::Store(Mutation::WindowOneMore),
        Safeguard::Store(Mutation::WindowStands),
        Safeguard::Store(Mutation::GroupUncounted),
        Safeguard::Store(Mutation::OutcomesBackwards),
        Safeguard::Store(Mutation::FailFastOfAnyGroup),
        Safeguard::Store(Mutation::RescueForgetsGroups),
        Safeguard::Store(Mutation::JoinGoesAtOnce),
        Safeguard::Store(Mutation::JoinNeverGoes),
        // Pauses.
        Safeguard::Store(Mutation::ParkedForEver),
        Safeguard::Store(Mutation::PauseIgnored),
        // Cancels that follow the tree.
        Safeguard::Store(Mutation::BranchOfChildren),
        // One end, and counts that equal a recount.
        Safeguard::Store(Mutation::CancelOfEnded),
        Safeguard::Store(Mutation::CancelUncounted),
        Safeguard::Store(Mutation::SettleUncounted),
        Safeguard::Store(Mutation::RetriedAttemptLost),
        Safeguard::Store(Mutation::ChildForgetsTenant),
    ];

    /// The promise of the store that is broken without it.
    pub fn mutation(self) -> Option<Mutation> {
        match self {
            Safeguard::Store(mutation) => Some(mutation),
            _ => None,
        }
    }

    /// A host without it.
    pub fn take_from(self, options: &mut Options) {
        match self {
            Safeguard::SelfCancel => options.self_cancel = NEVER,
            Safeguard::Beat => options.beat = options.lease * 2,
            Safeguard::Poll => options.poll = NEVER,
            Safeguard::LookAgain => options.look_again = NEVER,
            Safeguard::Journal => options.journal_dir = None,
            Safeguard::ForgetfulLease => options.keeps_doubtful_leases = true,
            Safeguard::Store(_) => {}
        }
    }
}

impl fmt::Display for Safeguard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Safeguard::Store(mutation) => write!(formatter, "{mutation:?}"),
            other => write!(formatter, "{other:?}"),
        }
    }
}
