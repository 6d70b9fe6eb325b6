//! Holders of leases, ids, leasing, and what becomes of tasks whose holder is gone.

use std::collections::{HashMap, HashSet};

use keiko_core::id::{Holder, TaskId, TenantId, Token};
use keiko_core::port::{Beat, Dead, IdBlock, Lease, LeaseRequest, Rescued};
use keiko_core::share::{Claim, shares};
use keiko_core::task::{LeasedTask, TaskState};

use super::mutation::Mutation;
use super::state::{Row, State};
use crate::ending::End;
use crate::rescue::sort;
use crate::turns::take_turns;

/// Inputs larger than this count to what a lease loads, in bytes: those that other stores keep beside their rows.
const INLINE_BYTES_MAX: usize = 2_048;
/// Inputs that one lease loads, in bytes; the first always fits. What does not fit is left for the next lease.
const LEASE_BYTES_MAX: usize = 64 << 20;

/// Takes `count` numbers that are above the last one and not below `floor`; returns the last of them.
fn take_numbers(last: &mut i64, floor: i64, count: i64, repeat: bool) -> i64 {
    let first = if repeat { floor } else { floor.max(*last + 1) };
    *last = first + count - 1;
    *last
}

impl State {
    pub(super) fn open_holder(&mut self, now_ms: i64, lease_ms: i64) -> Holder {
        let repeat = self.breaks(Mutation::HoldersRepeat);
        let holder = Holder(take_numbers(&mut self.last.holder, now_ms, 1, repeat));
        self.holders.insert(holder, now_ms.saturating_add(lease_ms));
        holder
    }

    pub(super) fn beat(&mut self, holder: Holder, now_ms: i64, lease_ms: i64) -> Beat {
        let until_ms = now_ms.saturating_add(lease_ms);
        if self.breaks(Mutation::BeatRevives) {
            self.holders.entry(holder).or_insert(until_ms);
        }
        let still = self.breaks(Mutation::BeatProlongsNothing);
        match self.holders.get_mut(&holder) {
            None => return Beat::Lost,
            Some(_) if still => {}
            Some(until) => *until = until_ms.max(*until),
        }
        let others = self.holders.iter().filter(|(other, _)| **other != holder).map(|(_, until)| *until);
        let others_end_ms = others.min().filter(|_| !self.breaks(Mutation::BeatHidesOthers));
        Beat::Alive { others_end_ms, catalog: self.last.catalog }
    }

    pub(super) fn close_holder(&mut self, holder: Holder) -> u64 {
        let held = self.running_of(|other| other == holder);
        self.holders.remove(&holder);
        if self.breaks(Mutation::CloseKeepsTasks) {
            return 0;
        }
        held.iter().for_each(|id| self.give_back(*id, 0));
        held.len() as u64
    }

    /// Running tasks of these holders.
    fn running_of(&self, holders: impl Fn(Holder) -> bool) -> Vec<TaskId> {
        let of_them = |id: &&TaskId| self.tasks.get(id).and_then(|row| row.holder).is_some_and(&holders);
        self.running.iter().filter(of_them).copied().collect()
    }

    pub(super) fn reserve_ids(&mut self, count: u32, now_ms: i64) -> IdBlock {
        let repeat = self.breaks(Mutation::IdsRepeat);
        let last = take_numbers(&mut self.last.task, TaskId::floor(now_ms).0, i64::from(count), repeat);
        IdBlock { first: TaskId(last - i64::from(count) + 1), count }
    }

    pub(super) fn lease(&mut self, request: &LeaseRequest) -> Lease {
        let until_ms = request.now_ms.saturating_add(request.lease_ms);
        let still = self.breaks(Mutation::LeaseProlongsNothing);
        let anyone = self.breaks(Mutation::LeaseToAnyone);
        match self.holders.get_mut(&request.holder) {
            None if anyone => {}
            None => return Lease { lost: true, ..Lease::default() },
            Some(_) if still => {}
            Some(until) => *until = until_ms.max(*until),
        }
        self.raise(request.now_ms);
        let shares = self.shares(request);
        let mut taken = Vec::new();
        for &(tenant, share) in &shares {
            taken.extend(self.due(tenant, request.now_ms, share));
        }
        if !self.breaks(Mutation::NoTurns) {
            take_turns(&mut taken, &shares, |due| *due);
        }
        let parked = self.park(&mut taken);
        let moved = self.take_slots(&mut taken, request);
        let wanted = taken.len();
        self.drop_what_does_not_fit(&mut taken);
        let next_run_at_ms = match (taken.len() == wanted && !parked && !moved, taken.len() < request.room) {
            (false, _) => Some(request.now_ms),
            (true, true) => self.next_due(request.now_ms),
            (true, false) => None,
        };
        let mut tasks: Vec<_> =
            taken.iter().filter_map(|&(_, _, id)| self.take(id, request.holder)).collect();
        self.look_at_slots(&mut tasks, request);
        self.look_at_leased(&tasks);
        let after = shares.last().map(|&(tenant, _)| tenant).or(request.after);
        Lease { tasks, after, next_run_at_ms, lost: false }
    }

