//! Batches that try a canary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::TenantId;
use keiko_core::batch::{ItemOutcome, ItemWish};
use keiko_core::canary::State;
use keiko_core::catalog::Tried;
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::limit::CANARY_TASKS_MAX;
use keiko_core::outcome::Failure;
use keiko_core::port::{Attempt, BatchOutcome, BatchReport, BatchRun};
use keiko_core::task::Payload;
use keiko_runtime::{BatchFigures, Handle, Runtime};

use super::is_canary;
use crate::support::{Bench, SOON, echo, worked};

/// A version of the plugin `works`, whose processors `films` take one item, and `lists` ten, for a batch; and `kept` what they add.
fn version(number: u32) -> Bytes {
    let processor = |name, items| format!("[[processor]]\nname = \"{name}\"\nitems = {items}\nage-ms = 5\n");
    let processors = processor("films", 1) + &processor("lists", 10) + &processor("kept", 100);
    let head = format!("[plugin]\nname = \"works\"\nversion = \"{number}\"\n{processors}");
    Bytes::from(format!("{head}# {number:>40}"))
}

/// A host whose half of the batches tries version 2.
async fn start<F>(bench: &mut Bench, play: F) -> (Runtime, Handle, TenantId)
where
    F: Fn(&Attempt, &BatchRun) -> BatchOutcome + Send + Sync + 'static,
{
    start_with(bench, move |attempt, batch| worked(play(attempt, batch))).await
}

async fn start_with<F>(bench: &mut Bench, play: F) -> (Runtime, Handle, TenantId)
where
    F: Fn(&Attempt, &BatchRun) -> BatchReport + Send + Sync + 'static,
{
    bench.batch = Arc::new(move |attempt, batch, _, _| {
        let report = play(&attempt, &batch);
        async move { report }.boxed()
    });
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    handle.install(tenant, version(1), None).await.expect("it installs");
    handle.install_canary(tenant, version(2), None, 50).await.expect("it begins");
    (runtime, handle, tenant)
}

fn done(batch: &BatchRun) -> BatchOutcome {
    BatchOutcome::Answered(vec![ItemOutcome::Done; batch.items.len()])
}

fn trap() -> BatchOutcome {
    BatchOutcome::Failed(Failure::new(Code::Trap, "no more"))
}

async fn add(handle: &Handle, tenant: TenantId, processor: &str, count: usize) {
    let item = |n: usize| ItemWish { key: String::new(), payload: Payload::json(n.to_string()) };
    handle.add_items(tenant, processor, (0..count).map(item).collect(), None).await.expect("added");
}

