//! How fast items become rows: adds of many callers through a store, beside the same rows inserted by a plain statement
//! of the same size. One JSON line a side. The embedded store, or the one in the database of `--postgres`, which should
//! be empty.
//!
//! `cargo run --release -p keiko-store --example batch_adds -- [items] [items of a call] [--postgres URL]`

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement for a person, by the real clock"
)]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use keiko_core::batch::{Add, Added, NewItem, Processor};
use keiko_core::id::{ItemId, TenantId};
use keiko_core::port::{BatchStore, CatalogStore, TaskStore};
use keiko_core::task::Payload;
use keiko_store::postgres::{PostgresOptions, PostgresStore};
use keiko_store::sqlite::{SqliteOptions, SqliteStore};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Executor, PgPool, QueryBuilder, Sqlite, SqlitePool};

const NOW: i64 = 1_800_000_000_000;
const CALLERS: usize = 64;
/// Connections that write rows plainly: as many as the store has for adds, and a few more.
const CONNECTIONS: u32 = 4;
const CONTENT: &str = r#"{"title":"Alien","year":1979,"distributor":"20th Century Fox"}"#;

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS bare_item (id BIGINT NOT NULL PRIMARY KEY, tenant BIGINT NOT NULL,
    processor BIGINT NOT NULL, key TEXT NOT NULL, created_ms BIGINT NOT NULL, bytes BYTEA NOT NULL)";

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = arguments.iter().position(|argument| argument == "--postgres");
    let url = at.map(|at| arguments.drain(at..).nth(1).ok_or("--postgres needs a URL")).transpose()?;
    let mut numbers = arguments.iter().map(|text| text.parse::<usize>());
    let mut number = |default| numbers.next().transpose().map(|given| given.unwrap_or(default));
    let plan = Plan { items: number(128_000)?, call: number(100)? };
    if let Some(url) = url {
        let store = Arc::new(PostgresStore::open(PostgresOptions::new(url.clone())).await?);
        keiko(&*store, &plan, "postgres").await?;
        store.close().await?;
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&url).await?;
        pool.execute(TABLE).await?;
        bare(&plan, "postgres", async |first| bare_postgres(&pool, first, plan.call).await).await
    } else {
        let folder = tempfile::tempdir()?;
        let options = SqliteOptions { data_dir: folder.path().to_owned(), readers: 2, statement_log: false };
        let store = SqliteStore::open(options).await?;
        keiko(&store, &plan, "sqlite").await?;
        store.close().await?;
        let options =
            SqliteConnectOptions::new().filename(folder.path().join("bare.db")).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        pool.execute(TABLE).await?;
        bare(&plan, "sqlite", async |first| bare_sqlite(&pool, first, plan.call).await).await
    }
}

struct Plan {
    items: usize,
    /// Items of one call.
    call: usize,
}

impl Plan {
    fn calls(&self) -> usize {
        self.items / self.call / CALLERS
    }

    fn tell(&self, side: &str, database: &str, start: Instant) {
        let items = self.calls() * self.call * CALLERS;
        let line = serde_json::json!({
            "bench": "batch",
            "side": side,
            "database": database,
            "callers": CALLERS,
            "items_per_call": self.call,
            "items": items,
            "items_per_s": (items as f64 / start.elapsed().as_secs_f64()).round(),
        });
        println!("{line}");
    }
}

async fn keiko<S>(store: &S, plan: &Plan, database: &str) -> Outcome<()>
where
    S: TaskStore + CatalogStore + BatchStore,
{
    let tenant = store.ensure_tenants(&["t".parse()?]).await?[0].id;
    let processor = store.ensure_processors(tenant, &["p".parse()?]).await?.remove(0);
    let first = store.reserve_ids(u32::try_from(plan.items)?, NOW).await?.first.0;
    let start = Instant::now();
    let caller = async |caller: usize| {
        for call in 0..plan.calls() {
            let first = first + ((caller * plan.calls() + call) * plan.call) as i64;
            let add = add(tenant, &processor, first, plan.call);
            let answer = store.add(vec![add], NOW).await?.remove(0);
            assert!(matches!(answer, Added::Accepted { duplicate: false, .. }), "{answer:?}");
        }
        Ok::<(), Box<dyn Error>>(())
    };
    try_join_all((0..CALLERS).map(caller)).await?;
    plan.tell("keiko", database, start);
    Ok(())
}

fn add(tenant: TenantId, processor: &Processor, first: i64, count: usize) -> Add {
    let item = |id| NewItem {
        id: ItemId(id),
        processor: processor.id,
        key: String::new(),
        payload: Payload::json(CONTENT),
        created_ms: NOW,
    };
    let items = (first..first + count as i64).map(item).collect();
    Add { tenant, items, key: None, items_max: u64::MAX >> 1, bytes_max: u64::MAX >> 1 }
}

async fn bare(plan: &Plan, database: &str, insert: impl AsyncFn(i64) -> Outcome<()>) -> Outcome<()> {
    let start = Instant::now();
    let caller = async |caller: usize| {
        for call in 0..plan.calls() {
            insert(((caller * plan.calls() + call) * plan.call) as i64).await?;
        }
        Ok::<(), Box<dyn Error>>(())
    };
    try_join_all((0..CALLERS).map(caller)).await?;
    plan.tell("bare-insert", database, start);
    Ok(())
}

async fn bare_postgres(pool: &PgPool, first: i64, count: usize) -> Outcome<()> {
    let ids: Vec<i64> = (first..first + count as i64).collect();
    let bytes = vec![CONTENT.as_bytes(); count];
    let query = "INSERT INTO bare_item (id, tenant, processor, key, created_ms, bytes)
        SELECT id, 1, 1, '', $3, bytes FROM unnest($1::bigint[], $2::bytea[]) AS n (id, bytes)";
    sqlx::query(query).bind(ids).bind(bytes).bind(NOW).execute(pool).await?;
    Ok(())
}

async fn bare_sqlite(pool: &SqlitePool, first: i64, count: usize) -> Outcome<()> {
    let start = "INSERT INTO bare_item (id, tenant, processor, key, created_ms, bytes) ";
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(start);
    query.push_values(first..first + count as i64, |mut row, id| {
        row.push_bind(id)
            .push_bind(1)
            .push_bind(1)
            .push_bind("")
            .push_bind(NOW)
            .push_bind(CONTENT.as_bytes());
    });
    query.build().execute(pool).await?;
    Ok(())
}
