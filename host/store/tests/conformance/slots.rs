//! Slots of kinds and keys: how many tasks of them run at once.

use std::sync::Arc;

use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::id::{Holder, TaskId};
use keiko_core::pause::{PARKED_MS, Paused};
use keiko_core::port::{Dead, Lease, LeaseRequest};
use keiko_core::priority::Priority;
use keiko_core::slot::{Concurrencies, Concurrency};
use keiko_core::task::{Amendment, LeasedTask, RetryAnswer, TaskState};

use crate::world::{Customer, LEASE_MS, NOW, ROOMY, World, complete, fail, hand_back, request, retry};

/// What Ada's first kind declares.
fn declared(world: &World, max: Option<u32>, per_key: Option<u32>) -> Arc<Concurrencies> {
    let kinds = [(world.ada.kind, Concurrency { max, per_key })].into();
    Arc::new(Concurrencies { kinds, ..Concurrencies::default() })
}

fn at_most(world: &World, max: u32) -> Arc<Concurrencies> {
    declared(world, Some(max), None)
}

async fn lease(world: &World, holder: Holder, slots: &Arc<Concurrencies>, now_ms: i64) -> Lease {
    let request = LeaseRequest { slots: Arc::clone(slots), now_ms, ..request(holder, 10) };
    world.tasks.lease(request).await.unwrap()
}

/// Leases until there is nothing more to take.
async fn drain_at(world: &World, holder: Holder, slots: &Arc<Concurrencies>, now_ms: i64) -> Vec<LeasedTask> {
    let mut tasks = Vec::new();
    for _ in 0..100 {
        let lease = lease(world, holder, slots, now_ms).await;
        let found = !lease.tasks.is_empty();
        tasks.extend(lease.tasks);
        if !found && lease.next_run_at_ms.is_none_or(|at_ms| at_ms > now_ms) {
            return tasks;
        }
    }
    panic!("a lease always says that there is more");
}

async fn drain(world: &World, holder: Holder, slots: &Arc<Concurrencies>) -> Vec<LeasedTask> {
    drain_at(world, holder, slots, NOW).await
}

fn ids(tasks: &[LeasedTask]) -> Vec<TaskId> {
    tasks.iter().map(|task| task.id).collect()
}

/// Submits tasks of a customer's first kind under these keys.
async fn keyed(world: &World, customer: &Customer, keys: &[Option<&str>]) -> Vec<TaskId> {
    let mut tasks = world.new_tasks(customer, keys.len() as u32).await;
    for (task, key) in tasks.iter_mut().zip(keys) {
        task.slot_key = key.map(str::to_owned);
    }
    world.submit(customer, tasks).await
}

pub async fn no_more_tasks_of_a_kind_run_than_it_says(world: &World) {
    let slots = at_most(world, 2);
    let limited = world.submit_plain(&world.ada, 25).await;
    let mut other = world.new_tasks(&world.ada, 3).await;
    other.iter_mut().for_each(|task| task.kind = world.ada.other_kind);
    let other = world.submit(&world.ada, other).await;
    let holder = world.holder().await;
    let first = drain(world, holder, &slots).await;
    assert_eq!(ids(&first), [&limited[..2], &other].concat(), "others come from behind those that wait");
    assert!(first[..2].iter().all(|task| task.has_slot) && first[2..].iter().all(|task| !task.has_slot));
    let nothing = lease(world, holder, &slots, NOW).await;
    assert!(nothing.tasks.is_empty(), "nobody looks for what waits");
    assert!(nothing.next_run_at_ms.is_none_or(|at_ms| at_ms >= PARKED_MS), "{nothing:?}");
    let waits = world.view(&world.ada, limited[5]).await.summary;
    assert_eq!((waits.state, waits.run_at_ms), (TaskState::Pending, NOW));
    let mut running = first[..2].to_vec();
    for id in &limited[2..] {
        let ended = running.remove(0);
        world.settle(holder, complete(&ended)).await;
        let next = drain(world, holder, &slots).await;
        assert_eq!(ids(&next), [*id]);
        running.extend(next);
    }
    assert_eq!(running.len(), 2);
}

