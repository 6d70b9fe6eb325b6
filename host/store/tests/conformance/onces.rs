//! Unique, debounced and throttled tasks: keys of kinds.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::effect::ChildOptions;
use keiko_core::id::TaskId;
use keiko_core::limit::{DELAY_MS_MAX, KEY_AGE_MS};
use keiko_core::once::{Once, OnceRule};
use keiko_core::pause::Paused;
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::{AGEING_MS, Priority};
use keiko_core::task::{Amendment, NewTask, Payload, RetryAnswer, Settled, Submit, Submitted, TaskState};
use keiko_core::time_out::Ends;
use keiko_core::tree::{Charge, Spending};

use crate::world::{
    Customer, NOW, NewChild, ROOMY, World, child, complete, fail, key, retry, submit, with_children,
};

fn unique(refuse: bool) -> OnceRule {
    OnceRule::Unique { refuse }
}

fn debounce(wait_ms: u64) -> OnceRule {
    OnceRule::Debounce { wait_ms, max_ms: None }
}

fn throttle(interval_ms: u64) -> OnceRule {
    OnceRule::Throttle { interval_ms }
}

fn asks(task: NewTask, key: &str, rule: OnceRule) -> NewTask {
    NewTask { once: Some(Once { key: key.to_owned(), rule }), ..task }
}

fn once(customer: &Customer, task: NewTask, key: &str, rule: OnceRule) -> Submit {
    submit(customer, vec![asks(task, key, rule)])
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

fn taken(task: TaskId) -> Submitted {
    Submitted::Taken { task, place: 0 }
}

fn stored(answer: Submitted) -> (TaskId, bool) {
    match answer {
        Submitted::Accepted { first, count: 1, duplicate, .. } => (first, duplicate),
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
    assert_eq!(send(world, unique(true), "3", NOW).await.0, taken(id));
    assert_eq!(world.live(&world.ada).await, 1);
    let leased = world.lease(holder, 5).await.remove(0);
    assert_eq!((leased.id, &leased.input.bytes[..]), (id, &b"1"[..]), "it has its own input");
    assert_eq!(stored(send(world, unique(false), "2", NOW).await.0), (id, true), "while it runs, too");
    world.settle(holder, retry(&leased, Code::Internal, NOW)).await;
    assert_eq!(send(world, unique(true), "3", NOW).await.0, taken(id), "and between attempts");
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
    assert!(matches!(late, Submitted::TooLate { ahead_ms, place: 0 } if ahead_ms > DELAY_MS_MAX), "{late:?}");
}

pub async fn the_distance_from_a_task_outlives_it(world: &World) {
    let (holder, week_ms) = (world.holder().await, 7 * KEY_AGE_MS);
    fresh(world, throttle(week_ms as u64), NOW).await;
    let leased = world.lease(holder, 1).await.remove(0);
    world.settle(holder, complete(&leased)).await;
    assert_eq!(world.tasks.prune(NOW + week_ms - 1, 10).await.unwrap(), 0);
    let id = fresh(world, throttle(week_ms as u64), NOW + week_ms - 1).await;
    assert_eq!(world.view(&world.ada, id).await.summary.run_at_ms, NOW + week_ms);
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
            ids.insert(stored(answer.unwrap().remove(0)).0);
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
    assert_eq!(send(world, unique(true), "1", later).await.0, taken(id));
    let leased = world.lease_at(holder, 1, later).await.tasks.remove(0);
    world.settle(holder, complete(&leased)).await;
    assert_eq!(world.tasks.prune(later + KEY_AGE_MS, 10).await.unwrap(), 1);
    assert_eq!(world.tasks.prune(later + KEY_AGE_MS, 10).await.unwrap(), 0);
}

async fn retry_by_hand(world: &World, id: TaskId, queue_max: u64) -> RetryAnswer {
    world.tasks.retry(world.ada.tenant, id, Amendment::default(), queue_max, NOW).await.unwrap()
}

pub async fn a_retry_by_hand_leaves_a_unique_task_alone(world: &World) {
    let holder = world.holder().await;
    let fails = async |id: TaskId| {
        let leased = world.lease(holder, 5).await.remove(0);
        assert_eq!(leased.id, id);
        world.settle(holder, fail(&leased, Code::Trap)).await;
    };
    let again = async |id, queue_max| retry_by_hand(world, id, queue_max).await;
    let first = fresh(world, unique(false), NOW).await;
    fails(first).await;
    let second = fresh(world, unique(true), NOW).await;
    for queue_max in [1, ROOMY] {
        assert_eq!(again(first, queue_max).await, RetryAnswer::Taken(second), "whatever room there is");
    }
    assert_eq!(world.state(&world.ada, first).await, TaskState::Failed);
    assert_eq!(world.live(&world.ada).await, 1);
    world.tasks.cancel(world.ada.tenant, second, NOW).await.unwrap();
    assert_eq!(again(first, 0).await, RetryAnswer::QueueFull { live: 0 });
    // The key stands for it again, however often it was tried again, and however the others ended.
    for _ in 0..2 {
        assert_eq!(again(first, ROOMY).await, RetryAnswer::Retried);
        assert_eq!(stored(send(world, unique(false), "2", NOW).await.0), (first, true));
        assert_eq!(send(world, unique(true), "3", NOW).await.0, taken(first));
        assert_eq!(again(second, ROOMY).await, RetryAnswer::Taken(first));
        fails(first).await;
    }
    assert_eq!(again(second, ROOMY).await, RetryAnswer::Retried);
    assert_eq!(again(first, ROOMY).await, RetryAnswer::Taken(second));
    fails(second).await;
    // What the key stood for has been forgotten, and it keeps its own.
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS, 10).await.unwrap(), 1);
    assert_eq!(again(first, ROOMY).await, RetryAnswer::Retried);
    assert_eq!(send(world, unique(true), "3", NOW).await.0, taken(first));
    assert_eq!(world.live(&world.ada).await, 1);
}

