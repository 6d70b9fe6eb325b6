//! Versions that a part of the tasks and batches try: who does, what becomes of those that fail there, and what ends it.

mod batches;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::canary::{FailedRun, State};
use keiko_core::catalog::Target;
use keiko_core::code::Code;
use keiko_core::limit::CANARY_TASKS_MAX;
use keiko_core::outcome::{Failure, Outcome};
use keiko_core::port::Attempt;
use keiko_core::task::{Payload, TaskState};
use keiko_core::{Digest, TenantId};
use keiko_runtime::{Handle, TaskDetail};

use crate::support::{Bench, fails, report, task};
use crate::{Report, ended};

/// A version of the script; the end of its text, which is its digest, says which.
fn version(number: u32) -> Bytes {
    let kinds = "[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n";
    let head = format!("[plugin]\nname = \"script\"\nversion = \"{number}\"\n{kinds}");
    Bytes::from(format!("{head}# {number:>40}"))
}

/// Whether this runs version 2.
fn is_canary(attempt: &Attempt) -> bool {
    attempt.digest.0[31] == b'2'
}

fn done() -> Report {
    async { report(Outcome::Completed(Payload::json("1"))) }.boxed()
}

fn failed(code: Code) -> Report {
    async move { fails(Failure::new(code, "no more")) }.boxed()
}

async fn begin(handle: &Handle, tenant: TenantId, percent: u64) {
    let plugin = handle.install_canary(tenant, version(2), None, percent).await.expect("it begins");
    assert_eq!(plugin.current.name.as_str(), "1", "nothing is swapped");
}

/// Submits so many tasks and waits for their ends.
async fn run(handle: &Handle, tenant: TenantId, count: usize) -> Vec<TaskDetail> {
    let accepted = handle.submit(tenant, vec![task("1"); count], None).await.expect("accepted");
    let mut all = Vec::new();
    for id in accepted.ids() {
        all.push(ended(handle, tenant, id).await);
    }
    all
}

fn version_of(detail: &TaskDetail) -> String {
    detail.view.attempts.last().and_then(|attempt| attempt.version.clone()).expect("it ran").to_string()
}

/// The run on a canary that failed before a task's attempt.
fn failed_run(detail: &TaskDetail) -> Option<FailedRun> {
    detail.view.attempts[0].record.canary.clone()
}

fn of_canary(code: Code) -> FailedRun {
    let mut digest = Digest([b' '; 32]);
    digest.0[31] = b'2';
    FailedRun { version: "2".parse().expect("a name"), digest, code }
}

fn check_completed(all: &[TaskDetail]) {
    for detail in all {
        let view = &detail.view;
        assert_eq!((view.summary.state, view.attempts.len()), (TaskState::Completed, 1), "{view:?}");
    }
}

/// Runs tasks until the canary's trial is over; how many.
async fn until_verdict(handle: &Handle, tenant: TenantId) -> usize {
    for round in 1.. {
        check_completed(&run(handle, tenant, 20).await);
        let tried = handle.canary(tenant, "script").await.expect("there was one");
        assert!(tried.standing.touched <= CANARY_TASKS_MAX);
        if tried.standing.state != State::Trying {
            return round * 20;
        }
    }
    unreachable!("a trial ends")
}

#[tokio::test]
async fn a_task_that_fails_on_a_canary_completes_on_the_current_version_in_the_same_attempt() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, _, _| if is_canary(&attempt) { failed(Code::Trap) } else { done() };
    let (runtime, handle, tenant) = bench.start(play).await;
    begin(&handle, tenant, 50).await;
    let all = run(&handle, tenant, 12).await;
    check_completed(&all);
    assert!(all.iter().all(|detail| version_of(detail) == "1"));
    assert!(all.iter().all(|detail| detail.view.attempts[0].failure.is_none()));
    let figures = handle.figures();
    let tried: Vec<_> = all.iter().filter_map(failed_run).collect();
    assert_eq!(tried.len() as u64, figures.canary_failures, "each says so, and no other");
    assert!(tried.iter().all(|run| *run == of_canary(Code::Trap)), "{tried:?}");
    assert!(figures.canary_failures > 0 && figures.canary_failures == figures.canary_attempts, "{figures:?}");
    let tried = handle.canary(tenant, "script").await.expect("it stands");
    assert_eq!(tried.standing.trial.seen().canary.broke, figures.canary_failures);
    assert_eq!(tried.standing.failure.as_deref(), Some("trap: no more"));
    runtime.drain().await;
}

