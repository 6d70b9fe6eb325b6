//! A connection that writes, and what becomes of a transaction whose connection is lost.
//!
//! - A transaction's first round trip begins it and learns its number. A connection that is found dead there is opened
//!   again, and nobody notices.
//! - A connection that dies during the commit leaves the question whether it took place. The server is asked by the
//!   transaction's number, on a new connection, for [`RESOLVE`] at most.
//! - Many rows go as arrays, one for each column, whatever their number: see [`CHUNK_ROWS`] and [`CHUNK_BYTES`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryFutureExt;
use keiko_core::batch::{Add, Added};
use keiko_core::port::{LeaseRequest, StoreError, StoreErrorKind};
use keiko_core::task::{Submit, Submitted};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Postgres, Row};
use tokio::time::{Instant, timeout};

use super::at_once::Ahead;
use super::error::{is_lost, is_taken, store_error};
use super::{at_once, batch, submit};
use crate::entry::AtOnce;
use crate::gather::Walks;
use crate::transaction::Transactions;

/// Rows of one statement.
pub(crate) const CHUNK_ROWS: usize = 2_000;
/// Payload bytes of one statement; the first row always fits.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;
/// Longest wait for an answer, above every time-out of the server's: a network that swallows everything.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest wait for a new connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the server is asked what became of a commit, and how long to wait between two questions.
const RESOLVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_millis(100));

/// Begins a transaction and says its number...
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_current_xact_id()::text";
/// ...which a crash of the server may lose for up to three times its `wal_writer_delay`.
const BEGIN_UNSYNCED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off;
    SELECT pg_current_xact_id()::text";

/// A connection that writes; opened by the first `begin` that finds none.
pub(crate) struct Session {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    /// The number of the transaction that is open.
    number: Option<String>,
    /// Whether a statement of the transaction failed, so that a commit would be a rollback.
    failed: bool,
    /// Whether a transaction was given up since the last commit because its connection was lost.
    given_up: bool,
    /// Whether the last statement may be stored though it failed: it was a transaction by itself, and its answer got lost.
    in_doubt: bool,
    /// Whether the next add locks what waits before it decides; written and read by adds.
    pub(crate) locks_first: bool,
    /// Where batches go on; written and read by what forms them.
    pub(crate) walks: Walks,
    /// What leases know of the next due time.
    pub(crate) ahead: Arc<Ahead>,
    /// Whether segments wait, as the last lease knew; written and read by leases.
    pub(crate) segments_wait: bool,
    /// Tasks of a segment at least.
    pub(crate) segment_min: usize,
    /// Written here, read by whoever holds the counters of the store.
    statements: Arc<AtomicU64>,
}

impl Session {
    /// Connects.
    pub(crate) async fn open(
        options: PgConnectOptions,
        statements: Arc<AtomicU64>,
        ahead: Arc<Ahead>,
        segment_min: usize,
    ) -> Result<Session, sqlx::Error> {
        Ok(Session {
            connection: Some(connect(&options).await?),
            options,
            number: None,
            failed: false,
            given_up: false,
            in_doubt: false,
            locks_first: false,
            walks: Walks::default(),
            ahead,
            segments_wait: false,
            segment_min,
            statements,
        })
    }

    /// Runs a statement; its rows.
    pub(crate) async fn rows(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        let connection = self.counted()?;
        let outcome = answered(query.fetch_all(connection)).await;
        self.noted(outcome)
    }

