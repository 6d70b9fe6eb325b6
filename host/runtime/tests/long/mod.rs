//! Attempts that compute for long beside others: what they leave to a neighbour, and how they end.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, poll};
use keiko_core::AgentId;
use keiko_core::code::Code;
use keiko_core::outcome::{AttemptReport, Outcome};
use keiko_core::port::{Attempt, HostPort};
use keiko_core::stop::Stop;
use keiko_core::task::{Payload, TaskState};
use keiko_runtime::Handle;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::support::{Bench, SOON, echo, report, submit, task};
use crate::{Report, child, code, ended};

/// The input of a task that ends at once; what others do stands in their input.
const SMALL: &str = "\"small\"";

/// A host where whoever does not end in its first poll is a long one.
async fn bench() -> Bench {
    let mut bench = Bench::new().await;
    bench.options.short = Duration::ZERO;
    bench
}

/// Whether this is a thread of the long attempts.
fn is_long() -> bool {
    std::thread::current().name().is_some_and(|name| name.starts_with("keiko-long"))
}

/// Yields as a guest does at a tick: it could go on at once.
async fn tick() {
    let mut ticked = false;
    poll_fn(|context| {
        if std::mem::replace(&mut ticked, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Computes or waits until it is stopped, by its input; `long` has a permit for each that has become a long one.
async fn endless(attempt: Attempt, stop: Stop, long: Arc<Semaphore>) -> AttemptReport {
    while !is_long() {
        tick().await;
    }
    long.add_permits(1);
    if attempt.input.bytes == "\"waits\"" {
        return report(Outcome::Stopped(stop.wait().await));
    }
    loop {
        match stop.reason() {
            Some(reason) => return report(Outcome::Stopped(reason)),
            None => tick().await,
        }
    }
}

/// Small tasks end at once, others are [`endless`].
fn play(long: &Arc<Semaphore>) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> Report + use<> {
    let long = Arc::clone(long);
    move |attempt, _, stop| {
        if attempt.input.bytes == SMALL {
            return async move { echo(&attempt) }.boxed();
        }
        endless(attempt, stop, Arc::clone(&long)).boxed()
    }
}

/// Waits until so many attempts have become long ones.
async fn until(long: &Semaphore, count: u32) {
    let all = tokio::time::timeout(SOON, long.acquire_many(count)).await.expect("in time");
    all.expect("nobody closes it").forget();
}

/// Waits until so many tasks wait on the host or run.
async fn until_held(handle: &Handle, count: usize) {
    let held = || {
        let figures = handle.figures();
        figures.waiting + figures.running
    };
    let held = async {
        while held() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, held).await.expect("in time");
}

#[tokio::test]
async fn a_fresh_task_ends_while_another_tenants_attempts_compute_on_every_thread() {
    let bench = bench().await;
    let long = Arc::new(Semaphore::new(0));
    let (runtime, handle, [attacker, victim]) = bench.start_for(["attacker", "victim"], play(&long)).await;
    // More than the workers have slots.
    let count = bench.options.workers * bench.options.running_per_worker + 8;
    handle.submit(attacker, vec![task("\"computes\""); count], None).await.expect("accepted");
    until(&long, u32::try_from(count).expect("few")).await;
    for _ in 0..20 {
        let id = submit(&handle, victim, SMALL).await;
        assert_eq!(ended(&handle, victim, id).await.view.summary.state, TaskState::Completed);
    }
    assert_eq!(handle.figures().running, count, "they all still compute");
    runtime.drain().await;
}

#[tokio::test]
async fn a_fresh_task_waits_for_one_first_slice_and_not_for_as_many_as_there_are_slots() {
    let mut bench = bench().await;
    bench.options.workers = 1;
    let order = Arc::new(Mutex::new(Vec::new()));
    let (first, go_on) = (AtomicUsize::new(0), mpsc::channel::<()>());
    let (goes, seen) = (Mutex::new(go_on.1), Arc::clone(&order));
    let (runtime, handle, [attacker, victim]) = bench
        .start_for(["attacker", "victim"], move |attempt, _, _| {
            seen.lock().push(attempt.facts.tenant.to_string());
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                // The first slice of the first attempt lasts until the test has seen the neighbour's task arrive.
                goes.lock().recv_timeout(SOON).expect("the test goes on");
            }
            async move { (tick().await, echo(&attempt)).1 }.boxed()
        })
        .await;
    let flood = handle.submit(attacker, vec![task("1"); 16], None).await.expect("accepted");
    until_held(&handle, 16).await;
    let id = submit(&handle, victim, "1").await;
    until_held(&handle, 17).await;
    go_on.0.send(()).expect("the attempt waits");
    ended(&handle, victim, id).await;
    for id in flood.ids() {
        ended(&handle, attacker, id).await;
    }
    let place = order.lock().iter().position(|tenant| tenant == "victim");
    assert!(place.is_some_and(|place| place <= 2), "{:?}", order.lock());
    runtime.drain().await;
}

#[tokio::test]
async fn an_attempt_that_spends_little_ends_on_the_thread_it_began_on() {
    let mut bench = bench().await;
    bench.options.short = SOON;
    let (runtime, handle, tenant) = bench
        .start(|attempt, _, _| {
            async move {
                for _ in 0..100 {
                    tick().await;
                    assert!(!is_long());
                }
                echo(&attempt)
            }
            .boxed()
        })
        .await;
    let id = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    runtime.drain().await;
}

#[tokio::test]
async fn a_cancel_ends_a_long_attempt_whether_it_computes_or_waits() {
    let bench = bench().await;
    let long = Arc::new(Semaphore::new(0));
    let (runtime, handle, tenant) = bench.start(play(&long)).await;
    for input in ["\"computes\"", "\"waits\""] {
        let id = submit(&handle, tenant, input).await;
        until(&long, 1).await;
        let detail = handle.cancel(tenant, id).await.expect("cancelled");
        assert_eq!(detail.view.summary.state, TaskState::Cancelled);
        until_held(&handle, 0).await;
    }
    let report = runtime.drain().await;
    assert_eq!(report.handed_back, 0, "nothing of them is left");
}

#[tokio::test]
async fn a_drain_hands_back_long_attempts_and_burns_none() {
    let bench = bench().await;
    let long = Arc::new(Semaphore::new(0));
    let (runtime, handle, tenant) = bench.start(play(&long)).await;
    let mut ids = Vec::new();
    for input in ["\"computes\"", "\"waits\"", "\"computes\""] {
        ids.push(submit(&handle, tenant, input).await);
    }
    until(&long, 3).await;
    let report = runtime.drain().await;
    assert_eq!((report.finished, report.handed_back), (0, 3));
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    for id in ids {
        let detail = ended(&handle, tenant, id).await;
        assert_eq!(detail.view.summary.state, TaskState::Completed);
        assert_eq!((detail.view.summary.attempts, detail.view.summary.crashes), (1, 0));
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_lost_lease_ends_long_attempts_and_their_tasks_run_again() {
    let bench = bench().await;
    let long = Arc::new(Semaphore::new(0));
    let (runtime, handle, tenant) = bench.start(play(&long)).await;
    let id = submit(&handle, tenant, "\"computes\"").await;
    until(&long, 1).await;
    bench.store.lost.store(true, Ordering::SeqCst);
    // Its next run.
    until(&long, 1).await;
    assert_eq!(handle.figures().leases_lost, 1);
    assert_eq!(handle.task(tenant, id).await.expect("there").view.summary.attempts, 0, "it burnt none");
    runtime.drain().await;
}

#[tokio::test]
async fn a_panic_in_a_long_attempt_fails_it_and_nothing_else() {
    let bench = bench().await;
    let (runtime, handle, tenant) = bench
        .start(|attempt, _, _| {
            async move {
                while !is_long() {
                    tick().await;
                }
                assert_ne!(attempt.input.bytes, "0", "this guest breaks the engine");
                echo(&attempt)
            }
            .boxed()
        })
        .await;
    let mut once = task("0");
    once.budget.attempts = Some(1);
    // More than there are threads.
    let bad = handle.submit(tenant, vec![once; 5], None).await.expect("accepted");
    for id in bad.ids() {
        assert_eq!(code(&ended(&handle, tenant, id).await), Some(Code::Internal));
    }
    let good = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, good).await.view.summary.state, TaskState::Completed);
    runtime.drain().await;
}

/// Small tasks end at once; others do this with the port, and get no turn between the two semaphores.
fn plays<F>(
    guest: fn(Arc<dyn HostPort>, Arc<Semaphore>, Arc<Semaphore>) -> F,
    asked: &Arc<Semaphore>,
    go_on: &Arc<Semaphore>,
) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> Report + use<F>
where
    F: Future<Output = AttemptReport> + Send + 'static,
{
    let (asked, go_on) = (Arc::clone(asked), Arc::clone(go_on));
    move |attempt, port, _| {
        if attempt.input.bytes == SMALL {
            return async move { echo(&attempt) }.boxed();
        }
        guest(port, Arc::clone(&asked), Arc::clone(&go_on)).boxed()
    }
}

/// Asks for a child's id when it is told to, and goes on when it is told again.
async fn asks_and_stops(
    port: Arc<dyn HostPort>,
    asked: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
) -> AttemptReport {
    go_on.acquire().await.expect("nobody closes it").forget();
    let wishes = [child(None, SMALL)];
    let mut reserve = port.reserve(&wishes);
    assert!(poll!(reserve.as_mut()).is_pending(), "ids are reserved by the store");
    asked.add_permits(1);
    go_on.acquire().await.expect("nobody closes it").forget();
    reserve.await.expect("an id");
    report(Outcome::Completed(Payload::json(Bytes::from_static(b"null"))))
}

#[tokio::test]
async fn a_guest_that_gets_no_turn_while_it_waits_for_ids_keeps_nobody_from_them() {
    let mut bench = bench().await;
    bench.options.lease = Duration::from_secs(600);
    let [asked, go_on] = [0, 0].map(|permits| Arc::new(Semaphore::new(permits)));
    let play = plays(asks_and_stops, &asked, &go_on);
    let (runtime, handle, [attacker, victim]) = bench.start_for(["attacker", "victim"], play).await;
    let parent = submit(&handle, attacker, "\"asks\"").await;
    // What was reserved is too old now.
    bench.clock.0.store(60_000, Ordering::Relaxed);
    go_on.add_permits(1);
    until(&asked, 1).await;
    let id = tokio::time::timeout(SOON, submit(&handle, victim, SMALL)).await.expect("in time");
    assert_eq!(ended(&handle, victim, id).await.view.summary.state, TaskState::Completed);
    go_on.add_permits(1);
    assert_eq!(ended(&handle, attacker, parent).await.view.summary.state, TaskState::Completed);
    runtime.drain().await;
}

/// Asks for an agent, and goes on when it is told to.
async fn reads_and_stops(
    port: Arc<dyn HostPort>,
    asked: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
) -> AttemptReport {
    let ids = [AgentId(1)];
    let mut agents = port.agents(&ids);
    assert!(poll!(agents.as_mut()).is_pending(), "the store is asked");
    asked.add_permits(1);
    go_on.acquire().await.expect("nobody closes it").forget();
    assert!(agents.await.expect("an answer")[0].is_none());
    report(Outcome::Completed(Payload::json(Bytes::from_static(b"null"))))
}

#[tokio::test]
async fn guests_that_get_no_turn_while_they_read_keep_nobody_from_reading() {
    // More than the store has connections.
    const GUESTS: u32 = 8;
    let bench = bench().await;
    let [asked, go_on] = [0, 0].map(|permits| Arc::new(Semaphore::new(permits)));
    let play = plays(reads_and_stops, &asked, &go_on);
    let (runtime, handle, [attacker, victim]) = bench.start_for(["attacker", "victim"], play).await;
    let tasks = vec![task("\"reads\""); GUESTS as usize];
    let parents = handle.submit(attacker, tasks, None).await.expect("accepted");
    until(&asked, GUESTS).await;
    let id = submit(&handle, victim, SMALL).await;
    assert_eq!(ended(&handle, victim, id).await.view.summary.state, TaskState::Completed);
    go_on.add_permits(GUESTS as usize);
    for id in parents.ids() {
        assert_eq!(ended(&handle, attacker, id).await.view.summary.state, TaskState::Completed);
    }
    runtime.drain().await;
}