pub async fn no_more_tasks_of_a_tenant_run_than_it_may(world: &World) {
    let tenants = [(world.ada.tenant, 3)].into();
    let kinds = [(world.ada.kind, Concurrency { max: Some(2), per_key: None })].into();
    let slots = Arc::new(Concurrencies { kinds, tenants });
    let one = world.submit_plain(&world.ada, 6).await;
    let mut other = world.new_tasks(&world.ada, 6).await;
    other.iter_mut().for_each(|task| task.kind = world.ada.other_kind);
    let other = world.submit(&world.ada, other).await;
    let bob = world.submit_plain(&world.bob, 5).await;
    let (first, second) = (world.holder().await, world.holder().await);
    let of = |leased: &[LeasedTask], customer: &Customer| {
        leased.iter().filter(|task| task.tenant == customer.tenant).map(|task| task.id).collect::<Vec<_>>()
    };
    let leased = drain(world, first, &slots).await;
    assert_eq!(of(&leased, &world.ada), [one[0], one[1], other[0]], "two of the kind, three of the tenant");
    assert_eq!(of(&leased, &world.bob), bob, "whoever says nothing has any number");
    let again = world.submit_plain(&world.bob, 1).await;
    let more = drain(world, second, &slots).await;
    assert_eq!(ids(&more), again, "on all hosts together");
    // Each end lets one go, in order, whichever host asks; of the kind two stand before the others.
    let mut running: Vec<(Holder, LeasedTask)> =
        leased.into_iter().filter(|task| task.tenant == world.ada.tenant).map(|task| (first, task)).collect();
    let (mut ended, mut of_kind) = (Vec::new(), 0);
    while let Some((holder, task)) = (!running.is_empty()).then(|| running.remove(0)) {
        world.settle(holder, complete(&task)).await;
        ended.push(task.id);
        let next = if ended.len() % 2 == 0 { first } else { second };
        running.extend(drain(world, next, &slots).await.into_iter().map(|task| (next, task)));
        let left = one.len() + other.len() - ended.len();
        assert_eq!(running.len(), left.min(3), "after {} ends", ended.len());
        let now = running.iter().filter(|(_, task)| task.kind == world.ada.kind).count();
        of_kind = of_kind.max(now);
        assert!(now <= 2, "{now} of the kind");
    }
    assert_eq!((ended.len(), of_kind), (12, 2));
}

pub async fn every_end_of_a_lease_frees_its_slot(world: &World) {
    let slots = at_most(world, 1);
    let (own, other) = (world.holder().await, world.holder().await);
    world.submit_plain(&world.ada, 30).await;
    let mut running = drain(world, own, &slots).await;
    let mut holder = own;
    for way in 0..8 {
        let task = running.remove(0);
        let tenant = world.ada.tenant;
        match way {
            0 => drop(world.settle(holder, complete(&task)).await),
            1 => drop(world.settle(holder, fail(&task, Code::Trap)).await),
            2 => drop(world.settle(holder, retry(&task, Code::Internal, NOW + 1_000_000)).await),
            3 => drop(world.tasks.cancel(tenant, task.id, NOW).await.unwrap()),
            4 => drop(world.settle(holder, hand_back(&task)).await),
            5 => {
                assert_eq!(world.tasks.close_holder(holder, NOW).await.unwrap(), 1);
                holder = other;
            }
            6 => {
                let late = world.tasks.open_holder(NOW + LEASE_MS, LEASE_MS).await.unwrap();
                let rescued = world.tasks.rescue(Dead::Expired, Vec::new(), NOW + LEASE_MS).await.unwrap();
                assert_eq!(rescued.returned, 1);
                holder = late;
            }
            _ => drop(world.settle(holder, complete(&task)).await),
        }
        running = drain(world, holder, &slots).await;
        assert_eq!(running.len(), 1, "after way {way}");
        assert_ne!(running[0].id, task.id, "whoever waited has the slot, after way {way}");
        assert!(drain(world, holder, &slots).await.is_empty(), "one slot, after way {way}");
    }
    // One that ends by its time, while it has the slot.
    let mut timed = world.new_tasks(&world.ada, 1).await;
    (timed[0].budget.total_ms, timed[0].priority) = (Some(50), Priority::new(9).unwrap());
    let timed = world.submit(&world.ada, timed).await[0];
    assert!(drain(world, holder, &slots).await.is_empty());
    world.settle(holder, complete(&running[0])).await;
    assert_eq!(ids(&drain(world, holder, &slots).await), [timed], "its priority brought it to the front");
    assert_eq!(world.tasks.expire(NOW + 50, 10).await.unwrap().ended.len(), 1);
    assert_eq!(drain(world, holder, &slots).await.len(), 1, "after a time-out");
}

