//! Leasing: order, fairness, room.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use futures::future::{join, join_all};
use keiko_core::code::Code;
use keiko_core::id::{Holder, TenantId, Token};
use keiko_core::limit::INPUT_BYTES_MAX;
use keiko_core::port::LeaseRequest;
use keiko_core::priority::{AGEING_MS, Priority};
use keiko_core::task::{Amendment, LeasedTask, Lineage, Payload, Submitted, TaskFilter, TaskState};
use tokio::sync::Notify;

use crate::world::{
    NOW, ROOMY, World, child, complete, customer, fail, hand_back, request, retry, submit, with_children,
};

pub async fn a_lease_carries_what_was_submitted(world: &World) {
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    task.kind = world.ada.other_kind;
    task.created_ms = NOW - 5;
    task.budget.wall_ms = Some(9);
    task.trace = Some("00-abc".to_owned());
    task.lineage = Lineage { root: task.id, parent: None, depth: 0 };
    world.submit(&world.ada, vec![task.clone()]).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 5).await.remove(0);
    assert_eq!((leased.id, leased.tenant, leased.kind), (task.id, world.ada.tenant, task.kind));
    assert_eq!((leased.created_ms, leased.budget, leased.lineage), (NOW - 5, task.budget, task.lineage));
    assert_eq!((&leased.input, &leased.trace), (&task.input, &task.trace));
    assert_eq!((leased.attempts, leased.deadlines, leased.crashes), (0, 0, 0));
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.state, view.token), (TaskState::Running, leased.token));
}

pub async fn the_oldest_due_tasks_go_first(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    for (task, run_at_ms) in tasks.iter_mut().zip([NOW, NOW - 2, NOW - 1, NOW - 2]) {
        task.run_at_ms = run_at_ms;
    }
    let ids = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let order: Vec<_> = world.lease(holder, 3).await.iter().map(|task| task.id).collect();
    assert_eq!(order, [ids[1], ids[3], ids[2]], "by run_at, then by id");
    assert_eq!(world.lease(holder, 3).await[0].id, ids[0]);
}

fn urgent(level: u64) -> Priority {
    Priority::new(level).unwrap()
}

pub async fn a_level_of_priority_is_worth_a_minute_of_waiting(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 5).await;
    // The age in milliseconds, and the priority.
    let made = [(0, 0), (2 * AGEING_MS, 0), (0, 3), (0, 1), (2 * AGEING_MS, 9)];
    for (task, (age_ms, level)) in tasks.iter_mut().zip(made) {
        (task.run_at_ms, task.priority) = (NOW - age_ms, urgent(level));
    }
    let ids = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.extend(world.lease(holder, 1).await.iter().map(|task| task.id));
    }
    assert_eq!(order, [ids[4], ids[2], ids[1], ids[3], ids[0]]);
    let levels = world.list(&world.ada, &TaskFilter::default()).await;
    let levels: Vec<u8> = levels.iter().rev().map(|task| task.priority.level()).collect();
    assert_eq!(levels, [0, 0, 3, 1, 9]);
    let view = world.view(&world.ada, ids[2]).await;
    assert_eq!(view.summary.run_at_ms, NOW, "a place in the queue is not a due time");
}

pub async fn a_task_with_a_priority_waits_until_it_is_due(world: &World) {
    let holder = world.holder().await;
    let mut tasks = world.new_tasks(&world.ada, 3).await;
    (tasks[0].run_at_ms, tasks[0].priority) = (NOW + 10, urgent(9));
    tasks[1].run_at_ms = NOW + 5;
    tasks[2].run_at_ms = NOW + 6;
    let ids = world.submit(&world.ada, tasks).await;
    let early = world.lease_at(holder, 5, NOW + 4).await;
    assert_eq!((early.tasks.len(), early.next_run_at_ms), (0, Some(NOW + 5)));
    assert_eq!(world.view(&world.ada, ids[0]).await.summary.run_at_ms, NOW + 10);
    // It takes its place with the first lease after it came due, and goes before older ones from the next one on.
    assert!(world.lease_at(holder, 0, NOW + 10).await.tasks.is_empty());
    let order: Vec<_> = world.lease_at(holder, 3, NOW + 10).await.tasks.iter().map(|task| task.id).collect();
    assert_eq!(order, ids);
    assert_eq!(world.view(&world.ada, ids[0]).await.summary.run_at_ms, NOW + 10);
}

