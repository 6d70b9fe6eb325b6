//! Runs that are no tasks: what they leave behind, who has room, and what a caller that goes, a drain, a lost lease and
//! a failing store do to them.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use keiko_core::code::Code;
use keiko_core::limit::{INPUT_BYTES_MAX, RUN_WALL_MS_MAX, SetBy};
use keiko_core::outcome::Outcome;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::Usage;
use keiko_core::stop::StopReason;
use keiko_core::task::{Payload, TaskState};
use keiko_core::usage::Spent;
use keiko_runtime::{RunReport, RunRequest};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::support::{Bench, SOON, echo, fails, report, submit};
use crate::{ended, endless, endless_once};

/// A run of kind `a`.
fn run(input: &str) -> RunRequest {
    RunRequest {
        plugin: Some("script".to_owned()),
        kind: Some("a".to_owned()),
        input: Payload::json(input.to_owned()),
        budget: BudgetRequest::default(),
        trace: None,
    }
}

fn result(report: &RunReport) -> Option<&Payload> {
    match &report.report.outcome {
        Outcome::Completed(payload) => Some(payload),
        _ => None,
    }
}

/// Polls a future once; it must not be done.
async fn begin<F: Future + Unpin>(future: &mut F) {
    let pending = poll_fn(|context| Poll::Ready(future.poll_unpin(context).is_pending())).await;
    assert!(pending, "it waits");
}

#[tokio::test]
async fn a_run_gives_its_result_and_leaves_nothing_but_usage() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench
        .start(|attempt, _, _| {
            async move {
                assert!(!attempt.grants.allow_effects() && attempt.facts.attempts_max == 1);
                if attempt.input.bytes == "0" {
                    fails(keiko_core::outcome::Failure::new(Code::Trap, "as meant"))
                } else {
                    echo(&attempt)
                }
            }
            .boxed()
        })
        .await;
    for _ in 0..3 {
        let ran = handle.run(tenant, run("[1]")).await.expect("room");
        assert_eq!(result(&ran), Some(&Payload::json("[1]")));
        assert!(ran.version.is_some());
    }
    let failed = handle.run(tenant, run("0")).await.expect("room");
    assert!(matches!(failed.report.outcome, Outcome::Failed(failure) if failure.code == Code::Trap));
    assert_eq!(handle.counts(tenant).await.expect("counts"), Default::default());
    assert_eq!((handle.figures().runs, handle.figures().leased, handle.figures().running), (4, 0, 0));
    runtime.drain().await;
    let days = bench.store.store.usage(tenant, i64::MIN, i64::MAX).await.expect("usage");
    let spent = Spent { attempts: 4, completed: 3, failed: 1, ..Spent::default() };
    assert_eq!(days.iter().map(|day| day.spent).collect::<Vec<_>>(), [spent]);
}

#[tokio::test]
async fn who_finds_no_room_is_told_at_once_and_another_tenant_is_not() {
    let mut bench = Bench::new().await;
    bench.policy.running_max = 1;
    let started = Arc::new(Notify::new());
    let (runtime, handle, [ada, bob]) = bench.start_for(["ada", "bob"], endless(Arc::clone(&started))).await;
    let mut runs = Box::pin(handle.run(ada, run("1")));
    begin(&mut runs).await;
    started.notified().await;
    let mut waits = Box::pin(handle.run(ada, run("1")));
    begin(&mut waits).await;
    let refused = handle.run(ada, run("1")).await.expect_err("one runs and one waits");
    assert_eq!((refused.code, refused.retry_after_s), (Code::QueueFull, Some(1)));
    let fact = refused.limit.expect("a limit");
    assert_eq!((fact.name.as_str(), fact.limit, fact.set_by), ("runs_waiting", 1, SetBy::Tenant));
    assert_eq!(handle.figures().runs_refused, 1);
    let mut others = Box::pin(handle.run(bob, run("1")));
    begin(&mut others).await;
    started.notified().await;
    // Who waits and goes away leaves its place.
    drop(waits);
    let mut waits = Box::pin(handle.run(ada, run("1")));
    begin(&mut waits).await;
    // Who runs and goes away, too.
    drop(runs);
    tokio::select! {
        () = started.notified() => {}
        ended = &mut waits => panic!("it is endless: {ended:?}"),
    }
    runtime.drain().await;
}

#[tokio::test]
async fn the_host_has_room_for_as_many_waiting_runs_as_it_runs() {
    let mut bench = Bench::new().await;
    bench.options.running_max = 1;
    let started = Arc::new(Notify::new());
    let (runtime, handle, [ada, bob]) = bench.start_for(["ada", "bob"], endless(Arc::clone(&started))).await;
    let mut runs = Box::pin(handle.run(ada, run("1")));
    begin(&mut runs).await;
    started.notified().await;
    let mut waits = Box::pin(handle.run(bob, run("1")));
    begin(&mut waits).await;
    let refused = handle.run(bob, run("1")).await.expect_err("one runs and one waits");
    assert_eq!(refused.limit.map(|fact| (fact.limit, fact.set_by)), Some((1, SetBy::Host)));
    runtime.drain().await;
}

