//! Keys of kinds: what a call knows of them, and what it changes. The rule is `core::once`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::{Last, OnceRule, Stands, Verdict, decide};
use keiko_core::task::{NewTask, Payload, Submit};

/// A key with its tenant and kind.
pub(crate) type Name = (TenantId, KindId, String);

/// The keys that a call names: as they are stored, and as the call changes them.
#[derive(Default)]
pub(crate) struct Onces {
    known: HashMap<Name, Last<TaskId>>,
    /// Keys that stand for a task of this call, with when they may be forgotten.
    fresh: BTreeMap<Name, i64>,
    /// When tasks of this call are due, where they did not say so themselves.
    due: HashMap<TaskId, i64>,
    replaced: BTreeMap<TaskId, Replaced>,
}

/// What a task that waits is given in place of what it had.
pub(crate) struct Replaced {
    pub(crate) tenant: TenantId,
    pub(crate) input: Payload,
    pub(crate) due_ms: i64,
}

/// The name of a submit's key, and what it asks.
fn named(submit: &Submit) -> Option<(Name, OnceRule, &NewTask)> {
    let (once, task) = (submit.once.as_ref()?, submit.tasks.first()?);
    Some(((submit.tenant, task.kind, once.key.clone()), once.rule, task))
}

/// The names that submits give, and of which a waiting task may be given another input.
pub(crate) fn names<'a>(submits: impl Iterator<Item = &'a Submit>) -> (BTreeSet<Name>, BTreeSet<Name>) {
    let (mut all, mut debounced) = (BTreeSet::new(), BTreeSet::new());
    for (name, rule, _) in submits.filter_map(named) {
        if matches!(rule, OnceRule::Debounce { .. }) {
            debounced.insert(name.clone());
        }
        all.insert(name);
    }
    (all, debounced)
}

impl Onces {
    /// Those of the keys that are stored.
    pub(crate) fn of(known: HashMap<Name, Last<TaskId>>) -> Onces {
        Onces { known, ..Onces::default() }
    }

    /// What becomes of a submit; `None` when it has no key.
    pub(crate) fn verdict(&self, submit: &Submit, now_ms: i64) -> Option<Verdict<TaskId>> {
        let (name, rule, task) = named(submit)?;
        Some(decide(rule, self.known.get(&name).copied(), task.run_at_ms, now_ms))
    }

    /// Makes the key stand for the submit's task, which is due then.
    pub(crate) fn note(&mut self, submit: &Submit, due_ms: i64, now_ms: i64) {
        let Some((name, _, task)) = named(submit) else { return };
        let stands = Stands::Waits { created_ms: task.created_ms };
        self.known.insert(name.clone(), Last { task: task.id, due_ms, stands });
        self.due.insert(task.id, due_ms);
        self.fresh.insert(name, due_ms.max(now_ms).saturating_add(KEY_AGE_MS));
    }

    /// Gives a task that waits the submit's input and due time.
    pub(crate) fn replace(&mut self, submit: &Submit, id: TaskId, due_ms: i64, now_ms: i64) {
        let Some((name, _, task)) = named(submit) else { return };
        if let Some(known) = self.known.get_mut(&name) {
            known.due_ms = due_ms;
        }
        let replaced = Replaced { tenant: submit.tenant, input: task.input.clone(), due_ms };
        self.replaced.insert(id, replaced);
        self.fresh.insert(name, due_ms.max(now_ms).saturating_add(KEY_AGE_MS));
    }

    /// Tasks of submits that were accepted, as far as they are written otherwise than they were submitted.
    pub(crate) fn shape(&mut self, accepted: &[(&Submit, i64)]) -> HashMap<TaskId, NewTask> {
        let mut shaped = HashMap::new();
        for (submit, _) in accepted {
            let Some((_, _, task)) = named(submit) else { continue };
            let mut task = task.clone();
            task.run_at_ms = self.due.get(&task.id).copied().unwrap_or(task.run_at_ms);
            if let Some(Replaced { input, due_ms, .. }) = self.replaced.remove(&task.id) {
                (task.input, task.run_at_ms) = (input, due_ms);
            }
            shaped.insert(task.id, task);
        }
        shaped
    }

    /// Tasks that were stored before and are given another input.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = (TaskId, &Replaced)> {
        self.replaced.iter().map(|(id, replaced)| (*id, replaced))
    }

    /// What was noted, to be written, in order: the key, its task, when that is due, and when the key may be forgotten.
    pub(crate) fn fresh(&self) -> Vec<(&Name, TaskId, i64, i64)> {
        let mut rows = Vec::with_capacity(self.fresh.len());
        for (name, expires_ms) in &self.fresh {
            rows.extend(self.known.get(name).map(|last| (name, last.task, last.due_ms, *expires_ms)));
        }
        rows
    }
}
