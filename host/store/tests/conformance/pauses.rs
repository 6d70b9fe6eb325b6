//! Pauses of tenants and kinds.

use keiko_core::id::{Holder, TaskId};
use keiko_core::pause::{Pause, Paused};
use keiko_core::port::Beat;
use keiko_core::priority::Priority;
use keiko_core::task::{CancelAnswer, TaskState};

use crate::world::{Customer, LEASE_MS, NOW, World, complete, retry};

fn kind(customer: &Customer) -> Paused {
    Paused { tenant: customer.tenant, kind: Some(customer.kind) }
}

fn whole(customer: &Customer) -> Paused {
    Paused { tenant: customer.tenant, kind: None }
}

async fn pause(world: &World, what: Paused) {
    assert!(world.catalog.pause(what, NOW).await.unwrap(), "it was not paused before");
}

/// Ends a pause, and gives every task its place.
async fn resume(world: &World, what: Paused) {
    assert!(world.catalog.resume(what).await.unwrap(), "it was paused");
    while world.catalog.unpark(what, 1_000).await.unwrap() == 1_000 {}
}

/// Leases until nothing more is due; the ids in the order of the leases.
async fn drain(world: &World, holder: Holder, room: usize, now_ms: i64) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for _ in 0..100 {
        let lease = world.lease_at(holder, room, now_ms).await;
        let found = !lease.tasks.is_empty();
        ids.extend(lease.tasks.iter().map(|task| task.id));
        if !found && lease.next_run_at_ms.is_none_or(|at_ms| at_ms > now_ms) {
            return ids;
        }
    }
    panic!("a lease always says that there is more");
}

pub async fn a_paused_kind_waits_and_comes_back_in_its_order(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 8).await;
    for (at, task) in tasks.iter_mut().enumerate() {
        task.run_at_ms = NOW - 10 + at as i64;
        if at >= 5 {
            task.kind = world.ada.other_kind;
        }
    }
    let ids = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let first = world.lease(holder, 1).await.remove(0);
    pause(world, kind(&world.ada)).await;
    assert_eq!(drain(world, holder, 2, NOW).await, ids[5..], "the others come from behind the paused ones");
    let view = world.view(&world.ada, ids[1]).await.summary;
    assert_eq!((view.state, view.run_at_ms), (TaskState::Pending, NOW - 9), "it is due as before");
    assert!(drain(world, holder, 10, NOW).await.is_empty());
    // What was leased before goes on, and comes back to wait with the others.
    world.settle(holder, retry(&first, keiko_core::Code::Internal, NOW - 20)).await;
    let late = world.submit_plain(&world.ada, 1).await;
    assert!(drain(world, holder, 10, NOW).await.is_empty());
    assert_eq!(world.live(&world.ada).await, 9);
    resume(world, kind(&world.ada)).await;
    let expected: Vec<TaskId> = ids[..5].iter().chain(&late).copied().collect();
    assert_eq!(drain(world, holder, 3, NOW).await, expected);
}

pub async fn a_paused_tenant_gets_nothing_and_others_do(world: &World) {
    let ada = world.submit_plain(&world.ada, 3).await;
    let bob = world.submit_plain(&world.bob, 2).await;
    let mut later = world.new_tasks(&world.ada, 1).await;
    later[0].run_at_ms = NOW + 5;
    let later = world.submit(&world.ada, later).await;
    pause(world, whole(&world.ada)).await;
    let holder = world.holder().await;
    let lease = world.lease_at(holder, 10, NOW).await;
    assert_eq!(lease.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), bob);
    assert_eq!(lease.next_run_at_ms, None, "nobody waits for what is paused");
    let again = world.lease_at(holder, 10, NOW + 5).await;
    assert_eq!((again.tasks.len(), again.next_run_at_ms), (0, None));
    resume(world, whole(&world.ada)).await;
    let expected: Vec<TaskId> = ada.iter().chain(&later).copied().collect();
    assert_eq!(drain(world, holder, 10, NOW + 5).await, expected);
}

