//! What a host holds at most, at the limit and one above, and how long a store that stands still holds up its stop.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use futures::{FutureExt, poll};
use keiko_core::limit::LOCAL_QUEUE_MAX;
use keiko_core::port::Attempt;
use keiko_core::task::TaskState;
use keiko_runtime::Options;
use keiko_store::memory::{Faults, MemoryStore};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use crate::support::{Bench, MANIFEST, SOON, echo, start_on, start_playing, submit, task};
use crate::{ended, endless_once};

#[tokio::test]
async fn a_host_has_as_many_tasks_ahead_as_its_local_queue_holds_and_leaves_the_next_with_the_store() {
    let mut bench = Bench::new().await;
    // One runs, and the tenant may have as many ahead as there are.
    (bench.options.workers, bench.options.running_per_worker) = (1, 1);
    (bench.options.running_max, bench.policy.running_max) = (LOCAL_QUEUE_MAX, LOCAL_QUEUE_MAX);
    let (gate, most) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let held = Arc::clone(&gate);
    let play = move |attempt: Attempt, _, _| {
        let gate = Arc::clone(&held);
        async move {
            gate.acquire().await.expect("open").forget();
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let look = || {
        let waiting = handle.figures().waiting;
        most.fetch_max(waiting, Ordering::Relaxed);
        waiting
    };
    let first = submit(&handle, tenant, "1").await;
    while handle.figures().running == 0 {
        tokio::task::yield_now().await;
    }
    let fits = handle.submit(tenant, vec![task("1"); LOCAL_QUEUE_MAX], None).await.expect("accepted");
    let full = async {
        while look() < LOCAL_QUEUE_MAX {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, full).await.expect("at the limit all are leased");
    let above = submit(&handle, tenant, "1").await;
    // Each of these wakes who leases.
    for _ in 0..10 {
        submit(&handle, tenant, "1").await;
        look();
    }
    assert_eq!(handle.figures().leased, LOCAL_QUEUE_MAX as u64 + 1);
    let state = handle.task(tenant, above).await.expect("the task").view.summary.state;
    assert_eq!(state, TaskState::Pending, "one above");
    gate.add_permits(LOCAL_QUEUE_MAX + 12);
    for id in [first, above].into_iter().chain(fits.ids()) {
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
        look();
    }
    assert_eq!(most.load(Ordering::Relaxed), LOCAL_QUEUE_MAX);
    runtime.drain().await;
}

#[tokio::test]
async fn a_store_that_stands_still_holds_up_no_stop_and_loses_nothing() {
    let store = MemoryStore::new();
    let started = Arc::new(Notify::new());
    let options = Options {
        workers: 1,
        drain: Duration::from_millis(100),
        lease: Duration::from_secs(2),
        beat: Duration::from_millis(100),
        ..Options::default()
    };
    let play = Arc::new(endless_once(Arc::clone(&started)));
    let (runtime, handle) = start_playing(store.clone(), options, play).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let running = submit(&handle, tenant, "1").await;
    started.notified().await;
    store.set_faults(Faults { stalled: true, ..Faults::default() });
    // A caller whose submit is on its way, and one who waits.
    let mut late = Box::pin(handle.submit(tenant, vec![task("2")], None));
    assert!(poll!(late.as_mut()).is_pending());
    let mut waits = Box::pin(handle.wait(tenant, running, Duration::from_secs(3_600)));
    assert!(poll!(waits.as_mut()).is_pending());
    let began = Instant::now();
    timeout(SOON, runtime.drain()).await.expect("a store that stands still stalls no stop");
    // What it may hold up, and a second for what this machine is busy with.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    store.set_faults(Faults::default());
    let late = late.await.expect("it was taken before the stop").first;
    let waited = waits.await.expect("its caller is answered").view.summary.state;
    assert!(!waited.is_terminal());
    let (others, other) = start_on(store.another_host(), 4).await;
    for id in [running, late] {
        let detail = ended(&other, tenant, id).await;
        assert_eq!(detail.view.summary.state, TaskState::Completed);
        assert_eq!((detail.view.summary.attempts, detail.view.summary.crashes), (1, 0));
    }
    others.drain().await;
}

#[tokio::test]
async fn a_drain_names_what_does_not_stop_in_its_time() {
    let mut bench = Bench::new().await;
    (bench.options.workers, bench.options.drain) = (1, Duration::from_millis(50));
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Barrier::new(2)));
    let (begun, held) = (Arc::clone(&started), Arc::clone(&release));
    let play = move |attempt: Attempt, _, _| {
        let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
        async move {
            begun.notify_one();
            // It has its thread, and hears of no stop.
            held.wait();
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    submit(&handle, tenant, "1").await;
    started.notified().await;
    let report = timeout(SOON, runtime.drain()).await.expect("it is not waited for for ever");
    assert_eq!((report.unstopped, report.finished), (vec!["guest-0".to_owned()], 0));
    release.wait();
}

#[tokio::test]
async fn large_inputs_of_one_tenant_hold_up_no_other() {
    let mut bench = Bench::new().await;
    // One runs of a tenant, and three more wait, which are more bytes than may.
    (bench.policy.running_max, bench.options.local_queue_bytes_max) = (1, 2_000);
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let play = move |attempt: Attempt, _, _| {
        let gate = Arc::clone(&held);
        async move {
            if attempt.input.bytes.len() > 1 {
                gate.acquire().await.expect("open").forget();
            }
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, [large, small]) = bench.start_for(["large", "small"], play).await;
    let input = "1".repeat(900);
    let ids = handle.submit(large, vec![task(&input); 8], None).await.expect("accepted");
    let full = async {
        while (handle.figures().running, handle.figures().waiting) != (1, 3) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, full).await.expect("they are leased");
    let id = submit(&handle, small, "1").await;
    assert_eq!(ended(&handle, small, id).await.view.summary.state, TaskState::Completed);
    assert_eq!(handle.figures().waiting, 3);
    gate.add_permits(8);
    for id in ids.ids() {
        assert_eq!(ended(&handle, large, id).await.view.summary.state, TaskState::Completed);
    }
    runtime.drain().await;
}

/// For each of them a transaction takes as long of the processors as a guest of a millisecond.
#[tokio::test]
async fn ends_that_nobody_waits_for_are_stored_together_while_more_tasks_wait() {
    const TOGETHER: u64 = 10;
    let store = MemoryStore::new();
    let (gate, played) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
    let (held, count) = (Arc::clone(&gate), Arc::clone(&played));
    let play = move |attempt: Attempt, _, _| {
        let (gate, count) = (Arc::clone(&held), Arc::clone(&count));
        async move {
            gate.acquire().await.expect("open").forget();
            count.fetch_add(1, Ordering::SeqCst);
            echo(&attempt)
        }
        .boxed()
    };
    let options = Options { workers: 1, running_per_worker: 1, ..Options::default() };
    let (runtime, handle) = start_playing(store.clone(), options, Arc::new(play)).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    handle.submit(tenant, vec![task("1"); 600], None).await.expect("accepted");
    // Lets so many end one after the other, and waits until they are stored; how long the first one waited for the last.
    let play_some = async |count: u64| {
        let (ended, settled) = (played.load(Ordering::SeqCst), handle.figures().settled);
        let mut began = None;
        for number in 1..=count {
            gate.add_permits(1);
            while played.load(Ordering::SeqCst) < ended + number {
                tokio::task::yield_now().await;
            }
            began.get_or_insert_with(Instant::now);
        }
        let took = began.map(|began| began.elapsed());
        while handle.figures().settled < settled + count {
            tokio::task::yield_now().await;
        }
        took.unwrap_or_default()
    };
    let mut calls = Vec::new();
    // On a busy machine they may be too far from each other for a while.
    while calls.last().is_none_or(|(took, _)| *took > Duration::from_millis(4)) && calls.len() < 50 {
        let before = store.settles();
        let took = timeout(SOON, play_some(TOGETHER)).await.expect("they end");
        calls.push((took, store.settles() - before));
    }
    let (took, count) = calls.pop().expect("one at least");
    assert!(
        took > Duration::from_millis(4) || count <= 2,
        "{count} calls for {TOGETHER} ends within {took:?}"
    );
    gate.add_permits(600);
    runtime.drain().await;
}
