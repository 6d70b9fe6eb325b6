//! Where this crate spawns: its loops as tasks, its guest workers and its heart as threads. Nothing else does.
//!
//! For simulations everything is a task of the caller's runtime, which may have one thread and a clock of its own, and
//! ends with what it belongs to, as a process does that is killed.

use std::future::{Future, pending};
use std::panic::resume_unwind;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cores;

/// Loops and threads that start together and are stopped together.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// By name, with what tells that it has ended, however it did.
    running: Mutex<Vec<(String, oneshot::Receiver<()>)>>,
    stop: CancellationToken,
    /// Set when there are no threads: everything that was started.
    in_place: Option<Started>,
}

/// How a thread stands beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// How much less the operating system favours it, from 0 to 19.
    pub(crate) nice: i32,
    /// The one processor that it keeps to.
    pub(crate) core: Option<usize>,
    /// Calls that block a thread, each on one of its own, that it has under way at once; at least 1.
    pub(crate) blocking_max: usize,
}

/// Tasks that end with this.
#[derive(Debug, Default)]
struct Started(Mutex<Vec<AbortHandle>>);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.get_mut().iter().for_each(AbortHandle::abort);
    }
}

impl Services {
    /// Services that start no threads, if that is asked for.
    pub(crate) fn new(in_place: bool) -> Services {
        Services { in_place: in_place.then(Started::default), ..Services::default() }
    }

    /// What every loop watches; cancelled by [`Services::stop`].
    pub(crate) fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a loop on the host's runtime.
    #[allow(clippy::disallowed_methods, reason = "the one place of this crate that spawns tasks")]
    pub(crate) fn spawn(&self, name: impl Into<String>, future: impl Future<Output = ()> + Send + 'static) {
        let done = self.note(name);
        let started = tokio::spawn(async move {
            future.await;
            // Nobody waits when the service was dropped instead of stopped.
            let _ = done.send(());
        });
        if let Some(all) = &self.in_place {
            all.0.lock().push(started.abort_handle());
        }
    }

    /// Runs a future on a thread of its own, with a runtime of its own that looks at the future and at timers after
    /// every poll of what was spawned beside it: a guest may hold the thread for a tick in each, and the default
    /// interval would let 61 pass.
    pub(crate) fn thread<F>(
        &self,
        name: impl Into<String>,
        standing: Standing,
        make: impl FnOnce() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.in_place.is_some() {
            return self.spawn(name, make());
        }
        let name = name.into();
        let builder = std::thread::Builder::new().name(format!("keiko-{name}"));
        let done = self.note(name);
        let body = move || {
            // Before its runtime is there: threads for what blocks are children of this one, and keep to what it keeps to.
            standing.take();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(1)
                .max_blocking_threads(standing.blocking_max.max(1))
                .build()
                .expect("a runtime needs an epoll instance, without which no host can work");
            runtime.block_on(make());
            let _ = done.send(());
        };
        builder.spawn(body).expect("a host needs its threads to start");
    }

    /// Notes what is started; what it is given is sent, or dropped, at its end.
    fn note(&self, name: impl Into<String>) -> oneshot::Sender<()> {
        let (done, ended) = oneshot::channel();
        self.running.lock().push((name.into(), ended));
        done
    }

    /// Asks everything to stop and waits for it, at most `limit`; the names of what had not ended by then.
    pub(crate) async fn stop(self, limit: Duration) -> Vec<String> {
        self.stop.cancel();
        let mut left = self.running.into_inner();
        let all = async {
            while let Some((_, ended)) = left.last_mut() {
                // An error means that it ended without saying so: it panicked, and is gone all the same.
                let _ = ended.await;
                left.pop();
            }
        };
        let _ = tokio::time::timeout(limit, all).await;
        // Those before the one that was waited for may have ended.
        left.retain_mut(|(_, ended)| ended.try_recv() == Err(TryRecvError::Empty));
        left.into_iter().map(|(name, _)| name).collect()
    }
}

/// Runs a future beside the one that its thread was made for.
#[allow(clippy::disallowed_methods, reason = "the one place of this crate that spawns tasks")]
pub(crate) fn spawn_beside(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Where what a guest asks for goes on by itself: a guest goes on only when it has a turn, and what it would hold until
/// then, a connection above all, others need.
#[derive(Clone, Debug)]
pub(crate) struct Apart(Handle);

impl Apart {
    /// Beside whoever makes this.
    pub(crate) fn here() -> Apart {
        Apart(Handle::current())
    }

    /// Runs a future to its end, or until nobody waits for it any more.
    #[allow(clippy::disallowed_methods, reason = "the one place of this crate that spawns tasks")]
    pub(crate) async fn run<T>(&self, future: impl Future<Output = T> + Send + 'static) -> T
    where
        T: Send + 'static,
    {
        match AbortOnDropHandle::new(self.0.spawn(future)).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The host has ended, and with it whoever could be told.
                Err(_) => pending().await,
            },
        }
    }
}

impl Standing {
    /// Gives it to this thread. Only Linux has a priority for each thread; elsewhere it would be the whole process's.
    fn take(self) {
        if self.nice > 0
            && cfg!(target_os = "linux")
            && let Err(error) = rustix::process::nice(self.nice)
        {
            tracing::debug!(error = %error, "a thread keeps its usual priority");
        }
        // It could when the host started: what the process may use has changed since.
        if let Some(Err(error)) = self.core.map(cores::keep_to) {
            tracing::warn!(error = %error, "a thread does not keep to its processor");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;

    const STANDING: Standing = Standing { nice: 1, core: None, blocking_max: 2 };

    #[tokio::test]
    async fn services_stop_and_say_which_did_not() {
        let stopping = |services: &Services| {
            let stop = services.stop_signal();
            async move { stop.cancelled().await }
        };
        let services = Services::default();
        services.spawn("loop", stopping(&services));
        let stops = stopping(&services);
        services.thread("thread", STANDING, move || stops);
        services.spawn("gone", async {
            panic!("this ends it too");
        });
        assert_eq!(services.stop(Duration::from_secs(10)).await, [""; 0]);

        let services = Services::default();
        services.spawn("before", stopping(&services));
        services.spawn("deaf", pending());
        services.thread("deaf-thread", STANDING, pending);
        services.spawn("behind", stopping(&services));
        assert_eq!(services.stop(Duration::from_millis(50)).await, ["deaf", "deaf-thread"]);
    }

    #[tokio::test]
    async fn a_thread_has_as_many_calls_that_block_as_it_may_and_no_more() {
        let services = Services::default();
        let most = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&most);
        services.thread("test", STANDING, move || async move {
            // Each waits for one more, so they end only when two run at once.
            let (pair, under_way) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
            let calls = (0..6).map(|_| {
                let (pair, under_way, seen) = (Arc::clone(&pair), Arc::clone(&under_way), Arc::clone(&seen));
                tokio::task::spawn_blocking(move || {
                    seen.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    pair.wait();
                    under_way.fetch_sub(1, Ordering::SeqCst);
                })
            });
            futures::future::join_all(calls).await;
        });
        assert_eq!(services.stop(Duration::from_secs(10)).await, [""; 0]);
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
