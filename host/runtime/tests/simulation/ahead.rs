//! How far hosts lease ahead, beside others and alone, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::limit::{INPUT_BYTES_MAX, LOCAL_QUEUE_BYTES_MAX};
use keiko_core::outcome::Outcome;
use keiko_core::policy::TenantPolicy;
use keiko_core::port::{Attempt, HostPort};
use keiko_core::stop::Stop;
use keiko_core::task::{Payload, TaskState};
use keiko_core::{TaskId, TenantId};
use keiko_runtime::{Handle, Options, Runtime, TaskRequest};
use keiko_store::memory::MemoryStore;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::schedules::{clock, install};
use crate::support::{Given, Play, Virtual, report, start_virtual_with, task};

const BEGAN: &str = "2026-06-01T12:00:00Z";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// What one lease loads at most, in bytes.
const LEASE_BYTES_MAX: usize = 64 << 20;

/// Lets virtual time go on.
async fn pass(time: Duration) {
    let _ = timeout(time, std::future::pending::<()>()).await;
}

/// Attempts that have begun on a host, by their inputs.
#[derive(Default)]
struct Begun(Mutex<Vec<Bytes>>);

impl Begun {
    /// Guests that take so long.
    fn play(self: &Arc<Begun>, time: Duration) -> Arc<Play> {
        let begun = Arc::clone(self);
        Arc::new(move |attempt: Attempt, _: Arc<dyn HostPort>, _: Stop| {
            let begun = Arc::clone(&begun);
            async move {
                begun.0.lock().push(attempt.input.bytes);
                pass(time).await;
                report(Outcome::Completed(Payload::json("1")))
            }
            .boxed()
        })
    }

    /// How many have begun, each input once.
    fn count(&self) -> usize {
        let mut begun = self.0.lock().clone();
        begun.sort_unstable();
        begun.dedup();
        assert_eq!(begun.len(), self.0.lock().len(), "none ran twice");
        begun.len()
    }
}

/// A host that runs at most so many attempts at once, each of which takes so long.
async fn start(
    store: MemoryStore,
    clock: &Arc<Virtual>,
    begun: &Arc<Begun>,
    time: Duration,
    running_max: usize,
) -> (Runtime, Handle) {
    let options = Options { running_max, ..Options::default() };
    let given = Given { options, play: begun.play(time), ..Given::default() };
    start_virtual_with(store, clock.clone(), given).await
}

async fn submit(handle: &Handle, tenant: TenantId, inputs: std::ops::Range<u32>) -> Vec<TaskId> {
    let tasks = inputs.map(|input| task(&input.to_string())).collect();
    handle.submit(tenant, tasks, None).await.expect("accepted").ids().collect()
}

/// Waits until these have completed, each in its first attempt.
async fn complete(handle: &Handle, tenant: TenantId, ids: &[TaskId], within: Duration) {
    let all = async {
        for id in ids {
            let summary = handle.wait(tenant, *id, within).await.expect("the task").view.summary;
            assert_eq!(
                (summary.state, summary.attempts, summary.crashes),
                (TaskState::Completed, 1, 0),
                "{id}"
            );
        }
    };
    timeout(within, all).await.expect("they complete in time");
}

