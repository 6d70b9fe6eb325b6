//! Ends tasks whose time is over. It sleeps until the next time-out that this host knows of: from its own submits and from
//! its last look. Those of other hosts are looked for when one of them dies, has drained or may have said so unheard, and every few
//! minutes; no host begins an attempt that is over, whoever looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::stop::StopReason;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::groups;
use crate::shared::Shared;

/// Tasks ended in one transaction.
const EXPIRE_COUNT: u32 = 500;
/// Wait after the store failed.
const AGAIN: Duration = Duration::from_secs(1);

/// When the next time-out is over, as far as this host knows.
#[derive(Debug)]
pub(crate) struct TimeOuts {
    next_ms: AtomicI64,
    sooner: Notify,
}

impl Default for TimeOuts {
    fn default() -> TimeOuts {
        TimeOuts { next_ms: AtomicI64::new(i64::MAX), sooner: Notify::new() }
    }
}

impl TimeOuts {
    /// A time-out is over then.
    pub(crate) fn note(&self, at_ms: i64) {
        if self.next_ms.fetch_min(at_ms, Ordering::AcqRel) > at_ms {
            self.sooner.notify_one();
        }
    }

    /// There may be time-outs that this host does not know of.
    pub(crate) fn look(&self) {
        self.note(i64::MIN);
    }
}

/// Ends tasks until stopped.
pub(crate) async fn expire(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let sooner = shared.time_outs.sooner.notified();
        let next_ms = shared.time_outs.next_ms.load(Ordering::Acquire);
        let left_ms = next_ms.saturating_sub(shared.clock.now_ms()).max(0) as u64;
        let due = async {
            match next_ms {
                i64::MAX => std::future::pending().await,
                _ => tokio::time::sleep(Duration::from_millis(left_ms)).await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sooner => continue,
            () = due => {}
        }
        // What is noted from now on is behind this look, or found by it.
        shared.time_outs.next_ms.store(i64::MAX, Ordering::Release);
        match shared.tasks.expire(shared.clock.now_ms(), EXPIRE_COUNT).await {
            Ok(expired) => {
                shared.count_failed(&expired.failed, Code::DeadlineExceeded);
                tell(&shared, expired.ended);
                groups::failed(&shared, expired.groups).await;
                expired.next_ms.into_iter().for_each(|at_ms| shared.time_outs.note(at_ms));
            }
            Err(error) => {
                tracing::warn!(error = %error, "tasks whose time is over could not be ended");
                shared.failing.doubt();
                shared.time_outs.look();
                tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(AGAIN) => {} }
            }
        }
    }
}

/// Stops what still runs of tasks that ended, and tells whoever waits for them.
fn tell(shared: &Shared, ended: Vec<(keiko_core::TenantId, keiko_core::TaskId)>) {
    for (tenant, id) in &ended {
        shared.running.stop(*id, StopReason::Cancelled);
        shared.gauge.change(*tenant, -1);
    }
    if !ended.is_empty() {
        // Some of their groups may go now.
        shared.ready();
    }
    shared.ended(ended.into_iter().map(|(_, id)| id).collect());
}
