//! Schedules in virtual time: two hosts, a clock that is put forward and back, hosts that were away, and schedules that
//! cannot be read or written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keiko_core::TenantId;
use keiko_core::code::Code;
use keiko_core::name::ScheduleName;
use keiko_core::port::{
    Created, DueSchedules, Fired, Firing, ScheduleKey, Schedules, StoreError, StoreErrorKind,
};
use keiko_core::schedule::{Missed, Overlap, Recurrence, Schedule};
use keiko_core::task::{TaskFilter, TaskState};
use keiko_runtime::{Handle, ScheduleRequest, TaskRequest};
use keiko_store::memory::MemoryStore;
use tokio::time::timeout;

use crate::support::{Given, MANIFEST, Virtual, start_virtual, start_virtual_with, task};

fn at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().expect("a time").as_millisecond()
}

pub fn clock(began: &str) -> Arc<Virtual> {
    Arc::new(Virtual::from(at(began)))
}

/// Lets virtual time go on.
pub async fn pass(hours: u64) {
    pass_seconds(hours * 3_600).await;
}

async fn pass_seconds(seconds: u64) {
    let _ = timeout(Duration::from_secs(seconds), std::future::pending::<()>()).await;
}

fn asked(name: &str, cron: &str, missed: Missed) -> ScheduleRequest {
    ScheduleRequest {
        name: name.parse().expect("a name"),
        recurrence: Recurrence {
            cron: cron.to_owned(),
            zone: "Europe/Berlin".to_owned(),
            missed,
            overlap: Overlap::Allow,
        },
        task: TaskRequest { plugin: None, kind: Some("a".to_owned()), ..task(&format!("\"{name}\"")) },
        paused: false,
    }
}

pub async fn install(handle: &Handle) -> TenantId {
    let tenant = handle.tenant(&"default".parse().expect("a name")).expect("the tenant");
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    tenant
}

/// When tasks were submitted, oldest first, to the second; they have all completed.
async fn times(handle: &Handle, tenant: TenantId) -> Vec<String> {
    let tasks = handle.list(tenant, &TaskFilter::default(), 100).await.expect("a list");
    let time = |ms: i64| jiff::Timestamp::from_second(ms / 1_000).expect("a time").to_string();
    assert!(tasks.iter().all(|task| task.state == TaskState::Completed), "{tasks:?}");
    tasks.iter().rev().map(|task| time(task.created_ms)).collect()
}

#[tokio::test(start_paused = true)]
async fn occurrences_are_submitted_once_by_any_host_where_clocks_change() {
    let check = async |began: &str, cron: &str, expected: &[&str]| {
        let (store, clock) = (MemoryStore::new(), clock(began));
        let (first, handle) = start_virtual(store.clone(), clock.clone()).await;
        let (second, other) = start_virtual(store.another_host(), clock.clone()).await;
        let tenant = install(&handle).await;
        handle.create_schedule(tenant, asked("s", cron, Missed::Skip)).await.expect("created");
        pass(26).await;
        // Whoever made it is gone, and the other one goes on.
        first.drain().await;
        pass(24).await;
        assert_eq!(times(&other, tenant).await, expected, "{cron} from {began}");
        second.drain().await;
    };
    let spring = "2026-03-28T12:00:00Z";
    check(spring, "30 2 * * *", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]).await;
    let thirties = ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z", "2026-03-30T01:30:00Z"];
    check(spring, "30 2-3/1 * * *", &thirties).await;
    let autumn = "2026-10-24T12:00:00Z";
    check(autumn, "30 2 * * *", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_skipped_or_run_once() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let (runtime, handle) = start_virtual(store.clone(), clock.clone()).await;
    let tenant = install(&handle).await;
    for (name, missed) in [("skips", Missed::Skip), ("runs", Missed::RunOnce)] {
        handle.create_schedule(tenant, asked(name, "15 * * * *", missed)).await.expect("created");
    }
    runtime.drain().await;
    // Five of each are missed.
    pass(5).await;
    let (runtime, handle) = start_virtual(store.another_host(), clock.clone()).await;
    pass(1).await;
    let expected = ["2026-06-01T17:00:00Z", "2026-06-01T17:15:00Z", "2026-06-01T17:15:00Z"];
    assert_eq!(times(&handle, tenant).await, expected);
    let known = handle.schedule(tenant, "skips").await.expect("the schedule");
    assert_eq!(known.last.expect("it has occurred").at_ms, at("2026-06-01T17:15:00Z"));

    // Paused, it misses nothing: it goes on from when it is resumed.
    for name in ["skips", "runs"] {
        handle.pause_schedule(tenant, name).await.expect("paused");
    }
    pass(3).await;
    assert_eq!(times(&handle, tenant).await.len(), 3);
    let resumed = handle.resume_schedule(tenant, "runs").await.expect("resumed");
    assert_eq!(resumed.next_ms, Some(at("2026-06-01T21:15:00Z")));
    pass(1).await;
    assert_eq!(times(&handle, tenant).await.len(), 4);
    handle.remove_schedule(tenant, "runs").await.expect("removed");
    pass(2).await;
    assert_eq!(times(&handle, tenant).await.len(), 4);
    let gone = handle.schedule(tenant, "runs").await.expect_err("it is gone");
    assert_eq!(gone.code, Code::NotFound);
    runtime.drain().await;
}

