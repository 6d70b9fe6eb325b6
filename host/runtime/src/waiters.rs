//! Callers that wait for a task to end.

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::TaskId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<TaskId, Waiting>>);

#[derive(Debug)]
struct Waiting {
    callers: usize,
    changed: Arc<Notify>,
}

impl Waiters {
    /// Starts to wait. Look at the task after this and before [`Waiter::changed`], or a change between is missed.
    pub(crate) fn wait(&self, id: TaskId) -> Waiter<'_> {
        let mut waiters = self.0.lock();
        let waiting =
            waiters.entry(id).or_insert_with(|| Waiting { callers: 0, changed: Arc::new(Notify::new()) });
        waiting.callers += 1;
        Waiter { waiters: self, id, changed: Arc::clone(&waiting.changed) }
    }

    /// A task has ended: its callers look again.
    pub(crate) fn tell(&self, ids: impl IntoIterator<Item = TaskId>) {
        let waiters = self.0.lock();
        if waiters.is_empty() {
            return;
        }
        for id in ids {
            if let Some(waiting) = waiters.get(&id) {
                waiting.changed.notify_waiters();
            }
        }
    }

    /// Every caller looks again: the host stops.
    pub(crate) fn tell_all(&self) {
        for waiting in self.0.lock().values() {
            waiting.changed.notify_waiters();
        }
    }
}

/// One caller's wait; ends when dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    id: TaskId,
    changed: Arc<Notify>,
}

impl Waiter<'_> {
    /// What to await; made before the look at the task, so that nothing is missed.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.0.lock();
        if let Some(waiting) = waiters.get_mut(&self.id) {
            waiting.callers -= 1;
            if waiting.callers == 0 {
                waiters.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_are_told_and_forgotten() {
        let waiters = Waiters::default();
        let first = waiters.wait(TaskId(1));
        let second = waiters.wait(TaskId(1));
        {
            let (one, two) = (first.changed(), second.changed());
            waiters.tell([TaskId(2), TaskId(1)]);
            one.await;
            two.await;
        }
        drop(first);
        assert_eq!(waiters.0.lock().len(), 1);
        drop(second);
        assert_eq!(waiters.0.lock().len(), 0);
    }
}
