//! Trees of tasks: what their attempts begin with, and what they are charged.

use std::sync::Arc;

use futures::FutureExt;
use keiko_core::TaskId;
use keiko_core::code::Code;
use keiko_core::limit::SetBy;
use keiko_core::outcome::{Failure, Meter, Outcome};
use keiko_core::port::{Attempt, HostPort};
use keiko_core::task::{TaskFilter, TaskState};
use keiko_core::tree::{Spending, Tree};
use parking_lot::Mutex;

use crate::support::{Bench, echo, report, task};
use crate::{child, ended, parent};

/// What an attempt was given: fuel and host calls, and by whom.
type Given = (u64, SetBy, u64, SetBy);

/// Runs a root with four children one after the other in a tree of 100 fuel and 10 host calls, of which the root spends 10
/// and 1, and each child as it is told here. What the children were given, how those fared that were given nothing, and the tree.
async fn family(each: Spending) -> (Vec<Given>, Vec<(Code, String, SetBy)>, Tree) {
    let mut bench = Bench::new().await;
    bench.policy.running_max = 1;
    bench.policy.default.host_calls = 9;
    let given = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&given);
    let play = move |attempt: Attempt, port: Arc<dyn HostPort>, _| {
        let seen = Arc::clone(&seen);
        async move {
            let spends = |spending: Spending| Meter {
                fuel_used: spending.fuel,
                host_calls: spending.host_calls,
                ..Meter::default()
            };
            if attempt.facts.lineage.parent.is_none() {
                let wishes = vec![child(None, "1"); 4];
                let mut report = parent(wishes, attempt, port).await;
                report.meter = spends(Spending { fuel: 10, host_calls: 1 });
                return report;
            }
            let (fuel, calls) = (attempt.budget.fuel, attempt.budget.host_calls);
            seen.lock().push((fuel.value, fuel.set_by, calls.value, calls.set_by));
            let mut report = echo(&attempt);
            report.meter = spends(each);
            report
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let mut root = task("0");
    (root.budget.fuel, root.budget.tree_fuel, root.budget.tree_host_calls) = (Some(80), Some(100), Some(10));
    let root = handle.submit(tenant, vec![root], None).await.expect("accepted").first;
    ended(&handle, tenant, root).await;
    let filter = TaskFilter { parent: Some(root), ..TaskFilter::default() };
    let mut spent = Vec::new();
    for found in handle.list(tenant, &filter, 10).await.expect("a list") {
        let view = ended(&handle, tenant, found.id).await.view;
        if view.summary.state == TaskState::Failed {
            let Failure { code, limit, .. } = view.failure.expect("it failed");
            let limit = limit.expect("the limit is told");
            spent.push((code, limit.name, limit.set_by));
        }
    }
    let tree = ended(&handle, tenant, root).await.view.tree.expect("it has children");
    runtime.drain().await;
    let given = given.lock().clone();
    (given, spent, tree)
}

#[tokio::test]
async fn a_tree_spends_what_its_root_may_and_no_more() {
    let given = |fuel, calls| {
        let of = |value, own| if value < own { (value, SetBy::Tree) } else { (own, SetBy::Task) };
        let ((fuel, by_fuel), (calls, by_calls)) = (of(fuel, 80), of(calls, 9));
        (fuel, by_fuel, calls, if by_calls == SetBy::Task { SetBy::Tenant } else { by_calls })
    };
    // All that is left, to the last unit: nobody is refused.
    let (begun, spent, tree) = family(Spending { fuel: 22, host_calls: 2 }).await;
    assert_eq!(begun, [given(90, 9), given(68, 7), given(46, 5), given(24, 3)]);
    assert_eq!((spent, tree.used), (vec![], Spending { fuel: 98, host_calls: 9 }));
    // The third spends the last of it, of fuel or of calls, and the fourth does not begin.
    let (begun, spent, tree) = family(Spending { fuel: 30, host_calls: 0 }).await;
    assert_eq!(begun, [given(90, 9), given(60, 9), given(30, 9)]);
    assert_eq!(spent, [(Code::FuelExhausted, "tree_fuel".to_owned(), SetBy::Tree)]);
    assert_eq!(tree.used, Spending { fuel: 100, host_calls: 1 });
    let (begun, spent, tree) = family(Spending { fuel: 1, host_calls: 3 }).await;
    assert_eq!(begun.len(), 3);
    assert_eq!(spent, [(Code::HostcallBudget, "tree_host_calls".to_owned(), SetBy::Tree)]);
    assert_eq!(tree.used, Spending { fuel: 13, host_calls: 10 });
}

#[tokio::test]
async fn the_time_of_a_tree_ends_its_tasks() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, port: Arc<dyn HostPort>, stop: keiko_core::stop::Stop| {
        async move {
            if attempt.facts.lineage.parent.is_none() {
                return parent(vec![child(None, "1")], attempt, port).await;
            }
            report(Outcome::Stopped(stop.wait().await))
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let mut root = task("0");
    root.budget.tree_ms = Some(300);
    let root = handle.submit(tenant, vec![root], None).await.expect("accepted").first;
    assert_eq!(ended(&handle, tenant, root).await.view.summary.state, TaskState::Completed);
    let filter = TaskFilter { parent: Some(root), ..TaskFilter::default() };
    let child = handle.list(tenant, &filter, 10).await.expect("a list").remove(0);
    let view = ended(&handle, tenant, child.id).await.view;
    let limit = view.failure.and_then(|failure| failure.limit).expect("the limit is told");
    assert_eq!((limit.name.as_str(), limit.limit), ("tree_ms", 300));
    runtime.drain().await;
}

#[tokio::test]
async fn a_cancel_follows_the_tree_of_a_task_that_has_ended() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench
        .start(move |attempt, port, stop| {
            if attempt.facts.lineage.parent.is_none() {
                return parent(vec![child(None, "1"), child(None, "2")], attempt, port);
            }
            async move { report(Outcome::Stopped(stop.wait().await)) }.boxed()
        })
        .await;
    let root = handle.submit(tenant, vec![task("0")], None).await.expect("accepted").first;
    ended(&handle, tenant, root).await;
    let plain = handle.cancel(tenant, root).await.expect_err("it has ended");
    assert_eq!(plain.code, Code::Conflict);
    let (told, below) = handle.cancel_tree(tenant, root).await.expect("its children have not");
    assert_eq!((told.view.summary.state, below), (TaskState::Completed, 2));
    let filter = TaskFilter { parent: Some(root), ..TaskFilter::default() };
    for found in handle.list(tenant, &filter, 10).await.expect("a list") {
        assert_eq!(found.state, TaskState::Cancelled);
    }
    let (_, below) = handle.cancel_tree(tenant, root).await.expect("nothing is left");
    assert_eq!(below, 0);
    assert_eq!(handle.cancel_tree(tenant, TaskId(1)).await.expect_err("there is none").code, Code::NotFound);
    runtime.drain().await;
}
