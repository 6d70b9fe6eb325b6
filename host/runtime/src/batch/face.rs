//! The way to talk to processors: adding, looking, flushing, and what to do with dead letters.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_core::batch::settings::BatchPolicy;
use keiko_core::batch::{
    Add, Added, DeadLetter, Group, Item, ItemRefused, ItemView, ItemWish, NewItem, ProcessorCounts, Settings,
    Stopped, Waiting,
};
use keiko_core::code::Code;
use keiko_core::effect::{BodyHash, check_key};
use keiko_core::limit::{ADD_ITEMS_MAX, LimitFact, SetBy};
use keiko_core::page::Page;
use keiko_core::port::Signal;
use keiko_core::task::Key;
use keiko_core::{ItemId, PluginName, ProcessorName, TenantId};
use tokio::sync::oneshot;

use super::{Entry, Event, MadeBy};
use crate::handle::Handle;
use crate::point::Point;
use crate::request::Error;
use crate::shared::Counters;

/// How long an add waits for room in memory.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a flush waits for the service.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// Dead letters that one transaction changes.
const DEAD_STEP: u32 = 1_000;

/// Stored items: their ids follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedItems {
    /// The first id.
    pub first: ItemId,
    /// How many items.
    pub count: u32,
    /// Whether an earlier add with the same key had stored them.
    pub duplicate: bool,
    /// Volatile items that there was no room for.
    pub dropped: u32,
}

impl AddedItems {
    /// The ids in the order of the request.
    pub fn ids(self) -> impl Iterator<Item = ItemId> {
        (self.first.0..self.first.0 + i64::from(self.count)).map(ItemId)
    }
}

/// A processor with everything that is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorView {
    /// Its name.
    pub name: ProcessorName,
    /// The plugin that works it; `None` when the host does, or nobody any more.
    pub plugin: Option<PluginName>,
    /// How it gathers; `None` when nobody works it any more.
    pub settings: Option<Settings>,
    /// Why nothing is handed to it.
    pub stopped: Option<Stopped>,
    /// What it has.
    pub counts: ProcessorCounts,
}

impl Handle {
    /// Adds items to a processor, all or none; unless it is volatile, they are durable when this returns.
    ///
    /// Errors: `invalid_input`, `not_found`, `queue_full`, `conflict`, `storage_*`.
    pub async fn add_items(
        &self,
        tenant: TenantId,
        processor: &str,
        items: Vec<ItemWish>,
        key: Option<String>,
    ) -> Result<AddedItems, Error> {
        self.takes_items()?;
        let policy = self.entry(tenant)?.policy.batches;
        check(&items)?;
        let entry = self.processor_entry(tenant, processor).await?;
        if entry.settings.volatile && key.is_some() {
            let refused =
                Error::new(Code::InvalidInput, "a volatile processor remembers no idempotency keys");
            return self.added_before(tenant, &entry, items, key, refused).await;
        }
        let bytes = items.iter().fold(0u64, |sum, item| sum.saturating_add(item.size()));
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let first = self.shared.ids.take(count).await?.0;
        if entry.settings.volatile {
            return Ok(self.add_volatile(&entry, first, items).await);
        }
        let _held = match self.shared.batches.memory.take_within(tenant, bytes, WAIT_MAX).await {
            Ok(held) => held,
            Err(short) => {
                let refused = Error::at_limit(Code::QueueFull, short);
                return self.added_before(tenant, &entry, items, key, refused).await;
            }
        };
        // It may have begun to stop while there was no room.
        self.takes_items()?;
        let add = self.add_of(tenant, &entry, first, items, key, &policy)?;
        self.store_items(add, &policy, bytes).await
    }

    /// What the key of a refused add stands for; the refusal when it has none, or that stands for nothing. It may have been taken
    /// before memory was full, or the processor volatile, as submits may: see [`crate::repeat`].
    async fn added_before(
        &self,
        tenant: TenantId,
        entry: &Entry,
        items: Vec<ItemWish>,
        key: Option<String>,
        refused: Error,
    ) -> Result<AddedItems, Error> {
        let policy = self.entry(tenant)?.policy.batches;
        let asked = self.add_of(tenant, entry, 0, items, key, &policy).ok();
        let Some(asked) = asked.filter(|asked| asked.key.is_some()) else { return Err(refused) };
        let asked = Add { items: Vec::new(), items_max: u64::MAX, bytes_max: u64::MAX, ..asked };
        let found = self.store_items(asked, &policy, 0).await?;
        if found.duplicate { Ok(found) } else { Err(refused) }
    }

