//! Processors, items and batches.

mod ports;

use std::collections::{BTreeMap, BTreeSet};

use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{
    Add, Added, BatchSettlement, DeadLetter, Group, Item, ItemView, LeasedBatch, NewItem, Processor,
    ProcessorCounts, Waiting,
};
use keiko_core::effect::Effects;
use keiko_core::id::{BatchId, Holder, ItemId, ProcessorId, TaskId, TenantId, Token};
use keiko_core::name::ProcessorName;
use keiko_core::outcome::Failure;
use keiko_core::port::{DeadChanged, FormRequest, Formed, FoundGroup, StoreError};
use keiko_core::task::{Payload, Settled};

use super::mutation::Mutation;
use super::state::{State, refused};
use crate::gather::{self, Candidate, Ends, WaitingChanges};
use crate::stored::last_statuses;

/// Everything about batches.
#[derive(Default)]
pub(super) struct Batches {
    last: i64,
    processors: BTreeMap<ProcessorId, Processor>,
    items: BTreeMap<ItemId, ItemRow>,
    batches: BTreeMap<BatchId, BatchRow>,
    dead: BTreeMap<ItemId, (TenantId, ProcessorId, DeadLetter)>,
    rows: BTreeMap<ItemId, (TenantId, ProcessorId, ItemView)>,
    waiting: BTreeMap<TenantId, (i64, i64)>,
}

#[derive(Clone)]
struct ItemRow {
    tenant: TenantId,
    processor: ProcessorId,
    key: String,
    place: i64,
    created_ms: i64,
    due_ms: i64,
    attempts: u32,
    payload: Payload,
}

impl ItemRow {
    fn size(&self) -> i64 {
        keiko_core::batch::size(&self.key, &self.payload) as i64
    }
}

struct BatchRow {
    group: Group,
    ordered: bool,
    holder: Holder,
    token: Token,
    crashes: u32,
    items: Vec<i64>,
}

impl State {
    fn ensure_processors(&mut self, tenant: TenantId, names: &[ProcessorName]) -> Vec<Processor> {
        let batches = &mut self.batches;
        let ensure = |name: &ProcessorName| {
            let found = batches.processors.values().find(|row| row.tenant == tenant && row.name == *name);
            if let Some(found) = found {
                return found.clone();
            }
            batches.last += 1;
            let row = Processor { id: ProcessorId(batches.last), tenant, name: name.clone(), stopped: None };
            batches.processors.insert(row.id, row.clone());
            row
        };
        names.iter().map(ensure).collect()
    }

    fn add_items(&mut self, adds: &[Add], now_ms: i64) -> Result<Vec<Added>, StoreError> {
        let named: Vec<_> = adds.iter().filter_map(|add| Some((add.tenant, add.key.as_ref()?))).collect();
        let mut keys = self.known_keys(&named);
        let mut waiting: BTreeMap<TenantId, Waiting> = BTreeMap::new();
        let (mut items, mut answers) = (Vec::new(), Vec::new());
        for add in adds {
            let mut add = add.clone();
            if self.breaks(Mutation::AddKeyIgnored) {
                add.key = None;
            }
            if self.breaks(Mutation::AddUnbounded) {
                (add.items_max, add.bytes_max) = (u64::MAX, u64::MAX);
            }
            let sum = waiting.entry(add.tenant).or_insert_with(|| self.waits(add.tenant));
            let answer = gather::decide(&add, now_ms, &mut keys, sum);
            if let Added::Accepted { duplicate: false, .. } = answer {
                items.extend(add.items.iter().map(|item| (add.tenant, item.clone())));
            }
            if matches!(answer, Added::QueueFull(_)) && self.breaks(Mutation::AddInPart) {
                items.extend(add.items.iter().take(1).map(|item| (add.tenant, item.clone())));
            }
            answers.push(answer);
        }
        let items: Vec<_> = items.iter().map(|(tenant, item)| (*tenant, item)).collect();
        self.insert_items(&items, WaitingChanges::default())?;
        self.store_keys(&keys);
        Ok(answers)
    }

    /// Writes items, all or none, and counts them with what changes beside them.
    /// Whether what a batch asked for would be taken.
    fn accepts(&self, tenant: TenantId, effects: &Effects) -> bool {
        let items: Vec<_> = effects.items.iter().map(|item| (tenant, item)).collect();
        self.breaks(Mutation::RefusalUnseen) || self.check_items(&items).is_ok()
    }

