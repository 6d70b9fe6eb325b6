//! A lease that waits for the next submit.

use std::future::{pending, ready};

use keiko_core::id::TaskId;
use keiko_core::port::{Ask, LeaseRequest, Records, TaskStore};
use keiko_core::task::{Settled, Submit, Submitted};

use crate::submit_plain;
use crate::world::database::Database;
use crate::world::{LEASE_MS, NOW, complete, customer, new_task, request, submit};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_waits_comes_with_the_next_submit() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let id = store.reserve_ids(1, NOW).await.unwrap().first;
    let before = store.writer_counts();
    let (leased, submitted) = futures::join!(
        store.lease_next(Box::new(move || Some(request(holder, 5))), Box::pin(pending())),
        store.enqueue(vec![submit(&ada, vec![new_task(id, ada.kind)])], NOW),
    );
    assert!(matches!(submitted.unwrap()[..], [Submitted::Accepted { count: 1, .. }]));
    let (asked, lease) = leased.unwrap().unwrap();
    assert_eq!((asked.room, lease.lost), (5, false));
    let tasks = lease.tasks;
    assert_eq!(tasks.iter().map(|task| task.id).collect::<Vec<_>>(), [id]);
    let settled = store.settle(holder, tasks.iter().map(complete).collect(), NOW).await.unwrap();
    assert_eq!(settled, [Settled::Stored]);
    let after = store.writer_counts();
    // Begin, count, insert, lease, commit; begin, end and count, commit.
    assert_eq!((after.transactions - before.transactions, after.statements - before.statements), (2, 8));
    assert_eq!(store.counts(ada.tenant).await.unwrap().completed, 1);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_waits_no_longer_takes_nothing() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let ask = || -> Ask { Box::new(move || Some(request(holder, 5))) };
    let ended = store.lease_next(ask(), Box::pin(ready(()))).await.unwrap();
    assert!(ended.is_none(), "nobody submitted anything");
    let mut dropped = Box::pin(store.lease_next(ask(), Box::pin(pending())));
    assert!(futures::poll!(dropped.as_mut()).is_pending());
    drop(dropped);
    let refused = Submit { queue_max: 0, ..submit(&ada, vec![new_task(TaskId(1), ada.kind)]) };
    let leased = store.lease_next(ask(), Box::pin(pending()));
    let (leased, refused) = futures::join!(leased, store.enqueue(vec![refused], NOW));
    assert!(matches!(refused.unwrap()[..], [Submitted::QueueFull { live: 0 }]));
    assert!(leased.unwrap().unwrap().1.tasks.is_empty(), "it came with a submit that was refused");
    let asked_for_nothing = store.lease_next(Box::new(|| None), Box::pin(pending()));
    let (leased, ids) = futures::join!(asked_for_nothing, submit_plain(&store, &ada, 1));
    assert!(leased.unwrap().is_none());
    let lease = store.lease(request(holder, 5)).await.unwrap();
    assert_eq!(lease.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), ids);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_fails_holds_up_no_submit() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    // No column holds such a time.
    let ask: Ask = Box::new(move || Some(LeaseRequest { lease_ms: i64::MAX, ..request(holder, 5) }));
    let leased = store.lease_next(ask, Box::pin(pending()));
    let (leased, ids) = futures::join!(leased, submit_plain(&store, &ada, 2));
    assert!(leased.unwrap().is_none(), "whoever waits leases alone");
    let lease = store.lease(request(holder, 5)).await.unwrap();
    assert_eq!(lease.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), ids);
    store.close().await.unwrap();
}
