//! Unique, debounced and throttled tasks: keys of kinds.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::id::TaskId;
use keiko_core::limit::{DELAY_MS_MAX, KEY_AGE_MS};
use keiko_core::once::{Once, OnceRule};
use keiko_core::pause::Paused;
use keiko_core::priority::Priority;
use keiko_core::task::{NewTask, Payload, Submit, Submitted, TaskState};

use crate::world::{Customer, NOW, World, complete, fail, key, retry, submit};

fn unique(refuse: bool) -> OnceRule {
    OnceRule::Unique { refuse }
}

fn debounce(wait_ms: u64) -> OnceRule {
    OnceRule::Debounce { wait_ms, max_ms: None }
}

fn throttle(interval_ms: u64) -> OnceRule {
    OnceRule::Throttle { interval_ms }
}

fn once(customer: &Customer, task: NewTask, key: &str, rule: OnceRule) -> Submit {
    let once = Some(Once { key: key.to_owned(), rule });
    Submit { once, ..submit(customer, vec![task]) }
}

async fn one(world: &World) -> NewTask {
    world.new_tasks(&world.ada, 1).await.remove(0)
}

/// Submits a plain task of Ada's under the key `k`, at a time; the answer and the task's own id.
async fn send(world: &World, rule: OnceRule, input: &str, now_ms: i64) -> (Submitted, TaskId) {
    let mut task = one(world).await;
    (task.created_ms, task.run_at_ms) = (now_ms, now_ms);
    task.input = Payload::json(input.to_owned());
    let id = task.id;
    let answer =
        world.tasks.enqueue(vec![once(&world.ada, task, "k", rule)], now_ms).await.unwrap().remove(0);
    (answer, id)
}

fn stored(answer: Submitted) -> (TaskId, bool) {
    match answer {
        Submitted::Accepted { first, count: 1, duplicate } => (first, duplicate),
        other => panic!("{other:?}"),
    }
}

/// Submits a task that must be a new one; its id.
async fn fresh(world: &World, rule: OnceRule, now_ms: i64) -> TaskId {
    let (answer, own) = send(world, rule, "1", now_ms).await;
    assert_eq!(stored(answer), (own, false));
    own
}

pub async fn a_unique_task_is_found_or_refuses_while_it_is_live(world: &World) {
    let holder = world.holder().await;
    let id = fresh(world, unique(false), NOW).await;
    assert_eq!(stored(send(world, unique(false), "2", NOW).await.0), (id, true));
    assert_eq!(send(world, unique(true), "3", NOW).await.0, Submitted::Taken(id));
    assert_eq!(world.live(&world.ada).await, 1);
    let leased = world.lease(holder, 5).await.remove(0);
    assert_eq!((leased.id, &leased.input.bytes[..]), (id, &b"1"[..]), "it has its own input");
    assert_eq!(stored(send(world, unique(false), "2", NOW).await.0), (id, true), "while it runs, too");
    world.settle(holder, retry(&leased, Code::Internal, NOW)).await;
    assert_eq!(send(world, unique(true), "3", NOW).await.0, Submitted::Taken(id), "and between attempts");
    let leased = world.lease(holder, 5).await.remove(0);
    world.settle(holder, complete(&leased)).await;
    let second = fresh(world, unique(true), NOW).await;
    world.tasks.cancel(world.ada.tenant, second, NOW).await.unwrap();
    let third = fresh(world, unique(false), NOW).await;
    assert_eq!(world.state(&world.ada, third).await, TaskState::Pending);
}