#[tokio::test(start_paused = true)]
async fn an_occurrence_that_cannot_be_submitted_says_why_and_the_next_one_comes() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let (runtime, handle) = start_virtual(store, clock).await;
    let tenant = install(&handle).await;
    handle.create_schedule(tenant, asked("s", "15 * * * *", Missed::Skip)).await.expect("created");
    let when = keiko_core::catalog::RemoveWhen::Idle;
    handle.remove_plugin(tenant, "script", when).await.expect("removed");
    pass(1).await;
    let known = handle.schedule(tenant, "s").await.expect("the schedule");
    let problem = known.last.and_then(|last| last.problem).expect("it has no task");
    assert_eq!(problem.0, "not_found", "{problem:?}");
    install(&handle).await;
    pass(1).await;
    let known = handle.schedule(tenant, "s").await.expect("the schedule");
    assert_eq!(known.last.and_then(|last| last.problem), None);
    assert_eq!(times(&handle, tenant).await, ["2026-06-01T13:15:00Z"]);
    runtime.drain().await;
}

/// Schedules of which those whose names begin with `newer` cannot be read.
struct Troubled {
    store: MemoryStore,
    /// Occurrences of those whose names begin with `refused` are not taken.
    refuses: AtomicBool,
    /// No occurrence can be written.
    down: AtomicBool,
    /// Occurrences that were to be written.
    fired: AtomicU32,
}

impl Troubled {
    fn new(store: MemoryStore) -> Troubled {
        Troubled {
            store,
            refuses: AtomicBool::default(),
            down: AtomicBool::default(),
            fired: AtomicU32::default(),
        }
    }
}

#[async_trait]
impl Schedules for Troubled {
    async fn create(&self, schedule: Schedule, count_max: u64) -> Result<Created, StoreError> {
        self.store.create(schedule, count_max).await
    }

    async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<&ScheduleName>,
        limit: u32,
    ) -> Result<Vec<Schedule>, StoreError> {
        self.store.schedules(tenant, after, limit).await
    }

    async fn schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<Option<Schedule>, StoreError> {
        self.store.schedule(tenant, name).await
    }

    async fn pause_schedule(
        &self,
        tenant: TenantId,
        name: &ScheduleName,
        paused_ms: Option<i64>,
        next_ms: Option<i64>,
    ) -> Result<Option<bool>, StoreError> {
        self.store.pause_schedule(tenant, name, paused_ms, next_ms).await
    }

    async fn remove_schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<bool, StoreError> {
        self.store.remove_schedule(tenant, name).await
    }

    async fn due_schedules(
        &self,
        now_ms: i64,
        passed: &[ScheduleKey],
        limit: u32,
    ) -> Result<DueSchedules, StoreError> {
        let mut due = self.store.due_schedules(now_ms, passed, limit).await?;
        let newer = |one: &mut Schedule| one.name.as_str().starts_with("newer");
        let error = || StoreError::new(StoreErrorKind::Integrity, "a newer host of the test wrote it");
        let unreadable = due.schedules.extract_if(.., newer);
        due.unreadable = unreadable.map(|one| ((one.tenant, one.name.to_string()), error())).collect();
        Ok(due)
    }

    async fn fire(&self, firing: Firing, now_ms: i64) -> Result<Fired, StoreError> {
        self.fired.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Down, "the test took the store away"));
        }
        if self.refuses.load(Ordering::SeqCst) && firing.name.as_str().starts_with("refused") {
            return Err(StoreError::new(StoreErrorKind::Refused, "the test refuses this occurrence"));
        }
        self.store.fire(firing, now_ms).await
    }
}

#[tokio::test(start_paused = true)]
async fn schedules_that_cannot_be_read_or_written_hold_up_no_others() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let troubled = Arc::new(Troubled::new(store.clone()));
    troubled.refuses.store(true, Ordering::SeqCst);
    let given = Given { schedules: Some(troubled.clone()), ..Given::default() };
    let (runtime, handle) = start_virtual_with(store, clock, given).await;
    let tenant = install(&handle).await;
    // Those in trouble are more than a page, and come first.
    let names = (0..60).flat_map(|number| [format!("newer-{number}"), format!("refused-{number}")]);
    for name in names.chain(["sound".to_owned()]) {
        handle.create_schedule(tenant, asked(&name, "15 * * * *", Missed::RunOnce)).await.expect("created");
    }
    pass_seconds(15 * 60 + 5).await;
    assert_eq!(times(&handle, tenant).await, ["2026-06-01T12:15:00Z"]);
    troubled.refuses.store(false, Ordering::SeqCst);
    pass_seconds(5).await;
    assert_eq!(times(&handle, tenant).await.len(), 61, "those that were refused come soon after");
    let unread = handle.schedule(tenant, "newer-7").await.expect("the schedule");
    assert_eq!((unread.last, unread.next_ms), (None, Some(at("2026-06-01T12:15:00Z"))), "nothing is changed");
    runtime.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_ends_the_round_and_all_occur_when_it_is_back() {
    let (store, clock) = (MemoryStore::new(), clock("2026-06-01T12:00:00Z"));
    let troubled = Arc::new(Troubled::new(store.clone()));
    troubled.down.store(true, Ordering::SeqCst);
    let given = Given { schedules: Some(troubled.clone()), ..Given::default() };
    let (runtime, handle) = start_virtual_with(store, clock, given).await;
    let tenant = install(&handle).await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        handle.create_schedule(tenant, asked(name, "15 * * * *", Missed::RunOnce)).await.expect("created");
    }
    pass_seconds(15 * 60 + 3).await;
    let fired = troubled.fired.load(Ordering::SeqCst);
    assert!((1..=4).contains(&fired), "{fired} were tried in three seconds, one in each round");
    troubled.down.store(false, Ordering::SeqCst);
    pass_seconds(10).await;
    assert_eq!(times(&handle, tenant).await.len(), 6);
    runtime.drain().await;
}