/// Waits until the figures are as a test wants them.
async fn until(handle: &Handle, is: impl Fn(&BatchFigures) -> bool) -> BatchFigures {
    let look = async {
        loop {
            let figures = handle.batch_figures();
            if is(&figures) {
                return figures;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, look).await.expect("it comes to this soon")
}

async fn tried(handle: &Handle, tenant: TenantId) -> Tried {
    handle.canary(tenant, "works").await.expect("there was one")
}

#[tokio::test]
async fn a_batch_that_fails_on_a_canary_is_worked_by_the_current_version_and_charged_nothing() {
    let mut bench = Bench::new().await;
    let play = |attempt: &Attempt, batch: &BatchRun| if is_canary(attempt) { trap() } else { done(batch) };
    let (runtime, handle, tenant) = start(&mut bench, play).await;
    // More failures than a processor may have in a row, were they its own.
    add(&handle, tenant, "films", 60).await;
    let figures = until(&handle, |figures| figures.done == 60).await;
    assert_eq!((figures.dead, figures.retried, figures.stopped), (0, 0, 0));
    let canary = handle.figures();
    assert!(canary.canary_failures > 0 && canary.canary_failures == canary.canary_attempts, "{canary:?}");
    let tried = tried(&handle, tenant).await;
    let seen = tried.standing.trial.seen();
    assert_eq!((seen.canary.batches, seen.canary.broke), (seen.canary.tasks, seen.canary.tasks));
    assert!(tried.standing.state == State::Worse && seen.canary.tasks < 60, "{tried:?}");
    assert_eq!(tried.standing.failure.as_deref(), Some("trap: no more"));
    assert_eq!(figures.runs, 60 + canary.canary_failures, "each is run whole, and once more");
    runtime.drain().await;
}

#[tokio::test]
async fn a_canary_that_traps_at_30_percent_of_the_batches_is_taken_back_and_no_item_is_lost() {
    let mut bench = Bench::new().await;
    let count = AtomicU64::new(0);
    let play = move |attempt: &Attempt, batch: &BatchRun| {
        let traps = is_canary(attempt) && count.fetch_add(1, Ordering::Relaxed) % 10 < 3;
        if traps { trap() } else { done(batch) }
    };
    let (runtime, handle, tenant) = start(&mut bench, play).await;
    let mut added = 0;
    while tried(&handle, tenant).await.standing.state == State::Trying {
        add(&handle, tenant, "films", 20).await;
        added += 20;
        until(&handle, |figures| figures.done == added).await;
    }
    let tried = tried(&handle, tenant).await;
    assert!(tried.standing.state == State::Worse && tried.standing.touched <= CANARY_TASKS_MAX, "{tried:?}");
    let figures = handle.batch_figures();
    assert_eq!((figures.dead, figures.retried), (0, 0));
    let attempts = handle.figures().canary_attempts;
    add(&handle, tenant, "films", 20).await;
    until(&handle, |figures| figures.done == added + 20).await;
    assert_eq!(handle.figures().canary_attempts, attempts, "nobody tries it any more");
    runtime.drain().await;
}

#[tokio::test]
async fn what_a_canary_does_not_work_is_for_the_current_version_to_decide() {
    let mut bench = Bench::new().await;
    let (both, rejected) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (are_both, count) = (Arc::clone(&both), Arc::clone(&rejected));
    let play = move |attempt: &Attempt, batch: &BatchRun| {
        let mut outcomes = vec![ItemOutcome::Done; batch.items.len()];
        if is_canary(attempt) || are_both.load(Ordering::SeqCst) {
            count.fetch_add(u64::from(!is_canary(attempt)), Ordering::SeqCst);
            outcomes[0] = ItemOutcome::Reject("an odd item".to_owned());
        }
        BatchOutcome::Answered(outcomes)
    };
    let (runtime, handle, tenant) = start(&mut bench, play).await;
    add(&handle, tenant, "lists", 300).await;
    let figures = until(&handle, |figures| figures.done + figures.dead == 300).await;
    assert_eq!(figures.dead, rejected.load(Ordering::SeqCst), "whatever the canary said");
    let seen = tried(&handle, tenant).await.standing.trial.seen();
    assert!(seen.canary.tasks > 0 && seen.canary.declared == 0, "the items deserve it: {seen:?}");
    both.store(false, Ordering::SeqCst);
    add(&handle, tenant, "lists", 300).await;
    let dead = figures.dead;
    let figures = until(&handle, |figures| figures.done + figures.dead == 600).await;
    assert_eq!(figures.dead, dead);
    let tried = tried(&handle, tenant).await;
    assert!(tried.standing.trial.seen().canary.declared > 0, "{tried:?}");
    assert_eq!(tried.standing.failure.as_deref(), Some("plugin_failed: an odd item"));
    runtime.drain().await;
}

#[tokio::test]
async fn an_item_tries_a_canary_once_whatever_becomes_of_it() {
    let mut bench = Bench::new().await;
    let play = |attempt: &Attempt, batch: &BatchRun| {
        let again = |item: &keiko_core::batch::Item| match item.attempts {
            0 => ItemOutcome::Retry { after_ms: Some(0), reason: "busy".to_owned() },
            _ => ItemOutcome::Done,
        };
        let tries = is_canary(attempt);
        assert!(!tries || batch.items.iter().all(|item| item.attempts == 0), "it was handed over before");
        BatchOutcome::Answered(batch.items.iter().map(again).collect())
    };
    let (runtime, handle, tenant) = start(&mut bench, play).await;
    add(&handle, tenant, "films", 40).await;
    let figures = until(&handle, |figures| figures.done == 40).await;
    assert_eq!((figures.retried, figures.dead), (40, 0));
    let attempts = handle.figures().canary_attempts;
    assert!(attempts > 0 && figures.runs == 80 + attempts, "{figures:?} {attempts}");
    runtime.drain().await;
}

#[tokio::test]
async fn effects_are_those_of_the_run_that_counts() {
    let mut bench = Bench::new().await;
    let halves = Arc::new(AtomicU64::new(0));
    bench.batch = Arc::new(move |attempt, batch, port, _| {
        let halves = Arc::clone(&halves);
        async move {
            if batch.processor.as_str() == "kept" {
                return worked(done(&batch));
            }
            let wish = ItemWish { key: String::new(), payload: batch.items[0].payload.clone() };
            let mut effects = Effects::default();
            let asked = port.reserve_items("kept", vec![wish]).await.expect("there is room");
            asked.into_iter().for_each(|item| effects.push_item(item));
            // Every other run of the canary traps, behind what it asked for.
            let traps = is_canary(&attempt) && halves.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            let outcome = if traps { trap() } else { done(&batch) };
            BatchReport { effects, ..worked(outcome) }
        }
        .boxed()
    });
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    handle.install(tenant, version(1), None).await.expect("it installs");
    handle.install_canary(tenant, version(2), None, 50).await.expect("it begins");
    add(&handle, tenant, "films", 30).await;
    // Every item, and what was asked for it: once.
    until(&handle, |figures| figures.done == 60).await;
    let figures = handle.figures();
    assert!(figures.canary_failures > 0 && figures.canary_failures < figures.canary_attempts, "{figures:?}");
    runtime.drain().await;
    let figures = handle.batch_figures();
    assert_eq!((figures.done, figures.dead), (60, 0));
}

#[tokio::test]
async fn batches_that_are_no_worse_are_a_verdict_within_the_bound() {
    let mut bench = Bench::new().await;
    let play = |_: &Attempt, batch: &BatchRun| done(batch);
    let (runtime, handle, tenant) = start(&mut bench, play).await;
    let mut added = 0;
    while tried(&handle, tenant).await.standing.state == State::Trying {
        add(&handle, tenant, "films", 100).await;
        added += 100;
        until(&handle, |figures| figures.done == added).await;
    }
    let standing = tried(&handle, tenant).await.standing;
    assert_eq!((standing.state, standing.touched), (State::Passed, CANARY_TASKS_MAX));
    let attempts = handle.figures().canary_attempts;
    add(&handle, tenant, "films", 40).await;
    until(&handle, |figures| figures.done == added + 40).await;
    assert!(handle.figures().canary_attempts > attempts, "its part runs on it");
    runtime.drain().await;
}
