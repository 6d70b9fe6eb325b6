//! The embedded store: three SQLite files and a lock in one folder, used by one process.
//!
//! - One connection writes, through the group commit of [`crate::transaction`]; several only read, and a
//!   read never waits for a write. A commit is on the disk before it is answered (WAL, `synchronous = FULL`), except for
//!   leases alone.
//! - Every method of [`TaskStore`] and every writing one of [`CatalogStore`] is one transaction, which it may
//!   share with others.
//! - Times come in as parameters: the store reads no clock, except to note when a migration ran.

pub mod admin;
mod agents;
pub(crate) mod batch;
mod branch;
mod cache;
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
mod once;
mod open;
mod pause;
#[cfg(test)]
mod plan;
mod prune;
mod records;
mod schedule;
pub(crate) mod session;
mod settle;
mod slot;
pub(crate) mod submit;
mod tree;
mod usage;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use keiko_core::catalog::{
    Activated, Generation, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Target, Tenant,
};
use keiko_core::group::{Group, Outcome};
use keiko_core::id::{Digest, GroupId, Holder, TaskId, TenantId, Token};
use keiko_core::name::{PluginName, TenantName};
use keiko_core::pause::{Pause, Paused};
use keiko_core::port::{
    Beat, CatalogStore, Components, Dead, Expired, Forgotten, IdBlock, Lease, LeaseRequest, Pruned, Records,
    Rescued, Signal, Signals, StoreError, StoreErrorKind, TaskStore,
};
use keiko_core::retention::KeptFrom;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, Payload, RetryAnswer, Settled, Settlement, Submit, Submitted,
    TaskCounts, TaskFilter, TaskSummary, TaskView,
};
use keiko_core::tree::{Branch, Cut};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqlitePool;

use self::cache::CacheFile;
pub use self::open::{Lock, OpenError};
use self::open::{log_if, pool_options, reader_options, writer_options};
use self::session::Session;
use crate::entry::Entry;
use crate::places::Places;
use crate::stored::payload_bytes;
pub use crate::transaction::WriterCounts;
use crate::transaction::{Counters, Priority, Writer};

/// Where the files are and how they are read.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The folder; made when it is missing.
    pub data_dir: PathBuf,
    /// Connections that only read; at least one.
    pub readers: u32,
    /// Whether every statement about tasks goes to the log, without its values.
    pub statement_log: bool,
}

/// A store in a folder. Clones share it; the folder's lock is held until the last one is gone or one is closed.
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    writer: Writer<Session>,
    readers: SqlitePool,
    /// Of the readers, for what guests ask as often as they like.
    places: Places,
    components: SqlitePool,
    cache: CacheFile,
}

impl SqliteStore {
    /// Opens the store, bringing its files to this binary's schema. Needs a Tokio runtime that stays.
    pub async fn open(options: SqliteOptions) -> Result<SqliteStore, OpenError> {
        let lock = Lock::take(&options.data_dir)?;
        let path = options.data_dir.join("keiko.db");
        let (writer, readers) = (writer_options(&path), reader_options(&path));
        let [writer, readers] = [writer, readers].map(|each| log_if(options.statement_log, each));
        let mut connection = writer.connect().await.map_err(OpenError::database(&path))?;
        migrate::migrate(&mut connection).await.map_err(OpenError::migrate(&path))?;
        let components = component::open(&options.data_dir.join("components.db")).await?;
        let installation =
            migrate::installation(&mut connection).await.map_err(OpenError::database(&path))?;
        let cache = CacheFile::open(&options.data_dir.join("cache.db"), installation).await?;
        let counters = Arc::new(Counters::default());
        let session = Session::new(connection, Arc::clone(&counters.statements));
        Ok(SqliteStore(Arc::new(Inner {
            writer: Writer::start(session, counters, Box::new(lock)),
            readers: pool_options(options.readers).connect_lazy_with(readers),
            places: Places::half_of(options.readers),
            components,
            cache,
        })))
    }

    /// Finishes what waits to be written, writes everything to the files, and frees the folder. Whatever is asked
    /// afterwards answers `Down`.
    pub async fn close(&self) -> Result<(), StoreError> {
        // Before the writer, whose last checkpoint then has the file for itself.
        self.0.readers.close().await;
        self.0.components.close().await;
        self.0.cache.close().await;
        self.0.writer.close().await
    }

    pub(crate) fn cache(&self) -> &CacheFile {
        &self.0.cache
    }

    async fn write<I, T, W>(
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
        self.0.writer.write(priority, bytes, input, work).await
    }

    /// How much was written so far, and in how many transactions.
    pub fn writer_counts(&self) -> WriterCounts {
        self.0.writer.counts()
    }
}

