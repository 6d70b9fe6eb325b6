//! Writes that come at once share transactions, by what the database says of the rows that they leave.

use futures::future::join_all;
use keiko_core::id::TaskId;
use keiko_core::port::TaskStore;
use keiko_core::task::{Settled, Submit, Submitted};

use crate::world::database::Database;
use crate::world::{LEASE_MS, NOW, child, complete, customer, key, new_task, request, submit, with_children};

/// Callers of one task each, all at once.
const CALLS: usize = 200;
/// Transactions that they may take: a few, because what comes during a commit shares the next one. The rest is room for a
/// machine that stands still between two calls.
const TRANSACTIONS_MAX: i64 = CALLS as i64 / 4;

/// Transactions that stored what is live and was not leased yet, in rows or segments.
const STORED_BY: &str = "SELECT count(DISTINCT number) FROM
    (SELECT xmin::text AS number FROM task UNION ALL SELECT xmin::text FROM task_segment) AS stored";
/// Transactions that ended tasks.
const ENDED_BY: &str = "SELECT count(DISTINCT xmin::text) FROM finished";

#[track_caller]
fn shared(transactions: i64) {
    assert!((1..=TRANSACTIONS_MAX).contains(&transactions), "{transactions} transactions for {CALLS} calls");
}

/// Submits and ends share transactions. Those that do `more` have a key, or a child, which takes several statements.
async fn check(more: fn(usize) -> bool) {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let first = store.reserve_ids(2 * CALLS as u32, NOW).await.unwrap().first.0;
    let id = |at: usize| TaskId(first + at as i64);
    let submits = (0..CALLS).map(|at| {
        let key = if more(at) { key(&at.to_string(), 1) } else { None };
        let one = submit(&ada, vec![new_task(id(at), ada.kind)]);
        store.enqueue(vec![Submit { key, ..one }], NOW)
    });
    for answer in join_all(submits).await {
        let answer = answer.unwrap();
        assert!(matches!(answer[..], [Submitted::Accepted { count: 1, duplicate: false, .. }]), "{answer:?}");
    }
    shared(database.number(STORED_BY).await);

    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let mut tasks = Vec::new();
    while tasks.len() < CALLS {
        tasks.extend(store.lease(request(holder, CALLS)).await.unwrap().tasks);
    }
    let ends = tasks.iter().enumerate().map(|(at, task)| {
        let children = if more(at) { vec![child(&ada, id(CALLS + at), None, "{}")] } else { Vec::new() };
        store.settle(holder, vec![with_children(complete(task), children)], NOW)
    });
    for answer in join_all(ends).await {
        assert_eq!(answer.unwrap(), [Settled::Stored]);
    }
    shared(database.number(ENDED_BY).await);
    assert_eq!(database.number("SELECT count(*) FROM finished").await, CALLS as i64);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_and_ends_that_come_at_once_share_few_transactions() {
    // What does no more is one statement: submits all together, an end each, which alone is a transaction by itself.
    check(|_| false).await;
    check(|_| true).await;
    check(|at| at % 2 == 0).await;
}