    fn check_items(&self, items: &[(TenantId, &NewItem)]) -> Result<(), StoreError> {
        let any = self.breaks(Mutation::ItemsOfAnyProcessor);
        let mut ids = BTreeSet::new();
        for (tenant, item) in items {
            let row = self.batches.processors.get(&item.processor);
            if !row.is_some_and(|row| row.tenant == *tenant || any) {
                return Err(refused("an item's processor is not its tenant's"));
            }
            if self.batches.items.contains_key(&item.id) || !ids.insert(item.id) {
                return Err(refused("an item's id is another's already"));
            }
        }
        Ok(())
    }

    pub(super) fn insert_items(
        &mut self,
        items: &[(TenantId, &NewItem)],
        mut changes: WaitingChanges,
    ) -> Result<(), StoreError> {
        self.check_items(items)?;
        for (tenant, item) in items {
            let row = ItemRow {
                tenant: *tenant,
                processor: item.processor,
                key: item.key.clone(),
                place: item.id.0,
                created_ms: item.created_ms,
                due_ms: item.created_ms,
                attempts: 0,
                payload: item.payload.clone(),
            };
            self.batches.items.insert(item.id, row);
        }
        changes.add_items(items);
        self.count_items(&changes);
        Ok(())
    }

    fn count_items(&mut self, changes: &WaitingChanges) {
        if self.breaks(Mutation::ItemsUncounted) {
            return;
        }
        for (tenant, items, bytes) in changes.rows() {
            let sum = self.batches.waiting.entry(TenantId(tenant)).or_default();
            *sum = (sum.0 + items, sum.1 + bytes);
        }
    }

    fn waits(&self, tenant: TenantId) -> Waiting {
        let (items, bytes) = self.batches.waiting.get(&tenant).copied().unwrap_or_default();
        Waiting { items: items.max(0) as u64, bytes: bytes.max(0) as u64 }
    }

    fn form(&mut self, request: &FormRequest) -> Formed {
        let FormRequest { holder, id, form, now_ms } = request;
        let group = &form.group;
        let none = |left, lost| Formed { batch: None, left, lost };
        if !self.holders.contains_key(holder) && !self.breaks(Mutation::FormForAnyone) {
            return none(Left::Nothing, true);
        }
        let row = self.batches.processors.get(&group.processor).filter(|row| row.tenant == group.tenant);
        let works = |row: &Processor| row.stopped.is_none() || self.breaks(Mutation::FormThoughStopped);
        if !row.is_some_and(works) {
            return none(Left::Nothing, false);
        }
        let mut others = self.batches.batches.values().filter(|batch| batch.group == *group);
        let may_be_two = self.breaks(Mutation::OrderedTwice);
        if form.ordered && others.any(|batch| batch.ordered) && !may_be_two {
            return none(Left::Blocked, false);
        }
        let (candidates, next_ms) = self.candidates(form, *now_ms);
        let form = self.broken_form(form);
        let gathered = gather::gather(&candidates, &form, *now_ms);
        let left = gathered.left.unwrap_or_else(|| gather::left(gathered.at_ms, next_ms));
        let left = if self.breaks(Mutation::LeftForgotten) { Left::Nothing } else { left };
        if gathered.ids.is_empty() {
            return none(left, false);
        }
        let row = BatchRow {
            group: group.clone(),
            ordered: form.ordered,
            holder: *holder,
            token: Token(1),
            crashes: 0,
            items: gathered.ids.clone(),
        };
        self.batches.batches.insert(*id, row);
        let items = self.load(&gathered.ids);
        let batch = LeasedBatch { id: *id, group: group.clone(), token: Token(1), crashes: 0, items };
        Formed { batch: Some(batch), left, lost: false }
    }

    /// The form, with limits that are not kept.
    fn broken_form(&self, form: &Form) -> Form {
        let mut form = form.clone();
        if self.breaks(Mutation::BatchOneMore) {
            form.items_max += 1;
        }
        if self.breaks(Mutation::BatchBytesUnbounded) {
            form.bytes_max = u64::MAX;
        }
        if self.breaks(Mutation::FormedTooEarly) {
            form.age_ms = 0;
        }
        if self.breaks(Mutation::AgeIgnored) {
            form.age_ms = u64::MAX;
        }
        form
    }

