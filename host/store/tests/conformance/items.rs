//! Random lives of items: whatever they are stored with, each is in one batch at a time, comes whole, and ends once.

use std::collections::{BTreeMap, BTreeSet};

use keiko_core::batch::flush::Why;
use keiko_core::batch::machine::Form;
use keiko_core::batch::{
    Add, Added, BatchSettlement, Group, ItemEnd, LeasedBatch, NewItem, Processor, payload_of, size,
};
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::id::{BatchId, Holder, ItemId};
use keiko_core::outcome::Failure;
use keiko_core::port::FormRequest;
use keiko_core::task::Payload;

use crate::world::{NOW, ROOMY, World};

const SEEDS: u64 = 12;
const STEPS: usize = 60;
/// The key whose items are worked in order.
const ORDERED: &str = "in order";
const KEYS: [&str; 3] = ["", "k", ORDERED];

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn chance(&mut self, one_of: u64) -> bool {
        self.below(one_of) == 0
    }
}

/// An item as it should be.
struct Known {
    key: &'static str,
    payload: Payload,
    due_ms: i64,
    attempts: u32,
}

struct Life<'a> {
    world: &'a World,
    films: Processor,
    holder: Holder,
    numbers: Numbers,
    now_ms: i64,
    items: BTreeMap<ItemId, Known>,
    dead: BTreeSet<ItemId>,
    batches: Vec<LeasedBatch>,
}

pub async fn random_lives_of_items_lose_and_double_none(world: &World) {
    for seed in 0..SEEDS {
        let name = format!("films-{seed}").parse().unwrap();
        let films = world.batches.ensure_processors(world.ada.tenant, &[name]).await.unwrap().remove(0);
        let holder = world.holder().await;
        let (numbers, now_ms) = (Numbers(seed), NOW);
        let (items, dead, batches) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut life = Life { world, films, holder, numbers, now_ms, items, dead, batches };
        for _ in 0..STEPS {
            match life.numbers.below(10) {
                0..3 => life.add().await,
                3..6 => life.form().await,
                6..8 => life.settle().await,
                8 if life.numbers.chance(3) => life.hand_on().await,
                8 => life.try_dead_again().await,
                _ => life.look().await,
            }
            life.now_ms += life.numbers.below(40) as i64;
        }
        life.end().await;
        world.tasks.close_holder(life.holder, life.now_ms).await.unwrap();
    }
}

