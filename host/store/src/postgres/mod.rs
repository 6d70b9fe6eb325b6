//! The store of many hosts: one PostgreSQL database, 14 or newer.
//!
//! - Six connections write, each with its own group commit of [`crate::transaction`]: submits, leases, ends with
//!   everything else that is written about tasks, what keeps this host alive, and two for adds of items, which are most of all
//!   rows: while one of them waits for the database, the other prepares the next. So a stalled write of one kind holds
//!   up no other, and above all no beat.
//! - Reads come from a pool, one statement each, as the tenant they are for: see [`pool`].
//! - Every method of [`TaskStore`] and every writing one of [`CatalogStore`] is one transaction, which it may share with
//!   others. Rows are locked in one order: holders, tasks by id, counts of tenants, counts of agents, keys, agents,
//!   what waits of tenants. Submits start with the counts of tenants, and a lease that goes with one skips tasks that others
//!   hold; adds lock what waits last, as everybody does. What still meets
//!   crosswise is run again.
//! - What hosts compare is on the database's clock, by the SQL function `keiko_now`.

pub mod admin;
mod agents;
mod at_once;
pub(crate) mod batch;
mod branch;
pub(crate) mod cache;
mod canary;
mod catalog;
mod child;
mod component;
mod count;
mod data;
mod end;
pub(crate) mod error;
mod generation;
mod group;
mod history;
mod holder;
mod lease;
mod migrate;
mod news;
mod once;
mod open;
mod options;
mod pause;
#[cfg(test)]
mod plan;
pub(crate) mod pool;
mod prune;
mod records;
mod replica;
pub(crate) mod row;
mod said;
mod schedule;
mod segment;
pub(crate) mod session;
mod settle;
mod slot;
mod submit;
#[cfg(test)]
mod tenancy;
mod tree;
mod usage;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use keiko_core::catalog::{
    Activated, Generation, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Target, Tenant,
};
use keiko_core::group::{Group, Outcome};
use keiko_core::id::{Digest, GroupId, Holder, TaskId, TenantId, Token};
use keiko_core::name::{PluginName, TenantName};
use keiko_core::pause::{Pause, Paused};
use keiko_core::port::{
    ArtifactName, Ask, Beat, CatalogStore, Components, Dead, Expired, Forgotten, IdBlock, Lease,
    LeaseRequest, Pruned, Records, Rescued, Signal, Signals, StoreError, StoreErrorKind, TaskStore, Until,
};
use keiko_core::retention::KeptFrom;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, Payload, RetryAnswer, Settled, Settlement, Submit, Submitted,
    TaskCounts, TaskFilter, TaskSummary, TaskView,
};
use keiko_core::tree::{Branch, Cut};

use self::at_once::Ahead;
use self::news::News;
use self::open::Named;
pub use self::open::OpenError;
pub use self::options::PostgresOptions;
use self::pool::Pool;
pub use self::pool::PoolFigures;
use self::session::Session;
use crate::entry::Entry;
pub use crate::transaction::WriterCounts;
use crate::transaction::{Counters, Priority, Writer};

/// A store in a database. Clones share it.
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

struct Inner {
    submit: Writer<Session>,
    lease: Writer<Session>,
    settle: Writer<Session>,
    keep: Writer<Session>,
    add: [Writer<Session>; 2],
    /// Counts adds, which take their writers in turn.
    adds: AtomicUsize,
    pool: Pool,
    news: News,
    /// Whether the last lease found nothing.
    quiet: AtomicBool,
}

impl Inner {
    fn writers(&self) -> impl Iterator<Item = &Writer<Session>> {
        [&self.submit, &self.lease, &self.settle, &self.keep].into_iter().chain(&self.add)
    }
}

impl PostgresStore {
    /// Opens the store, bringing its database to this binary's schema. Needs a Tokio runtime that stays.
    pub async fn open(options: PostgresOptions) -> Result<PostgresStore, OpenError> {
        open::prepare(&options).await?;
        let ahead = Arc::default();
        let inner = Inner {
            submit: writer(&options, "submit", &ahead).await?,
            lease: writer(&options, "lease", &ahead).await?,
            settle: writer(&options, "settle", &ahead).await?,
            keep: writer(&options, "keep", &ahead).await?,
            add: [writer(&options, "add", &ahead).await?, writer(&options, "add", &ahead).await?],
            adds: AtomicUsize::new(0),
            pool: Pool::new(&options)?,
            news: News::start(options.news()?),
            quiet: AtomicBool::new(false),
        };
        Ok(PostgresStore(Arc::new(inner)))
    }

