//! Groups of a life: clients that submit, wait for and cancel them, and what holds of every group and every join.

use std::collections::BTreeMap;
use std::time::Duration;

use keiko_core::group::{Group, GroupState, NewGroup, Outcome};
use keiko_core::port::Records;
use keiko_core::task::{TaskState, TaskView};
use keiko_core::{GroupId, TaskId, TenantId};
use tokio::time::{Instant, sleep};

use super::client::{Book, Clients, REPEATS, TOLD_MAX_MS, task};
use super::guest::{Runs, Script};
use super::hosts::Hosts;
use crate::random::Random;

/// A group that was accepted, or that a stored result asked for.
#[derive(Clone, Copy)]
pub struct Grouped {
    pub tenant: TenantId,
    pub count: u32,
    pub asked: NewGroup,
}

impl Clients {
    /// Does what a client does that has many tasks done together.
    pub async fn work_with_groups(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(500, 16_000))).await;
            match random.among(0, 9) {
                0..=4 => self.submit_group(&mut random).await,
                5..=7 => self.wait_for_group(&mut random).await,
                8 => self.cancel_group(&mut random).await,
                _ => self.cancel_tree(&mut random).await,
            }
        }
    }

    /// Submits a group under a key until it is known to be accepted.
    async fn submit_group(&self, random: &mut Random) {
        let (tenant, key) = (self.tenant(random), self.mark());
        let scripts: Vec<Script> = (0..random.among(2, 6)).map(|_| Script::draw(random)).collect();
        let live_max = random.percent(70).then(|| random.among(1, 3) as u32);
        let asked = NewGroup { live_max, fail_fast: random.percent(50) };
        let tasks: Vec<_> = scripts.iter().map(|script| task(script.input(&key))).collect();
        self.book.lock().keys.insert(key.clone(), scripts.len() as u64);
        for _ in 0..REPEATS {
            let Some(handle) = self.hosts.handle(random) else { continue };
            if let Ok(accepted) = handle.submit_group(tenant, tasks.clone(), Some(key.clone()), asked).await {
                self.note(tenant, accepted.first, &scripts);
                let (id, count) = (GroupId(accepted.first.0), scripts.len() as u32);
                self.hosts.story.tell(format_args!("they are group {id}: {asked:?}"));
                self.book.lock().groups.insert(id, Grouped { tenant, count, asked });
                return;
            }
            sleep(Duration::from_millis(random.among(10, 3_000))).await;
        }
    }

    fn some_group(&self, random: &mut Random) -> Option<(GroupId, Grouped)> {
        let book = self.book.lock();
        let at = random.place(book.groups.len().min(3));
        book.groups.iter().rev().nth(at).map(|(id, grouped)| (*id, *grouped))
    }

    async fn wait_for_group(&self, random: &mut Random) {
        let Some((id, grouped)) = self.some_group(random) else { return };
        let Some(handle) = self.hosts.handle(random) else { return };
        let (began_ms, harms) = (self.hosts.now_ms(), self.hosts.harms());
        let at_most = Duration::from_millis(random.among(0, 30_000));
        let Ok(group) = handle.wait_group(grouped.tenant, id, at_most).await else { return };
        if group.state() == GroupState::Open {
            return;
        }
        let ended_ms = group.finished_ms.unwrap_or(i64::MAX);
        let late_ms = self.hosts.now_ms().saturating_sub(ended_ms);
        if self.hosts.harms() == harms && ended_ms > began_ms && late_ms > TOLD_MAX_MS {
            self.violates(format!("C-2: who waits for group {id} is told {late_ms} ms after its end"));
        }
        let Ok((_, outcomes)) = handle.outcomes(grouped.tenant, id, 0, grouped.count).await else { return };
        if !in_order(&group, &outcomes) {
            self.violates(format!("G-1: group {id} has the outcomes {outcomes:?}"));
        }
        outcomes.iter().for_each(|outcome| self.told(outcome.task, outcome.state));
    }

    async fn cancel_group(&self, random: &mut Random) {
        let Some((id, grouped)) = self.some_group(random) else { return };
        let Some(handle) = self.hosts.handle(random) else { return };
        self.asks_to_end((id.0..id.0 + i64::from(grouped.count)).map(TaskId));
        let Ok(group) = handle.cancel_group(grouped.tenant, id).await else { return };
        self.hosts.story.tell(format_args!("a client is told that group {id} is {}", group.state().as_str()));
        if group.state() == GroupState::Open && group.next.is_some() {
            self.violates(format!("I-9: group {id} was cancelled and is open: {group:?}"));
        }
    }

    async fn cancel_tree(&self, random: &mut Random) {
        let Some((id, accepted)) = self.some_task(random) else { return };
        let Some(handle) = self.hosts.handle(random) else { return };
        self.cut(&handle, accepted.tenant, id).await;
    }
}

/// Whether these are the outcomes of all tasks of a group, one for each, in the order of their submission.
fn in_order(group: &Group, outcomes: &[Outcome]) -> bool {
    let tasks = (0..group.count).map(|place| group.task(place));
    let told = |outcome: &Outcome| (outcome.state == TaskState::Completed) == outcome.result.is_some();
    outcomes.iter().map(|outcome| outcome.task).eq(tasks) && outcomes.iter().all(told)
}

/// Looks at every group that was accepted or that a stored result asked for.
pub async fn look(
    hosts: &Hosts,
    groups: &BTreeMap<GroupId, Grouped>,
    tasks: &BTreeMap<TaskId, (TenantId, TaskView)>,
    quiet: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (&id, &Grouped { tenant, count, asked }) in groups {
        let Ok(Some(group)) = hosts.store.group(tenant, id).await else {
            found.push(format!("G-1: group {id} was accepted and is not there"));
            continue;
        };
        let mut recount = [0u32; 5];
        for place in 0..group.count {
            let task = tasks.get(&group.task(place)).filter(|(owner, _)| *owner == tenant);
            recount[task.map_or(0, |(_, view)| view.summary.state as usize)] += 1;
        }
        let counted = [group.completed, group.failed, group.cancelled];
        if group.count != count || group.asked != asked || counted != recount[2..] {
            found.push(format!("I-11: group {id} of {count} has {recount:?} and counts {group:?}"));
        }
        if quiet && (group.finished_ms.is_none() || group.next.is_some()) {
            found.push(format!("I-2: group {id} has not ended: {group:?}"));
        }
        let all = (group.task(0), group.task(count));
        let outcomes = hosts.store.outcomes(tenant, all, count).await.unwrap_or_default();
        if quiet && !in_order(&group, &outcomes) {
            found.push(format!("G-1: group {id} has the outcomes {outcomes:?}"));
        }
    }
    found
}

/// The groups of clients, and those of runs whose results are stored.
pub fn all(
    book: &Book,
    runs: &Runs,
    committed: &BTreeMap<usize, TaskId>,
    tenant_of: impl Fn(TaskId) -> Option<TenantId>,
) -> BTreeMap<GroupId, Grouped> {
    let mut groups = book.groups.clone();
    for (run, asked) in runs.asked() {
        let Some(tenant) = committed.get(&run).and_then(|task| tenant_of(*task)) else { continue };
        let joined = asked.joined.iter();
        groups.extend(joined.map(|one| (one.group, Grouped { tenant, count: one.count, asked: one.asked })));
    }
    groups
}
