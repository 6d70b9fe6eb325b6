//! Batches in virtual time: adds that wait for room in memory, and an ordered key on two hosts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, poll};
use keiko_core::batch::{ItemOutcome, ItemWish};
use keiko_core::code::Code;
use keiko_core::limit::{LimitFact, SetBy};
use keiko_core::policy::TenantPolicy;
use keiko_core::port::BatchOutcome;
use keiko_core::task::Payload;
use keiko_core::{ItemId, TenantId};
use keiko_runtime::{AddedItems, Error, Handle, Options, Runtime};
use keiko_store::memory::MemoryStore;
use parking_lot::Mutex;
use tokio::time::{Instant, advance, timeout};

use crate::support::{Given, Virtual, start_virtual_with, worked};

/// When virtual time begins.
const BEGAN_MS: i64 = 1_800_000_000_000;
/// Room for four small items, each of which takes a KiB.
const ROOM: u64 = 4 * 1024;
/// How long an add waits for room.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What is in memory only holds its room; what is a row gives it back as soon as it is one.
const PROCESSORS: &str = "[plugin]\nname = \"works\"\nversion = \"1\"\n\
    [[processor]]\nname = \"beats\"\nage-ms = 3600000\nvolatile = true\n\
    [[processor]]\nname = \"films\"\nage-ms = 3600000\n\
    [[processor]]\nname = \"steps\"\nitems = 3\nage-ms = 10\nordered = true\n";

/// Starts a host that has the processors.
async fn start(store: MemoryStore, clock: Arc<Virtual>, given: Given) -> (Runtime, Handle, TenantId) {
    let (runtime, handle) = start_virtual_with(store, clock, given).await;
    let tenant = handle.tenant(&"default".parse().expect("a name")).expect("the tenant");
    handle.install(tenant, Bytes::from(PROCESSORS), None).await.expect("the processors install");
    (runtime, handle, tenant)
}

async fn add(handle: &Handle, tenant: TenantId, processor: &str, count: usize) -> Result<AddedItems, Error> {
    let item = ItemWish { key: String::new(), payload: Payload::json("1") };
    handle.add_items(tenant, processor, vec![item; count], None).await
}

async fn waits(handle: &Handle, tenant: TenantId, processor: &str) -> u64 {
    handle.processor(tenant, processor).await.expect("the processor is there").counts.items
}

/// Adds at the limit and above it, where the limit is the tenant's or the host's.
async fn check_room(given: Given, set_by: SetBy) {
    let clock = Arc::new(Virtual::from(BEGAN_MS));
    let (runtime, handle, tenant) = start(MemoryStore::new(), clock, given).await;
    assert_eq!(add(&handle, tenant, "beats", 3).await.expect("there is room").dropped, 0);
    let began = Instant::now();
    add(&handle, tenant, "films", 1).await.expect("the last KiB is given out");
    assert_eq!(add(&handle, tenant, "beats", 1).await.expect("it was given back").dropped, 0);
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits who finds room");

    let mut late = std::pin::pin!(add(&handle, tenant, "films", 1));
    assert!(poll!(late.as_mut()).is_pending());
    // A timer counts in whole milliseconds, from the next one on.
    advance(WAIT_MAX - Duration::from_millis(1)).await;
    assert!(poll!(late.as_mut()).is_pending(), "it waits for all of its time");
    let refused = late.await.expect_err("nobody gave room back");
    assert!(began.elapsed() <= WAIT_MAX + Duration::from_millis(1), "{:?}", began.elapsed());
    let expected = LimitFact { name: "memory_bytes".to_owned(), limit: ROOM, asked: Some(129), set_by };
    assert_eq!((refused.code, refused.limit), (Code::QueueFull, Some(expected)));
    assert_eq!(waits(&handle, tenant, "films").await, 1, "nothing of it is stored");

    // In the last moment is in time.
    let mut early = std::pin::pin!(add(&handle, tenant, "films", 1));
    assert!(poll!(early.as_mut()).is_pending());
    advance(WAIT_MAX - Duration::from_millis(1)).await;
    assert!(poll!(early.as_mut()).is_pending());
    handle.flush(tenant, "beats").await.expect("what holds the room leaves");
    early.await.expect("there is room now");
    assert_eq!(waits(&handle, tenant, "films").await, 2);
    runtime.drain().await;
}

