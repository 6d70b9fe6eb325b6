//! The connections that read, and the data layer's. Whoever takes one says for whom: its role and its tenant are set in
//! the same moment, so that the database itself shows no other tenant's rows.
//!
//! - A tenant has at most half of the pool, so that it cannot keep the others out. Its place is taken first, then the
//!   pool's: nobody holds a connection while waiting for a tenant's place.
//! - Every use is one statement, which is its own transaction: a caller that goes away leaves nothing open.
//! - Lists and statistics may come from a replica: [`Pool::list`], and nothing else asks one. It says in the same moment
//!   whether it has replayed what the tenant has to find ([`super::replica`]); when it has not, is gone, or gives up, the
//!   primary answers. One that does not take connections within [`REPLICA_WAIT`] is left alone for [`REPLICA_REST`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, StoreErrorKind};
use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use tokio::time::{Instant, timeout_at};

use super::error::{is_lost, ran_too_long, store_error};
use super::open::OpenError;
use super::options::PostgresOptions;
use super::replica::{Freshness, Need, Position};
use super::row::get;
use crate::places::{Place, Places};
use crate::transaction::spawn;

/// Sets for whom a connection works from now on and how it plans, and says whether its server is a replica that has
/// replayed this much of the primary's log, if that is wanted.
pub(crate) const WORK_FOR: &str =
    "SELECT set_config('role', $1, false), set_config('keiko.tenant', $2, false),
    $3::bigint IS NULL OR pg_is_in_recovery()
        AND coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') >= $3, false),
    set_config('plan_cache_mode', $4, false)";

/// Where the primary's log ends, as far as it has been written for good: behind every commit that was answered.
const POSITION: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint";

/// How long a list waits for a connection to the replica.
const REPLICA_WAIT: Duration = Duration::from_secs(1);
/// How long a replica is left alone that could not be connected to.
const REPLICA_REST: Duration = Duration::from_secs(5);

/// What the pool has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Open connections.
    pub size: u32,
    /// Those that nobody uses.
    pub idle: u32,
    /// Those that somebody uses.
    pub in_use: u32,
    /// Reads that wait for one.
    pub waiting: u32,
    /// Reads that got one since the store was opened.
    pub acquires: u64,
    /// Reads that waited too long and got none.
    pub timeouts: u64,
    /// Reads that waited longer than the operator calls slow.
    pub slow: u64,
    /// Lists and statistics that the replica answered.
    pub replica_reads: u64,
    /// Those that the primary answered because the replica was behind, or gone.
    pub replica_fallbacks: u64,
}

/// The pool; clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    primary: Arc<Side>,
    replica: Option<Replica>,
    counters: Arc<Counters>,
    tenants: Places,
    places: u32,
    acquire_timeout: Duration,
    slow_acquire: Duration,
    test_before_use: bool,
}

/// The server that may answer lists.
struct Replica {
    side: Arc<Side>,
    freshness: Freshness,
    /// Until when it is left alone.
    rest: Mutex<Option<Instant>>,
}

/// The connections to one server.
struct Side {
    pool: PgPool,
    kept: u32,
    /// Connections on their way out, which the pool still counts.
    closing: AtomicU32,
}

impl Side {
    fn new(options: &PostgresOptions, connect: PgConnectOptions) -> Arc<Side> {
        let pool = pool(options, connect);
        Arc::new(Side { pool, kept: options.size.max(1), closing: AtomicU32::default() })
    }