    /// Finishes what waits to be written and closes every connection. Whatever is asked afterwards answers `Down`.
    pub async fn close(&self) -> Result<(), StoreError> {
        let inner = &*self.0;
        let writers = join_all(inner.writers().map(Writer::close));
        let (closed, (), ()) = futures::join!(writers, inner.pool.close(), inner.news.close());
        closed.into_iter().collect()
    }

    /// How much was written so far, and in how many transactions.
    pub fn writer_counts(&self) -> WriterCounts {
        let inner = &*self.0;
        let mut sum = WriterCounts::default();
        for counts in inner.writers().map(Writer::counts) {
            sum.transactions += counts.transactions;
            sum.writes += counts.writes;
            sum.statements += counts.statements;
        }
        sum
    }

    /// What the connections for reads have done.
    pub fn pool_figures(&self) -> PoolFigures {
        self.0.pool.figures()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Writes through the connection that ends attempts; where the data layer writes, too.
    pub(crate) async fn write<I, T, W>(
        &self,
        priority: Priority,
        bytes: usize,
        input: I,
        work: W,
    ) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        W: for<'s> Fn(&'s mut Session, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send + 'static,
    {
        self.0.settle.write(priority, bytes, input, work).await
    }

    /// Writes through the connection that keeps this host alive.
    async fn keep<I, T, W>(&self, input: I, work: W) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        W: for<'s> Fn(&'s mut Session, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send + 'static,
    {
        self.0.keep.write(Priority::Task, 0, input, work).await
    }
}

async fn writer(
    options: &PostgresOptions,
    purpose: &str,
    ahead: &Arc<Ahead>,
) -> Result<Writer<Session>, OpenError> {
    let connect = options.writer(purpose)?;
    let named = Named::of(options, &connect);
    let counters = Arc::new(Counters::default());
    let session =
        Session::open(connect, Arc::clone(&counters.statements), Arc::clone(ahead), options.segment_min)
            .await;
    Ok(Writer::start(session.map_err(|error| named.refused(error))?, counters, Box::new(())))
}

#[async_trait]
impl TaskStore for PostgresStore {
    async fn open_holder(&self, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
        self.keep((), move |session, ()| Box::pin(holder::open(session, now_ms, lease_ms))).await
    }

    async fn beat(&self, holder: Holder, now_ms: i64, lease_ms: i64) -> Result<Beat, StoreError> {
        let beat = self
            .0
            .keep
            .write_plain(0, (), move |session, ()| Box::pin(holder::beat(session, holder, now_ms, lease_ms)));
        beat.await
    }

    async fn close_holder(&self, holder: Holder, _now_ms: i64) -> Result<u64, StoreError> {
        self.keep((), move |session, ()| Box::pin(holder::close(session, holder))).await
    }

    async fn reserve_ids(&self, count: u32, now_ms: i64) -> Result<IdBlock, StoreError> {
        self.keep((), move |session, ()| Box::pin(holder::reserve_ids(session, count, now_ms))).await
    }

    async fn enqueue(&self, submits: Vec<Submit>, now_ms: i64) -> Result<Vec<Submitted>, StoreError> {
        let _writing = self.0.pool.writing(submits.iter().map(|submit| submit.tenant));
        self.0.submit.submit(submits, now_ms).await
    }

    /// After a lease that found nothing, a look comes first where nothing is expected: an idle host costs one statement a
    /// poll.
    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        if !request.expects && self.0.quiet.load(Ordering::Relaxed) {
            let look = self
                .0
                .lease
                .write_plain(0, request.clone(), |session, request| Box::pin(lease::look(session, request)));
            if let Some(nothing) = look.await? {
                return Ok(nothing);
            }
        }
        let lease = self.0.lease.lease(
            request,
            |session, request| Box::pin(lease::lease(session, request)),
            undo_lease,
        );
        let lease = lease.await?;
        self.0.quiet.store(lease.tasks.is_empty(), Ordering::Relaxed);
        Ok(lease)
    }

    async fn lease_next(
        &self,
        ask: Ask,
        until: Until<'_>,
    ) -> Result<Option<(LeaseRequest, Lease)>, StoreError> {
        let leased = self.0.submit.lease_next(
            ask,
            |session, request| {
                Box::pin(async move { Ok((request.clone(), lease::lease(session, request).await?)) })
            },
            |(_, lease)| undo_lease(lease),
            until,
        );
        let leased = leased.await?;
        if leased.is_some() {
            // It took what there was, as far as there was room.
            self.0.quiet.store(true, Ordering::Relaxed);
        }
        Ok(leased)
    }