impl Life<'_> {
    async fn add(&mut self) {
        let count = if self.numbers.chance(4) { 1 } else { 1 + self.numbers.below(250) };
        let first = self.world.tasks.reserve_ids(count as u32, self.now_ms).await.unwrap().first.0;
        let (mut items, mut key) = (Vec::new(), KEYS[self.numbers.below(3) as usize]);
        let changes_often = self.numbers.chance(3);
        for id in first..first + count as i64 {
            if changes_often && self.numbers.chance(3) {
                key = KEYS[self.numbers.below(3) as usize];
            }
            let len = if self.numbers.chance(50) { 40_000 } else { self.numbers.below(60) };
            let mut payload = payload_of(len as usize);
            if self.numbers.chance(5) {
                payload.content_type = "text/plain".to_owned();
            }
            let (due_ms, attempts) = (self.now_ms, 0);
            self.items.insert(ItemId(id), Known { key, payload: payload.clone(), due_ms, attempts });
            let (id, processor, key) = (ItemId(id), self.films.id, key.to_owned());
            items.push(NewItem { id, processor, key, payload, created_ms: self.now_ms });
        }
        let add = Add { tenant: self.films.tenant, items, key: None, items_max: ROOMY, bytes_max: 1 << 40 };
        let added = self.world.batches.add(vec![add], self.now_ms).await.unwrap();
        assert!(matches!(added[..], [Added::Accepted { duplicate: false, .. }]), "{added:?}");
    }

    fn is_taken(&self, id: ItemId) -> bool {
        self.batches.iter().any(|batch| batch.items.iter().any(|item| item.id == id))
    }

    /// Items of a group that are in no batch, in order, and that are due.
    fn ready(&self, key: &str) -> Vec<ItemId> {
        let free = self.items.iter().filter(|(id, item)| item.key == key && !self.is_taken(**id));
        match key == ORDERED {
            true => free.take_while(|(_, item)| item.due_ms <= self.now_ms).map(|(id, _)| *id).collect(),
            false => free.filter(|(_, item)| item.due_ms <= self.now_ms).map(|(id, _)| *id).collect(),
        }
    }

    async fn form(&mut self) {
        let key = KEYS[self.numbers.below(3) as usize];
        let items_max = 1 + self.numbers.below(300);
        let bytes_max = if self.numbers.chance(3) { 1 + self.numbers.below(90_000) } else { 1 << 30 };
        self.form_of(key, items_max, bytes_max).await;
    }

    async fn form_of(&mut self, key: &'static str, items_max: u64, bytes_max: u64) -> bool {
        let ordered = key == ORDERED;
        let group = Group { tenant: self.films.tenant, processor: self.films.id, key: key.to_owned() };
        let form = Form { group, why: Why::Requested, items_max, bytes_max, age_ms: 1_000, ordered };
        let id = BatchId(self.world.tasks.reserve_ids(1, self.now_ms).await.unwrap().first.0);
        let request = FormRequest { holder: self.holder, id, form, now_ms: self.now_ms };
        let formed = self.world.batches.form(request).await.unwrap();
        let ready = self.ready(key);
        let is_blocked = ordered && self.batches.iter().any(|batch| batch.group.key == key);
        let Some(batch) = formed.batch else {
            assert!(ready.is_empty() || is_blocked, "{} items wait", ready.len());
            return false;
        };
        assert!(!is_blocked && batch.items.len() as u64 <= items_max);
        assert!(batch.items.len() == 1 || batch.bytes() <= bytes_max);
        let taken: Vec<ItemId> = batch.items.iter().map(|item| item.id).collect();
        if ordered {
            assert_eq!(taken, ready[..taken.len()], "an ordered group goes from its first");
        }
        let (taken_once, ready): (BTreeSet<_>, BTreeSet<_>) =
            (taken.iter().copied().collect(), ready.into_iter().collect());
        assert!(taken_once.len() == taken.len() && taken_once.is_subset(&ready));
        for item in &batch.items {
            let known = &self.items[&item.id];
            assert_eq!((&item.payload, item.attempts), (&known.payload, known.attempts));
        }
        // As many as fit are taken: one more would be too much.
        let left = ready.len() > taken.len();
        let fits = (taken.len() as u64) < items_max && batch.bytes() + 50_000 < bytes_max;
        assert!(!(left && fits), "{} of {} were taken of {items_max}", taken.len(), ready.len());
        self.batches.push(batch);
        true
    }

    async fn settle(&mut self) {
        if self.batches.is_empty() {
            return;
        }
        let at = self.numbers.below(self.batches.len() as u64) as usize;
        let batch = self.batches.swap_remove(at);
        let odd = match self.numbers.below(4) {
            0 => u64::MAX,
            1 => 200,
            2 => 20,
            _ => 2,
        };
        let mut ends = Vec::new();
        for item in &batch.items {
            let end = match self.numbers.chance(odd) {
                false => Some(ItemEnd::Done),
                true => match self.numbers.below(3) {
                    0 => Some(ItemEnd::Dead(Failure::new(Code::Trap, "it broke"))),
                    1 => Some(ItemEnd::Retry { due_ms: self.now_ms + self.numbers.below(300) as i64 }),
                    _ => None,
                },
            };
            ends.extend(end.map(|end| (item.id, end)));
        }
        if self.numbers.chance(8) {
            ends.clear();
        }
        if self.numbers.chance(4) {
            ends.reverse();
        }
        let keep_rows = self.numbers.chance(4);
        self.write(&batch, ends, keep_rows).await;
    }

    async fn write(&mut self, batch: &LeasedBatch, ends: Vec<(ItemId, ItemEnd)>, keep_rows: bool) {
        for (id, end) in &ends {
            match end {
                ItemEnd::Done => drop(self.items.remove(id)),
                ItemEnd::Dead(_) => {
                    self.items.remove(id);
                    self.dead.insert(*id);
                }
                ItemEnd::Retry { due_ms } => {
                    let known = self.items.get_mut(id).unwrap();
                    (known.due_ms, known.attempts) = (*due_ms, known.attempts + 1);
                }
            }
        }
        let (id, tenant, token) = (batch.id, batch.group.tenant, batch.token);
        let (effects, version) = (Effects::default(), None);
        let one = BatchSettlement { id, tenant, token, ends, keep_rows, effects, version };
        let settled = self.world.batches.settle_batches(self.holder, vec![one], self.now_ms).await.unwrap();
        assert_eq!(settled, [keiko_core::task::Settled::Stored]);
    }

    /// The host dies, and another one goes on.
    async fn hand_on(&mut self) {
        self.world.tasks.close_holder(self.holder, self.now_ms).await.unwrap();
        self.holder = self.world.holder().await;
        let mut taken = self.world.batches.take_over(self.holder, 1_000, self.now_ms).await.unwrap();
        self.batches.sort_by_key(|batch| batch.id);
        taken.iter_mut().zip(&self.batches).for_each(|(new, old)| {
            assert_eq!(new.token.0, old.token.0 + 1);
            // Its time is on this host's clock, which is read a moment later.
            new.items.iter_mut().zip(&old.items).for_each(|(new, old)| new.created_ms = old.created_ms);
        });
        let items = |batches: &[LeasedBatch]| {
            batches.iter().map(|batch| (batch.id, batch.items.clone())).collect::<Vec<_>>()
        };
        assert_eq!(items(&taken), items(&self.batches), "the same batches, in the same order");
        self.batches = taken;
    }

    /// Items that were dead are handed over no times and due at once; what they were is not known here any more.
    async fn try_dead_again(&mut self) {
        let Some(id) = self.dead.pop_first() else { return };
        let (tenant, films) = (self.films.tenant, self.films.id);
        let before = Some(ItemId(id.0 - 1));
        let letters = self.world.batch_records.dead_letters(tenant, films, before, 1).await.unwrap();
        let letter = &letters[0];
        let key = KEYS.into_iter().find(|key| *key == letter.key).unwrap();
        let payload = letter.payload.clone();
        self.items.insert(id, Known { key, payload, due_ms: self.now_ms, attempts: 0 });
        let changed = self.world.batches.retry_dead(tenant, films, Some(id), 1, self.now_ms).await.unwrap();
        assert_eq!(changed.count, 1);
    }

    async fn look(&mut self) {
        let limit = 1 + self.numbers.below(150) as u32;
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = self.world.batch_records.items(self.films.tenant, self.films.id, after, limit).await;
            let page = page.unwrap();
            for view in &page {
                let known = &self.items[&view.id];
                assert_eq!((view.key.as_str(), &view.payload), (known.key, &known.payload));
            }
            after = page.last().map(|view| view.id);
            let is_last = page.len() < limit as usize;
            seen.extend(page.into_iter().map(|view| view.id));
            if is_last {
                break;
            }
        }
        assert_eq!(seen, self.items.keys().copied().collect::<Vec<_>>());
        let processors = self.world.batch_records.processors(self.films.tenant).await.unwrap();
        let (_, counts) = processors.iter().find(|(row, _)| row.id == self.films.id).unwrap();
        assert_eq!(counts.items, self.items.len() as u64);
        let waiting = self.world.batch_records.waiting().await.unwrap();
        let sums = waiting.iter().find(|(tenant, _)| *tenant == self.films.tenant).map(|(_, sum)| *sum);
        let bytes: u64 = self.items.values().map(|item| size(item.key, &item.payload)).sum();
        let sums = sums.unwrap_or_default();
        assert_eq!((sums.items, sums.bytes), (self.items.len() as u64, bytes));
    }

    /// Everything is worked.
    async fn end(&mut self) {
        self.look().await;
        self.now_ms += 10_000;
        loop {
            while let Some(batch) = self.batches.pop() {
                let ends = batch.items.iter().map(|item| (item.id, ItemEnd::Done)).collect();
                self.write(&batch, ends, false).await;
            }
            let mut goes_on = false;
            for key in KEYS {
                goes_on |= self.form_of(key, 1_000, 1 << 30).await;
            }
            if !goes_on {
                break;
            }
        }
        assert!(self.items.is_empty(), "{} items are left", self.items.len());
        self.look().await;
    }
}
