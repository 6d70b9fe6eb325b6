//! Where this crate spawns: its loops as tasks, its guest workers and its heart as threads. Nothing else does.
//!
//! For simulations everything is a task of the caller's runtime, which may have one thread and a clock of its own, and
//! ends with what it belongs to, as a process does that is killed.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Loops and threads that start together and are stopped together.
#[derive(Debug, Default)]
pub(crate) struct Services {
    tracker: TaskTracker,
    threads: Vec<oneshot::Receiver<()>>,
    stop: CancellationToken,
    /// Set when there are no threads: everything that was started.
    in_place: Option<Started>,
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
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let started = tokio::spawn(self.tracker.track_future(future));
        if let Some(all) = &self.in_place {
            all.0.lock().push(started.abort_handle());
        }
    }

    /// Runs a future on a thread of its own, with a runtime of its own that looks at the future and at timers after
    /// every poll of what was spawned beside it: a guest may hold the thread for a tick in each, and the default
    /// interval would let 61 pass. The operating system favours the thread less by `nice`, from 0 to 19.
    pub(crate) fn thread<F>(&mut self, name: String, nice: i32, make: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.in_place.is_some() {
            return self.spawn(make());
        }
        let (done, ended) = oneshot::channel();
        self.threads.push(ended);
        let body = move || {
            step_back(nice);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(1)
                .build()
                .expect("a runtime needs an epoll instance, without which no host can work");
            runtime.block_on(make());
            // Nobody waits when the service was dropped instead of stopped.
            let _ = done.send(());
        };
        std::thread::Builder::new().name(name).spawn(body).expect("a host needs its threads to start");
    }

    /// Asks everything to stop and waits for it, at most `limit`; says whether all of it ended.
    pub(crate) async fn stop(self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let all = async {
            self.tracker.wait().await;
            for ended in self.threads {
                // An error means that the thread ended without saying so: it panicked, and is gone all the same.
                let _ = ended.await;
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }
}

/// Runs a future beside the one that its thread was made for.
#[allow(clippy::disallowed_methods, reason = "the one place of this crate that spawns tasks")]
pub(crate) fn spawn_beside(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Lowers the priority of this thread. Only Linux has one for each thread; elsewhere it would be the whole process's.
fn step_back(nice: i32) {
    if nice > 0
        && cfg!(target_os = "linux")
        && let Err(error) = rustix::process::nice(nice)
    {
        tracing::debug!(error = %error, "a thread keeps its usual priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn services_stop_and_say_whether_all_did() {
        let mut services = Services::default();
        let stop = services.stop_signal();
        services.spawn({
            let stop = stop.clone();
            async move { stop.cancelled().await }
        });
        services.thread("test".to_owned(), 1, move || async move { stop.cancelled().await });
        assert!(services.stop(Duration::from_secs(10)).await);

        let services = Services::default();
        services.spawn(std::future::pending());
        assert!(!services.stop(Duration::from_millis(1)).await);
    }
}
