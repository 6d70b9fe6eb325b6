//! Processors, and the seams of batches over this store.

mod add;
mod dead;
mod form;
#[cfg(test)]
mod order;
mod read;
mod settle;

use std::sync::atomic::Ordering;

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

pub(crate) use self::add::{add, insert};
pub(crate) use self::form::charge;
#[cfg(test)]
pub(crate) use self::form::{CANDIDATES, GROUPS, NEXT, SEGMENTS};
#[cfg(test)]
pub(crate) use self::settle::DELETE;
use super::PostgresStore;
use super::row::stored_text;
use super::session::Session;
use crate::format::encode_detail;
use crate::transaction::Priority;

#[async_trait]
impl BatchStore for PostgresStore {
    async fn ensure_processors(
        &self,
        tenant: TenantId,
        names: &[ProcessorName],
    ) -> Result<Vec<Processor>, StoreError> {
        self.write(Priority::Background, 0, names.to_vec(), move |session, names| {
            Box::pin(ensure(session, tenant, names))
        })
        .await
    }

    async fn add(&self, adds: Vec<Add>, now_ms: i64) -> Result<Vec<Added>, StoreError> {
        let turn = self.0.adds.fetch_add(1, Ordering::Relaxed) % self.0.add.len();
        self.0.add[turn].add(adds, now_ms).await
    }

    async fn form(&self, request: FormRequest) -> Result<Formed, StoreError> {
        let form =
            self.0.lease.lease(request, |session, request| Box::pin(form::form(session, request)), |_| None);
        form.await
    }

    async fn take_over(
        &self,
        holder: Holder,
        room: usize,
        now_ms: i64,
    ) -> Result<Vec<LeasedBatch>, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(form::take_over(session, holder, room, now_ms))
        })
        .await
    }

    async fn settle_batches(
        &self,
        holder: Holder,
        settlements: Vec<BatchSettlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        self.write(Priority::Task, 0, settlements, move |session, settlements| {
            Box::pin(settle::settle(session, holder, settlements, now_ms))
        })
        .await
    }

    async fn accepts(&self, tenant: TenantId, effects: Effects, now_ms: i64) -> Result<bool, StoreError> {
        self.write(Priority::Task, 0, effects, move |session, effects| {
            Box::pin(settle::accepts(session, tenant, effects, now_ms))
        })
        .await
    }

    async fn groups(
        &self,
        after: Option<(ProcessorId, String)>,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<FoundGroup>, StoreError> {
        form::groups(&self.0.pool, after, limit, now_ms).await
    }

    async fn stop_processor(
        &self,
        tenant: TenantId,
        id: ProcessorId,
        stopped: Option<Stopped>,
    ) -> Result<(), StoreError> {
        self.write(Priority::Task, 0, stopped, move |session, stopped| {
            Box::pin(stop(session, tenant, id, stopped.as_ref()))
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
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(dead::retry(session, tenant, processor, id, limit, now_ms))
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
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(dead::forget(session, tenant, processor, id, limit))
        })
        .await
    }
}

#[async_trait]
impl BatchRecords for PostgresStore {
    async fn processors(&self, tenant: TenantId) -> Result<Vec<(Processor, ProcessorCounts)>, StoreError> {
        read::processors(&self.0.pool, tenant).await
    }

    async fn waiting(&self) -> Result<Vec<(TenantId, Waiting)>, StoreError> {
        read::waiting(&self.0.pool).await
    }

    async fn items(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError> {
        read::items(&self.0.pool, tenant, processor, after, limit).await
    }

    async fn rows(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<ItemView>, StoreError> {
        read::rows(&self.0.pool, tenant, processor, after, limit).await
    }

    async fn dead_letters(
        &self,
        tenant: TenantId,
        processor: ProcessorId,
        after: Option<ItemId>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        dead::list(&self.0.pool, tenant, processor, after, limit).await
    }
}

/// The rows of processors, made when they are missing. Only those: an insert that finds its row uses a number up.
async fn ensure(
    session: &mut Session,
    tenant: TenantId,
    names: &[ProcessorName],
) -> Result<Vec<Processor>, StoreError> {
    let texts: Vec<&str> = names.iter().map(ProcessorName::as_str).collect();
    let query = "INSERT INTO processor (tenant, name) SELECT $1, w.name FROM unnest($2::text[]) AS w (name)
        WHERE NOT EXISTS (SELECT 1 FROM processor AS p WHERE p.tenant = $1 AND p.name = w.name)
        ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(tenant.0).bind(&texts)).await?;
    let query = "INSERT INTO batch_count (tenant) VALUES ($1) ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(tenant.0)).await?;
    let query = "SELECT p.id, p.tenant, p.name, p.stopped_ms, p.stopped_version, p.code, p.message, p.detail
        FROM unnest($2::text[]) WITH ORDINALITY AS w (name, place)
        JOIN processor AS p ON p.tenant = $1 AND p.name = w.name ORDER BY w.place";
    let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(texts)).await?;
    rows.iter().map(read::processor).collect()
}

/// Stops a processor, or starts it again.
async fn stop(
    session: &mut Session,
    tenant: TenantId,
    id: ProcessorId,
    stopped: Option<&Stopped>,
) -> Result<(), StoreError> {
    let failure = stopped.map(|stopped| &stopped.failure);
    let query =
        "UPDATE processor SET stopped_ms = $3, stopped_version = $4, code = $5, message = $6, detail = $7
        WHERE id = $1 AND tenant = $2";
    let query = sqlx::query(query).bind(id.0).bind(tenant.0).bind(stopped.map(|stopped| stopped.at_ms));
    let query = query.bind(stopped.and_then(|stopped| Some(stopped.version?.0)));
    let query = query.bind(failure.map(|failure| failure.code.as_str()));
    let query = query.bind(failure.map(|failure| stored_text(&failure.message)));
    session.run(query.bind(failure.and_then(encode_detail))).await.map(drop)
}
