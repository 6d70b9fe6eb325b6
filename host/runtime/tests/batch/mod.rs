//! Batches on one host over the real store, with scripted processors: what is handed over, what one bad item does, and
//! what a stop leaves. The bugs of the design that this one comes from are tests here: a lone item that never left, one
//! clock for all processors, items of an unknown processor and failed batches that were lost, callers left waiting.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::batch::{ItemOutcome, ItemWish, Wish};
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::outcome::{Failure, Frame, Outcome};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{BatchOutcome, BatchRun, HostPort, ItemsError};
use keiko_core::task::{Payload, TaskState};
use keiko_core::{Digest, ItemId, TenantId};
use keiko_runtime::{Handle, ProcessorView, Runtime};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::support::{Bench, SOON, echo, report, submit, worked};
use crate::{Report, ended};

/// A processor's run as a script saw it.
#[derive(Clone, Debug)]
struct Seen {
    id: String,
    key: String,
    items: Vec<ItemId>,
}

type Runs = Arc<Mutex<Vec<Seen>>>;

/// Installs a plugin with these `[[processor]]` tables, and starts a host for it.
async fn start(bench: &Bench, processors: &str) -> (Runtime, Handle, TenantId) {
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let manifest = format!("[plugin]\nname = \"works\"\nversion = \"1\"\n{processors}\n");
    handle.install(tenant, Bytes::from(manifest), None).await.expect("the processors install");
    (runtime, handle, tenant)
}

/// Notes every run, and answers by `answer`.
fn script(bench: &mut Bench, answer: impl Fn(&BatchRun) -> BatchOutcome + Send + Sync + 'static) -> Runs {
    let runs: Runs = Arc::default();
    let noted = Arc::clone(&runs);
    bench.batch = Arc::new(move |_, batch, _, _| {
        let items = batch.items.iter().map(|item| item.id).collect();
        noted.lock().push(Seen { id: batch.id.clone(), key: batch.key.clone(), items });
        let outcome = answer(&batch);
        Box::pin(async move { worked(outcome) })
    });
    runs
}

fn done(batch: &BatchRun) -> BatchOutcome {
    BatchOutcome::Answered(vec![ItemOutcome::Done; batch.items.len()])
}

fn trap() -> BatchOutcome {
    let mut failure = Failure::new(Code::Trap, "it broke");
    failure.backtrace = vec![Frame { function: "work".to_owned(), file: None, line: None }];
    BatchOutcome::Failed(failure)
}

/// Traps on batches with one of these payloads.
fn trap_on(poison: &[&str]) -> impl Fn(&BatchRun) -> BatchOutcome + Send + Sync + 'static {
    let poison: BTreeSet<Vec<u8>> = poison.iter().map(|text| text.as_bytes().to_vec()).collect();
    move |batch| {
        let bad = batch.items.iter().any(|item| poison.contains(&item.payload.bytes.to_vec()));
        if bad { trap() } else { done(batch) }
    }
}

fn wish(key: &str, text: impl Into<String>) -> ItemWish {
    ItemWish { key: key.to_owned(), payload: Payload::json(text.into()) }
}

async fn add(handle: &Handle, tenant: TenantId, processor: &str, items: Vec<ItemWish>) -> Vec<ItemId> {
    let added = handle.add_items(tenant, processor, items, None).await.expect("the items are added");
    added.ids().collect()
}

async fn view(handle: &Handle, tenant: TenantId, name: &str) -> ProcessorView {
    handle.processor(tenant, name).await.expect("the processor is there")
}

/// Waits until a processor is as a test wants it.
async fn until(
    handle: &Handle,
    tenant: TenantId,
    name: &str,
    is: impl Fn(&ProcessorView) -> bool,
) -> ProcessorView {
    let look = async {
        loop {
            let view = view(handle, tenant, name).await;
            if is(&view) {
                return view;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, look).await.expect("it comes to this soon")
}

fn is_empty(view: &ProcessorView) -> bool {
    view.counts.items == 0
}

#[tokio::test]
async fn a_lone_item_leaves_without_another_one_behind_it() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, done);
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 30").await;
    let ids = add(&handle, tenant, "films", vec![wish("k", "1")]).await;
    until(&handle, tenant, "films", is_empty).await;
    let seen = runs.lock().clone();
    assert_eq!((seen.len(), &seen[0].items, seen[0].key.as_str()), (1, &ids, "k"));
    assert!(seen[0].id.starts_with("batch_"), "{seen:?}");
    runtime.drain().await;
}