pub async fn of_a_unique_key_one_is_tried_again_by_hand(world: &World) {
    let mut ids = Vec::new();
    for _ in 0..8 {
        let id = fresh(world, unique(false), NOW).await;
        world.tasks.cancel(world.ada.tenant, id, NOW).await.unwrap();
        ids.push(id);
    }
    let answers = join_all(ids.iter().map(|id| retry_by_hand(world, *id, ROOMY))).await;
    let retried = answers.iter().position(|answer| *answer == RetryAnswer::Retried).expect("one of them");
    for (at, answer) in answers.iter().enumerate().filter(|(at, _)| *at != retried) {
        assert_eq!(*answer, RetryAnswer::Taken(ids[retried]), "{at}");
    }
    assert_eq!(world.live(&world.ada).await, 1);
    assert_eq!(stored(send(world, unique(false), "2", NOW).await.0), (ids[retried], true));
}

pub async fn a_retry_by_hand_asks_nothing_of_other_keys_and_rules(world: &World) {
    let first = fresh(world, unique(true), NOW).await;
    world.tasks.cancel(world.ada.tenant, first, NOW).await.unwrap();
    let mut other_kind = one(world).await;
    other_kind.kind = world.ada.other_kind;
    let bobs = world.new_tasks(&world.bob, 1).await.remove(0);
    for other in [
        once(&world.ada, one(world).await, "other", unique(true)),
        once(&world.ada, other_kind, "k", unique(true)),
        once(&world.bob, bobs, "k", unique(true)),
    ] {
        assert!(!stored(world.try_submit(other).await).1);
    }
    assert_eq!(retry_by_hand(world, first, ROOMY).await, RetryAnswer::Retried);
    world.tasks.cancel(world.ada.tenant, first, NOW).await.unwrap();

    for rule in [debounce(1), throttle(1)] {
        let old = fresh(world, rule, NOW).await;
        world.tasks.cancel(world.ada.tenant, old, NOW).await.unwrap();
        let new = fresh(world, rule, NOW).await;
        assert_eq!(retry_by_hand(world, old, ROOMY).await, RetryAnswer::Retried, "{rule:?}");
        // The key stands for what was submitted last.
        assert_eq!(send(world, unique(true), "2", NOW).await.0, taken(new), "{rule:?}");
        world.tasks.cancel(world.ada.tenant, new, NOW).await.unwrap();
    }
}

