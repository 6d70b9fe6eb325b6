//! Slots of tenants, kinds and keys: as many tasks run at once, and the next begins when one has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use keiko_core::policy::TenantPolicy;
use keiko_core::port::Attempt;
use keiko_core::slot::Concurrency;
use keiko_core::task::TaskState;
use keiko_runtime::TaskRequest;

use crate::support::{Bench, SOON, echo, task};

/// How many run, and how many did at most.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// The kind `a` has two slots, and a key of it one.
fn of_kind(policy: &mut TenantPolicy) {
    let name = ("script".parse().expect("a name"), Some("a".parse().expect("a name")));
    policy.concurrency.insert(name, Concurrency { max: Some(2), per_key: None });
}

/// Runs these tasks under this policy; how many ran at once at most.
async fn most_at_once(policy: impl FnOnce(&mut TenantPolicy), tasks: Vec<TaskRequest>) -> usize {
    let mut bench = Bench::new().await;
    bench.options.workers = 4;
    policy(&mut bench.policy);
    let running = Arc::new(Running::default());
    let seen = Arc::clone(&running);
    let play = move |attempt: Attempt, _, _| {
        let seen = Arc::clone(&seen);
        async move {
            seen.most.fetch_max(seen.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            seen.now.fetch_sub(1, Ordering::SeqCst);
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let accepted = handle.submit(tenant, tasks, None).await.expect("accepted");
    // Each begins when another has ended: nobody waits for a poll, which comes once a minute.
    for id in accepted.ids() {
        let detail = handle.wait(tenant, id, SOON).await.expect("the task");
        assert_eq!(detail.view.summary.state, TaskState::Completed);
    }
    runtime.drain().await;
    running.most.load(Ordering::SeqCst)
}

#[tokio::test]
async fn no_more_run_at_once_than_there_are_slots_and_each_end_lets_one_begin() {
    let tasks = |key: Option<&str>| {
        let one = |at: u32| TaskRequest { slot_key: key.map(str::to_owned), ..task(&at.to_string()) };
        (0..12).map(one).collect::<Vec<_>>()
    };
    assert!(most_at_once(of_kind, tasks(None)).await <= 2);
    assert_eq!(most_at_once(of_kind, tasks(Some("k"))).await, 1);
    let of_tenant = |policy: &mut TenantPolicy| policy.running_max_total = Some(2);
    assert!(most_at_once(of_tenant, tasks(None)).await <= 2);
    assert_eq!(most_at_once(of_tenant, tasks(Some("k"))).await, 1);
}