#[tokio::test]
async fn processors_and_keys_have_clocks_of_their_own() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, done);
    let tables =
        "[[processor]]\nname = \"quick\"\nage-ms = 20\n[[processor]]\nname = \"slow\"\nage-ms = 3600000";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    add(&handle, tenant, "slow", vec![wish("", "1")]).await;
    add(&handle, tenant, "quick", vec![wish("a", "2"), wish("b", "3")]).await;
    until(&handle, tenant, "quick", is_empty).await;
    assert_eq!(view(&handle, tenant, "slow").await.counts.items, 1);
    let keys: BTreeSet<String> = runs.lock().iter().map(|seen| seen.key.clone()).collect();
    assert_eq!(keys, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(handle.flush(tenant, "slow").await, Ok(1));
    until(&handle, tenant, "slow", is_empty).await;
    runtime.drain().await;
}

#[tokio::test]
async fn items_of_an_unknown_processor_are_refused_and_not_lost() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"").await;
    let refused = handle.add_items(tenant, "flims", vec![wish("", "1")], None).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (Code::NotFound, "there is no processor `flims`"));
    for items in [vec![], vec![wish("", "1"); keiko_core::limit::ADD_ITEMS_MAX + 1]] {
        let refused = handle.add_items(tenant, "films", items, None).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidInput);
    }
    runtime.drain().await;
}

/// Adds a thousand items, of which some are poison, as one batch; how many runs it took.
async fn runs_of_a_thousand(poison: &[&str]) -> usize {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, trap_on(poison));
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nitems = 1000").await;
    add(&handle, tenant, "films", (0..1_000).map(|n| wish("", n.to_string())).collect()).await;
    let view = until(&handle, tenant, "films", is_empty).await;
    assert_eq!(view.counts.dead, poison.len() as u64);
    let counted = async {
        // They are counted when they are written.
        loop {
            let figures = handle.batch_figures();
            if figures.done + figures.dead == 1_000 {
                return figures;
            }
            tokio::task::yield_now().await;
        }
    };
    let figures = tokio::time::timeout(SOON, counted).await.expect("they are counted");
    assert_eq!((figures.done, figures.dead), (1_000 - poison.len() as u64, poison.len() as u64));
    let dead = handle.dead_letters(tenant, "films", None, 100).await.unwrap().items;
    let texts: BTreeSet<String> =
        dead.iter().map(|letter| String::from_utf8_lossy(&letter.payload.bytes).into_owned()).collect();
    assert_eq!(texts, poison.iter().map(|text| (*text).to_owned()).collect());
    assert!(dead.iter().all(|letter| letter.attempts == 1 && letter.failure.backtrace.len() == 1));
    runtime.drain().await;
    runs.lock().len()
}

#[tokio::test]
async fn one_bad_item_of_a_thousand_stops_none_of_the_others_within_21_runs() {
    let runs = runs_of_a_thousand(&["777"]).await;
    assert!(runs <= 21, "{runs} runs");
}

#[tokio::test]
async fn ten_bad_items_of_a_thousand_stop_none_of_the_others_within_210_runs() {
    let poison = ["0", "1", "99", "333", "334", "500", "501", "750", "998", "999"];
    let runs = runs_of_a_thousand(&poison).await;
    assert!(runs <= 210, "{runs} runs");
}

#[tokio::test]
async fn a_batch_that_fails_is_tried_again_and_not_lost() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, |batch| {
        let first = batch.items.iter().all(|item| item.attempts == 0);
        let later = ItemOutcome::Retry { after_ms: Some(1), reason: "busy".to_owned() };
        if first { BatchOutcome::Answered(vec![later; batch.items.len()]) } else { done(batch) }
    });
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 1").await;
    let ids = add(&handle, tenant, "films", vec![wish("", "1"), wish("", "2")]).await;
    until(&handle, tenant, "films", is_empty).await;
    let delivered: Vec<ItemId> = runs.lock().iter().flat_map(|seen| seen.items.clone()).collect();
    assert!(ids.iter().all(|id| delivered.iter().filter(|one| *one == id).count() == 2), "{delivered:?}");
    assert_eq!(handle.batch_figures().retried, 2);
    runtime.drain().await;
}