    /// The first items of a group in the order of their places, and when the first is due that is not.
    fn candidates(&self, form: &Form, now_ms: i64) -> (Vec<Candidate>, Option<i64>) {
        let taken: BTreeSet<i64> = match self.breaks(Mutation::ItemInTwoBatches) {
            true => BTreeSet::new(),
            false => self.batches.batches.values().flat_map(|batch| batch.items.iter().copied()).collect(),
        };
        let group = &form.group;
        let any_key = self.breaks(Mutation::KeysMixed);
        let of_group = |row: &&ItemRow| row.processor == group.processor && (any_key || row.key == group.key);
        let rows = self.batches.items.iter().filter(|(_, row)| of_group(row));
        let mut rows: Vec<_> = rows.filter(|(id, _)| !taken.contains(&id.0)).collect();
        let next_ms = rows.iter().map(|(_, row)| row.due_ms).filter(|due_ms| *due_ms > now_ms).min();
        rows.sort_by_key(|(id, row)| (row.place, **id));
        let all = form.ordered && !self.breaks(Mutation::OrderedSkipsWaiting);
        let waits = self.breaks(Mutation::FormedBeforeDue);
        rows.retain(|(_, row)| all || waits || row.due_ms <= now_ms);
        if self.breaks(Mutation::NewestItemsFirst) {
            rows.reverse();
        }
        rows.truncate(usize::try_from(gather::wanted(form)).unwrap_or(usize::MAX));
        let candidate = |(id, row): &(&ItemId, &ItemRow)| Candidate {
            id: id.0,
            place: row.place,
            created_ms: row.created_ms,
            due_ms: if waits { i64::MIN } else { row.due_ms },
            attempts: row.attempts,
            size: row.size() as u64,
            in_segment: false,
        };
        (rows.iter().map(candidate).collect(), next_ms)
    }

    fn load(&self, ids: &[i64]) -> Vec<Item> {
        let item = |id: &i64| {
            let row = self.batches.items.get(&ItemId(*id))?;
            let attempts = if self.breaks(Mutation::ItemForgetsAttempts) { 0 } else { row.attempts };
            let payload = row.payload.clone();
            Some(Item { id: ItemId(*id), payload, created_ms: row.created_ms, attempts })
        };
        ids.iter().filter_map(item).collect()
    }

    fn take_over(&mut self, holder: Holder, room: usize) -> Vec<LeasedBatch> {
        if !self.holders.contains_key(&holder) {
            return Vec::new();
        }
        let living = self.breaks(Mutation::TakeOverOfTheLiving);
        let stopped = |row: &BatchRow| {
            self.batches.processors.get(&row.group.processor).is_some_and(|row| row.stopped.is_some())
        };
        let orphan = |(_, row): &(&BatchId, &BatchRow)| {
            (living || !self.holders.contains_key(&row.holder)) && !stopped(row)
        };
        let ids: Vec<BatchId> =
            self.batches.batches.iter().filter(orphan).map(|(id, _)| *id).take(room).collect();
        let growth = i64::from(!self.breaks(Mutation::TakeOverWithoutToken));
        let mut taken = Vec::new();
        for id in ids {
            let Some(row) = self.batches.batches.get_mut(&id) else { continue };
            row.holder = holder;
            row.token.0 += growth;
            let (group, token, crashes, ids) = (row.group.clone(), row.token, row.crashes, row.items.clone());
            taken.push(LeasedBatch { id, group, token, crashes, items: self.load(&ids) });
        }
        taken
    }

    /// Who works a batch under this token.
    pub(super) fn batch_holder(&self, id: TaskId, token: Token) -> Option<Holder> {
        let row = self.batches.batches.get(&BatchId(id.0)).filter(|row| row.token == token)?;
        Some(row.holder)
    }

    /// Charges batches a crash that were being worked when their host died.
    pub(super) fn charge_batches(&mut self, started: &[(TaskId, Token)]) {
        if self.breaks(Mutation::BatchCrashUncharged) {
            return;
        }
        for (id, token) in started {
            let Some(row) = self.batches.batches.get_mut(&BatchId(id.0)) else { continue };
            if row.token == *token && !self.holders.contains_key(&row.holder) {
                row.crashes += 1;
            }
        }
    }

