//! Settling: one end per task, fenced, with its effects or without any trace.

use bytes::Bytes;
use keiko_core::canary::FailedRun;
use keiko_core::code::Code;
use keiko_core::id::{Digest, Holder, TaskId};
use keiko_core::limit::LimitFact;
use keiko_core::outcome::{Failure, Frame, RetryWish};
use keiko_core::policy::BudgetRequest;
use keiko_core::task::{
    AttemptRecord, LeasedTask, Lineage, Payload, Settled, Settlement, TaskFilter, TaskState, TaskView,
    Transition,
};

use crate::world::{
    LEASE_MS, NOW, World, child, complete, fail, hand_back, other_token, record, retry, settlement,
    with_children,
};

pub async fn a_completed_task_has_its_one_result(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let result = Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from_static(b"\x00done") };
    let version = world.ada.plugin.current.id;
    let done = Settlement {
        attempt: AttemptRecord { canary: Some(failed_run()), ..record(&task, Some(version)) },
        ..settlement(&task, Transition::Complete(result.clone()))
    };
    let attempt = done.attempt.clone();
    assert_eq!(world.settle(holder, done).await, Settled::Stored);
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.state, view.summary.finished_ms), (TaskState::Completed, Some(NOW)));
    assert_eq!((view.token, view.result, view.failure), (task.token, Some(result), None));
    assert_eq!(view.summary.attempts, 1);
    let [kept] = &view.attempts[..] else { panic!("one attempt, not {}", view.attempts.len()) };
    assert_eq!((&kept.record, &kept.failure), (&attempt, &None));
    assert_eq!(kept.version.as_ref().map(|name| name.as_str()), Some("1"));
    assert_eq!(kept.digest, Some(world.ada.plugin.current.digest));
    assert_eq!(world.live(&world.ada).await, 0);
}

pub async fn a_kept_result_names_the_task_that_it_comes_from(world: &World) {
    let holder = world.holder().await;
    let (first, second) = (world.running(&world.ada, holder).await, world.running(&world.ada, holder).await);
    world.settle(holder, complete(&first)).await;
    let done = complete(&second);
    let attempt = AttemptRecord { memoized_from: Some(first.id), ..done.attempt.clone() };
    assert_eq!(world.settle(holder, Settlement { attempt, ..done }).await, Settled::Stored);
    for (task, from) in [(first.id, None), (second.id, Some(first.id))] {
        let view = world.view(&world.ada, task).await;
        assert_eq!((view.attempts[0].record.memoized_from, &view.attempts[0].failure), (from, &None));
    }
}

/// A run on a canary before an attempt.
fn failed_run() -> FailedRun {
    FailedRun { version: "2".parse().unwrap(), digest: Digest([2; 32]), code: Code::Trap }
}

/// A failure with everything that a failure can have.
fn rich_failure(code: Code) -> Failure {
    Failure {
        code,
        message: "a \"message\" with \u{1f980}".to_owned(),
        limit: Some(LimitFact::of_host("fuel", 5, Some(6))),
        backtrace: vec![Frame { function: "f".to_owned(), file: None, line: Some(3) }],
        retry: RetryWish::After(Some(9)),
    }
}

pub async fn a_failed_task_has_its_one_failure(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let failure = rich_failure(Code::FuelExhausted);
    world.settle(holder, settlement(&task, Transition::Fail(failure.clone()))).await;
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.state, view.result), (TaskState::Failed, None));
    assert_eq!(view.summary.code.as_deref(), Some("fuel_exhausted"));
    assert_eq!(view.failure.as_ref(), Some(&failure));
    assert_eq!(view.attempts[0].failure, Some(failure));
    let listed = world.list(&world.ada, &TaskFilter::default()).await;
    assert_eq!(listed, [view.summary]);
}

pub async fn a_retried_task_waits_with_its_attempt_kept(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let failure = rich_failure(Code::EgressFailed);
    let transition = Transition::Retry { run_at_ms: NOW + 50, failure: failure.clone() };
    let attempt = AttemptRecord { canary: Some(failed_run()), ..record(&task, None) };
    let retried = Settlement { attempt: attempt.clone(), ..settlement(&task, transition) };
    assert_eq!(world.settle(holder, retried).await, Settled::Stored);
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.state, view.summary.run_at_ms), (TaskState::Pending, NOW + 50));
    assert_eq!((view.summary.attempts, view.failure, view.summary.code), (1, None, None));
    assert_eq!(view.attempts[0].failure, Some(failure));
    assert_eq!(view.attempts[0].record, attempt);
    assert!(world.lease_at(holder, 1, NOW + 49).await.tasks.is_empty());
    let again = world.lease_at(holder, 1, NOW + 50).await.tasks.remove(0);
    assert_eq!((again.attempts, again.deadlines, &again.input), (1, 0, &task.input));
    world.settle(holder, complete(&again)).await;
    let numbers: Vec<u32> = numbers(&world.view(&world.ada, task.id).await);
    assert_eq!(numbers, [1, 2]);
}

