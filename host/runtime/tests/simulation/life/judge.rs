//! What must hold after quiet, whatever happened before.

use std::collections::BTreeMap;

use keiko_core::code::Code;
use keiko_core::policy::BUDGET_DEFAULT;
use keiko_core::port::Records;
use keiko_core::task::{TaskFilter, TaskState, TaskSummary, TaskView};
use keiko_core::{GroupId, TaskId, TenantId};
use serde_json::Value;

use super::client::{Book, Clients};
use super::groups;
use super::guest::{End, Runs};
use super::hosts::Hosts;
use super::onces;

/// Tasks of a page of the judge's list.
const PAGE: u32 = 500;
/// Crashes of its host after which a task is quarantined.
const CRASHES_MAX: u64 = 3;

type Tasks = BTreeMap<TaskId, (TenantId, TaskView)>;

/// Looks at every invariant.
pub async fn look(hosts: &Hosts, clients: &Clients, runs: &Runs, quiet: bool) -> Vec<String> {
    let mut found = seen(hosts, runs);
    let tasks = all(hosts).await;
    counts(hosts, &tasks, &mut found).await;
    let grouped = with_book(&mut clients.book.lock(), &tasks, runs, quiet, &mut found);
    found.extend(onces::look(&clients.book.lock().onces, &tasks, runs, hosts.clocks_agree()));
    found.extend(groups::look(hosts, &grouped, &tasks, quiet).await);
    found
}

/// What was seen while it happened.
pub fn seen(hosts: &Hosts, runs: &Runs) -> Vec<String> {
    let of_store = hosts.store.seen_broken().into_iter().map(|text| format!("I-4: {text}"));
    of_store.chain(runs.violations()).collect()
}

/// What clients were told against what there is; returns every group that there must be.
fn with_book(
    book: &mut Book,
    tasks: &Tasks,
    runs: &Runs,
    quiet: bool,
    found: &mut Vec<String>,
) -> BTreeMap<GroupId, groups::Grouped> {
    found.append(&mut book.violations);
    if !quiet {
        let live: Vec<_> = tasks.iter().filter(|(_, (_, view))| !view.summary.state.is_terminal()).collect();
        let first = live.first().map(|(id, (_, view))| format!(", {id} among them: {:?}", view.summary));
        let first = first.unwrap_or_default();
        found.push(format!("I-2: {} tasks have not ended, long after the harm did{first}", live.len()));
    }
    for (id, accepted) in &book.accepted {
        match tasks.get(id) {
            Some((tenant, view)) if *tenant == accepted.tenant => {
                ended_as_scripted(*id, view, accepted.script.end, found);
            }
            _ => found.push(format!("I-1: {id} was accepted and is not there")),
        }
    }
    for (id, (_, view)) in tasks {
        one_end(*id, view, runs, found);
    }
    asked_to_end(book, tasks, found);
    effects(tasks, runs, quiet, found);
    keys(book, runs, found);
    told(book, tasks, found);
    items(book, runs, quiet, found);

    groups::all(book, runs, &committed(tasks), |id| tasks.get(&id).map(|(tenant, _)| *tenant))
}

/// Nothing is cancelled that nobody asked to, but the rest of a group that fails fast.
fn asked_to_end(book: &Book, tasks: &Tasks, found: &mut Vec<String>) {
    let failed = |id: i64| {
        let view = tasks.get(&TaskId(id)).map(|(_, view)| view.summary.state);
        view == Some(TaskState::Failed)
    };
    for id in book.accepted.keys().filter(|id| !book.asked_to_end.contains(*id)) {
        let is_cancelled = tasks.get(id).is_some_and(|(_, view)| view.summary.state == TaskState::Cancelled);
        let group = book.groups.range(..=GroupId(id.0)).next_back();
        let of = group.filter(|(first, group)| id.0 < first.0 + i64::from(group.count));
        let fails_fast = of.is_some_and(|(first, group)| {
            group.asked.fail_fast && (first.0..first.0 + i64::from(group.count)).any(failed)
        });
        if is_cancelled && !fails_fast {
            found.push(format!("I-9: {id} is cancelled, and nobody asked for it"));
        }
    }
}