    async fn settle(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let _writing = self.0.pool.writing(settlements.iter().map(|settlement| settlement.tenant));
        self.settle_all(holder, settlements, now_ms).await
    }

    async fn rescue(
        &self,
        dead: Dead,
        started: Vec<(TaskId, Token)>,
        now_ms: i64,
    ) -> Result<Rescued, StoreError> {
        self.keep(started, move |session, started| Box::pin(holder::rescue(session, dead, started, now_ms)))
            .await
    }

    async fn stale(&self, leases: Vec<(TaskId, Token)>) -> Result<Vec<(TaskId, Token)>, StoreError> {
        let stale =
            self.0.keep.write_plain(0, leases, |session, leases| Box::pin(holder::stale(session, leases)));
        stale.await
    }

    async fn cancel(&self, tenant: TenantId, id: TaskId, now_ms: i64) -> Result<CancelAnswer, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(end::cancel(session, tenant, id, now_ms))
        })
        .await
    }

    async fn retry(
        &self,
        tenant: TenantId,
        id: TaskId,
        amendment: Amendment,
        queue_max: u64,
        now_ms: i64,
    ) -> Result<RetryAnswer, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        let bytes = amendment.input.as_ref().map_or(0, |input| input.bytes.len());
        self.write(Priority::Task, bytes, amendment, move |session, amendment| {
            Box::pin(end::retry(session, tenant, id, amendment, queue_max, now_ms))
        })
        .await
    }

    async fn prune_finished(
        &self,
        tenant: TenantId,
        kept: KeptFrom,
        after: Option<TaskId>,
        count_max: u32,
    ) -> Result<Pruned, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        self.write(Priority::Background, 0, kept, move |session, kept| {
            Box::pin(prune::finished(session, tenant, kept, after, count_max))
        })
        .await
    }

    async fn cancel_group(
        &self,
        tenant: TenantId,
        id: GroupId,
        only_failed: bool,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Option<Vec<TaskId>>, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(group::cancel(session, tenant, id, only_failed, now_ms, count_max))
        })
        .await
    }

    async fn cancel_branch(
        &self,
        tenant: TenantId,
        branch: Branch,
        now_ms: i64,
        count_max: u32,
    ) -> Result<Cut, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(branch::cancel(session, tenant, branch, now_ms, count_max))
        })
        .await
    }

    async fn expire(&self, now_ms: i64, count_max: u32) -> Result<Expired, StoreError> {
        let expired = self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(end::expire(session, now_ms, count_max))
        });
        let expired = expired.await?;
        drop(self.0.pool.writing(expired.ended.iter().map(|(tenant, _)| *tenant)));
        Ok(expired)
    }

    async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<DropAnswer, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        self.write(Priority::Task, 0, (), move |session, ()| Box::pin(prune::one(session, tenant, id))).await
    }

    async fn prune(&self, now_ms: i64, count_max: u32) -> Result<u64, StoreError> {
        self.write(Priority::Background, 0, (), move |session, ()| {
            Box::pin(submit::prune_keys(session, now_ms, count_max))
        })
        .await
    }
}

#[async_trait]
impl Records for PostgresStore {
    async fn task(&self, tenant: TenantId, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        let task = records::task(&self.0.pool, tenant, id).await?;
        if task.as_ref().is_some_and(|task| task.summary.state.is_terminal()) {
            // Another host may have ended it.
            self.0.pool.told(tenant);
        }
        Ok(task)
    }

