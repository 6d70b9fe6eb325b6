//! Holders of leases, and the tasks of dead ones.

use std::collections::BTreeSet;

use futures::future::join_all;
use keiko_core::catalog::{RemoveWhen, Target};
use keiko_core::code::Code;
use keiko_core::id::{Holder, TaskId, Token};
use keiko_core::port::{Beat, Dead, LeaseRequest, Rescued};
use keiko_core::task::{LeasedTask, Settled, TaskState};

use crate::world::{LEASE_MS, NOW, World, complete, fail, hand_back, other_token, request, retry, version};

pub async fn holders_rise(world: &World) {
    let mut last = Holder(0);
    for now_ms in [NOW, NOW, NOW + 5, NOW - 1_000] {
        let holder = world.tasks.open_holder(now_ms, LEASE_MS).await.unwrap();
        assert!(holder > last, "whatever the clock does");
        last = holder;
        world.tasks.close_holder(holder, now_ms).await.unwrap();
    }
    let holders = join_all((0..20).map(|_| world.holder())).await;
    let distinct: BTreeSet<Holder> = holders.into_iter().collect();
    assert_eq!(distinct.len(), 20);
    assert!(distinct.first() > Some(&last));
    // An older file put back would start from an older number, but not from an older clock.
    assert!(last.0 >= NOW);
}

async fn beat(world: &World, holder: Holder, now_ms: i64) -> Beat {
    world.tasks.beat(holder, now_ms, LEASE_MS).await.unwrap()
}

async fn rescue(world: &World, dead: Dead, started: &[(TaskId, Token)], now_ms: i64) -> Rescued {
    world.tasks.rescue(dead, started.to_vec(), now_ms).await.unwrap()
}

pub async fn a_beat_prolongs_and_a_forgotten_holder_is_lost(world: &World) {
    let holder = world.holder().await;
    let Beat::Alive { others_end_ms: None, catalog } = beat(world, holder, NOW + 5).await else {
        panic!("the only holder lives")
    };
    let other = world.holder().await;
    assert_eq!(
        beat(world, holder, NOW + 5).await,
        Beat::Alive { others_end_ms: Some(NOW + LEASE_MS), catalog }
    );
    world.tasks.close_holder(other, NOW).await.unwrap();
    let late = beat(world, holder, NOW).await;
    assert!(matches!(late, Beat::Alive { .. }), "one that was on its way for long shortens nothing");
    rescue(world, Dead::Expired, &[], NOW + LEASE_MS).await;
    let late = NOW + 5 + LEASE_MS;
    assert!(matches!(beat(world, holder, late).await, Beat::Alive { .. }), "expired, but nobody came");
    rescue(world, Dead::Expired, &[], late + LEASE_MS).await;
    assert_eq!(beat(world, holder, late).await, Beat::Lost);
    assert_eq!(beat(world, Holder(1), NOW).await, Beat::Lost);
    let closed = world.holder().await;
    world.tasks.close_holder(closed, NOW).await.unwrap();
    assert_eq!(beat(world, closed, NOW).await, Beat::Lost);
}

pub async fn a_closed_holder_leaves_its_tasks_uncharged(world: &World) {
    let (holder, other) = (world.holder().await, world.holder().await);
    world.submit_plain(&world.ada, 5).await;
    let ours = world.lease(holder, 3).await;
    let theirs = world.lease(other, 2).await;
    assert_eq!(world.tasks.close_holder(holder, NOW).await.unwrap(), 3);
    for task in &ours {
        let view = world.view(&world.ada, task.id).await;
        assert_eq!((view.summary.state, view.summary.crashes), (TaskState::Pending, 0));
        assert_eq!(world.settle(holder, complete(task)).await, Settled::Stale);
    }
    assert_eq!(world.state(&world.ada, theirs[0].id).await, TaskState::Running);
    assert_eq!(world.tasks.close_holder(holder, NOW).await.unwrap(), 0);
}

pub async fn only_expired_holders_are_rescued(world: &World) {
    let early = world.tasks.open_holder(NOW, 10).await.unwrap();
    let late = world.tasks.open_holder(NOW, 20).await.unwrap();
    world.submit_plain(&world.ada, 2).await;
    let ours = lease_for(world, early, NOW, 1).await.remove(0);
    let theirs = lease_for(world, late, NOW, 1).await.remove(0);
    assert_eq!(rescue(world, Dead::Expired, &[], NOW + 9).await, Rescued::default());
    assert_eq!(rescue(world, Dead::Expired, &[], NOW + 10).await.returned, 1);
    assert_eq!(world.state(&world.ada, ours.id).await, TaskState::Pending);
    assert_eq!(world.state(&world.ada, theirs.id).await, TaskState::Running);
    assert_eq!(beat(world, early, NOW + 10).await, Beat::Lost);
    assert!(matches!(beat(world, late, NOW + 10).await, Beat::Alive { .. }));
}

