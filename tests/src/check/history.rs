//! The whole history of a kill check, read back through the API and held against what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::Report;
use super::crashed::Crashed;
use super::load::Ask;
use crate::Client;

/// What [`History::check`] looks at.
pub(super) const INVARIANTS: &[&str] =
    &["I-1", "I-2", "I-3", "I-5", "I-6", "I-7", "I-12", "counts", "quarantined"];
/// Tasks of a page.
const PAGE: u32 = 1_000;
/// Threads that read single tasks.
const READERS: usize = 4;
/// Attempts of a task, when nobody asks for another number.
const ATTEMPTS_MAX: u64 = 5;

/// A task as the list shows it.
#[derive(Clone, Debug)]
struct Entry {
    kind: String,
    state: String,
    attempts: u64,
    crashes: u64,
    code: Option<String>,
}

impl Entry {
    fn read(task: &Value) -> Result<Entry> {
        let text = |field: &str| task[field].as_str().unwrap_or_default().to_owned();
        let number = |field: &str| task[field].as_u64().with_context(|| format!("no {field} in {task}"));
        Ok(Entry {
            kind: text("kind"),
            state: text("state"),
            attempts: number("attempts")?,
            crashes: number("crashes")?,
            code: task["code"].as_str().map(str::to_owned),
        })
    }
}

/// Everything the tenant ever ran.
#[derive(Debug)]
pub(super) struct History {
    tasks: BTreeMap<String, Entry>,
    /// Children by parent, in the order of their ids.
    children: BTreeMap<String, Vec<String>>,
    listed: usize,
    in_order: bool,
    crashed: Crashed,
}

impl History {
    /// Reads everything; tasks that were running at enough of these kills may be quarantined.
    pub(super) fn read(client: &Client, crashed: Crashed) -> Result<History> {
        let (tasks, children) = (BTreeMap::new(), BTreeMap::new());
        let mut history = History { tasks, children, listed: 0, in_order: true, crashed };
        let mut newer: Option<String> = None;
        client.each_listed("", PAGE, |task| {
            let entry = Entry::read(&task)?;
            let id = task["id"].as_str().context("a listed task has no id")?.to_owned();
            // Ids are time-ordered texts, so newest first means falling.
            history.in_order &= newer.as_ref().is_none_or(|newer| *newer > id);
            newer = Some(id.clone());
            if let Some(parent) = task["parent"].as_str() {
                history.children.entry(parent.to_owned()).or_default().push(id.clone());
            }
            history.tasks.insert(id, entry);
            history.listed += 1;
            Ok(())
        })?;
        for children in history.children.values_mut() {
            children.sort();
        }
        Ok(history)
    }

    /// Counts every violation; `acknowledged` are the parents whose submit was answered, with their `n`.
    pub(super) fn check(
        &self,
        client: &Client,
        acknowledged: &[(String, u64)],
        report: &mut Report,
    ) -> Result<()> {
        report.tried("tasks", self.tasks.len());
        let met = self.tasks.iter().filter(|(id, task)| self.is_met_by_kills(id, task)).count();
        report.tried("quarantined_by_three_kills", met);
        report.tried("crashed_attempts", self.tasks.values().map(|task| task.crashes).sum::<u64>());
        self.check_lists(client, report)?;
        self.check_acknowledged(acknowledged, report);
        self.check_every_task(report);
        self.check_results(client, acknowledged, report)
    }

    /// Pages repeat nothing and leave nothing out: lists equal counts.
    fn check_lists(&self, client: &Client, report: &mut Report) -> Result<()> {
        let unique = self.tasks.len();
        report.require(self.listed == unique, "counts", || format!("{} listed, {unique} ids", self.listed));
        report.require(self.in_order, "counts", || "the list is not newest first".to_owned());
        for state in ["pending", "running", "completed", "failed", "cancelled"] {
            let counted = client.count(state)?;
            let listed = self.tasks.values().filter(|task| task.state == state).count() as u64;
            report.require(counted == listed, "counts", || {
                format!("{counted} counted {state}, {listed} listed")
            });
        }
        let live = client.live()?;
        report.require(live == 0, "I-12", || format!("{live} tasks are live after quiet"));
        Ok(())
    }

    /// Whether a task is quarantined, and was met by as many kills as that takes.
    fn is_met_by_kills(&self, id: &str, task: &Entry) -> bool {
        task.state == "failed" && task.code.as_deref() == Some("quarantined") && self.crashed.enough(id)
    }

