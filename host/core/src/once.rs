//! What a submit asks of the other tasks of its kind and key: that it is the only one, the newest one, or not sooner than
//! the one before.
//!
//! A key belongs to a tenant and a kind. It stands for the task that was submitted under it last; whether that has ended is
//! looked up and not noted, so that the end of a task costs nothing more.
//!
//! A task that is to be the only one keeps its key for a retry by hand, which asks for the same again: while another one is
//! live it is refused, and otherwise the key stands for the task that is tried again. The other rules are about submits, and
//! a retry by hand asks for nothing of them.

use crate::effect::check_key;
use crate::limit::{DELAY_MS_MAX, KEY_AGE_MS, LimitFact};

/// A key of a kind, and what is asked under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// 1 to [`crate::limit::KEY_BYTES_MAX`] bytes without control characters.
    pub key: String,
    /// What is asked.
    pub rule: OnceRule,
}

/// What is asked of the tasks of a kind and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnceRule {
    /// While one of them is live there is no other: a submit finds it, or is refused.
    Unique {
        /// Whether it is refused.
        refuse: bool,
    },
    /// While one of them waits for its first attempt it takes the newest input, and is due so long after that, but no later
    /// than `max_ms` after it was submitted.
    Debounce {
        /// Milliseconds without another submit.
        wait_ms: u64,
        /// Milliseconds since the first one.
        max_ms: Option<u64>,
    },
    /// Each is due no sooner than so long after the one before.
    Throttle {
        /// Milliseconds between two.
        interval_ms: u64,
    },
}

impl OnceRule {
    /// How long a key is kept at least after its task was due, in milliseconds: until the next one need not keep its distance.
    pub fn kept_ms(self) -> i64 {
        match self {
            OnceRule::Throttle { interval_ms } => {
                i64::try_from(interval_ms).unwrap_or(i64::MAX).max(KEY_AGE_MS)
            }
            OnceRule::Unique { .. } | OnceRule::Debounce { .. } => KEY_AGE_MS,
        }
    }
}

impl Once {
    /// Why this cannot be asked.
    pub fn check(&self) -> Result<(), OnceError> {
        check_key(&self.key).map_err(OnceError::Key)?;
        let times = match self.rule {
            OnceRule::Unique { .. } => [None, None],
            OnceRule::Debounce { wait_ms, max_ms } => {
                [Some(("wait_ms", wait_ms)), max_ms.map(|ms| ("max_ms", ms))]
            }
            OnceRule::Throttle { interval_ms } => [Some(("interval_ms", interval_ms)), None],
        };
        let wrong = times.into_iter().flatten().find(|(_, ms)| !(1..=DELAY_MS_MAX).contains(ms));
        wrong.map_or(Ok(()), |(name, ms)| {
            Err(OnceError::Time(LimitFact::of_host(name, DELAY_MS_MAX, Some(ms))))
        })
    }

    /// The key, when it is asked to be the only one: what a retry by hand looks at.
    pub fn unique_key(&self) -> Option<&str> {
        matches!(self.rule, OnceRule::Unique { .. }).then_some(self.key.as_str())
    }

    /// The numbers that tell this rule from every other, for a hash.
    pub fn numbers(&self) -> [u64; 3] {
        match self.rule {
            OnceRule::Unique { refuse } => [0, u64::from(refuse), 0],
            OnceRule::Debounce { wait_ms, max_ms } => [1, wait_ms, max_ms.unwrap_or_default()],
            OnceRule::Throttle { interval_ms } => [2, interval_ms, 0],
        }
    }
}

/// Why nothing of the kind can be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnceError {
    /// The key is empty, too long, or has control characters.
    #[error("{0}")]
    Key(String),
    /// A time is 0, or longer than a task may wait.
    #[error("{0}")]
    Time(LimitFact),
}

/// The task that a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last<Task> {
    /// The task.
    pub task: Task,
    /// When it is or was due, in milliseconds.
    pub due_ms: i64,
    /// How it stands.
    pub stands: Stands,
}

/// How the task of a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// It has ended, or is gone.
    Ended,
    /// It waits for its first attempt, since then.
    Waits {
        /// When it was submitted, in milliseconds.
        created_ms: i64,
    },
    /// It is live, and an attempt of it has begun or is about to.
    Begun,
}

/// What becomes of a submit under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<Task> {
    /// It is a task of its own, due then.
    New {
        /// In milliseconds.
        due_ms: i64,
    },
    /// It is this task, which there is already.
    Found(Task),
    /// It is this task, which takes its input and is due then.
    Replaces {
        /// The task.
        task: Task,
        /// In milliseconds.
        due_ms: i64,
    },
    /// It is refused because this task is live.
    Taken(Task),
    /// It would be due later than a task may wait.
    TooLate {
        /// Milliseconds from now.
        ahead_ms: u64,
    },
}