/// Leases one task, and prolongs the holder's lease until so many milliseconds from then.
async fn lease_for(world: &World, holder: Holder, now_ms: i64, lease_ms: i64) -> Vec<LeasedTask> {
    let request = LeaseRequest { now_ms, lease_ms, ..request(holder, 1) };
    world.tasks.lease(request).await.unwrap().tasks
}

pub async fn a_lease_prolongs_its_holder_and_never_shortens(world: &World) {
    let holder = world.tasks.open_holder(NOW, 10).await.unwrap();
    let task = world.submit_plain(&world.ada, 1).await[0];
    assert_eq!(lease_for(world, holder, NOW + 5, 10).await.len(), 1);
    assert!(
        lease_for(world, holder, NOW + 6, 1).await.is_empty(),
        "nothing is left, and it does not shorten"
    );
    assert_eq!(rescue(world, Dead::Expired, &[], NOW + 14).await, Rescued::default());
    assert_eq!(world.state(&world.ada, task).await, TaskState::Running);
    assert_eq!(rescue(world, Dead::Expired, &[], NOW + 15).await.returned, 1);
}

pub async fn a_beat_tells_of_installs_and_removals(world: &World) {
    let holder = world.holder().await;
    let number = async || match beat(world, holder, NOW).await {
        Beat::Alive { catalog, .. } => catalog,
        Beat::Lost => panic!("the holder lives"),
    };
    let first = number().await;
    world.catalog.install(version(world.ada.tenant, "1", 1), NOW).await.unwrap();
    assert_eq!(number().await, first, "it was current already");
    world.catalog.install(version(world.ada.tenant, "2", 2), NOW).await.unwrap();
    let second = number().await;
    assert!(second > first);
    let back = Target::Before;
    world.catalog.activate(world.ada.tenant, &world.ada.plugin.name, back, NOW).await.unwrap();
    let third = number().await;
    assert!(third > second);
    world.catalog.remove(world.bob.tenant, &world.bob.plugin.name, RemoveWhen::Idle).await.unwrap();
    assert!(number().await > third);
}

pub async fn a_rescue_of_all_but_one_spares_that_one(world: &World) {
    let (dead, alive) = (world.holder().await, world.holder().await);
    world.submit_plain(&world.ada, 4).await;
    world.lease(dead, 3).await;
    let ours = world.lease(alive, 1).await.remove(0);
    let rescued = rescue(world, Dead::AllBut(alive), &[], NOW).await;
    assert_eq!(rescued, Rescued { returned: 3, crashed: 0, ..Rescued::default() });
    assert_eq!(beat(world, dead, NOW).await, Beat::Lost, "whatever its lease said");
    assert_eq!(world.settle(alive, complete(&ours)).await, Settled::Stored);
}

pub async fn only_started_tasks_are_charged_a_crash(world: &World) {
    let dead = world.holder().await;
    world.submit_plain(&world.ada, 3).await;
    let tasks = world.lease(dead, 3).await;
    // Known by an older token: it was another run that had started.
    let started = [(tasks[0].id, tasks[0].token), (tasks[1].id, other_token(tasks[1].token))];
    let alive = world.holder().await;
    let rescued = rescue(world, Dead::AllBut(alive), &started, NOW).await;
    assert_eq!(rescued, Rescued { returned: 3, crashed: 1, ..Rescued::default() });
    let again = world.lease(alive, 3).await;
    let crashes: Vec<u32> = again.iter().map(|task| task.crashes).collect();
    assert_eq!(crashes, [1, 0, 0]);
    assert!(again.iter().all(|task| task.attempts == 0));
}

pub async fn a_process_that_is_gone_is_known_by_what_it_had_started(world: &World) {
    let (gone, other) = (world.holder().await, world.holder().await);
    world.submit_plain(&world.ada, 3).await;
    let tasks = world.lease(gone, 2).await;
    let theirs = world.lease(other, 1).await.remove(0);
    let of_another_run = [(theirs.id, other_token(theirs.token))];
    assert_eq!(rescue(world, Dead::Expired, &of_another_run, NOW).await, Rescued::default());
    // Its lease lasts, and nobody waits for that.
    let rescued = rescue(world, Dead::Expired, &[(tasks[1].id, tasks[1].token)], NOW).await;
    assert_eq!(rescued, Rescued { returned: 2, crashed: 1, ..Rescued::default() });
    assert_eq!(beat(world, gone, NOW).await, Beat::Lost);
    let crashes = [world.view(&world.ada, tasks[0].id).await, world.view(&world.ada, tasks[1].id).await];
    assert_eq!(crashes.map(|view| view.summary.crashes), [0, 1]);
    assert_eq!(world.settle(other, complete(&theirs)).await, Settled::Stored);
}

