//! Questions about many tasks at once.

use keiko_core::code::Code;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{Holder, TaskId, UserId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::task::{Payload, TaskState, Transition};

use crate::agents::{agents, named, user};
use crate::world::{Customer, NOW, World, complete, fail, settlement};

/// Submits a task of a customer's first kind created then, and completes it with this running time.
async fn completed(world: &World, customer: &Customer, holder: Holder, created_ms: i64, elapsed_us: u64) {
    let mut tasks = world.new_tasks(customer, 1).await;
    tasks[0].created_ms = created_ms;
    world.submit(customer, tasks).await;
    let task = world.lease(holder, 1).await.remove(0);
    let mut end = complete(&task);
    end.attempt.meter.elapsed_us = elapsed_us;
    world.settle(holder, end).await;
}

/// The newest tasks of a user.
async fn page(
    world: &World,
    customer: &Customer,
    user: UserId,
    before: Option<TaskId>,
    limit: u32,
) -> Option<Vec<UserTask>> {
    world.history.user_tasks(customer.tenant, user, before, limit).await.unwrap()
}

async fn statistics(world: &World, customer: &Customer, from_ms: i64, to_ms: i64) -> Vec<Statistics> {
    world.history.statistics(customer.tenant, DateRange { from_ms, to_ms }).await.unwrap()
}

pub async fn a_users_tasks_come_with_everything_around_them(world: &World) {
    let agent = agents(world, &world.ada, 1).await.remove(0);
    let ann = user(world, &world.ada, "Ann").await;
    let ben = user(world, &world.ada, "Ben").await;
    let holder = world.holder().await;
    let done = named(world, &world.ada, Some(agent.id), Some(ann.id)).await;
    let failed = named(world, &world.ada, None, Some(ann.id)).await;
    let waiting = named(world, &world.ada, Some(agent.id), Some(ann.id)).await;
    named(world, &world.ada, Some(agent.id), Some(ben.id)).await;
    world.submit_plain(&world.ada, 1).await;
    let leased = world.lease(holder, 2).await;
    world.settle(holder, complete(&leased[0])).await;
    world.settle(holder, fail(&leased[1], Code::Trap)).await;
    let tasks = page(world, &world.ada, ann.id, None, 10).await.unwrap();
    let ids: Vec<TaskId> = tasks.iter().map(|task| task.summary.id).collect();
    assert_eq!(ids, [waiting, failed, done], "newest first, and only Ann's");
    assert!(tasks.iter().all(|task| task.user == ann));
    assert_eq!(tasks[2].agent.as_ref(), Some(&agent));
    assert_eq!(tasks[1].agent, None);
    assert_eq!(tasks[2].result, Some(Payload::json("\"done\"")));
    let states: Vec<TaskState> = tasks.iter().map(|task| task.summary.state).collect();
    assert_eq!(states, [TaskState::Pending, TaskState::Failed, TaskState::Completed]);
    let failure = tasks[1].failure.as_ref().map(|failure| (failure.code, failure.message.as_str()));
    assert_eq!(failure, Some((Code::Trap, "it failed")));
    assert!(tasks[0].result.is_none() && tasks[0].failure.is_none());
}

pub async fn a_users_tasks_come_in_pages_without_gaps(world: &World) {
    let ann = user(world, &world.ada, "Ann").await;
    let holder = world.holder().await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(named(world, &world.ada, None, Some(ann.id)).await);
    }
    for task in world.lease(holder, 4).await {
        world.settle(holder, complete(&task)).await;
    }
    ids.reverse();
    for size in [1, 2, 7, 8] {
        let (mut pages, mut before) = (Vec::new(), None);
        loop {
            let page = page(world, &world.ada, ann.id, before, size).await.unwrap();
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            before = Some(last.summary.id);
            pages.extend(page.iter().map(|task| task.summary.id));
        }
        assert_eq!(pages, ids, "pages of {size}");
    }
}