#[tokio::test]
async fn a_key_adds_once_and_means_one_body() {
    let mut bench = Bench::new().await;
    script(&mut bench, done);
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 3600000").await;
    let add = |text: &str| handle.add_items(tenant, "films", vec![wish("", text)], Some("k".to_owned()));
    let (first, second) = (add("1").await.unwrap(), add("1").await.unwrap());
    assert_eq!((first.duplicate, second.duplicate, first.first), (false, true, second.first));
    assert_eq!(add("2").await.unwrap_err().code, Code::Conflict);
    assert_eq!(view(&handle, tenant, "films").await.counts.items, 1);
    runtime.drain().await;
}

#[tokio::test]
async fn what_waits_stops_at_the_tenants_limits() {
    let mut bench = Bench::new().await;
    bench.policy.batches.waiting_items_max = 3;
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 3600000").await;
    add(&handle, tenant, "films", vec![wish("", "1"); 3]).await;
    let full = handle.add_items(tenant, "films", vec![wish("", "1")], None).await.unwrap_err();
    let fact = full.limit.expect("a limit is named");
    assert_eq!(
        (full.code, fact.name.as_str(), fact.limit, fact.asked),
        (Code::QueueFull, "waiting_items", 3, Some(4))
    );
    runtime.drain().await;
}

#[tokio::test]
async fn the_hosts_own_processor_keeps_items_as_rows() {
    let mut bench = Bench::new().await;
    let kept = Wish { age_ms: Some(1), ..Wish::default() };
    bench.processors = BTreeMap::from([("table".parse().expect("a name"), kept)]);
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| async move { echo(&attempt) }.boxed()).await;
    let ids = add(&handle, tenant, "table", vec![wish("a", "1"), wish("b", "2")]).await;
    until(&handle, tenant, "table", |view| view.counts.rows == 2).await;
    let rows = handle.rows(tenant, "table", None, 10).await.unwrap().items;
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), ids);
    let taken = "[plugin]\nname = \"works\"\nversion = \"1\"\n[[processor]]\nname = \"table\"\n";
    let refused = handle.install(tenant, Bytes::from(taken), None).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (Code::Conflict, "the processor `table` is the host's")
    );
    runtime.drain().await;
}

#[tokio::test]
async fn a_stop_flushes_what_waits_and_leaves_the_rest_as_rows() {
    let mut bench = Bench::new().await;
    bench.options.drain = Duration::from_secs(20);
    let runs = script(&mut bench, |batch| {
        let later = |item: &keiko_core::batch::Item| {
            let wait = ItemOutcome::Retry { after_ms: Some(3_600_000), reason: "busy".to_owned() };
            if item.payload.bytes == "2" { wait } else { ItemOutcome::Done }
        };
        BatchOutcome::Answered(batch.items.iter().map(later).collect())
    });
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 3600000").await;
    let ids = add(&handle, tenant, "films", vec![wish("", "1"), wish("", "2"), wish("", "3")]).await;
    runtime.drain().await;
    assert_eq!(runs.lock().len(), 1);
    let refused = handle.add_items(tenant, "films", vec![wish("", "1")], None).await.unwrap_err();
    assert_eq!(refused.code, Code::StorageBusy);
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 3600000").await;
    let left = handle.items(tenant, "films", None, 10).await.unwrap().items;
    assert_eq!(left.iter().map(|item| (item.id, item.attempts)).collect::<Vec<_>>(), [(ids[1], 1)]);
    runtime.drain().await;
}

#[tokio::test]
async fn a_stop_ends_a_batch_that_does_not_and_keeps_its_items() {
    let mut bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let told = Arc::clone(&started);
    bench.batch = Arc::new(move |_, _, _, stop| {
        told.notify_one();
        Box::pin(async move { worked(BatchOutcome::Stopped(stop.wait().await)) })
    });
    let (runtime, handle, tenant) = start(&bench, "[[processor]]\nname = \"films\"\nage-ms = 1").await;
    add(&handle, tenant, "films", vec![wish("", "1")]).await;
    started.notified().await;
    runtime.drain().await;
    let view = view(&handle, tenant, "films").await;
    assert_eq!((view.counts.items, view.counts.batches), (1, 0), "nobody is left waiting, nothing is lost");
}