    async fn input(&self, tenant: TenantId, id: TaskId) -> Result<Option<Payload>, StoreError> {
        records::input(&self.0.pool, tenant, id).await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError> {
        records::list(&self.0.pool, tenant, filter, limit).await
    }

    async fn group(&self, tenant: TenantId, id: GroupId) -> Result<Option<Group>, StoreError> {
        group::group(&self.0.pool, tenant, id).await
    }

    async fn outcomes(
        &self,
        tenant: TenantId,
        tasks: (TaskId, TaskId),
        limit: u32,
    ) -> Result<Vec<Outcome>, StoreError> {
        group::outcomes(&self.0.pool, tenant, tasks, limit).await
    }

    async fn counts(&self, tenant: TenantId) -> Result<TaskCounts, StoreError> {
        records::counts(&self.0.pool, tenant).await
    }

    async fn live(&self) -> Result<HashMap<TenantId, u64>, StoreError> {
        records::live(&self.0.pool).await
    }

    async fn logs(&self, tenant: TenantId, id: TaskId) -> Result<Vec<(u32, Bytes)>, StoreError> {
        records::logs(&self.0.pool, tenant, id).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if !self.0.settle.is_open() {
            return Err(StoreError::new(StoreErrorKind::Down, "the store is closed"));
        }
        records::ping(&self.0.pool).await
    }
}

#[async_trait]
impl CatalogStore for PostgresStore {
    async fn ensure_tenants(&self, names: &[TenantName]) -> Result<Vec<Tenant>, StoreError> {
        self.write(Priority::Background, 0, names.to_vec(), |session, names| {
            Box::pin(catalog::ensure_tenants(session, names))
        })
        .await
    }

    async fn install(&self, version: NewVersion, now_ms: i64) -> Result<Installed, StoreError> {
        self.write(Priority::Background, 0, version, move |session, version| {
            Box::pin(catalog::install(session, version, now_ms))
        })
        .await
    }

    async fn version(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: &Target,
    ) -> Result<Option<PluginVersion>, StoreError> {
        generation::version(&self.0.pool, tenant, name, target).await
    }

    async fn activate(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: Target,
        now_ms: i64,
    ) -> Result<Activated, StoreError> {
        self.write(Priority::Background, 0, (name.clone(), target), move |session, (name, target)| {
            Box::pin(generation::activate(session, tenant, name, target, now_ms))
        })
        .await
    }

    async fn generations(
        &self,
        tenant: TenantId,
        name: &PluginName,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Generation>>, StoreError> {
        generation::generations(&self.0.pool, tenant, name, before, limit).await
    }

    async fn remove(
        &self,
        tenant: TenantId,
        name: &PluginName,
        when: RemoveWhen,
    ) -> Result<Removed, StoreError> {
        self.write(Priority::Background, 0, name.clone(), move |session, name| {
            Box::pin(catalog::remove(session, tenant, name, when))
        })
        .await
    }

    async fn plugins(&self) -> Result<Vec<Plugin>, StoreError> {
        catalog::plugins(&self.0.pool).await
    }

    async fn pause(&self, what: Paused, now_ms: i64) -> Result<bool, StoreError> {
        self.write(Priority::Background, 0, (), move |session, ()| {
            Box::pin(pause::pause(session, what, now_ms))
        })
        .await
    }

    async fn resume(&self, what: Paused) -> Result<bool, StoreError> {
        self.write(Priority::Background, 0, (), move |session, ()| Box::pin(pause::resume(session, what)))
            .await
    }

    async fn unpark(&self, what: Paused, count_max: u32) -> Result<u64, StoreError> {
        self.write(Priority::Background, 0, (), move |session, ()| {
            Box::pin(pause::unpark(session, what, count_max))
        })
        .await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        pause::pauses(&self.0.pool).await
    }
}

#[async_trait]
impl Components for PostgresStore {
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
        component::put(&self.0.pool, digest, bytes, now_ms).await
    }

    async fn forget(&self, before_ms: i64, now_ms: i64) -> Result<Option<Forgotten>, StoreError> {
        component::forget(&self.0.pool, before_ms, now_ms).await.map(Some)
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        component::get_bytes(&self.0.pool, digest).await
    }

    async fn put_artifact(&self, digest: Digest, name: ArtifactName, bytes: Bytes) -> Result<(), StoreError> {
        component::put_artifact(&self.0.pool, digest, name, bytes).await
    }

    async fn artifact(&self, digest: Digest, name: ArtifactName) -> Result<Option<Bytes>, StoreError> {
        component::artifact(&self.0.pool, digest, name).await
    }
}

#[async_trait]
impl Signals for PostgresStore {
    fn tell(&self, signal: Signal) {
        self.0.news.tell(signal);
    }

    async fn next(&self) -> Signal {
        self.0.news.next().await
    }
}

/// Gives back a lease that nobody heard of, or its tasks would run for nobody until the holder is closed.
fn undo_lease(lease: Lease) -> Option<Entry<Session>> {
    let tasks: Vec<_> = lease.tasks.iter().map(|task| (task.id, task.token)).collect();
    (!tasks.is_empty())
        .then(|| Entry::unheard(tasks, |session, tasks| Box::pin(lease::give_back(session, tasks))))
}