pub async fn a_user_without_tasks_is_told_from_nobody(world: &World) {
    let ann = user(world, &world.ada, "Ann").await;
    assert_eq!(page(world, &world.ada, ann.id, None, 10).await, Some(Vec::new()));
    let first = named(world, &world.ada, None, Some(ann.id)).await;
    assert_eq!(page(world, &world.ada, ann.id, Some(first), 10).await, Some(Vec::new()));
    assert_eq!(page(world, &world.ada, UserId(ann.id.0 + 1), None, 10).await, None);
}

pub async fn a_page_of_large_results_ends_early(world: &World) {
    let ann = user(world, &world.ada, "Ann").await;
    let holder = world.holder().await;
    let large = vec![b'1'; (USER_RESULTS_BYTES_MAX / 2) as usize];
    for _ in 0..4 {
        named(world, &world.ada, None, Some(ann.id)).await;
        let task = world.lease(holder, 1).await.remove(0);
        let result = Transition::Complete(Payload::json(large.clone()));
        world.settle(holder, settlement(&task, result)).await;
    }
    let page = page(world, &world.ada, ann.id, None, 4).await.unwrap();
    assert_eq!(page.len(), 3, "two fill the page, the third says that there is more");
    assert!(
        page.iter().all(|task| task.result.as_ref().is_some_and(|result| result.bytes.len() == large.len()))
    );
}

pub async fn another_tenant_has_no_history(world: &World) {
    let ann = user(world, &world.ada, "Ann").await;
    named(world, &world.ada, None, Some(ann.id)).await;
    assert!(page(world, &world.bob, ann.id, None, 10).await.is_none());
    assert!(statistics(world, &world.bob, 0, i64::MAX).await.is_empty());
}

pub async fn statistics_are_of_kind_and_state(world: &World) {
    let holder = world.holder().await;
    for elapsed_us in [100, 200, 300, 401] {
        completed(world, &world.ada, holder, NOW, elapsed_us).await;
    }
    let failing = world.running(&world.ada, holder).await;
    world.settle(holder, fail(&failing, Code::Trap)).await;
    let cancelled = world.submit_plain(&world.ada, 1).await[0];
    world.tasks.cancel(world.ada.tenant, cancelled, NOW).await.unwrap();
    world.running(&world.ada, holder).await;
    let mut other = world.new_tasks(&world.ada, 2).await;
    other.iter_mut().for_each(|task| task.kind = world.ada.other_kind);
    world.submit(&world.ada, other).await;
    let rows = statistics(world, &world.ada, NOW, NOW).await;
    let row = |kind: &str, state, count, durations: [u64; 5]| Statistics {
        plugin: "p".parse().unwrap(),
        kind: kind.parse().unwrap(),
        state,
        count,
        average_us: durations[0],
        minimum_us: durations[1],
        maximum_us: durations[2],
        p50_us: durations[3],
        p95_us: durations[4],
    };
    let expected = [
        row("run", TaskState::Running, 1, [0; 5]),
        row("run", TaskState::Completed, 4, [250, 100, 401, 200, 401]),
        row("run", TaskState::Failed, 1, [900; 5]),
        row("run", TaskState::Cancelled, 1, [0; 5]),
        row("walk", TaskState::Pending, 2, [0; 5]),
    ];
    assert_eq!(rows, expected);
}

pub async fn a_range_of_statistics_has_both_its_ends(world: &World) {
    let holder = world.holder().await;
    for at in 0..5 {
        completed(world, &world.ada, holder, NOW - 10 + at, 100).await;
    }
    let count = async |from_ms, to_ms| {
        statistics(world, &world.ada, from_ms, to_ms).await.iter().map(|row| row.count).sum::<u64>()
    };
    assert_eq!(count(NOW - 10, NOW - 6).await, 5);
    assert_eq!(count(NOW - 9, NOW - 7).await, 3);
    assert_eq!(count(NOW - 8, NOW - 8).await, 1);
    assert_eq!(count(NOW - 5, NOW).await, 0);
}

pub async fn percentiles_are_nearest_ranks(world: &World) {
    let holder = world.holder().await;
    for elapsed_us in (1..=40).rev() {
        completed(world, &world.ada, holder, NOW, elapsed_us * 10).await;
    }
    let row = statistics(world, &world.ada, NOW, NOW).await.remove(0);
    assert_eq!((row.p50_us, row.p95_us, row.average_us), (200, 380, 205));
}
