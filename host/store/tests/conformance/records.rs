//! What readers see.

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::group::NewGroup;
use keiko_core::id::{GroupId, TaskId};
use keiko_core::policy::BudgetRequest;
use keiko_core::task::{
    Amendment, CancelAnswer, JSON, Payload, RetryAnswer, Settlement, Submit, Submitted, TaskCounts,
    TaskFilter, TaskState, TimeRange,
};

use crate::groups;
use crate::world::{Customer, NOW, ROOMY, World, child, complete, fail, submit, version, with_children};

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

pub async fn lists_filter_by_root_and_group(world: &World) {
    let holder = world.holder().await;
    let root = world.running(&world.ada, holder).await;
    let first = world.tasks.reserve_ids(3, NOW).await.unwrap().first;
    let [one, two, below] = [0, 1, 2].map(|at| TaskId(first.0 + at));
    let children = [one, two].map(|id| child(&world.ada, id, None, "1")).to_vec();
    world.settle(holder, with_children(complete(&root), children)).await;
    let parent = world.lease(holder, 1).await.remove(0);
    assert_eq!(parent.id, one);
    let grandchild = vec![child(&world.ada, below, None, "1")];
    world.settle(holder, with_children(complete(&parent), grandchild)).await;
    world.tasks.cancel(world.ada.tenant, two, NOW).await.unwrap();
    let (group, grouped) = groups::grouped(world, 3, NewGroup::default()).await;
    world.tasks.cancel(world.ada.tenant, grouped[1], NOW).await.unwrap();
    world.submit_plain(&world.ada, 2).await;

    let of_root = TaskFilter { root: Some(root.id), ..TaskFilter::default() };
    let of_group = TaskFilter { group: Some(group), ..TaskFilter::default() };
    let check = async |filter: &TaskFilter, expected: &[TaskId]| {
        assert_eq!(ids(world, &world.ada, filter.clone()).await, expected, "{filter:?}");
        assert!(ids(world, &world.bob, filter.clone()).await.is_empty(), "{filter:?}");
    };
    check(&of_root, &[below, two, one, root.id]).await;
    check(&TaskFilter { before: Some(two), ..of_root.clone() }, &[one, root.id]).await;
    check(&TaskFilter { root: Some(one), ..TaskFilter::default() }, &[]).await;
    check(&of_group, &[grouped[2], grouped[1], grouped[0]]).await;
    check(&TaskFilter { before: Some(grouped[2]), ..of_group.clone() }, &[grouped[1], grouped[0]]).await;
    check(&TaskFilter { group: Some(GroupId(root.id.0)), ..TaskFilter::default() }, &[]).await;
    check(&TaskFilter { root: Some(grouped[0]), ..of_group.clone() }, &[grouped[0]]).await;
    for filter in [&of_root, &of_group] {
        let kind = |kind: &str| TaskFilter { kind: Some(kind.parse().unwrap()), ..filter.clone() };
        let all = ids(world, &world.ada, filter.clone()).await;
        check(&kind("run"), &all).await;
        check(&kind("walk"), &[]).await;
    }
    for state in TaskState::ALL {
        let (in_root, in_group): (&[TaskId], &[TaskId]) = match state {
            TaskState::Pending => (&[below], &[grouped[2], grouped[0]]),
            TaskState::Completed => (&[one, root.id], &[]),
            TaskState::Cancelled => (&[two], &[grouped[1]]),
            TaskState::Running | TaskState::Failed => (&[], &[]),
        };
        check(&TaskFilter { state: Some(state), ..of_root.clone() }, in_root).await;
        check(&TaskFilter { state: Some(state), ..of_group.clone() }, in_group).await;
    }
}

pub async fn lists_filter_by_when_tasks_were_created_and_ended(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    for (task, at) in tasks.iter_mut().zip([0, 1, 2, 3]) {
        (task.created_ms, task.run_at_ms) = (NOW - 30 + at * 10, NOW - 30 + at * 10);
    }
    let made = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 2).await;
    let ended = |task, at| world.tasks.settle(holder, vec![task], at);
    ended(complete(&leased[0]), NOW + 1).await.unwrap();
    ended(fail(&leased[1], Code::Trap), NOW + 2).await.unwrap();
    world.tasks.cancel(world.ada.tenant, made[2], NOW + 3).await.unwrap();

    let range = |from_ms: i64, to_ms: i64| TimeRange { from_ms: Some(from_ms), to_ms: Some(to_ms) };
    let check = async |state, created, finished, expected: &[usize]| {
        let filter = TaskFilter { state, created, finished, ..TaskFilter::default() };
        let expected: Vec<TaskId> = expected.iter().rev().map(|at| made[*at]).collect();
        assert_eq!(ids(world, &world.ada, filter.clone()).await, expected, "{filter:?}");
        let before = TaskFilter { before: Some(made[1]), ..filter };
        let earlier: Vec<TaskId> = expected.into_iter().filter(|id| *id < made[1]).collect();
        assert_eq!(ids(world, &world.ada, before).await, earlier);
    };
    let (any, all) = (None, TimeRange::default());
    check(any, range(NOW - 30, NOW), all, &[0, 1, 2, 3]).await;
    check(any, range(NOW - 29, NOW - 1), all, &[1, 2]).await;
    check(any, range(NOW - 20, NOW - 10), all, &[1, 2]).await;
    check(any, TimeRange { from_ms: Some(NOW), to_ms: None }, all, &[3]).await;
    check(any, TimeRange { from_ms: None, to_ms: Some(NOW - 30) }, all, &[0]).await;
    check(any, range(NOW + 1, NOW + 2), all, &[]).await;
    check(any, all, range(NOW + 1, NOW + 3), &[0, 1, 2]).await;
    check(any, all, range(NOW + 2, NOW + 2), &[1]).await;
    check(any, all, TimeRange { from_ms: None, to_ms: Some(NOW + 1) }, &[0]).await;
    check(Some(TaskState::Failed), all, TimeRange { from_ms: Some(NOW + 2), to_ms: None }, &[1]).await;
    check(Some(TaskState::Failed), all, TimeRange { from_ms: Some(NOW + 3), to_ms: None }, &[]).await;
    check(Some(TaskState::Pending), range(NOW - 30, NOW), all, &[3]).await;
    check(Some(TaskState::Pending), all, range(NOW - 30, NOW + 9), &[]).await;
    check(any, range(NOW - 20, NOW), range(NOW + 1, NOW + 2), &[1]).await;
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

