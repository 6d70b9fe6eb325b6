//! What is counted by plugin and by how tasks fail: over swaps, for each tenant, and once whatever ends a task.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::batch::ItemWish;
use keiko_core::code::Code;
use keiko_core::metric::{Measured, MetricRefused};
use keiko_core::outcome::{Failure, Meter, RetryWish};
use keiko_core::port::{Attempt, BatchOutcome, HostPort};
use keiko_core::task::{Payload, TaskState};
use keiko_core::usage::day;
use keiko_core::{KindName, PluginName, TenantId};
use keiko_runtime::{Handle, MetricValue, PauseTarget};

use crate::support::{Bench, SOON, echo, fails, submit, task, worked};
use crate::{Report, ended};

const COUNTER: &str =
    "[[metric]]\nname = \"runs_total\"\ntype = \"counter\"\nlabels = { way = [\"old\", \"new\"] }\n";

/// A version of the script that declares metrics.
async fn install(handle: &Handle, tenant: TenantId, version: u32, metrics: &str) {
    let kinds = "[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n";
    let text =
        format!("[plugin]\nname = \"script\"\nversion = \"{version}\"\n{kinds}{metrics}# {version:>40}");
    handle.install(tenant, Bytes::from(text), None).await.expect("installed");
}

fn way(way: &str) -> Vec<(String, String)> {
    vec![("way".to_owned(), way.to_owned())]
}

/// Counts a run, and ends with its input.
fn counts(attempt: Attempt, port: Arc<dyn HostPort>) -> Report {
    async move {
        let measured = port.measure("runs_total", &way("new"), Measured::More(2));
        if attempt.input.bytes == "\"undeclared\"" {
            assert_eq!(measured, Err(MetricRefused::NotFound("counter")));
        } else {
            assert_eq!(measured, Ok(()));
        }
        echo(&attempt)
    }
    .boxed()
}

async fn run(handle: &Handle, tenant: TenantId, input: &str) {
    let id = submit(handle, tenant, input).await;
    assert_eq!(ended(handle, tenant, id).await.view.summary.state, TaskState::Completed);
}

/// The counter of a tenant's script, by place.
fn counted(handle: &Handle, tenant: TenantId) -> Vec<Vec<MetricValue>> {
    handle.metrics(Some(tenant)).into_iter().map(|view| view.values).collect()
}

fn numbers(old: u64, new: u64) -> Vec<Vec<MetricValue>> {
    vec![vec![MetricValue::Counter(old), MetricValue::Counter(new)]]
}

#[tokio::test]
async fn a_swap_goes_on_counting_what_both_versions_declare_alike() {
    let bench = Bench::new().await;
    let (runtime, handle, [ada, bob]) =
        bench.start_for(["ada", "bob"], |attempt, port, _| counts(attempt, port)).await;
    run(&handle, ada, "\"undeclared\"").await;
    assert!(counted(&handle, ada).is_empty());
    install(&handle, ada, 2, COUNTER).await;
    assert_eq!(counted(&handle, ada), numbers(0, 0), "what is declared is there before it is counted");
    run(&handle, ada, "1").await;
    install(&handle, ada, 3, &COUNTER.replace("[[metric]]\n", "[[metric]]\ndescription = \"Runs.\"\n")).await;
    run(&handle, ada, "1").await;
    assert_eq!(counted(&handle, ada), numbers(0, 4));
    // Another tenant's plugin of the same name counts for itself.
    install(&handle, bob, 2, COUNTER).await;
    run(&handle, bob, "1").await;
    assert_eq!((counted(&handle, bob), counted(&handle, ada)), (numbers(0, 2), numbers(0, 4)));
    assert_eq!(handle.metrics(None).len(), 2);
    // With other labels it is another metric, and without a plugin it is none.
    install(&handle, ada, 4, &COUNTER.replace("\"old\", ", "")).await;
    let refused = task("1");
    let id = handle.submit(ada, vec![refused], None).await.expect("accepted").first;
    ended(&handle, ada, id).await;
    assert_eq!(counted(&handle, ada), [[MetricValue::Counter(2)]]);
    handle.remove_plugin(bob, "script", keiko_core::catalog::RemoveWhen::Idle).await.expect("removed");
    assert!(counted(&handle, bob).is_empty());
    runtime.drain().await;
}

/// The names of a plugin's kind, how its tasks failed, and how many did.
type Failed = (Option<(PluginName, KindName)>, Code, u64);

