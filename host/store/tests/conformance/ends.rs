//! Cancel and retry by hand.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join;
use keiko_core::code::Code;
use keiko_core::id::{TaskId, TenantId};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::Expired;
use keiko_core::task::{
    Amendment, CancelAnswer, NewTask, Payload, RetryAnswer, Settled, Settlement, TaskState,
};

use crate::settles::numbers;
use crate::world::{Customer, NOW, ROOMY, World, complete, fail, hand_back, retry};

async fn cancel(world: &World, customer: &Customer, id: TaskId) -> CancelAnswer {
    world.tasks.cancel(customer.tenant, id, NOW + 7).await.unwrap()
}

async fn retry_by_hand(world: &World, customer: &Customer, id: TaskId, queue_max: u64) -> RetryAnswer {
    world.tasks.retry(customer.tenant, id, Amendment::default(), queue_max, NOW + 9).await.unwrap()
}

pub async fn a_pending_task_is_cancelled(world: &World) {
    let id = world.submit_plain(&world.ada, 1).await[0];
    let before = world.view(&world.ada, id).await.token;
    assert_eq!(cancel(world, &world.ada, id).await, CancelAnswer::Cancelled);
    let view = world.view(&world.ada, id).await;
    assert_eq!((view.summary.state, view.summary.finished_ms), (TaskState::Cancelled, Some(NOW + 7)));
    assert!(view.token > before);
    assert_eq!((view.result, view.failure), (None, None));
    assert!(world.lease(world.holder().await, 5).await.is_empty());
    assert_eq!(world.live(&world.ada).await, 0);
}

pub async fn a_running_task_is_cancelled_and_settles_nothing(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    assert_eq!(cancel(world, &world.ada, task.id).await, CancelAnswer::Cancelled);
    let after = world.view(&world.ada, task.id).await;
    assert!(after.token > task.token);
    for settlement in [complete(&task), fail(&task, Code::Trap), retry(&task, Code::Internal, NOW)] {
        assert_eq!(world.settle(holder, settlement).await, Settled::Stale);
    }
    assert_eq!(world.view(&world.ada, task.id).await, after);
}

pub async fn an_ended_task_is_not_cancelled(world: &World) {
    let holder = world.holder().await;
    for (failed, state) in [(false, TaskState::Completed), (true, TaskState::Failed)] {
        let task = world.running(&world.ada, holder).await;
        let end = if failed { fail(&task, Code::Trap) } else { complete(&task) };
        world.settle(holder, end).await;
        assert_eq!(cancel(world, &world.ada, task.id).await, CancelAnswer::AlreadyTerminal(state));
        assert_eq!(world.state(&world.ada, task.id).await, state);
    }
    let id = world.submit_plain(&world.ada, 1).await[0];
    cancel(world, &world.ada, id).await;
    let again = cancel(world, &world.ada, id).await;
    assert_eq!(again, CancelAnswer::AlreadyTerminal(TaskState::Cancelled));
    assert_eq!(cancel(world, &world.ada, TaskId(1)).await, CancelAnswer::NotFound);
}

