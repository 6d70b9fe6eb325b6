//! What tenants spend, by day: attempts of tasks as they are settled, runs of processors, and runs that are no task.

use crate::outcome::{AttemptReport, Outcome};
use crate::port::{BatchOutcome, BatchReport};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What was spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Attempts, runs among them.
    pub attempts: u64,
    /// Those that completed.
    pub completed: u64,
    /// Those that failed and were not tried again.
    pub failed: u64,
    /// Fuel of all of them.
    pub fuel_used: u64,
    /// Their wall clock together, in microseconds.
    pub guest_us: u64,
}

impl Spent {
    /// What a run that is no task spent.
    pub fn of_run(report: &AttemptReport) -> Spent {
        Spent {
            attempts: 1,
            completed: u64::from(matches!(report.outcome, Outcome::Completed(_))),
            failed: u64::from(matches!(report.outcome, Outcome::Failed(_))),
            fuel_used: report.meter.fuel_used,
            guest_us: report.meter.elapsed_us,
        }
    }

    /// What a run of a processor spent. One that failed counts as such: its items are run again in other parts.
    pub fn of_batch(report: &BatchReport) -> Spent {
        Spent {
            attempts: 1,
            completed: u64::from(matches!(report.outcome, BatchOutcome::Answered(_))),
            failed: u64::from(matches!(report.outcome, BatchOutcome::Failed(_))),
            fuel_used: report.meter.fuel_used,
            guest_us: report.meter.elapsed_us,
        }
    }

    /// Adds what another spent.
    pub fn add(&mut self, other: Spent) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.completed = self.completed.saturating_add(other.completed);
        self.failed = self.failed.saturating_add(other.failed);
        self.fuel_used = self.fuel_used.saturating_add(other.fuel_used);
        self.guest_us = self.guest_us.saturating_add(other.guest_us);
    }
}

/// What a tenant spent on a UTC day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaySpent {
    /// The day, counted from 1970-01-01.
    pub day: i64,
    /// What was spent.
    pub spent: Spent,
}

/// The UTC day of a time, counted from 1970-01-01.
pub fn day(now_ms: i64) -> i64 {
    now_ms.div_euclid(DAY_MS)
}

/// When a day begins.
pub fn day_begins_ms(day: i64) -> i64 {
    day.saturating_mul(DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_where_the_next_begins() {
        let begins = day_begins_ms(20_000);
        assert_eq!(
            [begins - 1, begins, begins + DAY_MS - 1, begins + DAY_MS].map(day),
            [19_999, 20_000, 20_000, 20_001]
        );
        assert_eq!(day(-1), -1);
    }

    #[test]
    fn sums_stop_at_the_largest_number() {
        let mut sum = Spent { fuel_used: u64::MAX - 1, ..Spent::default() };
        sum.add(Spent { attempts: 2, fuel_used: 5, ..Spent::default() });
        assert_eq!((sum.attempts, sum.fuel_used), (2, u64::MAX));
    }
}