    /// Gives pending tasks that have come due their place.
    fn raise(&mut self, now_ms: i64) {
        if [Mutation::PriorityIgnored, Mutation::DueWithoutPlace].into_iter().any(|one| self.breaks(one)) {
            return;
        }
        let due: Vec<_> = self.unplaced.range(..=(now_ms, TaskId(i64::MAX))).copied().collect();
        for (_, id) in due {
            self.change(id, |row| row.place_ms = row.priority.place_ms(row.run_at_ms));
        }
    }

    /// How many tasks each tenant with due ones gets.
    fn shares(&self, request: &LeaseRequest) -> Vec<(TenantId, usize)> {
        let room = request.room + usize::from(self.breaks(Mutation::RoomOneMore));
        let mut claims = Vec::new();
        let mut next = self.ready.first().copied();
        while let Some((tenant, ..)) = next {
            let cap = request.caps.get(&tenant).copied().unwrap_or(request.cap_default);
            let cap = if self.breaks(Mutation::CapsIgnored) { room } else { cap.min(room) };
            let due = self.due(tenant, request.now_ms, cap).len();
            if due > 0 && !self.is_paused(tenant, None) {
                claims.push(Claim { tenant, cap: due });
            }
            next = self.ready.range((TenantId(tenant.0 + 1), i64::MIN, TaskId(i64::MIN))..).next().copied();
        }
        if self.breaks(Mutation::NoFairness) {
            let mut left = room;
            let mut first = |claim: &Claim| {
                let given = claim.cap.min(left);
                left -= given;
                (claim.tenant, given)
            };
            return claims.iter().map(&mut first).filter(|(_, given)| *given > 0).collect();
        }
        let after = request.after.filter(|_| !self.breaks(Mutation::NoRotation));
        shares(&claims, room, after)
    }

    /// Up to `count` due tasks of a tenant, oldest first.
    fn due(&self, tenant: TenantId, now_ms: i64, count: usize) -> Vec<(TenantId, i64, TaskId)> {
        let until_ms = if self.breaks(Mutation::LeaseOfNotDue) { i64::MAX } else { now_ms };
        let due =
            self.ready.range((tenant, i64::MIN, TaskId(i64::MIN))..=(tenant, until_ms, TaskId(i64::MAX)));
        if self.breaks(Mutation::LeaseNewestFirst) {
            return due.rev().take(count).copied().collect();
        }
        due.take(count).copied().collect()
    }

    fn drop_what_does_not_fit(&self, taken: &mut Vec<(TenantId, i64, TaskId)>) {
        if self.breaks(Mutation::InputsUnbounded) {
            return;
        }
        let mut sum = 0;
        taken.retain(|(_, _, id)| {
            let size = self.tasks.get(id).map_or(0, |row| row.input.bytes.len());
            if size <= INLINE_BYTES_MAX {
                return true;
            }
            let first = sum == 0;
            sum += size;
            first || sum <= LEASE_BYTES_MAX
        });
    }

    fn next_due(&self, now_ms: i64) -> Option<i64> {
        if self.breaks(Mutation::NextDueForgotten) {
            return None;
        }
        let open = self.ready.iter().filter(|(tenant, ..)| !self.is_paused(*tenant, None));
        open.map(|(_, run_at_ms, _)| *run_at_ms).filter(|run_at_ms| *run_at_ms > now_ms).min()
    }

    /// Leases one task.
    fn take(&mut self, id: TaskId, holder: Holder) -> Option<LeasedTask> {
        let growth = i64::from(!self.breaks(Mutation::LeaseWithoutToken));
        let row = self.tasks.get(&id)?;
        if row.state != TaskState::Pending || growth < 1 {
            let (state, token) = (row.state.as_str(), row.token);
            self.seen_broken.push(format!("{id} is leased while it is {state}, under {token} or the next"));
        }
        self.change(id, |row| {
            (row.state, row.holder) = (TaskState::Running, Some(holder));
            row.token.0 += growth;
        });
        let row = self.tasks.get(&id)?;
        let mut task = leased(id, row);
        let below = task.lineage.parent.filter(|_| !self.breaks(Mutation::TreeUntold));
        task.tree = below.and_then(|_| Some(self.trees.get(&task.lineage.root)?.tree));
        if self.breaks(Mutation::LeaseForgetsBudget) {
            (task.budget, task.trace) = (Default::default(), None);
        }
        if self.breaks(Mutation::LeaseTwice) {
            self.ready.insert((task.tenant, row.place_ms, id));
        }
        Some(task)
    }

