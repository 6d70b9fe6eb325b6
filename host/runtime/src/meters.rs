//! What runs spend, added up here and stored together: a run writes nothing else, and not even this by itself.
//!
//! - What is added within [`EVERY`] goes into one transaction; a host that dies loses no more than that.
//! - While the store fails nothing is lost: it is one row a tenant, however much is added.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keiko_core::TenantId;
use keiko_core::usage::Spent;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Time between two writes.
const EVERY: Duration = Duration::from_secs(1);
/// How long the last write may take when the host stops.
const LAST: Duration = Duration::from_secs(2);

/// Sums by tenant.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    sums: Mutex<BTreeMap<TenantId, Spent>>,
    /// There is something where there was nothing.
    some: Notify,
}

impl Meters {
    /// Adds what a run spent.
    pub(crate) fn add(&self, tenant: TenantId, spent: Spent) {
        let mut sums = self.sums.lock();
        let first = sums.is_empty();
        sums.entry(tenant).or_default().add(spent);
        drop(sums);
        if first {
            self.some.notify_one();
        }
    }

    fn take(&self) -> Vec<(TenantId, Spent)> {
        std::mem::take(&mut *self.sums.lock()).into_iter().collect()
    }
}

/// Stores what was added until stopped, and what is left then.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! { biased; () = stop.cancelled() => {}, () = shared.meters.some.notified() => {} }
        tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(EVERY) => {} }
        // A write that the store does not answer may have been done: it is not tried again.
        if tokio::time::timeout(LAST, store(&shared)).await.is_err() {
            tracing::warn!("the store did not say in time whether usage was stored");
        }
    }
}

async fn store(shared: &Shared) {
    let spent = shared.meters.take();
    if spent.is_empty() {
        return;
    }
    if let Err(error) = shared.usage.spend(spent.clone(), shared.clock.now_ms()).await {
        tracing::warn!(error = %error, "usage could not be stored yet");
        spent.into_iter().for_each(|(tenant, spent)| shared.meters.add(tenant, spent));
    }
}
