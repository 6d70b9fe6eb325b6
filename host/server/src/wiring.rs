//! Puts store, engine, runtime and HTTP together: the one place that makes a [`Host`], spawns, and reads the
//! system's clock.
//!
//! Order of a start: data folder, port, key, store, engine, runtime, HTTP. A drain goes the other way: the runtime
//! first, while HTTP still answers (`/readyz` with 503); then HTTP; then the store.

use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use keiko_core::limit::{BEAT_MS, IDLE_BEAT_MS, LEASE_MS, SELF_CANCEL_MS};
use keiko_core::port::{CacheLevel, Clock, Components, InstallError, StoreError};
use keiko_engine::{ClusterKey, Compiler, Engine, EngineOptions, KeyError};
use keiko_runtime::cache::CacheParts;
use keiko_runtime::{DrainReport, Handle, Options, Parts, Runtime};
use keiko_store::redis::RedisLevel;
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, Listening, Metrics, PoolLook, serve};
use crate::auth::Auth;
use crate::config::Config;
use crate::seen::Seen;
use crate::signature::Signers;
use crate::source::Sources;
use crate::store::{OpenError, Seams, Store};
use crate::watch::{WatchedFiles, Watcher};

/// The argument that makes the program compile one component and nothing else.
pub const COMPILE_CHILD: &str = "compile-child";
/// How long open connections, and a last word with the database, may take to end when everything else has.
const LAST_STOP_TIME: Duration = Duration::from_secs(5);
/// The folder in the data folder for the journal of running attempts.
const JOURNAL: &str = "journal";
/// The file in the data folder that names the address of the host that runs there.
pub const ADDRESS_FILE: &str = "keiko.address";

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error("the data folder {} cannot be used: {error}", path.display())]
    DataDir {
        /// The folder, or the file in it.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// Whoever reaches the address could do everything.
    #[error("refusing to listen on {0}: other machines can reach it, and no tenant has a token")]
    Exposed(SocketAddr),
    /// The key of the artifacts cannot be read.
    #[error("the cluster key in the data folder: {0}")]
    Key(KeyError),
    /// The database cannot be opened.
    #[error(transparent)]
    Store(OpenError),
    /// The database cannot be read.
    #[error("the database: {0}")]
    Database(StoreError),
    /// The client of Redis cannot be made.
    #[error("the cache: {}", crate::store::with_causes(.0))]
    Redis(keiko_store::redis::OpenError),
    /// The engine cannot be made.
    #[error("the engine: {0}")]
    Engine(InstallError),
    /// The runtime cannot start.
    #[error("the runtime: {0}")]
    Runtime(keiko_runtime::Error),
    /// The compile child's program is not known, or is this process itself in that role.
    #[error("no program for compiling: {0}")]
    Compiler(String),
}

/// How a host is made. Everything has a default.
#[derive(Clone, Debug)]
pub struct HostBuilder {
    config: Config,
    http: bool,
    compiler: Option<Compiler>,
}

impl HostBuilder {
    /// Keeps everything in this folder, which is made when it is missing.
    #[must_use]
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> HostBuilder {
        self.config.data_dir = data_dir.into();
        self
    }