/// Numbers of the attempts of a view.
pub fn numbers(view: &TaskView) -> Vec<u32> {
    view.attempts.iter().map(|attempt| attempt.record.number).collect()
}

pub async fn a_handed_back_task_is_as_it_was(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    assert_eq!(world.settle(holder, hand_back(&task)).await, Settled::Stored);
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.state, view.summary.attempts), (TaskState::Pending, 0));
    assert!(view.attempts.is_empty());
    let again = world.lease(holder, 1).await.remove(0);
    assert_eq!((again.attempts, again.crashes), (0, 0));
}

pub async fn deadlines_are_counted_apart(world: &World) {
    let holder = world.holder().await;
    let mut task = world.running(&world.ada, holder).await;
    for (code, deadlines) in [(Code::DeadlineExceeded, 1), (Code::Internal, 1), (Code::DeadlineExceeded, 2)] {
        world.settle(holder, retry(&task, code, NOW)).await;
        task = world.lease(holder, 1).await.remove(0);
        assert_eq!(task.deadlines, deadlines);
    }
    assert_eq!(task.attempts, 3);
}

/// One settlement of each kind.
fn every_kind(task: &LeasedTask) -> [Settlement; 4] {
    [complete(task), fail(task, Code::Trap), retry(task, Code::Internal, NOW), hand_back(task)]
}

pub async fn a_stale_settlement_changes_nothing(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let before = world.view(&world.ada, task.id).await;
    let stranger = world.holder().await;
    for settlement in every_kind(&task) {
        let other = Settlement { token: other_token(task.token), ..settlement.clone() };
        assert_eq!(world.settle(holder, other).await, Settled::Stale, "another token");
        let other = Settlement { tenant: world.bob.tenant, ..settlement.clone() };
        assert_eq!(world.settle(holder, other).await, Settled::Stale, "another tenant");
        let other = Settlement { id: TaskId(task.id.0 + 1), ..settlement.clone() };
        assert_eq!(world.settle(holder, other).await, Settled::Stale, "no such task");
        assert_eq!(world.settle(stranger, settlement.clone()).await, Settled::Stale, "another holder");
        assert_eq!(world.settle(Holder(3), settlement).await, Settled::Stale, "no such holder");
    }
    assert_eq!(world.view(&world.ada, task.id).await, before);
    assert!(world.records.logs(world.ada.tenant, task.id).await.unwrap().is_empty());
    assert_eq!(world.settle(holder, complete(&task)).await, Settled::Stored, "the lease still holds");
}

pub async fn a_task_settles_once(world: &World) {
    let holder = world.holder().await;
    for first in 0..4 {
        let task = world.running(&world.ada, holder).await;
        assert_eq!(world.settle(holder, every_kind(&task)[first].clone()).await, Settled::Stored);
        let after = world.view(&world.ada, task.id).await;
        for second in every_kind(&task) {
            assert_eq!(world.settle(holder, second).await, Settled::Stale);
        }
        assert_eq!(world.view(&world.ada, task.id).await, after);
        world.tasks.cancel(world.ada.tenant, task.id, NOW).await.unwrap();
    }
}

pub async fn a_task_settled_twice_in_one_call_settles_once(world: &World) {
    let holder = world.holder().await;
    for [first, second] in [[0, 0], [0, 1], [2, 0], [3, 0], [0, 3]] {
        let task = world.running(&world.ada, holder).await;
        let kinds = every_kind(&task);
        let call = vec![kinds[first].clone(), kinds[second].clone()];
        let answers = world.tasks.settle(holder, call, NOW).await.unwrap();
        assert_eq!(answers, [Settled::Stored, Settled::Stale], "{first} then {second}");
        let states = [TaskState::Completed, TaskState::Failed, TaskState::Pending, TaskState::Pending];
        assert_eq!(world.state(&world.ada, task.id).await, states[first]);
        world.tasks.cancel(world.ada.tenant, task.id, NOW).await.unwrap();
    }
}