pub async fn a_waiting_task_takes_the_newest_input_and_time(world: &World) {
    let holder = world.holder().await;
    let (answer, id) = send(world, debounce(50), "1", NOW).await;
    assert_eq!(stored(answer), (id, false));
    let large = format!("\"{}\"", "x".repeat(50_000));
    for (at, input) in ["2", &large, "3", &large].into_iter().enumerate() {
        let (answer, _) = send(world, debounce(50), input, NOW + 10 * (at as i64 + 1)).await;
        assert_eq!(stored(answer), (id, true));
    }
    assert_eq!(world.view(&world.ada, id).await.summary.run_at_ms, NOW + 90);
    let early = world.lease_at(holder, 5, NOW + 89).await;
    assert_eq!((early.tasks.len(), early.next_run_at_ms), (0, Some(NOW + 90)));
    let leased = world.lease_at(holder, 5, NOW + 90).await.tasks.remove(0);
    assert_eq!((leased.id, leased.input.bytes == large), (id, true));
    world.settle(holder, complete(&leased)).await;

    // Its time-outs move along, its priority stays, and the first submit bounds how long it waits.
    let bounded = OnceRule::Debounce { wait_ms: 50, max_ms: Some(70) };
    let mut task = one(world).await;
    (task.budget.total_ms, task.priority) = (Some(30), Priority::new(2).unwrap());
    let id = task.id;
    world.tasks.enqueue(vec![once(&world.ada, task, "k", bounded)], NOW).await.unwrap();
    assert_eq!(stored(send(world, bounded, "2", NOW + 40).await.0), (id, true));
    assert!(world.tasks.expire(NOW + 99, 10).await.unwrap().ended.is_empty());
    world.lease_at(holder, 0, NOW + 70).await;
    let leased = world.lease_at(holder, 5, NOW + 70).await.tasks.remove(0);
    assert_eq!((leased.id, &leased.input.bytes[..], leased.ends.end_by_ms), (id, &b"2"[..], Some(NOW + 100)));
    assert_eq!(world.view(&world.ada, id).await.summary.priority.level(), 2);
}

pub async fn what_has_begun_is_not_given_another_input(world: &World) {
    let holder = world.holder().await;
    let first = fresh(world, debounce(1), NOW).await;
    let leased = world.lease_at(holder, 5, NOW + 1).await.tasks.remove(0);
    let second = fresh(world, debounce(1), NOW + 1).await;
    assert_ne!(first, second);
    assert_eq!(stored(send(world, debounce(1), "2", NOW + 1).await.0), (second, true), "one waits, one runs");
    world.settle(holder, retry(&leased, Code::Internal, NOW + 1)).await;
    // The key stands for the newest.
    world.tasks.cancel(world.ada.tenant, second, NOW).await.unwrap();
    let third = fresh(world, debounce(1), NOW + 1).await;
    let again = world.lease_at(holder, 5, NOW + 1).await.tasks.remove(0);
    assert_eq!((again.id, &again.input.bytes[..]), (first, &b"1"[..]));
    world.settle(holder, fail(&again, Code::Trap)).await;
    // What waits behind a pause is given the newest input there.
    let what = Paused { tenant: world.ada.tenant, kind: Some(world.ada.kind) };
    assert!(world.catalog.pause(what, NOW).await.unwrap());
    assert!(world.lease_at(holder, 5, NOW + 2).await.tasks.is_empty());
    assert_eq!(stored(send(world, debounce(10), "9", NOW + 2).await.0), (third, true));
    assert!(world.lease_at(holder, 5, NOW + 12).await.tasks.is_empty());
    assert!(world.catalog.resume(what).await.unwrap());
    assert_eq!(world.catalog.unpark(what, 10).await.unwrap(), 1);
    assert!(world.lease_at(holder, 5, NOW + 11).await.tasks.is_empty());
    let leased = world.lease_at(holder, 5, NOW + 12).await.tasks.remove(0);
    assert_eq!((leased.id, &leased.input.bytes[..]), (third, &b"9"[..]));
}

pub async fn throttled_tasks_keep_their_distance(world: &World) {
    let mut due = Vec::new();
    for at in [0, 0, 5, 200, 201] {
        let id = fresh(world, throttle(50), NOW + at).await;
        due.push(world.view(&world.ada, id).await.summary.run_at_ms - NOW);
    }
    assert_eq!(due, [0, 50, 100, 200, 250]);
    let holder = world.holder().await;
    assert_eq!(world.lease_at(holder, 5, NOW + 50).await.tasks.len(), 2);
    // One that ends early makes no room for the next.
    let last = fresh(world, throttle(50), NOW + 201).await;
    assert_eq!(world.view(&world.ada, last).await.summary.run_at_ms, NOW + 300);
    fresh(world, throttle(DELAY_MS_MAX - 200), NOW + 300).await;
    let late = send(world, throttle(DELAY_MS_MAX), "1", NOW + 300).await.0;
    assert!(matches!(late, Submitted::TooLate { ahead_ms } if ahead_ms > DELAY_MS_MAX), "{late:?}");
}