    /// Serves HTTP on this address; port 0 picks one.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> HostBuilder {
        self.config.listen = address;
        self.http = true;
        self
    }

    /// Serves no HTTP: the host is reached through [`Host::handle`] alone.
    #[must_use]
    pub fn without_http(mut self) -> HostBuilder {
        self.http = false;
        self
    }

    /// Runs with this configuration. Goes before [`HostBuilder::data_dir`] and [`HostBuilder::listen`], which
    /// change parts of it.
    #[must_use]
    pub fn config(mut self, config: Config) -> HostBuilder {
        self.config = config;
        self
    }

    /// Compiles components with this program, which must call [`keiko_engine::compile_child`] when it is started
    /// with these arguments. Without this, it is the running program with the argument [`COMPILE_CHILD`].
    #[must_use]
    pub fn compiler(mut self, program: impl Into<PathBuf>, arguments: Vec<OsString>) -> HostBuilder {
        self.compiler = Some(Compiler { program: program.into(), arguments });
        self
    }

    /// Starts the host: recovers what an earlier one left, and takes tasks when this returns.
    pub async fn build(self) -> Result<Host, StartError> {
        let HostBuilder { config, http, compiler } = self;
        let compiler = compiler.map_or_else(own_compiler, Ok)?;
        if http && config.is_open() && !config.listen.ip().is_loopback() {
            return Err(StartError::Exposed(config.listen));
        }
        let data_dir = config.data_dir.clone();
        make_folder(&data_dir.join(JOURNAL))?;
        let listening = if http { Some(bind(config.listen).await?) } else { None };
        let store = Store::open(&config).await.map_err(StartError::Store)?;
        let seen = Seen::new(&data_dir, &config.database);
        look_back(&store, &seen).await?;
        let cluster_key = cluster_key(&config, &data_dir)?;
        let Seams {
            tasks,
            records,
            catalog,
            canaries,
            components,
            agents,
            history,
            batches,
            batch_records,
            cache,
            usage,
            schedules,
            signals,
        } = store.seams();
        let engine = EngineOptions {
            artifacts_dir: data_dir.join("artifacts"),
            cluster_key,
            compiler,
            running_max: config.running_max,
        };
        let engine = Engine::new(engine, Arc::clone(&components)).map_err(StartError::Engine)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let cache = cache_parts(&config, &store, cache, Arc::clone(&clock)).await?;
        let parts = Parts {
            tasks,
            records,
            catalog,
            canaries,
            components: Arc::clone(&components),
            agents,
            history,
            batches,
            batch_records,
            cache,
            usage,
            schedules,
            signals,
            runner: Arc::new(engine.clone()),
            clock: Arc::clone(&clock),
        };
        let tenants = config.tenants.iter().map(|tenant| tenant.options.clone()).collect();
        let started = Runtime::start(parts, runtime_options(&config), tenants).await;
        let (runtime, handle) = started.map_err(StartError::Runtime)?;
        remember(&store, &seen).await;
        let watching = Watching::start(&config, &handle, &clock);
        let http = match listening {
            Some(listening) => {
                let watched = watching.as_ref().map(|watching| watching.files.clone()).unwrap_or_default();
                let parts = (components, engine, clock, store.pool_look(), watched);
                Some(Http::start(listening, &config, handle.clone(), parts)?)
            }
            None => None,
        };
        Ok(Host { runtime, handle, store, seen, http, watching })
    }
}

/// The key that hosts of one database share: the configuration's, or a file's.
fn cluster_key(config: &Config, data_dir: &Path) -> Result<ClusterKey, StartError> {
    match &config.cluster_key {
        Some(key) => Ok(key.clone()),
        None => ClusterKey::load_or_create(&data_dir.join("cluster.key")).map_err(StartError::Key),
    }
}

/// A running host. [`Host::drain`] ends it; dropping it without leaves what a crash would leave.
pub struct Host {
    runtime: Runtime,
    handle: Handle,
    store: Store,
    seen: Seen,
    http: Option<Http>,
    watching: Option<Watching>,
}

impl Host {
    /// A host with the default configuration, serving HTTP on 127.0.0.1:7700 and keeping everything in `data`.
    pub fn builder() -> HostBuilder {
        HostBuilder { config: Config::defaults(), http: true, compiler: None }
    }

    /// Talks to the host without HTTP.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where HTTP is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    /// Serves until `shutdown`, then drains.
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> DrainReport {
        shutdown.await;
        self.drain().await
    }

    /// Takes no more tasks, lets what runs end within the drain time, hands the rest back, and stops.
    pub async fn drain(self) -> DrainReport {
        let Host { runtime, handle, store, seen, http, watching } = self;
        if let Some(watching) = watching {
            watching.stop().await;
        }
        let report = runtime.drain().await;
        drop(handle);
        if let Some(http) = http {
            http.stop().await;
        }
        let closing = async {
            remember_end(&store, &seen).await;
            store.close().await
        };
        // A database that does not answer must not hold up the end.
        match tokio::time::timeout(LAST_STOP_TIME, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "the database was not closed in order; the next start repairs that");
            }
            Err(_) => tracing::warn!("the database was not closed in time; the next start repairs that"),
        }
        report
    }
}

/// The HTTP side of a host, while it serves.
struct Http {
    address: SocketAddr,
    address_file: PathBuf,
    stop: CancellationToken,
    serving: TaskTracker,
}

