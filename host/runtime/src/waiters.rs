//! Callers that wait for a task to end.

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::task::TaskView;
use keiko_core::{TaskId, TenantId};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<TaskId, Waiting>>);

#[derive(Debug)]
struct Waiting {
    callers: usize,
    changed: Arc<Notify>,
    /// How the task ended, and whose it is, when this host knows without asking the store.
    ended: Option<(TenantId, Arc<TaskView>)>,
}

impl Waiters {
    /// Starts to wait. Look at the task after this and before [`Waiter::changed`], or a change between is missed.
    pub(crate) fn wait(&self, id: TaskId) -> Waiter<'_> {
        let mut waiters = self.0.lock();
        let waiting = waiters.entry(id).or_insert_with(|| Waiting {
            callers: 0,
            changed: Arc::new(Notify::new()),
            ended: None,
        });
        waiting.callers += 1;
        Waiter { waiters: self, id, changed: Arc::clone(&waiting.changed) }
    }

    /// Whether somebody waits for a task.
    pub(crate) fn waits_for(&self, id: TaskId) -> bool {
        self.0.lock().contains_key(&id)
    }

    /// Leaves with those who wait for a task how it ended; they are told with the others.
    pub(crate) fn leave(&self, tenant: TenantId, view: TaskView) {
        if let Some(waiting) = self.0.lock().get_mut(&view.summary.id) {
            waiting.ended = Some((tenant, Arc::new(view)));
        }
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

    /// How the task ended, if it is this tenant's and somebody left that here.
    pub(crate) fn ended(&self, tenant: TenantId) -> Option<Arc<TaskView>> {
        let waiters = self.waiters.0.lock();
        let (of, view) = waiters.get(&self.id)?.ended.as_ref()?;
        (*of == tenant).then(|| Arc::clone(view))
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
    use keiko_core::Token;
    use keiko_core::priority::Priority;
    use keiko_core::task::{Lineage, TaskState, TaskSummary};

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

    fn view(id: i64) -> TaskView {
        let summary = TaskSummary {
            id: TaskId(id),
            plugin: "plugin".parse().unwrap(),
            kind: "kind".parse().unwrap(),
            state: TaskState::Completed,
            created_ms: 0,
            run_at_ms: 0,
            finished_ms: Some(1),
            attempts: 1,
            crashes: 0,
            code: None,
            lineage: Lineage::root(TaskId(id)),
            agent: None,
            user: None,
            priority: Priority::default(),
        };
        TaskView {
            summary,
            token: Token(1),
            result: None,
            failure: None,
            attempts: Vec::new(),
            tree: None,
            group: None,
            slot_key: None,
            budget: Default::default(),
        }
    }

    #[test]
    fn how_a_task_ended_is_left_with_its_own_tenant_while_somebody_waits() {
        let waiters = Waiters::default();
        assert!(!waiters.waits_for(TaskId(1)));
        let waiter = waiters.wait(TaskId(1));
        assert!(waiters.waits_for(TaskId(1)) && waiter.ended(TenantId(7)).is_none());
        waiters.leave(TenantId(7), view(1));
        waiters.leave(TenantId(7), view(2));
        assert_eq!(waiter.ended(TenantId(7)).as_deref(), Some(&view(1)));
        assert!(
            waiter.ended(TenantId(8)).is_none(),
            "another tenant asks the store, which has nothing for it"
        );
        drop(waiter);
        assert!(waiters.wait(TaskId(1)).ended(TenantId(7)).is_none(), "nothing is kept");
    }
}
