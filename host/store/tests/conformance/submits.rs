//! Accepting tasks: quota, idempotency, ids.

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::id::TaskId;
use keiko_core::limit::{INPUT_BYTES_MAX, KEY_AGE_MS};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::StoreErrorKind;
use keiko_core::task::{Lineage, NewTask, Payload, Submit, Submitted, TaskFilter, TaskState};

use crate::world::{Customer, NOW, World, key, submit};

pub async fn a_task_reads_back_as_it_was_submitted(world: &World) {
    let mut task = world.new_tasks(&world.ada, 1).await.remove(0);
    task.run_at_ms = NOW + 5;
    task.lineage = Lineage { root: TaskId(1), parent: Some(TaskId(2)), depth: 3 };
    world.submit(&world.ada, vec![task.clone()]).await;
    let view = world.view(&world.ada, task.id).await;
    assert_eq!(view.summary.state, TaskState::Pending);
    assert_eq!((view.summary.created_ms, view.summary.run_at_ms), (NOW, NOW + 5));
    assert_eq!((view.summary.plugin.as_str(), view.summary.kind.as_str()), ("p", "run"));
    assert_eq!(view.summary.lineage, task.lineage);
    assert_eq!((view.summary.attempts, view.summary.crashes), (0, 0));
    assert_eq!((view.result, view.failure, view.attempts.len()), (None, None, 0));
}

pub async fn inputs_of_every_size_come_back(world: &World) {
    let sizes = [0, 1, 2_047, 2_048, 2_049, 100_000, INPUT_BYTES_MAX as usize];
    let mut tasks = world.new_tasks(&world.ada, sizes.len() as u32).await;
    for (task, size) in tasks.iter_mut().zip(sizes) {
        let bytes = Bytes::from(vec![size as u8; size]);
        task.input = Payload { content_type: format!("x/{size}"), bytes };
        task.budget = BudgetRequest { fuel: Some(size as u64 + 1), ..BudgetRequest::default() };
        task.trace = Some(format!("trace {size}"));
    }
    world.submit(&world.ada, tasks.clone()).await;
    let holder = world.holder().await;
    let leased = world.lease(holder, sizes.len()).await;
    for (leased, task) in leased.iter().zip(&tasks) {
        assert!(leased.input == task.input, "the input of {} bytes differs", task.input.bytes.len());
        assert_eq!((leased.id, leased.budget, &leased.trace), (task.id, task.budget, &task.trace));
    }
    assert_eq!(leased.len(), sizes.len());
}

fn limited(customer: &Customer, tasks: Vec<NewTask>, queue_max: u64) -> Submit {
    Submit { queue_max, ..submit(customer, tasks) }
}

pub async fn a_full_queue_takes_nothing_of_a_submit(world: &World) {
    let tasks = world.new_tasks(&world.ada, 4).await;
    let fits = limited(&world.ada, tasks[..3].to_vec(), 3);
    assert!(matches!(world.try_submit(fits).await, Submitted::Accepted { count: 3, .. }));
    let over = limited(&world.ada, tasks[3..].to_vec(), 3);
    assert_eq!(world.try_submit(over).await, Submitted::QueueFull { live: 3 });
    // Partly fitting is not fitting.
    let two = world.new_tasks(&world.ada, 2).await;
    let partly = limited(&world.ada, two.clone(), 4);
    assert_eq!(world.try_submit(partly).await, Submitted::QueueFull { live: 3 });
    assert_eq!(world.records.task(world.ada.tenant, two[0].id).await.unwrap(), None);
    assert_eq!(world.live(&world.ada).await, 3);
    let other = world.new_tasks(&world.bob, 1).await;
    let other = limited(&world.bob, other, 3);
    assert!(matches!(world.try_submit(other).await, Submitted::Accepted { .. }), "quotas are apart");
}

pub async fn the_queue_fills_up_to_its_limit_within_one_call(world: &World) {
    let tasks = world.new_tasks(&world.ada, 5).await;
    let submits = tasks.chunks(2).map(|tasks| limited(&world.ada, tasks.to_vec(), 3)).collect();
    let answers = world.tasks.enqueue(submits, NOW).await.unwrap();
    assert!(matches!(answers[0], Submitted::Accepted { count: 2, .. }));
    assert_eq!(answers[1], Submitted::QueueFull { live: 2 });
    assert!(matches!(answers[2], Submitted::Accepted { count: 1, .. }), "a smaller one still fits");
    assert_eq!(world.live(&world.ada).await, 3);
}

