//! Schedules: tasks that recur by a calendar.
//!
//! A schedule knows when it occurs next. Whoever sees that this time has come submits the task of the latest occurrence and
//! writes the next one, in one transaction, so that on any number of hosts each occurrence is submitted once or not at all.
//! Of several that have come while nobody looked the latest counts, and the others are missed.
//!
//! A calendar is a cron expression in a time zone: `minute hour day-of-month month day-of-week`, with seconds in front if
//! there are six fields. Where a clock is put forward, an expression of fixed times that falls into the gap occurs at its end, and others skip
//! it; where it is put back, one of fixed times occurs in the first of the two passes, and others in both.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::id::{AgentId, TaskId, TenantId, UserId};
use crate::name::ScheduleName;
use crate::policy::BudgetRequest;
use crate::priority::Priority;
use crate::task::Payload;

/// Longest cron expression, in bytes.
pub const CRON_BYTES_MAX: usize = 255;
/// Longest name of a time zone, in bytes.
pub const ZONE_BYTES_MAX: usize = 63;
/// An occurrence is missed when nobody has submitted it for so long.
pub const MISSED_MS: i64 = 60_000;

/// What becomes of an occurrence that was missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing.
    #[default]
    Skip,
    /// The latest one is submitted when somebody looks again, however late.
    RunOnce,
}

/// What becomes of an occurrence while the task of the one before is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Its task is submitted beside it.
    #[default]
    Allow,
    /// Nothing.
    Skip,
}

/// When a schedule occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrence {
    /// The cron expression.
    pub cron: String,
    /// Its time zone, as the IANA names it.
    pub zone: String,
    /// What becomes of what was missed.
    pub missed: Missed,
    /// What becomes of what would overlap.
    pub overlap: Overlap,
}

/// The task of every occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The plugin; `None` finds the one plugin that has the kind.
    pub plugin: Option<String>,
    /// The kind; `None` is the plugin's only one.
    pub kind: Option<String>,
    /// What it is given.
    pub input: Payload,
    /// What it asks of the policy.
    pub budget: BudgetRequest,
    /// How urgent it is among its tenant's.
    pub priority: Priority,
    /// The agent that works on it.
    pub agent: Option<AgentId>,
    /// Whom it is for.
    pub user: Option<UserId>,
    /// The key of its kind under which few run at once.
    pub slot_key: Option<String>,
}

/// A schedule as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: ScheduleName,
    /// When.
    pub recurrence: Recurrence,
    /// What.
    pub task: Template,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// Since when it is paused.
    pub paused_ms: Option<i64>,
    /// When it occurs next; `None` when it is paused, or never does again.
    pub next_ms: Option<i64>,
    /// The last occurrence that was not missed.
    pub last: Option<Last>,
}

/// An occurrence, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it was.
    pub at_ms: i64,
    /// Its task; when it was skipped because that was live, the one of an occurrence before.
    pub task: Option<TaskId>,
    /// Why it has no task of its own: a code, and a text for people.
    pub problem: Option<(String, String)>,
}

/// Why there is no such calendar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Not a cron expression.
    #[error("`cron`: {0}")]
    Cron(String),
    /// Not a time zone.
    #[error("`zone`: {0}")]
    Zone(String),
    /// No time is one of it.
    #[error("`cron`: there is no such time")]
    Never,
}

/// A calendar.
pub struct Calendar {
    cron: croner::Cron,
    zone: TimeZone,
}

impl fmt::Debug for Calendar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} in {:?}", self.cron.pattern, self.zone)
    }
}

impl Calendar {
    /// The calendar of an expression and the name of a zone.
    pub fn new(cron: &str, zone: &str) -> Result<Calendar, CalendarError> {
        if cron.len() > CRON_BYTES_MAX {
            let text = format!("an expression of {} bytes exceeds the limit of {CRON_BYTES_MAX}", cron.len());
            return Err(CalendarError::Cron(text));
        }
        let parser = croner::parser::CronParser::builder().year(croner::parser::Year::Disallowed).build();
        let parsed = parser.parse(cron).map_err(|error| CalendarError::Cron(told(&error)))?;
        let zone = match zone {
            long if long.len() > ZONE_BYTES_MAX => {
                let text = format!("a name of {} bytes exceeds the limit of {ZONE_BYTES_MAX}", long.len());
                return Err(CalendarError::Zone(text));
            }
            name => TimeZone::get(name).map_err(|_| {
                let shown: String = name.chars().filter(|letter| !letter.is_control()).collect();
                CalendarError::Zone(format!(
                    "there is no time zone `{shown}`; one is called as Europe/Berlin is"
                ))
            })?,
        };
        Ok(Calendar { cron: parsed, zone })
    }

    /// The first occurrence behind this time, in milliseconds since 1970; `None` when there is none.
    pub fn next(&self, after_ms: i64) -> Option<i64> {
        let after = Timestamp::from_millisecond(after_ms).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Some(next.timestamp().as_millisecond())
    }

    /// The last occurrence up to this time.
    pub fn last(&self, until_ms: i64) -> Option<i64> {
        let until = Timestamp::from_millisecond(until_ms).ok()?.to_zoned(self.zone.clone());
        let last = self.cron.find_previous_occurrence(&until, true).ok()?;
        Some(last.timestamp().as_millisecond())
    }