    fn check_acknowledged(&self, acknowledged: &[(String, u64)], report: &mut Report) {
        let ids: BTreeSet<&String> = acknowledged.iter().map(|(id, _)| id).collect();
        report.require(ids.len() == acknowledged.len(), "I-6", || "an id was acknowledged twice".to_owned());
        let parents = self.tasks.iter().filter(|(_, task)| task.kind == "parent");
        for (id, _) in parents.filter(|(id, _)| !ids.contains(id)) {
            report.violation("I-6", format!("{id} is a parent that no submit was answered with"));
        }
        for (id, n) in acknowledged {
            let Some(task) = self.tasks.get(id) else {
                report.violation("I-1", format!("{id} was acknowledged and does not exist"));
                continue;
            };
            let (state, code, children) = match Ask::of(*n) {
                _ if self.is_met_by_kills(id, task) => ("failed", Some("quarantined"), 0),
                Ask::Complete | Ask::Once | Ask::Slow => ("completed", None, 2),
                Ask::Permanent => ("failed", Some("plugin_failed"), 0),
            };
            let ended = task.state == state && task.code.as_deref() == code;
            report.require(ended, "I-2", || format!("{id} (n {n}) is {task:?}, expected {state} {code:?}"));
            let found = self.children.get(id).map_or(0, Vec::len);
            report
                .require(found == children, "I-5", || format!("{id} (n {n}, {state}) has {found} children"));
        }
    }

    fn check_every_task(&self, report: &mut Report) {
        for (id, task) in &self.tasks {
            let ended = matches!(task.state.as_str(), "completed" | "failed");
            report.require(ended, "I-2", || format!("{id} is {}", task.state));
            let met_by_kills = self.is_met_by_kills(id, task);
            let attempts = (u64::from(!met_by_kills)..=ATTEMPTS_MAX).contains(&task.attempts);
            report.require(attempts, "I-7", || format!("{id} used {} attempts", task.attempts));
            let quarantined = task.code.as_deref() == Some("quarantined");
            report.require(!quarantined || met_by_kills, "quarantined", || {
                format!("{id} after {} crashes", task.crashes)
            });
        }
        for parent in self.children.keys() {
            let known = self.tasks.get(parent).is_some_and(|task| task.kind == "parent");
            report.require(known, "I-5", || format!("{parent} has children and is no parent in the history"));
        }
    }