/// The runs whose results are stored, with their tasks.
fn committed(tasks: &Tasks) -> BTreeMap<usize, TaskId> {
    tasks.iter().filter_map(|(id, (_, view))| Some((run_of(view)?, *id))).collect()
}

/// Every task there is, of every tenant.
async fn all(hosts: &Hosts) -> Tasks {
    let mut tasks = BTreeMap::new();
    for tenant in &hosts.tenants {
        let mut before = None;
        loop {
            let filter = TaskFilter { before, ..TaskFilter::default() };
            let page: Vec<TaskSummary> = hosts.store.list(*tenant, &filter, PAGE).await.unwrap_or_default();
            for one in &page {
                if let Ok(Some(view)) = hosts.store.task(*tenant, one.id).await {
                    tasks.insert(one.id, (*tenant, view));
                }
            }
            before = page.last().map(|last| last.id);
            if page.len() < PAGE as usize {
                break;
            }
        }
    }
    tasks
}

/// A task that was not cancelled ended as its script says.
fn ended_as_scripted(id: TaskId, view: &TaskView, end: End, found: &mut Vec<String>) {
    let state = view.summary.state;
    let attempts_max = BUDGET_DEFAULT.attempts;
    let code = view.failure.as_ref().map(|failure| failure.code);
    let expected = match end {
        End::Completes => TaskState::Completed,
        End::FailsFirst(times) if times < attempts_max => TaskState::Completed,
        End::Fails | End::FailsFirst(_) | End::Endless | End::Crashes => TaskState::Failed,
    };
    // What nobody has room for now fails the attempt that asks for it, which is tried again.
    let no_room = code == Some(Code::PluginFailed) && u64::from(view.summary.attempts) == attempts_max;
    // Whoever runs at three crashes of its host, the last one alone, is not told from who made them.
    let unlucky = code == Some(Code::Quarantined);
    if state != TaskState::Cancelled && state.is_terminal() && state != expected && !no_room && !unlucky {
        found.push(format!("I-2: {id} is {} and should be {}", state.as_str(), expected.as_str()));
    }
}

/// One result for a completed task and none for others, of an attempt that ran; attempts within their limit, all kept.
fn one_end(id: TaskId, view: &TaskView, runs: &Runs, found: &mut Vec<String>) {
    let (state, summary) = (view.summary.state, &view.summary);
    if (state == TaskState::Completed) != view.result.is_some() {
        let count = u32::from(view.result.is_some());
        found.push(format!("I-3: {id} is {} with {count} result", state.as_str()));
    }
    if (state == TaskState::Failed) != view.failure.is_some() {
        found.push(format!("I-3: {id} is {} with failure {:?}", state.as_str(), view.failure));
    }
    if let Some(number) = run_of(view) {
        match runs.task(number) {
            Some(task) if task == id => {}
            other => found.push(format!("I-3: {id} has the result of a run of {other:?}")),
        }
    }
    if u64::from(summary.attempts) > BUDGET_DEFAULT.attempts {
        found.push(format!("I-7: {id} has {} attempts", summary.attempts));
    }
    if state.is_terminal() && view.attempts.len() != summary.attempts as usize {
        let (charged, kept) = (summary.attempts, view.attempts.len());
        found.push(format!("I-7: {id} is charged {charged} attempts and keeps {kept}"));
    }
    let crashes = runs.crashes(id);
    let quarantined = view.failure.as_ref().is_some_and(|failure| failure.code == Code::Quarantined);
    if quarantined && crashes < CRASHES_MAX || u64::from(summary.crashes) > crashes {
        let charged = summary.crashes;
        found.push(format!("C-1: {id} is charged {charged} crashes, and ran at {crashes}"));
    }
}

