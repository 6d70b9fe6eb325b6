//! How the store connects: an operator's words, and the settings that every connection of a purpose starts with.
//!
//! Numbers: a statement runs [`STATEMENT_TIMEOUT`] at most and waits [`LOCK_TIMEOUT`] for a lock; a transaction that
//! stands still for [`IDLE_IN_TRANSACTION_TIMEOUT`] is ended by the server.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::open::OpenError;

/// Longest run of a statement.
const STATEMENT_TIMEOUT: &str = "30s";
/// Longest wait for a lock.
const LOCK_TIMEOUT: &str = "5s";
/// Longest that a transaction may stand still. It does so too while a statement with large values is on its way, which is
/// why those are cut into parts; a host that is stopped keeps others from the rows it holds for so long, or until its tasks
/// are rescued.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "3s";
/// Cached statements of a writing connection: every text of the store fits.
const WRITER_STATEMENTS: usize = 256;

/// Fewer tasks cost less as rows, which are stored, leased and ended by one statement each.
const SEGMENT_MIN: usize = 16;

/// Where the database is and how it is used.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`; a folder of a socket as `?host=/folder`.
    pub url: String,
    /// A read replica for lists and statistics.
    pub replica_url: Option<String>,
    /// How far behind it may be and still answer. What a tenant wrote through this host it has to have in any case.
    pub replica_lag_max: Duration,
    /// Stands in the name of every connection, so that whoever looks at the server sees whose it is.
    pub installation: String,
    /// Connections for reads that are kept.
    pub size: u32,
    /// Connections for reads beyond those, opened on demand and closed when they are given back.
    pub overflow: u32,
    /// How long a read waits for a connection.
    pub acquire_timeout: Duration,
    /// A connection older than this is closed; zero is never.
    pub recycle: Duration,
    /// A connection that nobody used for this long is closed; zero is never.
    pub idle: Duration,
    /// Whether a connection is tried before it is used, and another one taken when the server has hung up.
    pub test_before_use: bool,
    /// Whether every statement goes to the log, without its values.
    pub statement_log: bool,
    /// Prepared statements that a connection for reads keeps; at least one.
    pub statement_cache: usize,
    /// A read that waits longer than this for its connection is counted as slow.
    pub slow_acquire: Duration,
    /// So many tasks that are alike are stored as one row, when they are submitted together.
    pub segment_min: usize,
}

impl PostgresOptions {
    /// The defaults for a database.
    pub fn new(url: impl Into<String>) -> PostgresOptions {
        PostgresOptions {
            url: url.into(),
            replica_url: None,
            replica_lag_max: Duration::from_secs(10),
            installation: "keiko".to_owned(),
            size: 20,
            overflow: 30,
            acquire_timeout: Duration::from_secs(30),
            recycle: Duration::from_secs(3_600),
            idle: Duration::from_secs(600),
            test_before_use: true,
            statement_log: false,
            statement_cache: 100,
            slow_acquire: Duration::from_secs(2),
            segment_min: SEGMENT_MIN,
        }
    }

    /// A connection without a role: it makes the schema.
    pub(crate) fn owner(&self) -> Result<PgConnectOptions, OpenError> {
        self.connection(&self.url, "schema")
    }

    /// A connection that writes.
    pub(crate) fn writer(&self, purpose: &str) -> Result<PgConnectOptions, OpenError> {
        let options = self.connection(&self.url, purpose)?.statement_cache_capacity(WRITER_STATEMENTS);
        Ok(options.options([
            ("role", "keiko_system"),
            ("synchronous_commit", "on"),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
            // Statements come with few rows for large tables: always the index, whatever the statistics of a table
            // say that was small a minute ago. Costs of what is switched off would make the compiler start.
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            // A walk in the order of an index stops when it has enough; a bitmap and a sort see all of a queue first.
            ("enable_bitmapscan", "off"),
            ("enable_sort", "off"),
            // With those there is one plan, which need not be made again for every length of an array.
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
        ]))
    }

    /// A connection of the pool, whose role and plans are set when it is taken.
    pub(crate) fn reader(&self, url: &str) -> Result<PgConnectOptions, OpenError> {
        let options = self.connection(url, "read")?.statement_cache_capacity(self.statement_cache.max(1));
        Ok(options.options([
            ("synchronous_commit", "on"),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
            ("jit", "off"),
        ]))
    }

    /// The connections that pass news on.
    pub(crate) fn news(&self) -> Result<PgConnectOptions, OpenError> {
        self.connection(&self.url, "news")
    }

    fn connection(&self, url: &str, purpose: &str) -> Result<PgConnectOptions, OpenError> {
        let options = PgConnectOptions::from_str(url).map_err(|_| OpenError::Url)?;
        let options = options.application_name(&format!("{} {purpose}", self.installation));
        match "info".parse() {
            Ok(level) if self.statement_log => Ok(options.log_statements(level)),
            _ => Ok(options.disable_statement_logging()),
        }
    }
}

/// Without passwords.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = |url: &str| server(url).unwrap_or_else(|| "(malformed)".to_owned());
        f.debug_struct("PostgresOptions")
            .field("server", &server(&self.url))
            .field("replica", &self.replica_url.as_deref().map(server))
            .field("installation", &self.installation)
            .field("size", &self.size)
            .field("overflow", &self.overflow)
            .finish_non_exhaustive()
    }
}

/// What of a URL may be shown: host, port and database.
pub(crate) fn server(url: &str) -> Option<String> {
    let options = PgConnectOptions::from_str(url).ok()?;
    let host = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    Some(format!("{host}:{}/{database}", options.get_port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let mut options = PostgresOptions::new("postgres://ada:geheim@db.example:5433/keiko");
        options.replica_url = Some("postgres://ada:geheim@localhost/x?host=/run/pg".to_owned());
        let text = format!("{options:?}");
        assert!(text.contains("db.example:5433/keiko") && text.contains("/run/pg:5432/x"), "{text}");
        assert!(!text.contains("geheim"), "{text}");
        options.url = "geheim".to_owned();
        assert!(!format!("{options:?} {:?}", options.owner()).contains("geheim"));
    }
}