#[tokio::test]
async fn a_run_stops_when_its_caller_goes_and_never_begins_when_they_went_before() {
    let mut bench = Bench::new().await;
    bench.policy.running_max = 1;
    let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let begun = Arc::new(AtomicU32::new(0));
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let (runtime, handle, tenant) = {
        let (started, stopped, begun, reasons) =
            (Arc::clone(&started), Arc::clone(&stopped), Arc::clone(&begun), Arc::clone(&reasons));
        bench
            .start(move |attempt, _, stop| {
                let (started, stopped, reasons) =
                    (Arc::clone(&started), Arc::clone(&stopped), Arc::clone(&reasons));
                begun.fetch_add(1, Ordering::SeqCst);
                async move {
                    if attempt.input.bytes == "\"short\"" {
                        return echo(&attempt);
                    }
                    started.notify_one();
                    let reason = stop.wait().await;
                    reasons.lock().push(reason);
                    stopped.notify_one();
                    report(Outcome::Stopped(reason))
                }
                .boxed()
            })
            .await
    };
    let mut runs = Box::pin(handle.run(tenant, run("1")));
    begin(&mut runs).await;
    started.notified().await;
    let mut waits = Box::pin(handle.run(tenant, run("2")));
    begin(&mut waits).await;
    drop(waits);
    drop(runs);
    stopped.notified().await;
    assert_eq!(*reasons.lock(), [StopReason::Cancelled]);
    let ran = handle.run(tenant, run("\"short\"")).await.expect("room again");
    assert!(result(&ran).is_some());
    assert_eq!(begun.load(Ordering::SeqCst), 2, "the one that waited never began");
    assert_eq!(handle.figures().running, 0);
    runtime.drain().await;
}

#[tokio::test]
async fn a_drain_answers_who_runs_and_who_waits() {
    let mut bench = Bench::new().await;
    bench.policy.running_max = 1;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let mut runs = Box::pin(handle.run(tenant, run("1")));
    begin(&mut runs).await;
    started.notified().await;
    let waits = handle.run(tenant, run("1"));
    let all = async { tokio::join!(runs, waits, runtime.drain()) };
    let (ran, waited, drained) = tokio::time::timeout(SOON, all).await.expect("in time");
    for answer in [ran, waited, handle.run(tenant, run("1")).await] {
        let error = answer.expect_err("the host stops");
        assert_eq!((error.code, error.retry_after_s), (Code::StorageBusy, Some(1)));
    }
    assert_eq!((drained.finished, drained.handed_back), (0, 0));
}

#[tokio::test]
async fn a_lost_lease_stops_tasks_and_leaves_runs_alone() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let tasks = endless_once(Arc::clone(&started));
    let end = Arc::new(Notify::new());
    let (runtime, handle, tenant) = {
        let (started, end) = (Arc::clone(&started), Arc::clone(&end));
        bench
            .start(move |attempt, port, stop| {
                if attempt.input.bytes != "\"run\"" {
                    return tasks(attempt, port, stop);
                }
                let (started, end) = (Arc::clone(&started), Arc::clone(&end));
                async move {
                    started.notify_one();
                    tokio::select! {
                        () = end.notified() => echo(&attempt),
                        reason = stop.wait() => report(Outcome::Stopped(reason)),
                    }
                }
                .boxed()
            })
            .await
    };
    let mut ran = Box::pin(handle.run(tenant, run("\"run\"")));
    begin(&mut ran).await;
    started.notified().await;
    let id = submit(&handle, tenant, "1").await;
    started.notified().await;
    bench.store.lost.store(true, Ordering::SeqCst);
    assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    assert_eq!(handle.figures().leases_lost, 1);
    end.notify_one();
    assert!(result(&ran.await.expect("it went on")).is_some());
    runtime.drain().await;
}

#[tokio::test]
async fn runs_need_no_store_and_their_usage_waits_for_it() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    bench.store.down.store(true, Ordering::SeqCst);
    assert!(result(&handle.run(tenant, run("1")).await.expect("room")).is_some());
    bench.store.down.store(false, Ordering::SeqCst);
    runtime.drain().await;
}

#[tokio::test]
async fn limits_of_a_run_are_told_before_it_begins() {
    let mut bench = Bench::new().await;
    bench.policy.default.wall_ms = 3_600_000;
    let walls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&walls);
    let (runtime, handle, tenant) = bench
        .start(move |attempt, _, _| {
            seen.lock().push(attempt.budget.wall_ms.value);
            async move { echo(&attempt) }.boxed()
        })
        .await;
    let wall = |ms| RunRequest {
        budget: BudgetRequest { wall_ms: Some(ms), ..BudgetRequest::default() },
        ..run("1")
    };
    handle.run(tenant, wall(RUN_WALL_MS_MAX)).await.expect("at the limit");
    let over = handle.run(tenant, wall(RUN_WALL_MS_MAX + 1)).await.expect_err("one above");
    assert_eq!((over.code, over.limit.map(|fact| fact.limit)), (Code::QuotaExceeded, Some(RUN_WALL_MS_MAX)));
    handle.run(tenant, run("1")).await.expect("the policy's time is cut");
    assert_eq!(*walls.lock(), [RUN_WALL_MS_MAX; 2]);
    let input = |bytes: u64| RunRequest { input: Payload::json(vec![b'1'; bytes as usize]), ..run("1") };
    handle.run(tenant, input(INPUT_BYTES_MAX)).await.expect("at the limit");
    let over = handle.run(tenant, input(INPUT_BYTES_MAX + 1)).await.expect_err("one above");
    assert_eq!(over.limit.map(|fact| fact.name), Some("input_bytes".to_owned()));
    let missing = RunRequest { kind: Some("none".to_owned()), ..run("1") };
    let missing = tokio::time::timeout(Duration::from_secs(20), handle.run(tenant, missing)).await;
    assert_eq!(missing.expect("in time").expect_err("no such kind").code, Code::NotFound);
    runtime.drain().await;
}
