//! The store of a host, whichever engine it has: the one place that chooses.
//!
//! A data folder is one host's, also when its tasks are in PostgreSQL: the journal of what runs and the compiled
//! components are in it.

use std::error::Error;
use std::sync::Arc;

use keiko_core::cache::Installation;
use keiko_core::port::{
    Agents, BatchRecords, BatchStore, CacheLevel, CanaryStore, CatalogStore, Components, History, Records,
    Schedules, Signals, StoreError, TaskStore, Usage,
};
use keiko_store::admin::Numbers;
use keiko_store::postgres::{self, PostgresOptions, PostgresStore};
use keiko_store::sqlite::{self, Lock, SqliteOptions, SqliteStore};

use crate::api::PoolLook;
use crate::config::{Config, Database};

/// An open store. The host that closes it has it to itself.
pub(crate) enum Store {
    /// Files in the data folder, which they lock.
    Sqlite(SqliteStore),
    /// A server; a host locks its data folder all the same.
    Postgres(PostgresStore, #[expect(dead_code, reason = "held, never used")] Option<Lock>),
}

/// What the store is to the rest of the host.
pub(crate) struct Seams {
    pub(crate) tasks: Arc<dyn TaskStore>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) catalog: Arc<dyn CatalogStore>,
    pub(crate) canaries: Arc<dyn CanaryStore>,
    pub(crate) components: Arc<dyn Components>,
    pub(crate) agents: Arc<dyn Agents>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) batches: Arc<dyn BatchStore>,
    pub(crate) batch_records: Arc<dyn BatchRecords>,
    pub(crate) cache: Arc<dyn CacheLevel>,
    pub(crate) usage: Arc<dyn Usage>,
    pub(crate) schedules: Arc<dyn Schedules>,
    pub(crate) signals: Arc<dyn Signals>,
}

/// Why there is no store. The text has every cause, and no password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files.
    #[error("{}", with_causes(.0))]
    Sqlite(sqlite::OpenError),
    /// The server.
    #[error("{}", with_causes(.0))]
    Postgres(postgres::OpenError),
}

impl Store {
    /// Opens what the configuration names, and brings it to this binary's schema.
    pub(crate) async fn open(config: &Config) -> Result<Store, OpenError> {
        let Some(options) = postgres_options(&config.database) else {
            let options = SqliteOptions {
                data_dir: config.data_dir.clone(),
                readers: config.readers,
                statement_log: config.database.statement_log,
            };
            return Ok(Store::Sqlite(SqliteStore::open(options).await.map_err(OpenError::Sqlite)?));
        };
        let lock = Lock::take(&config.data_dir).map_err(OpenError::Sqlite)?;
        let store = PostgresStore::open(options).await.map_err(OpenError::Postgres)?;
        Ok(Store::Postgres(store, Some(lock)))
    }

    /// Opens what the configuration names beside a host that may be there: a server is open to many, files are not.
    pub(crate) async fn open_beside(config: &Config) -> Result<Store, OpenError> {
        match postgres_options(&config.database) {
            Some(options) => {
                let store = PostgresStore::open(options).await.map_err(OpenError::Postgres)?;
                Ok(Store::Postgres(store, None))
            }
            None => Store::open(config).await,
        }
    }

    /// The store behind the seams.
    pub(crate) fn seams(&self) -> Seams {
        match self {
            Store::Sqlite(store) => seams(store),
            Store::Postgres(store, _) => seams(store),
        }
    }

    /// The random name of the database.
    pub(crate) async fn installation(&self) -> Result<Installation, StoreError> {
        match self {
            Store::Sqlite(store) => Ok(store.installation()),
            Store::Postgres(store, _) => store.installation().await,
        }
    }

    /// Whether other hosts may use the same database.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Store::Postgres(..))
    }

    /// The last numbers given out.
    pub(crate) async fn numbers(&self) -> Result<Numbers, StoreError> {
        match self {
            Store::Sqlite(store) => store.numbers().await,
            Store::Postgres(store, _) => store.numbers().await,
        }
    }

    /// What looks at the pool of connections, where there is one.
    pub(crate) fn pool_look(&self) -> PoolLook {
        match self {
            Store::Sqlite(_) => Box::new(|| None),
            Store::Postgres(store, _) => {
                let store = store.clone();
                Box::new(move || Some(store.pool_figures()))
            }
        }
    }

    /// Takes a number, so that the database has counted further than any copy that was made of it before.
    pub(crate) async fn take_number(&self, now_ms: i64) -> Result<(), StoreError> {
        self.seams().tasks.reserve_ids(1, now_ms).await.map(drop)
    }

    /// Finishes what waits to be written, and ends.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        match self {
            Store::Sqlite(store) => store.close().await,
            Store::Postgres(store, _) => store.close().await,
        }
    }
}

fn seams<S>(store: &S) -> Seams
where
    S: TaskStore
        + Records
        + CatalogStore
        + CanaryStore
        + Components
        + Agents
        + History
        + BatchStore
        + BatchRecords
        + CacheLevel
        + Usage
        + Schedules
        + Signals
        + Clone,
{
    Seams {
        tasks: Arc::new(store.clone()),
        records: Arc::new(store.clone()),
        catalog: Arc::new(store.clone()),
        canaries: Arc::new(store.clone()),
        components: Arc::new(store.clone()),
        agents: Arc::new(store.clone()),
        history: Arc::new(store.clone()),
        batches: Arc::new(store.clone()),
        batch_records: Arc::new(store.clone()),
        cache: Arc::new(store.clone()),
        usage: Arc::new(store.clone()),
        schedules: Arc::new(store.clone()),
        signals: Arc::new(store.clone()),
    }
}

/// The server's options in the store's words; `None` without a server.
pub(crate) fn postgres_options(database: &Database) -> Option<PostgresOptions> {
    let url = database.url.as_ref()?;
    Some(PostgresOptions {
        replica_url: database.replica_url.as_ref().map(|url| url.reveal().to_owned()),
        replica_lag_max: database.replica_lag_max,
        size: database.pool_size,
        overflow: database.pool_overflow,
        acquire_timeout: database.acquire_timeout,
        recycle: database.recycle,
        idle: database.idle_timeout,
        test_before_use: database.test_before_use,
        statement_log: database.statement_log,
        statement_cache: database.statement_cache,
        slow_acquire: database.slow_acquire,
        ..PostgresOptions::new(url.reveal())
    })
}

/// An error and everything that caused it, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat the one below them.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
