//! What an operator can set about a running host.

use std::path::PathBuf;
use std::time::Duration;

use keiko_core::limit;

/// Options of a runtime. The defaults are those of the limits table.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that run guests.
    pub workers: usize,
    /// Attempts on one of them at once.
    pub running_per_worker: usize,
    /// Attempts on this host at once.
    pub running_max: usize,
    /// Tasks leased and not started.
    pub local_queue_max: usize,
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// Time between beats.
    pub beat: Duration,
    /// Without a beat for this long the host stops its own attempts.
    pub self_cancel: Duration,
    /// How long a drain waits for running attempts.
    pub drain: Duration,
    /// Longest sleep of the dispatcher when nothing wakes it.
    pub poll: Duration,
    /// Folder for the journal of running attempts; without one, a crash of the host is charged to nobody.
    pub journal_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            running_per_worker: limit::RUNNING_PER_WORKER_MAX,
            running_max: limit::RUNNING_PER_HOST_MAX,
            local_queue_max: limit::LOCAL_QUEUE_MAX,
            lease: Duration::from_millis(limit::LEASE_MS as u64),
            beat: Duration::from_millis(limit::BEAT_MS),
            self_cancel: Duration::from_millis(limit::SELF_CANCEL_MS),
            drain: Duration::from_secs(30),
            poll: Duration::from_secs(5),
            journal_dir: None,
        }
    }
}
