//! What a running guest reaches of the runtime.

use std::sync::Arc;

use async_trait::async_trait;
use keiko_core::effect::ChildWish;
use keiko_core::port::{HostPort, ReserveError, Reserved};
use keiko_core::task::Lineage;
use keiko_core::{PluginName, TaskId, TenantId};
use parking_lot::Mutex;

use crate::request::{Error, Progress};
use crate::running::Entry;
use crate::shared::{Shared, TenantEntry};

/// The port of one attempt. Dropping it gives back the room it promised to children, whether they were stored
/// (the gauge counts them as live by then) or not.
pub(crate) struct AttemptPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) tenant: TenantId,
    pub(crate) policy: Arc<TenantEntry>,
    pub(crate) plugin: PluginName,
    pub(crate) lineage: Lineage,
    /// Children promised so far.
    pub(crate) children: Mutex<u64>,
}

#[async_trait]
impl HostPort for AttemptPort {
    fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    fn progress(&self, fraction: f64, message: String) {
        *self.entry.progress.lock() = Some(Progress { fraction, message });
    }

    async fn reserve(&self, wishes: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        let policy = &self.policy.policy;
        if self.lineage.depth >= policy.depth_max {
            return Err(ReserveError::DepthExceeded(policy.depth_max));
        }
        let mut kinds = Vec::with_capacity(wishes.len());
        for wish in wishes {
            let plugin = wish.plugin.as_deref().unwrap_or(self.plugin.as_str());
            let found = self.shared.catalog.resolve(self.tenant, Some(plugin), wish.kind.as_deref());
            kinds.push(found.map_err(|error: Error| ReserveError::NotFound(error.message))?.0);
        }
        self.promise(wishes.len() as u64)?;
        let count = u32::try_from(wishes.len()).map_err(|_| ReserveError::Unavailable)?;
        let first = self.shared.ids.take(count).await.map_err(|error| {
            tracing::warn!(error = %error, "no ids could be reserved for children");
            ReserveError::Unavailable
        })?;
        let ids = (first.0..).map(TaskId);
        Ok(ids.zip(kinds).map(|(id, kind)| Reserved { id, kind }).collect())
    }
}

impl AttemptPort {
    fn promise(&self, more: u64) -> Result<(), ReserveError> {
        let policy = &self.policy.policy;
        let mut children = self.children.lock();
        if *children + more > policy.fan_out_max as u64 {
            return Err(ReserveError::FanOutExceeded(policy.fan_out_max as u64));
        }
        let room = self.shared.gauge.promise(self.tenant, more, policy.queue_max);
        room.map_err(|_| ReserveError::QueueFull(policy.queue_max))?;
        *children += more;
        Ok(())
    }
}

impl Drop for AttemptPort {
    fn drop(&mut self) {
        let promised = *self.children.get_mut();
        if promised > 0 {
            self.shared.gauge.release(self.tenant, promised);
        }
    }
}