pub async fn what_waits_behind_a_pause_keeps_its_time_and_can_end(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    tasks[0].priority = Priority::new(5).unwrap();
    tasks[1].budget.total_ms = Some(30);
    let ids = world.submit(&world.ada, tasks).await;
    pause(world, kind(&world.ada)).await;
    let holder = world.holder().await;
    assert!(drain(world, holder, 10, NOW).await.is_empty());
    let over = world.tasks.expire(NOW + 30, 10).await.unwrap().ended;
    assert_eq!(over, [(world.ada.tenant, ids[1])]);
    let cancelled = world.tasks.cancel(world.ada.tenant, ids[2], NOW).await.unwrap();
    assert_eq!(cancelled, CancelAnswer::Cancelled);
    for id in &ids[1..3] {
        assert_eq!(
            world.view(&world.ada, *id).await.summary.run_at_ms,
            NOW,
            "an ended one is told as it was"
        );
    }
    resume(world, kind(&world.ada)).await;
    let older = world.submit_plain(&world.ada, 1).await;
    world.lease_at(holder, 0, NOW).await;
    assert_eq!(drain(world, holder, 1, NOW).await, [ids[0], ids[3], older[0]], "a priority is kept");
    let task = world.view(&world.ada, ids[0]).await.summary;
    assert_eq!((task.state, task.run_at_ms), (TaskState::Running, NOW));
}

pub async fn parked_tasks_come_back_in_parts(world: &World) {
    let ids = world.submit_plain(&world.ada, 5).await;
    let what = kind(&world.ada);
    pause(world, what).await;
    let holder = world.holder().await;
    assert!(drain(world, holder, 10, NOW).await.is_empty());
    assert_eq!(world.catalog.unpark(what, 10).await.unwrap(), 0, "it is paused");
    assert!(world.catalog.resume(what).await.unwrap());
    assert_eq!(world.catalog.unpark(what, 2).await.unwrap(), 2);
    let pauses = world.catalog.pauses().await.unwrap();
    assert_eq!(pauses, [Pause { what, since_ms: NOW, ending: true }], "until all have come back");
    let leased = world.lease(holder, 10).await;
    assert_eq!(leased.len(), 2);
    // Paused again before that, it keeps what has not come back, and what comes meanwhile.
    assert!(world.catalog.pause(what, NOW + 1).await.unwrap());
    world.settle(holder, complete(&leased[0])).await;
    assert_eq!(world.catalog.unpark(what, 2).await.unwrap(), 0);
    assert_eq!(world.catalog.pauses().await.unwrap(), [Pause { what, since_ms: NOW + 1, ending: false }]);
    assert!(drain(world, holder, 10, NOW).await.is_empty());
    assert!(world.catalog.resume(what).await.unwrap());
    assert_eq!(world.catalog.unpark(what, 3).await.unwrap(), 3);
    assert_eq!(world.catalog.unpark(what, 3).await.unwrap(), 0);
    assert!(world.catalog.pauses().await.unwrap().is_empty());
    assert_eq!(drain(world, holder, 10, NOW).await, ids[2..]);
}

pub async fn a_pause_is_told_and_belongs_to_its_tenant(world: &World) {
    let (ada, bob) = (kind(&world.ada), whole(&world.bob));
    let holder = world.holder().await;
    let number = async || match world.tasks.beat(holder, NOW, LEASE_MS).await.unwrap() {
        Beat::Alive { catalog, .. } => catalog,
        Beat::Lost => panic!("the holder lives"),
    };
    let before = number().await;
    pause(world, ada).await;
    pause(world, bob).await;
    let told = [(ada, NOW), (bob, NOW)].map(|(what, since_ms)| Pause { what, since_ms, ending: false });
    assert_eq!(world.catalog.pauses().await.unwrap(), told);
    assert!(number().await > before, "every host hears of it");
    assert!(!world.catalog.pause(ada, NOW + 1).await.unwrap(), "it is paused already");
    assert_eq!(world.catalog.pauses().await.unwrap(), told);
    let foreign = Paused { tenant: world.bob.tenant, kind: Some(world.ada.other_kind) };
    assert!(!world.catalog.pause(foreign, NOW).await.unwrap(), "the kind is another tenant's");
    assert!(!world.catalog.resume(whole(&world.ada)).await.unwrap(), "only a kind of it is paused");
    let paused = number().await;
    resume(world, ada).await;
    resume(world, bob).await;
    assert!(world.catalog.pauses().await.unwrap().is_empty());
    assert!(number().await > paused);
}
