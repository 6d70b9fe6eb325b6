//! Groups of tasks: submitted, waited for and cancelled together.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::group::{Group, GroupState, NewGroup, Outcome};
use keiko_core::limit::LimitFact;
use keiko_core::port::StoreError;
use keiko_core::tree::Branch;
use keiko_core::{GroupId, TenantId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::branch;
use crate::handle::Handle;
use crate::request::{Accepted, Error, TaskRequest};
use crate::rescuer;
use crate::shared::Shared;

/// Tasks of a group that are cancelled in one transaction.
const CANCEL_COUNT: u32 = 1_000;

impl Handle {
    /// Stores tasks as one group, all or none; its number is the first one's.
    ///
    /// Errors: as of [`Handle::submit`].
    pub async fn submit_group(
        &self,
        tenant: TenantId,
        tasks: Vec<TaskRequest>,
        key: Option<String>,
        asked: NewGroup,
    ) -> Result<Accepted, Error> {
        if asked.live_max == Some(0) {
            let fact = LimitFact::of_host("live_max", u64::from(u32::MAX), Some(0));
            return Err(Error::at_limit(Code::InvalidInput, fact));
        }
        self.submit_all(tenant, tasks, key, Some(asked)).await
    }

    /// A group as it stands.
    pub async fn group(&self, tenant: TenantId, id: GroupId) -> Result<Group, Error> {
        self.shared.records.group(tenant, id).await?.ok_or_else(|| no_group(id))
    }

    /// A group as soon as all of its tasks have ended, or as it is after `at_most`, or when the host stops.
    pub async fn wait_group(&self, tenant: TenantId, id: GroupId, at_most: Duration) -> Result<Group, Error> {
        let deadline = Instant::now() + at_most;
        let mut group = self.group(tenant, id).await?;
        loop {
            let stopping = !self.shared.accepting.load(Ordering::Acquire);
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(next) = group.next.filter(|_| !left.is_zero() && !stopping) else { return Ok(group) };
            // The group is not done before its first open task is; so that is what to wait for.
            let waiter = self.shared.waiters.wait(next);
            let changed = waiter.changed();
            group = self.group(tenant, id).await?;
            if group.next == Some(next) {
                let _ = tokio::time::timeout(left.min(self.shared.options.look_again), changed).await;
                group = self.group(tenant, id).await?;
            }
        }
    }

    /// Up to `limit` outcomes of a group's tasks, in the order of their submission, from a place on.
    pub async fn outcomes(
        &self,
        tenant: TenantId,
        id: GroupId,
        from: u32,
        limit: u32,
    ) -> Result<(Group, Vec<Outcome>), Error> {
        let group = self.group(tenant, id).await?;
        let tasks = (group.task(from.min(group.count)), group.task(group.count));
        let outcomes = self.shared.records.outcomes(tenant, tasks, limit).await?;
        Ok((group, outcomes))
    }

    /// Ends every task of a group that has not ended, and everything below its tasks.
    pub async fn cancel_group(&self, tenant: TenantId, id: GroupId) -> Result<Group, Error> {
        loop {
            cancel(&self.shared, tenant, id, false).await?.ok_or_else(|| no_group(id))?;
            let group = self.group(tenant, id).await?;
            // What was about to end by itself was passed over.
            if group.state() != GroupState::Open || group.next.is_none() {
                branch::cut(&self.shared, tenant, below(&self.shared, tenant, &group).await?).await?;
                return Ok(group);
            }
        }
    }
}

/// Ends what is left of a group, stops what runs of it here, and tells whoever waits; `None` when there is no such group, or with
/// `only_failed` none that has failed fast.
async fn cancel(
    shared: &Shared,
    tenant: TenantId,
    id: GroupId,
    only_failed: bool,
) -> Result<Option<()>, StoreError> {
    loop {
        let now_ms = shared.clock.now_ms();
        let ended = shared.tasks.cancel_group(tenant, id, only_failed, now_ms, CANCEL_COUNT).await?;
        let Some(ended) = ended else { return Ok(None) };
        let count = ended.len();
        shared.cancelled(tenant, ended);
        if count < CANCEL_COUNT as usize {
            return Ok(Some(()));
        }
    }
}

/// Everything below the tasks of a group. Those are roots, or children of one task.
async fn below(shared: &Shared, tenant: TenantId, group: &Group) -> Result<Branch, StoreError> {
    let (first, last) = (group.task(0), group.task(group.count.saturating_sub(1)));
    // A group is forgotten with its first task.
    let root = shared.records.task(tenant, first).await?.map(|view| view.summary.lineage.root);
    Ok(Branch::below(root.unwrap_or(first), first, last))
}

/// Groups that have failed and whose rest is still to be cancelled: by [`again`], or by whoever rescues this host.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    groups: Mutex<BTreeSet<(TenantId, GroupId)>>,
    /// There is more below one of them than was cancelled at once.
    more: Notify,
    /// A call failed that may have ended tasks all the same; a rescue tells which of their groups go on.
    doubted: AtomicBool,
}

