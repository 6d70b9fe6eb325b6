//! Groups: windows, failing fast, and outcomes in the order of submission.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use keiko_core::GroupId;
use keiko_core::code::Code;
use keiko_core::group::{GroupState, NewGroup};
use keiko_core::outcome::{Failure, Outcome};
use keiko_core::port::Attempt;
use keiko_core::stop::Stop;
use tokio::sync::Notify;

use crate::support::{Bench, SOON, echo, fails, report, task};

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
