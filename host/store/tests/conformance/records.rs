//! What readers see.

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::id::TaskId;
use keiko_core::task::{Amendment, CancelAnswer, RetryAnswer, Settlement, TaskCounts, TaskFilter, TaskState};

use crate::world::{Customer, NOW, ROOMY, World, child, complete, fail, version, with_children};

/// Two tasks of Ada's in every state; the ids by state.
async fn every_state(world: &World) -> Vec<(TaskState, Vec<TaskId>)> {
    let holder = world.holder().await;
    let mut by_state = Vec::new();
    for state in [TaskState::Completed, TaskState::Failed, TaskState::Cancelled, TaskState::Running] {
        let ids = world.submit_plain(&world.ada, 2).await;
        for task in world.lease(holder, 2).await {
            if state == TaskState::Completed {
                world.settle(holder, complete(&task)).await;
            } else if state == TaskState::Failed {
                world.settle(holder, fail(&task, Code::Trap)).await;
            } else if state == TaskState::Cancelled {
                world.tasks.cancel(world.ada.tenant, task.id, NOW).await.unwrap();
            }
        }
        by_state.push((state, ids));
    }
    by_state.push((TaskState::Pending, world.submit_plain(&world.ada, 2).await));
    by_state
}

pub async fn another_tenant_sees_and_changes_nothing(world: &World) {
    let bob = world.bob.tenant;
    let holder = world.holder().await;
    let logged = world.running(&world.ada, holder).await;
    let done = Settlement { log: Bytes::from_static(b"a line"), ..complete(&logged) };
    world.settle(holder, done).await;
    assert_eq!(world.records.logs(world.ada.tenant, logged.id).await.unwrap().len(), 1);
    let mut all = every_state(world).await;
    all.push((TaskState::Completed, vec![logged.id]));
    for (state, ids) in all {
        for id in ids {
            assert_eq!(world.records.task(bob, id).await.unwrap(), None);
            assert!(world.records.logs(bob, id).await.unwrap().is_empty());
            assert_eq!(world.tasks.cancel(bob, id, NOW).await.unwrap(), CancelAnswer::NotFound);
            let retried = world.tasks.retry(bob, id, Amendment::default(), ROOMY, NOW).await.unwrap();
            assert_eq!(retried, RetryAnswer::NotFound);
            let of_parent = TaskFilter { parent: Some(id), ..TaskFilter::default() };
            assert!(world.list(&world.bob, &of_parent).await.is_empty());
            assert_eq!(world.state(&world.ada, id).await, state);
        }
    }
    assert!(world.list(&world.bob, &TaskFilter::default()).await.is_empty());
    assert_eq!(world.records.counts(bob).await.unwrap(), TaskCounts::default());
}

pub async fn lists_are_newest_first_in_pages_without_gaps(world: &World) {
    let mut ids: Vec<TaskId> = every_state(world).await.into_iter().flat_map(|(_, ids)| ids).collect();
    ids.sort();
    ids.reverse();
    world.submit_plain(&world.bob, 3).await;
    for size in [1, 3, 10, 11] {
        let mut pages = Vec::new();
        let mut filter = TaskFilter::default();
        loop {
            let page = world.records.list(world.ada.tenant, &filter, size).await.unwrap();
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            filter.before = Some(last.id);
            pages.extend(page.iter().map(|task| task.id));
            assert!(pages.len() <= ids.len(), "pages of {size} go on for ever");
        }
        assert_eq!(pages, ids, "pages of {size}");
    }
}

async fn ids(world: &World, customer: &Customer, filter: TaskFilter) -> Vec<TaskId> {
    world.list(customer, &filter).await.iter().map(|task| task.id).collect()
}