    /// I-3: every task's one result or one error, its attempts, and what the result says, by reading each task.
    fn check_results(
        &self,
        client: &Client,
        acknowledged: &[(String, u64)],
        report: &mut Report,
    ) -> Result<()> {
        let share = acknowledged.len().div_ceil(READERS).max(1);
        let parts: Vec<Result<Report>> = std::thread::scope(|scope| {
            let readers: Vec<_> = acknowledged
                .chunks(share)
                .map(|part| scope.spawn(move || self.check_families(client, part)))
                .collect();
            let join = |reader: std::thread::ScopedJoinHandle<'_, Result<Report>>| {
                reader.join().unwrap_or_else(|_| Err(anyhow!("a reader panicked")))
            };
            readers.into_iter().map(join).collect()
        });
        for part in parts {
            report.absorb(part?);
        }
        Ok(())
    }

    fn check_families(&self, client: &Client, parents: &[(String, u64)]) -> Result<Report> {
        let mut report = Report::new("kill", &[]);
        for (id, n) in parents.iter().filter(|(id, _)| self.tasks.contains_key(id)) {
            let parent = client.task(id)?;
            self.check_one(&parent, &mut report);
            let children = self.children.get(id).map(Vec::as_slice).unwrap_or_default();
            if parent["state"] == "completed" {
                let named: BTreeSet<&str> = parent["result"]["children"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                let same = parent["result"]["n"] == *n && named.iter().copied().eq(children);
                report.require(same, "I-3", || format!("{id} (n {n}) answers {}", parent["result"]));
            }
            let mut which = BTreeSet::new();
            for child in children {
                let task = client.task(child)?;
                self.check_one(&task, &mut report);
                let result = &task["result"];
                which.extend(result["which"].as_u64());
                let same = result["n"] == *n
                    && result["answer"].as_u64() == result["which"].as_u64().map(|which| n * 10 + which)
                    && task["root"] == id.as_str()
                    && task["depth"] == 1;
                report.require(same, "I-3", || format!("{child} of n {n} answers {task}"));
            }
            let both = children.is_empty() || which.iter().eq(&[0, 1]);
            report.require(both, "I-5", || format!("the children of {id} are {which:?}"));
        }
        Ok(report)
    }

    /// What holds for any task by itself: the one result or error fits the state, and so do the attempts.
    fn check_one(&self, task: &Value, report: &mut Report) {
        let completed = task["state"] == "completed";
        let one = task.get("result").is_some() == completed && task.get("error").is_none() == completed;
        report.require(one, "I-3", || format!("state, result and error differ: {task}"));
        let attempts: &[Value] = task["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let numbered = attempts.iter().enumerate().all(|(index, attempt)| attempt["number"] == index + 1);
        let without_error = attempts.iter().filter(|attempt| attempt.get("error").is_none()).count();
        let fits = numbered && without_error == usize::from(completed);
        report.require(fits, "I-7", || format!("attempts do not fit: {task}"));
        let listed = task["id"].as_str().and_then(|id| self.tasks.get(id)).map(|entry| entry.attempts);
        report.require(listed == Some(attempts.len() as u64), "I-7", || format!("{listed:?} listed, {task}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(kind: &str, state: &str, code: Option<&str>) -> Entry {
        let code = code.map(str::to_owned);
        Entry { kind: kind.to_owned(), state: state.to_owned(), attempts: 1, crashes: 0, code }
    }

    /// One parent that completed (`n` 1) with its children, and one that failed as it was asked (`n` 7).
    fn good() -> (History, Vec<(String, u64)>) {
        let (tasks, children, crashed) = (BTreeMap::new(), BTreeMap::new(), Crashed::default());
        let mut history = History { tasks, children, listed: 4, in_order: true, crashed };
        let tasks = [
            ("a", entry("parent", "completed", None)),
            ("b", entry("child", "completed", None)),
            ("c", entry("child", "completed", None)),
            ("d", entry("parent", "failed", Some("plugin_failed"))),
        ];
        history.tasks.extend(tasks.map(|(id, entry)| (id.to_owned(), entry)));
        history.children.insert("a".to_owned(), vec!["b".to_owned(), "c".to_owned()]);
        (history, vec![("a".to_owned(), 1), ("d".to_owned(), 7)])
    }

    fn check(change: impl FnOnce(&mut History, &mut Vec<(String, u64)>), invariant: &str) {
        let (mut history, mut acknowledged) = good();
        change(&mut history, &mut acknowledged);
        let mut report = Report::new("kill", &[]);
        history.check_acknowledged(&acknowledged, &mut report);
        history.check_every_task(&mut report);
        let found = report.json();
        if invariant.is_empty() {
            assert_eq!(report.violations(), 0, "{found}");
        } else {
            assert!(found["violations"][invariant].as_u64() > Some(0), "{invariant}: {found}");
        }
    }

    #[test]
    fn every_violation_is_noticed() {
        fn task<'a>(history: &'a mut History, id: &str) -> &'a mut Entry {
            history.tasks.get_mut(id).unwrap()
        }
        check(|_, _| {}, "");
        check(|_, acknowledged| acknowledged.push(("lost".to_owned(), 2)), "I-1");
        check(|history, _| "running".clone_into(&mut task(history, "a").state), "I-2");
        check(|history, _| "completed".clone_into(&mut task(history, "d").state), "I-2");
        check(|history, _| task(history, "a").code = Some("trap".to_owned()), "I-2");
        check(|history, _| history.children.clear(), "I-5");
        check(|history, _| history.children.get_mut("a").unwrap().push("b".to_owned()), "I-5");
        check(|history, _| drop(history.children.insert("d".to_owned(), vec!["b".to_owned()])), "I-5");
        check(|history, _| drop(history.children.insert("gone".to_owned(), vec!["b".to_owned()])), "I-5");
        check(
            |history, _| drop(history.tasks.insert("e".to_owned(), entry("parent", "completed", None))),
            "I-6",
        );
        check(|_, acknowledged| acknowledged.push(("a".to_owned(), 1)), "I-6");
        check(|history, _| task(history, "a").attempts = ATTEMPTS_MAX + 1, "I-7");
        check(|history, _| task(history, "d").code = Some("quarantined".to_owned()), "quarantined");
    }

    fn check_task(task: Value, invariant: &str) {
        let (history, _) = good();
        let mut report = Report::new("kill", &[]);
        history.check_one(&task, &mut report);
        let found = report.json();
        if invariant.is_empty() {
            assert_eq!(report.violations(), 0, "{found}");
        } else {
            assert!(found["violations"][invariant].as_u64() > Some(0), "{invariant}: {found}");
        }
    }

    #[test]
    fn a_task_has_one_end_that_fits_its_state() {
        let attempts = json!([{"number": 1}]);
        check_task(json!({"id": "a", "state": "completed", "result": 1, "attempts": attempts}), "");
        check_task(json!({"id": "a", "state": "completed", "attempts": attempts}), "I-3");
        check_task(
            json!({"id": "a", "state": "completed", "result": 1, "error": {}, "attempts": attempts}),
            "I-3",
        );
        check_task(
            json!({"id": "d", "state": "failed", "result": 1, "error": {}, "attempts": attempts}),
            "I-3",
        );
        let twice = json!([{"number": 1}, {"number": 2}]);
        check_task(json!({"id": "a", "state": "completed", "result": 1, "attempts": twice}), "I-7");
        check_task(json!({"id": "a", "state": "completed", "result": 1, "attempts": [{"number": 2}]}), "I-7");
    }
}
