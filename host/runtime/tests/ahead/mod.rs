//! What a host leases ahead, and gives back.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use keiko_core::port::Attempt;
use keiko_core::task::TaskState;
use keiko_runtime::{Handle, Options};
use keiko_store::memory::MemoryStore;
use tokio::sync::Semaphore;

use crate::support::{MANIFEST, SOON, echo, start_on, start_playing, task};
use crate::{Report, ended};

/// Waits until something is so.
async fn until(is: impl Fn() -> bool) {
    let look = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, look).await.expect("in time");
}

#[tokio::test]
async fn what_waits_for_long_behind_a_busy_host_begins_on_another() {
    let store = MemoryStore::new();
    let hold = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&hold);
    let play = move |attempt: Attempt, _, _| -> Report {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.expect("open").forget();
            echo(&attempt)
        }
        .boxed()
    };
    let options =
        Options { workers: 1, running_max: 1, beat: Duration::from_millis(20), ..Options::default() };
    let (busy, handle) = start_playing(store.clone(), options, Arc::new(play)).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let ids = handle.submit(tenant, vec![task("1"); 4], None).await.expect("accepted");
    let waits = |handle: &Handle| {
        let figures = handle.figures();
        (figures.running, figures.waiting)
    };
    until(|| waits(&handle) == (1, 3)).await;
    let (idle, other) = start_on(store.another_host(), 4).await;
    // One runs, and one is left to begin next.
    until(|| other.figures().settled == 2).await;
    assert_eq!((waits(&handle), handle.figures().handed_back), ((1, 1), 2));
    hold.add_permits(2);
    for id in ids.ids() {
        let detail = ended(&handle, tenant, id).await;
        assert_eq!((detail.view.summary.state, detail.view.summary.attempts), (TaskState::Completed, 1));
    }
    busy.drain().await;
    idle.drain().await;
}
