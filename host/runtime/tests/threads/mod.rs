//! The threads that run guests: which processors they keep to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use keiko_core::port::Attempt;
use keiko_core::task::TaskState;
use keiko_runtime::{CORES_MAX, Cores};
use parking_lot::Mutex;

use crate::support::{Bench, SOON, echo, task};

/// The processors that this thread may use.
fn of_this_thread() -> BTreeSet<usize> {
    let set = rustix::thread::sched_getaffinity(None).expect("a set");
    (0..CORES_MAX).filter(|core| set.is_set(*core)).collect()
}

/// Where the attempts of a few tasks may run; on the threads of the long ones, when nothing is `short`.
async fn seen(cores: Cores, short: Duration) -> BTreeSet<BTreeSet<usize>> {
    let mut bench = Bench::new().await;
    (bench.options.workers, bench.options.cores, bench.options.short) = (2, cores, short);
    let sets = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&sets);
    let play = move |attempt: Attempt, _, _| {
        let seen = Arc::clone(&seen);
        async move {
            tokio::task::yield_now().await;
            seen.lock().insert(of_this_thread());
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let accepted = handle.submit(tenant, vec![task("1"); 50], None).await.expect("accepted");
    for id in accepted.ids() {
        let detail = handle.wait(tenant, id, SOON).await.expect("the task");
        assert_eq!(detail.view.summary.state, TaskState::Completed);
    }
    runtime.drain().await;
    let sets = sets.lock();
    sets.clone()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn guests_run_on_the_processors_that_their_threads_keep_to() {
    let usable = of_this_thread();
    let last = usable.iter().copied().next_back().expect("this runs somewhere");
    let only = BTreeSet::from([BTreeSet::from([last])]);
    let usual = Duration::from_secs(1);
    for short in [usual, Duration::ZERO] {
        assert_eq!(seen(Cores::These(BTreeSet::from([last])), short).await, only);
        let all = seen(Cores::All, short).await;
        assert!(all.iter().all(|set| set.len() == 1 && set.is_subset(&usable)), "{all:?}");
        assert_eq!(seen(Cores::Any, short).await, BTreeSet::from([usable.clone()]));
    }
    assert_eq!(of_this_thread(), usable, "other threads keep to nothing");
}
