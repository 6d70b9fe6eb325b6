//! The life of tasks on one host, with a scripted runner: what completes, what is tried again, what a stop, a
//! cancel, a lost lease and a failing store do.

mod batch;
mod bounds;
mod bulk;
mod canary;
mod data;
mod direct;
mod groups;
mod long;
mod metrics;
mod pauses;
mod slots;
mod support;
mod swap;
mod threads;
mod trees;
mod watch;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use keiko_core::TaskId;
use keiko_core::code::Code;
use keiko_core::effect::{ChildWish, Effects, wish_of};
use keiko_core::outcome::{Failure, Outcome, RetryWish};
use keiko_core::port::{Attempt, HostPort, ReserveError};
use keiko_core::priority::Priority;
use keiko_core::stop::Stop;
use keiko_core::task::{Payload, TaskFilter, TaskState};
use keiko_runtime::{Handle, TaskDetail};
use keiko_store::memory::MemoryStore;
use support::{Bench, MANIFEST, SOON, echo, fails, report, start_on, submit, task};
use tokio::sync::{Notify, Semaphore};

/// A guest that says when it has started, and runs until it is stopped.
fn endless(
    started: Arc<Notify>,
) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> Report + Send + Sync + 'static {
    move |_, _, stop| {
        let started = Arc::clone(&started);
        async move {
            started.notify_one();
            report(Outcome::Stopped(stop.wait().await))
        }
        .boxed()
    }
}

/// A guest whose first run is endless and whose later ones end at once.
fn endless_once(
    started: Arc<Notify>,
) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> Report + Send + Sync + 'static {
    let (runs, first) = (AtomicU32::new(0), endless(started));
    move |attempt, port, stop| {
        if runs.fetch_add(1, Ordering::SeqCst) == 0 {
            first(attempt, port, stop)
        } else {
            async move { echo(&attempt) }.boxed()
        }
    }
}

type Report = futures::future::BoxFuture<'static, keiko_core::outcome::AttemptReport>;

async fn ended(handle: &Handle, tenant: keiko_core::TenantId, id: TaskId) -> TaskDetail {
    let detail = handle.wait(tenant, id, SOON).await.expect("the task is there");
    assert!(detail.view.summary.state.is_terminal(), "{:?}", detail.view);
    let stored = handle.task(tenant, id).await.expect("the task is there");
    assert_eq!(detail, stored, "whoever waits is told what the store shows");
    detail
}

fn code(detail: &TaskDetail) -> Option<Code> {
    detail.view.failure.as_ref().map(|failure| failure.code)
}

#[tokio::test]
async fn a_caller_gets_the_result_and_not_a_promise_of_one() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let id = submit(&handle, tenant, "[1]").await;
    let detail = ended(&handle, tenant, id).await;
    assert_eq!(detail.view.result, Some(Payload::json("[1]")));
    assert_eq!(detail.view.attempts.len(), 1);
    assert_eq!(handle.figures().settled, 1);
    runtime.drain().await;
}

#[tokio::test]
async fn many_tasks_all_end_once() {
    let bench = Bench::new().await;
    let ran = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&ran);
    let (runtime, handle, tenant) = bench
        .start(move |attempt, _, _| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { echo(&attempt) }.boxed()
        })
        .await;
    let accepted = handle.submit(tenant, vec![task("1"); 2_000], None).await.expect("accepted");
    for id in accepted.ids() {
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    }
    assert_eq!(ran.load(Ordering::Relaxed), 2_000);
    assert_eq!(handle.counts(tenant).await.expect("counts").completed, 2_000);
    runtime.drain().await;
}

#[tokio::test]
async fn what_may_succeed_later_is_tried_again_until_attempts_are_used_up() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench
        .start(|attempt, _, _| {
            let mut failure = Failure::new(Code::PluginFailed, "not yet");
            failure.retry = RetryWish::After(Some(0));
            let good = attempt.input.bytes == "\"good\"" && attempt.facts.number == 2;
            async move { if good { echo(&attempt) } else { fails(failure) } }.boxed()
        })
        .await;
    let mut twice = task("\"bad\"");
    twice.budget.attempts = Some(2);
    let bad = handle.submit(tenant, vec![twice], None).await.expect("accepted").first;
    let good = submit(&handle, tenant, "\"good\"").await;
    let detail = ended(&handle, tenant, bad).await;
    assert_eq!((code(&detail), detail.view.attempts.len()), (Some(Code::PluginFailed), 2));
    let detail = ended(&handle, tenant, good).await;
    assert_eq!((detail.view.summary.state, detail.view.attempts.len()), (TaskState::Completed, 2));
    runtime.drain().await;
}

