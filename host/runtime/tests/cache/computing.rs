//! One computes while the others wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use keiko_core::cache::{CacheKey, Lifetime, Why, Wish};
use keiko_runtime::cache::{
    Cache, ComputeError, Computed, Event, Fenced, FillGuard, Filling, Found, Patience, Stored,
};
use keiko_store::memory::LevelFault;
use tokio::sync::{Notify, Semaphore};

use crate::world::{World, key, lasting, value};

/// Readers of one cold key on each host.
const READERS: usize = 500;

fn patience() -> Patience {
    Patience {
        soft: Duration::from_millis(1),
        hard: Duration::from_secs(20),
        throttle: Duration::from_secs(5),
    }
}

fn found(text: &'static str) -> Computed {
    Computed { value: Some(Bytes::from_static(text.as_bytes())), wish: None }
}

/// Lets somebody come as far as it gets while nobody else gives up what it waits for.
async fn waits<T>(future: &mut (impl Future<Output = T> + Unpin)) {
    for _ in 0..32 {
        assert!(futures::poll!(&mut *future).is_pending());
        tokio::task::yield_now().await;
    }
}

/// Asks for a value that is computed as `compute` says.
async fn ask(
    cache: &Cache,
    key: &CacheKey,
    wish: &Wish,
    compute: Result<&'static str, &'static str>,
) -> Result<Option<Bytes>, ComputeError<&'static str>> {
    let compute = move || async move { compute.map(found) }.boxed();
    cache.get_or_compute(key, wish, patience(), compute).await
}

async fn guard(cache: &Cache, key: &CacheKey) -> FillGuard {
    match cache.fill(key).await {
        Filling::Fill(guard) => guard,
        Filling::Hit(value) => panic!("there is a value of {} bytes", value.len()),
    }
}

