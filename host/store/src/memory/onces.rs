//! Keys of kinds: which tasks they stand for.

use std::collections::HashMap;

use keiko_core::id::TaskId;
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::{Last, Once, OnceRule, Stands};
use keiko_core::pause::PARKED_MS;
use keiko_core::task::TaskState;
use keiko_core::time_out::Ends;

use super::mutation::Mutation;
use super::state::State;
use crate::once::{Asking, Name, Onces, Replaced, names};

/// What a key stands for.
#[derive(Clone, Copy)]
pub(super) struct KeyRow {
    task: TaskId,
    due_ms: i64,
    expires_ms: i64,
}

impl State {
    /// What the keys of these tasks stand for.
    pub(super) fn known_onces<'a>(&self, asking: impl Iterator<Item = Asking<'a>>) -> Onces {
        let (wanted, _) = names(asking);
        let known: HashMap<Name, Last<TaskId>> =
            wanted.into_iter().filter_map(|name| self.last_of(&name).map(|last| (name, last))).collect();
        Onces::of(known)
    }

    fn last_of(&self, name: &Name) -> Option<Last<TaskId>> {
        let own = self.task_keys.get(name);
        let any = |(tenants, kinds): (bool, bool)| {
            let same = |(other, _): &(&Name, &KeyRow)| {
                other.2 == name.2 && (tenants || other.0 == name.0) && (kinds || other.1 == name.1)
            };
            self.task_keys.iter().find(same).map(|(_, row)| row)
        };
        let found = match self.mutation {
            Some(Mutation::OnceIgnored) => None,
            Some(Mutation::OnceOfAnyTenant) => own.or_else(|| any((true, true))),
            Some(Mutation::OnceOfAnyKind) => own.or_else(|| any((false, true))),
            _ => own,
        };
        let row = found.copied()?;
        let stands = match self.tasks.get(&row.task) {
            Some(task) if task.state.is_terminal() && !self.breaks(Mutation::OnceForEver) => Stands::Ended,
            None => Stands::Ended,
            Some(task) if task.state == TaskState::Pending && task.attempts == 0 && task.crashes == 0 => {
                Stands::Waits { created_ms: task.created_ms }
            }
            Some(task) if self.breaks(Mutation::OnceReplacesBegun) => {
                Stands::Waits { created_ms: task.created_ms }
            }
            Some(_) => Stands::Begun,
        };
        Some(Last { task: row.task, due_ms: row.due_ms, stands })
    }

    /// What the key of an ended task stands for when that is tried again, if it is to be the only one; or which other task of
    /// the key is live.
    pub(super) fn take_again(&self, id: TaskId, now_ms: i64) -> Result<Onces, TaskId> {
        let found = self.tasks.get(&id).and_then(|row| Some((row, row.unique_key.clone()?)));
        let Some((row, key)) = found.filter(|_| !self.breaks(Mutation::RetryIgnoresOnce)) else {
            return Ok(Onces::default());
        };
        let (tenant, kind) = (row.tenant, row.kind);
        let once = Once { key, rule: OnceRule::Unique { refuse: true } };
        let mut onces = self.known_onces(std::iter::once((tenant, kind, Some(&once))));
        onces.take_again((tenant, kind, once.key), id, now_ms)?;
        Ok(if self.breaks(Mutation::RetryTakesNoOnce) { Onces::default() } else { onces })
    }

    /// Writes what a call decided.
    pub(super) fn store_onces(&mut self, onces: &Onces) {
        let keeps_input = self.breaks(Mutation::ReplaceKeepsInput);
        let keeps_time = self.breaks(Mutation::ReplaceKeepsTime);
        for (id, Replaced { tenant, input, due_ms }) in onces.replaced() {
            let Some(row) = self.tasks.get(&id).filter(|row| row.tenant == *tenant) else { continue };
            let of_tree = row.lineage.parent.and_then(|_| self.trees.get(&row.lineage.root)?.end_ms);
            let of_tree = of_tree.filter(|_| !self.breaks(Mutation::ReplaceOutlivesTree));
            self.change(id, |row| {
                if !keeps_input {
                    row.input = input.clone();
                }
                if !keeps_time {
                    row.run_at_ms = *due_ms;
                    // A parked one stays parked.
                    row.place_ms = if row.place_ms == PARKED_MS { PARKED_MS } else { *due_ms };
                    row.ends = Ends::of(&row.budget, *due_ms).within(of_tree);
                }
            });
        }
        for (name, task, due_ms, expires_ms) in onces.fresh() {
            let day_ms = due_ms.saturating_add(KEY_AGE_MS);
            let expires_ms = if self.breaks(Mutation::PruneForgetsDistances) { day_ms } else { expires_ms };
            self.task_keys.insert(name.clone(), KeyRow { task, due_ms, expires_ms });
        }
    }

    /// Forgets keys that have expired, those that expired first first, unless their task is live.
    pub(super) fn prune_onces(&mut self, now_ms: i64, count_max: u32) -> u64 {
        let mut expired: Vec<(i64, Name)> = self
            .task_keys
            .iter()
            .filter(|(_, row)| row.expires_ms <= now_ms)
            .map(|(name, row)| (row.expires_ms, name.clone()))
            .collect();
        expired.sort();
        let mut pruned = 0;
        for (_, name) in expired.into_iter().take(count_max as usize) {
            let live = |row: &KeyRow| self.tasks.get(&row.task).is_some_and(|task| !task.state.is_terminal());
            let keeps =
                self.task_keys.get(&name).is_some_and(live) && !self.breaks(Mutation::PruneForgetsLiveOnces);
            if keeps {
                self.task_keys
                    .entry(name)
                    .and_modify(|row| row.expires_ms = now_ms.saturating_add(KEY_AGE_MS));
            } else {
                self.task_keys.remove(&name);
                pruned += 1;
            }
        }
        pruned
    }
}
