//! A lease that waits for the next submit.

use std::future::{pending, ready};

use bytes::Bytes;
use keiko_core::id::{Holder, TaskId, Token};
use keiko_core::pause::Paused;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{Ask, CatalogStore, Lease, LeaseRequest, Records, StoreErrorKind, TaskStore};
use keiko_core::task::{LeasedTask, NewTask, Payload, Settled, Settlement, Submit, Submitted};
use keiko_store::postgres::PostgresStore;

use crate::submit_plain;
use crate::world::database::Database;
use crate::world::{Customer, LEASE_MS, NOW, complete, customer, hand_back, new_task, request, submit};

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
    assert!(matches!(submitted.unwrap()[..], [Submitted::Accepted { count: 1, leased: true, .. }]));
    let (asked, lease) = leased.unwrap().unwrap();
    assert_eq!((asked.room, lease.lost), (5, false));
    let tasks = lease.tasks;
    assert_eq!(tasks.iter().map(|task| task.id).collect::<Vec<_>>(), [id]);
    let settled = store.settle(holder, tasks.iter().map(complete).collect(), NOW).await.unwrap();
    assert_eq!(settled, [Settled::Stored]);
    let after = store.writer_counts();
    assert_eq!((after.transactions - before.transactions, after.statements - before.statements), (2, 2));
    let counts = store.counts(ada.tenant).await.unwrap();
    assert_eq!((counts.pending, counts.running, counts.completed), (0, 0, 1));
    store.close().await.unwrap();
}

/// A store with a tenant and a holder whose next lease goes with the next submit.
struct Waiting {
    store: PostgresStore,
    ada: Customer,
    holder: Holder,
    _database: Database,
}

impl Waiting {
    async fn new() -> Waiting {
        let database = Database::new().await;
        let store = database.open().await;
        let ada = customer(&store, "ada").await;
        let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
        Waiting { store, ada, holder, _database: database }
    }

    async fn task(&self) -> NewTask {
        new_task(self.store.reserve_ids(1, NOW).await.unwrap().first, self.ada.kind)
    }

