//! News between hosts that get lost, in virtual time.

use std::time::Duration;

use keiko_store::memory::{Faults, MemoryStore};
use tokio::time::timeout;

use super::schedules::{clock, install};
use crate::support::{MANIFEST, start_virtual};

#[tokio::test(start_paused = true)]
async fn a_host_whose_news_get_lost_follows_a_swap_within_its_lease() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let (first, handle) = start_virtual(store.clone(), clock.clone()).await;
    let deaf = store.another_host();
    let (second, other) = start_virtual(deaf.clone(), clock).await;
    let tenant = install(&handle).await;
    let pass = async |seconds: u64| {
        let _ = timeout(Duration::from_secs(seconds), std::future::pending::<()>()).await;
    };
    let version = || other.plugin(tenant, "script").map(|plugin| plugin.current.name.to_string());
    pass(1).await;
    assert_eq!(version().as_deref(), Some("1"), "it is told of the install");
    deaf.set_faults(Faults { loses_news: true, ..Faults::default() });
    let next = MANIFEST.replace("version = \"1\"", "version = \"2\"");
    handle.install(tenant, next.into(), None).await.expect("installed");
    assert_eq!(version().as_deref(), Some("1"), "nobody tells it");
    pass(handle.options().lease.as_secs()).await;
    assert_eq!(version().as_deref(), Some("2"));
    second.drain().await;
    first.drain().await;
}
