//! Keys of kinds in a life: tasks of which one is live, the newest counts, or each has its distance from the one before.
//!
//! One client at a time submits under a key, so that it knows what came before; answers that it does not get it remembers
//! as a doubt. Tasks of a key are all alike but for their marks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keiko_core::once::{Once, OnceRule};
use keiko_core::port::Records;
use keiko_core::task::{TaskState, TaskView};
use keiko_core::{TaskId, TenantId};
use keiko_runtime::TaskRequest;
use tokio::time::{Instant, sleep};

use super::client::{Clients, task};
use super::guest::{End, Runs, Script};
use crate::random::Random;

/// The rules of a life, each with two keys.
const RULES: [(&str, OnceRule); 4] = [
    ("unique", OnceRule::Unique { refuse: false }),
    ("refused", OnceRule::Unique { refuse: true }),
    ("newest", OnceRule::Debounce { wait_ms: WAIT_MS, max_ms: None }),
    ("spaced", OnceRule::Throttle { interval_ms: INTERVAL_MS }),
];
const WAIT_MS: u64 = 1_500;
const INTERVAL_MS: u64 = 900;
/// What clocks of hosts are apart, at most, and a little more.
const APART_MS: i64 = 100;
const SCRIPT: Script = Script { end: End::Completes, work_ms: 1_200, children: 0, levels: 0, items: 0 };

/// A tenant's key.
type Key = (TenantId, String);

/// What a client knows of the tasks under a key.
#[derive(Default)]
pub struct Known {
    tasks: BTreeSet<TaskId>,
    /// When the last of them is due, as far as that is known.
    due_ms: Option<i64>,
    newest: Option<Newest>,
}

/// The submit that was answered last.
struct Newest {
    task: TaskId,
    mark: String,
    /// When it was made.
    at_ms: i64,
    /// Whether the answer of a later one got lost.
    doubtful: bool,
}

/// Every key of a life.
pub type Onces = BTreeMap<Key, Known>;

impl Clients {
    /// Submits under keys of kinds until then.
    pub async fn work_with_keys(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(50, 2_500))).await;
            self.submit_once(&mut random).await;
        }
    }

    async fn submit_once(&self, random: &mut Random) {
        let (name, rule) = RULES[random.place(RULES.len())];
        let (tenant, mark) = (self.tenant(random), self.mark());
        let key = (tenant, format!("{name}-{}", random.among(1, 2)));
        let Some(handle) = self.hosts.handle(random) else { return };
        let (ended, begun) = self.past(&key).await;
        let once = Some(Once { key: key.1.clone(), rule });
        let request = TaskRequest { once, ..task(SCRIPT.input(&mark)) };
        let at_ms = self.hosts.now_ms();
        let Ok(accepted) = handle.submit(tenant, vec![request], None).await else {
            if let Some(newest) = self.book.lock().onces.entry(key).or_default().newest.as_mut() {
                newest.doubtful = true;
            }
            return;
        };
        let id = accepted.first;
        self.note(tenant, id, &[SCRIPT]);
        self.hosts.story.tell(format_args!("{} stands for {id}", key.1));
        let gone = match rule {
            OnceRule::Unique { .. } => &ended,
            OnceRule::Debounce { .. } => &begun,
            OnceRule::Throttle { .. } => &BTreeSet::new(),
        };
        if gone.contains(&id) {
            self.violates(format!("O-1: {} stands for {id}, whose time is over", key.1));
        }
        self.remember(&key, rule, Newest { task: id, mark, at_ms, doubtful: false }).await;
    }

    /// The tasks of a key that have ended, and those that have begun, before what happens next.
    async fn past(&self, key: &Key) -> (BTreeSet<TaskId>, BTreeSet<TaskId>) {
        let (mut ended, mut begun) = (BTreeSet::new(), BTreeSet::new());
        for id in self.known(key) {
            let Some(view) = self.view(key.0, id).await else { continue };
            if view.summary.state.is_terminal() {
                ended.insert(id);
            }
            if view.summary.state != TaskState::Pending || view.summary.attempts > 0 {
                begun.insert(id);
            }
        }
        (ended, begun)
    }

    /// The tasks of a key, newest first.
    fn known(&self, key: &Key) -> Vec<TaskId> {
        let book = self.book.lock();
        book.onces.get(key).map(|known| known.tasks.iter().rev().copied().collect()).unwrap_or_default()
    }

    async fn view(&self, tenant: TenantId, id: TaskId) -> Option<TaskView> {
        self.hosts.store.task(tenant, id).await.ok().flatten()
    }

    async fn remember(&self, key: &Key, rule: OnceRule, newest: Newest) {
        let (id, is_known) = (newest.task, self.known(key).contains(&newest.task));
        let due_ms = self.view(key.0, id).await.filter(|view| view.attempts.is_empty());
        let due_ms = due_ms.map(|view| view.summary.run_at_ms);
        let before_ms = {
            let mut book = self.book.lock();
            let known = book.onces.entry(key.clone()).or_default();
            known.tasks.insert(id);
            known.newest = Some(newest);
            std::mem::replace(&mut known.due_ms, due_ms)
        };
        match (rule, before_ms, due_ms) {
            (OnceRule::Throttle { .. }, Some(before_ms), Some(due_ms))
                if !is_known && due_ms < before_ms + INTERVAL_MS as i64 =>
            {
                self.violates(format!("O-1: {id} is due {} ms after the one before", due_ms - before_ms));
            }
            (OnceRule::Unique { .. }, ..) => self.one_is_live(key).await,
            _ => {}
        }
    }

    /// Of two tasks under a unique key, the older has ended before the newer was there; so it has when that is looked at.
    async fn one_is_live(&self, key: &Key) {
        let mut live = Vec::new();
        for id in self.known(key) {
            if self.view(key.0, id).await.is_some_and(|view| !view.summary.state.is_terminal()) {
                live.push(id);
            }
        }
        if live.len() > 1 {
            self.violates(format!("O-1: {} stands for {live:?}, which are all live", key.1));
        }
    }
}

/// The input that was submitted last ran, and not before it was left alone for so long.
pub fn look(
    onces: &Onces,
    tasks: &BTreeMap<TaskId, (TenantId, TaskView)>,
    runs: &Runs,
    clocks_agree: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for ((_, key), known) in onces.iter().filter(|((_, key), _)| key.starts_with("newest")) {
        let Some(newest) = known.newest.as_ref().filter(|newest| !newest.doubtful) else { continue };
        let Some((_, view)) = tasks.get(&newest.task) else { continue };
        if view.summary.state == TaskState::Completed && runs.of(&newest.mark) != 1 {
            found.push(format!("O-1: {key} has run, and not with {}, its newest input", newest.mark));
        }
        let began_ms = view.attempts.first().map(|attempt| attempt.record.started_ms);
        let waited_ms = began_ms.map(|began_ms| began_ms - newest.at_ms);
        if let Some(waited_ms) = waited_ms.filter(|ms| clocks_agree && *ms < WAIT_MS as i64 - APART_MS) {
            found.push(format!("O-1: {key} has begun {waited_ms} ms after its newest input came"));
        }
    }
    found
}
