//! Attempts that run on this host now: how to stop them, and what they say of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::stop::{Stop, StopReason};
use keiko_core::{TaskId, TenantId, Token};
use parking_lot::Mutex;

use crate::request::Progress;

/// The running attempts by task.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<BTreeMap<TaskId, Arc<Entry>>>);

/// One running attempt.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Whose task it is.
    tenant: TenantId,
    /// The lease it runs under.
    token: Token,
    /// Set by cancel, drain and a lost lease; seen by the engine.
    pub(crate) stop: Stop,
    /// Written by the guest's reports, read by whoever looks at the task.
    pub(crate) progress: Mutex<Option<Progress>>,
}

impl Running {
    /// Notes an attempt.
    pub(crate) fn insert(&self, tenant: TenantId, id: TaskId, token: Token) -> Arc<Entry> {
        let entry = Arc::new(Entry { tenant, token, stop: Stop::default(), progress: Mutex::new(None) });
        self.0.lock().insert(id, Arc::clone(&entry));
        entry
    }

    /// Forgets an attempt, unless a later one has taken its place.
    pub(crate) fn remove(&self, id: TaskId, token: Token) {
        let mut running = self.0.lock();
        if running.get(&id).is_some_and(|entry| entry.token == token) {
            running.remove(&id);
        }
    }

    /// Stops the attempt of one task.
    pub(crate) fn stop(&self, id: TaskId, reason: StopReason) {
        let entry = self.0.lock().get(&id).cloned();
        if let Some(entry) = entry {
            entry.stop.set(reason);
        }
    }

    /// Stops every attempt; says how many.
    pub(crate) fn stop_all(&self, reason: StopReason) -> usize {
        let entries: Vec<_> = self.0.lock().values().cloned().collect();
        for entry in &entries {
            entry.stop.set(reason);
        }
        entries.len()
    }

    /// Whose task runs here under this id.
    pub(crate) fn tenant(&self, id: TaskId) -> Option<TenantId> {
        self.0.lock().get(&id).map(|entry| entry.tenant)
    }

    /// What the attempt of a task last reported.
    pub(crate) fn progress(&self, id: TaskId) -> Option<Progress> {
        self.0.lock().get(&id).and_then(|entry| entry.progress.lock().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_attempt_is_not_forgotten_with_an_earlier_one() {
        let running = Running::default();
        running.insert(TenantId(1), TaskId(1), Token(1));
        let later = running.insert(TenantId(1), TaskId(1), Token(2));
        running.remove(TaskId(1), Token(1));
        running.stop(TaskId(1), StopReason::Cancelled);
        assert_eq!(later.stop.reason(), Some(StopReason::Cancelled));
        running.remove(TaskId(1), Token(2));
        assert_eq!(running.stop_all(StopReason::Drained), 0);
    }
}
