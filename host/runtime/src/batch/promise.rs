//! What is reserved when a guest adds items, of tasks and of batches alike.

use std::sync::Arc;

use keiko_core::batch::settings::BatchPolicy;
use keiko_core::batch::{ItemWish, NewItem, Waiting};
use keiko_core::port::ItemsError;
use keiko_core::{ItemId, TenantId};
use parking_lot::Mutex;

use crate::shared::{Shared, TenantEntry};

/// Items that one attempt or batch was promised room for; gives it back when dropped, whether they were stored (the quota
/// counts them by then) or not.
pub(crate) struct Promised {
    shared: Arc<Shared>,
    tenant: TenantId,
    promised: Mutex<Waiting>,
}

impl Promised {
    pub(crate) fn new(shared: &Arc<Shared>, tenant: TenantId) -> Promised {
        Promised { shared: Arc::clone(shared), tenant, promised: Mutex::default() }
    }

    /// Reserves ids and room for items of a processor, all or none.
    pub(crate) async fn reserve(
        &self,
        policy: &TenantEntry,
        processor: &str,
        wishes: Vec<ItemWish>,
    ) -> Result<Vec<NewItem>, ItemsError> {
        let batches = &self.shared.batches;
        let not_found = || {
            ItemsError::NotFound(processor.chars().filter(|letter| !letter.is_control()).take(80).collect())
        };
        let entry = batches.processors.named(self.tenant, processor).ok_or_else(not_found)?;
        let more = Waiting { items: wishes.len() as u64, bytes: wishes.iter().map(ItemWish::size).sum() };
        let BatchPolicy { waiting_items_max: items, waiting_bytes_max: bytes, .. } = policy.policy.batches;
        let room = batches.quota.promise(self.tenant, more, Waiting { items, bytes });
        room.map_err(ItemsError::QueueFull)?;
        {
            let mut promised = self.promised.lock();
            promised.items += more.items;
            promised.bytes += more.bytes;
        }
        let count = u32::try_from(wishes.len()).map_err(|_| ItemsError::Unavailable)?;
        let first = self.shared.ids.take(count).await.map_err(|error| {
            tracing::warn!(error = %error, "no ids could be reserved for items");
            ItemsError::Unavailable
        })?;
        let created_ms = self.shared.clock.now_ms();
        let item = |(id, ItemWish { key, payload })| NewItem {
            id: ItemId(id),
            processor: entry.row.id,
            key,
            payload,
            created_ms,
        };
        Ok((first.0..).zip(wishes).map(item).collect())
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        let promised = *self.promised.get_mut();
        self.shared.batches.quota.release(self.tenant, promised);
    }
}
