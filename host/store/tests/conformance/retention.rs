//! Forgetting ended tasks.

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::group::NewGroup;
use keiko_core::id::TaskId;
use keiko_core::port::Pruned;
use keiko_core::retention::KeptFrom;
use keiko_core::task::{DropAnswer, Settlement, TaskCounts, TaskFilter, TaskState};

use crate::groups::grouped;
use crate::world::{NOW, World, complete, fail};

/// After everything that these tests store.
const LATER: i64 = NOW + 1_000_000;

async fn prune(world: &World, kept: KeptFrom, after: Option<TaskId>, count_max: u32) -> Pruned {
    world.tasks.prune_finished(world.ada.tenant, kept, after, count_max).await.unwrap()
}

/// A completed, a failed and a cancelled task that ended then, in this order.
async fn three_ends(world: &World, now_ms: i64) -> Vec<TaskId> {
    let holder = world.holder().await;
    let ids = world.submit_plain(&world.ada, 3).await;
    let tasks = world.lease(holder, 3).await;
    let done = Settlement { log: Bytes::from_static(b"a line"), ..complete(&tasks[0]) };
    let ends = vec![done, fail(&tasks[1], Code::Trap)];
    world.tasks.settle(holder, ends, now_ms).await.unwrap();
    world.tasks.cancel(world.ada.tenant, tasks[2].id, now_ms).await.unwrap();
    ids
}

async fn left(world: &World) -> Vec<TaskId> {
    let mut ids: Vec<TaskId> =
        world.list(&world.ada, &TaskFilter::default()).await.iter().map(|task| task.id).collect();
    ids.sort();
    ids
}

pub async fn ended_tasks_are_forgotten_by_how_and_when_they_ended(world: &World) {
    let old = three_ends(world, NOW + 10).await;
    let new = three_ends(world, NOW + 20).await;
    world.submit_plain(&world.bob, 1).await;
    assert_eq!(prune(world, KeptFrom::default(), None, 100).await, Pruned::default());
    // Ids start at a whole millisecond, so nothing that was created in it is looked at before it is over.
    let kept = KeptFrom { completed_ms: Some(NOW + 20), ..KeptFrom::default() };
    assert_eq!(prune(world, kept, None, 100).await.pruned, 1);
    assert_eq!(left(world).await, [old[1], old[2], new[0], new[1], new[2]]);
    assert_eq!(world.records.task(world.ada.tenant, old[0]).await.unwrap(), None);
    assert!(world.records.logs(world.ada.tenant, old[0]).await.unwrap().is_empty());
    let kept = KeptFrom { failed_ms: Some(LATER), cancelled_ms: Some(NOW + 20), ..KeptFrom::default() };
    assert_eq!(prune(world, kept, None, 100).await.pruned, 3);
    assert_eq!(left(world).await, [new[0], new[2]]);
    let counts = TaskCounts { completed: 1, cancelled: 1, ..TaskCounts::default() };
    assert_eq!(world.records.counts(world.ada.tenant).await.unwrap(), counts);
    assert_eq!(world.state(&world.ada, new[0]).await, TaskState::Completed);
}

pub async fn forgetting_goes_on_where_it_stopped(world: &World) {
    for _ in 0..3 {
        three_ends(world, NOW + 10).await;
    }
    let kept = KeptFrom { failed_ms: Some(LATER), ..KeptFrom::default() };
    let (mut after, mut pruned, mut rounds) = (None, 0, 0);
    loop {
        let round = prune(world, kept, after, 4).await;
        rounds += 1;
        pruned += round.pruned;
        after = round.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pruned, rounds), (3, 3));
    assert_eq!(left(world).await.len(), 6);
}

pub async fn what_is_open_is_never_forgotten(world: &World) {
    let holder = world.holder().await;
    let running = world.running(&world.ada, holder).await;
    let pending = world.submit_plain(&world.ada, 1).await;
    let kept = KeptFrom { completed_ms: Some(LATER), failed_ms: Some(LATER), cancelled_ms: Some(LATER) };
    assert_eq!(prune(world, kept, None, 100).await.pruned, 0);
    assert_eq!(left(world).await, [running.id, pending[0]]);
    assert_eq!(world.live(&world.ada).await, 2);
}

pub async fn an_ended_task_is_dropped_with_all_that_is_kept_of_it(world: &World) {
    let (ada, bob) = (world.ada.tenant, world.bob.tenant);
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let waits = world.submit_plain(&world.ada, 1).await[0];
    let answer = world.tasks.drop_task(ada, task.id).await.unwrap();
    assert_eq!(answer, DropAnswer::Live(TaskState::Running));
    assert_eq!(world.tasks.drop_task(ada, waits).await.unwrap(), DropAnswer::Live(TaskState::Pending));
    let failed = Settlement { log: Bytes::from("log"), ..fail(&task, Code::Trap) };
    world.settle(holder, failed).await;
    assert_eq!(world.tasks.drop_task(bob, task.id).await.unwrap(), DropAnswer::NotFound);
    assert_eq!(world.tasks.drop_task(ada, task.id).await.unwrap(), DropAnswer::Dropped);
    assert_eq!(world.records.task(ada, task.id).await.unwrap(), None);
    assert!(world.records.logs(ada, task.id).await.unwrap().is_empty());
    let counts = world.records.counts(ada).await.unwrap();
    assert_eq!((counts.failed, counts.pending), (0, 1));
    assert_eq!(world.tasks.drop_task(ada, task.id).await.unwrap(), DropAnswer::NotFound);
}

pub async fn tasks_of_an_open_group_stay(world: &World) {
    let ada = world.ada.tenant;
    let (id, ids) = grouped(world, 3, NewGroup::default()).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 3).await;
    world.settle(holder, complete(&leased[0])).await;
    world.settle(holder, fail(&leased[1], Code::Trap)).await;
    let all = KeptFrom { completed_ms: Some(LATER), failed_ms: Some(LATER), cancelled_ms: Some(LATER) };
    let answers = async |task| world.tasks.drop_task(ada, task).await.unwrap();
    for task in &ids[..2] {
        assert_eq!(answers(*task).await, DropAnswer::OpenGroup(id));
    }
    assert_eq!(answers(ids[2]).await, DropAnswer::Live(TaskState::Running));
    assert_eq!(world.tasks.drop_task(world.bob.tenant, ids[0]).await.unwrap(), DropAnswer::NotFound);
    let walked = prune(world, all, None, 2).await;
    assert_eq!(walked, Pruned { pruned: 0, next: Some(ids[1]) }, "they hold up no walk");
    assert_eq!(left(world).await, ids);
    world.settle(holder, complete(&leased[2])).await;
    assert_eq!(answers(ids[1]).await, DropAnswer::Dropped);
    assert_eq!(prune(world, all, None, 100).await.pruned, 2);
    assert_eq!(world.records.group(ada, id).await.unwrap(), None);
    assert!(left(world).await.is_empty());
}