    fn takes_items(&self) -> Result<(), Error> {
        if self.shared.accepting.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(Code::StorageBusy, "the host is stopping and takes no items"))
    }

    fn add_of(
        &self,
        tenant: TenantId,
        entry: &Entry,
        first: i64,
        items: Vec<ItemWish>,
        key: Option<String>,
        policy: &BatchPolicy,
    ) -> Result<Add, Error> {
        let created_ms = self.shared.clock.now_ms();
        let item = |(id, ItemWish { key, payload })| NewItem {
            id: ItemId(id),
            processor: entry.row.id,
            key,
            payload,
            created_ms,
        };
        let items: Vec<NewItem> = (first..).zip(items).map(item).collect();
        let hash = |text: String| {
            check_key(&text).map_err(|text| Error::new(Code::InvalidInput, text))?;
            let mut body = BodyHash::default();
            items.iter().for_each(|item| body.add_item(item));
            Ok::<Key, Error>(Key { text, body: body.finish() })
        };
        let key = key.map(hash).transpose()?;
        let promised = self.shared.batches.quota.promised(tenant);
        Ok(Add {
            tenant,
            items,
            key,
            items_max: policy.waiting_items_max.saturating_sub(promised.items),
            bytes_max: policy.waiting_bytes_max.saturating_sub(promised.bytes),
        })
    }

    async fn store_items(&self, add: Add, policy: &BatchPolicy, bytes: u64) -> Result<AddedItems, Error> {
        let tenant = add.tenant;
        let mut groups: std::collections::BTreeMap<Group, (u64, u64)> = std::collections::BTreeMap::new();
        for item in &add.items {
            let group = Group { tenant, processor: item.processor, key: item.key.clone() };
            let sum = groups.entry(group).or_default();
            *sum = (sum.0 + 1, sum.1 + item.size());
        }
        let asked = add.items.len() as u64;
        let answer = self.shared.batches.store.add(vec![add], self.shared.clock.now_ms()).await?.pop();
        match answer {
            Some(Added::Accepted { first, count, duplicate }) => {
                self.shared.points.pass(Point::ItemAccepted);
                if !duplicate {
                    self.shared.batches.quota.added(tenant, Waiting { items: asked, bytes });
                    Counters::add(&self.shared.batches.counters.added, u64::from(count));
                    for (group, (items, bytes)) in groups {
                        self.shared.batches.tell(Event::Added { group, items, bytes }).await;
                    }
                }
                Ok(AddedItems { first, count, duplicate, dropped: 0 })
            }
            Some(Added::Conflict) => {
                Err(Error::new(Code::Conflict, "the idempotency key stands for another request"))
            }
            Some(Added::QueueFull(waiting)) => Err(queue_full(policy, waiting, asked, bytes)),
            None => Err(Error::new(Code::Internal, "the store did not answer an add")),
        }
    }

    async fn add_volatile(&self, entry: &Entry, first: i64, items: Vec<ItemWish>) -> AddedItems {
        let batches = &self.shared.batches;
        let (now_ms, mut dropped, count) = (self.shared.clock.now_ms(), 0, items.len() as u32);
        for (id, wish) in (first..).zip(items) {
            let bytes = wish.size();
            let Some(held) = batches.memory.try_take(entry.row.tenant, bytes) else {
                dropped += 1;
                continue;
            };
            let group = Group { tenant: entry.row.tenant, processor: entry.row.id, key: wish.key };
            let item = Item { id: ItemId(id), payload: wish.payload, created_ms: now_ms, attempts: 0 };
            batches.volatile.add(&group, item, now_ms, held);
            batches.tell(Event::Added { group, items: 1, bytes }).await;
        }
        Counters::add(&batches.counters.added, u64::from(count - dropped));
        Counters::add(&batches.counters.dropped, u64::from(dropped));
        AddedItems { first: ItemId(first), count, duplicate: false, dropped }
    }

    /// The processor of this name, which another host may have brought just now.
    async fn processor_entry(&self, tenant: TenantId, name: &str) -> Result<Arc<Entry>, Error> {
        if let Some(entry) = self.shared.batches.processors.named(tenant, name) {
            return Ok(entry);
        }
        self.shared.catalog.read_again().await?;
        super::refresh(&self.shared).await;
        self.shared.batches.processors.named(tenant, name).ok_or_else(|| no_processor(name))
    }

    /// A tenant's processors by name, with those that nobody works any more and that still have something.
    pub async fn processors(&self, tenant: TenantId) -> Result<Vec<ProcessorView>, Error> {
        let rows = self.shared.batches.records.processors(tenant).await?;
        let view = |(row, counts): (keiko_core::batch::Processor, ProcessorCounts)| {
            let entry = self.shared.batches.processors.of(row.id);
            let is_empty = counts.items == 0 && counts.dead == 0 && counts.rows == 0;
            if entry.is_none() && is_empty {
                return None;
            }
            let plugin = entry.as_ref().and_then(|entry| match &entry.made_by {
                MadeBy::Host => None,
                MadeBy::Plugin { name, .. } => Some(name.clone()),
            });
            let settings = entry.map(|entry| entry.settings);
            Some(ProcessorView { name: row.name, plugin, settings, stopped: row.stopped, counts })
        };
        Ok(rows.into_iter().filter_map(view).collect())
    }

    /// One of a tenant's processors.
    pub async fn processor(&self, tenant: TenantId, name: &str) -> Result<ProcessorView, Error> {
        let all = self.processors(tenant).await?;
        all.into_iter().find(|one| one.name.as_str() == name).ok_or_else(|| no_processor(name))
    }

    /// The row of a processor, though nobody works it any more.
    async fn processor_row(
        &self,
        tenant: TenantId,
        name: &str,
    ) -> Result<keiko_core::batch::Processor, Error> {
        let rows = self.shared.batches.records.processors(tenant).await?;
        let found = rows.into_iter().find(|(row, _)| row.name.as_str() == name);
        found.map(|(row, _)| row).ok_or_else(|| no_processor(name))
    }

    /// Items of a processor that wait or are in a batch, in order.
    pub async fn items(
        &self,
        tenant: TenantId,
        processor: &str,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Page<ItemView>, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let rows = self.shared.batches.records.items(tenant, row.id, after, limit.saturating_add(1)).await?;
        Ok(Page::of(rows, limit))
    }

    /// Rows that one of the host's own processors keeps, in order.
    pub async fn rows(
        &self,
        tenant: TenantId,
        processor: &str,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Page<ItemView>, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let rows = self.shared.batches.records.rows(tenant, row.id, after, limit.saturating_add(1)).await?;
        Ok(Page::of(rows, limit))
    }

    /// Dead letters of a processor, in order.
    pub async fn dead_letters(
        &self,
        tenant: TenantId,
        processor: &str,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Page<DeadLetter>, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let records = &self.shared.batches.records;
        let rows = records.dead_letters(tenant, row.id, after, limit.saturating_add(1)).await?;
        Ok(Page::of(rows, limit))
    }

    /// One dead letter.
    pub async fn dead_letter(
        &self,
        tenant: TenantId,
        processor: &str,
        id: ItemId,
    ) -> Result<DeadLetter, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let before = Some(ItemId(id.0.saturating_sub(1)));
        let found = self.shared.batches.records.dead_letters(tenant, row.id, before, 1).await?;
        found.into_iter().find(|letter| letter.id == id).ok_or_else(|| no_letter(id))
    }

    /// Makes dead letters items again: one, or all; how many.
    pub async fn retry_dead(
        &self,
        tenant: TenantId,
        processor: &str,
        id: Option<ItemId>,
    ) -> Result<u64, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let mut count = 0;
        loop {
            let now_ms = self.shared.clock.now_ms();
            let step = self.shared.batches.store.retry_dead(tenant, row.id, id, DEAD_STEP, now_ms).await?;
            count += step.count;
            self.shared.batches.quota.added(tenant, Waiting { items: step.count, bytes: step.bytes });
            if step.count < u64::from(DEAD_STEP) {
                break;
            }
        }
        self.shared.batches.tell(Event::Look).await;
        match id {
            Some(id) if count == 0 => Err(no_letter(id)),
            _ => Ok(count),
        }
    }

    /// Forgets dead letters: one, or all; how many.
    pub async fn drop_dead(
        &self,
        tenant: TenantId,
        processor: &str,
        id: Option<ItemId>,
    ) -> Result<u64, Error> {
        let row = self.processor_row(tenant, processor).await?;
        let mut count = 0;
        loop {
            let step = self.shared.batches.store.drop_dead(tenant, row.id, id, DEAD_STEP).await?;
            count += step.count;
            if step.count < u64::from(DEAD_STEP) {
                break;
            }
        }
        match id {
            Some(id) if count == 0 => Err(no_letter(id)),
            _ => Ok(count),
        }
    }

    /// Hands over what waits for a processor without waiting for more; how many keys had something.
    pub async fn flush(&self, tenant: TenantId, processor: &str) -> Result<u64, Error> {
        let entry = self.processor_entry(tenant, processor).await?;
        let (reply, answer) = oneshot::channel();
        self.shared.batches.tell(Event::Flush { processor: entry.row.id, reply }).await;
        match tokio::time::timeout(FLUSH_MAX, answer).await {
            Ok(Ok(groups)) => Ok(groups),
            _ => Err(Error::new(Code::StorageBusy, "the host could not flush in time")),
        }
    }

    /// Starts a processor again that was stopped because it was broken.
    pub async fn resume(&self, tenant: TenantId, processor: &str) -> Result<(), Error> {
        let row = self.processor_row(tenant, processor).await?;
        self.shared.batches.store.stop_processor(tenant, row.id, None).await?;
        super::refresh(&self.shared).await;
        self.shared.batches.tell(Event::Look).await;
        self.shared.signals.tell(Signal { items: true, ..Signal::default() });
        Ok(())
    }
}