pub async fn tasks_of_one_submit_find_others_and_are_refused_together(world: &World) {
    let live = fresh(world, unique(false), NOW).await;
    let all = |tasks: &[NewTask]| {
        let mut tasks = tasks.to_vec();
        tasks[1] = asks(tasks[1].clone(), "k", unique(false));
        tasks[2] = asks(tasks[2].clone(), "d", debounce(5));
        tasks[3] = NewTask { input: Payload::json("3"), ..asks(tasks[3].clone(), "d", debounce(7)) };
        tasks[4] = asks(tasks[4].clone(), "u", unique(true));
        Submit { key: key("many", 1), ..submit(&world.ada, tasks) }
    };
    let tasks = world.new_tasks(&world.ada, 5).await;
    let ids = vec![tasks[0].id, live, tasks[2].id, tasks[2].id, tasks[4].id];
    // What is there already needs no room, and one task too many takes all along, their keys too.
    let tight = |queue_max| Submit { queue_max, ..all(&tasks) };
    assert_eq!(world.try_submit(tight(3)).await, Submitted::QueueFull { live: 1 });
    assert_eq!(world.try_submit(tight(4)).await, Submitted::Mixed { ids: ids.clone(), stored: 3 });
    assert_eq!(world.live(&world.ada).await, 4);
    assert_eq!(world.view(&world.ada, tasks[2].id).await.summary.run_at_ms, NOW + 7);
    for missing in [1, 3] {
        assert_eq!(world.records.task(world.ada.tenant, tasks[missing].id).await.unwrap(), None);
    }
    let again = world.new_tasks(&world.ada, 5).await;
    let known = Submitted::Mixed { ids: ids.clone(), stored: 0 };
    assert_eq!(world.try_submit(all(&again)).await, known, "the same by its idempotency key");

    let mut refused = Submit { key: None, ..all(&again) };
    refused.tasks[1] = asks(refused.tasks[1].clone(), "new", unique(false));
    let answer = world.try_submit(refused).await;
    assert_eq!(answer, Submitted::Taken { task: ids[4], place: 4 });
    assert_eq!(world.live(&world.ada).await, 4, "all or none");
    let one = world.new_tasks(&world.ada, 1).await.remove(0);
    let answer = world.try_submit(once(&world.ada, one, "new", unique(true))).await;
    assert!(!stored(answer).1, "what was refused took no key");

    let holder = world.holder().await;
    let leased = world.lease_at(holder, 10, NOW + 7).await.tasks;
    let newest = leased.iter().find(|task| task.id == ids[2]).unwrap();
    assert_eq!(newest.input.bytes, "3");
}

/// A child of Ada's that asks for so much.
fn asking(world: &World, id: TaskId, input: &'static str, options: ChildOptions) -> NewChild {
    let mut child = child(&world.ada, id, None, input);
    child.wish.options = options;
    child
}

fn under(key: &str, rule: OnceRule) -> ChildOptions {
    ChildOptions { once: Some(Once { key: key.to_owned(), rule }), ..ChildOptions::default() }
}

pub async fn a_child_gets_what_it_asks_for_beside_what_it_inherits(world: &World) {
    let holder = world.holder().await;
    let mut task = one(world).await;
    task.priority = Priority::new(1).unwrap();
    (task.budget.fuel, task.budget.attempts, task.budget.total_ms) = (Some(7), Some(2), Some(1_000));
    world.submit(&world.ada, vec![task]).await;
    let parent = world.lease(holder, 1).await.remove(0);
    let ids = world.tasks.reserve_ids(3, NOW).await.unwrap().first.0;
    let mut options = ChildOptions {
        priority: Priority::new(3),
        run_at_ms: Some(NOW + 20),
        slot_key: Some("s".to_owned()),
        ..ChildOptions::default()
    };
    (options.budget.fuel, options.budget.queued_ms, options.budget.total_ms) = (Some(9), Some(30), Some(50));
    options.budget.retry.factor = Some(3);
    let asked = options.budget;
    let past = ChildOptions { run_at_ms: Some(NOW - 20), ..ChildOptions::default() };
    let children = vec![
        asking(world, TaskId(ids), "1", options),
        asking(world, TaskId(ids + 1), "2", ChildOptions::default()),
        asking(world, TaskId(ids + 2), "3", past),
    ];
    assert_eq!(world.settle(holder, with_children(complete(&parent), children)).await, Settled::Stored);
    let due = world.lease(holder, 5).await;
    let plain: Vec<_> = due.iter().map(|task| (task.id.0, task.place_ms, task.slot_key.clone())).collect();
    let place_ms = NOW - AGEING_MS;
    assert_eq!(plain, [(ids + 1, place_ms, None), (ids + 2, place_ms, None)], "no earlier than it is there");
    // The first lease after its time gives it its place.
    world.lease_at(holder, 0, NOW + 20).await;
    let leased = world.lease_at(holder, 5, NOW + 20).await.tasks.remove(0);
    assert_eq!((leased.id.0, leased.slot_key.as_deref()), (ids, Some("s")));
    assert_eq!(world.view(&world.ada, leased.id).await.summary.priority.level(), 3);
    let budget = BudgetRequest { attempts: Some(2), ..asked };
    assert_eq!(leased.budget, budget, "what it does not name is its parent's");
    assert_eq!(leased.ends, Ends { start_by_ms: Some(NOW + 50), end_by_ms: Some(NOW + 70) });
}

