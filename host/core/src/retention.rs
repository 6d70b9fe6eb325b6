//! How long ended tasks are kept.

use crate::task::TaskState;

/// From when on ended tasks are kept, by how they ended, in milliseconds since 1970; `None` keeps all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptFrom {
    /// Completed tasks that ended before are forgotten.
    pub completed_ms: Option<i64>,
    /// Failed tasks that ended before are forgotten.
    pub failed_ms: Option<i64>,
    /// Cancelled tasks that ended before are forgotten.
    pub cancelled_ms: Option<i64>,
}

impl KeptFrom {
    /// Whether a task that ended so, then, is forgotten.
    pub fn forgets(&self, state: TaskState, finished_ms: i64) -> bool {
        let from = match state {
            TaskState::Completed => self.completed_ms,
            TaskState::Failed => self.failed_ms,
            TaskState::Cancelled => self.cancelled_ms,
            TaskState::Pending | TaskState::Running => None,
        };
        from.is_some_and(|from_ms| finished_ms < from_ms)
    }

    /// Nothing that was created from then on is forgotten; `None` when nothing is at all.
    pub fn latest_ms(&self) -> Option<i64> {
        [self.completed_ms, self.failed_ms, self.cancelled_ms].into_iter().flatten().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_time() {
        let kept = KeptFrom { completed_ms: Some(10), failed_ms: Some(5), cancelled_ms: None };
        assert!(kept.forgets(TaskState::Completed, 9) && !kept.forgets(TaskState::Completed, 10));
        assert!(kept.forgets(TaskState::Failed, 4) && !kept.forgets(TaskState::Failed, 5));
        assert!(!kept.forgets(TaskState::Cancelled, 0) && !kept.forgets(TaskState::Running, 0));
        assert_eq!((kept.latest_ms(), KeptFrom::default().latest_ms()), (Some(10), None));
    }
}