    fn settle_batches(
        &mut self,
        holder: Holder,
        settlements: &[BatchSettlement],
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let mut ends = Ends::default();
        let (mut answers, mut statuses, mut over) = (Vec::new(), Vec::new(), BTreeSet::new());
        for one in settlements {
            let row = self.batches.batches.get(&one.id).filter(|row| self.holds_batch(holder, one, row));
            let Some(row) = row.filter(|_| over.insert(one.id)) else {
                if self.breaks(Mutation::BatchEffectsThoughStale) {
                    ends.items.extend(one.effects.items.iter().map(|item| (one.tenant, item)));
                }
                answers.push(Settled::Stale);
                continue;
            };
            ends.add(one, &row.items, row.ordered);
            if self.breaks(Mutation::UnnamedItemLost) {
                let named: BTreeSet<i64> = one.ends.iter().map(|(id, _)| id.0).collect();
                ends.gone.extend(row.items.iter().filter(|id| !named.contains(id)));
            }
            statuses.extend(one.effects.statuses.iter().map(|change| (one.tenant, *change)));
            answers.push(Settled::Stored);
        }
        if self.breaks(Mutation::BatchEffectsLost) {
            ends.items.clear();
        }
        self.write_ends(&ends, now_ms)?;
        self.batches.batches.retain(|id, _| !over.contains(id));
        for (agent, tenant, status) in last_statuses(statuses) {
            self.set_status(TenantId(tenant), keiko_core::id::AgentId(agent), status, now_ms);
        }
        Ok(answers)
    }

    fn holds_batch(&self, holder: Holder, one: &BatchSettlement, row: &BatchRow) -> bool {
        let tenant = row.group.tenant == one.tenant || self.breaks(Mutation::SettlesBatchesForOthers);
        let token = row.token == one.token || self.breaks(Mutation::BatchFenceByHolderOnly);
        let holder = row.holder == holder || self.breaks(Mutation::BatchFenceByTokenOnly);
        tenant && token && holder
    }

    fn write_ends(&mut self, ends: &Ends<'_>, now_ms: i64) -> Result<(), StoreError> {
        let mut changes = WaitingChanges::default();
        if !self.breaks(Mutation::RowsNotKept) {
            for id in ends.kept.iter().map(|id| ItemId(*id)) {
                let Some(row) = self.batches.items.get(&id) else { continue };
                let view = ItemView { attempts: 0, ..view(id, row) };
                self.batches.rows.insert(id, (row.tenant, row.processor, view));
            }
        }
        for (id, failure) in &ends.dead {
            self.bury(ItemId(*id), failure, now_ms);
        }
        for id in ends.gone.iter().map(|id| ItemId(*id)) {
            let Some(row) = self.batches.items.get(&id) else { continue };
            changes.add(row.tenant, -1, -row.size());
            if !self.breaks(Mutation::DoneItemStays) {
                self.batches.items.remove(&id);
            }
        }
        let (at_once, lost) = (self.breaks(Mutation::ItemDueAtOnce), self.breaks(Mutation::RetriedItemLost));
        let uncharged = self.breaks(Mutation::ItemAttemptUncounted);
        for (id, place, due_ms) in &ends.again {
            let Some(row) = self.batches.items.get_mut(&ItemId(*id)) else { continue };
            row.attempts += u32::from(!uncharged);
            row.place = place.unwrap_or(row.place);
            row.due_ms = if at_once { now_ms } else { *due_ms };
            if lost {
                self.batches.items.remove(&ItemId(*id));
            }
        }
        self.insert_items(&ends.items, changes)
    }

    fn bury(&mut self, id: ItemId, failure: &Failure, now_ms: i64) {
        let Some(row) = self.batches.items.get(&id).filter(|_| !self.breaks(Mutation::DeadLetterLost)) else {
            return;
        };
        let mut failure = failure.clone();
        if self.breaks(Mutation::DeadLetterDetailLost) {
            failure = Failure::new(failure.code, failure.message);
        }
        let ItemView { id, key, payload, created_ms, attempts } = view(id, row);
        let letter =
            DeadLetter { id, key, payload, created_ms, dead_ms: now_ms, attempts: attempts + 1, failure };
        self.batches.dead.insert(id, (row.tenant, row.processor, letter));
    }

    /// Takes dead letters out: one, or the first of a processor.
    fn take_dead(
        &mut self,
        tenant: TenantId,
        processor: ProcessorId,
        id: Option<ItemId>,
        limit: u32,
    ) -> Vec<DeadLetter> {
        let any = self.breaks(Mutation::DeadForOthers);
        let meant = self.batches.dead.iter().filter(|(at, (of_tenant, of_processor, _))| {
            (any || *of_tenant == tenant) && *of_processor == processor && id.is_none_or(|id| id == **at)
        });
        let ids: Vec<ItemId> = meant.map(|(id, _)| *id).take(limit as usize).collect();
        let keep = self.breaks(Mutation::DeadLetterStays);
        let take = |id: &ItemId| match keep {
            true => self.batches.dead.get(id).map(|(.., letter)| letter.clone()),
            false => self.batches.dead.remove(id).map(|(.., letter)| letter),
        };
        ids.iter().filter_map(take).collect()
    }