#[tokio::test]
async fn an_urgent_task_goes_before_older_ones_that_wait() {
    let mut bench = Bench::new().await;
    (bench.options.workers, bench.policy.running_max) = (1, 1);
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let ran = Arc::new(Mutex::new(Vec::new()));
    let (begun, held, order) = (Arc::clone(&started), Arc::clone(&release), Arc::clone(&ran));
    let play = move |attempt: Attempt, _, _| {
        let (begun, held, order) = (Arc::clone(&begun), Arc::clone(&held), Arc::clone(&order));
        async move {
            if attempt.input.bytes == "\"first\"" {
                begun.notify_one();
                held.notified().await;
            }
            order.lock().unwrap().push(attempt.input.bytes.clone());
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    submit(&handle, tenant, "\"first\"").await;
    started.notified().await;
    let older = submit(&handle, tenant, "\"older\"").await;
    submit(&handle, tenant, "\"old\"").await;
    let mut urgent = task("\"urgent\"");
    urgent.priority = Priority::new(1).unwrap();
    handle.submit(tenant, vec![urgent], None).await.expect("accepted");
    while handle.figures().waiting < 3 {
        tokio::task::yield_now().await;
    }
    release.notify_one();
    ended(&handle, tenant, older).await;
    runtime.drain().await;
    assert_eq!(ran.lock().unwrap()[..3], ["\"first\"", "\"urgent\"", "\"older\""]);
}

#[tokio::test]
async fn a_wake_while_a_tenant_has_all_it_may_leaves_nothing_waiting() {
    let mut bench = Bench::new().await;
    (bench.options.workers, bench.policy.running_max) = (1, 1);
    bench.options.poll = Duration::from_secs(3_600);
    let release = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&release);
    let play = move |attempt: Attempt, _, _| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.expect("open").forget();
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let accepted = handle.submit(tenant, vec![task("1"); 20], None).await.expect("accepted");
    while handle.figures().waiting < 3 {
        tokio::task::yield_now().await;
    }
    // Each of these wakes who leases, and none can be leased: the tenant has as many as it may.
    for _ in 0..10 {
        submit(&handle, tenant, "2").await;
    }
    release.add_permits(30);
    for id in accepted.ids() {
        ended(&handle, tenant, id).await;
    }
    runtime.drain().await;
}

fn limit(detail: &TaskDetail) -> Option<&str> {
    detail.view.failure.as_ref()?.limit.as_ref().map(|limit| limit.name.as_str())
}

#[tokio::test]
async fn a_task_over_its_time_begins_no_attempt() {
    let mut bench = Bench::new().await;
    (bench.options.workers, bench.policy.running_max) = (1, 1);
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let first = submit(&handle, tenant, "1").await;
    started.notified().await;
    // One waits on this host, the other in the store: more than one host leases ahead.
    let mut late = task("2");
    late.budget.queued_ms = Some(50);
    let accepted = handle.submit(tenant, vec![late; 20], None).await.expect("accepted");
    let in_store = accepted.ids().last().expect("twenty");
    let detail = ended(&handle, tenant, in_store).await;
    assert_eq!((code(&detail), limit(&detail)), (Some(Code::DeadlineExceeded), Some("queued_ms")));
    handle.cancel(tenant, first).await.expect("it runs");
    for id in accepted.ids() {
        let detail = ended(&handle, tenant, id).await;
        assert_eq!((code(&detail), limit(&detail)), (Some(Code::DeadlineExceeded), Some("queued_ms")));
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_task_that_takes_too_long_is_stopped_where_it_runs() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let mut long = task("1");
    long.budget.total_ms = Some(100);
    let id = handle.submit(tenant, vec![long], None).await.expect("accepted").first;
    started.notified().await;
    let detail = ended(&handle, tenant, id).await;
    assert_eq!((code(&detail), limit(&detail)), (Some(Code::DeadlineExceeded), Some("total_ms")));
    while handle.figures().running > 0 {
        tokio::task::yield_now().await;
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_policy_decides_which_codes_are_tried_again() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, _, _| {
        async move {
            match attempt.facts.number {
                1 => fails(Failure::new(Code::FuelExhausted, "no")),
                2 => fails(Failure::new(Code::Internal, "no")),
                _ => echo(&attempt),
            }
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let mut asked = task("1");
    asked.budget.retry.codes = Some([Code::FuelExhausted, Code::Internal].into_iter().collect());
    asked.budget.retry.first_ms = Some(1);
    let both = handle.submit(tenant, vec![asked.clone()], None).await.expect("accepted").first;
    asked.budget.retry.codes = Some([Code::FuelExhausted].into_iter().collect());
    let one = handle.submit(tenant, vec![asked], None).await.expect("accepted").first;
    let plain = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, both).await.view.attempts.len(), 3);
    let detail = ended(&handle, tenant, one).await;
    assert_eq!((code(&detail), detail.view.attempts.len()), (Some(Code::Internal), 2));
    let detail = ended(&handle, tenant, plain).await;
    assert_eq!((code(&detail), detail.view.attempts.len()), (Some(Code::FuelExhausted), 1));
    runtime.drain().await;
}

#[tokio::test]
async fn a_drain_hands_back_what_runs_and_what_waits_and_burns_no_attempt() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let ids = handle.submit(tenant, vec![task("1"); 300], None).await.expect("accepted");
    started.notified().await;
    let report = runtime.drain().await;
    assert_eq!(report.finished, 0);
    assert!(report.handed_back > 0, "{report:?}");
    let refused = handle.submit(tenant, vec![task("1")], None).await.expect_err("no tasks are taken");
    assert_eq!(refused.code, Code::StorageBusy);
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    for id in ids.ids() {
        let detail = ended(&handle, tenant, id).await;
        assert_eq!(detail.view.summary.state, TaskState::Completed);
        assert_eq!((detail.view.summary.attempts, detail.view.summary.crashes), (1, 0));
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_caller_on_one_host_is_answered_when_the_task_ends_on_another() {
    let store = MemoryStore::new();
    // The host that is asked runs nothing.
    let (asked, handle) = start_on(store.clone(), 0).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let (runs, other) = start_on(store.another_host(), 4).await;
    let id = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    assert_eq!((handle.figures().settled, other.figures().settled), (0, 1));
    runs.drain().await;
    asked.drain().await;
}

#[tokio::test]
async fn a_task_runs_on_a_host_that_started_before_another_installed_its_plugin() {
    let store = MemoryStore::new();
    let (runs, _) = start_on(store.clone(), 4).await;
    let (asked, handle) = start_on(store.another_host(), 0).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let id = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    runs.drain().await;
    asked.drain().await;
}

#[tokio::test]
async fn callers_are_not_left_waiting_by_a_stop() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let id = submit(&handle, tenant, "1").await;
    let waiting = handle.wait(tenant, id, Duration::from_secs(3600));
    let stop = async {
        started.notified().await;
        runtime.drain().await
    };
    let (detail, _) =
        tokio::time::timeout(SOON, async { tokio::join!(waiting, stop) }).await.expect("in time");
    assert!(!detail.expect("the task is there").view.summary.state.is_terminal());
}

#[tokio::test]
async fn a_cancel_stops_a_running_attempt_and_its_answer_is_final() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
    let id = submit(&handle, tenant, "1").await;
    started.notified().await;
    let detail = handle.cancel(tenant, id).await.expect("cancelled");
    assert_eq!(detail.view.summary.state, TaskState::Cancelled);
    let again = handle.cancel(tenant, id).await.expect("cancelling twice is no error");
    assert_eq!(again.view.summary.state, TaskState::Cancelled);
    let report = runtime.drain().await;
    assert_eq!(report.handed_back, 0, "nothing of it is left");
    assert_eq!(handle.task(tenant, id).await.expect("there").view.summary.state, TaskState::Cancelled);
    let missing = handle.cancel(tenant, TaskId(1)).await.expect_err("not there");
    assert_eq!(missing.code, Code::NotFound);
}

#[tokio::test]
async fn a_lost_lease_stops_attempts_and_the_task_runs_again() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless_once(Arc::clone(&started))).await;
    let id = submit(&handle, tenant, "1").await;
    started.notified().await;
    bench.store.lost.store(true, Ordering::SeqCst);
    let detail = ended(&handle, tenant, id).await;
    assert_eq!(detail.view.summary.state, TaskState::Completed);
    assert_eq!(detail.view.summary.attempts, 1, "the lost attempt burnt none");
    assert_eq!(handle.figures().leases_lost, 1);
    runtime.drain().await;
}