    /// Runs a statement; its one row, if it has one.
    pub(crate) async fn row(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, StoreError> {
        let connection = self.counted()?;
        let outcome = answered(query.fetch_optional(connection)).await;
        self.noted(outcome)
    }

    /// Runs a statement that is a transaction by itself; `None` when it ran before, its answer got lost, and what it wrote is
    /// in its own way now.
    pub(crate) async fn row_or_taken(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, StoreError> {
        let again = self.given_up;
        let connection = self.counted()?;
        let outcome = answered(query.fetch_one(connection)).await;
        if again && outcome.as_ref().is_err_and(is_taken) {
            self.given_up = false;
            return Ok(None);
        }
        self.noted(outcome).map(Some)
    }

    /// Runs a statement; how many rows it wrote.
    pub(crate) async fn run(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<u64, StoreError> {
        let connection = self.counted()?;
        let outcome = answered(query.execute(connection).map_ok(|done| done.rows_affected())).await;
        self.noted(outcome)
    }

    fn counted(&mut self) -> Result<&mut PgConnection, StoreError> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.connection.as_mut().ok_or_else(|| down("the connection to the database was lost"))
    }

    /// Remembers that a statement failed, and forgets the connection with which nothing can be done any more. Before its
    /// commit nothing of a transaction is stored, so that it is run again, on a new connection: once, in case that it is
    /// the transaction itself which brings the server down.
    fn noted<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        // A statement that is a transaction by itself has no other commit; such a one does no harm when it runs twice.
        if outcome.is_ok() && self.number.is_none() {
            self.given_up = false;
        }
        outcome.map_err(|error| {
            self.failed = true;
            if !is_lost(&error) {
                return store_error(error);
            }
            self.connection = None;
            self.in_doubt = self.number.is_none();
            if std::mem::replace(&mut self.given_up, true) {
                return store_error(error);
            }
            let message = "the connection was lost before the commit";
            StoreError::new(StoreErrorKind::Busy, message).caused_by(error)
        })
    }

    async fn try_begin(&mut self, lasts: bool) -> Result<String, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.options).await?),
        };
        self.statements.fetch_add(1, Ordering::Relaxed);
        let text = if lasts { BEGIN } else { BEGIN_UNSYNCED };
        answered(sqlx::raw_sql(text).fetch_one(connection)).await?.try_get(0)
    }

    /// What became of the transaction whose commit got no answer.
    async fn resolve(&mut self) -> Result<(), StoreError> {
        let Some(number) = self.number.take() else { return Err(down("there is no transaction to commit")) };
        let end = Instant::now() + RESOLVE.0;
        tracing::warn!("the connection was lost during a commit; asking the database what became of it");
        loop {
            match self.status(&number).await {
                Ok(Some(status)) if status == "committed" => return Ok(()),
                Ok(Some(status)) if status == "aborted" => {
                    return Err(down("the connection was lost during the commit; nothing was stored"));
                }
                Ok(None) => {
                    return Err(down("the connection was lost during the commit; its outcome is not known"));
                }
                Ok(Some(_)) => {}
                Err(error) => tracing::debug!(error = %error, "the outcome of a commit is not known yet"),
            }
            if Instant::now() > end {
                return Err(down("the connection was lost during the commit; its outcome is not known"));
            }
            tokio::time::sleep(RESOLVE.1).await;
        }
    }

    async fn status(&mut self, number: &str) -> Result<Option<String>, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.options).await?),
        };
        self.statements.fetch_add(1, Ordering::Relaxed);
        let query = sqlx::query("SELECT pg_xact_status($1::text::xid8)").bind(number);
        let outcome = answered(query.fetch_one(connection)).await;
        if outcome.as_ref().is_err_and(is_lost) {
            self.connection = None;
        }
        outcome?.try_get(0)
    }
}

impl Transactions for Session {
    /// Deadlocks and conflicts between hosts.
    const RETRIES: u32 = 8;
    const OWN_THREAD: bool = false;

    async fn alone(&mut self) -> Result<(), StoreError> {
        (self.number, self.failed, self.in_doubt) = (None, false, false);
        if self.connection.is_none() {
            match connect(&self.options).await {
                // What was given up before is not done yet.
                Ok(connection) => self.connection = Some(connection),
                Err(error) => return self.noted(Err(error)),
            }
        }
        Ok(())
    }