    fn retry_dead(
        &mut self,
        tenant: TenantId,
        processor: ProcessorId,
        letters: Vec<DeadLetter>,
        now_ms: i64,
    ) -> DeadChanged {
        let changed = sum(&letters);
        for DeadLetter { id, key, payload, created_ms, attempts, .. } in letters {
            let attempts = if self.breaks(Mutation::RevivedKeepsAttempts) { attempts } else { 0 };
            let row = ItemRow {
                tenant,
                processor,
                key,
                place: id.0,
                created_ms,
                due_ms: now_ms,
                attempts,
                payload,
            };
            self.batches.items.insert(id, row);
        }
        let mut changes = WaitingChanges::default();
        changes.add(tenant, changed.count as i64, changed.bytes as i64);
        if !self.breaks(Mutation::RevivedUncounted) {
            self.count_items(&changes);
        }
        changed
    }

    fn found_groups(&self, after: Option<(ProcessorId, String)>, limit: u32) -> Vec<FoundGroup> {
        let mut groups: BTreeMap<(ProcessorId, String), FoundGroup> = BTreeMap::new();
        let mut rows: Vec<_> = self.batches.items.iter().collect();
        rows.sort_by_key(|(id, row)| (row.place, **id));
        for (_, row) in rows {
            let group = Group { tenant: row.tenant, processor: row.processor, key: row.key.clone() };
            let found = FoundGroup { group, oldest_ms: row.created_ms };
            groups.entry((row.processor, row.key.clone())).or_insert(found);
        }
        let repeat = self.breaks(Mutation::GroupsRepeatTheirEdge);
        let behind = |(at, _): &(&(ProcessorId, String), _)| match &after {
            Some(after) if repeat => *at >= after,
            Some(after) => *at > after,
            None => true,
        };
        groups.iter().filter(behind).map(|(_, found)| found.clone()).take(limit as usize).collect()
    }

    fn counted(&self, tenant: TenantId) -> Vec<(Processor, ProcessorCounts)> {
        let any = self.breaks(Mutation::ProcessorsForOthers);
        let mut rows: Vec<Processor> =
            self.batches.processors.values().filter(|row| any || row.tenant == tenant).cloned().collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        let counts = |id: ProcessorId| {
            let items = || self.batches.items.values().filter(|row| row.processor == id);
            ProcessorCounts {
                items: items().count() as u64,
                oldest_ms: items().map(|row| row.created_ms).min(),
                batches: self.batches.batches.values().filter(|row| row.group.processor == id).count() as u64,
                dead: self.batches.dead.values().filter(|(_, of, _)| *of == id).count() as u64,
                rows: self.batches.rows.values().filter(|(_, of, _)| *of == id).count() as u64,
            }
        };
        rows.into_iter().map(|row| (row.clone(), counts(row.id))).collect()
    }
}

fn view(id: ItemId, row: &ItemRow) -> ItemView {
    let (key, payload) = (row.key.clone(), row.payload.clone());
    ItemView { id, key, payload, created_ms: row.created_ms, attempts: row.attempts }
}

fn sum(letters: &[DeadLetter]) -> DeadChanged {
    let bytes = letters.iter().map(|letter| keiko_core::batch::size(&letter.key, &letter.payload)).sum();
    DeadChanged { count: letters.len() as u64, bytes }
}

/// Those of a tenant's processor behind one, up to a limit.
fn page<'a, T: Clone + 'a>(
    rows: &'a BTreeMap<ItemId, (TenantId, ProcessorId, T)>,
    (tenant, processor): (Option<TenantId>, ProcessorId),
    after: Option<ItemId>,
    limit: u32,
) -> Vec<T> {
    let behind = rows.range(after.map_or(ItemId(i64::MIN), |after| ItemId(after.0 + 1))..);
    let own = behind.filter(|(_, (of_tenant, of, _))| {
        tenant.is_none_or(|tenant| tenant == *of_tenant) && *of == processor
    });
    own.map(|(_, (.., row))| row.clone()).take(limit as usize).collect()
}
