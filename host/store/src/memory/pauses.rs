//! Pauses, and the tasks that wait behind them.

use keiko_core::id::{KindId, TaskId, TenantId};
use keiko_core::pause::{PARKED_MS, Pause, Paused};

use super::mutation::Mutation;
use super::state::State;

impl State {
    pub(super) fn pause(&mut self, what: Paused, now_ms: i64) -> bool {
        let own = |kind: KindId| {
            let of_tenant = |row: &super::state::KindRow| row.tenant == what.tenant;
            self.kinds.get(&kind).is_some_and(of_tenant) || self.breaks(Mutation::PausesForOthers)
        };
        let known = self.pauses.get(&what).is_some_and(|(_, ending)| !ending);
        if known || !what.kind.is_none_or(own) {
            return false;
        }
        self.pauses.insert(what, (now_ms, false));
        self.last.catalog += i64::from(!self.breaks(Mutation::PauseTellsNobody));
        true
    }

    pub(super) fn resume(&mut self, what: Paused) -> bool {
        let Some((_, ending)) = self.pauses.get_mut(&what).filter(|(_, ending)| !*ending) else {
            return false;
        };
        *ending = true;
        if what.kind.is_none() {
            self.pauses.remove(&what);
        }
        self.last.catalog += 1;
        true
    }

    pub(super) fn unpark(&mut self, what: Paused, count_max: u32) -> u64 {
        let Some(kind) = what.kind.filter(|_| self.pauses.get(&what).is_some_and(|(_, ending)| *ending))
        else {
            return 0;
        };
        let parked = (what.tenant, PARKED_MS, TaskId(i64::MIN))..=(what.tenant, PARKED_MS, TaskId(i64::MAX));
        let of_kind = |id: &TaskId| self.tasks.get(id).is_some_and(|row| row.kind == kind);
        let ids = self.ready.range(parked).map(|(.., id)| *id).filter(of_kind);
        let count_max = if self.breaks(Mutation::UnparkIgnoresItsNumber) { u32::MAX } else { count_max };
        let ids: Vec<TaskId> = ids.take(count_max as usize).collect();
        if !self.breaks(Mutation::ParkedForEver) {
            // Those with a priority take their place with the next lease.
            ids.iter().for_each(|id| self.change(*id, |row| row.place_ms = row.run_at_ms));
        }
        if ids.len() < count_max as usize {
            self.pauses.remove(&what);
        }
        ids.len() as u64
    }

    pub(super) fn pauses(&self) -> Vec<Pause> {
        let pause = |(what, (since_ms, ending)): (&Paused, &(i64, bool))| Pause {
            what: *what,
            since_ms: *since_ms,
            ending: *ending,
        };
        self.pauses.iter().map(pause).collect()
    }

    /// Whether tasks of this tenant, or of this kind of it, are not to be leased.
    pub(super) fn is_paused(&self, tenant: TenantId, kind: Option<KindId>) -> bool {
        let pause = self.pauses.get(&Paused { tenant, kind });
        pause.is_some_and(|(_, ending)| !ending) && !self.breaks(Mutation::PauseIgnored)
    }

    /// Takes tasks of paused kinds out of what a lease is to take, and parks them; whether there were any.
    pub(super) fn park(&mut self, taken: &mut Vec<(TenantId, i64, TaskId)>) -> bool {
        let (paused, left): (Vec<_>, Vec<_>) = taken.drain(..).partition(|(tenant, _, id)| {
            self.tasks.get(id).is_some_and(|row| self.is_paused(*tenant, Some(row.kind)))
        });
        *taken = left;
        let forgets = self.breaks(Mutation::ParkForgetsDueTime);
        for (_, _, id) in &paused {
            self.change(*id, |row| {
                row.place_ms = PARKED_MS;
                if forgets {
                    row.run_at_ms = PARKED_MS;
                }
            });
        }
        !paused.is_empty()
    }
}