fn check(items: &[ItemWish]) -> Result<(), Error> {
    if items.is_empty() || items.len() > ADD_ITEMS_MAX {
        let fact = LimitFact::of_host("items", ADD_ITEMS_MAX as u64, Some(items.len() as u64));
        return Err(Error::at_limit(Code::InvalidInput, fact));
    }
    for (index, item) in items.iter().enumerate() {
        item.check().map_err(|refused| {
            let at = if items.len() > 1 { format!("items[{index}]: ") } else { String::new() };
            match refused {
                ItemRefused::TooLarge(limit) => {
                    let fact = LimitFact::of_host("item_bytes", limit, Some(item.payload.bytes.len() as u64));
                    let error = Error::new(Code::InvalidInput, format!("{at}{fact}"));
                    Error { limit: Some(fact), ..error }
                }
                ItemRefused::Invalid(text) => Error::new(Code::InvalidInput, format!("{at}{text}")),
            }
        })?;
    }
    Ok(())
}

fn limit(name: &str, limit: u64, asked: Option<u64>) -> LimitFact {
    LimitFact { name: name.to_owned(), limit, asked, set_by: SetBy::Tenant }
}

fn queue_full(policy: &BatchPolicy, waiting: Waiting, items: u64, bytes: u64) -> Error {
    let fact = if waiting.items + items > policy.waiting_items_max {
        limit("waiting_items", policy.waiting_items_max, Some(waiting.items + items))
    } else {
        limit("waiting_bytes", policy.waiting_bytes_max, Some(waiting.bytes.saturating_add(bytes)))
    };
    Error::at_limit(Code::QueueFull, fact)
}

fn no_processor(name: &str) -> Error {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(80).collect();
    Error::new(Code::NotFound, format!("there is no processor `{shown}`"))
}

fn no_letter(id: ItemId) -> Error {
    Error::new(Code::NotFound, format!("there is no dead letter {id}"))
}