#[tokio::test]
async fn without_a_store_a_host_cancels_itself_and_comes_back() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let (runtime, handle, tenant) = bench.start(endless_once(Arc::clone(&started))).await;
    let id = submit(&handle, tenant, "1").await;
    started.notified().await;
    bench.store.down.store(true, Ordering::SeqCst);
    let refused = handle.submit(tenant, vec![task("1")], None).await.expect_err("no store");
    assert_eq!(refused.code, Code::StorageDown);
    let lost = async {
        while handle.figures().leases_lost == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, lost).await.expect("the host cancels itself");
    bench.store.down.store(false, Ordering::SeqCst);
    assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
    runtime.drain().await;
}

#[tokio::test]
async fn a_stop_is_quick_while_the_store_fails() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    submit(&handle, tenant, "1").await;
    bench.store.down.store(true, Ordering::SeqCst);
    tokio::time::timeout(SOON, runtime.drain()).await.expect("a failing store stalls no stop");
}

#[tokio::test]
async fn a_host_starts_and_stops_many_times() {
    let bench = Bench::new().await;
    for round in 0..10 {
        let (runtime, handle, tenant) =
            bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
        if round % 2 == 0 {
            let id = submit(&handle, tenant, "1").await;
            ended(&handle, tenant, id).await;
        }
        let report = tokio::time::timeout(SOON, runtime.drain()).await.expect("in time");
        assert_eq!(report.unstopped, [""; 0], "round {round}");
    }
}

