//! Keys of kinds: what a call knows of them, and what it changes. The rule is `core::once`.
//!
//! Tasks that are submitted together are decided on one after the other, each with what those before it took, and are
//! taken together or not at all: [`Onces::plan`] says what would change, [`Onces::accept`] makes it so.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::{Last, Once, OnceRule, Stands, Verdict, decide};
use keiko_core::task::{NewTask, Payload, Submit, Submitted};

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
    /// Tasks of this call that are others, which there were already.
    found: HashMap<TaskId, TaskId>,
}

/// What a task that waits is given in place of what it had.
pub(crate) struct Replaced {
    pub(crate) tenant: TenantId,
    pub(crate) input: Payload,
    pub(crate) due_ms: i64,
}

/// A task that may ask something of others of its kind.
pub(crate) type Asking<'a> = (TenantId, KindId, Option<&'a Once>);

/// The tasks of submits, as far as they may ask.
pub(crate) fn of_submits<'a>(submits: impl Iterator<Item = &'a Submit>) -> impl Iterator<Item = Asking<'a>> {
    submits.flat_map(|submit| submit.tasks.iter().map(|task| (submit.tenant, task.kind, task.once.as_ref())))
}

/// The names that tasks give, and of which a waiting task may be given another input.
pub(crate) fn names<'a>(asking: impl Iterator<Item = Asking<'a>>) -> (BTreeSet<Name>, BTreeSet<Name>) {
    let (mut all, mut debounced) = (BTreeSet::new(), BTreeSet::new());
    for (tenant, kind, once) in asking {
        let Some(once) = once else { continue };
        let name = (tenant, kind, once.key.clone());
        if matches!(once.rule, OnceRule::Debounce { .. }) {
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

    /// What tasks would change that are taken together, or why they cannot be.
    pub(crate) fn plan<'a>(
        &self,
        tenant: TenantId,
        tasks: impl IntoIterator<Item = &'a NewTask>,
        now_ms: i64,
    ) -> Result<Onces, Submitted> {
        let mut plan = Onces::default();
        for (place, task) in (0..).zip(tasks) {
            let Some(once) = &task.once else { continue };
            let name = (tenant, task.kind, once.key.clone());
            let last = plan.known.get(&name).or_else(|| self.known.get(&name)).copied();
            match decide(once.rule, last, task.run_at_ms, now_ms) {
                Verdict::Taken(task) => return Err(Submitted::Taken { task, place }),
                Verdict::TooLate { ahead_ms } => return Err(Submitted::TooLate { ahead_ms, place }),
                Verdict::New { due_ms } => plan.note(name, task, once.rule, due_ms, now_ms),
                Verdict::Found(id) => {
                    plan.found.insert(task.id, id);
                }
                Verdict::Replaces { task: id, due_ms } => {
                    plan.known.extend(last.map(|last| (name.clone(), Last { due_ms, ..last })));
                    plan.fresh.insert(name, due_ms.max(now_ms).saturating_add(KEY_AGE_MS));
                    plan.replaced.insert(id, Replaced { tenant, input: task.input.clone(), due_ms });
                    plan.found.insert(task.id, id);
                }
            }
        }
        Ok(plan)
    }

    /// Makes the key stand for a task that is to be the only one and is tried again now, or says which other one is live.
    pub(crate) fn take_again(&mut self, name: Name, task: TaskId, now_ms: i64) -> Result<(), TaskId> {
        let last = self.known.get(&name).copied();
        if let Verdict::Taken(other) = decide(OnceRule::Unique { refuse: true }, last, now_ms, now_ms) {
            return Err(other);
        }
        self.known.insert(name.clone(), Last { task, due_ms: now_ms, stands: Stands::Begun });
        self.fresh.insert(name, now_ms.saturating_add(KEY_AGE_MS));
        Ok(())
    }

    /// Makes the key stand for the task, which is due then.
    fn note(&mut self, name: Name, task: &NewTask, rule: OnceRule, due_ms: i64, now_ms: i64) {
        let stands = Stands::Waits { created_ms: task.created_ms };
        self.known.insert(name.clone(), Last { task: task.id, due_ms, stands });
        self.due.insert(task.id, due_ms);
        self.fresh.insert(name, due_ms.max(now_ms).saturating_add(rule.kept_ms()));
    }

    /// Takes over what was planned.
    pub(crate) fn accept(&mut self, plan: Onces) {
        let Onces { known, fresh, due, replaced, found } = plan;
        self.known.extend(known);
        self.fresh.extend(fresh);
        self.due.extend(due);
        self.replaced.extend(replaced);
        self.found.extend(found);
    }

    /// The task that this one is: another, which there was already, or itself.
    pub(crate) fn stands_for(&self, id: TaskId) -> TaskId {
        self.found.get(&id).copied().unwrap_or(id)
    }

    /// How many tasks of this call are others.
    pub(crate) fn found(&self) -> usize {
        self.found.len()
    }

    /// Tasks that were accepted, as they are written: without those that are others, and with the times and inputs that
    /// their keys gave them.
    pub(crate) fn shape<'a>(
        &mut self,
        accepted: impl IntoIterator<Item = (TenantId, &'a NewTask)>,
    ) -> Vec<(TenantId, Cow<'a, NewTask>)> {
        let mut shaped = Vec::new();
        for (tenant, task) in accepted {
            if self.found.contains_key(&task.id) {
                continue;
            }
            let (due, replaced) = (self.due.get(&task.id), self.replaced.remove(&task.id));
            let mut task = Cow::Borrowed(task);
            if let Some(&due_ms) = due.filter(|due_ms| **due_ms != task.run_at_ms) {
                task.to_mut().run_at_ms = due_ms;
            }
            if let Some(Replaced { input, due_ms, .. }) = replaced {
                let task = task.to_mut();
                (task.input, task.run_at_ms) = (input, due_ms);
            }
            shaped.push((tenant, task));
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