/// What becomes of a submit, due at `due_ms`, under a key that stands for `last`.
pub fn decide<Task: Copy>(
    rule: OnceRule,
    last: Option<Last<Task>>,
    due_ms: i64,
    now_ms: i64,
) -> Verdict<Task> {
    match (rule, last) {
        (OnceRule::Unique { refuse }, Some(last)) if last.stands != Stands::Ended => {
            if refuse {
                Verdict::Taken(last.task)
            } else {
                Verdict::Found(last.task)
            }
        }
        (OnceRule::Unique { .. }, _) => Verdict::New { due_ms },
        (
            OnceRule::Debounce { wait_ms, max_ms },
            Some(Last { task, stands: Stands::Waits { created_ms }, .. }),
        ) => {
            let quiet_ms = now_ms.saturating_add_unsigned(wait_ms);
            let latest_ms = max_ms.map_or(i64::MAX, |ms| created_ms.saturating_add_unsigned(ms));
            Verdict::Replaces { task, due_ms: quiet_ms.min(latest_ms).max(now_ms) }
        }
        (OnceRule::Debounce { wait_ms, max_ms }, _) => {
            Verdict::New { due_ms: now_ms.saturating_add_unsigned(wait_ms.min(max_ms.unwrap_or(wait_ms))) }
        }
        (OnceRule::Throttle { interval_ms }, last) => {
            let next_ms = last.map_or(i64::MIN, |last| last.due_ms.saturating_add_unsigned(interval_ms));
            let due_ms = due_ms.max(next_ms);
            let ahead_ms = due_ms.saturating_sub(now_ms).max(0) as u64;
            if ahead_ms > DELAY_MS_MAX { Verdict::TooLate { ahead_ms } } else { Verdict::New { due_ms } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::KEY_BYTES_MAX;

    const NOW: i64 = 1_000_000;

    fn last(stands: Stands) -> Option<Last<u8>> {
        Some(Last { task: 7, due_ms: NOW - 10, stands })
    }

    fn check(rule: OnceRule, last: Option<Last<u8>>, expected: Verdict<u8>) {
        assert_eq!(decide(rule, last, NOW + 1, NOW), expected, "{rule:?} {last:?}");
    }

    #[test]
    fn a_unique_task_is_alone_while_it_is_live() {
        let (found, refused) = (OnceRule::Unique { refuse: false }, OnceRule::Unique { refuse: true });
        let fresh = Verdict::New { due_ms: NOW + 1 };
        for rule in [found, refused] {
            check(rule, None, fresh);
            check(rule, last(Stands::Ended), fresh);
        }
        for stands in [Stands::Begun, Stands::Waits { created_ms: NOW - 20 }] {
            check(found, last(stands), Verdict::Found(7));
            check(refused, last(stands), Verdict::Taken(7));
        }
    }

    #[test]
    fn the_newest_waits_until_it_is_quiet_but_not_for_ever() {
        let rule = |max_ms| OnceRule::Debounce { wait_ms: 50, max_ms };
        let waits = last(Stands::Waits { created_ms: NOW - 20 });
        for stands in [None, last(Stands::Ended), last(Stands::Begun)] {
            check(rule(None), stands, Verdict::New { due_ms: NOW + 50 });
            check(rule(Some(30)), stands, Verdict::New { due_ms: NOW + 30 });
        }
        check(rule(None), waits, Verdict::Replaces { task: 7, due_ms: NOW + 50 });
        check(rule(Some(60)), waits, Verdict::Replaces { task: 7, due_ms: NOW + 40 });
        check(rule(Some(70)), waits, Verdict::Replaces { task: 7, due_ms: NOW + 50 });
        check(rule(Some(5)), waits, Verdict::Replaces { task: 7, due_ms: NOW });
    }

    #[test]
    fn each_keeps_its_distance_from_the_one_before() {
        let rule = |interval_ms| OnceRule::Throttle { interval_ms };
        check(rule(50), None, Verdict::New { due_ms: NOW + 1 });
        check(rule(11), last(Stands::Ended), Verdict::New { due_ms: NOW + 1 });
        check(rule(12), last(Stands::Ended), Verdict::New { due_ms: NOW + 2 });
        check(rule(12), last(Stands::Begun), Verdict::New { due_ms: NOW + 2 });
        check(
            rule(DELAY_MS_MAX),
            last(Stands::Begun),
            Verdict::New { due_ms: NOW - 10 + DELAY_MS_MAX as i64 },
        );
        let far = Some(Last { due_ms: NOW + 1, ..last(Stands::Begun).unwrap() });
        check(rule(DELAY_MS_MAX), far, Verdict::TooLate { ahead_ms: DELAY_MS_MAX + 1 });
    }

    #[test]
    fn keys_and_times_have_limits() {
        let once = |key: usize, rule| Once { key: "k".repeat(key), rule }.check().is_ok();
        let unique = OnceRule::Unique { refuse: false };
        assert!(once(1, unique) && once(KEY_BYTES_MAX, unique));
        assert!(!once(0, unique) && !once(KEY_BYTES_MAX + 1, unique));
        let throttle = |interval_ms| once(1, OnceRule::Throttle { interval_ms });
        assert!(throttle(1) && throttle(DELAY_MS_MAX) && !throttle(0) && !throttle(DELAY_MS_MAX + 1));
        let debounce = |wait_ms, max_ms| once(1, OnceRule::Debounce { wait_ms, max_ms });
        assert!(debounce(1, None) && debounce(DELAY_MS_MAX, Some(DELAY_MS_MAX)));
        assert!(!debounce(0, None) && !debounce(1, Some(0)) && !debounce(1, Some(DELAY_MS_MAX + 1)));
    }
}