    pub(super) fn rescue(&mut self, dead: Dead, started: Vec<(TaskId, Token)>, now_ms: i64) -> Rescued {
        let names = |(id, token): &(TaskId, Token)| {
            let row = self.tasks.get(id).filter(|row| row.token == *token);
            let holder = row.map_or_else(|| self.batch_holder(*id, *token), |row| row.holder);
            holder.filter(|_| !self.breaks(Mutation::RescueWaitsForTheGone))
        };
        let gone: HashSet<Holder> = started.iter().filter_map(names).collect();
        let alive: HashMap<Holder, i64> = match dead {
            Dead::AllBut(_) if self.breaks(Mutation::RescueSparesNobody) => HashMap::new(),
            Dead::AllBut(holder) => [(holder, i64::MAX)].into(),
            Dead::Expired if self.breaks(Mutation::RescueOfTheLiving) => HashMap::new(),
            Dead::Expired => self
                .holders
                .iter()
                .map(|(id, until)| (*id, *until))
                .filter(|(id, until)| *until > now_ms && !gone.contains(id))
                .collect(),
        };
        let nothing = self.breaks(Mutation::RescueNothing);
        let running = self.running_of(|holder| !alive.contains_key(&holder) && !nothing);
        let third_returns = self.breaks(Mutation::ThirdCrashReturns);
        let facts = |id: &TaskId| {
            let row = self.tasks.get(id)?;
            Some((id.0, row.token.0, if third_returns { 0 } else { i64::from(row.crashes) }))
        };
        let facts: Vec<_> = running.iter().filter_map(facts).collect();
        let sorted = sort(facts.clone(), &self.charged(&facts, started.clone()));
        sorted.unstarted.iter().for_each(|id| self.give_back(TaskId(*id), 0));
        let crash = u32::from(!self.breaks(Mutation::CrashUncharged));
        sorted.crashed.iter().for_each(|id| self.give_back(TaskId(*id), crash));
        let mut failed = self.finish(&sorted.quarantined, &End::QUARANTINED, now_ms);
        failed.retain(|_, _| !self.breaks(Mutation::QuarantinedKindsLost));
        if !self.breaks(Mutation::RescueForgetsNobody) {
            self.holders.retain(|holder, _| alive.contains_key(holder));
        }
        self.charge_batches(&started);
        let groups = if self.breaks(Mutation::RescueForgetsGroups) { Vec::new() } else { self.failing() };
        sorted.rescued(failed, groups)
    }

    pub(super) fn stale(&self, mut leases: Vec<(TaskId, Token)>) -> Vec<(TaskId, Token)> {
        let (waits, any) = (self.breaks(Mutation::StaleWaits), self.breaks(Mutation::StaleByTask));
        let lasts = |(id, token): &(TaskId, Token)| {
            let row = self.tasks.get(id).filter(|row| row.token == *token || any);
            row.is_some_and(|row| row.holder.is_some() || waits)
        };
        leases.retain(|lease| !lasts(lease));
        leases
    }

    /// The leases that are charged a crash: those that had started.
    fn charged(&self, running: &[(i64, i64, i64)], started: Vec<(TaskId, Token)>) -> Vec<(TaskId, Token)> {
        let every = running.iter().map(|&(id, token, _)| (TaskId(id), Token(token)));
        if self.breaks(Mutation::CrashChargedToUnstarted) {
            return every.collect();
        }
        if self.breaks(Mutation::CrashChargedByTask) {
            return every.filter(|(id, _)| started.iter().any(|(other, _)| other == id)).collect();
        }
        started
    }
}

fn leased(id: TaskId, row: &Row) -> LeasedTask {
    LeasedTask {
        id,
        tenant: row.tenant,
        kind: row.kind,
        token: row.token,
        attempts: row.attempts,
        deadlines: row.deadlines,
        crashes: row.crashes,
        created_ms: row.created_ms,
        place_ms: row.place_ms,
        priority: row.priority,
        input: row.input.clone(),
        budget: row.budget,
        lineage: row.lineage,
        agent: row.agent,
        user: row.user,
        trace: row.trace.clone(),
        ends: row.ends,
        group: row.group,
        tree: None,
        slot_key: row.slot_key.clone(),
        segment: None,
        has_slot: false,
    }
}