#[async_trait]
impl TaskStore for SqliteStore {
    async fn open_holder(&self, now_ms: i64, lease_ms: i64) -> Result<Holder, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(holder::open(session, now_ms, lease_ms))
        })
        .await
    }

    async fn beat(&self, holder: Holder, now_ms: i64, lease_ms: i64) -> Result<Beat, StoreError> {
        let beat = self
            .0
            .writer
            .write_plain(0, (), move |session, ()| Box::pin(holder::beat(session, holder, now_ms, lease_ms)));
        beat.await
    }

    async fn close_holder(&self, holder: Holder, _now_ms: i64) -> Result<u64, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| Box::pin(holder::close(session, holder))).await
    }

    async fn reserve_ids(&self, count: u32, now_ms: i64) -> Result<IdBlock, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(holder::reserve_ids(session, count, now_ms))
        })
        .await
    }

    async fn enqueue(&self, submits: Vec<Submit>, now_ms: i64) -> Result<Vec<Submitted>, StoreError> {
        self.0.writer.submit(submits, now_ms).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Lease, StoreError> {
        let lease = self.0.writer.lease(
            request,
            |session, request| Box::pin(lease::lease(session, request)),
            undo_lease,
        );
        lease.await
    }

    async fn settle(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let bytes = settlements.iter().map(payload_bytes).sum();
        self.write(Priority::Task, bytes, settlements, move |session, settlements| {
            Box::pin(settle::settle(session, holder, settlements, now_ms))
        })
        .await
    }

    async fn rescue(
        &self,
        dead: Dead,
        started: Vec<(TaskId, Token)>,
        now_ms: i64,
    ) -> Result<Rescued, StoreError> {
        self.write(Priority::Task, 0, started, move |session, started| {
            Box::pin(holder::rescue(session, dead, started, now_ms))
        })
        .await
    }

    async fn stale(&self, leases: Vec<(TaskId, Token)>) -> Result<Vec<(TaskId, Token)>, StoreError> {
        holder::stale(&self.0.readers, &leases).await
    }

    async fn cancel(&self, tenant: TenantId, id: TaskId, now_ms: i64) -> Result<CancelAnswer, StoreError> {
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
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(branch::cancel(session, tenant, branch, now_ms, count_max))
        })
        .await
    }

    async fn expire(&self, now_ms: i64, count_max: u32) -> Result<Expired, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(end::expire(session, now_ms, count_max))
        })
        .await
    }

    async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<DropAnswer, StoreError> {
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
impl Records for SqliteStore {
    async fn task(&self, tenant: TenantId, id: TaskId) -> Result<Option<TaskView>, StoreError> {
        records::task(&self.0.readers, tenant, id).await
    }

    async fn input(&self, tenant: TenantId, id: TaskId) -> Result<Option<Payload>, StoreError> {
        records::input(&self.0.readers, tenant, id).await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError> {
        records::list(&self.0.readers, tenant, filter, limit).await
    }

    async fn group(&self, tenant: TenantId, id: GroupId) -> Result<Option<Group>, StoreError> {
        group::group(&self.0.readers, tenant, id).await
    }

    async fn outcomes(
        &self,
        tenant: TenantId,
        tasks: (TaskId, TaskId),
        limit: u32,
    ) -> Result<Vec<Outcome>, StoreError> {
        group::outcomes(&self.0.readers, tenant, tasks, limit).await
    }

    async fn counts(&self, tenant: TenantId) -> Result<TaskCounts, StoreError> {
        records::counts(&self.0.readers, tenant).await
    }

    async fn live(&self) -> Result<HashMap<TenantId, u64>, StoreError> {
        records::live(&self.0.readers).await
    }

    async fn logs(&self, tenant: TenantId, id: TaskId) -> Result<Vec<(u32, Bytes)>, StoreError> {
        records::logs(&self.0.readers, tenant, id).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if !self.0.writer.is_open() {
            return Err(StoreError::new(StoreErrorKind::Down, "the store is closed"));
        }
        records::ping(&self.0.readers).await
    }
}

#[async_trait]
impl CatalogStore for SqliteStore {
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
        generation::version(&self.0.readers, tenant, name, target).await
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
        generation::generations(&self.0.readers, tenant, name, before, limit).await
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
        catalog::plugins(&self.0.readers).await
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
        pause::pauses(&self.0.readers).await
    }
}

/// The file is this process's alone: there is nobody to tell.
#[async_trait]
impl Signals for SqliteStore {
    fn tell(&self, _signal: Signal) {}

    async fn next(&self) -> Signal {
        std::future::pending().await
    }
}

#[async_trait]
impl Components for SqliteStore {
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
        component::put(&self.0.components, digest, bytes, now_ms).await
    }

    async fn forget(&self, before_ms: i64, now_ms: i64) -> Result<Option<Forgotten>, StoreError> {
        let named = catalog::named(&self.0.readers).await?;
        component::forget(&self.0.components, &named, before_ms, now_ms).await.map(Some)
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        component::get(&self.0.components, digest).await
    }
}

/// Gives back a lease that nobody heard of, or its tasks would run for nobody until the holder is closed.
fn undo_lease(lease: Lease) -> Option<Entry<Session>> {
    let tasks: Vec<_> = lease.tasks.iter().map(|task| (task.id, task.token)).collect();
    (!tasks.is_empty())
        .then(|| Entry::unheard(tasks, |session, tasks| Box::pin(lease::give_back(session, tasks))))
}
