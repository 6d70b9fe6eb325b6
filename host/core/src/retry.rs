//! The rule that makes a transition of an outcome.
//!
//! Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a wait drawn
//! evenly between zero and a bound that doubles with every attempt. A kind's manifest and a submit may ask for another
//! bound, factor, jitter, and for other codes than those that are tried again by their class.

use serde::{Deserialize, Serialize};

use crate::code::{Code, CodeSet, RetryClass};
use crate::limit::LimitFact;
use crate::outcome::{Failure, Outcome, RetryWish};
use crate::stop::StopReason;
use crate::task::Transition;

/// Upper bound of the wait after the first failed attempt, in milliseconds.
pub const BACKOFF_FIRST_MS: u64 = 1_000;
/// Upper bound of any wait, in milliseconds: 5 minutes.
pub const BACKOFF_MAX_MS: u64 = 300_000;
/// The longest wait that a plugin can ask for, in milliseconds: 24 hours.
pub const WISH_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// The largest factor from one wait to the next.
pub const FACTOR_MAX: u64 = 10;

/// What a manifest or a submit asks about being tried again; `None` leaves it to whoever comes before: manifest, host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a retry policy, which is an object")]
pub struct RetryRequest {
    /// Upper bound of the wait after the first failed attempt, in milliseconds.
    #[serde(default, alias = "first-ms", skip_serializing_if = "Option::is_none")]
    pub first_ms: Option<u64>,
    /// Upper bound of any wait, in milliseconds.
    #[serde(default, alias = "max-ms", skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u64>,
    /// By how much the bound grows with every attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<u64>,
    /// How much of the bound is drawn by chance, in percent: 100 is anything down to no wait, 0 is the bound itself.
    #[serde(default, alias = "jitter-percent", skip_serializing_if = "Option::is_none")]
    pub jitter_percent: Option<u64>,
    /// The codes that are tried again, instead of those whose class says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodeSet>,
}

impl RetryRequest {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == RetryRequest::default()
    }

    /// The first number that is beyond its limit.
    pub fn check(&self) -> Result<(), LimitFact> {
        let fields = [
            ("retry.first_ms", self.first_ms, 0, WISH_MAX_MS),
            ("retry.max_ms", self.max_ms, 0, WISH_MAX_MS),
            ("retry.factor", self.factor, 1, FACTOR_MAX),
            ("retry.jitter_percent", self.jitter_percent, 0, 100),
        ];
        let beyond = fields
            .into_iter()
            .find(|(_, asked, least, most)| asked.is_some_and(|asked| !(*least..=*most).contains(&asked)));
        beyond.map_or(Ok(()), |(name, asked, _, most)| Err(LimitFact::of_host(name, most, asked)))
    }
}

/// When a task is tried again, and how long it waits for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    first_ms: u64,
    max_ms: u64,
    factor: u64,
    jitter_percent: u64,
    codes: Option<CodeSet>,
}

impl RetryPolicy {
    /// What the submit asks for, then the manifest, then the host.
    pub fn of(manifest: &RetryRequest, task: &RetryRequest) -> RetryPolicy {
        RetryPolicy {
            first_ms: task.first_ms.or(manifest.first_ms).unwrap_or(BACKOFF_FIRST_MS),
            max_ms: task.max_ms.or(manifest.max_ms).unwrap_or(BACKOFF_MAX_MS),
            factor: task.factor.or(manifest.factor).unwrap_or(2),
            jitter_percent: task.jitter_percent.or(manifest.jitter_percent).unwrap_or(100),
            codes: task.codes.or(manifest.codes),
        }
    }
}

/// What every task gets that asks for nothing else.
impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy::of(&RetryRequest::default(), &RetryRequest::default())
    }
}

/// What the rule looks at beside the outcome.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// The attempt that ended, from 1.
    pub attempt: u32,
    /// Attempts the task may have.
    pub attempts_max: u32,
    /// Earlier attempts that ended by their deadline.
    pub deadlines: u32,
    /// When the whole task is over, if it has such a time: an attempt that would begin later does not.
    pub end_by_ms: Option<i64>,
}

