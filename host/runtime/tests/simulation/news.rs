//! What hosts do with news of each other, and without those that get lost, in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use keiko_core::GroupId;
use keiko_core::code::Code;
use keiko_core::group::NewGroup;
use keiko_core::outcome::Outcome;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{Attempt, HostPort, Signal, Signals};
use keiko_core::stop::Stop;
use keiko_core::task::TaskState;
use keiko_runtime::{Options, PauseTarget, TaskRequest};
use keiko_store::memory::{Faults, MemoryStore};
use tokio::time::timeout;

use super::schedules::{clock, install};
use crate::support::{Given, MANIFEST, Play, report, start_virtual, start_virtual_with, task};

const BEGAN: &str = "2026-06-01T12:00:00Z";
const SECOND: Duration = Duration::from_secs(1);
/// Time for what nobody waits for.
const MOMENT: Duration = Duration::from_millis(10);

/// Lets virtual time go on.
async fn pass(time: Duration) {
    let _ = timeout(time, std::future::pending::<()>()).await;
}

/// Guests that run until they are stopped: how many have begun, and how many of them were stopped.
#[derive(Default)]
struct Endless {
    begun: AtomicUsize,
    stopped: AtomicUsize,
}

impl Endless {
    fn play(self: &Arc<Endless>) -> Arc<Play> {
        let seen = Arc::clone(self);
        Arc::new(move |_: Attempt, _: Arc<dyn HostPort>, stop: Stop| {
            let seen = Arc::clone(&seen);
            async move {
                seen.begun.fetch_add(1, Ordering::SeqCst);
                let reason = stop.wait().await;
                seen.stopped.fetch_add(1, Ordering::SeqCst);
                report(Outcome::Stopped(reason))
            }
            .boxed()
        })
    }

    fn counts(&self) -> (usize, usize) {
        (self.begun.load(Ordering::SeqCst), self.stopped.load(Ordering::SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_cancelled_elsewhere_stops_though_the_news_name_nothing_or_get_lost() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let guests = Arc::new(Endless::default());
    let given = Given { play: guests.play(), ..Given::default() };
    let (runs, handle) = start_virtual_with(store.clone(), clock.clone(), given).await;
    let tenant = install(&handle).await;
    let elsewhere = store.another_host();
    let given = Given { options: Options { running_max: 0, ..Options::default() }, ..Given::default() };
    let (asks, other) = start_virtual_with(elsewhere.clone(), clock, given).await;
    let hears = |is: bool| store.set_faults(Faults { loses_news: !is, ..Faults::default() });
    for many_ended in [true, false] {
        let tasks = vec![task("1"); 40];
        let group = handle.submit_group(tenant, tasks, None, NewGroup::default()).await.expect("accepted");
        pass(SECOND).await;
        let (begun, stopped) = guests.counts();
        assert!(begun > stopped, "{begun} begun, {stopped} stopped");
        hears(false);
        other.cancel_group(tenant, GroupId(group.first.0)).await.expect("cancelled");
        pass(MOMENT).await;
        hears(true);
        assert_eq!(guests.counts(), (begun, stopped), "nobody has told it");
        if many_ended {
            elsewhere.tell(Signal { many_ended, ..Signal::default() });
            pass(MOMENT).await;
        } else {
            pass(handle.options().beat + SECOND).await;
        }
        assert_eq!(guests.counts(), (begun, begun), "all that ran were stopped, and none began");
        assert_eq!(handle.figures().waiting, 0);
    }
    runs.drain().await;
    asks.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_cancelled_while_it_waited_for_a_worker_does_not_begin() {
    let guests = Arc::new(Endless::default());
    let given = Given { play: guests.play(), ..Given::default() };
    let (runs, handle) = start_virtual_with(MemoryStore::new(), clock(BEGAN), given).await;
    let tenant = install(&handle).await;
    let tasks = vec![task("1"); 40];
    let group = handle.submit_group(tenant, tasks, None, NewGroup::default()).await.expect("accepted");
    pass(SECOND).await;
    assert!(handle.figures().waiting > 0);
    handle.cancel_group(tenant, GroupId(group.first.0)).await.expect("cancelled");
    pass(MOMENT).await;
    let (begun, stopped) = guests.counts();
    assert_eq!((begun, handle.figures().waiting), (stopped, 0));
    runs.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_host_hands_back_as_it_drains_goes_on_elsewhere_at_once() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let guests = Arc::new(Endless::default());
    let options = Options { drain: Duration::from_millis(200), ..Options::default() };
    let given = Given { options, play: guests.play(), ..Given::default() };
    let (leaves, handle) = start_virtual_with(store.clone(), clock.clone(), given).await;
    let tenant = install(&handle).await;
    handle.submit(tenant, vec![task("1"); 40], None).await.expect("accepted");
    pass(SECOND).await;
    // The first one has had no beat since this one is there.
    let (stays, other) = start_virtual(store.another_host(), clock).await;
    pass(SECOND).await;
    let running = other.counts(tenant).await.expect("counts").running;
    assert!(running > 0, "the first one has some");
    assert_eq!(leaves.drain().await.handed_back, running);
    pass(SECOND).await;
    assert_eq!(other.counts(tenant).await.expect("counts").completed, 40);
    stays.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_time_out_that_only_a_host_that_has_drained_knew_of_is_met() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let (leaves, handle) = start_virtual(store.clone(), clock.clone()).await;
    let tenant = install(&handle).await;
    let kind = PauseTarget::Kind { plugin: Some("script".to_owned()), kind: Some("a".to_owned()) };
    handle.pause_tasks(tenant, &kind).await.expect("paused");
    let (stays, other) = start_virtual(store.another_host(), clock).await;
    pass(SECOND).await;
    let budget = BudgetRequest { queued_ms: Some(60_000), ..BudgetRequest::default() };
    let waits = TaskRequest { budget, ..task("1") };
    let id = handle.submit(tenant, vec![waits], None).await.expect("accepted").first;
    leaves.drain().await;
    let end = async || {
        let view = other.task(tenant, id).await.expect("the task").view;
        (view.summary.state, view.failure.map(|failure| failure.code))
    };
    pass(SECOND * 58).await;
    assert_eq!(end().await, (TaskState::Pending, None));
    pass(SECOND * 3).await;
    assert_eq!(end().await, (TaskState::Failed, Some(Code::DeadlineExceeded)));
    stays.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_news_get_lost_follows_a_swap_within_its_lease() {
    let (store, clock) = (MemoryStore::new(), clock(BEGAN));
    let (first, handle) = start_virtual(store.clone(), clock.clone()).await;
    let deaf = store.another_host();
    let (second, other) = start_virtual(deaf.clone(), clock).await;
    let tenant = install(&handle).await;
    let version = || other.plugin(tenant, "script").map(|plugin| plugin.current.name.to_string());
    pass(SECOND).await;
    assert_eq!(version().as_deref(), Some("1"), "it is told of the install");
    deaf.set_faults(Faults { loses_news: true, ..Faults::default() });
    let next = MANIFEST.replace("version = \"1\"", "version = \"2\"");
    handle.install(tenant, next.into(), None).await.expect("installed");
    assert_eq!(version().as_deref(), Some("1"), "nobody tells it");
    pass(handle.options().lease).await;
    assert_eq!(version().as_deref(), Some("2"));
    second.drain().await;
    first.drain().await;
}
