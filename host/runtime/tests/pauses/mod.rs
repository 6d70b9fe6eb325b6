//! Pauses: of a kind and a tenant on every host, and of one host.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use keiko_core::code::Code;
use keiko_core::port::Attempt;
use keiko_core::task::TaskState;
use keiko_core::{TaskId, TenantId};
use keiko_runtime::{Handle, PauseTarget, TaskRequest};
use keiko_store::memory::MemoryStore;
use tokio::sync::Notify;

use crate::support::{Bench, MANIFEST, SOON, echo, start_on, submit, task};

fn kind(name: &str) -> PauseTarget {
    PauseTarget::Kind { plugin: Some("script".to_owned()), kind: Some(name.to_owned()) }
}

async fn state(handle: &Handle, tenant: TenantId, id: TaskId) -> TaskState {
    handle.task(tenant, id).await.expect("the task").view.summary.state
}

async fn end(handle: &Handle, tenant: TenantId, id: TaskId) -> TaskState {
    handle.wait(tenant, id, SOON).await.expect("the task").view.summary.state
}

fn other() -> TaskRequest {
    TaskRequest { kind: Some("b".to_owned()), ..task("2") }
}

#[tokio::test]
async fn a_paused_kind_takes_submits_and_begins_nothing_until_it_is_resumed() {
    let mut bench = Bench::new().await;
    // One at a time, so that others are leased and wait when the first has begun.
    (bench.options.workers, bench.policy.running_max) = (1, 1);
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begun, held) = (Arc::clone(&started), Arc::clone(&release));
    let play = move |attempt: Attempt, _, _| {
        let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
        async move {
            if attempt.input.bytes == "1" {
                begun.notify_one();
                held.notified().await;
            }
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let first = submit(&handle, tenant, "1").await;
    started.notified().await;
    let leased = submit(&handle, tenant, "3").await;
    let paused = handle.pause_tasks(tenant, &kind("a")).await.expect("paused");
    assert_eq!((paused.kinds.len(), paused.tenant_since_ms, paused.host), (1, None, false));
    assert_eq!(handle.pause_tasks(tenant, &kind("a")).await.expect("paused already"), paused);
    let late = submit(&handle, tenant, "4").await;
    let free = handle.submit(tenant, vec![other()], None).await.expect("accepted").first;
    release.notify_one();
    // What ran goes on, and so does the other kind, which stands behind what is paused.
    assert_eq!(end(&handle, tenant, first).await, TaskState::Completed);
    assert_eq!(end(&handle, tenant, free).await, TaskState::Completed);
    assert_eq!(state(&handle, tenant, late).await, TaskState::Pending);
    assert_ne!(state(&handle, tenant, leased).await, TaskState::Completed);
    assert_eq!(handle.figures().paused, 1);
    let resumed = handle.resume_tasks(tenant, &kind("a")).await.expect("resumed");
    assert!(resumed.kinds.is_empty());
    for id in [leased, late] {
        assert_eq!(end(&handle, tenant, id).await, TaskState::Completed);
        assert_eq!(handle.task(tenant, id).await.expect("the task").view.attempts.len(), 1);
    }
    assert_eq!(handle.figures().paused, 0);
    runtime.drain().await;
}

#[tokio::test]
async fn a_pause_outlives_the_host() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, _, _| async move { echo(&attempt) }.boxed();
    let (runtime, handle, tenant) = bench.start(play).await;
    handle.pause_tasks(tenant, &PauseTarget::Tenant).await.expect("paused");
    handle.pause_tasks(tenant, &kind("b")).await.expect("paused");
    let id = submit(&handle, tenant, "1").await;
    runtime.drain().await;
    let (runtime, handle, tenant) = bench.start(play).await;
    let pauses = handle.pauses(tenant).await.expect("pauses");
    assert!(pauses.tenant_since_ms.is_some() && pauses.kinds.len() == 1);
    assert_eq!(state(&handle, tenant, id).await, TaskState::Pending);
    let resumed = handle.resume_tasks(tenant, &PauseTarget::Tenant).await.expect("resumed");
    assert_eq!(resumed.kinds.len(), 1, "a kind that is paused itself stays so");
    assert_eq!(end(&handle, tenant, id).await, TaskState::Completed);
    runtime.drain().await;
}

#[tokio::test]
async fn a_paused_host_leaves_everything_to_the_others() {
    let store = MemoryStore::new();
    let (paused, handle) = start_on(store.clone(), 4).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let (runs, other) = start_on(store.another_host(), 4).await;
    let view = handle.pause_tasks(tenant, &PauseTarget::Host).await.expect("paused");
    assert!(view.host && handle.figures().host_paused && !other.figures().host_paused);
    let ids = handle.submit(tenant, vec![task("1"); 50], None).await.expect("submits are taken");
    for id in ids.ids() {
        assert_eq!(end(&handle, tenant, id).await, TaskState::Completed);
    }
    assert_eq!((handle.figures().leased, other.figures().settled), (0, 50));
    assert!(!handle.resume_tasks(tenant, &PauseTarget::Host).await.expect("resumed").host);
    runs.drain().await;
    let id = submit(&handle, tenant, "2").await;
    assert_eq!(end(&handle, tenant, id).await, TaskState::Completed);
    paused.drain().await;
}

#[tokio::test]
async fn what_one_host_pauses_and_resumes_holds_on_the_others() {
    let store = MemoryStore::new();
    // It runs nothing itself.
    let (asks, handle) = start_on(store.clone(), 0).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let (runs, other) = start_on(store.another_host(), 4).await;
    handle.pause_tasks(tenant, &PauseTarget::Tenant).await.expect("paused");
    handle.pause_tasks(tenant, &kind("a")).await.expect("paused");
    let ids = handle.submit(tenant, vec![task("1"); 5], None).await.expect("accepted");
    handle.resume_tasks(tenant, &PauseTarget::Tenant).await.expect("resumed");
    let free = handle.submit(tenant, vec![self::other()], None).await.expect("accepted").first;
    assert_eq!(end(&handle, tenant, free).await, TaskState::Completed);
    assert_eq!(other.figures().settled, 1);
    other.resume_tasks(tenant, &kind("a")).await.expect("resumed by another host");
    for id in ids.ids() {
        assert_eq!(end(&handle, tenant, id).await, TaskState::Completed);
    }
    runs.drain().await;
    asks.drain().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_paused() {
    let bench = Bench::new().await;
    let play = |attempt: Attempt, _, _| async move { echo(&attempt) }.boxed();
    let (runtime, handle, tenant) = bench.start(play).await;
    let code = async |target: PauseTarget| handle.pause_tasks(tenant, &target).await.unwrap_err().code;
    assert_eq!(code(kind("c")).await, Code::NotFound);
    let unknown = PauseTarget::Kind { plugin: Some("other".to_owned()), kind: None };
    assert_eq!(code(unknown).await, Code::NotFound);
    let several = PauseTarget::Kind { plugin: Some("script".to_owned()), kind: None };
    assert_eq!(code(several).await, Code::InvalidInput);
    assert_eq!(code(PauseTarget::Kind { plugin: None, kind: None }).await, Code::InvalidInput);
    let wait = handle.resume_tasks(tenant, &kind("b")).await.expect("nothing to resume");
    assert!(wait.kinds.is_empty());
    let stranger = handle.pause_tasks(TenantId(99), &PauseTarget::Tenant).await.unwrap_err();
    assert_eq!(stranger.code, Code::NotFound);
    tokio::time::timeout(Duration::from_secs(10), runtime.drain()).await.expect("in time");
}