    /// Whether one of the connections is to be closed instead of given back; whoever is told so closes it.
    fn sheds_one(&self) -> bool {
        let more =
            |closing: u32| (self.pool.size().saturating_sub(closing) > self.kept).then_some(closing + 1);
        self.closing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

#[derive(Default)]
struct Counters {
    in_use: AtomicU32,
    waiting: AtomicU32,
    acquires: AtomicU64,
    timeouts: AtomicU64,
    slow: AtomicU64,
    replica_reads: AtomicU64,
    replica_fallbacks: AtomicU64,
}

impl Pool {
    /// A pool that connects when somebody asks.
    pub(crate) fn new(options: &PostgresOptions) -> Result<Pool, OpenError> {
        let counters = Arc::new(Counters::default());
        let primary = Side::new(options, options.reader(&options.url)?);
        let replica = match &options.replica_url {
            Some(url) => Some(Replica {
                side: Side::new(options, options.reader(url)?),
                freshness: Freshness::new(options.replica_lag_max),
                rest: Mutex::default(),
            }),
            None => None,
        };
        let places = places(options);
        Ok(Pool(Arc::new(Inner {
            primary,
            replica,
            counters,
            tenants: Places::half_of(places),
            places,
            acquire_timeout: options.acquire_timeout,
            slow_acquire: options.slow_acquire,
            test_before_use: options.test_before_use,
        })))
    }

    /// A connection that sees and writes this tenant's rows.
    pub(crate) async fn tenant(&self, tenant: TenantId) -> Result<TenantConnection, StoreError> {
        let start = Instant::now();
        let place = self.place(tenant, start).await?;
        self.tenant_in(place, start, Plans::Own).await
    }

    /// The same for a statement that finds its few rows by their keys, of whichever tenant: it is planned once, which
    /// takes several times as long as to run it.
    pub(crate) async fn by_key(&self, tenant: TenantId) -> Result<TenantConnection, StoreError> {
        let start = Instant::now();
        let place = self.place(tenant, start).await?;
        self.tenant_in(place, start, Plans::Common).await
    }

    async fn tenant_in(
        &self,
        place: Place,
        start: Instant,
        plans: Plans,
    ) -> Result<TenantConnection, StoreError> {
        let work = Work { plans, ..Work::tenant(place.tenant) };
        let connection = self.take(&self.0.primary, &work, start + self.0.acquire_timeout).await?;
        self.got(start);
        Ok(TenantConnection { connection, place })
    }

    /// The rows of a list or of statistics: this tenant's, perhaps as they were a moment ago, but never without what the
    /// tenant wrote through this host.
    pub(crate) async fn list<'q>(
        &self,
        tenant: TenantId,
        query: impl Fn(TenantId) -> Query<'q, Postgres, PgArguments> + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        let start = Instant::now();
        let place = self.place(tenant, start).await?;
        if let Some(replica) = &self.0.replica {
            let counters = &self.0.counters;
            if let Some(answer) = self.ask_replica(replica, tenant, query(tenant)).await {
                counters.replica_reads.fetch_add(1, Ordering::Relaxed);
                self.got(start);
                return answer;
            }
            counters.replica_fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        self.tenant_in(place, start, Plans::Own).await?.rows(query(tenant)).await
    }

    /// Notes that the tenant was told of what somebody wrote, so that its lists have it too.
    pub(crate) fn told(&self, tenant: TenantId) {
        if let Some(replica) = &self.0.replica {
            replica.freshness.wrote(tenant);
        }
    }

    /// Notes that these tenants wrote as soon as the answer is dropped: when the write is over, however it ended.
    pub(crate) fn writing(&self, tenants: impl IntoIterator<Item = TenantId>) -> Writing<'_> {
        let mut tenants: Vec<TenantId> =
            if self.0.replica.is_some() { tenants.into_iter().collect() } else { Vec::new() };
        tenants.sort_unstable();
        tenants.dedup();
        Writing { pool: self, tenants }
    }

    /// The replica's answer; `None` when the primary has to give it.
    async fn ask_replica(
        &self,
        replica: &Replica,
        tenant: TenantId,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Option<Result<Vec<PgRow>, StoreError>> {
        let now = Instant::now();
        if replica.rest.lock().is_some_and(|until| now < until) {
            return None;
        }
        let position = match replica.freshness.need(tenant, now) {
            Need::Known(position) => position,
            Need::Ask(question) => {
                let row = self.system().await.ok()?.row(sqlx::query(POSITION)).await.ok()??;
                replica.freshness.learn(question, tenant, get(&row, 0).ok()?)
            }
        };
        let work = Work { replayed: Some(position), ..Work::tenant(tenant) };
        let start = Instant::now();
        let taken = self.take(&replica.side, &work, start + REPLICA_WAIT).await;
        if let Err(error) = &taken {
            // A pool that is full says nothing about the server.
            if replica.side.pool.size() < self.0.places {
                tracing::warn!(error = %error, "the replica cannot be reached; the primary answers lists");
                *replica.rest.lock() = Some(Instant::now() + REPLICA_REST);
            }
        }
        let mut connection = taken.ok()?;
        if !connection.replayed {
            return None;
        }
        match connection.rows(query).await {
            // It would run for as long on the primary.
            Err(error) if ran_too_long(&error) => Some(Err(error)),
            // Lost, or in the way of what is replayed.
            Err(_) => None,
            rows => Some(rows),
        }
    }

    /// A connection that sees every tenant's rows, for what is nobody's or everybody's.
    pub(crate) async fn system(&self) -> Result<SystemConnection, StoreError> {
        let start = Instant::now();
        let work = Work { role: "keiko_system", tenant: String::new(), replayed: None, plans: Plans::Own };
        let connection = self.take(&self.0.primary, &work, start + self.0.acquire_timeout).await?;
        self.got(start);
        Ok(SystemConnection { connection })
    }

    /// One of the tenant's places.
    async fn place(&self, tenant: TenantId, start: Instant) -> Result<Place, StoreError> {
        let _waiting = Counted::new(&self.0.counters, |counters| &counters.waiting);
        let place = timeout_at(start + self.0.acquire_timeout, self.0.tenants.take(tenant)).await;
        place.map_err(|_| self.timed_out())
    }

    /// A connection that works for this role and tenant from now on.
    async fn take(&self, side: &Arc<Side>, work: &Work, until: Instant) -> Result<Used, StoreError> {
        let waiting = Counted::new(&self.0.counters, |counters| &counters.waiting);
        // Whatever was idle may be dead, and then one that is new.
        let mut tries = if self.0.test_before_use { self.0.places + 1 } else { 1 };
        let connection = loop {
            tries -= 1;
            let acquired = timeout_at(until, side.pool.acquire()).await;
            let mut connection = match acquired {
                Ok(Ok(connection)) => connection,
                Err(_) | Ok(Err(sqlx::Error::PoolTimedOut)) => return Err(self.timed_out()),
                Ok(Err(error)) => return Err(store_error(error)),
            };
            let used = Counted::new(&self.0.counters, |counters| &counters.in_use);
            let set = sqlx::query(WORK_FOR).bind(work.role).bind(&work.tenant).bind(work.replayed);
            let set = set.bind(work.plans.mode());
            match set.fetch_one(&mut *connection).await.and_then(|row| row.try_get(2)) {
                Ok(replayed) => {
                    let (side, counters) = (Arc::clone(side), Arc::clone(&self.0.counters));
                    break Used { connection: Some(connection), side, counters, replayed, _used: used };
                }
                Err(error) => {
                    connection.close_on_drop();
                    if !is_lost(&error) || tries == 0 {
                        return Err(store_error(error));
                    }
                }
            }
        };
        drop(waiting);
        Ok(connection)
    }

    /// Counts a read that has its connection.
    fn got(&self, start: Instant) {
        self.0.counters.acquires.fetch_add(1, Ordering::Relaxed);
        if start.elapsed() > self.0.slow_acquire {
            self.0.counters.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn timed_out(&self) -> StoreError {
        self.0.counters.timeouts.fetch_add(1, Ordering::Relaxed);
        StoreError::new(StoreErrorKind::Busy, "no connection became free in time")
    }

    pub(crate) fn figures(&self) -> PoolFigures {
        let sides = [Some(&self.0.primary), self.0.replica.as_ref().map(|replica| &replica.side)];
        let counters = &self.0.counters;
        PoolFigures {
            size: sides.iter().flatten().map(|side| side.pool.size()).sum(),
            idle: sides.iter().flatten().map(|side| side.pool.num_idle() as u32).sum(),
            in_use: counters.in_use.load(Ordering::Relaxed),
            waiting: counters.waiting.load(Ordering::Relaxed),
            acquires: counters.acquires.load(Ordering::Relaxed),
            timeouts: counters.timeouts.load(Ordering::Relaxed),
            slow: counters.slow.load(Ordering::Relaxed),
            replica_reads: counters.replica_reads.load(Ordering::Relaxed),
            replica_fallbacks: counters.replica_fallbacks.load(Ordering::Relaxed),
        }
    }

    /// Waits for those who read, and closes every connection.
    pub(crate) async fn close(&self) {
        self.0.primary.pool.close().await;
        if let Some(replica) = &self.0.replica {
            replica.side.pool.close().await;
        }
    }
}

/// Tenants that write.
pub(crate) struct Writing<'p> {
    pool: &'p Pool,
    tenants: Vec<TenantId>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.tenants.iter().for_each(|tenant| self.pool.told(*tenant));
    }
}

/// For whom a connection is taken.
struct Work {
    role: &'static str,
    /// Empty when it is nobody.
    tenant: String,
    /// How far a replica must be.
    replayed: Option<Position>,
    plans: Plans,
}

/// How statements are planned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plans {
    /// Anew for their values: a plan for any tenant is one for the average tenant, and walks the others' rows for a small
    /// one.
    Own,
    /// Once.
    Common,
}

impl Plans {
    /// The setting's value.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Plans::Own => "force_custom_plan",
            Plans::Common => "force_generic_plan",
        }
    }
}