#[tokio::test]
async fn a_canary_that_traps_at_30_percent_is_taken_back_and_no_task_fails() {
    let bench = Bench::new().await;
    let count = AtomicU64::new(0);
    let play = move |attempt: Attempt, _, _| {
        let traps = is_canary(&attempt) && count.fetch_add(1, Ordering::Relaxed) % 10 < 3;
        if traps { failed(Code::Trap) } else { done() }
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    begin(&handle, tenant, 10).await;
    until_verdict(&handle, tenant).await;
    let tried = handle.canary(tenant, "script").await.expect("there was one");
    assert_eq!(tried.standing.state, State::Worse);
    assert!(handle.plugin(tenant, "script").expect("installed").canary.is_none());
    assert_eq!(handle.figures().canaries_worse, 1);
    let attempts = handle.figures().canary_attempts;
    check_completed(&run(&handle, tenant, 40).await);
    assert_eq!(handle.figures().canary_attempts, attempts, "nobody tries it any more");
    runtime.drain().await;
}

#[tokio::test]
async fn a_canary_that_is_no_worse_keeps_its_part_and_can_be_activated() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|_, _, _| done()).await;
    begin(&handle, tenant, 50).await;
    let tasks = until_verdict(&handle, tenant).await;
    assert!(tasks > 300, "half of the tasks try it: {tasks}");
    let tried = handle.canary(tenant, "script").await.expect("it stands");
    assert_eq!((tried.standing.state, tried.is_over), (State::Passed, false));
    let ran: Vec<String> = run(&handle, tenant, 40).await.iter().map(version_of).collect();
    assert!(ran.iter().any(|name| name == "1") && ran.iter().any(|name| name == "2"), "{ran:?}");
    let target = Target::Version("2".parse().expect("a name"));
    let (plugin, changed) = handle.activate(tenant, "script", target).await.expect("activated");
    assert!(changed && plugin.canary.is_none());
    assert!(run(&handle, tenant, 10).await.iter().all(|detail| version_of(detail) == "2"));
    runtime.drain().await;
}

#[tokio::test]
async fn a_failure_that_the_current_version_declares_as_well_is_not_the_canarys() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|_, _, _| failed(Code::InvalidInput)).await;
    begin(&handle, tenant, 50).await;
    for detail in run(&handle, tenant, 30).await {
        assert_eq!((detail.view.summary.state, detail.view.attempts.len()), (TaskState::Failed, 1));
        assert_eq!(version_of(&detail), "1");
    }
    let seen = handle.canary(tenant, "script").await.expect("it stands").standing.trial.seen();
    assert!(seen.canary.tasks > 0 && seen.current.declared > 0, "{seen:?}");
    assert_eq!((seen.canary.declared, seen.canary.broke), (0, 0));
    runtime.drain().await;
}

#[tokio::test]
async fn a_task_tries_a_canary_once_whatever_becomes_of_it() {
    let mut bench = Bench::new().await;
    // Nothing waits for its next attempt.
    bench.options.random = || 0.0;
    let tries = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&tries);
    let play = move |attempt: Attempt, _, _| {
        if is_canary(&attempt) {
            assert_eq!(attempt.facts.number, 1);
            count.fetch_add(1, Ordering::Relaxed);
            return failed(Code::Trap);
        }
        if attempt.facts.number < 3 { failed(Code::Internal) } else { done() }
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    begin(&handle, tenant, 50).await;
    for detail in run(&handle, tenant, 8).await {
        assert_eq!((detail.view.summary.state, detail.view.attempts.len()), (TaskState::Completed, 3));
    }
    assert!(tries.load(Ordering::Relaxed) <= 8);
    assert_eq!(handle.figures().canary_attempts, tries.load(Ordering::Relaxed));
    runtime.drain().await;
}

#[tokio::test]
async fn what_cannot_be_tried_is_refused_with_its_reason() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|_, _, _| done()).await;
    let name = |text: &str| text.parse().expect("a name");
    for percent in [0, 51] {
        let error = handle.try_version(tenant, "script", name("1"), percent).await.expect_err("refused");
        assert_eq!(error.code, Code::InvalidInput);
    }
    let refused = async |plugin: &str, version: &str| {
        handle.try_version(tenant, plugin, name(version), 10).await.expect_err("refused").code
    };
    assert_eq!(refused("script", "1").await, Code::Conflict);
    assert_eq!(refused("script", "2").await, Code::NotFound);
    assert_eq!(refused("other", "1").await, Code::NotFound);
    assert_eq!(refused("../x", "1").await, Code::NotFound);
    assert_eq!(handle.canary(tenant, "script").await.expect_err("there is none").code, Code::NotFound);
    begin(&handle, tenant, 10).await;
    handle.withdraw_canary(tenant, "script").await.expect("withdrawn");
    assert_eq!(handle.withdraw_canary(tenant, "script").await.expect_err("gone").code, Code::NotFound);
    assert!(run(&handle, tenant, 40).await.iter().all(|detail| version_of(detail) == "1"));
    handle.try_version(tenant, "script", name("2"), 50).await.expect("it begins again");
    assert!(run(&handle, tenant, 20).await.iter().any(|detail| version_of(detail) == "2"));
    runtime.drain().await;
}