#[tokio::test]
async fn volatile_items_are_bounded_and_dropped_by_count() {
    let mut bench = Bench::new().await;
    bench.policy.batches.memory_bytes_max = 4 * 1024;
    let runs = script(&mut bench, done);
    let tables = "[[processor]]\nname = \"beats\"\nage-ms = 50\nvolatile = true";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    let many = handle.add_items(tenant, "beats", vec![wish("", "1"); 6], None).await.unwrap();
    assert_eq!((many.count, many.dropped), (6, 2), "a KiB of memory each");
    let keyed = handle.add_items(tenant, "beats", vec![wish("", "1")], Some("k".to_owned())).await;
    assert_eq!(keyed.unwrap_err().code, Code::InvalidInput);
    let four = async {
        while handle.batch_figures().done < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, four).await.expect("the four are worked");
    assert_eq!(view(&handle, tenant, "beats").await.counts.items, 0, "none of them was ever a row");
    assert_eq!((handle.batch_figures().dropped, runs.lock().len()), (2, 1));
    runtime.drain().await;
}

#[tokio::test]
async fn a_volatile_item_that_waits_again_keeps_its_room_and_one_that_is_rejected_is_dropped_by_count() {
    let mut bench = Bench::new().await;
    bench.policy.batches.memory_bytes_max = 4 * 1024;
    let runs = script(&mut bench, |batch| {
        let outcome = |item: &keiko_core::batch::Item| match (&item.payload.bytes[..], item.attempts) {
            (b"\"odd\"", _) => ItemOutcome::Reject("odd".to_owned()),
            (_, 0) => ItemOutcome::Retry { after_ms: Some(1), reason: "busy".to_owned() },
            _ => ItemOutcome::Done,
        };
        BatchOutcome::Answered(batch.items.iter().map(outcome).collect())
    });
    let tables = "[[processor]]\nname = \"beats\"\nage-ms = 1\nvolatile = true";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    // All the memory there is.
    let items = ["1", "2", "3", "\"odd\""].map(|text| wish("", text)).to_vec();
    let added = handle.add_items(tenant, "beats", items, None).await.unwrap();
    assert_eq!(added.dropped, 0);
    let worked = async {
        while handle.batch_figures().done < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, worked).await.expect("what waits again is worked");
    let figures = handle.batch_figures();
    assert_eq!((figures.retried, figures.dead, figures.dropped), (3, 1, 1));
    let delivered: usize = runs.lock().iter().map(|seen| seen.items.len()).sum();
    assert_eq!(delivered, 7);
    runtime.drain().await;
}

#[tokio::test]
async fn volatile_items_of_an_ordered_key_wait_for_the_first_of_them() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, |batch| {
        let outcome = |item: &keiko_core::batch::Item| match (&item.payload.bytes[..], item.attempts) {
            (b"1", 0) => ItemOutcome::Retry { after_ms: Some(30), reason: "busy".to_owned() },
            _ => ItemOutcome::Done,
        };
        BatchOutcome::Answered(batch.items.iter().map(outcome).collect())
    });
    let tables = "[[processor]]\nname = \"beats\"\nitems = 1\nage-ms = 1\nordered = true\nvolatile = true";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    let items = ["1", "2", "3"].map(|text| wish("k", text)).to_vec();
    let ids: Vec<ItemId> = handle.add_items(tenant, "beats", items, None).await.unwrap().ids().collect();
    let worked = async {
        while handle.batch_figures().done < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, worked).await.expect("all are worked");
    let delivered: Vec<ItemId> = runs.lock().iter().flat_map(|seen| seen.items.clone()).collect();
    assert_eq!(delivered, [ids[0], ids[0], ids[1], ids[2]]);
    runtime.drain().await;
}

