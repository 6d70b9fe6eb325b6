//! Versions that take over from each other while tasks run, and plugins that go when their tasks have ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::TenantId;
use keiko_core::catalog::{RemoveWhen, Target};
use keiko_core::code::Code;
use keiko_core::group::NewGroup;
use keiko_core::outcome::Outcome;
use keiko_core::task::{Payload, TaskState};
use keiko_runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::support::{Bench, SOON, report, submit, task};
use crate::{Report, ended};

/// A version of the script; its digest is the end of its text.
async fn install(handle: &Handle, tenant: TenantId, version: u32) {
    let kinds = "[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n";
    let text = format!(
        "[plugin]\nname = \"script\"\nversion = \"{version}\"\n{kinds}# {version:>40} is the version of this text"
    );
    let (plugin, changed) = handle.install(tenant, Bytes::from(text), None).await.expect("installed");
    assert!(changed && plugin.current.name.as_str() == version.to_string());
}

/// Gives the digest it runs as its result, after a moment.
fn digest(attempt: keiko_core::port::Attempt) -> Report {
    async move {
        tokio::task::yield_now().await;
        report(Outcome::Completed(Payload::json(format!("\"{}\"", attempt.digest))))
    }
    .boxed()
}

#[tokio::test]
async fn swaps_fail_no_task_and_every_attempt_runs_one_version() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| digest(attempt)).await;
    install(&handle, tenant, 2).await;
    let submits = async {
        let mut all = Vec::new();
        for _ in 0..40 {
            let accepted = handle.submit(tenant, vec![task("1"); 25], None).await.expect("accepted");
            all.extend(accepted.ids());
        }
        all
    };
    let swaps = async {
        for round in 0..100 {
            let target =
                if round % 2 == 0 { Target::Before } else { Target::Version("2".parse().expect("a name")) };
            let (_, changed) = handle.activate(tenant, "script", target).await.expect("activated");
            assert!(changed, "round {round}");
        }
    };
    let (all, ()) = tokio::join!(submits, swaps);
    let mut ran: BTreeMap<String, u32> = BTreeMap::new();
    for id in all {
        let view = ended(&handle, tenant, id).await.view;
        assert_eq!((view.summary.state, view.attempts.len()), (TaskState::Completed, 1));
        let recorded = view.attempts[0].digest.expect("the attempt has a digest").to_string();
        let result = view.result.expect("completed").bytes;
        assert_eq!(result, format!("\"{recorded}\""), "what ran is what is recorded");
        *ran.entry(recorded).or_default() += 1;
    }
    assert_eq!(ran.len(), 2, "both versions ran: {ran:?}");
    assert_eq!(handle.plugin(tenant, "script").expect("installed").generation, 102);
    runtime.drain().await;
}

#[tokio::test]
async fn uploads_of_a_tenant_take_no_more_of_the_compiler_than_an_hour_has() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| digest(attempt)).await;
    let upload = async |line: &str, version: u32| {
        let kinds = "[[kind]]\nname = \"a\"\n[[kind]]\nname = \"b\"\n";
        let plugin = format!("[plugin]\nname = \"script\"\nversion = \"{version}\"\n{kinds}");
        let text = format!("{plugin}{line}\n# {version:>40} is the version of this text");
        handle.install(tenant, Bytes::from(text), None).await
    };
    // What is refused has been compiled all the same; one upload may go beyond the hour, the next may not.
    let refused = upload("# refused\n# compiled for 3000000", 2).await.expect_err("refused");
    assert_eq!(refused.code, Code::ComponentInvalid);
    upload("# compiled for 700000", 3).await.expect("there is some left");
    let waits = upload("# compiled for 1", 4).await.expect_err("there is none left");
    assert_eq!((waits.code, waits.limit.expect("a limit").limit), (Code::RateLimited, 3_600));
    let wait_s = waits.retry_after_s.expect("a time");
    assert!((90..=100).contains(&wait_s), "{wait_s}");
    bench.clock.0.fetch_add(100_000, Ordering::Relaxed);
    upload("# compiled for 1", 4).await.expect("it has come back");
    runtime.drain().await;
}