    /// Submits while a lease waits; the answer, and the tasks that came with it.
    async fn submit(&self, tasks: Vec<NewTask>, room: usize) -> (Submitted, Lease) {
        let ask: Ask = {
            let holder = self.holder;
            Box::new(move || Some(request(holder, room)))
        };
        let (leased, submitted) = futures::join!(
            self.store.lease_next(ask, Box::pin(pending())),
            self.store.enqueue(vec![submit(&self.ada, tasks)], NOW),
        );
        (submitted.unwrap().remove(0), leased.unwrap().unwrap().1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_leased_as_it_is_stored_is_told_as_any_other() {
    let world = Waiting::new().await;
    let budget = BudgetRequest { fuel: Some(5), queued_ms: Some(900), ..BudgetRequest::default() };
    let input = Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from_static(b"hello") };
    let task = NewTask { budget, input, trace: Some("00-a\0b".to_owned()), ..world.task().await };
    let (_, with_submit) = world.submit(vec![task], 5).await;
    let handed_back = with_submit.tasks.iter().map(hand_back).collect();
    assert_eq!(world.store.settle(world.holder, handed_back, NOW).await.unwrap(), [Settled::Stored]);
    let again = world.store.lease(request(world.holder, 5)).await.unwrap().tasks;
    let (first, second) = (&with_submit.tasks[0], &again[0]);
    assert_eq!((first.token, second.token), (Token(1), Token(2)));
    assert_eq!(LeasedTask { token: second.token, ..first.clone() }, *second);
    world.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_are_leased_as_they_are_stored_as_there_is_room_for() {
    let world = Waiting::new().await;
    let later = NewTask { run_at_ms: NOW + 700, ..world.task().await };
    let (_, lease) = world.submit(vec![later], 2).await;
    assert_eq!((lease.tasks.len(), lease.next_run_at_ms), (0, Some(NOW + 700)));
    let (_, lease) = world.submit(vec![world.task().await], 2).await;
    assert_eq!(
        (lease.tasks.len(), lease.next_run_at_ms),
        (1, Some(NOW + 700)),
        "that it waits is not forgotten"
    );
    let ids = world.store.reserve_ids(6, NOW).await.unwrap().first.0;
    let tasks = |from: i64, count: i64| -> Vec<NewTask> {
        (ids + from..ids + from + count).map(|id| new_task(TaskId(id), world.ada.kind)).collect()
    };
    let (submitted, lease) = world.submit(tasks(0, 2), 2).await;
    assert!(matches!(submitted, Submitted::Accepted { count: 2, leased: true, .. }));
    assert_eq!((lease.tasks.len(), lease.next_run_at_ms), (2, None), "who has no more room looks again");
    let (submitted, lease) = world.submit(tasks(2, 3), 2).await;
    assert!(matches!(submitted, Submitted::Accepted { count: 3, leased: false, .. }));
    assert_eq!(lease.tasks.len(), 2, "of one more than there is room for the first ones");
    assert_eq!(world.store.counts(world.ada.tenant).await.unwrap().pending, 2);
    world.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_stored_or_leased_at_once_goes_the_long_way() {
    let world = Waiting::new().await;
    let Waiting { store, ada, .. } = &world;
    let bob = customer(store, "bob").await;
    store.pause(Paused { tenant: ada.tenant, kind: None }, NOW).await.unwrap();
    let (submitted, lease) = world.submit(vec![world.task().await], 5).await;
    assert!(matches!(submitted, Submitted::Accepted { count: 1, leased: false, .. }));
    assert_eq!((lease.tasks.len(), lease.lost), (0, false), "it is paused");
    store.resume(Paused { tenant: ada.tenant, kind: None }).await.unwrap();
    assert_eq!(store.lease(request(world.holder, 5)).await.unwrap().tasks.len(), 1);

    let foreign = NewTask { kind: bob.kind, ..world.task().await };
    let refused = store.enqueue(vec![submit(ada, vec![foreign])], NOW).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Refused);
    let full = Submit { queue_max: 1, ..submit(ada, vec![world.task().await]) };
    let full = store.enqueue(vec![full], NOW).await.unwrap();
    assert!(matches!(full[..], [Submitted::QueueFull { live: 1 }]), "{full:?}");
    let fits = Submit { queue_max: 2, ..submit(ada, vec![world.task().await]) };
    let fits = store.enqueue(vec![fits], NOW).await.unwrap();
    assert!(matches!(fits[..], [Submitted::Accepted { count: 1, .. }]), "{fits:?}");

    store.close_holder(world.holder, NOW).await.unwrap();
    let (submitted, lease) = world.submit(vec![world.task().await], 5).await;
    assert!(matches!(submitted, Submitted::Accepted { count: 1, leased: false, .. }));
    assert_eq!((lease.tasks.len(), lease.lost), (0, true), "the holder is gone");
    assert_eq!(store.counts(ada.tenant).await.unwrap().pending, 3);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_are_no_plain_ones_are_written_beside_those_that_are() {
    let world = Waiting::new().await;
    let ids = world.store.reserve_ids(3, NOW).await.unwrap().first.0;
    let tasks = (ids..ids + 3).map(|id| new_task(TaskId(id), world.ada.kind)).collect();
    let (_, lease) = world.submit(tasks, 5).await;
    let ends: Vec<Settlement> = lease.tasks.iter().map(complete).collect();
    let stale = Settlement { token: Token(9), ..ends[1].clone() };
    let logged = Settlement { log: Bytes::from_static(b"a log"), ..ends[2].clone() };
    let before = world.store.writer_counts().statements;
    let settled = world.store.settle(world.holder, vec![ends[0].clone(), stale, logged], NOW).await.unwrap();
    assert_eq!(settled, [Settled::Stored, Settled::Stale, Settled::Stored]);
    // The plain ones; begin, the stale one, and commit.
    assert!(world.store.writer_counts().statements - before <= 5);
    assert_eq!(world.store.logs(world.ada.tenant, ends[2].id).await.unwrap().len(), 1);
    let twice = vec![ends[1].clone(), ends[1].clone()];
    let settled = world.store.settle(world.holder, twice, NOW).await.unwrap();
    assert_eq!(settled, [Settled::Stored, Settled::Stale]);
    let counts = world.store.counts(world.ada.tenant).await.unwrap();
    assert_eq!((counts.pending, counts.running, counts.completed), (0, 0, 3));
    world.store.close().await.unwrap();
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