pub async fn a_priority_outlives_every_way_back_to_the_queue(world: &World) {
    let holder = world.holder().await;
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    task.priority = urgent(4);
    let id = world.submit(&world.ada, vec![task]).await[0];
    // What the task goes behind when it has lost its priority.
    let mut older = world.new_tasks(&world.ada, 1).await.remove(0);
    older.run_at_ms = NOW - AGEING_MS;
    world.submit(&world.ada, vec![older]).await;
    let first = async |why: &str| {
        world.lease(holder, 0).await;
        let task = world.lease(holder, 1).await.remove(0);
        assert_eq!(task.id, id, "{why}");
        task
    };
    let task = first("a submit").await;
    world.settle(holder, hand_back(&task)).await;
    let task = first("a hand-back").await;
    world.settle(holder, retry(&task, Code::Internal, NOW)).await;
    let task = first("a retry").await;
    world.settle(holder, fail(&task, Code::Trap)).await;
    assert_eq!(world.view(&world.ada, id).await.summary.priority, urgent(4), "an end");
    world.tasks.retry(world.ada.tenant, id, Amendment::default(), ROOMY, NOW).await.unwrap();
    let task = first("a retry by hand").await;
    let child_id = world.tasks.reserve_ids(1, NOW).await.unwrap().first;
    let done = with_children(complete(&task), vec![child(&world.ada, child_id, None, "1")]);
    world.settle(holder, done).await;
    assert_eq!(world.view(&world.ada, id).await.summary.priority, urgent(4), "a completion");
    let view = world.view(&world.ada, child_id).await;
    assert_eq!((view.summary.priority, view.summary.run_at_ms), (urgent(4), NOW), "a child");
    assert_eq!(world.lease(holder, 1).await[0].id, child_id, "a child takes its parent's place");
}

pub async fn what_is_not_due_waits_and_says_until_when(world: &World) {
    let holder = world.holder().await;
    let nothing = world.lease_at(holder, 5, NOW).await;
    assert_eq!((nothing.tasks.len(), nothing.next_run_at_ms), (0, None));
    let mut tasks = world.new_tasks(&world.ada, 3).await;
    tasks[1].run_at_ms = NOW + 20;
    tasks[2].run_at_ms = NOW + 10;
    world.submit(&world.ada, tasks).await;
    let mut tasks = world.new_tasks(&world.bob, 1).await;
    tasks[0].run_at_ms = NOW + 15;
    world.submit(&world.bob, tasks).await;
    let full = world.lease_at(holder, 1, NOW).await;
    assert_eq!((full.tasks.len(), full.next_run_at_ms), (1, None), "not looked up when the room is filled");
    let early = world.lease_at(holder, 5, NOW + 9).await;
    assert_eq!((early.tasks.len(), early.next_run_at_ms), (0, Some(NOW + 10)));
    let due = world.lease_at(holder, 5, NOW + 10).await;
    assert_eq!((due.tasks.len(), due.next_run_at_ms), (1, Some(NOW + 15)));
    assert_eq!(world.lease_at(holder, 5, NOW + 100).await.tasks.len(), 2);
}

pub async fn nothing_is_leased_twice(world: &World) {
    world.submit_plain(&world.ada, 200).await;
    let holders = join_all((0..8).map(|_| world.holder())).await;
    let leases = join_all(holders.iter().map(|&holder| world.lease(holder, 40))).await;
    let ids: Vec<_> = leases.iter().flatten().map(|task| task.id).collect();
    assert_eq!(ids.len(), 200);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 200);
}

pub async fn tokens_grow_with_every_lease(world: &World) {
    let holder = world.holder().await;
    let first = world.running(&world.ada, holder).await;
    let mut last = first.token;
    assert!(last > Token(0));
    for _ in 0..3 {
        let settlement = hand_back(&same(&first, last));
        world.settle(holder, settlement).await;
        let again = world.lease(holder, 1).await.remove(0);
        assert!(again.token > last);
        last = again.token;
    }
}

/// The task under another token.
fn same(task: &LeasedTask, token: Token) -> LeasedTask {
    LeasedTask { token, ..task.clone() }
}

pub async fn one_tenant_of_ten_thousand_starves_nobody(world: &World) {
    world.submit_plain(&world.ada, 10_000).await;
    let mut small = BTreeSet::new();
    for at in 0..50 {
        let one = customer(&*world.catalog, &format!("small-{at}")).await;
        world.submit_plain(&one, 1).await;
        small.insert(one.tenant);
    }
    let holder = world.holder().await;
    let lease = world.lease_at(holder, 60, NOW).await;
    let served: BTreeSet<TenantId> = lease.tasks.iter().map(|task| task.tenant).collect();
    assert!(served.is_superset(&small), "everyone has a turn in the first lease that has room for all");
    assert_eq!(lease.tasks.len(), 60, "and the large one takes what is left");
}

pub async fn turns_go_round_with_less_room_than_tenants(world: &World) {
    let mut all = BTreeSet::from([world.ada.tenant]);
    world.submit_plain(&world.ada, 1_000).await;
    for at in 0..20 {
        let one = customer(&*world.catalog, &format!("t-{at}")).await;
        world.submit_plain(&one, 10).await;
        all.insert(one.tenant);
    }
    let holder = world.holder().await;
    let mut served = BTreeSet::new();
    let mut after = None;
    for _ in 0..=all.len() / 8 {
        let lease = world.tasks.lease(LeaseRequest { after, ..request(holder, 8) }).await.unwrap();
        assert_eq!(lease.tasks.len(), 8);
        served.extend(lease.tasks.iter().map(|task| task.tenant));
        after = lease.after;
    }
    assert_eq!(served, all);
}

