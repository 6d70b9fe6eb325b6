//! Many tasks by a filter, of which the store refuses one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use keiko_core::TaskId;
use keiko_core::code::Code;
use keiko_core::outcome::Failure;
use keiko_core::port::Attempt;
use keiko_core::task::{TaskFilter, TaskState};

use crate::ended;
use crate::support::{Bench, echo, fails, task};

#[tokio::test]
async fn what_was_tried_again_beside_an_error_runs_at_once() {
    let bench = Bench::new().await;
    let broken = Arc::new(AtomicBool::new(true));
    let breaks = Arc::clone(&broken);
    let play = move |attempt: Attempt, _, _| {
        let breaks = breaks.load(Ordering::SeqCst);
        let report = if breaks { fails(Failure::new(Code::Trap, "no")) } else { echo(&attempt) };
        async move { report }.boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let first = handle.submit(tenant, vec![task("1"); 3], None).await.expect("accepted").first.0;
    let ids = [0, 1, 2].map(|place| TaskId(first + place));
    for id in ids {
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, TaskState::Failed);
    }
    broken.store(false, Ordering::SeqCst);
    bench.store.poison.store(ids[1].0, Ordering::SeqCst);
    let failed = TaskFilter { state: Some(TaskState::Failed), ..TaskFilter::default() };
    let error = handle.retry_many(tenant, &failed, 100).await.expect_err("one is refused");
    assert_eq!(error.code, Code::Internal);
    for (id, state) in ids.into_iter().zip([TaskState::Completed, TaskState::Failed, TaskState::Completed]) {
        assert_eq!(ended(&handle, tenant, id).await.view.summary.state, state);
    }
    runtime.drain().await;
}
