//! A plugin's part of the cache over the lives of its components.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keiko_core::TenantId;
use keiko_core::catalog::{RemoveWhen, Target};
use keiko_core::outcome::{AttemptReport, Outcome, Taint};
use keiko_core::port::{Attempt, CacheFilling, CacheRefused, HostPort, Keeping};
use keiko_core::stop::Stop;
use keiko_core::task::{Payload, TaskView};
use keiko_runtime::{Handle, TaskRequest};
use tokio::sync::Notify;

use crate::support::{Bench, SOON, report, submit, task};

/// Sets `k` to its input, or answers what `k` is when that is empty.
async fn play(attempt: Attempt, port: Arc<dyn HostPort>) -> AttemptReport {
    let input = attempt.input.bytes.clone();
    let found = if &input[..] == b"\"\"" {
        port.cache_get(&["k".to_owned()]).await.unwrap().remove(0)
    } else {
        port.cache_set("k", input.clone(), Keeping::default()).await.unwrap();
        Some(input)
    };
    report(Outcome::Completed(Payload::json(found.unwrap_or(Bytes::from_static(b"null")))))
}

async fn run_on(handle: &Handle, tenant: TenantId, plugin: &str, input: &str) -> Bytes {
    let task = TaskRequest { plugin: Some(plugin.to_owned()), ..task(input) };
    let id = handle.submit(tenant, vec![task], None).await.unwrap().first;
    let ended = handle.wait(tenant, id, SOON).await.unwrap();
    ended.view.result.map(|result| result.bytes).unwrap_or_default()
}

async fn run(handle: &Handle, tenant: TenantId, input: &str) -> Bytes {
    run_on(handle, tenant, "script", input).await
}

/// A version of a script under another digest, which is that of its last bytes.
fn version(name: &str, number: u32, shared: &str) -> Bytes {
    let manifest = format!(
        "[plugin]\nname = \"{name}\"\nversion = \"{number}\"\n{shared}[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n\
         # {number:032}"
    );
    manifest.into()
}