    /// A lease that the server forgets in a crash is one that has ended: its task goes to whoever leases next, and what the
    /// first one writes is stale by the fence. Nobody was told of it but this host, so that it does not wait for the disk.
    async fn begin(&mut self, lasts: bool) -> Result<(), StoreError> {
        (self.number, self.failed, self.in_doubt) = (None, false, false);
        let fresh = self.connection.is_none();
        let number = match self.try_begin(lasts).await {
            // Nothing was done yet, so that another connection does as well.
            Err(error) if !fresh && is_lost(&error) => {
                self.connection = None;
                tracing::info!(error = %error, "connecting to the database again");
                self.try_begin(lasts).await
            }
            outcome => outcome,
        };
        self.number = Some(number.map_err(|error| {
            if is_lost(&error) {
                self.connection = None;
            }
            store_error(error)
        })?);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::new(StoreErrorKind::Internal, "a statement of the transaction failed"));
        }
        let connection = self.counted()?;
        match answered(sqlx::raw_sql("COMMIT").execute(connection)).await {
            Ok(_) => {
                self.given_up = false;
                Ok(())
            }
            Err(error) if is_lost(&error) => {
                self.connection = None;
                self.resolve().await
            }
            Err(error) => Err(store_error(error)),
        }
    }

    async fn rollback(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let rolled_back = answered(sqlx::raw_sql("ROLLBACK").execute(connection)).await;
        if rolled_back.is_err() {
            self.connection = None;
        }
    }

    async fn enqueue(&mut self, submits: &[(&Submit, i64)]) -> Result<Vec<Submitted>, StoreError> {
        submit::enqueue(self, submits).await
    }

    async fn at_once(
        &mut self,
        submits: &[(&Submit, i64)],
        lease: Option<&LeaseRequest>,
    ) -> Result<AtOnce, StoreError> {
        at_once::submit(self, submits, lease).await
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    async fn add(&mut self, adds: &[(&Add, i64)]) -> Result<Vec<Added>, StoreError> {
        batch::add(self, adds).await
    }

    async fn close(self) -> Result<(), StoreError> {
        match self.connection {
            // A server that is gone has closed it already.
            Some(connection) => {
                let _ = timeout(CONNECT, connection.close()).await;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT, options.connect()).await.unwrap_or_else(|_| Err(silent()))
}

/// The outcome, or that there was none for too long.
async fn answered<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER, work).await.unwrap_or_else(|_| Err(silent()))
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

fn down(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Down, message)
}

/// A column of which most rows have nothing. Where none has anything there is no array, which costs nothing to send, read and unnest.
pub(crate) fn some<T>(column: impl Iterator<Item = Option<T>>) -> Option<Vec<Option<T>>> {
    let column: Vec<Option<T>> = column.collect();
    column.iter().any(Option::is_some).then_some(column)
}

/// Splits rows so that each part fits into one statement.
pub(crate) fn chunks<T>(rows: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut chunks = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        let size = bytes(row);
        if at > start && (at - start == CHUNK_ROWS || sum + size > CHUNK_BYTES) {
            chunks.push(&rows[start..at]);
            (start, sum) = (at, 0);
        }
        sum += size;
    }
    if start < rows.len() {
        chunks.push(&rows[start..]);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_to_rows_and_bytes_and_a_first_row_always_fits() {
        let check = |sizes: &[usize], expected: &[usize]| {
            let lengths: Vec<usize> = chunks(sizes, |&size| size).iter().map(|chunk| chunk.len()).collect();
            assert_eq!(lengths, expected);
        };
        check(&[], &[]);
        check(&vec![1; CHUNK_ROWS], &[CHUNK_ROWS]);
        check(&vec![1; CHUNK_ROWS + 1], &[CHUNK_ROWS, 1]);
        check(&[CHUNK_BYTES, 1, CHUNK_BYTES - 1, 1], &[1, 2, 1]);
        check(&[2 * CHUNK_BYTES, 2 * CHUNK_BYTES], &[1, 1]);
    }
}