pub async fn children_find_and_replace_tasks_by_keys_of_kinds(world: &World) {
    let holder = world.holder().await;
    let live = fresh(world, unique(false), NOW).await;
    world.lease(holder, 1).await;
    world.submit_plain(&world.ada, 3).await;
    let parents = world.lease(holder, 3).await;
    let ids = world.tasks.reserve_ids(9, NOW).await.unwrap().first.0;
    let new = |at: i64, input, key, rule| asking(world, TaskId(ids + at), input, under(key, rule));
    let call = vec![
        with_children(
            complete(&parents[0]),
            vec![
                new(0, "0", "k", unique(false)),
                new(1, "1", "d", debounce(5)),
                new(2, "2", "t", throttle(9)),
            ],
        ),
        // Refused, so nothing of it is there, and nobody's key is taken.
        with_children(
            complete(&parents[1]),
            vec![new(3, "3", "n", unique(false)), new(4, "4", "k", unique(true))],
        ),
        with_children(
            complete(&parents[2]),
            vec![
                new(5, "5", "d", debounce(6)),
                new(6, "6", "t", throttle(9)),
                new(7, "7", "n", unique(true)),
            ],
        ),
    ];
    let answers = world.tasks.settle(holder, call, NOW).await.unwrap();
    assert_eq!(answers, [Settled::Stored, Settled::Conflict, Settled::Stored]);
    let mut there = Vec::new();
    for at in 0..8 {
        let view = world.records.task(world.ada.tenant, TaskId(ids + at)).await.unwrap();
        there.push(view.map(|view| view.summary.run_at_ms - NOW));
    }
    assert_eq!(there, [None, Some(6), Some(0), None, None, None, Some(9), Some(0)]);
    assert_eq!(world.live(&world.ada).await, 6, "the one that runs, a parent, and four children");
    assert_eq!(stored(send(world, unique(false), "9", NOW).await.0), (live, true));
    let due = world.lease_at(holder, 9, NOW + 6).await.tasks;
    let debounced = due.iter().find(|task| task.id.0 == ids + 1).unwrap();
    assert_eq!(debounced.input.bytes, "5");
    assert_eq!(debounced.lineage.parent, Some(parents[0].id), "it stays its first parent's");
    // An idempotency key of a child remembers what the child found.
    let parent = due.iter().find(|task| task.id.0 == ids + 2).unwrap();
    let mut found = new(8, "8", "k", unique(false));
    found.wish.key = Some("same".to_owned());
    assert_eq!(world.settle(holder, with_children(complete(parent), vec![found])).await, Settled::Stored);
    assert_eq!(world.records.task(world.ada.tenant, TaskId(ids + 8)).await.unwrap(), None);
}

pub async fn a_child_that_is_replaced_ends_with_its_tree(world: &World) {
    let holder = world.holder().await;
    let mut task = one(world).await;
    task.budget.tree_ms = Some(50);
    world.submit(&world.ada, vec![task]).await;
    let root = world.lease(holder, 1).await.remove(0);
    let id = world.tasks.reserve_ids(1, NOW).await.unwrap().first;
    let mut options = under("k", debounce(10));
    options.budget.total_ms = Some(20);
    let mut end = with_children(complete(&root), vec![asking(world, id, "1", options)]);
    let max = Spending { fuel: 100, host_calls: 10 };
    end.charge = Some(Charge { root: root.id, used: Spending::default(), opens: Some(max) });
    assert_eq!(world.settle(holder, end).await, Settled::Stored);
    for (at, end) in [(0, 30), (25, 50)] {
        let (answer, _) = send(world, debounce(10), "2", NOW + at).await;
        assert_eq!(stored(answer), (id, true));
        let next_ms = world.tasks.expire(NOW + at, 10).await.unwrap().next_ms;
        assert_eq!(next_ms, Some(NOW + end), "after {at} ms");
    }
}
