//! A processor that takes nothing any more: what says so, over all of its batches, and what becomes of its items.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::limit::BAD_LEAVES_MAX;
use keiko_runtime::ProcessorView;
use tokio::sync::watch;

use super::{add, done, is_empty, script, start, trap, until, view, wish};
use crate::support::{Bench, worked};

#[tokio::test]
async fn a_broken_processor_is_stopped_and_keeps_its_items() {
    let mut bench = Bench::new().await;
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let runs =
        script(&mut bench, move |batch| if is_broken.load(Ordering::SeqCst) { trap() } else { done(batch) });
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nitems = 200").await;
    add(&handle, tenant, "films", (0..200).map(|n| wish("", n.to_string())).collect()).await;
    let view =
        until(&handle, tenant, "films", |view| view.stopped.is_some() && view.counts.batches == 0).await;
    assert_eq!((view.counts.items, view.counts.dead), (200, 0));
    assert_eq!(view.stopped.map(|stopped| stopped.failure.code), Some(Code::Trap));
    let alone = runs.lock().iter().filter(|seen| seen.items.len() == 1).count();
    assert_eq!(alone, BAD_LEAVES_MAX as usize);
    broken.store(false, Ordering::SeqCst);
    handle.resume(tenant, "films").await.unwrap();
    let view = until(&handle, tenant, "films", is_empty).await;
    assert_eq!((view.counts.dead, view.stopped), (0, None));
    runtime.drain().await;
}

#[tokio::test]
async fn a_new_version_starts_a_stopped_processor_again() {
    let mut bench = Bench::new().await;
    script(&mut bench, |_| trap());
    let table = "[[processor]]\nname = \"films\"\nitems = 20";
    let (runtime, handle, tenant) = start(&bench, table).await;
    add(&handle, tenant, "films", (0..20).map(|n| wish("", n.to_string())).collect()).await;
    until(&handle, tenant, "films", |view| view.stopped.is_some()).await;
    let manifest = format!("[plugin]\nname = \"works\"\nversion = \"2\"\n{table}\n");
    handle.install(tenant, Bytes::from(manifest), None).await.unwrap();
    // It is broken still, and is found so again.
    until(&handle, tenant, "films", |_| handle.batch_figures().stopped == 2).await;
    assert_eq!(view(&handle, tenant, "films").await.counts.items, 20);
    runtime.drain().await;
}

/// Two batches of one processor that run at once and take turns with their items, of which each fails alone; what is left,
/// what is dead, and whether the processor was stopped.
async fn two_at_once(items: [usize; 2]) -> (u64, u64, bool) {
    let mut bench = Bench::new().await;
    let begun = Arc::new(watch::channel([0; 2]).0);
    bench.batch = Arc::new(move |_, batch, _, _| {
        let begun = Arc::clone(&begun);
        Box::pin(async move {
            let own = usize::from(batch.key == "1");
            if batch.items.len() == 1 {
                let turn = begun.borrow()[own].min(items[1 - own]);
                begun.send_modify(|begun| begun[own] += 1);
                begun.subscribe().wait_for(|begun| begun[1 - own] >= turn).await.unwrap();
            }
            worked(trap())
        })
    });
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 1").await;
    let of = |key: usize| (0..items[key]).map(move |_| wish(&key.to_string(), "1"));
    add(&handle, tenant, "films", of(0).chain(of(1)).collect()).await;
    let all = (items[0] + items[1]) as u64;
    let is_over = |view: &ProcessorView| {
        let is_kept = view.stopped.is_some() && view.counts.items == all;
        view.counts.batches == 0 && (is_kept || view.counts.dead == all)
    };
    let view = until(&handle, tenant, "films", is_over).await;
    runtime.drain().await;
    assert_eq!(handle.batch_figures().stopped, u64::from(view.stopped.is_some()), "one of them tells");
    (view.counts.items, view.counts.dead, view.stopped.is_some())
}

#[tokio::test]
async fn bad_leaves_of_batches_that_run_at_once_add_up() {
    let limit = BAD_LEAVES_MAX as usize;
    assert_eq!(two_at_once([limit / 2, limit / 2 - 1]).await, (0, u64::from(BAD_LEAVES_MAX) - 1, false));
    // Both are at their items still when the one that is too much comes.
    assert_eq!(two_at_once([limit / 2 + 2; 2]).await, (u64::from(BAD_LEAVES_MAX) + 4, 0, true));
    // Neither of them would be enough by itself.
    assert_eq!(two_at_once([limit - 1, limit - 1]).await, (2 * u64::from(BAD_LEAVES_MAX) - 2, 0, true));
}