fn keyed(customer: &Customer, tasks: Vec<NewTask>, body: u8) -> Submit {
    Submit { key: key("k", body), ..submit(customer, tasks) }
}

pub async fn a_key_finds_its_submit_while_it_lasts(world: &World) {
    let tasks = world.new_tasks(&world.ada, 6).await;
    let first = tasks[0].id;
    let enqueue = |tasks: &[NewTask], body, now_ms| {
        world.tasks.enqueue(vec![keyed(&world.ada, tasks.to_vec(), body)], now_ms)
    };
    let new = enqueue(&tasks[..2], 1, NOW).await.unwrap();
    assert_eq!(new, [Submitted::Accepted { first, count: 2, duplicate: false, leased: false }]);
    let last = NOW + KEY_AGE_MS - 1;
    let again = enqueue(&tasks[2..3], 1, last).await.unwrap();
    assert_eq!(again, [Submitted::Accepted { first, count: 2, duplicate: true, leased: false }]);
    assert_eq!(enqueue(&tasks[3..4], 2, last).await.unwrap(), [Submitted::Conflict]);
    // Expired: the key is free for any body, and stands for the new one.
    let expired = NOW + KEY_AGE_MS;
    let replaced = enqueue(&tasks[4..5], 2, expired).await.unwrap();
    assert_eq!(
        replaced,
        [Submitted::Accepted { first: tasks[4].id, count: 1, duplicate: false, leased: false }]
    );
    assert_eq!(enqueue(&tasks[5..], 1, expired).await.unwrap(), [Submitted::Conflict]);
    assert_eq!(world.live(&world.ada).await, 3);
}

pub async fn a_key_belongs_to_its_tenant(world: &World) {
    let (ada, bob) = (world.new_tasks(&world.ada, 1).await, world.new_tasks(&world.bob, 1).await);
    for submit in [keyed(&world.ada, ada, 1), keyed(&world.bob, bob, 2)] {
        assert!(matches!(world.try_submit(submit).await, Submitted::Accepted { duplicate: false, .. }));
    }
}

pub async fn a_refused_submit_leaves_its_key_free(world: &World) {
    let tasks = world.new_tasks(&world.ada, 1).await;
    let full = Submit { queue_max: 0, ..keyed(&world.ada, tasks.clone(), 1) };
    assert_eq!(world.try_submit(full).await, Submitted::QueueFull { live: 0 });
    let answer = world.try_submit(keyed(&world.ada, tasks, 2)).await;
    assert!(matches!(answer, Submitted::Accepted { duplicate: false, .. }));
    // A key is looked at before the quota: what is stored needs no room.
    let tasks = world.new_tasks(&world.ada, 1).await;
    let again = Submit { queue_max: 0, ..keyed(&world.ada, tasks, 2) };
    assert!(matches!(world.try_submit(again).await, Submitted::Accepted { duplicate: true, .. }));
}

pub async fn a_submit_without_tasks_is_told_what_its_key_stands_for(world: &World) {
    let tasks = world.new_tasks(&world.ada, 2).await;
    let first = tasks[0].id;
    let ask = async |customer: &Customer, body| world.try_submit(keyed(customer, Vec::new(), body)).await;
    let nothing = Submitted::Accepted { first: TaskId(0), count: 0, duplicate: false, leased: false };
    assert_eq!(ask(&world.ada, 2).await, nothing);
    let taken = world.try_submit(keyed(&world.ada, tasks, 1)).await;
    assert_eq!(taken, Submitted::Accepted { first, count: 2, duplicate: false, leased: false });
    let known = Submitted::Accepted { first, count: 2, duplicate: true, leased: false };
    assert_eq!(ask(&world.ada, 1).await, known);
    assert_eq!(ask(&world.ada, 2).await, Submitted::Conflict);
    assert_eq!(ask(&world.bob, 1).await, nothing);
    assert_eq!((world.live(&world.ada).await, world.live(&world.bob).await), (2, 0));
}

