//! Clients of a life: they submit, repeat, cancel, wait and add, and keep a book of every answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::Priority;
use keiko_core::task::{Payload, TaskState};
use keiko_core::{GroupId, ItemId, TaskId, TenantId};
use keiko_runtime::{Handle, TaskRequest};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::groups::Grouped;
use super::guest::{PROCESSOR, Script, item};
use super::hosts::Hosts;
use super::onces::Onces;
use crate::random::Random;

/// How often a keyed submit is repeated when it is not known whether it was accepted.
pub const REPEATS: u32 = 8;
/// A caller that waits through a host that nothing happens to is told so long after the end at the latest: it looks
/// again each second, and clocks differ a little.
pub const TOLD_MAX_MS: i64 = 1_500;

/// A task that was accepted.
#[derive(Clone, Copy)]
pub struct Accepted {
    pub tenant: TenantId,
    pub script: Script,
}

/// Everything that clients were told.
#[derive(Default)]
pub struct Book {
    pub accepted: BTreeMap<TaskId, Accepted>,
    /// Keys with how many tasks stand behind each.
    pub keys: BTreeMap<String, u64>,
    /// States that were told as final.
    pub told: BTreeMap<TaskId, Vec<TaskState>>,
    pub groups: BTreeMap<GroupId, Grouped>,
    /// Tasks that somebody asked to cancel, whatever was answered.
    pub asked_to_end: BTreeSet<TaskId>,
    /// Items that were accepted.
    pub items: BTreeSet<ItemId>,
    /// Keys of kinds.
    pub onces: Onces,
    pub violations: Vec<String>,
    marks: u64,
}

/// The clients.
pub struct Clients {
    pub hosts: Arc<Hosts>,
    pub book: Mutex<Book>,
}

impl Clients {
    pub fn new(hosts: Arc<Hosts>) -> Clients {
        Clients { hosts, book: Mutex::default() }
    }

