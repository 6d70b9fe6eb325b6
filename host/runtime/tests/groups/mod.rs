//! Groups: windows, failing fast, and outcomes in the order of submission.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use keiko_core::code::Code;
use keiko_core::effect::ChildWish;
use keiko_core::group::{GroupState, NewGroup};
use keiko_core::outcome::{AttemptReport, Failure, Outcome};
use keiko_core::port::{Attempt, HostPort};
use keiko_core::stop::Stop;
use keiko_core::task::{TaskFilter, TaskState};
use keiko_core::{GroupId, TaskId, TenantId};
use keiko_runtime::Handle;
use tokio::sync::Notify;

use crate::support::{Bench, SOON, echo, fails, report, submit, task};
use crate::{Report, child, ended};

#[tokio::test]
async fn a_group_runs_in_its_window_and_has_one_outcome_for_each_task() {
    let bench = Bench::new().await;
    let (live, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (now, peak) = (Arc::clone(&live), Arc::clone(&most));
    let play = move |attempt: Attempt, _, _| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            if attempt.input.bytes == "7" { fails(Failure::new(Code::Trap, "no")) } else { echo(&attempt) }
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let tasks = (0..50).map(|number| task(&number.to_string())).collect();
    let asked = NewGroup { live_max: Some(3), fail_fast: false };
    let accepted = handle.submit_group(tenant, tasks, None, asked).await.expect("accepted");
    let id = GroupId(accepted.first.0);
    let group = handle.wait_group(tenant, id, SOON).await.expect("the group");
    assert_eq!((group.state(), group.completed, group.failed), (GroupState::Failed, 49, 1));
    assert!(most.load(Ordering::SeqCst) <= 3, "{most:?} at once");
    let (_, outcomes) = handle.outcomes(tenant, id, 0, 100).await.expect("outcomes");
    for (number, outcome) in outcomes.iter().enumerate() {
        let result = outcome.result.as_ref().map(|result| result.bytes.to_vec());
        assert_eq!(
            result,
            (number != 7).then(|| number.to_string().into_bytes()),
            "in the order of submission"
        );
    }
    assert_eq!(outcomes.len(), 50);
    runtime.drain().await;
}

#[tokio::test]
async fn a_group_that_fails_fast_stops_what_runs_of_it() {
    let bench = Bench::new().await;
    let started = Arc::new(Notify::new());
    let begun = Arc::clone(&started);
    let play = move |attempt: Attempt, _, stop: Stop| {
        let begun = Arc::clone(&begun);
        async move {
            if attempt.input.bytes == "1" {
                begun.notified().await;
                return fails(Failure::new(Code::Trap, "no"));
            }
            begun.notify_one();
            report(Outcome::Stopped(stop.wait().await))
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let asked = NewGroup { live_max: Some(2), fail_fast: true };
    let tasks = vec![task("0"), task("1"), task("2"), task("3")];
    let accepted = handle.submit_group(tenant, tasks, None, asked).await.expect("accepted");
    let group = handle.wait_group(tenant, GroupId(accepted.first.0), SOON).await.expect("the group");
    assert_eq!((group.state(), group.failed, group.cancelled), (GroupState::Failed, 1, 3));
    while handle.figures().running > 0 {
        tokio::task::yield_now().await;
    }
    runtime.drain().await;
}

/// Completes with children of these inputs: those of a root are a group, which the last one joins.
async fn bears(
    attempt: Attempt,
    port: Arc<dyn HostPort>,
    mut wishes: Vec<ChildWish>,
    joined: Option<NewGroup>,
) -> AttemptReport {
    let reserved = port.reserve(&wishes).await.expect("there is room");
    let mut report = echo(&attempt);
    match joined {
        Some(asked) => {
            let then = wishes.pop().expect("one joins the others");
            report.effects.push_joined(wishes, asked, then, reserved);
        }
        None => wishes.into_iter().zip(reserved).for_each(|(wish, one)| report.effects.push(wish, one)),
    }
    report
}

/// The children of a root are a group: a number has so many children of its own, which run until they are stopped, as
/// `"runs"` does; `"fails"` does when it is told to. What joins them ends at once.
fn family(
    members: &'static [&'static str],
    asked: NewGroup,
    told: Arc<Notify>,
) -> impl Fn(Attempt, Arc<dyn HostPort>, Stop) -> Report + Send + Sync + 'static {
    move |attempt, port, stop| {
        let told = Arc::clone(&told);
        async move {
            let input = String::from_utf8_lossy(&attempt.input.bytes).into_owned();
            match (attempt.facts.lineage.depth, input.as_str()) {
                (0, _) => {
                    let wishes = members.iter().chain(&["null"]).map(|input| child(None, input)).collect();
                    bears(attempt, port, wishes, Some(asked)).await
                }
                (1, "\"fails\"") => {
                    told.notified().await;
                    fails(Failure::new(Code::Trap, "no"))
                }
                (2, _) | (1, "\"runs\"") => report(Outcome::Stopped(stop.wait().await)),
                (_, input) => match input.parse() {
                    Ok(count) => bears(attempt, port, vec![child(None, "0"); count], None).await,
                    Err(_) => echo(&attempt),
                },
            }
        }
        .boxed()
    }
}

/// The children of a task, when it has ended, in their order.
async fn children(handle: &Handle, tenant: TenantId, parent: TaskId) -> Vec<TaskId> {
    assert_eq!(ended(handle, tenant, parent).await.view.summary.state, TaskState::Completed);
    let filter = TaskFilter { parent: Some(parent), ..TaskFilter::default() };
    let found = handle.list(tenant, &filter, 1_000).await.expect("a list");
    found.iter().rev().map(|task| task.id).collect()
}

#[tokio::test]
async fn a_group_of_children_is_cancelled_with_what_is_below_them() {
    let bench = Bench::new().await;
    let play = family(&["2", "\"runs\""], NewGroup::default(), Arc::default());
    let (runtime, handle, tenant) = bench.start(play).await;
    let root = submit(&handle, tenant, "null").await;
    let members = children(&handle, tenant, root).await;
    let below = children(&handle, tenant, members[0]).await;
    assert_eq!((members.len(), below.len()), (3, 2));
    let group = handle.cancel_group(tenant, GroupId(members[0].0)).await.expect("the group");
    assert_eq!((group.state(), group.completed, group.cancelled), (GroupState::Failed, 1, 1));
    for id in below {
        let view = handle.task(tenant, id).await.expect("there").view;
        assert_eq!(view.summary.state, TaskState::Cancelled);
    }
    let join = ended(&handle, tenant, members[2]).await;
    assert_eq!(join.view.summary.state, TaskState::Completed, "it is not below them");
    runtime.drain().await;
}

#[tokio::test]
async fn a_group_that_fails_fast_ends_what_is_below_its_tasks_however_many_they_are() {
    let bench = Bench::new().await;
    let told = Arc::new(Notify::new());
    let asked = NewGroup { live_max: None, fail_fast: true };
    // More than one transaction cancels.
    let play = family(&["505", "505", "\"fails\""], asked, Arc::clone(&told));
    let (runtime, handle, tenant) = bench.start(play).await;
    let root = submit(&handle, tenant, "null").await;
    let members = children(&handle, tenant, root).await;
    let mut below = children(&handle, tenant, members[0]).await;
    below.extend(children(&handle, tenant, members[1]).await);
    assert_eq!(below.len(), 1_010);
    told.notify_one();
    let group = handle.wait_group(tenant, GroupId(members[0].0), SOON).await.expect("the group");
    assert_eq!((group.state(), group.completed, group.failed), (GroupState::Failed, 2, 1));
    for id in below {
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Cancelled);
    }
    runtime.drain().await;
}