#[tokio::test]
async fn items_are_worked_wherever_they_wait_when_a_processor_becomes_volatile_or_durable() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, done);
    let table =
        |volatile| format!("[[processor]]\nname = \"beats\"\nage-ms = 3600000\nvolatile = {volatile}");
    let version = |number, volatile| {
        let table = table(volatile);
        Bytes::from(format!("[plugin]\nname = \"works\"\nversion = \"{number}\"\n{table}\n"))
    };
    let (runtime, handle, tenant) = start(&bench, &table(false)).await;
    let mut added: Vec<ItemId> = Vec::new();
    let all = async |count: usize| handle.add_items(tenant, "beats", vec![wish("", "1"); count], None).await;
    let worked = async |count: u64| {
        handle.flush(tenant, "beats").await.unwrap();
        let all = async {
            while handle.batch_figures().done < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, all).await.expect("rows and what is in memory are worked");
    };
    added.extend(all(3).await.unwrap().ids());
    handle.install(tenant, version(2, true), None).await.unwrap();
    added.extend(all(2).await.unwrap().ids());
    assert_eq!(view(&handle, tenant, "beats").await.counts.items, 3, "the others are in memory");
    worked(5).await;

    added.extend(all(4).await.unwrap().ids());
    handle.install(tenant, version(3, false), None).await.unwrap();
    added.extend(all(1).await.unwrap().ids());
    worked(10).await;
    until(&handle, tenant, "beats", |view| view.counts.items == 0 && view.counts.batches == 0).await;
    let mut delivered: Vec<ItemId> = runs.lock().iter().flat_map(|seen| seen.items.clone()).collect();
    delivered.sort_unstable();
    assert_eq!(delivered, added, "each of them once");
    assert_eq!(handle.batch_figures().dropped, 0);
    runtime.drain().await;
}

#[tokio::test]
async fn batches_grow_and_shrink_with_the_time_that_they_take() {
    let mut bench = Bench::new().await;
    let slow = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_slow = Arc::clone(&slow);
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let noted = Arc::clone(&sizes);
    bench.batch = Arc::new(move |_, batch, _, _| {
        noted.lock().push(batch.items.len());
        let slow = is_slow.load(std::sync::atomic::Ordering::SeqCst);
        Box::pin(async move {
            if slow {
                // Longer than the latency that is wished for.
                tokio::time::timeout(Duration::from_millis(1_100), std::future::pending::<()>()).await.ok();
            }
            worked(done(&batch))
        })
    });
    let tables = "[[processor]]\nname = \"films\"\nitems = 12\nitems-min = 2\nlatency-ms = 1000\nage-ms = 1\nin-flight = 1";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    add(&handle, tenant, "films", (0..120).map(|n| wish("", n.to_string())).collect()).await;
    until(&handle, tenant, "films", is_empty).await;
    let quick = std::mem::take(&mut *sizes.lock());
    assert_eq!((quick[0], quick.iter().max()), (2, Some(&12)), "{quick:?}");
    assert!(quick.windows(2).all(|pair| pair[1] <= pair[0] + 1), "by one more each time: {quick:?}");
    slow.store(true, std::sync::atomic::Ordering::SeqCst);
    add(&handle, tenant, "films", (0..18).map(|n| wish("", n.to_string())).collect()).await;
    until(&handle, tenant, "films", is_empty).await;
    let slow = std::mem::take(&mut *sizes.lock());
    assert_eq!(slow[..2], [12, 6], "half as many when they take too long: {slow:?}");
    runtime.drain().await;
}

/// Adds items, and then ends as its input says.
fn adds(attempt: keiko_core::port::Attempt, port: Arc<dyn HostPort>) -> Report {
    async move {
        let items = port.reserve_items("films", vec![wish("k", "1"), wish("k", "2")]).await;
        let missing = port.reserve_items("flims", vec![wish("", "1")]).await;
        assert_eq!(missing, Err(ItemsError::NotFound("flims".to_owned())));
        let mut effects = Effects::default();
        items.expect("there is room").into_iter().for_each(|item| effects.push_item(item));
        let outcome = match &attempt.input.bytes[..] {
            b"\"fail\"" => Outcome::Failed(Failure::new(Code::PluginFailed, "as meant")),
            _ => Outcome::Completed(attempt.input.clone()),
        };
        keiko_core::outcome::AttemptReport { effects, ..report(outcome) }
    }
    .boxed()
}