impl Failing {
    /// The rest of these is to be cancelled.
    pub(crate) fn add(&self, groups: impl IntoIterator<Item = (TenantId, GroupId)>) {
        self.groups.lock().extend(groups);
    }

    /// Waits until there is more to cancel, and nothing is in the way.
    pub(crate) async fn more(&self) {
        self.more.notified().await;
    }

    /// There may be groups that nobody told of.
    pub(crate) fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }
}

/// Tasks of these groups have failed: the rest of those that fail fast ends too, and what is below their tasks. What is more
/// than whoever stores ends can wait for, or cannot be cancelled, is kept to be tried again.
pub(crate) async fn failed(shared: &Shared, groups: impl IntoIterator<Item = (TenantId, GroupId)>) {
    for (tenant, id) in groups {
        match fail_fast(shared, tenant, id).await {
            Ok(None) => {}
            Ok(Some(_)) => {
                shared.failing.add([(tenant, id)]);
                shared.failing.more.notify_one();
            }
            Err(error) => keep(shared, (tenant, id), &error),
        }
    }
}

/// Ends the rest of a group that fails fast and has failed, and some of what is below its tasks; the branch, when there is
/// more of that.
async fn fail_fast(shared: &Shared, tenant: TenantId, id: GroupId) -> Result<Option<Branch>, StoreError> {
    // Most groups go on when one of them has failed: nothing more is read of those.
    if cancel(shared, tenant, id, true).await?.is_none() {
        return Ok(None);
    }
    let group = shared.records.group(tenant, id).await?;
    let Some(group) = group.filter(|group| group.asked.fail_fast && group.failed > 0) else {
        return Ok(None);
    };
    let below = below(shared, tenant, &group).await?;
    let (_, left) = branch::cut_some(shared, tenant, below).await?;
    Ok(left.then_some(below))
}

fn keep(shared: &Shared, group: (TenantId, GroupId), error: &StoreError) {
    tracing::warn!(error = %error, "the rest of a failed group could not be cancelled yet");
    shared.failing.add([group]);
}

/// Cancels what is left to be; whether that is all there was.
pub(crate) async fn again(shared: &Shared) -> bool {
    if shared.failing.doubted.swap(false, Ordering::AcqRel) {
        rescuer::round(shared).await;
    }
    let groups = std::mem::take(&mut *shared.failing.groups.lock());
    for (tenant, id) in groups {
        let all = async {
            match fail_fast(shared, tenant, id).await? {
                Some(below) => branch::cut(shared, tenant, below).await.map(drop),
                None => Ok(()),
            }
        };
        if let Err(error) = all.await {
            keep(shared, (tenant, id), &error);
        }
    }
    shared.failing.groups.lock().is_empty() && !shared.failing.doubted.load(Ordering::Acquire)
}

fn no_group(id: GroupId) -> Error {
    Error::new(Code::NotFound, format!("there is no group {id}"))
}