pub async fn answers_are_in_the_order_of_the_call(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 6).await;
    let tasks = world.lease(holder, 6).await;
    let stale = |at: usize| Settlement { token: other_token(tasks[at].token), ..complete(&tasks[at]) };
    let call = vec![
        stale(5),
        hand_back(&tasks[0]),
        fail(&tasks[1], Code::Trap),
        stale(2),
        retry(&tasks[3], Code::Internal, NOW),
        complete(&tasks[4]),
    ];
    let answers = world.tasks.settle(holder, call, NOW).await.unwrap();
    let (stored, stale) = (Settled::Stored, Settled::Stale);
    assert_eq!(answers, [stale, stored, stored, stale, stored, stored]);
    assert!(world.tasks.settle(holder, Vec::new(), NOW).await.unwrap().is_empty());
}

pub async fn every_size_of_call_settles_whole(world: &World) {
    let holder = world.holder().await;
    for count in [1, 2, 7, 8, 9, 63, 64, 65, 257, 513, 1_100] {
        world.submit_plain(&world.ada, count).await;
        let tasks = world.lease(holder, count as usize).await;
        let call = tasks.iter().map(complete).collect();
        let answers = world.tasks.settle(holder, call, NOW).await.unwrap();
        assert_eq!(answers, vec![Settled::Stored; count as usize]);
    }
    assert_eq!(world.live(&world.ada).await, 0);
    let counts = world.records.counts(world.ada.tenant).await.unwrap();
    assert_eq!(counts.completed, 1 + 2 + 7 + 8 + 9 + 63 + 64 + 65 + 257 + 513 + 1_100);
}

pub async fn logs_are_kept_with_their_attempts(world: &World) {
    let holder = world.holder().await;
    let first = world.running(&world.ada, holder).await;
    let logged =
        |settlement: Settlement, log: &'static str| Settlement { log: Bytes::from(log), ..settlement };
    world.settle(holder, logged(retry(&first, Code::Internal, NOW), "one")).await;
    let second = world.lease(holder, 1).await.remove(0);
    world.settle(holder, retry(&second, Code::Internal, NOW)).await;
    let third = world.lease(holder, 1).await.remove(0);
    world.settle(holder, logged(fail(&third, Code::Trap), "three")).await;
    let logs = world.records.logs(world.ada.tenant, first.id).await.unwrap();
    assert_eq!(logs, [(1, Bytes::from("one")), (3, Bytes::from("three"))]);
}

pub async fn children_come_with_their_parents_result(world: &World) {
    let holder = world.holder().await;
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    task.budget = BudgetRequest { fuel: Some(77), ..BudgetRequest::default() };
    task.trace = Some("00-trace".to_owned());
    task.lineage = Lineage { root: TaskId(4), parent: Some(TaskId(5)), depth: 2 };
    world.submit(&world.ada, vec![task.clone()]).await;
    let parent = world.lease(holder, 1).await.remove(0);
    let ids = world.tasks.reserve_ids(2, NOW).await.unwrap().first;
    let plain = child(&world.ada, ids, None, "1");
    let mut late = child(&world.ada, TaskId(ids.0 + 1), Some("k"), "2");
    (late.kind, late.wish.delay_ms) = (world.ada.other_kind, 40);
    let done = with_children(complete(&parent), vec![plain.clone(), late.clone()]);
    assert_eq!(world.settle(holder, done).await, Settled::Stored);

    let lineage = Lineage { root: TaskId(4), parent: Some(task.id), depth: 3 };
    let lease = world.lease_at(holder, 5, NOW).await;
    let [first] = &lease.tasks[..] else { panic!("one child is due, not {}", lease.tasks.len()) };
    assert_eq!((first.id, &first.input, first.kind), (plain.id, &plain.wish.input, plain.kind));
    assert_eq!((first.budget, &first.trace, first.lineage), (task.budget, &task.trace, lineage));
    assert_eq!((first.created_ms, lease.next_run_at_ms), (NOW, Some(NOW + 40)));
    let second = world.lease_at(holder, 5, NOW + 40).await.tasks.remove(0);
    assert_eq!((second.id, second.kind, second.lineage), (late.id, late.kind, lineage));
    assert_eq!(world.live(&world.ada).await, 2);
}

