//! The rule that makes a transition of an outcome.
//!
//! Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a wait drawn
//! evenly between zero and a bound that doubles with every attempt.

use crate::code::{Code, RetryClass};
use crate::outcome::{Failure, Outcome, RetryWish};
use crate::stop::StopReason;
use crate::task::Transition;

/// Upper bound of the wait after the first failed attempt, in milliseconds.
pub const BACKOFF_FIRST_MS: u64 = 1_000;
/// Upper bound of any wait, in milliseconds: 5 minutes.
pub const BACKOFF_MAX_MS: u64 = 300_000;
/// The longest wait that a plugin can ask for, in milliseconds: 24 hours.
pub const WISH_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// What the rule looks at beside the outcome.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// The attempt that ended, from 1.
    pub attempt: u32,
    /// Attempts the task may have.
    pub attempts_max: u32,
    /// Earlier attempts that ended by their deadline.
    pub deadlines: u32,
}

/// What to tell the store; `None` when the task is no longer this host's to settle.
///
/// `random` is evenly drawn from 0 to 1.
pub fn decide(history: History, outcome: Outcome, now_ms: i64, random: f64) -> Option<Transition> {
    match outcome {
        Outcome::Completed(result) => Some(Transition::Complete(result)),
        Outcome::Stopped(StopReason::Drained) => Some(Transition::HandBack),
        // The cancel itself has stored the end; a lost lease is another host's.
        Outcome::Stopped(StopReason::Cancelled | StopReason::LeaseLost) => None,
        Outcome::Failed(failure) if may_retry(history, &failure) => {
            let wait = wait_ms(history.attempt, failure.retry, random);
            Some(Transition::Retry { run_at_ms: now_ms.saturating_add_unsigned(wait), failure })
        }
        Outcome::Failed(failure) => Some(Transition::Fail(failure)),
    }
}

fn may_retry(history: History, failure: &Failure) -> bool {
    if history.attempt >= history.attempts_max {
        return false;
    }
    match (failure.retry, failure.code.retry_class()) {
        (RetryWish::After(_), _) => true,
        (RetryWish::ByCode, RetryClass::Permanent) => false,
        (RetryWish::ByCode, RetryClass::Retryable) => true,
        (RetryWish::ByCode, RetryClass::RetryableUpTo(times)) => {
            debug_assert_eq!(failure.code, Code::DeadlineExceeded, "only deadlines are counted");
            history.deadlines < times
        }
    }
}

fn wait_ms(attempt: u32, wish: RetryWish, random: f64) -> u64 {
    let doublings = attempt.saturating_sub(1).min(20);
    let bound = (BACKOFF_FIRST_MS << doublings).min(BACKOFF_MAX_MS);
    let drawn = (bound as f64 * random.clamp(0.0, 1.0)) as u64;
    match wish {
        RetryWish::After(Some(least)) => drawn.max(least.min(WISH_MAX_MS)),
        RetryWish::After(None) | RetryWish::ByCode => drawn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Payload;

    fn check(attempt: u32, deadlines: u32, code: Code, retry: RetryWish, waits: Option<i64>) {
        let history = History { attempt, attempts_max: 5, deadlines };
        let mut failure = Failure::new(code, "no");
        failure.retry = retry;
        let got = match decide(history, Outcome::Failed(failure), 1_000_000, 1.0) {
            Some(Transition::Retry { run_at_ms, .. }) => Some(run_at_ms - 1_000_000),
            Some(Transition::Fail(_)) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(got, waits, "attempt {attempt}, {deadlines} deadlines, {code}, {retry:?}");
    }

    #[test]
    fn failures_are_tried_again_by_their_class() {
        use RetryWish::{After, ByCode};
        check(1, 0, Code::Internal, ByCode, Some(1_000));
        check(2, 0, Code::Internal, ByCode, Some(2_000));
        check(4, 0, Code::Internal, ByCode, Some(8_000));
        check(5, 0, Code::Internal, ByCode, None);
        check(1, 0, Code::FuelExhausted, ByCode, None);
        check(1, 0, Code::Trap, ByCode, None);
        check(1, 0, Code::PluginFailed, ByCode, None);
        check(1, 0, Code::PluginFailed, After(None), Some(1_000));
        check(1, 0, Code::PluginFailed, After(Some(60_000)), Some(60_000));
        check(1, 0, Code::PluginFailed, After(Some(u64::MAX)), Some(WISH_MAX_MS as i64));
        check(5, 0, Code::PluginFailed, After(Some(1)), None);
    }

    #[test]
    fn a_deadline_is_met_again_at_most_twice() {
        check(1, 0, Code::DeadlineExceeded, RetryWish::ByCode, Some(1_000));
        check(2, 1, Code::DeadlineExceeded, RetryWish::ByCode, Some(2_000));
        check(3, 2, Code::DeadlineExceeded, RetryWish::ByCode, None);
    }

    #[test]
    fn waits_are_bounded_however_many_attempts_there_were() {
        assert_eq!(wait_ms(u32::MAX, RetryWish::ByCode, 1.0), BACKOFF_MAX_MS);
        assert_eq!(wait_ms(1, RetryWish::ByCode, 0.0), 0);
        assert_eq!(wait_ms(0, RetryWish::ByCode, 7.0), BACKOFF_FIRST_MS);
    }

    #[test]
    fn stops_burn_no_attempt() {
        let history = History { attempt: 5, attempts_max: 5, deadlines: 0 };
        let stopped = |reason| decide(history, Outcome::Stopped(reason), 0, 0.0);
        assert_eq!(stopped(StopReason::Drained), Some(Transition::HandBack));
        assert_eq!(stopped(StopReason::Cancelled), None);
        assert_eq!(stopped(StopReason::LeaseLost), None);
        let done = Outcome::Completed(Payload::json("1"));
        assert!(matches!(decide(history, done, 0, 0.0), Some(Transition::Complete(_))));
    }
}
