//! The write connection: runs statements, counts them, and writes many rows with few of them.
//!
//! Every statement costs a hop to the connection's thread (about 15 microseconds), more than SQLite takes for a
//! row. So rows go in groups of [`SIZES`], a last group being filled up with empty rows that the statement
//! skips; sets of ids go as one JSON array; and statements that belong together go as one text, sharing their
//! numbered parameters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keiko_core::batch::{Add, Added};
use keiko_core::port::StoreError;
use keiko_core::task::{Submit, Submitted};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Sqlite, SqliteConnection};

use super::error::store_error;
use super::{batch, submit};
use crate::gather::Walks;
use crate::transaction::Transactions;

/// Rows of one statement, few sizes so that few statements are cached. 512 rows of 21 columns stay below
/// SQLite's 32,766 parameters.
const SIZES: [usize; 4] = [1, 8, 64, 512];

/// The one connection that writes.
pub(crate) struct Session {
    connection: SqliteConnection,
    /// Written here, read by whoever holds the counters of the store.
    statements: Arc<AtomicU64>,
    /// Whether a commit waits for the disk.
    lasts: bool,
    /// Where batches go on; written and read by what forms them.
    pub(crate) walks: Walks,
}

impl Session {
    /// A session on a connection whose commits wait for the disk.
    pub(crate) fn new(connection: SqliteConnection, statements: Arc<AtomicU64>) -> Session {
        Session { connection, statements, lasts: true, walks: Walks::default() }
    }

    /// Runs a query of one or more statements; rows of all of them, in order.
    pub(crate) async fn rows(
        &mut self,
        query: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        query.fetch_all(&mut self.connection).await.map_err(store_error)
    }

    /// Runs a query whose rows, if any, do not matter.
    pub(crate) async fn run(&mut self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<(), StoreError> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        query.execute(&mut self.connection).await.map(drop).map_err(store_error)
    }

    /// Runs `statement` for all `items`, in as few groups as they make; rows of all groups, in no order.
    pub(crate) async fn each<T>(
        &mut self,
        statement: &RowStatement,
        items: &[T],
        bind: impl Fn(&T, &mut Binds),
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let mut rows = Vec::new();
        let mut rest = items;
        while !rest.is_empty() {
            let at = size_for(rest.len());
            let (group, after) = rest.split_at(rest.len().min(SIZES[at]));
            let mut binds = Binds::default();
            for item in group {
                bind(item, &mut binds);
            }
            let text = AssertSqlSafe(Arc::clone(&statement.texts[at]));
            rows.extend(self.rows(sqlx::query_with(text, binds.0)).await?);
            rest = after;
        }
        Ok(rows)
    }
}

impl Transactions for Session {
    /// Only a person with a shell is ever in the way, and a statement waits for them by itself.
    const RETRIES: u32 = 0;
    const OWN_THREAD: bool = true;

    async fn alone(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// What does not last is not synced: the next commit that lasts brings it along, as the log is written in order. The
    /// machine takes its only host along, so nobody is left who could work on what the log forgot.
    async fn begin(&mut self, lasts: bool) -> Result<(), StoreError> {
        if self.lasts == lasts {
            return self.run(sqlx::query("BEGIN IMMEDIATE")).await;
        }
        self.lasts = lasts;
        let text = if lasts {
            "PRAGMA synchronous = FULL; BEGIN IMMEDIATE"
        } else {
            "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE"
        };
        // SQLite runs this pragma when it prepares it, so that a statement that is kept would do nothing.
        self.run(sqlx::query(text).persistent(false)).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.run(sqlx::query("COMMIT")).await
    }

    async fn rollback(&mut self) {
        // Fails when the database has rolled back by itself, which is as good.
        let _ = self.run(sqlx::query("ROLLBACK")).await;
    }

    async fn enqueue(&mut self, submits: &[(&Submit, i64)]) -> Result<Vec<Submitted>, StoreError> {
        submit::enqueue(self, submits).await
    }

    async fn add(&mut self, adds: &[(&Add, i64)]) -> Result<Vec<Added>, StoreError> {
        batch::add(self, adds).await
    }

    /// Writes everything to the database file first.
    async fn close(mut self) -> Result<(), StoreError> {
        self.run(sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")).await?;
        self.connection.close().await.map_err(store_error)
    }
}

/// A statement for many rows, which it reads as `(VALUES …)`; parameters that are not bound are NULL, so it
/// must skip rows whose first column is NULL.
pub(crate) struct RowStatement {
    texts: [Arc<str>; SIZES.len()],
}

impl RowStatement {
    /// A statement whose text has `VALUES` once where the rows of so many columns go.
    pub(crate) fn new(text: &str, columns: usize) -> RowStatement {
        let row = format!("({}?)", "?,".repeat(columns - 1));
        let texts = SIZES.map(|size| {
            let rows = vec![row.as_str(); size].join(",");
            text.replacen("VALUES", &format!("VALUES {rows}"), 1).into()
        });
        RowStatement { texts }
    }

    /// The text for one row.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.texts[0]
    }
}

/// Parameters of a statement, in order.
#[derive(Default)]
pub(crate) struct Binds(SqliteArguments);

impl Binds {
    pub(crate) fn add<'v>(
        &mut self,
        value: impl sqlx::Encode<'v, Sqlite> + sqlx::Type<Sqlite>,
    ) -> &mut Binds {
        sqlx::Arguments::add(&mut self.0, value).expect("integers, texts and bytes always encode");
        self
    }
}

/// The number of the size to use next for so many rows: the smallest they fit in, unless more than half of it
/// would stay empty.
fn size_for(rows: usize) -> usize {
    let fits = SIZES.iter().position(|&size| rows <= size).unwrap_or(SIZES.len() - 1);
    let wasteful = fits > 1 && rows <= SIZES[fits] / 2;
    if wasteful { fits - 1 } else { fits }
}

/// Ids, or anything else that is JSON, as one parameter.
pub(crate) fn json(values: &impl serde::Serialize) -> String {
    serde_json::to_string(values).expect("numbers and texts always encode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_few_and_not_mostly_empty() {
        let check = |mut rows: usize, expected: &[usize]| {
            let mut groups = Vec::new();
            while rows > 0 {
                let size = SIZES[size_for(rows)];
                groups.push(size);
                rows -= rows.min(size);
            }
            assert_eq!(groups, expected);
        };
        check(1, &[1]);
        check(2, &[8]);
        check(9, &[8, 1]);
        check(33, &[64]);
        check(500, &[512]);
        check(1_000, &[512, 512]);
        check(600, &[512, 64, 8, 8, 8]);
    }

    #[test]
    fn rows_stand_where_the_text_wants_them() {
        let statement = RowStatement::new("INSERT INTO t SELECT * FROM (VALUES)", 2);
        assert_eq!(&*statement.texts[0], "INSERT INTO t SELECT * FROM (VALUES (?,?))");
        assert_eq!(statement.texts[1].matches("(?,?)").count(), 8);
    }
}
