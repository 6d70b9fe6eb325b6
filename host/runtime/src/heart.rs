//! Keeps this host's lease alive, from a thread of its own that no guest and no request can hold up.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::port::{Beat, Dead, Signal, StoreError};
use keiko_core::stop::StopReason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::batch;
use crate::pauses;
use crate::rescuer;
use crate::shared::{Counters, Job, Shared};

/// Beats until stopped.
pub(crate) async fn beat(shared: Arc<Shared>, stop: CancellationToken) {
    let mut heart = Heart { shared, alive: true, catalog: None };
    let mut next = Instant::now() + heart.interval();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = heart.shared.pulse.poked() => {}
            () = heart.shared.pulse.quickened() => {
                next = next.min(Instant::now() + heart.shared.options.beat);
                continue;
            }
            () = tokio::time::sleep_until(next) => {}
        }
        heart.beat_once().await;
        next = Instant::now() + heart.interval();
    }
}

struct Heart {
    shared: Arc<Shared>,
    /// Whether the holder is registered, as far as this host knows.
    alive: bool,
    /// The catalog's number at the last beat.
    catalog: Option<i64>,
}

impl Heart {
    /// Time to the next beat.
    fn interval(&self) -> Duration {
        let options = &self.shared.options;
        let idle = options.idle_beat.min(options.lease * 2 / 3);
        if self.alive && !self.holds() && !self.shared.tenures.has_former() {
            idle.max(options.beat)
        } else {
            options.beat
        }
    }

    /// Whether this host has tasks that another one must not run.
    fn holds(&self) -> bool {
        self.shared.queue.look(|lanes| lanes.waiting() + lanes.running() > 0)
    }

    async fn beat_once(&mut self) {
        let shared = Arc::clone(&self.shared);
        let (options, began) = (&shared.options, Instant::now());
        let lease_ms = options.lease.as_millis() as i64;
        if shared.pulse.take_lost() && self.alive {
            lose(&shared);
            self.alive = false;
        }
        // What does not come back in time has failed: the store may be stalled, not gone.
        let left = options.self_cancel.saturating_sub(shared.pulse.proven().elapsed());
        match tokio::time::timeout(left.max(Duration::from_millis(100)), self.exchange(began, lease_ms)).await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %error, "a heartbeat failed"),
            Err(_) => tracing::warn!("a heartbeat was not answered in time"),
        }
        if self.alive && self.holds() && shared.pulse.proven().elapsed() >= options.self_cancel {
            lose(&shared);
            self.alive = false;
        }
    }

    /// One beat, and what follows from its answer.
    async fn exchange(&mut self, began: Instant, lease_ms: i64) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        match shared.tasks.beat(shared.tenure().holder, shared.clock.now_ms(), lease_ms).await? {
            Beat::Alive { others_end_ms, catalog } if self.alive => {
                shared.pulse.prove(began);
                shared.stale.notify_one();
                if shared.pulse.note_others(others_end_ms) {
                    // What became ready here while nobody was known may be theirs.
                    shared.signals.tell(Signal { ready: true, ..Signal::default() });
                }
                self.follow_catalog(catalog).await;
                if !self.change_names(lease_ms).await {
                    lose(&shared);
                    self.alive = false;
                }
            }
            _ => {
                if self.alive {
                    lose(&shared);
                    self.alive = false;
                }
                self.alive = reopen(&shared, lease_ms, began).await;
            }
        }
        Ok(())
    }

    /// Takes another name when the current one is in doubt, and gives those up that nothing is worked under any more.
    /// Says whether the leases of the others are still this host's.
    async fn change_names(&self, lease_ms: i64) -> bool {
        let (shared, began) = (&self.shared, Instant::now());
        if shared.tenures.is_doubted() {
            // What becomes the former name was prolonged then, and not by what follows.
            let proven = shared.pulse.proven();
            match shared.tasks.open_holder(shared.clock.now_ms(), lease_ms).await {
                Ok(holder) => {
                    shared.tenures.succeed(holder, proven);
                    tracing::info!(
                        "this host leases under another name, as an answer of the database was lost"
                    );
                }
                Err(error) => tracing::warn!(error = %error, "no other name could be had"),
            }
        }
        let (worked, idle) = shared.tenures.former();
        for holder in idle {
            match shared.tasks.close_holder(holder, shared.clock.now_ms()).await {
                Ok(left) => {
                    Counters::add(&shared.counters.handed_back, left);
                    shared.tenures.forget(holder);
                    shared.ready();
                    // It may have left batches, too.
                    shared.batches.lose([]);
                }
                Err(error) => tracing::warn!(error = %error, "a former name could not be given up"),
            }
        }
        for former in worked {
            match shared.tasks.beat(former.holder(), shared.clock.now_ms(), lease_ms).await {
                Ok(Beat::Alive { .. }) => shared.tenures.prove(former.holder(), began),
                Ok(Beat::Lost) => return false,
                Err(_) if former.proven.elapsed() < shared.options.self_cancel => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads the plugins again when another host has changed them and its news did not arrive.
    async fn follow_catalog(&mut self, number: i64) {
        if self.catalog == Some(number) {
            return;
        }
        match self.shared.catalog.refresh().await {
            Ok(()) => {
                // What fails is read again at the next beat.
                if pauses::refresh(&self.shared).await {
                    self.catalog = Some(number);
                }
                batch::refresh(&self.shared).await;
            }
            Err(error) => tracing::warn!(error = %error, "the plugins could not be read again"),
        }
    }
}

/// The lease is gone, or may be by the time anybody looks: stop what runs before another host may start it.
fn lose(shared: &Shared) {
    Counters::add(&shared.counters.leases_lost, 1);
    shared.tenures.lose();
    let jobs = shared.queue.clear();
    let dropped = jobs.len();
    let batches = jobs.into_iter().filter_map(|job| match job {
        Job::Batch(job) => Some(job.batch.group),
        Job::Task(_) | Job::Run(_) => None,
    });
    shared.batches.lose(batches);
    let stopped = shared.running.stop_all(StopReason::LeaseLost);
    tracing::error!(stopped, dropped, "this host lost its lease and stopped its attempts");
}

/// Starts over as a new incarnation.
async fn reopen(shared: &Shared, lease_ms: i64, began: Instant) -> bool {
    let now_ms = shared.clock.now_ms();
    // What a call leased that was on its way when the lease was lost goes back at once.
    for holder in shared.tenures.all() {
        if let Err(error) = shared.tasks.close_holder(holder, now_ms).await {
            tracing::warn!(error = %error, "a lost lease could not be given up; it will end");
        }
    }
    match shared.tasks.open_holder(now_ms, lease_ms).await {
        Ok(holder) => {
            shared.tenures.start_over(holder);
            shared.pulse.prove(began);
            match shared.tasks.rescue(Dead::Expired, Vec::new(), now_ms).await {
                Ok(rescued) => rescuer::note(shared, &rescued),
                Err(error) => {
                    tracing::warn!(error = %error, "tasks of the lost lease could not be rescued yet");
                    shared.failing.doubt();
                }
            }
            shared.wake.notify_one();
            // Batches of the lost lease are nobody's now.
            shared.batches.lose([]);
            tracing::info!("this host holds a new lease");
            true
        }
        Err(error) => {
            tracing::warn!(error = %error, "no new lease could be had");
            false
        }
    }
}
