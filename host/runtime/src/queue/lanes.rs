//! The rule of the local queue: one lane per tenant, served in turn, and the permits of tenants and of the host.
//!
//! Runs, which are no tasks and whose callers wait, go before the tasks of their own tenant and take its turns. Of them
//! as many may wait as may run, of a tenant and in all, so that who comes later is told at once that there is no room.

use std::collections::{BTreeMap, VecDeque};

use keiko_core::TenantId;

use crate::ahead::{Held, Lately, Load, Low};

/// The lanes.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: BTreeMap<TenantId, Lane<T>>,
    /// Tenants with waiting tasks, in the order of their turns.
    turns: VecDeque<TenantId>,
    /// Tasks that must run with nothing beside them; they go before all others.
    alone: VecDeque<(TenantId, T)>,
    alone_runs: bool,
    /// Tasks that wait, runs not counted.
    waiting: usize,
    /// Bytes of them, by `size`.
    bytes: usize,
    size: fn(&T) -> usize,
    /// Runs that wait.
    offered: usize,
    last_ticket: u64,
    running: usize,
    running_max: usize,
    /// What ended lately, of all tenants and of each: a lane may be gone with every end.
    ended: Lately,
    ended_of: BTreeMap<TenantId, Lately>,
    /// The time, in seconds since the queue was made.
    second: u64,
    /// Who leases is told when at most so many tasks wait.
    mark: Option<usize>,
    /// And, beside other hosts, when a worker finds nothing to begin.
    pub(super) beside: bool,
}

#[derive(Debug)]
struct Lane<T> {
    /// By place, and since which second; of equal places the earlier pushed first.
    waiting: VecDeque<((i64, u64), T)>,
    /// Runs, each with its ticket.
    offered: VecDeque<(u64, T)>,
    running: usize,
    running_max: usize,
    /// Who leases is told when at most so many tasks wait here: set while the tenant has as many as it may.
    mark: Option<usize>,
}

/// A run that waits, until it is popped: how it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    tenant: TenantId,
    number: u64,
}

/// Whose room for runs is used up, and how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The tenant's.
    Tenant(usize),
    /// The host's.
    Host(usize),
}

impl<T> Lane<T> {
    fn new() -> Lane<T> {
        Lane { waiting: VecDeque::new(), offered: VecDeque::new(), running: 0, running_max: 0, mark: None }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.offered.is_empty()
    }
}

impl<T> Lanes<T> {
    /// Lanes of which `running_max` tasks run at once in all; `size` says how many bytes a task has.
    pub(crate) fn new(running_max: usize, size: fn(&T) -> usize) -> Lanes<T> {
        Lanes {
            lanes: BTreeMap::new(),
            turns: VecDeque::new(),
            alone: VecDeque::new(),
            alone_runs: false,
            waiting: 0,
            bytes: 0,
            size,
            offered: 0,
            last_ticket: 0,
            running: 0,
            running_max,
            ended: Lately::default(),
            ended_of: BTreeMap::new(),
            second: 0,
            mark: None,
            beside: false,
        }
    }

    /// Adds a task to its tenant's lane, at its place there; `running_max` is how many of the tenant's may run at once.
    pub(crate) fn push(&mut self, tenant: TenantId, running_max: usize, alone: bool, place_ms: i64, item: T) {
        self.waiting += 1;
        self.bytes += (self.size)(&item);
        let lane = self.lanes.entry(tenant).or_insert_with(Lane::new);
        lane.running_max = running_max;
        if alone {
            self.alone.push_back((tenant, item));
            return;
        }
        if lane.is_empty() {
            self.turns.push_back(tenant);
        }
        let place = lane.waiting.partition_point(|((other_ms, _), _)| *other_ms <= place_ms);
        lane.waiting.insert(place, ((place_ms, self.second), item));
    }