pub async fn lists_filter_by_state_plugin_kind_and_parent(world: &World) {
    let by_state = every_state(world).await;
    for (state, mut expected) in by_state.clone() {
        expected.reverse();
        let filter = TaskFilter { state: Some(state), ..TaskFilter::default() };
        assert_eq!(ids(world, &world.ada, filter.clone()).await, expected, "{state:?}");
        let before = TaskFilter { before: Some(expected[0]), ..filter };
        assert_eq!(ids(world, &world.ada, before).await, expected[1..], "{state:?}");
    }
    let holder = world.holder().await;
    let mut walk = world.new_tasks(&world.ada, 1).await;
    walk[0].kind = world.ada.other_kind;
    (walk[0].run_at_ms, walk[0].created_ms) = (NOW - 1, NOW - 1);
    let walk = world.submit(&world.ada, walk).await[0];
    let parent = world.lease(holder, 1).await.remove(0);
    assert_eq!(parent.id, walk);
    let first = world.tasks.reserve_ids(2, NOW).await.unwrap().first.0;
    let children = (first..first + 2).map(|id| child(&world.ada, TaskId(id), None, "1")).collect();
    world.settle(holder, with_children(complete(&parent), children)).await;
    world.tasks.cancel(world.ada.tenant, TaskId(first), NOW).await.unwrap();

    let name = |text: &str| Some(text.parse().unwrap());
    let kind = |kind: &str| TaskFilter { kind: Some(kind.parse().unwrap()), ..TaskFilter::default() };
    assert_eq!(ids(world, &world.ada, kind("walk")).await, [walk]);
    assert_eq!(ids(world, &world.ada, kind("run")).await.len(), 12);
    assert!(ids(world, &world.ada, kind("swim")).await.is_empty());
    let plugin = |plugin: &str| TaskFilter { plugin: name(plugin), ..TaskFilter::default() };
    assert_eq!(ids(world, &world.ada, plugin("p")).await.len(), 13);
    assert!(ids(world, &world.ada, plugin("q")).await.is_empty());
    let both = TaskFilter { plugin: name("p"), ..kind("walk") };
    assert_eq!(ids(world, &world.ada, both).await, [walk]);
    let completed_walks = TaskFilter { state: Some(TaskState::Completed), ..kind("walk") };
    assert_eq!(ids(world, &world.ada, completed_walks).await, [walk]);
    let failed_walks = TaskFilter { state: Some(TaskState::Failed), ..kind("walk") };
    assert!(ids(world, &world.ada, failed_walks).await.is_empty());

    let of_parent = TaskFilter { parent: Some(walk), ..TaskFilter::default() };
    assert_eq!(ids(world, &world.ada, of_parent.clone()).await, [TaskId(first + 1), TaskId(first)]);
    for state in TaskState::ALL {
        let filter = TaskFilter { state: Some(state), ..of_parent.clone() };
        let expected: &[TaskId] = match state {
            TaskState::Pending => &[TaskId(first + 1)],
            TaskState::Cancelled => &[TaskId(first)],
            _ => &[],
        };
        assert_eq!(ids(world, &world.ada, filter).await, expected, "{state:?}");
    }
}

pub async fn counts_equal_what_lists_show(world: &World) {
    every_state(world).await;
    let counts = world.records.counts(world.ada.tenant).await.unwrap();
    assert_eq!(counts, TaskCounts { pending: 2, running: 2, completed: 2, failed: 2, cancelled: 2 });
}

pub async fn live_tasks_are_counted_per_tenant(world: &World) {
    assert!(world.records.live().await.unwrap().is_empty());
    every_state(world).await;
    world.submit_plain(&world.bob, 1).await;
    let live = world.records.live().await.unwrap();
    assert_eq!(live, [(world.ada.tenant, 4), (world.bob.tenant, 1)].into());
}

pub async fn a_missing_task_is_none(world: &World) {
    assert_eq!(world.records.task(world.ada.tenant, TaskId(9)).await.unwrap(), None);
    assert!(world.records.logs(world.ada.tenant, TaskId(9)).await.unwrap().is_empty());
    let nobody = keiko_core::TenantId(99);
    assert_eq!(world.records.counts(nobody).await.unwrap(), TaskCounts::default());
    // A version that is installed later does not change what is listed.
    world.catalog.install(version(world.ada.tenant, "2", 2), NOW).await.unwrap();
    assert!(world.list(&world.ada, &TaskFilter::default()).await.is_empty());
}

pub async fn the_store_answers_a_ping(world: &World) {
    world.records.ping().await.unwrap();
}