pub async fn children_of_a_stale_settlement_do_not_exist(world: &World) {
    let holder = world.holder().await;
    let parent = world.running(&world.ada, holder).await;
    let id = world.tasks.reserve_ids(1, NOW).await.unwrap().first;
    let mut done = with_children(complete(&parent), vec![child(&world.ada, id, Some("k"), "1")]);
    done.token = other_token(parent.token);
    assert_eq!(world.settle(holder, done).await, Settled::Stale);
    assert_eq!(world.records.task(world.ada.tenant, id).await.unwrap(), None);
    assert_eq!(world.live(&world.ada).await, 1);
}

pub async fn children_need_no_room(world: &World) {
    // The runtime reserves their room when the guest asks.
    let holder = world.holder().await;
    let parent = world.running(&world.ada, holder).await;
    let first = world.tasks.reserve_ids(1_000, NOW).await.unwrap().first.0;
    let children = (first..first + 1_000).map(|id| child(&world.ada, TaskId(id), None, "1")).collect();
    let done = with_children(complete(&parent), children);
    assert_eq!(world.settle(holder, done).await, Settled::Stored);
    assert_eq!(world.live(&world.ada).await, 1_000);
    let of_parent = TaskFilter { parent: Some(parent.id), ..TaskFilter::default() };
    assert_eq!(world.list(&world.ada, &of_parent).await.len(), 1_000);
}

pub async fn a_known_child_is_not_made_again(world: &World) {
    let holder = world.holder().await;
    let ids = world.tasks.reserve_ids(4, NOW).await.unwrap().first.0;
    let first = world.running(&world.ada, holder).await;
    let once = |at: i64| child(&world.ada, TaskId(ids + at), Some("once"), "1");
    let done = with_children(complete(&first), vec![once(0), once(1)]);
    assert_eq!(world.settle(holder, done).await, Settled::Stored, "twice by one parent");
    world.lease(holder, 1).await;
    let second = world.running(&world.ada, holder).await;
    let done = with_children(complete(&second), vec![once(2), child(&world.ada, TaskId(ids + 3), None, "1")]);
    assert_eq!(world.settle(holder, done).await, Settled::Stored, "by another parent");
    let mut exist = Vec::new();
    for at in 0..4 {
        exist.push(world.records.task(world.ada.tenant, TaskId(ids + at)).await.unwrap().is_some());
    }
    assert_eq!(exist, [true, false, false, true]);
}

pub async fn a_child_that_conflicts_stops_its_parent_alone(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 3).await;
    let parents = world.lease(holder, 3).await;
    let ids = world.tasks.reserve_ids(6, NOW).await.unwrap().first.0;
    let new = |at: i64, key: Option<&str>, input| child(&world.ada, TaskId(ids + at), key, input);
    let call = vec![
        with_children(complete(&parents[0]), vec![new(0, Some("k"), "1")]),
        // The key stands for another body, also when it was taken in the same call or by the same parent.
        with_children(complete(&parents[1]), vec![new(1, None, "1"), new(2, Some("k"), "2")]),
        with_children(complete(&parents[2]), vec![new(3, Some("own"), "1"), new(4, Some("own"), "2")]),
    ];
    let answers = world.tasks.settle(holder, call, NOW).await.unwrap();
    assert_eq!(answers, [Settled::Stored, Settled::Conflict, Settled::Conflict]);
    for at in 1..5 {
        assert_eq!(world.records.task(world.ada.tenant, TaskId(ids + at)).await.unwrap(), None);
    }
    assert_eq!(world.state(&world.ada, parents[1].id).await, TaskState::Running);
    assert_eq!(world.settle(holder, fail(&parents[1], Code::Conflict)).await, Settled::Stored, "still held");
    let free = with_children(complete(&parents[2]), vec![new(5, Some("own"), "2")]);
    assert_eq!(world.settle(holder, free).await, Settled::Stored, "a conflict takes no key");
    assert_eq!(world.live(&world.ada).await, 2);
}

pub async fn equal_keys_of_two_parents_make_one_child(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 2).await;
    let parents = world.lease(holder, 2).await;
    let ids = world.tasks.reserve_ids(2, NOW).await.unwrap().first.0;
    let call = parents.iter().zip(ids..).map(|(parent, id)| {
        with_children(complete(parent), vec![child(&world.ada, TaskId(id), Some("k"), "1")])
    });
    let answers = world.tasks.settle(holder, call.collect(), NOW).await.unwrap();
    assert_eq!(answers, [Settled::Stored, Settled::Stored]);
    assert_eq!(world.live(&world.ada).await, 1);
    assert!(world.tasks.beat(holder, NOW, LEASE_MS).await.is_ok());
}