    /// Adds a run to its tenant's lane, unless as many of them wait as may run.
    pub(crate) fn offer(&mut self, tenant: TenantId, running_max: usize, item: T) -> Result<Ticket, Full> {
        if self.offered >= self.running_max {
            return Err(Full::Host(self.running_max));
        }
        let lane = self.lanes.entry(tenant).or_insert_with(Lane::new);
        lane.running_max = running_max;
        if lane.offered.len() >= running_max {
            return Err(Full::Tenant(running_max));
        }
        if lane.is_empty() {
            self.turns.push_back(tenant);
        }
        self.last_ticket += 1;
        self.offered += 1;
        lane.offered.push_back((self.last_ticket, item));
        Ok(Ticket { tenant, number: self.last_ticket })
    }

    /// Takes a run back that has not been popped.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> Option<T> {
        let lane = self.lanes.get_mut(&ticket.tenant)?;
        let at = lane.offered.iter().position(|(number, _)| *number == ticket.number)?;
        let (_, item) = lane.offered.remove(at)?;
        self.offered -= 1;
        if lane.is_empty() {
            self.turns.retain(|tenant| *tenant != ticket.tenant);
            if lane.running == 0 {
                self.lanes.remove(&ticket.tenant);
            }
        }
        Some(item)
    }

    /// The next task that may run now. It counts as running until [`Lanes::done`].
    pub(crate) fn pop(&mut self) -> Option<(TenantId, T)> {
        if self.alone_runs || self.running >= self.running_max {
            return None;
        }
        if !self.alone.is_empty() {
            if self.running > 0 {
                return None;
            }
            let (tenant, item) = self.alone.pop_front()?;
            self.waiting -= 1;
            self.bytes -= (self.size)(&item);
            self.alone_runs = true;
            self.start(tenant);
            return Some((tenant, item));
        }
        for _ in 0..self.turns.len() {
            let tenant = self.turns.pop_front()?;
            let lane = self.lanes.get_mut(&tenant)?;
            if lane.running >= lane.running_max {
                self.turns.push_back(tenant);
                continue;
            }
            let item = match lane.offered.pop_front() {
                Some((_, item)) => {
                    self.offered -= 1;
                    item
                }
                None => {
                    let (_, item) = lane.waiting.pop_front()?;
                    self.waiting -= 1;
                    self.bytes -= (self.size)(&item);
                    item
                }
            };
            if !lane.is_empty() {
                self.turns.push_back(tenant);
            }
            self.start(tenant);
            return Some((tenant, item));
        }
        None
    }

    fn start(&mut self, tenant: TenantId) {
        self.running += 1;
        self.lanes.entry(tenant).or_insert_with(Lane::new).running += 1;
    }

    /// A task that was popped has ended.
    pub(crate) fn done(&mut self, tenant: TenantId) {
        self.alone_runs = false;
        self.running -= 1;
        self.ended.add(self.second);
        self.ended_of.entry(tenant).or_default().add(self.second);
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.running -= 1;
            if lane.running == 0 && lane.is_empty() {
                self.lanes.remove(&tenant);
            }
        }
    }

    /// Takes every waiting task out, and leaves the runs.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        (self.waiting, self.bytes) = (0, 0);
        let mut items: Vec<T> = self.alone.drain(..).map(|(_, item)| item).collect();
        for lane in self.lanes.values_mut() {
            items.extend(lane.waiting.drain(..).map(|(_, item)| item));
        }
        self.keep_what_is_left();
        items
    }

    /// The waiting tasks.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &T> {
        let in_lanes = self.lanes.values().flat_map(|lane| &lane.waiting).map(|(_, item)| item);
        self.alone.iter().map(|(_, item)| item).chain(in_lanes)
    }

    /// Takes those of the waiting tasks out that are to go.
    pub(crate) fn take(&mut self, goes: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = take_of(&mut self.alone, |_, item| goes(item));
        for lane in self.lanes.values_mut() {
            taken.extend(take_of(&mut lane.waiting, |_, item| goes(item)));
        }
        self.taken(taken)
    }

    /// Takes those of the waiting tasks out that may go and have waited for more than a second. What has to run alone stays:
    /// while it waits this host makes room for it, and elsewhere it would begin to wait anew.
    pub(crate) fn take_late(&mut self, may_go: impl Fn(&T) -> bool) -> Vec<T> {
        let (second, mut taken) = (self.second, Vec::new());
        for lane in self.lanes.values_mut() {
            let is_late = |(_, since): &(i64, u64), item: &T| since + 1 < second && may_go(item);
            taken.extend(take_of(&mut lane.waiting, is_late));
        }
        self.taken(taken)
    }

    fn taken(&mut self, taken: Vec<T>) -> Vec<T> {
        self.waiting -= taken.len();
        self.bytes -= taken.iter().map(self.size).sum::<usize>();
        self.keep_what_is_left();
        taken
    }

    /// Takes every waiting run out.
    pub(crate) fn clear_offered(&mut self) -> Vec<T> {
        self.offered = 0;
        let lanes = self.lanes.values_mut();
        let items = lanes.flat_map(|lane| lane.offered.drain(..)).map(|(_, item)| item).collect();
        self.keep_what_is_left();
        items
    }

    /// Sets when these are low.
    pub(crate) fn mark(&mut self, low: &Low) {
        (self.mark, self.beside) = (low.mark, low.beside);
        for lane in self.lanes.values_mut() {
            lane.mark = None;
        }
        for tenant in &low.capped {
            let waiting = self.held_of(*tenant).waiting;
            if let Some(lane) = self.lanes.get_mut(tenant) {
                lane.mark = Some(waiting / 2);
            }
        }
    }

    /// Whether they are low, where workers have room for so many more attempts. A lane that went has nothing any more.
    pub(crate) fn are_low(&self, low: &Low, slots: usize) -> bool {
        let soon = if low.beside { self.soon(slots) } else { usize::MAX };
        let is_low = |tenant: &TenantId| {
            let (lane, held) = (self.lanes.get(tenant), self.held_of(*tenant));
            let running_max = lane.map_or(usize::MAX, |lane| lane.running_max).min(self.running_max);
            let mark = lane.map_or(Some(0), |lane| lane.mark);
            mark.is_none_or(|mark| held.waiting <= mark) && (!low.beside || held.room(running_max, soon) > 0)
        };
        let in_all = low.mark.is_some_and(|mark| self.waiting <= mark);
        soon > 0 && (in_all || low.capped.iter().any(is_low))
    }

    /// Whether they may be low since this tenant's lane lost a task, or an attempt of it ended.
    pub(super) fn may_be_low_by(&self, tenant: TenantId) -> bool {
        let is_low = |lane: &Lane<T>| lane.mark.is_some_and(|mark| lane.waiting.len() <= mark);
        self.mark.is_some_and(|mark| self.waiting <= mark) || self.lanes.get(&tenant).is_some_and(is_low)
    }

    /// It is that second now.
    pub(super) fn go_on(&mut self, second: u64) {
        if self.second < second {
            self.second = second;
            self.ended_of.retain(|_, ended| ended.count(second) > 0);
        }
    }

    /// Tasks of all tenants that could begin at once, where workers have room for so many more attempts.
    fn free(&self, slots: usize) -> usize {
        let room = self.running_max.saturating_sub(self.running).min(slots);
        if self.alone_runs || !self.alone.is_empty() { 0 } else { room }
    }

    /// How many tasks are likely to begin within a second.
    fn soon(&self, slots: usize) -> usize {
        self.free(slots).max(self.ended.count(self.second))
    }

    /// Whether some of what is leased now would wait: something does, or a tenant or the host runs as much as it may.
    pub(super) fn is_full(&self, slots: usize) -> bool {
        self.waiting > 0
            || self.free(slots) == 0
            || self.lanes.values().any(|lane| lane.running >= lane.running_max)
    }

    fn keep_what_is_left(&mut self) {
        self.lanes.retain(|_, lane| lane.running > 0 || !lane.is_empty());
        let lanes = &self.lanes;
        self.turns.retain(|tenant| lanes.get(tenant).is_some_and(|lane| !lane.is_empty()));
    }

    /// Whether anything waits.
    pub(super) fn has_more(&self) -> bool {
        self.waiting + self.offered > 0
    }

    /// Tasks that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Runs that wait.
    pub(crate) fn offered(&self) -> usize {
        self.offered
    }

    /// Tasks and runs that run.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// What is here of each tenant.
    pub(crate) fn held(&self) -> BTreeMap<TenantId, Held> {
        let tenants = self.lanes.keys().chain(self.ended_of.keys());
        let mut alone: BTreeMap<TenantId, usize> = tenants.map(|tenant| (*tenant, 0)).collect();
        self.alone.iter().for_each(|(tenant, _)| *alone.entry(*tenant).or_default() += 1);
        alone.into_iter().map(|(tenant, alone)| (tenant, self.held_with(tenant, alone))).collect()
    }

    fn held_of(&self, tenant: TenantId) -> Held {
        self.held_with(tenant, self.alone.iter().filter(|(other, _)| *other == tenant).count())
    }

    /// What is here of a tenant, of whose tasks so many wait to run alone.
    fn held_with(&self, tenant: TenantId, alone: usize) -> Held {
        let lane = self.lanes.get(&tenant).map(|lane| (lane.waiting.len(), lane.running));
        let (waiting, running) = lane.unwrap_or_default();
        let ended = self.ended_of.get(&tenant).map_or(0, |ended| ended.count(self.second));
        Held { waiting: waiting + alone, running, ended }
    }

    /// What is here, where workers have room for so many more attempts.
    pub(super) fn load(&self, slots: usize) -> Load {
        Load { waiting: self.waiting, bytes: self.bytes, soon: self.soon(slots), held: self.held() }
    }
}