impl Http {
    fn start(
        listening: Listening,
        config: &Config,
        handle: Handle,
        (components, engine, clock, pool, watched): (
            Arc<dyn Components>,
            Engine,
            Arc<dyn Clock>,
            PoolLook,
            WatchedFiles,
        ),
    ) -> Result<Http, StartError> {
        let address = listening.address();
        let address_file = config.data_dir.join(ADDRESS_FILE);
        write_address(&address_file, address)?;
        let mut tenants = std::collections::HashMap::new();
        let mut tokens = std::collections::HashMap::new();
        let mut open = None;
        for tenant in &config.tenants {
            let Some(id) = handle.tenant(&tenant.options.name) else { continue };
            tenants.insert(id, tenant.options.name.clone());
            open = Some(id);
            tokens.extend(tenant.tokens.iter().map(|entry| (entry.id.clone(), (id, entry.clone()))));
        }
        let auth = match open {
            Some(tenant) if config.is_open() => Auth::Open(tenant),
            _ => Auth::Tokens(tokens),
        };
        let signers = Arc::new(signers(config, &handle));
        let api = Arc::new(Api {
            handle,
            components,
            auth,
            tenants,
            clock,
            limits: config.api,
            metrics: Metrics::new(),
            engine,
            pool,
            signers,
            sources: Sources::new(config.sources.clone()),
            watched,
        });
        let (stop, serving) = (CancellationToken::new(), TaskTracker::new());
        spawn(&serving, serve(listening, api, stop.clone()));
        serving.close();
        Ok(Http { address, address_file, stop, serving })
    }

    async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(LAST_STOP_TIME, self.serving.wait()).await.is_err() {
            tracing::warn!("connections were still open when the host stopped");
        }
        // Nobody is misled by an address that stays: it only costs the next client a refused connection.
        let _ = std::fs::remove_file(&self.address_file);
    }
}

/// Whom each tenant believes.
fn signers(config: &Config, handle: &Handle) -> Signers {
    let tenants = config.tenants.iter();
    Signers::new(
        tenants.filter_map(|tenant| Some((handle.tenant(&tenant.options.name)?, tenant.signers.clone()))),
    )
}

/// The watching of a folder, while there is one to watch.
struct Watching {
    files: WatchedFiles,
    stop: CancellationToken,
    watching: TaskTracker,
}

impl Watching {
    fn start(config: &Config, handle: &Handle, clock: &Arc<dyn Clock>) -> Option<Watching> {
        let folder = config.plugins_dir.clone()?;
        let names = config.tenants.iter().map(|tenant| tenant.options.name.clone());
        let tenants = names.filter_map(|name| handle.tenant(&name).map(|id| (name, id))).collect();
        let files = WatchedFiles::default();
        let watcher = Watcher {
            handle: handle.clone(),
            clock: Arc::clone(clock),
            folder,
            data_dir: config.data_dir.clone(),
            tenants,
            signers: Arc::new(signers(config, handle)),
            files: Arc::clone(&files),
        };
        let (stop, watching) = (CancellationToken::new(), TaskTracker::new());
        spawn(&watching, watcher.watch(stop.clone()));
        watching.close();
        Some(Watching { files, stop, watching })
    }

    async fn stop(self) {
        self.stop.cancel();
        // An install that has begun may take as long as a compilation: what it does is whole or not at all.
        let _ = tokio::time::timeout(LAST_STOP_TIME, self.watching.wait()).await;
    }
}

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one implementation of `Clock` that asks the system")]
    fn now_ms(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// The time of the kernel's last tick, which is there to be read; the processor's counter is not asked.
    fn about_now_ms(&self) -> i64 {
        let time = clock_gettime(ClockId::RealtimeCoarse);
        time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
    }
}

/// Does what waits for a disk on a thread where it holds up nobody.
pub(crate) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Its runtime ends, and with it whoever waits here.
        Err(_) => std::future::pending().await,
    }
}

/// Spawns a task that `tracker` waits for.
pub(crate) fn spawn(tracker: &TaskTracker, future: impl Future<Output = ()> + Send + 'static) {
    drop(tracker.spawn(future));
}

