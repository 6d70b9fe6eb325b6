//! Groups: one outcome per task, windows, failing fast.

use keiko_core::code::Code;
use keiko_core::group::{Group, GroupState, NewGroup};
use keiko_core::id::{GroupId, TaskId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::port::Dead;
use keiko_core::retention::KeptFrom;
use keiko_core::task::{Amendment, NewTask, Payload, Submit, Submitted, TaskState, Transition};

use crate::world::{NOW, ROOMY, World, complete, fail, retry, settlement, submit};

/// Submits so many tasks of Ada's as a group; their ids.
pub async fn grouped(world: &World, count: u32, asked: NewGroup) -> (GroupId, Vec<TaskId>) {
    let mut tasks = world.new_tasks(&world.ada, count).await;
    let group = GroupId(tasks[0].id.0);
    for (place, task) in tasks.iter_mut().enumerate() {
        (task.group, task.held) = (Some(group), asked.holds(place));
    }
    let whole = Submit { group: Some(asked), ..submit(&world.ada, tasks.clone()) };
    let answer = world.try_submit(whole).await;
    assert!(matches!(answer, Submitted::Accepted { duplicate: false, .. }), "{answer:?}");
    (group, tasks.iter().map(|task: &NewTask| task.id).collect())
}

async fn group(world: &World, id: GroupId) -> Group {
    world.records.group(world.ada.tenant, id).await.unwrap().expect("the group exists")
}

fn window(live_max: u32) -> NewGroup {
    NewGroup { live_max: Some(live_max), fail_fast: false }
}

pub async fn a_groups_outcomes_come_in_the_order_of_submission(world: &World) {
    let (id, ids) = grouped(world, 5, NewGroup::default()).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 5).await;
    assert_eq!(leased[0].group, Some(id));
    assert_eq!(group(world, id).await.state(), GroupState::Open);
    // The last ends first.
    world.settle(holder, complete(&leased[4])).await;
    world.settle(holder, fail(&leased[1], Code::Trap)).await;
    world.settle(holder, retry(&leased[2], Code::Internal, NOW)).await;
    world.tasks.cancel(world.ada.tenant, ids[0], NOW).await.unwrap();
    let now = group(world, id).await;
    assert_eq!((now.count, now.completed, now.failed, now.cancelled), (5, 1, 1, 1));
    assert_eq!((now.state(), now.next, now.finished_ms), (GroupState::Open, Some(ids[2]), None));
    let outcomes = |first, end, limit| world.records.outcomes(world.ada.tenant, (first, end), limit);
    let all = outcomes(now.task(0), now.task(5), 100).await.unwrap();
    let told: Vec<_> = all.iter().map(|one| (one.task, one.state)).collect();
    use TaskState::{Cancelled, Completed, Failed, Pending, Running};
    let states = [Cancelled, Failed, Pending, Running, Completed];
    assert_eq!(told, ids.iter().copied().zip(states).collect::<Vec<_>>());
    assert_eq!(all[4].result.as_ref().unwrap().bytes, "\"done\"");
    assert_eq!(all[1].failure.as_ref().unwrap().code, Code::Trap);
    let page: Vec<TaskId> =
        outcomes(ids[1], now.task(5), 2).await.unwrap().iter().map(|one| one.task).collect();
    assert_eq!(page, ids[1..3]);
    world.settle(holder, complete(&leased[3])).await;
    let last = world.lease(holder, 5).await.remove(0);
    world.settle(holder, complete(&last)).await;
    let now = group(world, id).await;
    assert_eq!((now.state(), now.next, now.finished_ms), (GroupState::Failed, None, Some(NOW)));
}

pub async fn a_window_lets_held_tasks_go_when_others_end(world: &World) {
    let (id, ids) = grouped(world, 6, window(2)).await;
    let holder = world.holder().await;
    let first = world.lease(holder, 10).await;
    assert_eq!(first.iter().map(|task| task.id).collect::<Vec<_>>(), ids[..2]);
    let held = world.view(&world.ada, ids[3]).await.summary;
    assert_eq!((held.state, held.run_at_ms), (TaskState::Pending, NOW));
    assert!(world.lease(holder, 10).await.is_empty());
    // A retry is no end.
    world.settle(holder, retry(&first[0], Code::Internal, NOW)).await;
    let again = world.lease(holder, 10).await;
    assert_eq!(again.iter().map(|task| task.id).collect::<Vec<_>>(), [ids[0]]);
    world.settle(holder, complete(&first[1])).await;
    // What is cancelled while it is held makes no room.
    world.tasks.cancel(world.ada.tenant, ids[3], NOW).await.unwrap();
    let next = world.lease(holder, 10).await;
    assert_eq!(next.iter().map(|task| task.id).collect::<Vec<_>>(), [ids[2]]);
    let both = vec![fail(&again[0], Code::Trap), complete(&next[0])];
    world.tasks.settle(holder, both, NOW).await.unwrap();
    let last = world.lease(holder, 10).await;
    assert_eq!(last.iter().map(|task| task.id).collect::<Vec<_>>(), ids[4..]);
    world.tasks.settle(holder, last.iter().map(complete).collect(), NOW).await.unwrap();
    assert_eq!(group(world, id).await.state(), GroupState::Failed);
    assert_eq!(world.live(&world.ada).await, 0);
}