#[tokio::test]
async fn one_end_that_the_database_refuses_does_not_hold_up_the_others() {
    let bench = Bench::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let (runtime, handle, tenant) = bench
        .start(move |attempt, _, _| {
            let open = Arc::clone(&open);
            async move {
                let _permit = open.acquire().await;
                echo(&attempt)
            }
            .boxed()
        })
        .await;
    let ids = handle.submit(tenant, vec![task("1"); 16], None).await.expect("accepted");
    let poison = TaskId(ids.first.0 + 7);
    bench.store.poison.store(poison.0, Ordering::SeqCst);
    gate.add_permits(16);
    for id in ids.ids() {
        let detail = ended(&handle, tenant, id).await;
        let expected = if id == poison { Some(Code::Internal) } else { None };
        assert_eq!(code(&detail), expected);
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_panic_of_the_engine_fails_the_attempt_and_not_the_worker() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench
        .start(|attempt, _, _| {
            async move {
                assert_ne!(attempt.input.bytes, "0", "this guest breaks the engine");
                echo(&attempt)
            }
            .boxed()
        })
        .await;
    let mut once = task("0");
    once.budget.attempts = Some(1);
    let bad = handle.submit(tenant, vec![once], None).await.expect("accepted").first;
    assert_eq!(code(&ended(&handle, tenant, bad).await), Some(Code::Internal));
    let good = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, good).await.view.summary.state, TaskState::Completed);
    runtime.drain().await;
}

/// Asks for these children and completes with their ids.
fn parent(wishes: Vec<ChildWish>, attempt: Attempt, port: Arc<dyn HostPort>) -> Report {
    async move {
        if attempt.facts.lineage.parent.is_some() {
            return echo(&attempt);
        }
        let mut effects = Effects::default();
        match port.reserve(&wishes).await {
            Ok(reserved) => {
                for (wish, reserved) in wishes.into_iter().zip(reserved) {
                    effects.push(wish, reserved);
                }
            }
            Err(error) => return fails(Failure::new(Code::PluginFailed, error.to_string())),
        }
        let mut report = echo(&attempt);
        report.effects = effects;
        report
    }
    .boxed()
}

fn child(key: Option<&str>, input: &str) -> ChildWish {
    ChildWish {
        kind: Some("b".to_owned()),
        key: key.map(str::to_owned),
        input: Payload::json(input.to_owned()),
        ..wish_of(0)
    }
}

