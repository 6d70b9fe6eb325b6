//! What an operator sets: `keiko.toml`, the environment, flags, and the defaults below them.
//!
//! Two types: [`written::Written`] is what was written, with where each value stands; [`Config`] is what a
//! host runs with. Everything that is wrong is reported at once, each mistake with its path and its place.
//! Order, later wins: defaults, file, environment, flags. Tenants come from the file alone.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keiko_engine::ClusterKey;
use keiko_runtime::cache::CacheOptions;
use keiko_runtime::{Cores, Retention, TenantOptions};

use crate::signature::Signer;
use crate::source::Place;
use crate::token::TokenEntry;

mod check;
mod origin;
mod redis;
mod suggest;
mod url;
mod written;

pub(crate) use check::DEFAULT_TENANT;

pub use origin::Origin;
pub use redis::RedisUrl;
pub use url::DatabaseUrl;
pub use written::{Flags, Layers};

/// Everything a host runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address that HTTP listens on.
    pub listen: SocketAddr,
    /// Folder of everything the host keeps.
    pub data_dir: PathBuf,
    /// Folder whose components are installed, if one is watched.
    pub plugins_dir: Option<PathBuf>,
    /// Threads that run guests.
    pub workers: usize,
    /// The processors that they keep to.
    pub worker_cores: Cores,
    /// Calls that block a thread and that attempts of one of them have under way at once.
    pub blocking_per_worker: usize,
    /// The same for everything else of the host; who embeds one has threads of their own.
    pub blocking_max: usize,
    /// Attempts on this host at once.
    pub running_max: usize,
    /// Bytes of the inputs of tasks that this host has leased and not begun, from which on it leases little more.
    pub local_queue_bytes_max: usize,
    /// Database connections that read.
    pub readers: u32,
    /// Bytes of items of processors that are in memory at once.
    pub batch_memory_bytes: u64,
    /// How long a drain waits for running attempts.
    pub drain: Duration,
    /// How long what this host leased is its own without a sign of life; then other hosts run it.
    pub lease: Duration,
    /// Where tasks are kept, and how.
    pub database: Database,
    /// The cache's levels.
    pub cache: CacheConfig,
    /// How long ended tasks are kept.
    pub retention: Retention,
    /// The key of compiled components, when it does not come from the data folder.
    pub cluster_key: Option<ClusterKey>,
    /// Filter of the host's own log.
    pub log: String,
    /// Form of the host's own log.
    pub log_format: LogFormat,
    /// Limits of the HTTP side.
    pub api: ApiLimits,
    /// The tenants; never empty.
    pub tenants: Vec<TenantConfig>,
    /// Hosts that components may be fetched from.
    pub sources: Vec<Place>,
    /// Every value above with where it came from, in the order of the documentation.
    pub effective: Vec<Effective>,
}

impl Config {
    /// The configuration without a file, an environment or flags.
    pub fn defaults() -> Config {
        // The defaults are constants of ours; a test reads them.
        Config::from_layers(Layers::default())
            .unwrap_or_else(|error| unreachable!("the defaults are wrong: {error}"))
    }

    /// Reads and checks a file, without an environment or flags.
    pub fn from_file(path: &Path) -> Result<Config, ConfigError> {
        Config::from_layers(Layers { file: Some(path.to_owned()), ..Layers::default() })
    }

    /// Reads and checks every layer.
    pub fn from_layers(layers: Layers) -> Result<Config, ConfigError> {
        check::check(layers.read()?)
    }

    /// Whether requests need no token: no tenant has one.
    pub fn is_open(&self) -> bool {
        self.tenants.iter().all(|tenant| tenant.tokens.is_empty())
    }
}

/// `[database]`. Everything but the URL and the log is about PostgreSQL alone.
#[derive(Clone, Debug)]
pub struct Database {
    /// A PostgreSQL server; without one, SQLite in the data folder.
    pub url: Option<DatabaseUrl>,
    /// A server that follows it, for lists and statistics.
    pub replica_url: Option<DatabaseUrl>,
    /// How far behind that one may be and still answer.
    pub replica_lag_max: Duration,
    /// Connections that are kept.
    pub pool_size: u32,
    /// Connections that are made beyond those when many are wanted.
    pub pool_overflow: u32,
    /// How long a caller waits for a connection.
    pub acquire_timeout: Duration,
    /// A connection is replaced after this long.
    pub recycle: Duration,
    /// A connection that nobody used for this long is closed.
    pub idle_timeout: Duration,
    /// Whether a connection is tried before it is used.
    pub test_before_use: bool,
    /// Whether statements are logged, at `info`, without their values.
    pub statement_log: bool,
    /// Prepared statements of a connection.
    pub statement_cache: usize,
    /// Waiting for a connection longer than this is counted.
    pub slow_acquire: Duration,
}

/// `[cache]`.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// A server that hosts share; without one there is no such level.
    pub redis_url: Option<RedisUrl>,
    /// Sizes and times of the levels.
    pub options: CacheOptions,
}

/// A tenant: what the runtime is told of it, and who may speak for it.
#[derive(Clone, Debug)]
pub struct TenantConfig {
    /// Its name, policy and settings.
    pub options: TenantOptions,
    /// Its tokens.
    pub tokens: Vec<TokenEntry>,
    /// Who signs its plugins; with none, nobody needs to.
    pub signers: Vec<Signer>,
}

/// Form of the host's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Limits of the HTTP side that an operator can change. The others are constants of [`crate::api::limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Open connections.
    pub connections_max: usize,
    /// Requests that are being answered at once; long polls and uploads count apart.
    pub requests_max: usize,
    /// Long polls at once.
    pub waits_max: usize,
    /// Streams at once: events, and submits line by line.
    pub streams_max: usize,
    /// Uploads, and bodies over the JSON limit, at once.
    pub uploads_max: usize,
    /// A request is answered within this time; a long poll within this and what it asked to wait.
    pub request: Duration,
    /// An upload is answered within this time, compiling included.
    pub upload: Duration,
    /// A request's head arrives within this time, and an idle connection is closed after it.
    pub header: Duration,
}

/// One value a host runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// Its path, as in `keiko.toml`.
    pub path: String,
    /// The value; `null` for one that is not shown.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: Origin,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The path of the value, as in `keiko.toml`; empty when the file itself is wrong.
    pub path: String,
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong with it.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{} ", self.path)?;
        }
        write!(f, "({}): {}", self.origin, self.text)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one mistake.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "the configuration has {count} {noun}:")?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}