/// The run that a task's result is of.
fn run_of(view: &TaskView) -> Option<usize> {
    let result: Value = serde_json::from_slice(&view.result.as_ref()?.bytes).ok()?;
    Some(result["run"].as_u64()? as usize)
}

/// What the run asked for whose result is stored is there, once and of its tenant; nothing is that any other asked for.
fn effects(tasks: &Tasks, runs: &Runs, quiet: bool, found: &mut Vec<String>) {
    let committed = committed(tasks);
    let mut wanted = BTreeMap::new();
    for (run, asked) in runs.asked() {
        let task = committed.get(&run);
        wanted.extend(asked.children.iter().filter_map(|child| Some((*child, *task?))));
        for item in asked.items {
            match (task, runs.batches_of(item)) {
                (Some(_), 1) | (None, 0) => {}
                (Some(_), 0) if !quiet => {}
                (_, batches) => {
                    found.push(format!(
                        "I-5: item {item} of run {run} of {task:?} was worked in {batches} batches"
                    ));
                }
            }
        }
    }
    for (child, parent) in &wanted {
        let tenant = tasks.get(parent).map(|(tenant, _)| *tenant);
        match tasks.get(child) {
            Some((of, view)) if view.summary.lineage.parent == Some(*parent) => {
                if Some(*of) != tenant {
                    found.push(format!("I-10: {child} is another tenant's than {parent}"));
                }
            }
            _ => found.push(format!("I-5: {parent} completed and has no child {child}")),
        }
    }
    for (id, (_, view)) in tasks {
        if view.summary.lineage.parent.is_some() && !wanted.contains_key(id) {
            found.push(format!("I-5: {id} is a child that no stored result asked for"));
        }
    }
}

/// No more tasks than one submit has ran for a key.
fn keys(book: &Book, runs: &Runs, found: &mut Vec<String>) {
    for (key, count) in &book.keys {
        let ran = runs.of(key);
        if ran > *count {
            found.push(format!("I-6: {ran} tasks ran for {key}, which is for {count}"));
        }
    }
}

/// What was told as final is final.
fn told(book: &Book, tasks: &Tasks, found: &mut Vec<String>) {
    for (id, states) in &book.told {
        let end = tasks.get(id).map(|(_, view)| view.summary.state);
        if let Some(wrong) = states.iter().find(|state| end != Some(**state)) {
            found.push(format!("I-9: {id} was told to be {} and is {end:?}", wrong.as_str()));
        }
    }
}

/// Every accepted item was worked, in one batch, however often that was handed over.
fn items(book: &Book, runs: &Runs, quiet: bool, found: &mut Vec<String>) {
    for item in &book.items {
        match runs.batches_of(*item) {
            1 => {}
            0 if !quiet => {}
            batches => found.push(format!("I-8: item {item} was worked in {batches} batches")),
        }
    }
}

/// Counters equal a recount.
async fn counts(hosts: &Hosts, tasks: &Tasks, found: &mut Vec<String>) {
    for tenant in &hosts.tenants {
        let counted = hosts.store.counts(*tenant).await.unwrap_or_default();
        let mut states = [0u64; 5];
        for (_, view) in tasks.values().filter(|(owner, _)| owner == tenant) {
            states[view.summary.state as usize] += 1;
        }
        let told = [counted.pending, counted.running, counted.completed, counted.failed, counted.cancelled];
        if told != states {
            found.push(format!("I-11: tenant {tenant} counts {told:?} and has {states:?}"));
        }
    }
    let live = hosts.store.live().await.unwrap_or_default().values().sum::<u64>();
    let recount = tasks.values().filter(|(_, view)| !view.summary.state.is_terminal()).count() as u64;
    if live != recount {
        found.push(format!("I-11: {live} tasks are counted as live, {recount} are"));
    }
}