/// Leases the only task and lets its host die while it runs.
async fn crash(world: &World) -> (LeasedTask, Rescued) {
    let dead = world.holder().await;
    let task = world.lease(dead, 1).await.remove(0);
    let alive = world.holder().await;
    let rescued = rescue(world, Dead::AllBut(alive), &[(task.id, task.token)], NOW + 3).await;
    world.tasks.close_holder(alive, NOW).await.unwrap();
    (task, rescued)
}

pub async fn a_third_crash_quarantines(world: &World) {
    let id = world.submit_plain(&world.ada, 1).await[0];
    for crashes in 0..2 {
        let (task, rescued) = crash(world).await;
        assert_eq!((task.crashes, rescued.returned, rescued.crashed), (crashes, 1, 1));
    }
    let (task, rescued) = crash(world).await;
    assert_eq!(task.crashes, 2);
    let failed = [((world.ada.tenant, world.ada.kind), 1)].into();
    assert_eq!(rescued, Rescued { quarantined: vec![id], failed, ..Rescued::default() });
    let view = world.view(&world.ada, id).await;
    assert_eq!((view.summary.state, view.summary.crashes), (TaskState::Failed, 3));
    assert_eq!((view.summary.finished_ms, view.token), (Some(NOW + 3), task.token));
    assert_eq!(view.failure.map(|failure| failure.code), Some(Code::Quarantined));
    assert!(view.attempts.is_empty(), "no attempt ended");
    assert_eq!(world.live(&world.ada).await, 0);
    let counts = world.records.counts(world.ada.tenant).await.unwrap();
    assert_eq!((counts.failed, counts.running), (1, 0));
}

pub async fn a_rescued_task_is_settled_by_its_next_holder_only(world: &World) {
    let dead = world.holder().await;
    let first = world.running(&world.ada, dead).await;
    let alive = world.holder().await;
    rescue(world, Dead::AllBut(alive), &[], NOW).await;
    assert_eq!(world.settle(dead, complete(&first)).await, Settled::Stale);
    let second = world.lease(alive, 1).await.remove(0);
    assert_eq!(second.id, first.id);
    assert_eq!(world.settle(dead, complete(&first)).await, Settled::Stale);
    assert_eq!(world.settle(alive, complete(&first)).await, Settled::Stale, "the token of the first lease");
    assert_eq!(world.settle(alive, complete(&second)).await, Settled::Stored);
}

/// Those of these leases that are over.
async fn stale(world: &World, leases: &[(TaskId, Token)]) -> BTreeSet<(TaskId, Token)> {
    world.tasks.stale(leases.to_vec()).await.unwrap().into_iter().collect()
}

fn leases(tasks: &[LeasedTask]) -> Vec<(TaskId, Token)> {
    tasks.iter().map(|task| (task.id, task.token)).collect()
}

pub async fn a_lease_is_over_when_its_task_has_ended_gone_back_or_been_leased_again(world: &World) {
    let (holder, other) = (world.holder().await, world.holder().await);
    let ids = world.submit_plain(&world.ada, 8).await;
    let tasks = world.lease(holder, 7).await;
    let ours = leases(&tasks);
    assert_eq!(stale(world, &ours).await, BTreeSet::new());
    let waits = ids.into_iter().find(|id| tasks.iter().all(|task| task.id != *id)).unwrap();
    let other_lease = (tasks[5].id, other_token(tasks[5].token));
    let nobodys = [(waits, Token(0)), (waits, Token(1)), (TaskId(1), Token(1)), other_lease];
    assert_eq!(stale(world, &nobodys).await, BTreeSet::from(nobodys));

    let ends = [
        complete(&tasks[0]),
        fail(&tasks[1], Code::Trap),
        hand_back(&tasks[2]),
        retry(&tasks[3], Code::Trap, NOW + 10),
    ];
    for end in ends {
        assert_eq!(world.settle(holder, end).await, Settled::Stored);
    }
    world.tasks.cancel(world.ada.tenant, tasks[4].id, NOW).await.unwrap();
    let over = BTreeSet::from_iter(ours[..5].to_vec());
    assert_eq!(stale(world, &ours).await, over);

    // Whoever has it now.
    let again = world.lease(other, 8).await;
    assert_eq!(again.len(), 2, "the one that was handed back, and the one that had waited");
    assert_eq!(stale(world, &[ours.clone(), leases(&again)].concat()).await, over);
    world.tasks.close_holder(holder, NOW).await.unwrap();
    assert_eq!(stale(world, &leases(&again)).await, BTreeSet::new());
    assert_eq!(stale(world, &ours).await, BTreeSet::from_iter(ours));
}