impl Work {
    fn tenant(tenant: TenantId) -> Work {
        Work { role: "keiko_tenant", tenant: tenant.to_string(), replayed: None, plans: Plans::Own }
    }
}

/// Connections that the pool may open.
fn places(options: &PostgresOptions) -> u32 {
    options.size.saturating_add(options.overflow).max(1)
}

fn pool(options: &PostgresOptions, connect: PgConnectOptions) -> PgPool {
    let or_never = |time: Duration| (!time.is_zero()).then_some(time);
    PgPoolOptions::new()
        .max_connections(places(options))
        .acquire_timeout(options.acquire_timeout)
        .max_lifetime(or_never(options.recycle))
        .idle_timeout(or_never(options.idle))
        // Setting the role is the test.
        .test_before_acquire(false)
        .acquire_slow_threshold(Duration::MAX)
        .connect_lazy_with(connect)
}

/// A connection that sees and writes one tenant's rows. The only way to the tables of tenants from here: every query
/// still names the tenant, and the database's own rules stand behind it.
pub(crate) struct TenantConnection {
    connection: Used,
    place: Place,
}

impl TenantConnection {
    /// Whose rows these are.
    pub(crate) fn id(&self) -> TenantId {
        self.place.tenant
    }

    /// Runs a statement; its rows.
    pub(crate) async fn rows(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.connection.rows(query).await
    }

