//! What hosts of one database hear of each other.

use std::time::{Duration, Instant};

use futures::future::join_all;
use keiko_core::id::TaskId;
use keiko_core::port::{Signal, Signals, TaskStore};
use sqlx::postgres::PgListener;

use crate::world::database::Database;
use crate::world::{LEASE_MS, NOW, complete, customer, new_task, request, submit};

/// Least time between two messages of a store.
const PACE: Duration = Duration::from_millis(10);

fn nothing_is_heard() -> Signal {
    Signal { hearing: Some(false), ..Signal::default() }
}

/// Waits until so many stores hear news.
async fn listening(database: &Database, stores: i64) {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'keiko news' AND query LIKE 'LISTEN%' AND state = 'idle'";
    while database.number(count).await != stores {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_hear_each_other_and_not_themselves() {
    let database = Database::new().await;
    let (one, other) = (database.open().await, database.open().await);
    listening(&database, 2).await;
    let begins = Signal { cache_many: true, hearing: Some(true), ..Signal::default() };
    assert_eq!(one.next().await, begins);
    assert_eq!(other.next().await, begins);
    let ready = Signal { ready: true, ..Signal::default() };
    one.tell(ready.clone());
    assert_eq!(other.next().await, ready);
    let ended = Signal { ended: vec![TaskId(7), TaskId(8)], ..Signal::default() };
    other.tell(ended.clone());
    assert_eq!(one.next().await, ended, "its own is not among them");
    one.tell(Signal { ended: (0..401).map(TaskId).collect(), catalog: true, ..Signal::default() });
    let many = other.next().await;
    assert!(many.many_ended && many.catalog && many.ended.is_empty());

    // Quiet hosts send nothing, and do not ask all the time whether they are connected.
    let last = "SELECT (extract(epoch FROM max(state_change)) * 1000000)::bigint FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'keiko %'";
    let before = database.number(last).await;
    let quiet = tokio::time::timeout(Duration::from_millis(500), one.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(database.number(last).await, before);

    // Whoever was deaf for a moment does not know what happened.
    let deaf =
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'keiko news'";
    assert!(database.number(deaf).await >= 2);
    for deaf in [&one, &other] {
        let everything = Signal { hearing: Some(true), ..Signal::anything() };
        let mut heard = deaf.next().await;
        if heard == nothing_is_heard() {
            heard = deaf.next().await;
        }
        assert_eq!(heard, everything);
    }
    one.tell(ready.clone());
    assert_eq!(other.next().await, ready);
    one.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_before_a_store_closes_is_heard() {
    let database = Database::new().await;
    let other = database.open().await;
    listening(&database, 1).await;
    other.next().await;
    let ready = Signal { ready: true, ..Signal::default() };
    for _ in 0..5 {
        let one = database.open().await;
        one.tell(ready.clone());
        one.close().await.unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(20), other.next()).await;
        assert_eq!(heard.expect("it was sent"), ready);
    }
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_a_thousand_tasks_one_by_one_is_few_messages() {
    const TASKS: usize = 1_000;
    /// Of each caller, one after the other, so that they tell of them over many commits.
    const TASKS_OF_ONE: usize = 50;
    let database = Database::new().await;
    let store = &database.open().await;
    let ada = &customer(store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let first = store.reserve_ids(TASKS as u32, NOW).await.unwrap().first.0;
    let ids: Vec<TaskId> = (first..first + TASKS as i64).map(TaskId).collect();
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen_all(["keiko", "keiko_said"]).await.unwrap();
    let began = Instant::now();
    let submits = ids.chunks(TASKS_OF_ONE).map(|ids| async move {
        for id in ids {
            let one = submit(ada, vec![new_task(*id, ada.kind)]);
            store.enqueue(vec![one], NOW).await.unwrap();
            store.tell(Signal { ready: true, ..Signal::default() });
        }
    });
    join_all(submits).await;
    let mut tasks = Vec::new();
    while tasks.len() < TASKS {
        tasks.extend(store.lease(request(holder, TASKS)).await.unwrap().tasks);
    }
    let ends = tasks.chunks(TASKS_OF_ONE).map(|tasks| async move {
        for task in tasks {
            store.settle(holder, vec![complete(task)], NOW).await.unwrap();
            store.tell(Signal { ended: vec![task.id], ..Signal::default() });
        }
    });
    join_all(ends).await;
    let took = began.elapsed();
    store.close().await.unwrap();

    // Messages come in the order of their commits.
    database.execute("NOTIFY keiko, 'that was all'").await;
    let mut messages = 0;
    while listener.recv().await.unwrap().payload() != "that was all" {
        messages += 1;
    }
    // One at once, one with what was told last, and those in between by the pace, however slow this machine is.
    let most = took.as_millis() / PACE.as_millis() + 2;
    assert!((1..=most).contains(&messages), "{messages} messages in {took:?}");
}
