//! What only a store in memory promises: faults, several hosts, and equal answers to equal calls. The promises that
//! every store keeps are in the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use futures::FutureExt;
use futures::future::join;
use keiko_core::id::TaskId;
use keiko_core::port::{Records, Signal, Signals, StoreErrorKind, TaskStore};

use super::{Faults, MemoryStore};

const NOW: i64 = 1_800_000_000_000;

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
