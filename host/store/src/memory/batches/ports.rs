//! The seams of batches over the store in memory.

use async_trait::async_trait;
use keiko_core::batch::{
    Add, Added, BatchSettlement, DeadLetter, ItemView, LeasedBatch, Processor, ProcessorCounts, Stopped,
    Waiting,
};
use keiko_core::effect::Effects;
use keiko_core::id::{Holder, ItemId, ProcessorId, TenantId};
use keiko_core::name::ProcessorName;
use keiko_core::port::{BatchRecords, BatchStore, DeadChanged, FormRequest, Formed, FoundGroup, StoreError};
use keiko_core::task::Settled;

use super::super::MemoryStore;
use super::super::mutation::Mutation;
use super::{page, sum, view};

#[async_trait]
impl BatchStore for MemoryStore {
    async fn ensure_processors(
        &self,
        tenant: TenantId,
        names: &[ProcessorName],
    ) -> Result<Vec<Processor>, StoreError> {
        self.call(|state| Ok(state.ensure_processors(tenant, names))).await
    }

    async fn add(&self, adds: Vec<Add>, now_ms: i64) -> Result<Vec<Added>, StoreError> {
        self.call(|state| state.add_items(&adds, now_ms)).await
    }

    async fn form(&self, request: FormRequest) -> Result<Formed, StoreError> {
        self.call(|state| Ok(state.form(&request))).await
    }

    async fn take_over(&self, holder: Holder, room: usize, _: i64) -> Result<Vec<LeasedBatch>, StoreError> {
        self.call(|state| Ok(state.take_over(holder, room))).await
    }

    async fn settle_batches(
        &self,
        holder: Holder,
        settlements: Vec<BatchSettlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        self.call(|state| state.settle_batches(holder, &settlements, now_ms)).await
    }

    async fn accepts(&self, tenant: TenantId, effects: Effects, _: i64) -> Result<bool, StoreError> {
        self.call(|state| Ok(state.accepts(tenant, &effects))).await
    }

    async fn groups(
        &self,
        after: Option<(ProcessorId, String)>,
        limit: u32,
        _: i64,
    ) -> Result<Vec<FoundGroup>, StoreError> {
        self.call(|state| Ok(state.found_groups(after, limit))).await
    }

    async fn stop_processor(
        &self,
        tenant: TenantId,
        id: ProcessorId,
        stopped: Option<Stopped>,
    ) -> Result<(), StoreError> {
        self.call(|state| {
            let lost = state.breaks(Mutation::StopForgotten);
            let any = state.breaks(Mutation::StopsForOthers);
            if let Some(row) = state.batches.processors.get_mut(&id)
                && (row.tenant == tenant || any)
                && !lost
            {
                row.stopped = stopped;
            }
            Ok(())
        })
        .await
    }

    async fn retry_dead(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        id: Option<ItemId>,
        limit: u32,
        now_ms: i64,
    ) -> Result<DeadChanged, StoreError> {
        self.call(|state| {
            let letters = state.take_dead(tenant, processor, id, limit);
            Ok(state.retry_dead(tenant, processor, letters, now_ms))
        })
        .await
    }

    async fn drop_dead(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        id: Option<ItemId>,
        limit: u32,
    ) -> Result<DeadChanged, StoreError> {
        self.call(|state| Ok(sum(&state.take_dead(tenant, processor, id, limit)))).await
    }
}

#[async_trait]
impl BatchRecords for MemoryStore {
    async fn processors(&self, tenant: TenantId) -> Result<Vec<(Processor, ProcessorCounts)>, StoreError> {
        self.call(|state| Ok(state.counted(tenant))).await
    }

    async fn waiting(&self) -> Result<Vec<(TenantId, Waiting)>, StoreError> {
        self.call(|state| {
            let tenants: Vec<TenantId> = state.batches.waiting.keys().copied().collect();
            let all = tenants.into_iter().map(|tenant| (tenant, state.waits(tenant)));
            Ok(all.filter(|(_, waiting)| waiting.items > 0).collect())
        })
        .await
    }

    async fn items(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError> {
        self.call(|state| {
            let of = (!state.breaks(Mutation::ItemsForOthers)).then_some(tenant);
            let rows = state.batches.items.iter();
            let rows = rows.map(|(id, row)| (*id, (row.tenant, row.processor, view(*id, row)))).collect();
            Ok(page(&rows, (of, processor), after, limit))
        })
        .await
    }

    async fn rows(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError> {
        self.call(|state| {
            let of = (!state.breaks(Mutation::RowsForOthers)).then_some(tenant);
            Ok(page(&state.batches.rows, (of, processor), after, limit))
        })
        .await
    }

    async fn dead_letters(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.call(|state| {
            let of = (!state.breaks(Mutation::DeadForOthers)).then_some(tenant);
            Ok(page(&state.batches.dead, (of, processor), after, limit))
        })
        .await
    }
}
