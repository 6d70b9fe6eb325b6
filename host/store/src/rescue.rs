//! What becomes of the tasks of dead holders.

use std::collections::HashSet;

use keiko_core::crash::{Verdict, verdict};
use keiko_core::id::{GroupId, TaskId, TenantId, Token};
use keiko_core::port::{FailedByKind, Rescued};

/// The tasks of dead holders by what becomes of them.
#[derive(Default)]
pub(crate) struct Sorted {
    /// Back to the queue, uncharged.
    pub(crate) unstarted: Vec<i64>,
    /// Back to the queue with a crash more.
    pub(crate) crashed: Vec<i64>,
    /// Ended.
    pub(crate) quarantined: Vec<TaskId>,
}

impl Sorted {
    /// What the caller is told.
    pub(crate) fn rescued(self, failed: FailedByKind, groups: Vec<(TenantId, GroupId)>) -> Rescued {
        Rescued {
            returned: (self.unstarted.len() + self.crashed.len()) as u64,
            crashed: self.crashed.len() as u64,
            quarantined: self.quarantined,
            failed,
            groups,
        }
    }
}

/// Sorts running tasks (id, token, crashes so far) of dead holders; only `started` ones are charged.
pub(crate) fn sort(running: Vec<(i64, i64, i64)>, started: &[(TaskId, Token)]) -> Sorted {
    let started: HashSet<(TaskId, Token)> = started.iter().copied().collect();
    let mut sorted = Sorted::default();
    for (id, token, crashes) in running {
        if !started.contains(&(TaskId(id), Token(token))) {
            sorted.unstarted.push(id);
            continue;
        }
        match verdict(u32::try_from(crashes.saturating_add(1)).unwrap_or(u32::MAX)) {
            Verdict::Return | Verdict::ReturnAlone => sorted.crashed.push(id),
            Verdict::Quarantine => sorted.quarantined.push(TaskId(id)),
        }
    }
    sorted
}
