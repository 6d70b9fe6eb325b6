//! What is forgotten as days go by.

use bytes::Bytes;
use keiko_core::Digest;
use keiko_core::catalog::RemoveWhen;
use keiko_core::port::{Clock, Components};
use keiko_store::memory::MemoryStore;

use crate::schedules::{clock, install, pass};
use crate::support::start_virtual;

#[tokio::test(start_paused = true)]
async fn components_that_no_plugin_names_are_forgotten_a_day_later() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let (runtime, handle) = start_virtual(store.clone(), clock.clone()).await;
    let tenant = install(&handle).await;
    let plugin = handle.plugins(tenant).remove(0);
    let (named, unnamed) = (plugin.current.digest, Digest([9; 32]));
    store.put(unnamed, Bytes::from_static(b"never a version"), clock.now_ms()).await.expect("kept");
    let are_kept = async || {
        let kept = |digest| store.get(digest);
        let (named, unnamed) = (kept(named).await, kept(unnamed).await);
        (named.expect("an answer").is_some(), unnamed.expect("an answer").is_some())
    };
    pass(23).await;
    assert_eq!(are_kept().await, (true, true));
    pass(2).await;
    assert_eq!(are_kept().await, (true, false));
    handle.remove_plugin(tenant, plugin.name.as_str(), RemoveWhen::Idle).await.expect("removed");
    pass(11).await;
    assert_eq!(are_kept().await, (true, false), "it was named half a day ago");
    pass(14).await;
    assert_eq!(are_kept().await, (false, false));
    runtime.drain().await;
}
