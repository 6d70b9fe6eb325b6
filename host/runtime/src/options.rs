//! What an operator can set about a running host.

use std::path::PathBuf;
use std::time::Duration;

use keiko_core::limit;
use keiko_core::retention::KeptFrom;

use crate::cache::CacheOptions;
use crate::cores::Cores;
use crate::point::KillAt;

/// Options of a runtime. The defaults are those of the limits table.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that begin attempts and end the short ones; as many more go on with long ones.
    pub workers: usize,
    /// The processors that these threads keep to.
    pub cores: Cores,
    /// Calls that block a thread, such as reading a component, that attempts of one worker may have under way at once; more
    /// of them wait.
    pub blocking_per_worker: usize,
    /// Short attempts on one of them at once.
    pub running_per_worker: usize,
    /// How long an attempt may compute before it is a long one, in time of a processor.
    pub short: Duration,
    /// Attempts on this host at once.
    pub running_max: usize,
    /// Tasks leased and not started.
    pub local_queue_max: usize,
    /// Bytes of their inputs. While so many wait, no more are leased but one task each of tenants of whom none waits, and
    /// while twice as many wait, nothing.
    pub local_queue_bytes_max: usize,
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// Time between beats while this host holds tasks.
    pub beat: Duration,
    /// Time between beats while it holds none; at most two thirds of the lease.
    pub idle_beat: Duration,
    /// Without a beat for this long the host stops its own attempts.
    pub self_cancel: Duration,
    /// How long a drain waits for running attempts.
    pub drain: Duration,
    /// Longest sleep of the dispatcher when nothing wakes it.
    pub poll: Duration,
    /// A caller that waits looks again after this long though nobody told it: another host may have settled.
    pub look_again: Duration,
    /// How long ended tasks are kept.
    pub retention: Retention,
    /// Bytes of items that this host has in memory.
    pub batch_memory_bytes: u64,
    /// Where a test kills the host.
    pub kill_at: Option<KillAt>,
    /// What the cache may take, and for how long.
    pub cache: CacheOptions,
    /// Whether the database is this host's alone, so that every other holder is dead when it starts.
    pub exclusive: bool,
    /// Starts no threads: everything is a task of the caller's runtime and ends when the [`crate::Runtime`] is dropped. For
    /// simulations; a guest then holds up everybody else.
    pub in_place: bool,
    /// Goes on under its name after a call that leases whose answer was lost. For simulations: what that call leased stays
    /// where it is.
    pub keeps_doubtful_leases: bool,
    /// Gives numbers from 0 to 1, for the jitter of retries.
    pub random: fn() -> f64,
    /// Folder for the journal of running attempts; without one, a crash of the host is charged to nobody.
    pub journal_dir: Option<PathBuf>,
}

/// How long ended tasks are kept after their end; `None` is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Completed tasks.
    pub completed: Option<Duration>,
    /// Failed tasks.
    pub failed: Option<Duration>,
    /// Cancelled tasks.
    pub cancelled: Option<Duration>,
}

impl Retention {
    /// What is kept at this time.
    pub fn kept_from(&self, now_ms: i64) -> KeptFrom {
        let from = |time: Option<Duration>| {
            time.map(|time| now_ms.saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
        };
        KeptFrom {
            completed_ms: from(self.completed),
            failed_ms: from(self.failed),
            cancelled_ms: from(self.cancelled),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            cores: Cores::Any,
            blocking_per_worker: limit::BLOCKING_PER_WORKER,
            running_per_worker: limit::RUNNING_PER_WORKER_MAX,
            // Most first slices end at a tick before this; with a whole tick every long attempt would have two.
            short: Duration::from_millis(limit::EPOCH_TICK_MS / 2),
            running_max: limit::RUNNING_PER_HOST_MAX,
            local_queue_max: limit::LOCAL_QUEUE_MAX,
            local_queue_bytes_max: limit::LOCAL_QUEUE_BYTES_MAX,
            lease: Duration::from_millis(limit::LEASE_MS as u64),
            beat: Duration::from_millis(limit::BEAT_MS),
            idle_beat: Duration::from_millis(limit::IDLE_BEAT_MS),
            self_cancel: Duration::from_millis(limit::SELF_CANCEL_MS),
            drain: Duration::from_secs(30),
            poll: Duration::from_secs(60),
            look_again: Duration::from_secs(1),
            keeps_doubtful_leases: false,
            retention: Retention::default(),
            batch_memory_bytes: limit::BATCH_MEMORY_BYTES,
            kill_at: None,
            cache: CacheOptions::default(),
            exclusive: false,
            in_place: false,
            random,
            journal_dir: None,
        }
    }
}

/// Evenly drawn.
fn random() -> f64 {
    // Without randomness there is no jitter, and retries still work.
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / f64::from(u32::MAX)
}
