//! The assistants that a tenant runs, and the people they act for: rows of the data layer, which a task may name.

use std::fmt;
use std::str::FromStr;

use crate::id::{AgentId, UserId};
use crate::name::AgentKind;

/// What an agent does now. The numbers are stored: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AgentStatus {
    /// Waits for work.
    Idle = 0,
    /// Works.
    Active = 1,
    /// Takes no work until somebody says so.
    Paused = 2,
    /// Cannot work.
    Failed = 3,
    /// Is kept for its history only.
    Retired = 4,
}

impl AgentStatus {
    /// Every status.
    pub const ALL: [AgentStatus; 5] = [
        AgentStatus::Idle,
        AgentStatus::Active,
        AgentStatus::Paused,
        AgentStatus::Failed,
        AgentStatus::Retired,
    ];

    /// The name that programs match on.
    pub const fn as_str(self) -> &'static str {
        match self {
            AgentStatus::Idle => "idle",
            AgentStatus::Active => "active",
            AgentStatus::Paused => "paused",
            AgentStatus::Failed => "failed",
            AgentStatus::Retired => "retired",
        }
    }

    /// The status stored under this number.
    pub fn numbered(number: i64) -> Option<AgentStatus> {
        AgentStatus::ALL.into_iter().find(|status| *status as i64 == number)
    }
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an agent's status; there are: idle, active, paused, failed, retired")]
pub struct UnknownStatus(pub String);

impl FromStr for AgentStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let known = AgentStatus::ALL.into_iter().find(|status| status.as_str() == text);
        known.ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// What people call it: see [`crate::agent::check_name`].
    pub name: String,
    /// What it is for.
    pub kind: AgentKind,
    /// What it does now.
    pub status: AgentStatus,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it was last changed.
    pub updated_ms: i64,
}

/// What changes about an agent; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPatch {
    /// Its name.
    pub name: Option<String>,
    /// What it is for.
    pub kind: Option<AgentKind>,
    /// What it does.
    pub status: Option<AgentStatus>,
}

/// Which agents to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentFilter {
    /// Only those of this kind.
    pub kind: Option<AgentKind>,
    /// Only those with this status.
    pub status: Option<AgentStatus>,
    /// Only those older than this one: where the page before ended.
    pub before: Option<AgentId>,
}

/// What became of an agent's tasks. Tasks count from their submit on, for as long as the agent is there, whether or not
/// their rows are still kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentStatistics {
    /// Every task that named it.
    pub total: u64,
    /// Those with a result.
    pub completed: u64,
    /// Those with an error.
    pub failed: u64,
    /// Those that were cancelled.
    pub cancelled: u64,
    /// Ended tasks whose last attempt ran.
    pub timed: u64,
    /// Running time of the attempts that ended those, in microseconds, together.
    pub elapsed_us: u64,
}

impl AgentStatistics {
    /// Average running time of the attempt that ended a task, in microseconds; 0 of none.
    pub fn average_us(&self) -> u64 {
        self.elapsed_us / self.timed.max(1)
    }

    /// Completed tasks in all tasks, from 0 to 1; 0 of none.
    pub fn success_rate(&self) -> f64 {
        self.completed as f64 / self.total.max(1) as f64
    }

    /// The form in which a cache has them: the number of the form, and each number in the order of the fields.
    pub fn encode(&self) -> [u8; 49] {
        let AgentStatistics { total, completed, failed, cancelled, timed, elapsed_us } = *self;
        let mut bytes = [STATISTICS_FORM; 49];
        for (place, number) in
            bytes[1..].chunks_exact_mut(8).zip([total, completed, failed, cancelled, timed, elapsed_us])
        {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// Reads what [`AgentStatistics::encode`] wrote; `None` of anything else.
    pub fn decode(bytes: &[u8]) -> Option<AgentStatistics> {
        let (&form, rest) = bytes.split_first()?;
        let (numbers, more) = rest.as_chunks::<8>();
        let &[total, completed, failed, cancelled, timed, elapsed_us] = numbers else { return None };
        let number = u64::from_be_bytes;
        (form == STATISTICS_FORM && more.is_empty()).then(|| AgentStatistics {
            total: number(total),
            completed: number(completed),
            failed: number(failed),
            cancelled: number(cancelled),
            timed: number(timed),
            elapsed_us: number(elapsed_us),
        })
    }
}

/// Number of the form in which statistics are cached.
const STATISTICS_FORM: u8 = 1;
/// How old an agent's statistics may be, in milliseconds, unless somebody wants fresh ones.
pub const STATISTICS_AGE_MS: u64 = 30 * 60 * 1000;

/// A new status for one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusChange {
    /// Whose.
    pub agent: AgentId,
    /// The status.
    pub status: AgentStatus,
}

/// Somebody an agent acts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// What people call them: see [`crate::agent::check_name`].
    pub name: String,
    /// When they were made, in milliseconds since 1970.
    pub created_ms: i64,
}

/// Longest name of an agent or a user, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// Whether `text` can be the name of an agent or a user: 1 to [`NAME_BYTES_MAX`] bytes without control characters.
pub fn check_name(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("a name is 1 to {NAME_BYTES_MAX} bytes without control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back_from_name_and_number() {
        for status in AgentStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(AgentStatus::numbered(status as i64), Some(status));
        }
        assert!("busy".parse::<AgentStatus>().is_err());
        assert_eq!(AgentStatus::numbered(9), None);
    }

    #[test]
    fn rates_and_averages_of_nothing_are_zero() {
        assert_eq!(AgentStatistics::default().average_us(), 0);
        assert_eq!(AgentStatistics::default().success_rate(), 0.0);
        let some = AgentStatistics { total: 4, completed: 3, timed: 2, elapsed_us: 9, ..Default::default() };
        assert_eq!((some.average_us(), some.success_rate()), (4, 0.75));
    }

    #[test]
    fn statistics_come_back_from_their_form_and_nothing_else_does() {
        let some = AgentStatistics {
            total: 1,
            completed: 2,
            failed: 3,
            cancelled: 4,
            timed: 5,
            elapsed_us: u64::MAX,
        };
        let mut sample = vec![1];
        sample.extend((1..6).flat_map(|number| [0, 0, 0, 0, 0, 0, 0, number]));
        sample.extend([255; 8]);
        assert_eq!(some.encode()[..], sample);
        assert_eq!(AgentStatistics::decode(&sample), Some(some));
        assert_eq!(AgentStatistics::decode(&sample[..48]), None);
        sample[0] = 2;
        assert_eq!(AgentStatistics::decode(&sample), None);
        assert_eq!(AgentStatistics::decode(&[]), None);
    }

    #[test]
    fn names_keep_to_their_length() {
        assert!(check_name(&"n".repeat(NAME_BYTES_MAX)).is_ok());
        for bad in [String::new(), " ".to_owned(), "a\nb".to_owned(), "n".repeat(NAME_BYTES_MAX + 1)] {
            assert!(check_name(&bad).is_err(), "{bad:?}");
        }
    }
}