/// Takes those out of a row that are to go.
fn take_of<K, T>(row: &mut VecDeque<(K, T)>, goes: impl Fn(&K, &T) -> bool) -> Vec<T> {
    let (gone, left): (VecDeque<_>, VecDeque<_>) = row.drain(..).partition(|(key, item)| goes(key, item));
    *row = left;
    gone.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn size(item: &u32) -> usize {
        *item as usize
    }

    fn held(lanes: &Lanes<u32>) -> BTreeMap<TenantId, usize> {
        let counts = lanes.held().into_iter().map(|(tenant, held)| (tenant, held.count()));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn pops(lanes: &mut Lanes<u32>) -> Vec<u32> {
        std::iter::from_fn(|| lanes.pop().map(|(_, item)| item)).collect()
    }

    #[test]
    fn tenants_take_turns_whatever_was_pushed_first() {
        let mut lanes = Lanes::new(100, size);
        for item in 0..3 {
            lanes.push(A, 100, false, 0, item);
        }
        lanes.push(B, 100, false, 0, 10);
        lanes.push(B, 100, false, 0, 11);
        assert_eq!(pops(&mut lanes), [0, 10, 1, 11, 2]);
        assert_eq!((lanes.waiting(), lanes.running()), (0, 5));
    }

    #[test]
    fn a_lane_goes_by_place() {
        let mut lanes = Lanes::new(100, size);
        for (place_ms, item) in [(5, 1), (5, 2), (3, 3), (9, 4), (4, 5)] {
            lanes.push(A, 100, false, place_ms, item);
        }
        lanes.push(B, 100, false, 100, 10);
        assert_eq!(pops(&mut lanes), [3, 10, 5, 1, 2, 4]);
    }

    #[test]
    fn a_tenant_at_its_limit_blocks_only_itself() {
        let mut lanes = Lanes::new(100, size);
        for item in 0..3 {
            lanes.push(A, 1, false, 0, item);
        }
        lanes.push(B, 100, false, 0, 10);
        assert_eq!(pops(&mut lanes), [0, 10]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [1]);
        assert_eq!(held(&lanes)[&A], 2);
    }

    #[test]
    fn the_host_runs_no_more_than_its_limit() {
        let mut lanes = Lanes::new(2, size);
        for item in 0..4 {
            lanes.push(A, 100, false, 0, item);
        }
        assert_eq!(pops(&mut lanes), [0, 1]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [2]);
    }

    #[test]
    fn a_task_that_runs_alone_has_nothing_beside_it() {
        let mut lanes = Lanes::new(100, size);
        lanes.push(A, 100, false, 0, 1);
        assert_eq!(pops(&mut lanes), [1]);
        lanes.push(B, 100, true, 0, 7);
        lanes.push(A, 100, false, 0, 2);
        assert_eq!(pops(&mut lanes), [] as [u32; 0], "waits for what runs");
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [7]);
        lanes.done(B);
        assert_eq!(pops(&mut lanes), [2]);
    }

    #[test]
    fn lanes_are_low_by_their_mark_or_by_that_of_a_tenant_who_had_all_it_may() {
        let mut lanes = Lanes::new(100, size);
        for item in 0..4 {
            lanes.push(A, 1, false, 0, item);
            lanes.push(B, 100, false, 0, 10 + item);
        }
        let in_all = Low { mark: Some(1), capped: Vec::new(), beside: false };
        let low = Low { capped: vec![A], ..in_all };
        lanes.mark(&low);
        let mut seen = Vec::new();
        while let Some((tenant, item)) = lanes.pop() {
            let are_low = (lanes.are_low(&low, 0), lanes.are_low(&in_all, 0));
            seen.push((item, are_low.0, are_low.1, lanes.may_be_low_by(tenant)));
            if tenant == A {
                lanes.done(A);
            }
        }
        let before = [(0, false, false, false), (10, false, false, false)];
        let by_lane = [
            (1, true, false, true),
            (11, true, false, false),
            (2, true, false, true),
            (12, true, false, false),
        ];
        assert_eq!(seen, [&before[..], &by_lane, &[(3, true, true, true), (13, true, true, true)]].concat());
        assert!(lanes.are_low(&low, 0) && !held(&lanes).contains_key(&A), "a lane that is gone is low");
    }

    #[test]
    fn clearing_leaves_only_what_runs() {
        let mut lanes = Lanes::new(1, size);
        for item in 0..3 {
            lanes.push(A, 100, item == 2, 0, item);
        }
        assert_eq!(pops(&mut lanes), [2]);
        assert_eq!(lanes.clear(), [0, 1]);
        assert_eq!((lanes.waiting(), lanes.running()), (0, 1));
        lanes.done(A);
        assert!(held(&lanes).is_empty() && lanes.lanes.is_empty());
    }

    #[test]
    fn what_is_taken_out_leaves_the_others_in_their_order() {
        let mut lanes = Lanes::new(100, size);
        for item in 0..4 {
            lanes.push(A, 100, false, 0, item);
        }
        lanes.push(B, 100, false, 0, 10);
        lanes.push(B, 100, true, 0, 7);
        assert_eq!(lanes.tasks().copied().collect::<Vec<_>>(), [7, 0, 1, 2, 3, 10]);
        assert_eq!(lanes.take(|item| [0, 2, 7, 10].contains(item)), [7, 0, 2, 10]);
        assert_eq!((lanes.waiting(), held(&lanes)), (2, [(A, 2)].into()));
        assert!(lanes.take(|_| false).is_empty());
        assert_eq!(pops(&mut lanes), [1, 3]);
    }

    #[test]
    fn what_has_waited_for_more_than_a_second_may_go_unless_it_runs_alone() {
        let mut lanes = Lanes::new(100, size);
        lanes.push(A, 100, false, 5, 1);
        lanes.push(B, 100, true, 0, 7);
        lanes.go_on(1);
        lanes.push(A, 100, false, 0, 2);
        lanes.push(B, 100, false, 0, 3);
        assert!(lanes.take_late(|_| true).is_empty());
        lanes.go_on(2);
        assert!(lanes.take_late(|item| *item != 1).is_empty());
        assert_eq!((lanes.take_late(|_| true), lanes.waiting(), lanes.load(0).bytes), (vec![1], 3, 12));
        lanes.go_on(9);
        assert_eq!(lanes.take_late(|item| *item != 3), [2]);
        assert_eq!(pops(&mut lanes), [7]);
        lanes.done(B);
        assert_eq!(pops(&mut lanes), [3]);
    }

    #[test]
    fn lanes_know_the_bytes_of_what_waits() {
        let mut lanes = Lanes::new(2, size);
        for item in [100, 20, 3] {
            lanes.push(A, 100, false, 0, item);
        }
        lanes.push(B, 100, true, 0, 4_000);
        lanes.offer(A, 100, 50_000).unwrap();
        let mut seen = vec![lanes.load(0).bytes];
        assert_eq!(pops(&mut lanes), [4_000]);
        seen.push(lanes.load(0).bytes);
        lanes.done(B);
        assert_eq!(pops(&mut lanes), [50_000, 100]);
        seen.push(lanes.load(0).bytes);
        lanes.take(|item| *item == 20);
        seen.push(lanes.load(0).bytes);
        lanes.clear();
        assert_eq!([&seen[..], &[lanes.load(0).bytes]].concat(), [4_123, 123, 23, 3, 0]);
    }

    #[test]
    fn what_begins_soon_is_what_has_a_place_or_as_much_as_ended_lately() {
        let mut lanes = Lanes::new(4, size);
        let soon = |lanes: &Lanes<u32>| (lanes.load(0).soon, lanes.load(3).soon, lanes.load(9).soon);
        assert_eq!((soon(&lanes), lanes.is_full(9)), ((0, 3, 4), false));
        assert!(lanes.is_full(0), "no worker has room");
        for item in 0..3 {
            lanes.push(A, 3, false, 0, item);
        }
        pops(&mut lanes);
        assert_eq!((soon(&lanes), lanes.is_full(9)), ((0, 1, 1), true), "the tenant runs all it may");
        lanes.done(A);
        lanes.done(A);
        assert_eq!((soon(&lanes), lanes.is_full(9)), ((2, 3, 3), false));
        lanes.push(B, 3, true, 0, 7);
        assert_eq!(soon(&lanes), (2, 2, 2), "what waits for the rest to end has all places");
        lanes.go_on(2);
        assert_eq!(soon(&lanes), (0, 0, 0));
    }

    #[test]
    fn what_ended_of_a_tenant_is_known_though_its_lane_is_gone() {
        let mut lanes = Lanes::new(4, size);
        for _ in 0..3 {
            lanes.push(A, 1, false, 0, 1);
            pops(&mut lanes);
            lanes.done(A);
        }
        assert!(lanes.lanes.is_empty());
        assert_eq!(lanes.load(4).held[&A].room(1, 4), 3, "more than run at once, for they are short");
        lanes.go_on(2);
        assert!(lanes.load(4).held.is_empty());
    }

    #[test]
    fn what_waits_to_run_alone_is_its_tenants_though_their_lanes_are_gone() {
        let mut lanes = Lanes::new(4, size);
        lanes.push(A, 1, false, 0, 1);
        assert_eq!(pops(&mut lanes), [1]);
        for (tenant, item) in [(A, 7), (B, 8), (A, 9)] {
            lanes.push(tenant, 1, true, 0, item);
        }
        let of = |waiting, running, ended| Held { waiting, running, ended };
        assert_eq!(lanes.held(), BTreeMap::from([(A, of(2, 1, 0)), (B, of(1, 0, 0))]));
        lanes.done(A);
        assert!(lanes.take(|_| false).is_empty() && lanes.lanes.is_empty());
        assert_eq!(lanes.held(), BTreeMap::from([(A, of(2, 0, 1)), (B, of(1, 0, 0))]));
        assert_eq!((lanes.held_of(A), lanes.held_of(B)), (of(2, 0, 1), of(1, 0, 0)));
    }

    #[test]
    fn beside_others_lanes_are_low_when_more_is_likely_to_begin_than_waits() {
        let mut lanes = Lanes::new(3, size);
        for item in 0..2 {
            lanes.push(A, 2, false, 0, item);
        }
        let in_all = Low { mark: Some(0), capped: Vec::new(), beside: true };
        let by_tenant = Low { mark: None, capped: vec![A], beside: true };
        let are_low =
            |lanes: &Lanes<u32>, slots| (lanes.are_low(&in_all, slots), lanes.are_low(&by_tenant, slots));
        lanes.mark(&by_tenant);
        assert_eq!(are_low(&lanes, 9), (false, false));
        pops(&mut lanes);
        assert_eq!(are_low(&lanes, 9), (true, false), "another tenant may have a task");
        assert_eq!(are_low(&lanes, 0), (false, false));
        lanes.done(A);
        assert_eq!((are_low(&lanes, 9), are_low(&lanes, 0)), ((true, true), (true, true)));
        lanes.go_on(2);
        assert_eq!((are_low(&lanes, 9), are_low(&lanes, 0)), ((true, true), (false, false)));
        // It waits for what runs, and everybody for it.
        lanes.push(A, 2, true, 0, 7);
        assert_eq!(are_low(&lanes, 9), (false, false));
    }

    #[test]
    fn a_run_goes_before_its_tenants_tasks_and_takes_its_tenants_turns() {
        let mut lanes = Lanes::new(100, size);
        for item in 0..3 {
            lanes.push(A, 100, false, 0, item);
            lanes.push(B, 100, false, 0, 10 + item);
        }
        lanes.offer(B, 100, 20).unwrap();
        lanes.offer(B, 100, 21).unwrap();
        assert_eq!((lanes.waiting(), held(&lanes)[&B]), (6, 3), "a run is no leased task");
        assert_eq!(pops(&mut lanes), [0, 20, 1, 21, 2, 10, 11, 12]);
        assert_eq!((lanes.waiting(), lanes.running(), lanes.has_more()), (0, 8, false));
    }

    #[test]
    fn as_many_runs_wait_as_may_run() {
        let mut lanes = Lanes::new(3, size);
        assert!(lanes.offer(A, 2, 0).is_ok() && lanes.offer(A, 2, 1).is_ok());
        assert_eq!(lanes.offer(A, 2, 2), Err(Full::Tenant(2)));
        assert!(lanes.offer(B, 2, 3).is_ok());
        assert_eq!(lanes.offer(B, 2, 4), Err(Full::Host(3)));
        assert_eq!(pops(&mut lanes), [0, 3, 1]);
        assert!(lanes.offer(B, 2, 5).is_ok(), "what runs leaves its place among those that wait");
        assert_eq!(pops(&mut lanes), [] as [u32; 0]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [5]);
    }

    #[test]
    fn a_run_that_is_withdrawn_leaves_nothing_behind() {
        let mut lanes = Lanes::new(3, size);
        let first = lanes.offer(A, 1, 0).unwrap();
        assert_eq!(lanes.withdraw(first), Some(0));
        assert!(lanes.lanes.is_empty() && lanes.turns.is_empty() && !lanes.has_more());
        lanes.push(A, 1, false, 0, 1);
        let second = lanes.offer(A, 1, 2).unwrap();
        assert_eq!(lanes.withdraw(first), None, "its ticket is nobody else's");
        assert_eq!(lanes.withdraw(second), Some(2));
        assert_eq!(pops(&mut lanes), [1]);
        let third = lanes.offer(A, 1, 3).unwrap();
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [3]);
        assert_eq!(lanes.withdraw(third), None, "it runs");
    }

    #[test]
    fn runs_and_tasks_are_cleared_apart() {
        let mut lanes = Lanes::new(3, size);
        lanes.push(A, 1, false, 0, 1);
        lanes.offer(A, 1, 2).unwrap();
        lanes.offer(B, 1, 3).unwrap();
        assert_eq!(lanes.clear(), [1]);
        assert_eq!(pops(&mut lanes), [2, 3]);
        lanes.offer(A, 1, 4).unwrap();
        lanes.push(A, 1, false, 0, 5);
        assert_eq!(lanes.clear_offered(), [4]);
        lanes.done(A);
        assert_eq!(pops(&mut lanes), [5]);
    }
}
