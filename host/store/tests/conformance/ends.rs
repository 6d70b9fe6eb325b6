//! Cancel and retry by hand.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join;
use keiko_core::code::Code;
use keiko_core::id::TaskId;
use keiko_core::task::{CancelAnswer, Payload, RetryAnswer, Settled, Settlement, TaskState};

use crate::settles::numbers;
use crate::world::{Customer, NOW, ROOMY, World, complete, fail, retry};

async fn cancel(world: &World, customer: &Customer, id: TaskId) -> CancelAnswer {
    world.tasks.cancel(customer.tenant, id, NOW + 7).await.unwrap()
}

async fn retry_by_hand(world: &World, customer: &Customer, id: TaskId, queue_max: u64) -> RetryAnswer {
    world.tasks.retry(customer.tenant, id, queue_max, NOW + 9).await.unwrap()
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
