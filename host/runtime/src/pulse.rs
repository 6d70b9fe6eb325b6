//! What the heart, the dispatcher and the rescuer tell each other about this host's lease.
//!
//! A lease is prolonged by beats and by every lease of tasks. While this host holds tasks it beats often; while it holds
//! none it beats as seldom as keeps the lease, so that an idle host costs its database next to nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The state of this host's lease.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// When the lease was last prolonged, as far as this host knows.
    proven: Mutex<Instant>,
    /// A lease of tasks found the holder gone; read by the heart.
    lost: AtomicBool,
    /// The heart should beat: the holder is gone, or somebody wants news of the other holders.
    poke: Notify,
    /// Tasks came to a host that had none: the heart beats often from now on.
    quicken: Notify,
    /// When the first lease of another holder ends; written by the heart, awaited by the rescuer.
    others_end_ms: watch::Sender<Option<i64>>,
}

impl Pulse {
    pub(crate) fn new() -> Pulse {
        Pulse {
            proven: Mutex::new(Instant::now()),
            lost: AtomicBool::new(false),
            poke: Notify::new(),
            quicken: Notify::new(),
            others_end_ms: watch::Sender::new(None),
        }
    }

    /// The lease was prolonged by a call that began at `since`.
    pub(crate) fn prove(&self, since: Instant) {
        let mut proven = self.proven.lock();
        *proven = since.max(*proven);
    }

    /// When the lease was last prolonged.
    pub(crate) fn proven(&self) -> Instant {
        *self.proven.lock()
    }

    /// Makes the heart beat now.
    pub(crate) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Tells the heart that this host holds something. What leased it has prolonged the lease: a beat at once would only
    /// stand before the first ends in the writer's queue.
    pub(crate) fn quicken(&self) {
        self.quicken.notify_one();
    }

    /// Waits until the heart is to beat often.
    pub(crate) async fn quickened(&self) {
        self.quicken.notified().await;
    }

    /// Waits for a poke.
    pub(crate) async fn poked(&self) {
        self.poke.notified().await;
    }

    /// Tells the heart that the holder is gone.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.poke();
    }

    /// Whether somebody found the holder gone since the last call.
    pub(crate) fn take_lost(&self) -> bool {
        self.lost.swap(false, Ordering::AcqRel)
    }

    /// Notes when the first lease of another holder ends; whether there were no others before.
    pub(crate) fn note_others(&self, end_ms: Option<i64>) -> bool {
        let mut first = false;
        self.others_end_ms.send_if_modified(|known| {
            first = known.is_none() && end_ms.is_some();
            let changed = *known != end_ms;
            *known = end_ms;
            changed
        });
        first
    }

    /// What was noted, and what comes.
    pub(crate) fn others(&self) -> watch::Receiver<Option<i64>> {
        self.others_end_ms.subscribe()
    }

    /// Whether other hosts use the database, as far as this one knows.
    pub(crate) fn has_others(&self) -> bool {
        self.others_end_ms.borrow().is_some()
    }
}