pub async fn a_group_that_fails_fast_is_cancelled_when_one_has_failed(world: &World) {
    let asked = NewGroup { live_max: Some(2), fail_fast: true };
    let (id, ids) = grouped(world, 5, asked).await;
    let cancel =
        |only_failed, count_max| world.tasks.cancel_group(world.ada.tenant, id, only_failed, NOW, count_max);
    assert_eq!(cancel(true, 10).await.unwrap(), None, "none has failed");
    let holder = world.holder().await;
    let leased = world.lease(holder, 10).await;
    world.settle(holder, fail(&leased[0], Code::Trap)).await;
    assert!(world.lease(holder, 10).await.is_empty(), "no held task goes");
    assert_eq!(cancel(true, 3).await.unwrap(), Some(vec![ids[4], ids[3], ids[2]]));
    assert_eq!(cancel(true, 3).await.unwrap(), Some(vec![ids[1]]));
    assert_eq!(cancel(true, 3).await.unwrap(), Some(Vec::new()));
    let now = group(world, id).await;
    assert_eq!((now.state(), now.failed, now.cancelled), (GroupState::Failed, 1, 4));
    // A group that collects goes on, until somebody cancels it.
    let (id, _) = grouped(world, 3, NewGroup::default()).await;
    let leased = world.lease(holder, 1).await;
    world.settle(holder, fail(&leased[0], Code::Trap)).await;
    let cancel = |only_failed| world.tasks.cancel_group(world.ada.tenant, id, only_failed, NOW, 10);
    assert_eq!(cancel(true).await.unwrap(), None);
    assert_eq!(cancel(false).await.unwrap().map(|ids| ids.len()), Some(2));
}

pub async fn a_rescue_tells_of_groups_that_failed_fast_and_go_on(world: &World) {
    let fast = NewGroup { live_max: Some(1), fail_fast: true };
    let holder = world.holder().await;
    let mut groups = Vec::new();
    for asked in [fast, NewGroup::default(), fast] {
        let (id, _) = grouped(world, 2, asked).await;
        let leased = world.lease(holder, 10).await;
        assert_eq!(leased[0].group, Some(id));
        world.settle(holder, fail(&leased[0], Code::Trap)).await;
        groups.push((world.ada.tenant, id));
    }
    grouped(world, 1, fast).await;
    let rescue = async || world.tasks.rescue(Dead::Expired, Vec::new(), NOW).await.unwrap().groups;
    assert_eq!(rescue().await, [groups[0], groups[2]], "none that collects, or has not failed");
    world.tasks.cancel_group(world.ada.tenant, groups[0].1, true, NOW, 10).await.unwrap();
    assert_eq!(rescue().await, [groups[2]]);
}

pub async fn a_retry_by_hand_opens_a_group_again(world: &World) {
    let (id, ids) = grouped(world, 1, NewGroup::default()).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 1).await;
    world.settle(holder, fail(&leased[0], Code::Trap)).await;
    assert_eq!(group(world, id).await.state(), GroupState::Failed);
    world.tasks.retry(world.ada.tenant, ids[0], Amendment::default(), ROOMY, NOW).await.unwrap();
    let now = group(world, id).await;
    assert_eq!((now.state(), now.failed, now.finished_ms), (GroupState::Open, 0, None));
    let leased = world.lease(holder, 1).await;
    world.settle(holder, complete(&leased[0])).await;
    assert_eq!(group(world, id).await.state(), GroupState::Completed);
}

pub async fn another_tenant_has_no_group(world: &World) {
    let (id, ids) = grouped(world, 2, NewGroup::default()).await;
    let bob = world.bob.tenant;
    assert_eq!(world.records.group(bob, id).await.unwrap(), None);
    assert_eq!(world.tasks.cancel_group(bob, id, false, NOW, 10).await.unwrap(), None);
    let none = world.records.outcomes(bob, (ids[0], TaskId(ids[1].0 + 1)), 10).await.unwrap();
    assert!(none.is_empty());
    assert_eq!(world.records.group(world.ada.tenant, GroupId(id.0 + 1)).await.unwrap(), None);
    assert_eq!(group(world, id).await.state(), GroupState::Open);
}

pub async fn a_window_of_any_size_is_told_as_it_was_asked_for(world: &World) {
    for live_max in [1, i32::MAX as u32, i32::MAX as u32 + 1, u32::MAX] {
        let (id, _) = grouped(world, 2, window(live_max)).await;
        assert_eq!(group(world, id).await.asked, window(live_max));
    }
}

pub async fn a_page_of_large_outcomes_ends_early(world: &World) {
    let (_, ids) = grouped(world, 4, NewGroup::default()).await;
    let holder = world.holder().await;
    let large = vec![b'1'; (USER_RESULTS_BYTES_MAX / 2) as usize];
    for task in world.lease(holder, 4).await {
        let result = Transition::Complete(Payload::json(large.clone()));
        world.settle(holder, settlement(&task, result)).await;
    }
    let end = TaskId(ids[3].0 + 1);
    let page = async |first| {
        let page = world.records.outcomes(world.ada.tenant, (first, end), 10).await.unwrap();
        assert!(page.iter().all(|one| one.result.as_ref().unwrap().bytes.len() == large.len()));
        page.iter().map(|one| one.task).collect::<Vec<_>>()
    };
    assert_eq!(page(ids[0]).await, ids[..3], "two fill the page, the third says that there is more");
    assert_eq!(page(ids[3]).await, ids[3..]);
}

pub async fn a_group_is_forgotten_with_its_first_task(world: &World) {
    let (id, ids) = grouped(world, 2, NewGroup::default()).await;
    world.tasks.cancel_group(world.ada.tenant, id, false, NOW, 10).await.unwrap();
    let kept = KeptFrom { cancelled_ms: Some(NOW + 1_000_000_000), ..KeptFrom::default() };
    let pruned = world.tasks.prune_finished(world.ada.tenant, kept, None, 1).await.unwrap();
    assert_eq!(pruned.pruned, 1);
    assert_eq!(world.records.group(world.ada.tenant, id).await.unwrap(), None);
    assert!(world.records.task(world.ada.tenant, ids[1]).await.unwrap().is_some());
}
