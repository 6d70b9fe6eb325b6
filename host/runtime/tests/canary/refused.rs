//! Runs on a canary that end well, and whose end the database then refuses.

use std::sync::Arc;

use futures::FutureExt;
use keiko_core::canary::{State, Tally};
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::port::{Attempt, HostPort};
use keiko_core::task::{TaskFilter, TaskState};

use super::{begin, check_completed, failed_run, is_canary, of_canary, run, version_of};
use crate::support::{Bench, echo, submit};
use crate::{Report, child, ended};

/// Asks for one child under a key that all tasks share, with this input.
fn parent(attempt: Attempt, port: Arc<dyn HostPort>, input: &str) -> Report {
    let wish = child(Some("k"), input);
    async move {
        let mut report = echo(&attempt);
        if attempt.facts.lineage.parent.is_none() {
            let mut reserved = port.reserve(std::slice::from_ref(&wish)).await.expect("there is room");
            let mut effects = Effects::default();
            effects.push(wish, reserved.remove(0));
            report.effects = effects;
        }
        report
    }
    .boxed()
}

#[tokio::test]
async fn a_canary_whose_effects_conflict_has_failed_and_the_current_version_runs_the_task() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, port, _| {
        let input = if is_canary(&attempt) { "2" } else { "1" };
        parent(attempt, port, input)
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    check_completed(&run(&handle, tenant, 1).await);
    begin(&handle, tenant, 50).await;
    let all = run(&handle, tenant, 12).await;
    check_completed(&all);
    assert!(all.iter().all(|detail| version_of(detail) == "1"), "{all:?}");
    let tried: Vec<_> = all.iter().filter_map(failed_run).collect();
    let children = TaskFilter { kind: Some("b".parse().expect("a name")), ..TaskFilter::default() };
    let children = handle.list(tenant, &children, 10).await.expect("a list");
    assert_eq!(children.len(), 1, "of the canary no effect is stored");
    runtime.drain().await;
    let figures = handle.figures();
    assert!(figures.canary_attempts > 0 && figures.canary_failures == figures.canary_attempts, "{figures:?}");
    assert_eq!(tried, vec![of_canary(Code::Conflict); figures.canary_attempts as usize]);
    let standing = handle.canary(tenant, "script").await.expect("it stands").standing;
    let failed =
        Tally { tasks: figures.canary_attempts, declared: figures.canary_attempts, ..Tally::default() };
    assert_eq!((standing.state, standing.trial.seen().canary), (State::Trying, failed));
    assert!(standing.failure.expect("it failed").starts_with("conflict: "));
}

#[tokio::test]
async fn a_conflict_that_the_current_version_meets_as_well_is_not_the_canarys() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, port, _| {
        let input = String::from_utf8_lossy(&attempt.input.bytes).into_owned();
        parent(attempt, port, &input)
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let first = submit(&handle, tenant, "0").await;
    ended(&handle, tenant, first).await;
    begin(&handle, tenant, 50).await;
    for detail in run(&handle, tenant, 12).await {
        assert_eq!((detail.view.summary.state, detail.view.attempts.len()), (TaskState::Failed, 1));
        assert_eq!(detail.view.failure.as_ref().map(|failure| failure.code), Some(Code::Conflict));
        assert_eq!(version_of(&detail), "1");
    }
    runtime.drain().await;
    let (standing, tried) = (
        handle.canary(tenant, "script").await.expect("it stands").standing,
        handle.figures().canary_attempts,
    );
    assert!(tried > 0);
    assert_eq!(standing.trial.seen().canary, Tally { tasks: tried, ..Tally::default() });
}