    /// Does what a client does until then.
    pub async fn work(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(0, 4_000))).await;
            match random.among(0, 10) {
                0..=3 => self.submit(&mut random).await,
                4..=5 => self.submit_with_key(&mut random).await,
                6..=7 => self.cancel(&mut random).await,
                8..=9 => self.wait(&mut random).await,
                _ => self.add(&mut random).await,
            }
        }
    }

    /// A submit that a host answers with its last breath; whether it did.
    pub async fn last_words(&self, handle: &Handle, random: &mut Random) -> bool {
        let (tenant, mark) = (self.tenant(random), self.mark());
        let script = Script::draw(random);
        let answer = handle.submit(tenant, vec![task(script.input(&mark))], None).await;
        answer.is_ok_and(|accepted| {
            self.note(tenant, accepted.first, &[script]);
            true
        })
    }

    pub fn mark(&self) -> String {
        let mut book = self.book.lock();
        book.marks += 1;
        format!("mark-{}", book.marks)
    }

    pub fn tenant(&self, random: &mut Random) -> TenantId {
        self.hosts.tenants[random.place(self.hosts.tenants.len())]
    }

    pub fn violates(&self, text: String) {
        self.book.lock().violations.push(text);
    }

    pub fn note(&self, tenant: TenantId, first: TaskId, scripts: &[Script]) {
        let last = TaskId(first.0 + scripts.len() as i64 - 1);
        self.hosts.story.tell(format_args!("a client knows that tasks {first} to {last} are accepted"));
        let mut book = self.book.lock();
        for (id, script) in (first.0..).map(TaskId).zip(scripts) {
            book.accepted.insert(id, Accepted { tenant, script: *script });
        }
    }

    async fn submit(&self, random: &mut Random) {
        let Some(handle) = self.hosts.handle(random) else { return };
        let (tenant, mark) = (self.tenant(random), self.mark());
        let scripts: Vec<Script> = (0..random.among(1, 4)).map(|_| Script::draw(random)).collect();
        // Few run at once under a key.
        let key = random.percent(30).then(|| format!("key-{}", random.among(1, 3)));
        let keyed = |script: &Script| {
            // Some of them are urgent.
            let priority = Priority::new(script.work_ms % 10).filter(|_| key.is_some()).unwrap_or_default();
            TaskRequest { slot_key: key.clone(), priority, ..task(script.input(&mark)) }
        };
        let tasks = scripts.iter().map(keyed).collect();
        if let Ok(accepted) = handle.submit(tenant, tasks, None).await {
            self.note(tenant, accepted.first, &scripts);
        }
    }

    /// Submits under a key until it is known to be accepted: once, whatever answers got lost.
    async fn submit_with_key(&self, random: &mut Random) {
        let (tenant, key) = (self.tenant(random), self.mark());
        let scripts: Vec<Script> = (0..random.among(1, 2)).map(|_| Script::draw(random)).collect();
        let tasks: Vec<_> = scripts.iter().map(|script| task(script.input(&key))).collect();
        self.book.lock().keys.insert(key.clone(), scripts.len() as u64);
        let mut first = None;
        for _ in 0..REPEATS {
            let Some(handle) = self.hosts.handle(random) else { continue };
            match handle.submit(tenant, tasks.clone(), Some(key.clone())).await {
                Ok(accepted) => {
                    if first.is_some_and(|first| first != accepted.first) {
                        let text = format!("I-6: {key} stands for {first:?} and for {}", accepted.first);
                        self.violates(text);
                    }
                    first = Some(accepted.first);
                    self.note(tenant, accepted.first, &scripts);
                    // Some repeat it though they know.
                    if random.percent(60) {
                        break;
                    }
                }
                Err(error) if error.code == Code::Conflict => {
                    self.violates(format!("I-6: {key} conflicts with itself"));
                }
                Err(_) => sleep(Duration::from_millis(random.among(10, 3_000))).await,
            }
        }
        if first.is_some() && random.percent(50) {
            self.submit_another_body(tenant, &key, random).await;
        }
    }

    /// A key that is known stands for no other body.
    async fn submit_another_body(&self, tenant: TenantId, key: &str, random: &mut Random) {
        let Some(handle) = self.hosts.handle(random) else { return };
        let other = vec![task(format!("{{\"end\":\"completes\",\"other\":\"{key}\"}}"))];
        if handle.submit(tenant, other, Some(key.to_owned())).await.is_ok() {
            self.violates(format!("I-6: {key} is taken with another body"));
        }
    }

    pub fn some_task(&self, random: &mut Random) -> Option<(TaskId, Accepted)> {
        let book = self.book.lock();
        let at = random.place(book.accepted.len());
        // Mostly one of the last, which has not ended yet.
        let at = if random.percent(70) { at % 5 } else { at };
        book.accepted.iter().rev().nth(at).map(|(id, accepted)| (*id, *accepted))
    }

    pub fn told(&self, id: TaskId, state: TaskState) {
        self.hosts.story.tell(format_args!("a client is told that {id} is {}", state.as_str()));
        self.book.lock().told.entry(id).or_default().push(state);
    }

    pub fn asks_to_end(&self, ids: impl IntoIterator<Item = TaskId>) {
        self.book.lock().asked_to_end.extend(ids);
    }

    async fn cancel(&self, random: &mut Random) {
        let Some((id, accepted)) = self.some_task(random) else { return };
        let Some(handle) = self.hosts.handle(random) else { return };
        self.asks_to_end([id]);
        match handle.cancel(accepted.tenant, id).await {
            Ok(detail) => self.told(id, detail.view.summary.state),
            Err(error) if error.code == Code::Conflict => {
                let ended = TaskState::ALL.into_iter().find(|state| error.message.ends_with(state.as_str()));
                match ended {
                    Some(state) => self.told(id, state),
                    None => self.violates(format!("I-9: {id}: {}", error.message)),
                }
            }
            // It may or may not have been cancelled.
            Err(_) => {}
        }
    }

    async fn wait(&self, random: &mut Random) {
        let Some((id, accepted)) = self.some_task(random) else { return };
        let Some(handle) = self.hosts.handle(random) else { return };
        let (began_ms, harms) = (self.hosts.now_ms(), self.hosts.harms());
        let at_most = Duration::from_millis(random.among(0, 30_000));
        let Ok(detail) = handle.wait(accepted.tenant, id, at_most).await else { return };
        let state = detail.view.summary.state;
        if !state.is_terminal() {
            return;
        }
        self.told(id, state);
        let ended_ms = detail.view.summary.finished_ms.unwrap_or(i64::MAX);
        let late_ms = self.hosts.now_ms().saturating_sub(ended_ms);
        let alone = self.hosts.harms() == harms && ended_ms > began_ms;
        if alone && late_ms > TOLD_MAX_MS {
            self.violates(format!("C-2: who waits for {id} is told {late_ms} ms after its end"));
        }
    }

    async fn add(&self, random: &mut Random) {
        let Some(handle) = self.hosts.handle(random) else { return };
        let (tenant, mark) = (self.tenant(random), self.mark());
        let items = (0..random.among(1, 4)).map(|index| item(&format!("{mark}, {index}"))).collect();
        let Ok(added) = handle.add_items(tenant, PROCESSOR, items, Some(mark)).await else { return };
        self.hosts.story.tell(format_args!("a client knows that {} items are accepted", added.count));
        self.book.lock().items.extend(added.ids());
    }
}

pub fn task(input: String) -> TaskRequest {
    TaskRequest {
        plugin: None,
        kind: Some("run".to_owned()),
        input: Payload::json(input),
        budget: BudgetRequest::default(),
        delay_ms: 0,
        run_at_ms: None,
        priority: Priority::default(),
        agent: None,
        user: None,
        trace: None,
        once: None,
        slot_key: None,
    }
}