pub async fn a_slot_is_taken_by_who_waits_first(world: &World) {
    let slots = at_most(world, 1);
    let holder = world.holder().await;
    let running = {
        world.submit_plain(&world.ada, 1).await;
        drain(world, holder, &slots).await.remove(0)
    };
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    tasks[2].priority = Priority::new(3).unwrap();
    tasks[0].run_at_ms = NOW + 10;
    let waiting = world.submit(&world.ada, tasks).await;
    // One comes due, and takes its place, while the others wait already.
    assert!(drain(world, holder, &slots).await.is_empty());
    assert!(drain_at(world, holder, &slots, NOW + 20).await.is_empty());
    world.settle(holder, complete(&running)).await;
    // Who comes later does not overtake who waits.
    let late = world.submit_plain(&world.ada, 1).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        let leased = drain_at(world, holder, &slots, NOW + 20).await;
        assert_eq!(leased.len(), 1);
        order.push(leased[0].id);
        world.settle(holder, complete(&leased[0])).await;
    }
    let expected = [waiting[2], waiting[1], waiting[3], late[0], waiting[0]];
    assert_eq!(order, expected, "by priority and time");
}

pub async fn keys_have_slots_of_their_own(world: &World) {
    let holder = world.holder().await;
    let (a, b) = (Some("a"), Some("b"));
    let own = keyed(world, &world.ada, &[a, a, b, None, a, None, b]).await;
    let bobs = keyed(world, &world.bob, &[a, a]).await;
    let mut other = world.new_tasks(&world.ada, 2).await;
    for task in &mut other {
        (task.kind, task.slot_key) = (world.ada.other_kind, Some("a".to_owned()));
    }
    let other = world.submit(&world.ada, other).await;
    // A key that nobody declares anything of has one slot.
    let nothing = Arc::default();
    let leased = drain(world, holder, &nothing).await;
    let mut found = ids(&leased);
    found.sort_unstable();
    assert_eq!(found, [own[0], own[2], own[3], own[5], bobs[0], other[0]]);
    let of = |id| leased.iter().find(|task| task.id == id).unwrap();
    world.settle(holder, complete(of(own[3]))).await;
    assert!(drain(world, holder, &nothing).await.is_empty(), "it had no slot");
    world.settle(holder, complete(of(own[0]))).await;
    world.settle(holder, complete(of(bobs[0]))).await;
    let mut next = ids(&drain(world, holder, &nothing).await);
    next.sort_unstable();
    assert_eq!(next, [own[1], bobs[1]]);
    // Two for each key, from now on.
    world.settle(holder, complete(of(own[2]))).await;
    let two = declared(world, None, Some(2));
    keyed(world, &world.ada, &[b, b]).await;
    let leased = drain(world, holder, &two).await;
    assert!(leased.iter().all(|task| task.slot_key.as_deref() == b), "{leased:?}");
    assert_eq!(leased.len(), 2);
}

pub async fn a_task_has_the_slots_of_its_kind_and_of_its_key(world: &World) {
    let slots = declared(world, Some(2), Some(1));
    let holder = world.holder().await;
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    let own = keyed(world, &world.ada, &[a, a, b, c, None]).await;
    let leased = drain(world, holder, &slots).await;
    assert_eq!(ids(&leased), [own[0], own[2]]);
    // Its kind has room again, and its key has not.
    world.settle(holder, complete(&leased[1])).await;
    let next = drain(world, holder, &slots).await;
    assert_eq!(ids(&next), [own[3]]);
    world.settle(holder, complete(&leased[0])).await;
    let next_again = drain(world, holder, &slots).await;
    assert_eq!(next_again.len(), 1);
    world.settle(holder, complete(&next[0])).await;
    world.settle(holder, complete(&next_again[0])).await;
    let mut last = ids(&drain(world, holder, &slots).await);
    last.extend(ids(&next_again));
    last.sort_unstable();
    assert_eq!(last, [own[1], own[4]]);
}

pub async fn who_waits_for_a_slot_can_end_and_takes_nobodys_place(world: &World) {
    let slots = at_most(world, 1);
    let holder = world.holder().await;
    let mut tasks = world.new_tasks(&world.ada, 6).await;
    tasks[2].budget.queued_ms = Some(30);
    let own = world.submit(&world.ada, tasks).await;
    let running = drain(world, holder, &slots).await.remove(0);
    world.tasks.cancel(world.ada.tenant, own[1], NOW).await.unwrap();
    assert_eq!(world.tasks.expire(NOW + 30, 10).await.unwrap().ended, [(world.ada.tenant, own[2])]);
    assert_eq!(world.view(&world.ada, own[1]).await.summary.run_at_ms, NOW, "it is told as it was");
    world.settle(holder, complete(&running)).await;
    // The slot is kept for the next one, which ends before it has it.
    let woken = lease(world, holder, &slots, NOW).await;
    assert!(woken.tasks.is_empty() && woken.next_run_at_ms == Some(NOW), "{woken:?}");
    world.tasks.cancel(world.ada.tenant, own[3], NOW).await.unwrap();
    let running = drain(world, holder, &slots).await;
    assert_eq!(ids(&running), [own[4]]);
    world.settle(holder, complete(&running[0])).await;
    let running = drain(world, holder, &slots).await;
    assert_eq!(ids(&running), [own[5]]);
    world.settle(holder, complete(&running[0])).await;
    assert!(drain(world, holder, &slots).await.is_empty());
    let fresh = world.submit_plain(&world.ada, 2).await;
    assert_eq!(ids(&drain(world, holder, &slots).await), fresh[..1]);
}

