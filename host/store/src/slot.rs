//! Slots: what all stores do alike with them. A lease looks which slots the tasks need that it took, wakes who waits for
//! those that are free, and lets the others have what is left. The rule of what is needed is `core::slot`.

use std::collections::{BTreeSet, HashMap, HashSet};

use keiko_core::id::{TaskId, Token};
use keiko_core::slot::{Concurrencies, Slot, needed};
use keiko_core::task::LeasedTask;

/// Slots whose leases are over that one lease looks at.
pub(crate) const OVER_MAX: u32 = 100;
/// Tasks that one lease wakes for a slot.
const WOKEN_MAX: u64 = 1_000;

/// A task that was leased a moment ago and needs slots.
pub(crate) struct Wanting {
    pub(crate) task: TaskId,
    pub(crate) token: Token,
    pub(crate) place_ms: i64,
    pub(crate) slots: Vec<Slot>,
}

/// Those of the tasks that need slots, in their order.
pub(crate) fn wanting<'a>(
    tasks: impl Iterator<Item = &'a mut LeasedTask>,
    declared: &Concurrencies,
) -> Vec<Wanting> {
    let mut wanting = Vec::new();
    for one in tasks {
        let slots = needed(one.tenant, one.kind, one.slot_key.as_deref(), declared);
        one.has_slot = !slots.is_empty();
        if one.has_slot {
            wanting.push(Wanting { task: one.id, token: one.token, place_ms: one.place_ms, slots });
        }
    }
    wanting
}

/// Every slot that is looked at, in the order in which all hosts take them.
pub(crate) fn every(wanting: &[Wanting], over: Vec<Slot>) -> BTreeSet<Slot> {
    over.into_iter().chain(wanting.iter().flat_map(|one| one.slots.iter().cloned())).collect()
}

/// How a slot stands.
#[derive(Default)]
pub(crate) struct Standing {
    /// Leases that have one, and tasks for which one is kept.
    pub(crate) used: u64,
    /// Whether tasks wait for one.
    pub(crate) waits: bool,
    /// Those of the leased tasks for which one was kept.
    pub(crate) kept: HashSet<TaskId>,
}

/// How slots stand.
#[derive(Default)]
pub(crate) struct Slots(pub(crate) HashMap<Slot, Standing>);

/// What becomes of tasks that need slots.
#[derive(Default)]
pub(crate) struct Decided {
    /// Slots that leases under these tokens have, from now on or when they come.
    pub(crate) taken: Vec<(Slot, TaskId, Token)>,
    /// Tasks for which there is none of this one, with their places.
    pub(crate) parked: Vec<(Slot, i64, TaskId)>,
}

impl Slots {
    /// Slots that are free while tasks wait for them, with how many, in order.
    pub(crate) fn to_wake(&self, declared: &Concurrencies) -> Vec<(Slot, u64)> {
        let free = |(slot, standing): (&Slot, &Standing)| {
            let max = slot.limit(declared).map_or(u64::MAX, u64::from);
            let count = max.saturating_sub(standing.used).min(WOKEN_MAX);
            (standing.waits && count > 0).then(|| (slot.clone(), count))
        };
        let mut free: Vec<(Slot, u64)> = self.0.iter().filter_map(free).collect();
        free.sort_unstable();
        free
    }

    /// So many tasks were woken, and have one of these slots.
    pub(crate) fn woke(&mut self, slot: &Slot, count: u64) {
        if let Some(standing) = self.0.get_mut(slot) {
            standing.used += count;
        }
    }

    /// Gives the slots that are left to those who want them, first come, first served. A task that misses one waits for that
    /// one, and keeps those before it for the lease to come.
    pub(crate) fn decide(&mut self, wanting: Vec<Wanting>, declared: &Concurrencies) -> Decided {
        let mut decided = Decided::default();
        for Wanting { task, token, place_ms, slots } in wanting {
            let misses = |slot: &Slot| {
                let Some(standing) = self.0.get(slot) else { return false };
                let max = slot.limit(declared).map_or(u64::MAX, u64::from);
                !standing.kept.contains(&task) && standing.used >= max
            };
            let missing = slots.iter().position(misses);
            for slot in slots.iter().take(missing.unwrap_or(slots.len())) {
                let standing = self.0.entry(slot.clone()).or_default();
                let kept = standing.kept.contains(&task);
                standing.used += u64::from(!kept);
                match missing {
                    Some(_) => decided.taken.push((slot.clone(), task, Token(token.0 + 1))),
                    None if kept => {}
                    None => decided.taken.push((slot.clone(), task, token)),
                }
            }
            decided.parked.extend(missing.map(|at| (slots[at].clone(), place_ms, task)));
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::id::{KindId, TenantId};
    use keiko_core::slot::Concurrency;

    use super::*;

    fn slot(key: &str) -> Slot {
        Slot { tenant: TenantId(1), kind: KindId(1), key: key.to_owned() }
    }

    fn declared() -> Concurrencies {
        let kinds = [(KindId(1), Concurrency { max: Some(3), per_key: Some(2) })].into();
        Concurrencies { kinds, ..Concurrencies::default() }
    }

    fn want(task: i64, key: &str) -> Wanting {
        Wanting { task: TaskId(task), token: Token(1), place_ms: task, slots: vec![slot(key), slot("")] }
    }

    #[test]
    fn a_task_has_all_its_slots_or_waits_for_the_one_it_misses() {
        let mut slots = Slots::default();
        let wanting = vec![want(1, "a"), want(2, "a"), want(3, "a"), want(4, "b"), want(5, "c")];
        let decided = slots.decide(wanting, &declared());
        let taken = |task| decided.taken.iter().filter(move |(_, of, _)| *of == TaskId(task));
        for task in [1, 2, 4] {
            assert!(taken(task).all(|(.., token)| *token == Token(1)) && taken(task).count() == 2, "{task}");
        }
        assert_eq!(taken(3).count(), 0);
        let kept: Vec<_> = taken(5).collect();
        assert_eq!(kept, [&(slot("c"), TaskId(5), Token(2))], "for the lease to come");
        assert_eq!(decided.parked, [(slot("a"), 3, TaskId(3)), (slot(""), 5, TaskId(5))]);
    }

    #[test]
    fn what_was_kept_is_counted_already() {
        let kept = Standing { used: 2, waits: false, kept: [TaskId(2)].into() };
        let mut slots = Slots([(slot("a"), kept)].into());
        let decided = slots.decide(vec![want(1, "a"), want(2, "a")], &declared());
        assert_eq!(decided.parked, [(slot("a"), 1, TaskId(1))]);
        assert_eq!(decided.taken, [(slot(""), TaskId(2), Token(1))]);
    }

    #[test]
    fn who_waits_is_woken_for_what_is_free() {
        let standing = |used, waits| Standing { used, waits, ..Standing::default() };
        let check = |used, waits, declared: &Concurrencies, expected: &[u64]| {
            let slots = Slots([(slot(""), standing(used, waits))].into());
            let counts: Vec<u64> = slots.to_wake(declared).into_iter().map(|(_, count)| count).collect();
            assert_eq!(counts, expected);
        };
        check(1, true, &declared(), &[2]);
        check(1, false, &declared(), &[]);
        check(3, true, &declared(), &[]);
        check(5, true, &declared(), &[]);
        check(5, true, &Concurrencies::default(), &[WOKEN_MAX]);
    }
}