pub async fn one_key_submitted_at_once_makes_one_task(world: &World) {
    for rule in [unique(false), debounce(5)] {
        let key = format!("{rule:?}");
        let tasks = world.new_tasks(&world.ada, 40).await;
        let submits: Vec<Submit> = tasks.into_iter().map(|task| once(&world.ada, task, &key, rule)).collect();
        // In one call, and in many at once.
        let (first, rest) = submits.split_at(20);
        let mut ids = HashSet::new();
        for answer in world.tasks.enqueue(first.to_vec(), NOW).await.unwrap() {
            ids.insert(stored(answer).0);
        }
        for answer in join_all(rest.iter().map(|one| world.tasks.enqueue(vec![one.clone()], NOW))).await {
            ids.insert(stored(answer.unwrap()[0]).0);
        }
        assert_eq!(ids.len(), 1, "{rule:?}");
    }
    assert_eq!(world.live(&world.ada).await, 2);
    let tasks = world.new_tasks(&world.ada, 3).await;
    let submits = tasks.iter().map(|task| once(&world.ada, task.clone(), "t", throttle(7))).collect();
    world.tasks.enqueue(submits, NOW).await.unwrap();
    for (at, task) in tasks.iter().enumerate() {
        let due = world.view(&world.ada, task.id).await.summary.run_at_ms;
        assert_eq!(due, NOW + 7 * at as i64);
    }
    // In one call the newest input counts, too.
    let mut tasks = world.new_tasks(&world.ada, 2).await;
    tasks[1].input = Payload::json(Bytes::from_static(b"\"newest\""));
    let id = tasks[0].id;
    let submits = tasks.into_iter().map(|task| once(&world.ada, task, "d", debounce(5))).collect();
    world.tasks.enqueue(submits, NOW).await.unwrap();
    let holder = world.holder().await;
    let leased = world.lease_at(holder, 10, NOW + 5).await.tasks;
    let newest = leased.iter().find(|task| task.id == id).unwrap();
    assert_eq!(newest.input.bytes, "\"newest\"");
}

pub async fn a_key_of_a_kind_is_its_tenants_and_kinds(world: &World) {
    let id = fresh(world, unique(true), NOW).await;
    let mut other = one(world).await;
    other.kind = world.ada.other_kind;
    let answer = world.try_submit(once(&world.ada, other, "k", unique(true))).await;
    assert!(matches!(answer, Submitted::Accepted { duplicate: false, .. }), "{answer:?}");
    let bobs = world.new_tasks(&world.bob, 1).await.remove(0);
    let answer = world.try_submit(once(&world.bob, bobs, "k", unique(true))).await;
    assert!(matches!(answer, Submitted::Accepted { duplicate: false, .. }), "{answer:?}");
    // An idempotency key remembers what its submit found.
    let mut found = once(&world.ada, one(world).await, "k", unique(false));
    found.key = key("same", 1);
    assert_eq!(stored(world.try_submit(found).await), (id, true));
    world.tasks.cancel(world.ada.tenant, id, NOW).await.unwrap();
    let mut again = once(&world.ada, one(world).await, "k", unique(false));
    again.key = key("same", 1);
    assert_eq!(stored(world.try_submit(again).await), (id, true), "though it has ended since");
}

pub async fn a_refused_submit_takes_no_key_of_a_kind(world: &World) {
    world.submit_plain(&world.ada, 1).await;
    let refused = Submit { queue_max: 1, ..once(&world.ada, one(world).await, "k", unique(true)) };
    assert_eq!(world.try_submit(refused).await, Submitted::QueueFull { live: 1 });
    let id = fresh(world, unique(true), NOW).await;
    // What finds a task needs no room.
    let found = Submit { queue_max: 1, ..once(&world.ada, one(world).await, "k", unique(false)) };
    assert_eq!(stored(world.try_submit(found).await), (id, true));
}

pub async fn keys_of_kinds_are_forgotten_when_their_task_has_ended(world: &World) {
    let holder = world.holder().await;
    let id = fresh(world, unique(true), NOW).await;
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS - 1, 10).await.unwrap(), 0);
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS, 10).await.unwrap(), 0, "it is live");
    let later = NOW + KEY_AGE_MS;
    assert_eq!(send(world, unique(true), "1", later).await.0, Submitted::Taken(id));
    let leased = world.lease_at(holder, 1, later).await.tasks.remove(0);
    world.settle(holder, complete(&leased)).await;
    assert_eq!(world.tasks.prune(later + KEY_AGE_MS, 10).await.unwrap(), 1);
    assert_eq!(world.tasks.prune(later + KEY_AGE_MS, 10).await.unwrap(), 0);
}
