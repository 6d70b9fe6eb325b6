//! What only a store in memory promises: faults, several hosts, and equal answers to equal calls. The promises that
//! every store keeps are in the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::{pending, ready};

use futures::FutureExt;
use futures::future::join;
use keiko_core::id::{Holder, TaskId};
use keiko_core::port::{Ask, Records, Signal, Signals, StoreErrorKind, TaskStore};
use keiko_core::task::Submit;

use super::{Faults, MemoryStore};
use crate::world::{self, LEASE_MS, NOW, request};

async fn kind_of_ids(store: &MemoryStore) -> Result<TaskId, StoreErrorKind> {
    store.reserve_ids(1, NOW).await.map(|block| block.first).map_err(|error| error.kind())
}

#[tokio::test]
async fn faults_are_one_hosts_and_end() {
    let store = MemoryStore::new();
    let other = store.another_host();
    store.set_faults(Faults { fail_next: 2, lose_next: 1, ..Faults::default() });
    assert_eq!(kind_of_ids(&store).await, Err(StoreErrorKind::Busy));
    assert_eq!(kind_of_ids(&store).await, Err(StoreErrorKind::Busy));
    let first = TaskId::floor(NOW);
    assert_eq!(kind_of_ids(&other).await, Ok(first), "what fails does nothing, and fails for one host");
    assert_eq!(kind_of_ids(&store).await, Err(StoreErrorKind::Down));
    assert_eq!(kind_of_ids(&store).await, Ok(TaskId(first.0 + 2)), "what is lost was done");
    store.set_faults(Faults { down: true, ..Faults::default() });
    assert_eq!(kind_of_ids(&store).await, Err(StoreErrorKind::Down));
    store.set_faults(Faults::default());
    assert_eq!(kind_of_ids(&store).await, Ok(TaskId(first.0 + 3)));
}

#[tokio::test]
async fn a_closed_store_is_down_for_its_host_alone() {
    let store = MemoryStore::new();
    let (clone, other) = (store.clone(), store.another_host());
    store.close();
    for closed in [&store, &clone] {
        assert_eq!(kind_of_ids(closed).await, Err(StoreErrorKind::Down));
        assert_eq!(closed.ping().await.unwrap_err().kind(), StoreErrorKind::Down);
    }
    assert!(kind_of_ids(&other).await.is_ok());
}

#[tokio::test]
async fn a_slow_call_lets_others_go_first() {
    let store = MemoryStore::new();
    let other = store.another_host();
    assert!(store.reserve_ids(1, NOW).now_or_never().is_some(), "a call is done at its first poll");
    store.set_faults(Faults { slow: 3, ..Faults::default() });
    let (slow, quick) = join(kind_of_ids(&store), kind_of_ids(&other)).await;
    assert!(quick.unwrap() < slow.unwrap());
}

#[tokio::test]
async fn news_goes_to_every_other_host_and_waits_for_it() {
    let store = MemoryStore::new();
    let (second, third) = (store.another_host(), store.another_host());
    let ready = Signal { ready: true, ..Signal::default() };
    store.tell(Signal::default());
    store.tell(ready.clone());
    let ended = Signal { ended: vec![TaskId(4)], ..Signal::default() };
    third.tell(ended.clone());
    assert_eq!(store.next().await, ended, "own news is not read");
    let both = Signal { ready: true, ..ended };
    assert_eq!(second.next().await, both);
    assert_eq!(third.next().await, ready);
    assert!(second.next().now_or_never().is_none(), "it is read once");

    let (news, ()) = join(second.next(), async { third.tell(ready.clone()) }).await;
    assert_eq!(news, ready, "whoever waits is woken");
}

#[tokio::test]
async fn a_host_that_was_cut_off_hears_that_anything_may_have_changed() {
    let store = MemoryStore::new();
    let other = store.another_host();
    store.set_faults(Faults { down: true, ..Faults::default() });
    other.tell(Signal { ready: true, ..Signal::default() });
    assert!(store.next().now_or_never().is_none());
    store.set_faults(Faults::default());
    let news = store.next().await;
    assert!(news.ready && news.catalog && news.many_ended);
}

/// A holder, and a submit of one task.
async fn submit(store: &MemoryStore) -> (Holder, Submit) {
    let ada = world::customer(store, "ada").await;
    let id = store.reserve_ids(1, NOW).await.unwrap().first;
    let submit = world::submit(&ada, vec![world::new_task(id, ada.kind)]);
    (store.open_holder(NOW, LEASE_MS).await.unwrap(), submit)
}

fn ask(holder: Holder) -> Ask {
    Box::new(move || Some(request(holder, 5)))
}

#[tokio::test]
async fn a_lease_that_went_with_a_submit_and_is_heard_of_by_nobody_goes_back() {
    let store = MemoryStore::new();
    let (holder, submit) = submit(&store).await;
    let stalled = store.clone();
    let ask = move || {
        stalled.set_faults(Faults { stalled: true, ..Faults::default() });
        Some(request(holder, 5))
    };
    let mut waiting = Box::pin(store.lease_next(Box::new(ask), Box::pin(pending())));
    assert!((&mut waiting).now_or_never().is_none());
    let mut submitting = Box::pin(store.enqueue(vec![submit], NOW));
    assert!((&mut submitting).now_or_never().is_none());
    assert_eq!((store.leased_along(), store.lease(request(holder, 5)).now_or_never().is_none()), (1, true));
    drop(waiting);
    store.set_faults(Faults::default());
    assert!(submitting.await.is_ok());
    assert_eq!(store.lease(request(holder, 5)).await.unwrap().tasks.len(), 1);
}

#[tokio::test]
async fn of_a_lease_whose_submit_has_no_answer_nobody_knows_what_it_took() {
    let store = MemoryStore::new();
    let (holder, submit) = submit(&store).await;
    let waiting = store.lease_next(ask(holder), Box::pin(pending()));
    store.set_faults(Faults { lose_next: 1, ..Faults::default() });
    let (leased, submitted) = join(waiting, store.enqueue(vec![submit], NOW)).await;
    assert_eq!(leased.unwrap_err().kind(), StoreErrorKind::Down);
    assert_eq!(submitted.unwrap_err().kind(), StoreErrorKind::Down);
    assert_eq!(store.leased_along(), 1);
    assert_eq!(store.close_holder(holder, NOW).await.unwrap(), 1, "it is the holder's");
}

#[tokio::test]
async fn a_lease_that_is_withdrawn_goes_with_no_submit() {
    let store = MemoryStore::new();
    let (holder, submit) = submit(&store).await;
    assert!(store.lease_next(ask(holder), Box::pin(ready(()))).await.unwrap().is_none());
    store.enqueue(vec![submit], NOW).await.unwrap();
    assert_eq!(store.leased_along(), 0);
}