/// What to tell the store; `None` when the task is no longer this host's to settle.
///
/// `random` is evenly drawn from 0 to 1.
pub fn decide(
    history: History,
    policy: &RetryPolicy,
    outcome: Outcome,
    now_ms: i64,
    random: f64,
) -> Option<Transition> {
    match outcome {
        Outcome::Completed(result) => Some(Transition::Complete(result)),
        Outcome::Stopped(StopReason::Drained) => Some(Transition::HandBack),
        // The cancel itself has stored the end; a lost lease is another host's.
        Outcome::Stopped(StopReason::Cancelled | StopReason::LeaseLost) => None,
        Outcome::Failed(failure) => {
            let wait = wait_ms(policy, history.attempt, failure.retry, random);
            let run_at_ms = now_ms.saturating_add_unsigned(wait);
            let in_time = history.end_by_ms.is_none_or(|end_by_ms| run_at_ms < end_by_ms);
            if in_time && may_retry(history, policy, &failure) {
                Some(Transition::Retry { run_at_ms, failure })
            } else {
                Some(Transition::Fail(failure))
            }
        }
    }
}

fn may_retry(history: History, policy: &RetryPolicy, failure: &Failure) -> bool {
    if history.attempt >= history.attempts_max {
        return false;
    }
    match (failure.retry, policy.codes, failure.code.retry_class()) {
        (RetryWish::After(_), ..) => true,
        (RetryWish::ByCode, Some(codes), _) => codes.contains(failure.code),
        (RetryWish::ByCode, None, RetryClass::Permanent) => false,
        (RetryWish::ByCode, None, RetryClass::Retryable) => true,
        (RetryWish::ByCode, None, RetryClass::RetryableUpTo(times)) => {
            debug_assert_eq!(failure.code, Code::DeadlineExceeded, "only deadlines are counted");
            history.deadlines < times
        }
    }
}