const SHARED: &str = "shared-cache = \"films\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_component_finds_nothing_of_the_one_before() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, port, _| play(attempt, port).boxed()).await;
    handle.install(tenant, version("script", 2, ""), None).await.unwrap();
    assert_eq!(run(&handle, tenant, "\"old\"").await, "\"old\"");
    assert_eq!(run(&handle, tenant, "\"\"").await, "\"old\"");
    handle.install(tenant, version("script", 3, ""), None).await.unwrap();
    assert_eq!(run(&handle, tenant, "\"\"").await, "null");
    assert_eq!(run(&handle, tenant, "\"new\"").await, "\"new\"");
    assert_eq!(run(&handle, tenant, "\"\"").await, "\"new\"");
    // What was dropped does not come back with the component that kept it.
    handle.activate(tenant, "script", Target::Before).await.unwrap();
    assert_eq!(run(&handle, tenant, "\"\"").await, "null");
    // Another part of the cache has other entries.
    handle.install(tenant, version("script", 4, SHARED), None).await.unwrap();
    assert_eq!(run(&handle, tenant, "\"\"").await, "null");
    runtime.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_drops_its_own_entries_of_a_shared_part_and_no_others() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, port, _| play(attempt, port).boxed()).await;
    handle.install(tenant, version("script", 2, SHARED), None).await.unwrap();
    handle.install(tenant, version("other", 2, SHARED), None).await.unwrap();
    run(&handle, tenant, "\"of script\"").await;
    assert_eq!(run_on(&handle, tenant, "other", "\"\"").await, "\"of script\"");
    // The other plugin is swapped, from a component of the same digest: what this one has kept stays.
    handle.install(tenant, version("other", 3, SHARED), None).await.unwrap();
    assert_eq!(run(&handle, tenant, "\"\"").await, "\"of script\"");
    handle.install(tenant, version("script", 3, SHARED), None).await.unwrap();
    assert_eq!(run_on(&handle, tenant, "other", "\"\"").await, "null");
    // So does a removal.
    run(&handle, tenant, "\"again\"").await;
    handle.remove_plugin(tenant, "script", RemoveWhen::Idle).await.unwrap();
    assert_eq!(run_on(&handle, tenant, "other", "\"\"").await, "null");
    runtime.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_component_was_swapped_out_keeps_nothing_in_a_shared_part() {
    let bench = Bench::new().await;
    let (begun, swapped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (runtime, handle, tenant) = {
        let (begun, swapped) = (Arc::clone(&begun), Arc::clone(&swapped));
        bench.start(move |attempt, port, _| {
            late(attempt, port, Arc::clone(&begun), Arc::clone(&swapped)).boxed()
        })
    }
    .await;
    handle.install(tenant, version("script", 2, SHARED), None).await.unwrap();
    let id = submit(&handle, tenant, "\"late\"").await;
    begun.notified().await;
    handle.install(tenant, version("script", 3, SHARED), None).await.unwrap();
    swapped.notify_one();
    let ended = handle.wait(tenant, id, SOON).await.unwrap();
    assert_eq!(ended.view.result.unwrap().bytes, "\"late\"");
    assert_eq!(run(&handle, tenant, "\"\"").await, "null");
    runtime.drain().await;
}

/// Plays on when it was told that there was a swap, if it keeps something; a fill that it holds is lost by then.
async fn late(
    attempt: Attempt,
    port: Arc<dyn HostPort>,
    begun: Arc<Notify>,
    swapped: Arc<Notify>,
) -> AttemptReport {
    if &attempt.input.bytes[..] != b"\"\"" {
        let CacheFilling::Fill(fill) = port.cache_fill("k").await.unwrap() else {
            panic!("there is nothing")
        };
        begun.notify_one();
        swapped.notified().await;
        let value = attempt.input.bytes.clone();
        assert_eq!(fill.complete(value, Keeping::default()).await, Err(CacheRefused::Lost));
    }
    play(attempt, port).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_with_one_plugin_and_key_have_two_values() {
    let bench = Bench::new().await;
    let (runtime, handle, [ada, bob]) =
        bench.start_for(["ada", "bob"], |attempt, port, _| play(attempt, port).boxed()).await;
    run(&handle, ada, "\"hers\"").await;
    assert_eq!(run(&handle, bob, "\"\"").await, "null");
    run(&handle, bob, "\"his\"").await;
    assert_eq!(run(&handle, ada, "\"\"").await, "\"hers\"");
    runtime.drain().await;
}

/// Answers how often it ran, whatever it is given.
fn counts(
    runs: &Arc<AtomicU32>,
) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> BoxFuture<'static, AttemptReport> + use<> {
    let runs = Arc::clone(runs);
    move |attempt, _, _| {
        let number = runs.fetch_add(1, Ordering::SeqCst);
        let mut report = report(Outcome::Completed(Payload::json(number.to_string())));
        if attempt.input.bytes == "\"tainted\"" {
            report.taint = Taint::RANDOM;
        }
        std::future::ready(report).boxed()
    }
}

async fn ended(handle: &Handle, tenant: TenantId, input: &str) -> TaskView {
    let id = submit(handle, tenant, input).await;
    handle.wait(tenant, id, SOON).await.unwrap().view
}

/// The first of such tasks that was not run; the result is kept while the task before it ends.
async fn unrun(handle: &Handle, tenant: TenantId, input: &str) -> TaskView {
    loop {
        let view = ended(handle, tenant, input).await;
        if view.attempts[0].record.memoized_from.is_some() {
            return view;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_result_completes_a_task_that_is_not_run() {
    let bench = Bench::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let (runtime, handle, tenant) = bench.start(counts(&runs)).await;
    let with = |number: u32, memoize: &str| {
        let text = String::from_utf8(version("script", number, "").to_vec()).unwrap();
        Bytes::from(text.replace("name = \"a\"\n", &format!("name = \"a\"\n{memoize}\n")))
    };
    handle.install(tenant, with(2, "memoize = { ttl-s = 60 }"), None).await.unwrap();
    let first = ended(&handle, tenant, "{\"a\":1}").await;
    assert_eq!(first.attempts[0].record.memoized_from, None);
    let again = unrun(&handle, tenant, " { \"a\" : 1 } ").await;
    assert_eq!(again.summary.attempts, 1);
    let [attempt] = &again.attempts[..] else { panic!("{again:?}") };
    assert_eq!((attempt.record.meter, attempt.record.effects), (Default::default(), 0));
    let kept = attempt.record.memoized_from;
    assert!(kept >= Some(first.summary.id) && kept < Some(again.summary.id), "{kept:?}");
    assert_eq!(handle.figures().memoized, 1);
    // What is not pure is run every time.
    let before = runs.load(Ordering::SeqCst);
    for _ in 0..3 {
        ended(&handle, tenant, "\"tainted\"").await;
    }
    assert_eq!(runs.load(Ordering::SeqCst), before + 3);
    // Another component has other results.
    handle.install(tenant, with(3, "memoize = {}"), None).await.unwrap();
    let swapped = ended(&handle, tenant, "{\"a\":1}").await;
    assert_eq!(swapped.attempts[0].record.memoized_from, None);
    runtime.drain().await;
}