/// How tasks of a tenant's script failed.
fn errors(handle: &Handle, tenant: TenantId) -> Vec<Failed> {
    handle.task_errors(Some(tenant)).into_iter().map(|one| (one.kind, one.code, one.count)).collect()
}

fn kind(name: &str) -> Option<(PluginName, KindName)> {
    Some(("script".parse().expect("a name"), name.parse().expect("a name")))
}

#[tokio::test]
async fn a_failure_counts_once_when_it_is_stored_and_never_while_it_is_tried_again() {
    let bench = Bench::new().await;
    let (runtime, handle, [ada, bob]) = bench
        .start_for(["ada", "bob"], |attempt, _, _| {
            let mut failure = Failure::new(Code::PluginFailed, "not yet");
            failure.retry = RetryWish::After(Some(0));
            let good = attempt.input.bytes == "\"good\"" && attempt.facts.number == 2;
            async move { if good { echo(&attempt) } else { fails(failure) } }.boxed()
        })
        .await;
    let good = submit(&handle, ada, "\"good\"").await;
    ended(&handle, ada, good).await;
    assert!(errors(&handle, ada).is_empty(), "a failure that is tried again is none of the task's");
    let (mut first, mut second) = (task("1"), task("1"));
    first.budget.attempts = Some(3);
    (second.kind, second.budget.attempts) = (Some("b".to_owned()), Some(1));
    let accepted = handle.submit(ada, vec![first.clone(), first, second], None).await.expect("accepted");
    for id in accepted.ids() {
        ended(&handle, ada, id).await;
    }
    let expected = [(kind("a"), Code::PluginFailed, 2), (kind("b"), Code::PluginFailed, 1)];
    assert_eq!(errors(&handle, ada), expected);
    assert!(errors(&handle, bob).is_empty() && handle.task_errors(None).len() == 2);
    runtime.drain().await;
}

#[tokio::test]
async fn a_task_that_the_store_ends_counts_as_any_other() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let mut late = task("1");
    (late.delay_ms, late.budget.total_ms) = (0, Some(1));
    late.budget.queued_ms = Some(1);
    // It waits behind its kind's pause until its time is over.
    handle.pause_tasks(tenant, &PauseTarget::Tenant).await.expect("paused");
    let id = handle.submit(tenant, vec![late], None).await.expect("accepted").first;
    ended(&handle, tenant, id).await;
    let counted = async {
        while errors(&handle, tenant).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, counted).await.expect("it is counted soon");
    assert_eq!(errors(&handle, tenant), [(kind("a"), Code::DeadlineExceeded, 1)]);
    runtime.drain().await;
}

#[tokio::test]
async fn runs_of_processors_are_metered_halves_and_failures_too() {
    let mut bench = Bench::new().await;
    bench.batch = Arc::new(|_, batch, _, _| {
        let outcome = match batch.items.len() {
            1 => BatchOutcome::Answered(vec![keiko_core::batch::ItemOutcome::Done]),
            _ => BatchOutcome::Failed(Failure::new(Code::Trap, "too many")),
        };
        let mut report = worked(outcome);
        report.meter = Meter { fuel_used: 10, elapsed_us: 7, ..Meter::default() };
        Box::pin(async move { report })
    });
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let manifest =
        "[plugin]\nname = \"works\"\nversion = \"1\"\n[[processor]]\nname = \"films\"\nitems = 2\n";
    handle.install(tenant, Bytes::from(manifest), None).await.expect("installed");
    let wish = |text: &str| ItemWish { key: String::new(), payload: Payload::json(text.to_owned()) };
    handle.add_items(tenant, "films", vec![wish("1"), wish("2")], None).await.expect("added");
    let today = day(keiko_core::port::Clock::now_ms(&*bench.clock));
    let metered = async {
        loop {
            let days = handle.usage(tenant, today - 1, today + 1).await.expect("usage");
            let all = days.iter().fold(keiko_core::usage::Spent::default(), |mut sum, day| {
                sum.add(day.spent);
                sum
            });
            if all.attempts == 3 {
                return all;
            }
            tokio::task::yield_now().await;
        }
    };
    let spent = tokio::time::timeout(SOON, metered).await.expect("three runs are stored soon");
    assert_eq!((spent.completed, spent.failed, spent.fuel_used, spent.guest_us), (2, 1, 30, 21));
    runtime.drain().await;
}
