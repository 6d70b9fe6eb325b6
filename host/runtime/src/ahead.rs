//! How many leased tasks wait on a host beside others.
//!
//! Tasks are leased ahead so that workers never wait for the store. A host alone may hold many: nobody else could begin them.
//! Beside other hosts a task that waits here may be one that another host has a place for, so
//!
//! - no more wait than are likely to begin within a second: as many as there are free places for, or as attempts ended within the
//!   last one. That holds in all and of each tenant. What a host works off by the thousands it leases ahead as if it were alone;
//!   where attempts are long it leases a task when there is a place for it;
//! - who has nothing here may have one task all the same while others fill this host, for it has a turn before theirs;
//! - what has waited for more than a second, because attempts became longer than those before, goes back uncharged
//!   ([`give_back`]). What had ended before it came counts no more by then, so that it is not leased again in vain.
//!
//! Others are told when a host begins to leave them tasks, and with everything that becomes ready or goes back while it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keiko_core::TenantId;
use tokio_util::sync::CancellationToken;

use crate::settler::Ended;
use crate::shared::{Counters, Job, Shared};

/// Time between two looks for what has waited for too long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Gives back what has waited for too long beside other hosts, until stopped.
pub(crate) async fn give_back(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let look = async {
            shared.queue.filled().await;
            tokio::time::sleep(LOOK_EVERY).await;
            if shared.pulse.has_others() {
                give_back_late(&shared).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = look => {}
        }
    }
}

async fn give_back_late(shared: &Shared) {
    // What goes on after its run on a canary was refused is no fresh task.
    let may_go = |job: &Job| matches!(job, Job::Task(leased) if leased.refused.is_none());
    for job in shared.queue.take_late(may_go) {
        if let Job::Task(leased) = job {
            Counters::add(&shared.counters.handed_back, 1);
            // The settler goes last; without it the task goes back with its lease.
            let _ = shared.ended.send(Ended::handed_back(leased)).await;
        }
    }
}

/// What is here, and how many tasks are likely to begin within a second.
#[derive(Debug)]
pub(crate) struct Load {
    /// Tasks that wait.
    pub(crate) waiting: usize,
    /// Bytes of their inputs.
    pub(crate) bytes: usize,
    /// Tasks that are likely to begin within a second, of all tenants.
    pub(crate) soon: usize,
    /// What is here of each tenant.
    pub(crate) held: BTreeMap<TenantId, Held>,
}

/// What is here of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Tasks that wait.
    pub(crate) waiting: usize,
    /// Tasks and runs that run.
    pub(crate) running: usize,
    /// Those that ended within a second.
    pub(crate) ended: usize,
}

impl Held {
    /// What waits or runs.
    pub(crate) fn count(&self) -> usize {
        self.waiting + self.running
    }

    /// How many more of the tenant's tasks are likely to begin within a second, where so many of all tenants are, and
    /// `running_max` of this one run at once.
    pub(crate) fn room(&self, running_max: usize, soon: usize) -> usize {
        let free = running_max.saturating_sub(self.running).min(soon);
        free.max(self.ended).saturating_sub(self.waiting)
    }
}

/// When a local queue is low, so that whoever leases has room again.
#[derive(Clone, Debug)]
pub(crate) struct Low {
    /// When at most so many tasks wait in all.
    pub(crate) mark: Option<usize>,
    /// When half of what waits of one of these tenants, who could have no more, is gone.
    pub(crate) capped: Vec<TenantId>,
    /// Beside other hosts, and only when more is likely to begin soon than waits.
    pub(crate) beside: bool,
}

/// What ended lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lately {
    second: u64,
    /// In that second.
    now: usize,
    /// In the one before.
    before: usize,
}

impl Lately {
    /// Something ended.
    pub(crate) fn add(&mut self, second: u64) {
        *self = self.at(second);
        self.now += 1;
    }

    /// How many ended within a second.
    pub(crate) fn count(&self, second: u64) -> usize {
        let at = self.at(second);
        at.now.max(at.before)
    }

    fn at(&self, second: u64) -> Lately {
        match second.saturating_sub(self.second) {
            0 => *self,
            1 => Lately { second, now: 0, before: self.now },
            _ => Lately { second, ..Lately::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_counts_for_a_second() {
        let mut lately = Lately::default();
        let mut seen = Vec::new();
        for (second, ends) in [(0, 3), (1, 1), (2, 2), (9, 0)] {
            (0..ends).for_each(|_| lately.add(second));
            seen.push(lately.count(second));
        }
        assert_eq!(seen, [3, 3, 2, 0]);
        assert_eq!((lately.count(3), lately.count(4)), (2, 0));
    }

    #[test]
    fn a_tenant_has_room_for_what_is_free_or_ended_lately() {
        let room = |waiting, running, ended, soon| Held { waiting, running, ended }.room(10, soon);
        assert_eq!(room(0, 0, 0, 100), 10, "as many as may run of it");
        assert_eq!(room(0, 4, 0, 3), 3, "others have the places");
        assert_eq!(room(2, 4, 0, 100), 4, "some wait already");
        assert_eq!(room(0, 10, 0, 100), 0, "it runs as many as it may");
        assert_eq!(room(5, 10, 50, 100), 45, "and they are short");
    }
}