/// The running program in its other role.
pub(crate) fn own_compiler() -> Result<Compiler, StartError> {
    // A program that does not know the role would start a host in it, which would start another, and so on.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == COMPILE_CHILD) {
        let text = format!(
            "this program was started as `{COMPILE_CHILD}` and did not compile; see `HostBuilder::compiler`"
        );
        return Err(StartError::Compiler(text));
    }
    let program = std::env::current_exe().map_err(|error| StartError::Compiler(error.to_string()))?;
    Ok(Compiler { program, arguments: vec![COMPILE_CHILD.into()] })
}

/// Names the point at which a test kills the host: `batch-formed:3`.
const KILL_AT: &str = "KEIKO_KILL_AT";

fn runtime_options(config: &Config) -> Options {
    // As much of this lease as of the usual one.
    let part_of_lease = |ms: u64| config.lease.mul_f64(ms as f64 / LEASE_MS as f64);
    Options {
        workers: config.workers,
        cores: config.worker_cores.clone(),
        blocking_per_worker: config.blocking_per_worker,
        running_max: config.running_max,
        local_queue_bytes_max: config.local_queue_bytes_max,
        batch_memory_bytes: config.batch_memory_bytes,
        drain: config.drain,
        lease: config.lease,
        beat: part_of_lease(BEAT_MS),
        idle_beat: part_of_lease(IDLE_BEAT_MS),
        self_cancel: part_of_lease(SELF_CANCEL_MS),
        retention: config.retention,
        cache: config.cache.options,
        exclusive: config.database.url.is_none(),
        journal_dir: Some(config.data_dir.join(JOURNAL)),
        // Only tests set it.
        kill_at: std::env::var(KILL_AT).ok().and_then(|text| text.parse().ok()),
        ..Options::default()
    }
}

/// The levels of the cache that the configuration names.
async fn cache_parts(
    config: &Config,
    store: &Store,
    database: Arc<dyn CacheLevel>,
    clock: Arc<dyn Clock>,
) -> Result<CacheParts, StartError> {
    let installation = store.installation().await.map_err(StartError::Database)?;
    let mut parts = CacheParts {
        installation: installation.clone(),
        redis: None,
        database: (config.cache.options.database_bytes > 0).then_some(database),
        backplanes: Vec::new(),
        shared: store.is_shared(),
        clock,
    };
    if let Some(url) = &config.cache.redis_url {
        let redis = RedisLevel::open(url.reveal(), installation).map_err(StartError::Redis)?;
        if parts.database.is_none() {
            tracing::warn!(
                "Redis is the last level of the cache: if it evicts what notes that a tag was removed, entries with the \
                 tag come back; `cache.database_mib` above 0 keeps such notes in the database"
            );
        }
        parts.redis = Some(Arc::new(redis.clone()));
        if parts.shared {
            parts.backplanes.push(Arc::new(redis));
        }
    }
    Ok(parts)
}

async fn bind(address: SocketAddr) -> Result<Listening, StartError> {
    Listening::bind(address).await.map_err(|error| StartError::Listen { address, error })
}

/// Warns of a database that is older than when it was last used here.
async fn look_back(store: &Store, seen: &Seen) -> Result<(), StartError> {
    if seen.is_older(store.numbers().await.map_err(StartError::Database)?) {
        tracing::warn!(
            "the database is older than when it was last used from this data folder: it was put back from a backup, and \
             what is newer than that is gone"
        );
    }
    Ok(())
}

/// Remembers how far the database has counted.
async fn remember(store: &Store, seen: &Seen) {
    let written = match store.numbers().await {
        Ok(numbers) => seen.write(numbers).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = written {
        tracing::warn!(error = %error, "a database that is put back from a backup will not be noticed");
    }
}

/// Remembers the same at an orderly end, above every copy that was made before it.
async fn remember_end(store: &Store, seen: &Seen) {
    if let Err(error) = store.take_number(SystemClock.now_ms()).await {
        tracing::debug!(error = %error, "no number was taken at the end");
    }
    remember(store, seen).await;
}

/// Makes a folder that only its owner can read.
fn make_folder(path: &Path) -> Result<(), StartError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| StartError::DataDir { path: path.to_owned(), error })
}

/// Writes the address whole or not at all, so that nobody reads half of it.
fn write_address(path: &Path, address: SocketAddr) -> Result<(), StartError> {
    let next = path.with_extension("address.next");
    let written = std::fs::write(&next, format!("{address}\n")).and_then(|()| std::fs::rename(&next, path));
    written.map_err(|error| StartError::DataDir { path: path.to_owned(), error })
}
