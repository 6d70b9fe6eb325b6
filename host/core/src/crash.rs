//! The rule for tasks that were running when their host died.
//!
//! Crashes are counted apart from attempts. A task that was leased and had not started is charged nothing.

/// Crashes after which a task runs with nothing beside it.
pub const CRASHES_BEFORE_ALONE: u32 = 2;

/// What happens to a task that ran when its host died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the queue.
    Return,
    /// Back to the queue, to run with nothing beside it, so that a third crash is its own.
    ReturnAlone,
    /// It crashed the host alone: it fails with `quarantined`.
    Quarantine,
}

/// The verdict after `crashes` crashes, this one included.
pub fn verdict(crashes: u32) -> Verdict {
    match crashes {
        0..CRASHES_BEFORE_ALONE => Verdict::Return,
        CRASHES_BEFORE_ALONE => Verdict::ReturnAlone,
        _ => Verdict::Quarantine,
    }
}

/// Whether a task with so many crashes runs with nothing beside it.
pub fn runs_alone(crashes: u32) -> bool {
    crashes >= CRASHES_BEFORE_ALONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_while_alone_quarantines() {
        assert_eq!(verdict(0), Verdict::Return);
        assert_eq!(verdict(1), Verdict::Return);
        assert_eq!(verdict(2), Verdict::ReturnAlone);
        assert_eq!(verdict(3), Verdict::Quarantine);
        assert!(!runs_alone(1));
        assert!(runs_alone(2));
    }
}