pub async fn caps_hold_and_a_cap_of_zero_takes_nothing(world: &World) {
    world.submit_plain(&world.ada, 50).await;
    world.submit_plain(&world.bob, 50).await;
    let holder = world.holder().await;
    let (ada, bob) = (world.ada.tenant, world.bob.tenant);
    let lease = async |caps: &[(TenantId, usize)], cap_default| {
        let caps: HashMap<_, _> = caps.iter().copied().collect();
        let request = LeaseRequest { caps, cap_default, ..request(holder, 10) };
        let tasks = world.tasks.lease(request).await.unwrap().tasks;
        let of = |tenant| tasks.iter().filter(|task| task.tenant == tenant).count();
        (of(ada), of(bob))
    };
    assert_eq!(lease(&[], 3).await, (3, 3));
    assert_eq!(lease(&[(ada, 2)], 100).await, (2, 8));
    assert_eq!(lease(&[(ada, 0)], 100).await, (0, 10));
    assert_eq!(lease(&[(bob, 1)], 0).await, (0, 1));
    assert_eq!(lease(&[], 0).await, (0, 0));
    let none = world.tasks.lease(request(holder, 0)).await.unwrap();
    assert!(none.tasks.is_empty());
}

pub async fn tenants_take_turns_within_a_lease(world: &World) {
    let ada = world.submit_plain(&world.ada, 3).await;
    let bob = world.submit_plain(&world.bob, 1).await;
    let holder = world.holder().await;
    let order: Vec<_> = world.lease(holder, 4).await.iter().map(|task| task.id).collect();
    assert_eq!(order, [ada[0], bob[0], ada[1], ada[2]]);
}

pub async fn a_holder_that_is_not_registered_gets_nothing(world: &World) {
    world.submit_plain(&world.ada, 1).await;
    assert!(world.lease(Holder(12), 5).await.is_empty());
    let holder = world.holder().await;
    world.tasks.close_holder(holder, NOW).await.unwrap();
    assert!(world.lease(holder, 5).await.is_empty());
    let running = TaskFilter { state: Some(TaskState::Running), ..TaskFilter::default() };
    assert!(world.list(&world.ada, &running).await.is_empty());
}

pub async fn a_lease_loads_no_more_inputs_than_fit(world: &World) {
    // 40 inputs of 2 MiB: more than the 64 MiB that one lease loads.
    let mut tasks = world.new_tasks(&world.ada, 40).await;
    let large = Bytes::from(vec![7; INPUT_BYTES_MAX as usize]);
    for task in &mut tasks {
        task.input = Payload::json(large.clone());
    }
    world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let first = world.lease_at(holder, 100, NOW).await;
    assert_eq!((first.tasks.len(), first.next_run_at_ms), (32, Some(NOW)), "the rest is due at once");
    let rest = world.lease_at(holder, 100, NOW).await;
    assert_eq!((rest.tasks.len(), rest.next_run_at_ms), (8, None));
    for task in first.tasks.iter().chain(&rest.tasks) {
        assert!(task.input.bytes == large);
        assert_eq!(task.attempts, 0);
    }
    let settlements = first.tasks.iter().chain(&rest.tasks).map(complete).collect();
    world.tasks.settle(holder, settlements, NOW).await.unwrap();
    assert_eq!(world.live(&world.ada).await, 0);
}

pub async fn a_lease_that_waits_for_a_submit_goes_with_it_or_leaves_its_tasks(world: &World) {
    let holder = world.holder().await;
    for room in [2, 1, 0] {
        let tasks = world.new_tasks(&world.ada, 2).await;
        let ids: BTreeSet<_> = tasks.iter().map(|task| task.id).collect();
        let stored = Notify::new();
        let ask = move || (room > 0).then(|| request(holder, room));
        let leased = world.tasks.lease_next(Box::new(ask), Box::pin(stored.notified()));
        let submitted = async {
            let answer = world.try_submit(submit(&world.ada, tasks)).await;
            stored.notify_one();
            answer
        };
        let (along, answer) = join(leased, submitted).await;
        let along = along.unwrap().map_or(Vec::new(), |(_, lease)| lease.tasks);
        let Submitted::Accepted { leased, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(leased, along.len() == 2, "the submit knows whether anybody has to look");
        assert!(along.len() <= room);
        let later = world.lease(holder, 5).await;
        assert_eq!(along.len() + later.len(), 2);
        assert_eq!(along.iter().chain(&later).map(|task| task.id).collect::<BTreeSet<_>>(), ids);
        for task in along.iter().chain(&later) {
            world.settle(holder, complete(task)).await;
        }
    }
}
