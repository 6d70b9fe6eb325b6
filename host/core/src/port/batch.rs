//! Where items of processors are kept.
//!
//! An item is a row that is written with its producer; it leaves in the transaction that writes what became of it. A
//! batch is a row too, with the ids of its items: who holds it is a holder of leases, as of tasks, and a batch whose
//! holder died is handed over again whole, under the same id.

use async_trait::async_trait;

use super::StoreError;
use crate::batch::machine::{Form, Left};
use crate::batch::{
    Add, Added, BatchSettlement, DeadLetter, Group, ItemView, LeasedBatch, Processor, ProcessorCounts,
    Stopped, Waiting,
};
use crate::effect::Effects;
use crate::id::{BatchId, Holder, ItemId, ProcessorId, TenantId};
use crate::name::ProcessorName;
use crate::task::Settled;

/// A batch that a host wants.
#[derive(Clone, Debug)]
pub struct FormRequest {
    /// Who asks.
    pub holder: Holder,
    /// The id that the batch gets, from the host's reserved ones.
    pub id: BatchId,
    /// Of what, and why.
    pub form: Form,
    /// Now.
    pub now_ms: i64,
}

/// What a host gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formed {
    /// The batch; `None` when there was none to form.
    pub batch: Option<LeasedBatch>,
    /// What the group has left.
    pub left: Left,
    /// The holder is not registered any more: it was rescued.
    pub lost: bool,
}

/// A group with items that are in no batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGroup {
    /// The group.
    pub group: Group,
    /// When its oldest item was added, on this host's clock.
    pub oldest_ms: i64,
}

/// What became of a wish about dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadChanged {
    /// How many there were.
    pub count: u64,
    /// Their bytes, as the quota counts them.
    pub bytes: u64,
}

/// The writing side of batches. Times are as in [`super::TaskStore`]; every method is one transaction.
#[async_trait]
pub trait BatchStore: Send + Sync + 'static {
    /// The rows of these processors, in the order of the names; those that are missing are made.
    async fn ensure_processors(
        &self,
        tenant: TenantId,
        names: &[ProcessorName],
    ) -> Result<Vec<Processor>, StoreError>;

    /// Stores items, each add whole or refused; the answers are in their order.
    async fn add(&self, adds: Vec<Add>, now_ms: i64) -> Result<Vec<Added>, StoreError>;

    /// Forms a batch of a group when it is due by what is stored: as many items as a batch takes, one that has waited for
    /// its age or is tried again, or any when somebody asked. Items go in order of their ids; of an ordered group none
    /// goes before one that waits, and none while another batch of it is in flight. A stopped processor gets none.
    async fn form(&self, request: FormRequest) -> Result<Formed, StoreError>;

    /// Takes over up to `room` batches that nobody holds, oldest first: their holders died.
    async fn take_over(
        &self,
        holder: Holder,
        room: usize,
        now_ms: i64,
    ) -> Result<Vec<LeasedBatch>, StoreError>;

    /// Writes what became of batches; the answers are in their order.
    async fn settle_batches(
        &self,
        holder: Holder,
        settlements: Vec<BatchSettlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError>;

    /// Whether the database takes what a batch asked for: everything is written as with the batch's end, and taken back.
    async fn accepts(&self, tenant: TenantId, effects: Effects, now_ms: i64) -> Result<bool, StoreError>;

    /// Up to `limit` groups with items that are in no batch, behind `after`, in order of processor and key.
    async fn groups(
        &self,
        after: Option<(ProcessorId, String)>,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<FoundGroup>, StoreError>;

    /// Stops a processor, or starts it again.
    async fn stop_processor(
        &self,
        tenant: TenantId,
        id: ProcessorId,
        stopped: Option<Stopped>,
    ) -> Result<(), StoreError>;

    /// Makes dead letters items again, handed over no times, due at once: one, or up to `limit` of a processor, oldest
    /// first. Returns how many there were.
    async fn retry_dead(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        id: Option<ItemId>,
        limit: u32,
        now_ms: i64,
    ) -> Result<DeadChanged, StoreError>;

    /// Forgets dead letters: one, or up to `limit` of a processor, oldest first. Returns how many there were.
    async fn drop_dead(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        id: Option<ItemId>,
        limit: u32,
    ) -> Result<DeadChanged, StoreError>;
}

/// The reading side of batches. Always one tenant's, except for what a host counts.
#[async_trait]
pub trait BatchRecords: Send + Sync + 'static {
    /// Every processor that the tenant ever had, by name, with what it has.
    async fn processors(&self, tenant: TenantId) -> Result<Vec<(Processor, ProcessorCounts)>, StoreError>;

    /// What waits of every tenant that has anything, as the quota counts it.
    async fn waiting(&self) -> Result<Vec<(TenantId, Waiting)>, StoreError>;

    /// Up to `limit` items of a processor that wait or are in a batch, in order, behind `after`.
    async fn items(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError>;

    /// Up to `limit` kept rows of a processor, in order, behind `after`.
    async fn rows(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError>;

    /// Up to `limit` dead letters of a processor, in order, behind `after`.
    async fn dead_letters(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError>;
}