pub async fn other_numbers_count_from_the_next_end_on(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 30).await;
    let mut running = drain(world, holder, &at_most(world, 4)).await;
    assert_eq!(running.len(), 4);
    // Fewer: those that run go on.
    let two = at_most(world, 2);
    for left in [3, 2] {
        world.settle(holder, complete(&running.remove(0))).await;
        assert!(drain(world, holder, &two).await.is_empty());
        assert_eq!(running.len(), left);
    }
    world.settle(holder, complete(&running.remove(0))).await;
    running.extend(drain(world, holder, &two).await);
    assert_eq!(running.len(), 2);
    // More.
    world.settle(holder, complete(&running.remove(0))).await;
    running.extend(drain(world, holder, &at_most(world, 5)).await);
    assert_eq!(running.len(), 5);
    // Any number.
    world.settle(holder, complete(&running.remove(0))).await;
    let rest = drain(world, holder, &Arc::default()).await;
    assert_eq!(rest.len(), 30 - 5 - 4);
}

pub async fn a_pause_and_a_retry_by_hand_keep_to_the_slots(world: &World) {
    let slots = at_most(world, 1);
    let holder = world.holder().await;
    let own = world.submit_plain(&world.ada, 4).await;
    let running = drain(world, holder, &slots).await.remove(0);
    let what = Paused { tenant: world.ada.tenant, kind: Some(world.ada.kind) };
    assert!(world.catalog.pause(what, NOW).await.unwrap());
    world.settle(holder, complete(&running)).await;
    assert!(drain(world, holder, &slots).await.is_empty(), "a slot is free, and the kind is paused");
    assert!(world.catalog.resume(what).await.unwrap());
    while world.catalog.unpark(what, 2).await.unwrap() == 2 {}
    let mut order = Vec::new();
    for _ in 0..3 {
        let leased = drain(world, holder, &slots).await;
        assert_eq!(leased.len(), 1);
        order.push(leased[0].id);
        world.settle(holder, fail(&leased[0], Code::Trap)).await;
    }
    order.sort_unstable();
    assert_eq!(order, own[1..]);
    for id in &own[1..] {
        let answer =
            world.tasks.retry(world.ada.tenant, *id, Amendment::default(), ROOMY, NOW).await.unwrap();
        assert_eq!(answer, RetryAnswer::Retried);
    }
    assert_eq!(drain(world, holder, &slots).await.len(), 1);
    // A key outlives a failure.
    let keys = keyed(world, &world.bob, &[Some("k"), Some("k")]).await;
    let first = drain(world, holder, &slots).await.remove(0);
    world.settle(holder, fail(&first, Code::Trap)).await;
    let second = drain(world, holder, &slots).await.remove(0);
    world.tasks.retry(world.bob.tenant, first.id, Amendment::default(), ROOMY, NOW).await.unwrap();
    assert!(drain(world, holder, &slots).await.is_empty());
    world.settle(holder, complete(&second)).await;
    let again = drain(world, holder, &slots).await.remove(0);
    assert_eq!((again.id, again.slot_key.as_deref()), (keys[0], Some("k")));
}

pub async fn hosts_that_lease_at_once_share_the_slots(world: &World) {
    let slots = declared(world, Some(7), Some(2));
    let keys = ["a", "b", "c", "d", "e"].map(Some);
    let all: Vec<Option<&str>> = keys.iter().cycle().take(30).copied().collect();
    keyed(world, &world.ada, &all).await;
    let holders = join_all((0..4).map(|_| world.holder())).await;
    let mut running: Vec<(Holder, LeasedTask)> = Vec::new();
    let mut ended = 0;
    for _ in 0..100 {
        let leases = join_all(holders.iter().map(|holder| lease(world, *holder, &slots, NOW))).await;
        for (holder, lease) in holders.iter().zip(leases) {
            running.extend(lease.tasks.into_iter().map(|task| (*holder, task)));
        }
        assert!(running.len() <= 7, "{} run", running.len());
        for key in keys {
            let count = running.iter().filter(|(_, task)| task.slot_key.as_deref() == key).count();
            assert!(count <= 2, "{count} of {key:?} run");
        }
        if let Some((holder, task)) = running.pop() {
            world.settle(holder, complete(&task)).await;
            ended += 1;
        }
    }
    assert_eq!((ended, world.live(&world.ada).await), (30, 0), "nobody waits for ever");
}