    /// Runs a statement; its one row, if it has one.
    pub(crate) async fn row(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, StoreError> {
        self.connection.row(query).await
    }
}

/// A connection that sees every tenant's rows.
pub(crate) struct SystemConnection {
    connection: Used,
}

impl SystemConnection {
    /// Runs a statement; its rows.
    pub(crate) async fn rows(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.connection.rows(query).await
    }

    /// Runs a statement; its one row, if it has one.
    pub(crate) async fn row(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, StoreError> {
        self.connection.row(query).await
    }
}

/// A connection that is in use.
struct Used {
    /// There until this is dropped.
    connection: Option<PoolConnection<Postgres>>,
    side: Arc<Side>,
    counters: Arc<Counters>,
    /// Whether its server has replayed what was wanted.
    replayed: bool,
    _used: Counted,
}

impl Used {
    async fn rows(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, StoreError> {
        let outcome = query.fetch_all(&mut **self.connection()?).await;
        self.noted(outcome)
    }

    async fn row(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<Option<PgRow>, StoreError> {
        let outcome = query.fetch_optional(&mut **self.connection()?).await;
        self.noted(outcome)
    }

    fn connection(&mut self) -> Result<&mut PoolConnection<Postgres>, StoreError> {
        self.connection.as_mut().ok_or_else(|| store_error(sqlx::Error::PoolClosed))
    }

    fn noted<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        outcome.map_err(|error| {
            if let (true, Some(connection)) = (is_lost(&error), &mut self.connection) {
                connection.close_on_drop();
            }
            store_error(error)
        })
    }
}

impl Drop for Used {
    /// What is beyond the kept ones is closed, unless somebody waits for it.
    fn drop(&mut self) {
        let wanted = self.counters.waiting.load(Ordering::Relaxed) > 0;
        if wanted || tokio::runtime::Handle::try_current().is_err() || !self.side.sheds_one() {
            return;
        }
        let (connection, side) = (self.connection.take(), Arc::clone(&self.side));
        spawn(async move {
            if let Some(connection) = connection {
                // A server that is gone has closed it already.
                let _ = connection.close().await;
            }
            side.closing.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One more in a counter, until it is dropped.
struct Counted {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU32,
}

impl Counted {
    fn new(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU32) -> Counted {
        which(counters).fetch_add(1, Ordering::Relaxed);
        Counted { counters: Arc::clone(counters), which }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}