    /// What is to be done now with a schedule that was to occur at `next_ms`.
    pub fn due(&self, missed: Missed, next_ms: i64, now_ms: i64) -> Due {
        // What was expected counts, also where a newer release knows other zones.
        let latest_ms = self.last(now_ms).unwrap_or(next_ms).max(next_ms);
        let late = now_ms.saturating_sub(latest_ms) > MISSED_MS;
        let submit = missed == Missed::RunOnce || !late;
        Due { occurrence_ms: submit.then_some(latest_ms), next_ms: self.next(now_ms.max(latest_ms)) }
    }
}

/// What is to be done with a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The occurrence whose task is to be submitted.
    pub occurrence_ms: Option<i64>,
    /// When it occurs next.
    pub next_ms: Option<i64>,
}

/// What the library says, as our texts are.
fn told(error: &croner::errors::CronError) -> String {
    let text: String = error.to_string().chars().filter(|letter| !letter.is_control()).collect();
    let text = text.trim_end_matches('.');
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    fn calendar(cron: &str, zone: &str) -> Calendar {
        Calendar::new(cron, zone).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The times that follow `after`, and that the latest one is found again from each.
    fn check(cron: &str, zone: &str, after: &str, expected: &[&str]) {
        let calendar = calendar(cron, zone);
        let mut now_ms = at(after);
        for expected in expected {
            now_ms = calendar.next(now_ms).expect("one more");
            assert_eq!(now_ms, at(expected), "{cron} in {zone} after {after}");
            assert_eq!(calendar.last(now_ms), Some(now_ms));
            assert_eq!(calendar.last(now_ms + 999), Some(now_ms));
        }
    }

    #[test]
    fn occurrences_are_of_their_zone() {
        let new_year = "2026-01-01T00:00:00Z";
        check("0 9 * * MON", "UTC", new_year, &["2026-01-05T09:00:00Z", "2026-01-12T09:00:00Z"]);
        check("0 9 * * MON", "America/New_York", new_year, &["2026-01-05T14:00:00Z"]);
        check("*/20 * * * * *", "UTC", new_year, &["2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z"]);
        check("0 0 L 2 *", "Asia/Tokyo", new_year, &["2026-02-27T15:00:00Z", "2027-02-27T15:00:00Z"]);
        check("@daily", "UTC", new_year, &["2026-01-02T00:00:00Z"]);
    }

    #[test]
    fn fixed_times_in_a_gap_occur_at_its_end_and_others_are_left_out() {
        let berlin = "Europe/Berlin";
        check(
            "30 2 * * *",
            berlin,
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        check(
            "*/30 * * * *",
            berlin,
            "2026-03-29T00:29:00Z",
            &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"],
        );
    }

    #[test]
    fn fixed_times_in_a_fold_occur_once_and_others_twice() {
        let berlin = "Europe/Berlin";
        check(
            "30 2 * * *",
            berlin,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check(
            "30 * * * *",
            berlin,
            "2026-10-25T00:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
        );
    }

    #[test]
    fn what_is_due_is_the_latest_and_what_is_late_is_missed() {
        let calendar = calendar("0 * * * *", "UTC");
        let (one, three) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T03:00:00Z"));
        let check = |missed, now_ms, occurrence_ms| {
            let due = calendar.due(missed, one, now_ms);
            let next_ms = calendar.next(now_ms);
            assert_eq!(due, Due { occurrence_ms, next_ms }, "{missed:?} at {now_ms}");
        };
        for missed in [Missed::Skip, Missed::RunOnce] {
            check(missed, one, Some(one));
            check(missed, one + MISSED_MS, Some(one));
            check(missed, three, Some(three));
        }
        check(Missed::Skip, one + MISSED_MS + 1, None);
        check(Missed::RunOnce, one + MISSED_MS + 1, Some(one));
        check(Missed::Skip, three + MISSED_MS + 1, None);
        check(Missed::RunOnce, three + MISSED_MS + 1, Some(three));
        // A clock that is behind submits nothing twice: the next one is behind what was submitted.
        let early = calendar.due(Missed::Skip, one, one - 5);
        assert_eq!((early.occurrence_ms, early.next_ms), (Some(one), Some(one + 3_600_000)));
    }

    #[test]
    fn bad_calendars_say_what_is_wrong() {
        let check = |cron: &str, zone: &str, expected: &str| {
            let error = Calendar::new(cron, zone).expect_err(cron).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "UTC", "`cron`");
        check("* * * *", "UTC", "`cron`");
        check("61 * * * *", "UTC", "`cron`");
        check("0 0 1 1 * * 2030", "UTC", "`cron`");
        check("x * * * *", "UTC", "`cron`");
        check("* * * * *", "Mars/Olympus", "there is no time zone `Mars/Olympus`");
        check("* * * * *", "", "`zone`");
        check("* * * * *", &"z".repeat(ZONE_BYTES_MAX + 1), "exceeds the limit of 63");
        let padded = |bytes: usize| format!("* * * * *{}", " ".repeat(bytes - 9));
        assert!(Calendar::new(&padded(CRON_BYTES_MAX), "UTC").is_ok());
        check(&padded(CRON_BYTES_MAX + 1), "UTC", "exceeds the limit of 255");
        assert_eq!(calendar("0 0 30 2 *", "UTC").next(0), None, "there is no such day");
    }
}
