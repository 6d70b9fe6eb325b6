//! Slots, and the tasks that wait for them.

use std::collections::{BTreeSet, HashSet};

use keiko_core::id::{KindId, TaskId, TenantId, Token};
use keiko_core::pause::PARKED_MS;
use keiko_core::port::LeaseRequest;
use keiko_core::slot::{Concurrencies, Slot, needed};
use keiko_core::task::{LeasedTask, TaskState};

use super::mutation::Mutation;
use super::state::{Row, State};
use crate::slot::{Decided, Slots, Standing, Wanting, every};

impl State {
    /// Lets the tasks that a lease is to take have the slots they need, parks those for which there are none, and wakes who
    /// waits for what is free. Returns whether there may be more to take.
    pub(super) fn take_slots(
        &mut self,
        taken: &mut Vec<(TenantId, i64, TaskId)>,
        request: &LeaseRequest,
    ) -> bool {
        let declared = self.declared(&request.slots);
        let wanting: Vec<Wanting> =
            taken.iter().filter_map(|(.., id)| self.wanting(*id, &declared)).collect();
        let over = self.slot_use.iter().filter(|((_, id), token)| self.is_over(*id, **token, request.now_ms));
        let over: Vec<(Slot, TaskId)> = over.map(|(name, _)| name.clone()).collect();
        self.slot_use.retain(|name, _| !over.contains(name));
        let names = every(&wanting, over.into_iter().map(|(slot, _)| slot).collect());
        let mut slots = Slots(names.into_iter().map(|slot| self.slot_standing(slot, &wanting)).collect());
        let mut woken = false;
        for (slot, count) in slots.to_wake(&declared) {
            let count = self.wake(&slot, count);
            slots.woke(&slot, count);
            woken |= count > 0;
        }
        let Decided { taken: own, parked } = slots.decide(wanting, &declared);
        // Nothing was leased yet: whoever has a slot has it under its next token, parked or not.
        for (slot, id, _) in own {
            let token = self.tasks.get(&id).map_or(Token(0), |row| Token(row.token.0 + 1));
            self.slot_use.insert((slot, id), token);
        }
        let ids: HashSet<TaskId> = parked.iter().map(|(.., id)| *id).collect();
        taken.retain(|(.., id)| !ids.contains(id));
        for (slot, place_ms, id) in parked {
            self.slot_wait.insert((slot, place_ms, id));
            self.change(id, |row| row.place_ms = PARKED_MS);
        }
        woken || !ids.is_empty()
    }

    /// Says which of the leased tasks have a slot; and looks by itself how many have one or were woken for one, whatever was
    /// counted.
    pub(super) fn look_at_slots(&mut self, tasks: &mut [LeasedTask], request: &LeaseRequest) {
        let slots_of = |row: &Row| needed(row.tenant, row.kind, row.slot_key.as_deref(), &request.slots);
        let mut seen: BTreeSet<Slot> = BTreeSet::new();
        for task in tasks {
            let slots = needed(task.tenant, task.kind, task.slot_key.as_deref(), &request.slots);
            task.has_slot = !slots.is_empty();
            seen.extend(slots);
        }
        self.look_at_promised(request.now_ms);
        let mut broken = Vec::new();
        for slot in seen {
            let running = self.running.iter().filter_map(|id| self.tasks.get(id));
            let count = running.filter(|row| slots_of(row).contains(&slot)).count() as u64;
            let promised = self.promised(&slot);
            if slot.limit(&request.slots).is_some_and(|max| count + promised > u64::from(max)) {
                broken
                    .push(format!("{count} tasks of {slot:?} are leased, and {promised} were woken for one"));
            }
        }
        self.seen_broken.extend(broken);
    }

    /// What is declared, as far as it is kept.
    fn declared(&self, declared: &Concurrencies) -> Concurrencies {
        let mut declared = declared.clone();
        if self.breaks(Mutation::SlotOneMore) {
            for one in declared.kinds.values_mut() {
                one.max = one.max.map(|max| max + 1);
            }
        }
        if self.breaks(Mutation::TenantSlotsIgnored) {
            declared.tenants.clear();
        }
        if self.breaks(Mutation::SlotsIgnored) { Concurrencies::default() } else { declared }
    }

