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
use std::time::{Duration, Instant};

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
/// The sides take turns, so that a machine that is busy with something else is so for both.
const ROUNDS: usize = 8;
/// Items are not all of one size.
const CONTENTS: [&str; 3] = [
    r#"{"title":"Alien","year":1979,"distributor":"20th Century Fox"}"#,
    r#"{"title":"Stalker","year":1979,"distributor":"Mosfilm"}"#,
    r#"{"title":"Apocalypse Now","year":1979,"distributor":"United Artists"}"#,
];

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
    if plan.calls() == 0 {
        return Err(format!("at least {} items", plan.call * CALLERS * ROUNDS).into());
    }
    if let Some(url) = url {
        let store = PostgresStore::open(PostgresOptions::new(url.clone())).await?;
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&url).await?;
        pool.execute(TABLE).await?;
        sides(&store, &plan, "postgres", async |first| bare_postgres(&pool, first, plan.call).await).await?;
        store.close().await?;
    } else {
        let folder = tempfile::tempdir()?;
        let options = SqliteOptions { data_dir: folder.path().to_owned(), readers: 2, statement_log: false };
        let store = SqliteStore::open(options).await?;
        let options =
            SqliteConnectOptions::new().filename(folder.path().join("bare.db")).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        pool.execute(TABLE).await?;
        sides(&store, &plan, "sqlite", async |first| bare_sqlite(&pool, first, plan.call).await).await?;
        store.close().await?;
    }
    Ok(())
}

struct Plan {
    items: usize,
    /// Items of one call.
    call: usize,
}

impl Plan {
    /// Calls of a caller in a round.
    fn calls(&self) -> usize {
        self.items / self.call / CALLERS / ROUNDS
    }

    fn round(&self) -> usize {
        self.calls() * self.call * CALLERS
    }

    fn tell(&self, side: &str, database: &str, took: Duration) -> f64 {
        let items = self.round() * ROUNDS;
        let items_per_s = items as f64 / took.as_secs_f64();
        let line = serde_json::json!({
            "bench": "batch",
            "side": side,
            "database": database,
            "callers": CALLERS,
            "items_per_call": self.call,
            "items": items,
            "items_per_s": items_per_s.round(),
        });
        println!("{line}");
        items_per_s
    }
}

/// Measures both sides in turns.
async fn sides<S>(
    store: &S,
    plan: &Plan,
    database: &str,
    insert: impl AsyncFn(i64) -> Outcome<()>,
) -> Outcome<()>
where
    S: TaskStore + CatalogStore + BatchStore,
{
    let tenant = store.ensure_tenants(&["t".parse()?]).await?[0].id;
    let processor = store.ensure_processors(tenant, &["p".parse()?]).await?.remove(0);
    let (mut keiko, mut bare) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let first = store.reserve_ids(u32::try_from(plan.round())?, NOW).await?.first.0;
        keiko += callers(plan, first, async |first| {
            let add = add(tenant, &processor, first, plan.call);
            let answer = store.add(vec![add], NOW).await?.remove(0);
            assert!(matches!(answer, Added::Accepted { duplicate: false, .. }), "{answer:?}");
            Ok(())
        })
        .await?;
        bare += callers(plan, first, &insert).await?;
    }
    let keiko = plan.tell("keiko", database, keiko);
    let bare = plan.tell("bare-insert", database, bare);
    let line = serde_json::json!({
        "bench": "batch",
        "database": database,
        "items_per_call": plan.call,
        "keiko_of_bare": (keiko / bare * 100.0).round() / 100.0,
    });
    println!("{line}");
    Ok(())
}

/// How long all callers take for their calls of a round.
async fn callers(plan: &Plan, first: i64, call: impl AsyncFn(i64) -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    let caller = async |caller: usize| {
        for at in 0..plan.calls() {
            call(first + ((caller * plan.calls() + at) * plan.call) as i64).await?;
        }
        Ok::<(), Box<dyn Error>>(())
    };
    try_join_all((0..CALLERS).map(caller)).await?;
    Ok(start.elapsed())
}

fn content(id: i64) -> &'static str {
    CONTENTS[id as usize % CONTENTS.len()]
}

fn add(tenant: TenantId, processor: &Processor, first: i64, count: usize) -> Add {
    let item = |id| NewItem {
        id: ItemId(id),
        processor: processor.id,
        key: String::new(),
        payload: Payload::json(content(id)),
        created_ms: NOW,
    };
    let items = (first..first + count as i64).map(item).collect();
    Add { tenant, items, key: None, items_max: u64::MAX >> 1, bytes_max: u64::MAX >> 1 }
}

async fn bare_postgres(pool: &PgPool, first: i64, count: usize) -> Outcome<()> {
    let ids: Vec<i64> = (first..first + count as i64).collect();
    let bytes: Vec<&[u8]> = ids.iter().map(|id| content(*id).as_bytes()).collect();
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
            .push_bind(content(id).as_bytes());
    });
    query.build().execute(pool).await?;
    Ok(())
}