pub async fn a_cancel_and_a_settle_agree_on_one_end(world: &World) {
    let holder = world.holder().await;
    let mut cancelled = 0;
    for round in 0..200 {
        let task = world.running(&world.ada, holder).await;
        let settle = world.tasks.settle(holder, vec![complete(&task)], NOW);
        let cancel = world.tasks.cancel(world.ada.tenant, task.id, NOW);
        // The first one polled is sent first: both orders, with the store free to group them.
        let (settled, answer) = if round % 2 == 0 {
            join(settle, cancel).await
        } else {
            let (answer, settled) = join(cancel, settle).await;
            (settled, answer)
        };
        let state = world.state(&world.ada, task.id).await;
        match (settled.unwrap()[0], answer.unwrap()) {
            (Settled::Stored, CancelAnswer::AlreadyTerminal(TaskState::Completed)) => {
                assert_eq!(state, TaskState::Completed);
            }
            (Settled::Stale, CancelAnswer::Cancelled) => {
                assert_eq!(state, TaskState::Cancelled);
                cancelled += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((1..200).contains(&cancelled), "both orders happen: {cancelled}");
}

pub async fn a_failed_task_is_retried_with_its_history(world: &World) {
    let holder = world.holder().await;
    let first = world.running(&world.ada, holder).await;
    let log =
        |settlement: Settlement, text: &'static str| Settlement { log: Bytes::from(text), ..settlement };
    world.settle(holder, log(retry(&first, Code::DeadlineExceeded, NOW), "one")).await;
    let second = world.lease(holder, 1).await.remove(0);
    world.settle(holder, log(fail(&second, Code::Trap), "two")).await;
    assert_eq!(retry_by_hand(world, &world.ada, first.id, ROOMY).await, RetryAnswer::Retried);

    let view = world.view(&world.ada, first.id).await;
    assert_eq!((view.summary.state, view.summary.run_at_ms), (TaskState::Pending, NOW + 9));
    assert_eq!((view.summary.attempts, view.summary.finished_ms), (0, None));
    assert_eq!((view.summary.created_ms, &view.failure, &view.summary.code), (NOW, &None, &None));
    assert_eq!(numbers(&view), [1, 2]);
    assert_eq!(view.attempts[1].failure.as_ref().map(|failure| failure.code), Some(Code::Trap));

    let third = world.lease_at(holder, 1, NOW + 9).await.tasks.remove(0);
    assert_eq!((third.attempts, third.deadlines, third.crashes), (0, 0, 0));
    assert_eq!((&third.input, third.budget), (&first.input, first.budget));
    world.settle(holder, log(complete(&third), "three")).await;
    let view = world.view(&world.ada, first.id).await;
    assert_eq!((view.summary.state, view.summary.attempts), (TaskState::Completed, 1));
    assert_eq!(numbers(&view), [1, 2, 3], "numbers go on, so each names one attempt");
    let logs = world.records.logs(world.ada.tenant, first.id).await.unwrap();
    let numbers: Vec<u32> = logs.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

pub async fn a_cancelled_task_is_retried(world: &World) {
    let id = world.submit_plain(&world.ada, 1).await[0];
    cancel(world, &world.ada, id).await;
    assert_eq!(retry_by_hand(world, &world.ada, id, ROOMY).await, RetryAnswer::Retried);
    let view = world.view(&world.ada, id).await;
    assert_eq!((view.summary.state, view.attempts.len()), (TaskState::Pending, 0));
    let counts = world.records.counts(world.ada.tenant).await.unwrap();
    assert_eq!((counts.pending, counts.cancelled), (1, 0));
}

pub async fn only_failed_and_cancelled_tasks_are_retried(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let refused = |state| RetryAnswer::NotRetryable(state);
    assert_eq!(retry_by_hand(world, &world.ada, task.id, ROOMY).await, refused(TaskState::Running));
    world.settle(holder, complete(&task)).await;
    assert_eq!(retry_by_hand(world, &world.ada, task.id, ROOMY).await, refused(TaskState::Completed));
    let pending = world.submit_plain(&world.ada, 1).await[0];
    assert_eq!(retry_by_hand(world, &world.ada, pending, ROOMY).await, refused(TaskState::Pending));
    assert_eq!(retry_by_hand(world, &world.ada, TaskId(1), ROOMY).await, RetryAnswer::NotFound);
}

pub async fn a_retry_needs_room_in_the_queue(world: &World) {
    let ids = world.submit_plain(&world.ada, 3).await;
    cancel(world, &world.ada, ids[0]).await;
    let full = RetryAnswer::QueueFull { live: 2 };
    assert_eq!(retry_by_hand(world, &world.ada, ids[0], 2).await, full);
    assert_eq!(world.state(&world.ada, ids[0]).await, TaskState::Cancelled);
    assert_eq!(retry_by_hand(world, &world.ada, ids[0], 3).await, RetryAnswer::Retried);
    assert_eq!(world.live(&world.ada).await, 3);
}

pub async fn tokens_grow_over_a_retry(world: &World) {
    let holder = world.holder().await;
    let first = world.running(&world.ada, holder).await;
    cancel(world, &world.ada, first.id).await;
    let cancelled = world.view(&world.ada, first.id).await.token;
    retry_by_hand(world, &world.ada, first.id, ROOMY).await;
    let second = world.lease_at(holder, 1, NOW + 9).await.tasks.remove(0);
    assert!(second.token > cancelled && cancelled > first.token);
    assert_eq!(world.settle(holder, complete(&first)).await, Settled::Stale, "the first lease stays dead");
    assert_eq!(world.settle(holder, complete(&second)).await, Settled::Stored);
}

pub async fn a_large_input_outlives_a_failure(world: &World) {
    let holder = world.holder().await;
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    task.input = Payload::json(Bytes::from(Arc::<[u8]>::from(vec![b'7'; 50_000]).to_vec()));
    world.submit(&world.ada, vec![task.clone()]).await;
    for _ in 0..2 {
        let leased = world.lease_at(holder, 1, NOW + 9).await.tasks.remove(0);
        assert_eq!(leased.input, task.input);
        world.settle(holder, fail(&leased, Code::Trap)).await;
        assert_eq!(retry_by_hand(world, &world.ada, task.id, ROOMY).await, RetryAnswer::Retried);
    }
}

fn given(task: &mut NewTask, queued_ms: Option<u64>, total_ms: Option<u64>) {
    (task.budget.queued_ms, task.budget.total_ms) = (queued_ms, total_ms);
}

async fn expire(world: &World, now_ms: i64) -> Vec<(TenantId, TaskId)> {
    world.tasks.expire(now_ms, 100).await.unwrap().ended
}

pub async fn a_task_that_does_not_start_in_time_fails(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    for task in &mut tasks[..3] {
        given(task, Some(10), None);
    }
    tasks[2].run_at_ms = NOW + 5;
    let ids = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 1).await.remove(0);
    assert_eq!((leased.ends.start_by_ms, leased.ends.end_by_ms), (Some(NOW + 10), None));
    assert!(expire(world, NOW + 9).await.is_empty());
    assert_eq!(
        expire(world, NOW + 10).await,
        [(world.ada.tenant, ids[1])],
        "what is leased has its host to look"
    );
    let view = world.view(&world.ada, ids[1]).await;
    let limit = view.failure.as_ref().and_then(|failure| failure.limit.clone()).unwrap();
    assert_eq!((view.summary.state, view.summary.attempts), (TaskState::Failed, 0));
    assert_eq!(view.summary.code.as_deref(), Some("deadline_exceeded"));
    assert_eq!((limit.name.as_str(), limit.limit), ("queued_ms", 10));
    assert_eq!(world.live(&world.ada).await, 3);
    // A hand-back begins nothing, an attempt that is tried again does.
    world.settle(holder, hand_back(&leased)).await;
    assert_eq!(expire(world, NOW + 10).await, [(world.ada.tenant, ids[0])]);
    let again = world.lease_at(holder, 2, NOW + 5).await.tasks.remove(1);
    assert_eq!((again.id, again.ends.start_by_ms), (ids[2], Some(NOW + 15)), "from when it is due");
    world.settle(holder, retry(&again, Code::Internal, NOW + 20)).await;
    assert!(expire(world, NOW + 100).await.is_empty());
    let again = world.lease_at(holder, 2, NOW + 20).await.tasks.remove(0);
    assert_eq!((again.id, again.ends.start_by_ms), (ids[2], None));
}

pub async fn a_task_that_does_not_end_in_time_fails_wherever_it_stands(world: &World) {
    let mut tasks = world.new_tasks(&world.ada, 3).await;
    for task in &mut tasks {
        given(task, None, Some(30));
    }
    let ids = world.submit(&world.ada, tasks).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, 2).await;
    assert_eq!(leased[0].ends.end_by_ms, Some(NOW + 30));
    world.settle(holder, retry(&leased[1], Code::Internal, NOW + 40)).await;
    assert!(expire(world, NOW + 29).await.is_empty());
    let mut ended = expire(world, NOW + 30).await;
    ended.sort_unstable();
    assert_eq!(ended, ids.iter().map(|id| (world.ada.tenant, *id)).collect::<Vec<_>>());
    for id in &ids {
        let view = world.view(&world.ada, *id).await;
        assert_eq!(view.failure.unwrap().limit.unwrap().name, "total_ms");
    }
    assert_eq!(world.settle(holder, complete(&leased[0])).await, Settled::Stale, "its token has grown");
    assert!(world.view(&world.ada, leased[0].id).await.token > leased[0].token);
    assert_eq!((world.live(&world.ada).await, expire(world, NOW + 99).await.len()), (0, 0));
}

pub async fn time_outs_end_in_rounds_and_say_when_the_next_is_over(world: &World) {
    assert_eq!(world.tasks.expire(NOW, 2).await.unwrap(), Expired::default());
    let mut tasks = world.new_tasks(&world.ada, 4).await;
    for (task, ms) in tasks.iter_mut().zip([5, 5, 5, 9]) {
        given(task, Some(ms), Some(ms + 1));
    }
    world.submit(&world.ada, tasks).await;
    assert_eq!(world.tasks.expire(NOW, 2).await.unwrap().next_ms, Some(NOW + 5));
    let first = world.tasks.expire(NOW + 5, 2).await.unwrap();
    assert_eq!((first.ended.len(), first.next_ms), (2, Some(NOW + 5)), "there may be more");
    assert_eq!(first.failed, [((world.ada.tenant, world.ada.kind), 2)].into());
    let second = world.tasks.expire(NOW + 5, 2).await.unwrap();
    assert_eq!((second.ended.len(), second.next_ms), (1, Some(NOW + 9)));
}

pub async fn a_retry_by_hand_has_its_time_again(world: &World) {
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    given(&mut task, Some(10), Some(20));
    let id = world.submit(&world.ada, vec![task]).await[0];
    assert_eq!(expire(world, NOW + 10).await.len(), 1);
    let answer =
        world.tasks.retry(world.ada.tenant, id, Amendment::default(), ROOMY, NOW + 100).await.unwrap();
    assert_eq!(answer, RetryAnswer::Retried);
    assert!(expire(world, NOW + 109).await.is_empty());
    let holder = world.holder().await;
    let leased = world.lease_at(holder, 1, NOW + 100).await.tasks.remove(0);
    assert_eq!((leased.ends.start_by_ms, leased.ends.end_by_ms), (Some(NOW + 110), Some(NOW + 120)));
}

pub async fn a_retry_by_hand_takes_another_input_and_budget(world: &World) {
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    (task.budget.fuel, task.budget.total_ms) = (Some(5), Some(20));
    let id = world.submit(&world.ada, vec![task.clone()]).await[0];
    let holder = world.holder().await;
    let fails = async || {
        let leased = world.lease(holder, 1).await.remove(0);
        world.settle(holder, fail(&leased, Code::Trap)).await;
        leased
    };
    let amended = async |tenant: TenantId, input: Option<Payload>, budget: BudgetRequest| {
        let amendment = Amendment { input, budget };
        world.tasks.retry(tenant, id, amendment, ROOMY, NOW).await.unwrap()
    };
    assert_eq!(fails().await.input, task.input);
    let large = Payload { content_type: "x/y".to_owned(), bytes: Bytes::from(vec![9; 50_000]) };
    // What another tenant asks for changes nothing.
    let foreign = amended(world.bob.tenant, Some(large.clone()), BudgetRequest::default()).await;
    assert_eq!(foreign, RetryAnswer::NotFound);
    let budget = BudgetRequest { total_ms: Some(40), attempts: Some(3), ..BudgetRequest::default() };
    assert_eq!(amended(world.ada.tenant, None, budget).await, RetryAnswer::Retried);
    let second = fails().await;
    let whole = BudgetRequest { fuel: Some(5), ..budget };
    assert_eq!((second.budget, &second.input), (whole, &task.input), "what is not named stays");
    assert_eq!(second.ends.end_by_ms, Some(NOW + 40));
    // An input that moves out of its row and back, and one that goes while the budget stays.
    for input in [large.clone(), Payload::json("1"), large, Payload::json("\"two\"")] {
        let none = BudgetRequest::default();
        assert_eq!(amended(world.ada.tenant, Some(input.clone()), none).await, RetryAnswer::Retried);
        let leased = fails().await;
        assert_eq!((leased.input, leased.budget), (input, whole));
    }
    assert_eq!(retry_by_hand(world, &world.ada, id, ROOMY).await, RetryAnswer::Retried);
    let last = world.lease_at(holder, 1, NOW + 9).await.tasks.remove(0);
    assert_eq!((&last.input, last.budget), (&Payload::json("\"two\""), whole), "it stays changed");
    world.settle(holder, complete(&last)).await;
    assert_eq!(numbers(&world.view(&world.ada, id).await), [1, 2, 3, 4, 5, 6, 7]);
}

pub async fn what_is_not_retried_is_not_changed(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    world.submit_plain(&world.ada, 1).await;
    let amendment = Amendment { input: Some(Payload::json("2")), ..Amendment::default() };
    let refused = world.tasks.retry(world.ada.tenant, task.id, amendment.clone(), ROOMY, NOW).await.unwrap();
    assert_eq!(refused, RetryAnswer::NotRetryable(TaskState::Running));
    world.settle(holder, fail(&task, Code::Trap)).await;
    let full = world.tasks.retry(world.ada.tenant, task.id, amendment, 1, NOW).await.unwrap();
    assert_eq!(full, RetryAnswer::QueueFull { live: 1 });
    assert_eq!(retry_by_hand(world, &world.ada, task.id, ROOMY).await, RetryAnswer::Retried);
    let again = world.lease_at(holder, 2, NOW + 9).await.tasks;
    let again = again.iter().find(|one| one.id == task.id).unwrap();
    assert_eq!(again.input, task.input);
}