/// So many tasks of Ada's, each of which is given other bytes, of a size and a type.
async fn given(world: &World, count: u32, size: usize, content_type: &str) -> Vec<(TaskId, Payload)> {
    let mut tasks = world.new_tasks(&world.ada, count).await;
    for (task, byte) in tasks.iter_mut().zip(1..) {
        let bytes = Bytes::from(vec![byte; size]);
        task.input = Payload { content_type: content_type.to_owned(), bytes };
    }
    world.submit(&world.ada, tasks.clone()).await;
    tasks.into_iter().map(|task| (task.id, task.input)).collect()
}

pub async fn what_a_task_is_given_is_told_until_it_completes(world: &World) {
    let ada = world.ada.tenant;
    let holder = world.holder().await;
    let inputs = [(0, "image/x-odd"), (20, JSON), (2_049, "image/x-odd"), (100_000, JSON)];
    let mut expected: Vec<(TaskId, Option<Payload>)> = Vec::new();
    for (size, content_type) in inputs {
        let tasks = given(world, 4, size, content_type).await;
        let leased = world.lease(holder, 4).await;
        let ids: Vec<TaskId> = leased.iter().map(|task| task.id).collect();
        assert_eq!(ids, tasks.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        world.settle(holder, complete(&leased[0])).await;
        world.settle(holder, fail(&leased[1], Code::Trap)).await;
        world.tasks.cancel(ada, ids[2], NOW).await.unwrap();
        expected.push((ids[0], None));
        expected.extend(tasks.into_iter().skip(1).map(|(id, input)| (id, Some(input))));
    }
    for (size, content_type) in inputs {
        let waiting = given(world, 2, size, content_type).await;
        expected.extend(waiting.into_iter().map(|(id, input)| (id, Some(input))));
    }
    let input = Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from(vec![b'x'; 3_000]) };
    let amendment = Amendment { input: Some(input.clone()), ..Amendment::default() };
    let retried = world.tasks.retry(ada, expected[1].0, amendment, ROOMY, NOW).await.unwrap();
    assert_eq!(retried, RetryAnswer::Retried);
    expected[1].1 = Some(input);
    for (id, input) in expected {
        let told = world.records.input(ada, id).await.unwrap();
        assert!(told == input, "{id}: {:?} instead of {:?}", told.map(short), input.map(short));
        assert_eq!(world.records.input(world.bob.tenant, id).await.unwrap(), None);
    }
}

/// An input as a failing test shows it.
fn short(input: Payload) -> (String, usize, Option<u8>) {
    (input.content_type, input.bytes.len(), input.bytes.first().copied())
}

pub async fn a_task_says_its_group_its_key_and_what_it_asked_for(world: &World) {
    let budget = BudgetRequest { fuel: Some(5), ..BudgetRequest::default() };
    let timed = BudgetRequest { total_ms: Some(60_000), ..budget };
    let mut tasks = world.new_tasks(&world.ada, 5).await;
    let group = GroupId(tasks[0].id.0);
    // One of a key runs at once.
    for (place, task) in tasks.iter_mut().enumerate() {
        (task.group, task.slot_key, task.budget) = (Some(group), Some(format!("k{place}")), timed);
    }
    let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
    let whole = Submit { group: Some(NewGroup::default()), ..submit(&world.ada, tasks) };
    assert!(matches!(world.try_submit(whole).await, Submitted::Accepted { count: 5, .. }));
    let mut alone = world.new_tasks(&world.ada, 1).await;
    alone[0].budget = budget;
    let alone = world.submit(&world.ada, alone).await[0];
    let plain = world.submit_plain(&world.ada, 1).await[0];
    let holder = world.holder().await;
    let leased = world.lease(holder, 4).await;
    assert_eq!(leased.iter().map(|task| task.id).collect::<Vec<_>>(), ids[..4]);
    world.settle(holder, complete(&leased[0])).await;
    world.settle(holder, fail(&leased[1], Code::Trap)).await;
    world.tasks.cancel(world.ada.tenant, ids[2], NOW).await.unwrap();
    let told = async |id| {
        let view = world.view(&world.ada, id).await;
        (view.group, view.slot_key, view.budget)
    };
    let nothing = BudgetRequest::default();
    assert_eq!(told(ids[0]).await, (Some(group), None, nothing), "what completed is never tried again");
    for (place, id) in ids.iter().enumerate().skip(1) {
        assert_eq!(told(*id).await, (Some(group), Some(format!("k{place}")), timed));
    }
    assert_eq!(told(alone).await, (None, None, budget));
    assert_eq!(told(plain).await, (None, None, nothing));
}

pub async fn a_missing_task_is_none(world: &World) {
    assert_eq!(world.records.task(world.ada.tenant, TaskId(9)).await.unwrap(), None);
    assert_eq!(world.records.input(world.ada.tenant, TaskId(9)).await.unwrap(), None);
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
