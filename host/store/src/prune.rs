//! Which ended tasks are forgotten, out of a walk over the oldest ones.

use keiko_core::id::{TaskId, TenantId};
use keiko_core::port::Pruned;
use keiko_core::retention::KeptFrom;
use keiko_core::task::TaskState;

use crate::count::{Change, Changes};

/// An ended task: its id, state and end; none while its group is open, whose row goes with the first of its tasks and whose
/// outcomes are all of them.
pub(crate) type Ended = (TaskId, TaskState, Option<i64>);

/// Ids below this belong to tasks that were created early enough to be forgotten; `None` when none is.
pub(crate) fn end_of_walk(kept: &KeptFrom) -> Option<TaskId> {
    kept.latest_ms().map(TaskId::floor)
}

/// Those to forget, in order.
pub(crate) fn doomed(walked: &[Ended], kept: &KeptFrom) -> Vec<(TaskId, TaskState)> {
    let forgets = |state, finished_ms: Option<i64>| finished_ms.is_some_and(|at| kept.forgets(state, at));
    let doomed = walked.iter().filter(|(_, state, finished_ms)| forgets(*state, *finished_ms));
    doomed.map(|(id, state, _)| (*id, *state)).collect()
}

/// What a walk of at most `count_max` tasks answers that forgot so many.
pub(crate) fn answer(walked: &[Ended], pruned: usize, count_max: u32) -> Pruned {
    let full = walked.len() >= count_max as usize;
    let last = walked.last().map(|(id, ..)| *id);
    Pruned { pruned: pruned as u64, next: last.filter(|_| full) }
}

/// How forgetting these tasks changes what is counted.
pub(crate) fn changes(tenant: TenantId, states: impl Iterator<Item = TaskState>) -> Changes {
    let mut changes = Changes::default();
    for state in states {
        let change = match state {
            TaskState::Completed => Change { completed: -1, ..Change::default() },
            TaskState::Failed => Change { failed: -1, ..Change::default() },
            TaskState::Cancelled => Change { cancelled: -1, ..Change::default() },
            TaskState::Pending | TaskState::Running => Change::default(),
        };
        changes.add(tenant, change);
    }
    changes
}