async fn run_once(world: &World) {
    let key = key(&world.ada, "cold");
    let runs = Arc::new(AtomicU32::new(0));
    let reader = |host: usize| {
        let (cache, key, runs) = (world.cache(host).clone(), key.clone(), Arc::clone(&runs));
        async move {
            let compute = move || {
                async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    // Long enough for everybody to come.
                    for _ in 0..1_000 {
                        tokio::task::yield_now().await;
                    }
                    Ok::<_, &'static str>(found("computed"))
                }
                .boxed()
            };
            cache.get_or_compute(&key, &lasting(60_000), patience(), compute).await
        }
    };
    let readers: Vec<_> = (0..READERS).flat_map(|_| [reader(0), reader(1)]).collect();
    for answer in join_all(readers).await {
        assert_eq!(answer, Ok(Some(Bytes::from_static(b"computed"))));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_on_two_hosts_compute_once() {
    run_once(&World::new(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_on_two_hosts_compute_once_without_redis() {
    let world = World::new(2);
    for host in &world.hosts {
        host.redis.set_fault(LevelFault::Down);
    }
    run_once(&world).await;
}

#[tokio::test]
async fn a_stale_value_is_served_when_a_new_one_cannot_be_had_and_tried_again_later() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let wish = Wish { lifetime: Lifetime::of_ms(1_000), stale_ms: 60_000, ..Wish::default() };
    assert_eq!(ask(world.cache(0), &key, &wish, Err("away")).await, Err(ComputeError::Failed("away")));
    assert_eq!(ask(world.cache(0), &key, &wish, Ok("old")).await, Ok(Some("old".into())));
    world.pass(1_000);
    assert_eq!(ask(world.cache(0), &key, &wish, Err("away")).await, Ok(Some("old".into())));
    // Not at once again: nobody hammers what is away.
    assert_eq!(ask(world.cache(0), &key, &wish, Ok("new")).await, Ok(Some("old".into())));
    world.pass(5_000);
    assert_eq!(ask(world.cache(0), &key, &wish, Ok("new")).await, Ok(Some("new".into())));
    world.pass(61_000);
    assert_eq!(ask(world.cache(0), &key, &wish, Err("away")).await, Err(ComputeError::Failed("away")));
}

#[tokio::test]
async fn a_computation_goes_on_when_its_caller_does_not_wait() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let wish = Wish { lifetime: Lifetime::of_ms(1_000), stale_ms: 60_000, ..Wish::default() };
    ask(world.cache(0), &key, &wish, Ok("old")).await.unwrap();
    world.pass(1_000);
    let (go, done) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let compute = {
        let (go, done) = (Arc::clone(&go), Arc::clone(&done));
        move || {
            async move {
                let _go = go.acquire().await;
                done.notify_one();
                Ok::<_, &'static str>(found("new"))
            }
            .boxed()
        }
    };
    let soft = world.cache(0).get_or_compute(&key, &wish, patience(), compute.clone()).await;
    assert_eq!(soft, Ok(Some("old".into())), "the stale one after the soft time");
    let hard = Patience { hard: Duration::from_millis(1), ..patience() };
    let other = crate::world::key(&world.ada, "other");
    let late = world.cache(0).get_or_compute(&other, &wish, hard, compute.clone()).await;
    assert_eq!(late, Err(ComputeError::Late));
    go.add_permits(2);
    for key in [&key, &other] {
        while world.cache(0).get(key).await != value("new") {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_worth_computing_again_is_while_it_is_served() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let wish = Wish { lifetime: Lifetime::of_ms(10_000), eager: Some(0.5), ..Wish::default() };
    ask(world.cache(0), &key, &wish, Ok("old")).await.unwrap();
    assert_eq!(ask(world.cache(0), &key, &wish, Ok("new")).await, Ok(Some("old".into())));
    world.pass(5_000);
    assert_eq!(ask(world.cache(0), &key, &wish, Ok("new")).await, Ok(Some("old".into())), "nobody waits");
    while world.cache(0).get(&key).await != value("new") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_value_is_kept_only_when_asked_to() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let none = |wish: Option<Wish>| {
        move || async move { Ok::<_, &'static str>(Computed { value: None, wish }) }.boxed()
    };
    let plain = lasting(60_000);
    let ask = |wish| world.cache(0).get_or_compute(&key, &plain, patience(), none(wish));
    assert_eq!(ask(None).await, Ok(None));
    assert_eq!(world.cache(0).get(&key).await, Found::Nothing(Why::Nothing));
    let asked = Wish { absent: Lifetime::of_ms(1_000), ..plain.clone() };
    assert_eq!(ask(Some(asked)).await, Ok(None));
    assert_eq!(world.cache(0).get(&key).await, Found::Absent);
    // For its own time, not for that of a value.
    world.pass(1_000);
    assert_eq!(world.cache(0).get(&key).await, Found::Nothing(Why::Expired));
}

#[tokio::test]
async fn a_fill_that_is_dropped_goes_to_the_next_who_waits() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    let first = guard(world.cache(0), &key).await;
    let (mut second, mut third) = (Box::pin(world.cache(0).fill(&key)), Box::pin(world.cache(0).fill(&key)));
    waits(&mut second).await;
    waits(&mut third).await;
    drop(first);
    let Filling::Fill(second) = second.await else { panic!("nobody has computed it") };
    assert_eq!(second.complete("v".into(), &lasting(60_000)).await, Ok(Stored::Kept));
    assert!(matches!(third.await, Filling::Hit(found) if found == "v"));
    assert!(matches!(world.cache(1).fill(&key).await, Filling::Hit(found) if found == "v"));
    assert_eq!(world.cache(0).figures().event(Event::Waited), 2);
}

#[tokio::test]
async fn whoever_stops_waiting_takes_no_turn_with_it() {
    let world = World::new(1);
    let key = key(&world.ada, "k");
    let first = guard(world.cache(0), &key).await;
    for _ in 0..3 {
        let mut gone = Box::pin(world.cache(0).fill(&key));
        waits(&mut gone).await;
    }
    let mut last = Box::pin(world.cache(0).fill(&key));
    waits(&mut last).await;
    drop(first);
    assert!(matches!(last.await, Filling::Fill(_)));
}

#[tokio::test]
async fn another_host_gets_a_fill_when_its_holder_gives_up_or_its_lease_ends() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    let ours = guard(world.cache(0), &key).await;
    let mut theirs = Box::pin(world.cache(1).fill(&key));
    waits(&mut theirs).await;
    drop(ours);
    let Filling::Fill(theirs) = theirs.await else { panic!("nobody has computed it") };
    // It is stopped for longer than its lease, and ours goes on.
    world.pass(60_000);
    let ours = guard(world.cache(0), &key).await;
    assert_eq!(theirs.complete("late".into(), &lasting(60_000)).await, Err(Fenced));
    assert_eq!(world.cache(0).get(&key).await, Found::Nothing(Why::Nothing));
    assert_eq!(ours.complete("ours".into(), &lasting(60_000)).await, Ok(Stored::Kept));
    assert_eq!(world.cache(1).get(&key).await, value("ours"));
    assert_eq!(world.cache(1).figures().event(Event::Fenced), 1);
}

#[tokio::test]
async fn what_was_removed_during_a_computation_is_not_brought_back_by_it() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    let fill = guard(world.cache(0), &key).await;
    world.pass(1);
    world.cache(1).remove(&key).await;
    world.deliver();
    assert_eq!(fill.complete("old".into(), &lasting(60_000)).await, Ok(Stored::Kept));
    for host in 0..2 {
        assert_eq!(world.cache(host).get(&key).await, Found::Nothing(Why::Removed), "host {host}");
    }
}

#[tokio::test]
async fn without_any_level_that_hosts_share_each_computes_for_itself() {
    let world = World::new(2);
    let key = key(&world.ada, "k");
    for host in &world.hosts {
        host.redis.set_fault(LevelFault::Down);
        host.database.set_fault(LevelFault::Down);
    }
    let (ours, theirs) = (guard(world.cache(0), &key).await, guard(world.cache(1), &key).await);
    assert_eq!(ours.complete("ours".into(), &lasting(60_000)).await, Ok(Stored::Kept));
    assert_eq!(theirs.complete("theirs".into(), &lasting(60_000)).await, Ok(Stored::Kept));
    assert_eq!(world.cache(0).get(&key).await, value("ours"));
}