#[tokio::test]
async fn an_attempt_finishes_on_the_version_it_began_with() {
    let bench = Bench::new().await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&go));
    let play = move |attempt, _, _| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.notify_one();
            wait.acquire().await.expect("open").forget();
            digest(attempt).await
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let before = submit(&handle, tenant, "1").await;
    started.notified().await;
    install(&handle, tenant, 2).await;
    let after = submit(&handle, tenant, "1").await;
    started.notified().await;
    go.add_permits(2);
    let version = |detail: keiko_runtime::TaskDetail| detail.view.attempts[0].version.clone();
    let versions = [ended(&handle, tenant, before).await, ended(&handle, tenant, after).await].map(version);
    assert_eq!(versions.map(|name| name.map(|name| name.to_string())), [Some("1".into()), Some("2".into())]);
    runtime.drain().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_activated() {
    let bench = Bench::new().await;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| digest(attempt)).await;
    let refused = async |name: &str, target| {
        let error = handle.activate(tenant, name, target).await.expect_err("refused");
        (error.code, error.message)
    };
    let none = || Target::Version("9".parse().expect("a name"));
    assert_eq!(
        refused("script", none()).await,
        (Code::NotFound, "plugin script has no version 9".to_owned())
    );
    let (code, text) = refused("script", Target::Before).await;
    assert!(
        code == Code::NotFound && text.ends_with("has no version before this one to go back to"),
        "{text}"
    );
    assert_eq!(refused("../x", none()).await.0, Code::NotFound);
    assert_eq!(refused("other", Target::Before).await.0, Code::NotFound);
    runtime.drain().await;
}

#[tokio::test]
async fn a_drained_plugin_takes_no_tasks_and_goes_after_its_last() {
    let bench = Bench::new().await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&go));
    let play = move |attempt, _, _| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.notify_one();
            wait.acquire().await.expect("open").forget();
            digest(attempt).await
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let running = submit(&handle, tenant, "1").await;
    started.notified().await;
    let left = handle.remove_plugin(tenant, "script", RemoveWhen::Drained).await.expect("it drains");
    assert_eq!(left, Some(1));
    let refused = handle.submit(tenant, vec![task("1")], None).await.expect_err("it takes no tasks");
    assert_eq!(refused.code, Code::Conflict);
    assert!(handle.plugin(tenant, "script").is_some_and(|plugin| plugin.draining));
    go.add_permits(1);
    assert_eq!(ended(&handle, tenant, running).await.view.summary.state, TaskState::Completed);
    let gone = async {
        while handle.plugin(tenant, "script").is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("it goes by itself");
    runtime.drain().await;
}

#[tokio::test]
async fn a_submit_that_comes_again_finds_its_tasks_though_it_would_be_refused_now() {
    let mut bench = Bench::new().await;
    let asked = |input: &str| {
        let mut task = task(input);
        (task.delay_ms, task.budget.fuel) = (3_600_000, Some(7));
        vec![task; 2]
    };
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| digest(attempt)).await;
    let first = handle.submit(tenant, asked("1"), Some("k".to_owned())).await.expect("accepted").first;
    let group = NewGroup::default();
    let of_group = handle.submit_group(tenant, asked("1"), Some("g".to_owned()), group).await;
    let of_group = of_group.expect("accepted").first;
    runtime.drain().await;

    // Since then the tenant may have less fuel, and later its plugin is to go.
    bench.policy.max.fuel = 6;
    let (runtime, handle, tenant) = bench.start(|attempt, _, _| digest(attempt)).await;
    let submit = async |input: &str, key: Option<&str>| {
        handle.submit(tenant, asked(input), key.map(str::to_owned)).await
    };
    let check = async |refusal: Code| {
        let again = submit("1", Some("k")).await.expect("known");
        assert_eq!((again.first, again.count, again.duplicate), (first, 2, true));
        let again = handle.submit_group(tenant, asked("1"), Some("g".to_owned()), group).await;
        let again = again.expect("known");
        assert_eq!((again.first, again.duplicate), (of_group, true));
        let other = submit("2", Some("k")).await.expect_err("another body");
        assert_eq!((other.code, other.message.contains("another submit")), (Code::Conflict, true));
        for key in [Some("new"), None] {
            let refused = submit("1", key).await.expect_err("nothing is known of it");
            assert_eq!((refused.code, refused.message.contains("another submit")), (refusal, false));
        }
        assert_eq!(handle.counts(tenant).await.expect("counts").pending, 4);
    };
    check(Code::QuotaExceeded).await;
    let left = handle.remove_plugin(tenant, "script", RemoveWhen::Drained).await.expect("it drains");
    assert_eq!(left, Some(4));
    check(Code::Conflict).await;
    runtime.drain().await;
}
