//! The files of a store, and the lock that keeps a second process out.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::migrate::MigrateError;

/// How long a statement waits for somebody else's lock: only a person with a shell can hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages that the write-ahead log grows by between two checkpoints: 16 MiB.
const CHECKPOINT_PAGES: &str = "4096";
/// Bytes that the write-ahead log keeps after a checkpoint.
const JOURNAL_BYTES: &str = "67108864";
/// Page cache of the writer and of a reader, in KiB as SQLite wants it: negative.
const WRITER_CACHE: &str = "-65536";
const READER_CACHE: &str = "-8192";
/// Cached statements of a connection: every text of the store fits.
const STATEMENTS: usize = 256;
/// Rows that a statement may be ahead of its reader: a whole lease, so that the two do not take turns.
const ROW_BUFFER: usize = 1_024;

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{} is in use by process {}: let the command line talk to that running host, or stop it first",
        data_dir.display(), pid.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string())
    )]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// The process, when its lock file says so.
        pid: Option<u32>,
    },
    /// The folder or its lock file cannot be used.
    #[error("{} cannot be used", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A newer Keiko has written to it.
    #[error("{} was written by a newer version of Keiko: {detail}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What this binary does not know.
        detail: String,
    },
    /// The file is no database, or damaged, or cannot be read or written.
    #[error("{} cannot be opened", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    pub(crate) fn database(path: &Path) -> impl FnOnce(sqlx::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Database { path, source }
    }

    pub(crate) fn migrate(path: &Path) -> impl FnOnce(MigrateError) -> OpenError {
        let path = path.to_owned();
        move |error| match error {
            MigrateError::Database(source) => OpenError::Database { path, source },
            MigrateError::Unknown { .. } => OpenError::Newer { path, detail: error.to_string() },
        }
    }
}

/// The lock file of a data folder, locked. Dropping it unlocks.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, never used")] File);

impl Lock {
    /// Makes the folder when it is missing, and locks it for this process.
    pub fn take(data_dir: &Path) -> Result<Lock, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Folder { path, source }
        };
        std::fs::create_dir_all(data_dir).map_err(failed(data_dir))?;
        let path = data_dir.join("keiko.lock");
        let mut open = File::options();
        let open = open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(&path).map_err(failed(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(OpenError::InUse {
                    data_dir: data_dir.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(&path)(source)),
        }
        let pid = format!("{}\n", std::process::id());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(pid.as_bytes()));
        written.map_err(failed(&path))?;
        Ok(Lock(file))
    }
}

/// How the writing connection of a file is opened. Durable: a commit is on the disk when it answers.
pub(crate) fn writer_options(path: &Path) -> SqliteConnectOptions {
    shared_options(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", JOURNAL_BYTES)
        .pragma("cache_size", WRITER_CACHE)
}

/// How a connection is opened that only reads, and never waits for the writer.
pub(crate) fn reader_options(path: &Path) -> SqliteConnectOptions {
    shared_options(path).read_only(true).pragma("cache_size", READER_CACHE)
}

/// The options, with every statement in the log if that is wanted.
pub(crate) fn log_if(wanted: bool, options: SqliteConnectOptions) -> SqliteConnectOptions {
    match "info".parse() {
        // Without a threshold each statement would be a slow one, and those go nowhere.
        Ok(level) if wanted => options.log_statements(level).log_slow_statements(level, Duration::MAX),
        _ => options,
    }
}

/// A pool of so many connections, which never die of age.
pub(crate) fn pool_options(count: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(count.max(1))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        // A file does not hang up; the test would cost every read a hop.
        .test_before_acquire(false)
}

fn shared_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .statement_cache_capacity(STATEMENTS)
        .row_buffer_size(ROW_BUFFER)
        .pragma("temp_store", "memory")
        .disable_statement_logging()
}