#[tokio::test(start_paused = true)]
async fn an_idle_host_runs_what_is_submitted_to_one_whose_attempts_are_long() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let (long, short) = (Arc::new(Begun::default()), Arc::new(Begun::default()));
    let (first, busy) = start(store.clone(), &clock, &long, MINUTE, 4).await;
    let tenant = install(&busy).await;
    let (second, _) = start(store.another_host(), &clock, &short, Duration::ZERO, 100).await;
    // Until its next beat the first one knows of no other.
    pass(busy.options().idle_beat + SECOND).await;
    let running = submit(&busy, tenant, 0..4).await;
    pass(SECOND).await;
    assert_eq!((busy.figures().running, busy.figures().waiting), (4, 0));
    for inputs in [10..11, 20..320] {
        let ids = submit(&busy, tenant, inputs).await;
        complete(&busy, tenant, &ids, SECOND * 3).await;
    }
    complete(&busy, tenant, &running, MINUTE).await;
    assert_eq!((long.count(), short.count()), (4, 301));
    assert_eq!((busy.figures().leased, busy.figures().handed_back), (4, 0));
    first.drain().await;
    second.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_host_alone_had_leased_ahead_goes_to_another_that_comes() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let (long, short) = (Arc::new(Begun::default()), Arc::new(Begun::default()));
    let (first, busy) = start(store.clone(), &clock, &long, MINUTE, 2).await;
    let tenant = install(&busy).await;
    let ids = submit(&busy, tenant, 0..8).await;
    pass(SECOND * 10).await;
    let figures = busy.figures();
    assert_eq!((figures.running, figures.waiting, figures.handed_back), (2, 6, 0), "alone it keeps them");
    let (second, idle) = start(store.another_host(), &clock, &short, Duration::ZERO, 100).await;
    // A beat, and what waits has waited for long enough already.
    complete(&idle, tenant, &ids[2..], busy.options().beat + SECOND * 3).await;
    complete(&idle, tenant, &ids[..2], MINUTE).await;
    assert_eq!((long.count(), short.count()), (2, 6));
    assert_eq!((busy.figures().leased, busy.figures().handed_back), (8, 6));
    first.drain().await;
    second.drain().await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_all_full_run_everything_and_do_not_pass_it_to_and_fro() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let (here, there) = (Arc::new(Begun::default()), Arc::new(Begun::default()));
    let (first, handle) = start(store.clone(), &clock, &here, MINUTE, 2).await;
    let tenant = install(&handle).await;
    let (second, other) = start(store.another_host(), &clock, &there, MINUTE, 2).await;
    pass(handle.options().idle_beat + SECOND).await;
    let ids = submit(&handle, tenant, 0..12).await;
    complete(&handle, tenant, &ids, MINUTE * 3 + SECOND * 10).await;
    assert_eq!(here.count() + there.count(), 12);
    assert!(here.count() >= 4 && there.count() >= 4, "both have their share");
    // Those that one had ahead when two of its attempts ended at once, at most a few times.
    let handed_back = handle.figures().handed_back + other.figures().handed_back;
    assert!(handed_back < 30, "{handed_back} were handed back in three minutes");
    first.drain().await;
    second.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_alone_leases_ahead_and_gives_nothing_back() {
    let (clock, begun) = (clock(BEGAN), Arc::new(Begun::default()));
    let (runtime, handle) = start(MemoryStore::new(), &clock, &begun, MINUTE, 2).await;
    let tenant = install(&handle).await;
    let ids = submit(&handle, tenant, 0..20).await;
    complete(&handle, tenant, &ids, MINUTE * 10 + SECOND).await;
    assert_eq!((begun.count(), handle.figures().leased, handle.figures().handed_back), (20, 20, 0));
    runtime.drain().await;
}

#[tokio::test(start_paused = true)]
async fn large_inputs_wait_with_the_store_and_not_in_memory() {
    let clock = clock(BEGAN);
    let begun = Arc::new(Begun::default());
    // One runs at a time, and the tenant may have all of them ahead.
    let options = Options { running_max: 400, running_per_worker: 1, ..Options::default() };
    let policy = TenantPolicy { running_max: 400, ..TenantPolicy::default() };
    let given = Given { options, policy, play: begun.play(SECOND), ..Given::default() };
    let (runtime, handle) = start_virtual_with(MemoryStore::new(), clock, given).await;
    let tenant = install(&handle).await;
    let input = Payload::json(vec![b'1'; INPUT_BYTES_MAX as usize]);
    let large = TaskRequest { input, ..task("1") };
    let ids: Vec<_> = handle.submit(tenant, vec![large; 100], None).await.expect("accepted").ids().collect();
    let mut most = 0;
    while handle.counts(tenant).await.expect("counts").completed < ids.len() as u64 {
        pass(SECOND / 4).await;
        most = most.max(handle.figures().waiting * INPUT_BYTES_MAX as usize);
    }
    assert!(most > LOCAL_QUEUE_BYTES_MAX / 2, "{most} bytes waited");
    assert!(most <= LOCAL_QUEUE_BYTES_MAX + LEASE_BYTES_MAX, "{most} bytes waited");
    complete(&handle, tenant, &ids, SECOND).await;
    assert_eq!(begun.0.lock().len(), ids.len());
    runtime.drain().await;
}