/// A policy with little room.
fn narrow() -> TenantPolicy {
    let mut policy = TenantPolicy::default();
    policy.batches.memory_bytes_max = ROOM;
    policy
}

#[tokio::test(start_paused = true)]
async fn an_add_is_refused_that_finds_no_room_for_five_seconds_and_told_whose_limit_it_is() {
    check_room(Given { policy: narrow(), ..Given::default() }, SetBy::Tenant).await;
    let options = Options { batch_memory_bytes: ROOM, ..Options::default() };
    check_room(Given { options, ..Given::default() }, SetBy::Host).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_for_want_of_room_leaves_nothing_behind() {
    for policy in [narrow(), TenantPolicy::default()] {
        let options = Options { batch_memory_bytes: ROOM, ..Options::default() };
        let given = Given { options, policy, ..Given::default() };
        let clock = Arc::new(Virtual::from(BEGAN_MS));
        let (runtime, handle, tenant) = start(MemoryStore::new(), clock, given).await;
        add(&handle, tenant, "beats", 4).await.expect("there is room");
        let refused = join_all((0..64).map(|_| add(&handle, tenant, "films", 1))).await;
        let is_full =
            |one: &Result<AddedItems, Error>| one.as_ref().is_err_and(|e| e.code == Code::QueueFull);
        assert!(refused.iter().all(is_full), "{refused:?}");
        handle.flush(tenant, "beats").await.expect("what holds the room leaves");
        let added = join_all((0..64).map(|_| add(&handle, tenant, "films", 1))).await;
        assert!(added.iter().all(Result::is_ok), "{added:?}");
        assert_eq!(waits(&handle, tenant, "films").await, 64);
        runtime.drain().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_add_that_waits_for_room_while_the_host_stops_is_answered_and_stores_nothing() {
    let clock = Arc::new(Virtual::from(BEGAN_MS));
    let given = Given { policy: narrow(), ..Given::default() };
    let (runtime, handle, tenant) = start(MemoryStore::new(), clock, given).await;
    add(&handle, tenant, "beats", 4).await.expect("there is room");
    let mut late = std::pin::pin!(add(&handle, tenant, "films", 1));
    assert!(poll!(late.as_mut()).is_pending());
    let began = Instant::now();
    // The stop flushes what holds the room.
    let (answer, ()) = tokio::join!(late, async {
        runtime.drain().await;
    });
    assert_eq!(answer.expect_err("the host stops").code, Code::StorageBusy);
    assert!(began.elapsed() <= WAIT_MAX, "{:?}", began.elapsed());
    assert_eq!(waits(&handle, tenant, "films").await, 0);
}

/// A run of a batch: where, of which key, which items, from when to when.
type Run = (usize, String, Vec<ItemId>, Instant, Instant);

#[tokio::test(start_paused = true)]
async fn an_ordered_key_is_worked_in_order_by_one_of_two_hosts_at_a_time() {
    let runs: Arc<Mutex<Vec<Run>>> = Arc::default();
    let given = |host: usize| {
        let runs = Arc::clone(&runs);
        let batch = move |_, batch: keiko_core::port::BatchRun, _, _| {
            let runs = Arc::clone(&runs);
            let work = async move {
                let began = Instant::now();
                // Longer than items wait, so that others are due meanwhile.
                let _ = timeout(Duration::from_millis(70), std::future::pending::<()>()).await;
                let items = batch.items.iter().map(|item| item.id).collect();
                runs.lock().push((host, batch.key, items, began, Instant::now()));
                worked(BatchOutcome::Answered(vec![ItemOutcome::Done; batch.items.len()]))
            };
            Box::pin(work) as futures::future::BoxFuture<'static, _>
        };
        Given { batch: Arc::new(batch), ..Given::default() }
    };
    let (store, clock) = (MemoryStore::new(), Arc::new(Virtual::from(BEGAN_MS)));
    let other = store.another_host();
    let (first, one, tenant) = start(store, Arc::clone(&clock), given(0)).await;
    let (second, two, _) = start(other, clock, given(1)).await;
    let mut added: Vec<(usize, &str, ItemId)> = Vec::new();
    for n in 0..40 {
        let (host, handle) = if n % 2 == 0 { (0, &one) } else { (1, &two) };
        for key in ["a", "b"] {
            let item = ItemWish { key: key.to_owned(), payload: Payload::json("1") };
            let ids = handle.add_items(tenant, "steps", vec![item], None).await.expect("added").ids();
            added.extend(ids.map(|id| (host, key, id)));
        }
        // The second host's item comes while the first one's batch is worked, and the next one when nothing is.
        let pause_ms = if n % 2 == 0 { 13 } else { 170 };
        let _ = timeout(Duration::from_millis(pause_ms), std::future::pending::<()>()).await;
    }
    while waits(&one, tenant, "steps").await > 0 {
        let _ = timeout(Duration::from_millis(100), std::future::pending::<()>()).await;
    }
    let runs = runs.lock().clone();
    for key in ["a", "b"] {
        let mut of_key: Vec<&Run> = runs.iter().filter(|run| run.1 == key).collect();
        of_key.sort_by_key(|run| run.3);
        let apart = of_key.windows(2).all(|pair| pair[0].4 <= pair[1].3);
        assert!(apart, "one batch of a key at a time: {of_key:?}");
        let worked: Vec<ItemId> = of_key.iter().flat_map(|run| run.2.clone()).collect();
        for host in [0, 1] {
            let sent: Vec<ItemId> =
                added.iter().filter(|one| (one.0, one.1) == (host, key)).map(|one| one.2).collect();
            let came: Vec<ItemId> = worked.iter().copied().filter(|id| sent.contains(id)).collect();
            assert_eq!(came, sent, "of each host in the order in which it took them");
        }
    }
    let hosts: BTreeSet<usize> = runs.iter().map(|run| run.0).collect();
    assert_eq!(hosts, BTreeSet::from([0, 1]), "both have worked");
    second.drain().await;
    first.drain().await;
}

/// Lets time pass.
async fn pass(time: Duration) {
    let _ = timeout(time, std::future::pending::<()>()).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_a_dead_host_waits_for_room_and_holds_nobody_up() {
    let (store, clock) = (MemoryStore::new(), Arc::new(Virtual::from(BEGAN_MS)));
    let (its_store, mine) =
        (store.another_host(), Options { batch_memory_bytes: ROOM, ..Options::default() });
    let given = Given { options: mine, ..Given::default() };
    let (runtime, handle, tenant) = start(store, Arc::clone(&clock), given).await;
    let hangs = Given { batch: Arc::new(|_, _, _, _| std::future::pending().boxed()), ..Given::default() };
    let (dies, its, _) = start(its_store.clone(), clock, hangs).await;
    add(&handle, tenant, "beats", 4).await.expect("all the room there is");
    add(&its, tenant, "steps", 1).await.expect("the other has room");
    while its.batch_figures().runs == 0 {
        pass(Duration::from_millis(10)).await;
    }
    its_store.close();
    drop((dies, its));

    // Its lease ends, and somebody looks.
    pass(Duration::from_secs(400)).await;
    assert_eq!((handle.batch_figures().done, waits(&handle, tenant, "steps").await), (0, 1));
    let flushed = timeout(Duration::from_secs(1), handle.flush(tenant, "beats")).await;
    assert_eq!(flushed.expect("nobody is held up").expect("it is flushed"), 1);
    pass(Duration::from_secs(5)).await;
    assert_eq!((handle.batch_figures().done, waits(&handle, tenant, "steps").await), (5, 0));
    runtime.drain().await;
}
