//! Groups: tasks that are submitted together, of which each has one outcome, in the order of their submission.
//!
//! A group has the number of its first task, and its tasks have the numbers that follow: a range of ids is all that a group
//! is looked up by. With a window only so many of them stand in the queue or run at once; the others are *held* at a place
//! behind every time, and take the place of their due time when one before them ends.

use crate::id::{GroupId, TaskId};
use crate::outcome::Failure;
use crate::task::{Payload, TaskState};

/// The place of a held task, in milliseconds: later than any time that anybody waits for.
pub const HELD_MS: i64 = 1 << 62;

/// What a submit asks of the group that its tasks are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewGroup {
    /// So many of its tasks stand in the queue or run at once; `None` is all.
    pub live_max: Option<u32>,
    /// Whether the rest is cancelled when one has failed.
    pub fail_fast: bool,
}

impl NewGroup {
    /// Whether the task at this place, from 0, is held until others have ended.
    pub fn holds(&self, place: usize) -> bool {
        self.live_max.is_some_and(|live_max| place >= live_max as usize)
    }
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// Some of its tasks have not ended.
    Open,
    /// All of them completed.
    Completed,
    /// All of them have ended, and not all completed.
    Failed,
}

impl GroupState {
    /// The name that programs match on.
    pub const fn as_str(self) -> &'static str {
        match self {
            GroupState::Open => "open",
            GroupState::Completed => "completed",
            GroupState::Failed => "failed",
        }
    }
}

/// A group with how its tasks stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its tasks.
    pub count: u32,
    /// Those of them that completed.
    pub completed: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were cancelled.
    pub cancelled: u32,
    /// What was asked of it.
    pub asked: NewGroup,
    /// When it was submitted, in milliseconds since 1970.
    pub created_ms: i64,
    /// When its last task ended.
    pub finished_ms: Option<i64>,
    /// The first of its tasks that has not ended.
    pub next: Option<TaskId>,
}

impl Group {
    /// Where it stands.
    pub fn state(&self) -> GroupState {
        if self.completed == self.count {
            GroupState::Completed
        } else if self.completed + self.failed + self.cancelled >= self.count {
            GroupState::Failed
        } else {
            GroupState::Open
        }
    }

    /// The task at a place, from 0.
    pub fn task(&self, place: u32) -> TaskId {
        TaskId(self.id.0.saturating_add(i64::from(place)))
    }
}

/// What became of one task of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The task.
    pub task: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Its one result, when it completed.
    pub result: Option<Payload>,
    /// Its one error, when it failed.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// About how large it is in an answer.
    pub fn bytes(&self) -> usize {
        let result = self.result.as_ref().map_or(0, |result| result.content_type.len() + result.bytes.len());
        128 + result + self.failure.as_ref().map_or(0, |failure| failure.message.len())
    }
}

/// How many held tasks take their place: what the window has room for beside those that are `live`.
pub fn release(live_max: u32, live: u64) -> u64 {
    u64::from(live_max).saturating_sub(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(count: u32, completed: u32, failed: u32, cancelled: u32) -> Group {
        Group {
            id: GroupId(7),
            count,
            completed,
            failed,
            cancelled,
            asked: NewGroup::default(),
            created_ms: 0,
            finished_ms: None,
            next: None,
        }
    }

    #[test]
    fn a_group_is_open_until_its_last_task_has_ended() {
        let check = |group: Group, expected| assert_eq!(group.state(), expected, "{group:?}");
        check(group(3, 0, 0, 0), GroupState::Open);
        check(group(3, 1, 1, 0), GroupState::Open);
        check(group(3, 3, 0, 0), GroupState::Completed);
        check(group(3, 2, 1, 0), GroupState::Failed);
        check(group(3, 2, 0, 1), GroupState::Failed);
        assert_eq!(group(3, 0, 0, 0).task(2), TaskId(9));
    }

    #[test]
    fn a_window_holds_what_is_beyond_it() {
        let window = NewGroup { live_max: Some(2), fail_fast: false };
        assert_eq!([0, 1, 2].map(|place| window.holds(place)), [false, false, true]);
        assert!(!NewGroup::default().holds(usize::MAX));
        assert_eq!([release(2, 0), release(2, 2), release(2, 5)], [2, 0, 0]);
    }
}