/// How long to wait behind a failed attempt, from 1, in milliseconds.
pub(crate) fn wait_ms(policy: &RetryPolicy, attempt: u32, wish: RetryWish, random: f64) -> u64 {
    let growth = policy.factor.saturating_pow(attempt.saturating_sub(1));
    let bound = policy.first_ms.saturating_mul(growth).min(policy.max_ms);
    let by_chance = bound as f64 * policy.jitter_percent as f64 / 100.0;
    let drawn = (bound as f64 - by_chance * (1.0 - random.clamp(0.0, 1.0))) as u64;
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
        check_under(&RetryRequest::default(), attempt, deadlines, code, retry, waits);
    }

    fn check_under(
        request: &RetryRequest,
        attempt: u32,
        deadlines: u32,
        code: Code,
        retry: RetryWish,
        waits: Option<i64>,
    ) {
        let history = History { attempt, attempts_max: 5, deadlines, end_by_ms: None };
        let policy = RetryPolicy::of(&RetryRequest::default(), request);
        let mut failure = Failure::new(code, "no");
        failure.retry = retry;
        let got = match decide(history, &policy, Outcome::Failed(failure), 1_000_000, 1.0) {
            Some(Transition::Retry { run_at_ms, .. }) => Some(run_at_ms - 1_000_000),
            Some(Transition::Fail(_)) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(got, waits, "{request:?}, attempt {attempt}, {deadlines} deadlines, {code}, {retry:?}");
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
    fn codes_that_are_asked_for_replace_the_classes() {
        use RetryWish::{After, ByCode};
        let codes = Some([Code::Trap, Code::DeadlineExceeded].into_iter().collect());
        let request = RetryRequest { codes, ..RetryRequest::default() };
        check_under(&request, 1, 0, Code::Trap, ByCode, Some(1_000));
        check_under(&request, 4, 3, Code::DeadlineExceeded, ByCode, Some(8_000));
        check_under(&request, 1, 0, Code::Internal, ByCode, None);
        check_under(&request, 1, 0, Code::PluginFailed, After(None), Some(1_000));
        let none = RetryRequest { codes: Some(CodeSet::default()), ..RetryRequest::default() };
        check_under(&none, 1, 0, Code::Internal, ByCode, None);
    }

    #[test]
    fn waits_are_what_was_asked_for() {
        let wait = |request: RetryRequest, attempt, random| {
            wait_ms(&RetryPolicy::of(&RetryRequest::default(), &request), attempt, RetryWish::ByCode, random)
        };
        let request =
            RetryRequest { first_ms: Some(10), factor: Some(3), max_ms: Some(80), ..RetryRequest::default() };
        assert_eq!([1, 2, 3].map(|attempt| wait(request, attempt, 1.0)), [10, 30, 80]);
        let half = RetryRequest { jitter_percent: Some(50), ..request };
        assert_eq!([0.0, 0.5, 1.0].map(|random| wait(half, 3, random)), [40, 60, 80]);
        let none = RetryRequest { jitter_percent: Some(0), ..request };
        assert_eq!(wait(none, 2, 0.0), 30);
        let still = RetryRequest { factor: Some(1), ..request };
        assert_eq!(wait(still, u32::MAX, 1.0), 10);
        assert_eq!(wait(RetryRequest { first_ms: Some(0), ..request }, 3, 1.0), 0);
    }

    #[test]
    fn a_submit_is_asked_before_the_manifest() {
        let manifest = RetryRequest { first_ms: Some(1), factor: Some(4), ..RetryRequest::default() };
        let task = RetryRequest { first_ms: Some(2), ..RetryRequest::default() };
        let policy = RetryPolicy::of(&manifest, &task);
        assert_eq!((policy.first_ms, policy.factor, policy.max_ms), (2, 4, BACKOFF_MAX_MS));
    }

    #[test]
    fn numbers_of_a_policy_stop_at_their_limits() {
        let check = |change: fn(&mut RetryRequest, u64), least: u64, most: u64| {
            for (number, fits) in [(least, true), (most, true), (most + 1, false)] {
                let mut request = RetryRequest::default();
                change(&mut request, number);
                assert_eq!(request.check().is_ok(), fits, "{request:?}");
            }
        };
        check(|request, ms| request.first_ms = Some(ms), 0, WISH_MAX_MS);
        check(|request, ms| request.max_ms = Some(ms), 0, WISH_MAX_MS);
        check(|request, factor| request.factor = Some(factor), 1, FACTOR_MAX);
        check(|request, percent| request.jitter_percent = Some(percent), 0, 100);
        assert!(RetryRequest { factor: Some(0), ..RetryRequest::default() }.check().is_err());
    }

    #[test]
    fn no_attempt_begins_when_the_task_is_over() {
        let after = |end_by_ms| {
            let history = History { attempt: 1, attempts_max: 5, deadlines: 0, end_by_ms: Some(end_by_ms) };
            let failed = Outcome::Failed(Failure::new(Code::Internal, "no"));
            decide(history, &RetryPolicy::default(), failed, 5_000, 1.0)
        };
        assert!(matches!(after(6_001), Some(Transition::Retry { run_at_ms: 6_000, .. })));
        assert!(matches!(after(6_000), Some(Transition::Fail(failure)) if failure.code == Code::Internal));
    }

    #[test]
    fn waits_are_bounded_however_many_attempts_there_were() {
        let wait = |attempt, random| wait_ms(&RetryPolicy::default(), attempt, RetryWish::ByCode, random);
        assert_eq!(wait(u32::MAX, 1.0), BACKOFF_MAX_MS);
        assert_eq!(wait(1, 0.0), 0);
        assert_eq!(wait(0, 7.0), BACKOFF_FIRST_MS);
    }

    #[test]
    fn stops_burn_no_attempt() {
        let history = History { attempt: 5, attempts_max: 5, deadlines: 0, end_by_ms: None };
        let decide = |outcome| decide(history, &RetryPolicy::default(), outcome, 0, 0.0);
        let stopped = |reason| decide(Outcome::Stopped(reason));
        assert_eq!(stopped(StopReason::Drained), Some(Transition::HandBack));
        assert_eq!(stopped(StopReason::Cancelled), None);
        assert_eq!(stopped(StopReason::LeaseLost), None);
        let done = Outcome::Completed(Payload::json("1"));
        assert!(matches!(decide(done), Some(Transition::Complete(_))));
    }
}