    fn wanting(&self, id: TaskId, declared: &Concurrencies) -> Option<Wanting> {
        let row = self.tasks.get(&id)?;
        let keyless = self.breaks(Mutation::SlotKeyIgnored) || self.breaks(Mutation::SlotsIgnored);
        let key = row.slot_key.as_deref().filter(|_| !keyless);
        let mut slots = needed(row.tenant, row.kind, key, declared);
        for slot in slots.iter_mut().filter(|slot| !slot.key.is_empty()) {
            match self.mutation {
                Some(Mutation::SlotOfAnyTenant) => (slot.tenant, slot.kind) = (TenantId(0), KindId(0)),
                Some(Mutation::SlotOfAnyKind) => slot.kind = KindId(0),
                _ => {}
            }
        }
        let token = Token(row.token.0 + 1);
        (!slots.is_empty()).then_some(Wanting { task: id, token, place_ms: row.place_ms, slots })
    }

    /// Whether the lease of a task under a token is over, and none that is to come has it.
    fn is_over(&self, id: TaskId, token: Token, now_ms: i64) -> bool {
        let has = |row: &Row| match row.state {
            TaskState::Running => row.token == token,
            // One that waits for another slot keeps those that it has.
            TaskState::Pending => {
                row.token.0 == token.0 - 1 && (row.place_ms == PARKED_MS || row.place_ms <= now_ms)
            }
            _ => false,
        };
        !self.tasks.get(&id).is_some_and(has) && !self.breaks(Mutation::SlotNeverFree)
    }

    fn slot_standing(&self, slot: Slot, wanting: &[Wanting]) -> (Slot, Standing) {
        let used = self.uses(&slot);
        let ids: HashSet<TaskId> = wanting.iter().map(|one| one.task).collect();
        let kept = used.iter().filter(|id| ids.contains(id)).copied().collect();
        let waits = self.waiting(&slot).next().is_some();
        (slot, Standing { used: used.len() as u64, waits, kept })
    }

    fn uses(&self, slot: &Slot) -> Vec<TaskId> {
        let (first, last) = ((slot.clone(), TaskId(i64::MIN)), (slot.clone(), TaskId(i64::MAX)));
        self.slot_use.range(first..=last).map(|((_, id), _)| *id).collect()
    }

    fn waiting(&self, slot: &Slot) -> impl DoubleEndedIterator<Item = &(Slot, i64, TaskId)> {
        let first = (slot.clone(), i64::MIN, TaskId(i64::MIN));
        self.slot_wait.range(first..=(slot.clone(), i64::MAX, TaskId(i64::MAX)))
    }

    /// Wakes up to so many tasks that wait for a slot, and keeps one for each; how many.
    fn wake(&mut self, slot: &Slot, count: u64) -> u64 {
        if self.breaks(Mutation::SlotWakesNobody) {
            return 0;
        }
        let mut waiting: Vec<_> = self.waiting(slot).cloned().collect();
        if self.breaks(Mutation::SlotToTheLast) {
            waiting.reverse();
        }
        let mut woken = 0;
        for one in waiting {
            if woken == count {
                break;
            }
            let id = one.2;
            self.slot_wait.remove(&one);
            let waits = |row: &&Row| row.state == TaskState::Pending && row.place_ms == PARKED_MS;
            let Some(token) = self.tasks.get(&id).filter(waits).map(|row| row.token) else { continue };
            // One with a priority takes its place with the next lease.
            self.change(id, |row| row.place_ms = row.run_at_ms);
            self.slot_promised.insert((slot.clone(), id), token);
            if !self.breaks(Mutation::SlotNotKept) {
                self.slot_use.insert((slot.clone(), id), Token(token.0 + 1));
            }
            woken += 1;
        }
        woken
    }
}