pub async fn equal_keys_in_one_call_store_one_submit(world: &World) {
    let tasks = world.new_tasks(&world.ada, 6).await;
    let submits = tasks.chunks(2).zip([1, 1, 2]);
    let submits = submits.map(|(tasks, body)| keyed(&world.ada, tasks.to_vec(), body)).collect();
    let answers = world.tasks.enqueue(submits, NOW).await.unwrap();
    let first = tasks[0].id;
    assert_eq!(answers[0], Submitted::Accepted { first, count: 2, duplicate: false, leased: false });
    assert_eq!(answers[1], Submitted::Accepted { first, count: 2, duplicate: true, leased: false });
    assert_eq!(answers[2], Submitted::Conflict);
    assert_eq!(world.live(&world.ada).await, 2);
}

pub async fn one_key_submitted_at_once_is_stored_once(world: &World) {
    for round in 0..20 {
        let tasks = world.new_tasks(&world.ada, 16).await;
        let submits = tasks.iter().map(|task| Submit {
            key: key(&format!("round {round}"), 1),
            ..submit(&world.ada, vec![task.clone()])
        });
        let answers = join_all(submits.map(|submit| world.try_submit(submit))).await;
        let firsts: Vec<TaskId> = answers
            .iter()
            .map(|answer| match answer {
                Submitted::Accepted { first, count: 1, .. } => *first,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(firsts.iter().all(|first| *first == firsts[0]), "all find the same task");
        let new = |answer: &&Submitted| matches!(answer, Submitted::Accepted { duplicate: false, .. });
        assert_eq!(answers.iter().filter(new).count(), 1);
        assert_eq!(world.live(&world.ada).await, round + 1);
    }
}

pub async fn a_submit_the_store_refuses_takes_nobody_along(world: &World) {
    // Bob's kind is not Ada's: every row that a task reaches has the task's tenant.
    let tasks = world.new_tasks(&world.ada, 40).await;
    let calls = tasks.iter().enumerate().map(|(at, task)| {
        let kind = if at == 17 { world.bob.kind } else { world.ada.kind };
        let task = NewTask { kind, ..task.clone() };
        world.tasks.enqueue(vec![submit(&world.ada, vec![task])], NOW)
    });
    for (at, answer) in join_all(calls).await.into_iter().enumerate() {
        if at == 17 {
            assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Refused);
        } else {
            assert!(matches!(answer.unwrap()[0], Submitted::Accepted { .. }));
        }
    }
    assert_eq!(world.live(&world.ada).await, 39);
    assert_eq!(world.list(&world.ada, &TaskFilter::default()).await.len(), 39);
}

pub async fn id_blocks_rise_with_time_and_never_overlap(world: &World) {
    let blocks = join_all((0..50).map(|at| world.tasks.reserve_ids(1 + at % 7, NOW))).await;
    let mut blocks: Vec<_> = blocks.into_iter().map(Result::unwrap).collect();
    blocks.sort_by_key(|block| block.first);
    for pair in blocks.windows(2) {
        assert!(pair[0].first.0 + i64::from(pair[0].count) <= pair[1].first.0);
    }
    let later = world.tasks.reserve_ids(3, NOW + 1).await.unwrap();
    assert!(later.first >= TaskId::floor(NOW + 1));
    let earlier = world.tasks.reserve_ids(1, NOW - 60_000).await.unwrap();
    assert_eq!(earlier.first.0, later.first.0 + 3, "a clock that goes back gives no id twice");
}

pub async fn expired_keys_are_pruned_up_to_the_number(world: &World) {
    for (at, task) in world.new_tasks(&world.ada, 5).await.into_iter().enumerate() {
        let key = key(&format!("k{at}"), 1);
        world.try_submit(Submit { key, ..submit(&world.ada, vec![task]) }).await;
    }
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS - 1, 10).await.unwrap(), 0);
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS, 3).await.unwrap(), 3);
    assert_eq!(world.tasks.prune(NOW + KEY_AGE_MS, 3).await.unwrap(), 2);
    assert_eq!(world.live(&world.ada).await, 5, "keys go, tasks stay");
}