#[tokio::test]
async fn items_of_a_task_appear_with_its_result_and_never_without() {
    let mut bench = Bench::new().await;
    let runs = script(&mut bench, done);
    bench.policy.batches.waiting_items_max = 10;
    let (runtime, handle, tenant) = bench.start(|attempt, port, _| adds(attempt, port)).await;
    let manifest =
        "[plugin]\nname = \"works\"\nversion = \"1\"\n[[processor]]\nname = \"films\"\nage-ms = 1\n";
    handle.install(tenant, Bytes::from(manifest), None).await.expect("the processor installs");
    let failed = submit(&handle, tenant, "\"fail\"").await;
    assert_eq!(ended(&handle, tenant, failed).await.view.summary.state, TaskState::Failed);
    let waiting = view(&handle, tenant, "films").await.counts.items;
    assert_eq!((runs.lock().len(), waiting), (0, 0));
    // Five times as many as fit at once: what a failed attempt was promised was given back.
    for _ in 0..25 {
        let id = submit(&handle, tenant, "1").await;
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Completed);
        until(&handle, tenant, "films", is_empty).await;
    }
    runtime.drain().await;
    assert_eq!(handle.batch_figures().done, 50);
}

#[tokio::test]
async fn a_batch_ends_on_the_version_that_it_began_on_in_all_its_parts() {
    let mut bench = Bench::new().await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let runs: Arc<Mutex<Vec<(Digest, usize)>>> = Arc::default();
    let (noted, told, waits) = (Arc::clone(&runs), Arc::clone(&started), Arc::clone(&go));
    bench.batch = Arc::new(move |attempt, batch, _, _| {
        noted.lock().push((attempt.digest, batch.items.len()));
        // The first run fails as a whole, and not before another version is there.
        let waits = (noted.lock().len() == 1).then(|| Arc::clone(&waits));
        told.notify_one();
        Box::pin(async move {
            let Some(waits) = waits else { return worked(done(&batch)) };
            waits.notified().await;
            worked(trap())
        })
    });
    let table = "[[processor]]\nname = \"films\"\nitems = 2\nage-ms = 3600000";
    let (runtime, handle, tenant) = start(&bench, table).await;
    add(&handle, tenant, "films", vec![wish("", "1"), wish("", "2")]).await;
    started.notified().await;
    // What a component is called here follows from its end.
    let manifest = format!("[plugin]\nname = \"works\"\nversion = \"2\"\n{table}\n# another one\n");
    handle.install(tenant, Bytes::from(manifest), None).await.unwrap();
    go.notify_one();
    until(&handle, tenant, "films", is_empty).await;
    add(&handle, tenant, "films", vec![wish("", "3"), wish("", "4")]).await;
    until(&handle, tenant, "films", is_empty).await;
    let runs = runs.lock().clone();
    let (old, new) = (runs[0].0, runs[3].0);
    assert_ne!(old, new);
    assert_eq!(runs, [(old, 2), (old, 1), (old, 1), (new, 2)]);
    runtime.drain().await;
}

#[tokio::test]
async fn an_add_waits_for_room_in_memory_and_loses_nothing() {
    let mut bench = Bench::new().await;
    bench.policy.batches.memory_bytes_max = 4 * 1024;
    script(&mut bench, done);
    let tables = "[[processor]]\nname = \"beats\"\nage-ms = 3600000\nvolatile = true\n\
        [[processor]]\nname = \"films\"\nage-ms = 3600000";
    let (runtime, handle, tenant) = start(&bench, tables).await;
    // All the memory there is, until they leave.
    let held = handle.add_items(tenant, "beats", vec![wish("", "1"); 4], None).await.unwrap();
    assert_eq!(held.dropped, 0);
    let mut waits = std::pin::pin!(handle.add_items(tenant, "films", vec![wish("", "1")], None));
    for _ in 0..1_000 {
        assert!(futures::poll!(waits.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(view(&handle, tenant, "films").await.counts.items, 0);
    handle.flush(tenant, "beats").await.unwrap();
    waits.await.unwrap();
    assert_eq!(view(&handle, tenant, "films").await.counts.items, 1);
    runtime.drain().await;
}

#[tokio::test]
async fn a_batch_reads_its_budget_from_the_manifest() {
    let section = "[[processor]]\nname = \"films\"\nfuel = 7\ntimeout-s = 2";
    let manifest = format!("[plugin]\nname = \"works\"\nversion = \"1\"\n{section}\n");
    let manifest = keiko_core::manifest::Manifest::parse(manifest.as_bytes()).unwrap();
    let expected = BudgetRequest { fuel: Some(7), wall_ms: Some(2_000), ..BudgetRequest::default() };
    assert_eq!(manifest.processors[0].budget(), expected);
}