#[tokio::test]
async fn children_appear_with_their_parents_result_and_run() {
    let bench = Bench::new().await;
    let wishes = vec![child(None, "1"), child(None, "2")];
    let (runtime, handle, tenant) =
        bench.start(move |attempt, port, _| parent(wishes.clone(), attempt, port)).await;
    let id = submit(&handle, tenant, "0").await;
    ended(&handle, tenant, id).await;
    let filter = TaskFilter { parent: Some(id), ..TaskFilter::default() };
    let children = handle.list(tenant, &filter, 10).await.expect("a list");
    assert_eq!(children.len(), 2);
    for found in children {
        assert_eq!((found.lineage.root, found.lineage.depth), (id, 1));
        ended(&handle, tenant, found.id).await;
    }
    runtime.drain().await;
}

#[tokio::test]
async fn a_childs_key_with_another_body_fails_the_attempt_that_completes_second() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench
        .start(move |attempt, port, _| {
            let input = String::from_utf8_lossy(&attempt.input.bytes).into_owned();
            parent(vec![child(Some("k"), &input)], attempt, port)
        })
        .await;
    let first = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, first).await.view.summary.state, TaskState::Completed);
    let same = submit(&handle, tenant, "1").await;
    assert_eq!(ended(&handle, tenant, same).await.view.summary.state, TaskState::Completed);
    let other = submit(&handle, tenant, "2").await;
    assert_eq!(code(&ended(&handle, tenant, other).await), Some(Code::Conflict));
    let filter = TaskFilter { kind: Some("b".parse().expect("a name")), ..TaskFilter::default() };
    assert_eq!(handle.list(tenant, &filter, 10).await.expect("a list").len(), 1);
    runtime.drain().await;
}

#[tokio::test]
async fn children_stop_at_fan_out_depth_and_queue() {
    let mut bench = Bench::new().await;
    bench.policy.fan_out_max = 3;
    bench.policy.queue_max = 5;
    bench.policy.depth_max = 1;
    let answers = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&answers);
    let (runtime, handle, tenant) = bench
        .start(move |attempt, port, _| {
            let seen = Arc::clone(&seen);
            async move {
                for count in [4, 3, 1] {
                    let answer = port.reserve(&vec![child(None, "1"); count]).await;
                    seen.lock().push(answer.map(|reserved| reserved.len()));
                }
                echo(&attempt)
            }
            .boxed()
        })
        .await;
    let id = submit(&handle, tenant, "1").await;
    ended(&handle, tenant, id).await;
    let fan_out = Err(ReserveError::FanOutExceeded(3));
    assert_eq!(*answers.lock(), [fan_out.clone(), Ok(3), fan_out]);
    let full = handle.submit(tenant, vec![task("1"); 6], None).await.expect_err("one above the limit");
    assert_eq!(full.code, Code::QueueFull);
    assert!(full.retry_after_s.is_some());
    let limit = full.limit.expect("the limit is told");
    assert_eq!((limit.limit, limit.asked), (5, Some(6)));
    handle.submit(tenant, vec![task("1"); 5], None).await.expect("at the limit");
    runtime.drain().await;
}

#[tokio::test]
async fn only_a_task_that_ran_at_three_crashes_is_quarantined() {
    let mut bench = Bench::new().await;
    bench.options.running_max = 1;
    bench.options.beat = Duration::from_secs(3600);
    let mut ids = None;
    for crash in 1..=3 {
        let started = Arc::new(Notify::new());
        let (runtime, handle, tenant) = bench.start(endless(Arc::clone(&started))).await;
        if ids.is_none() {
            ids = Some(handle.submit(tenant, vec![task("1"); 2], None).await.expect("accepted"));
        }
        started.notified().await;
        // Forgotten, not drained: what a crash leaves is a lease, and a journal that nobody cleared.
        std::mem::forget(runtime);
        let first = ids.as_ref().expect("submitted").first;
        let view = handle.task(tenant, first).await.expect("there").view;
        assert_eq!(view.summary.crashes, crash - 1);
    }
    let ids = ids.expect("submitted");
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let bad = ended(&handle, tenant, ids.first).await;
    assert_eq!((bad.view.summary.state, code(&bad)), (TaskState::Failed, Some(Code::Quarantined)));
    let good = ended(&handle, tenant, TaskId(ids.first.0 + 1)).await;
    assert_eq!((good.view.summary.state, good.view.summary.crashes), (TaskState::Completed, 0));
    runtime.drain().await;
}
