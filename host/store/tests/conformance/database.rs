//! A PostgreSQL database of a test's own: a copy of one that a run has brought to the schema once, dropped at the end.
//!
//! The server is that of `KEIKO_TEST_POSTGRES`, a URL of a user who may make databases and roles. There is no skipping:
//! without it the tests that need it fail and say so.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use keiko_store::postgres::{PostgresOptions, PostgresStore};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

/// What the schema is made of: another one makes another template.
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres");

/// Keeps tests apart that find no template.
const LOCK: i64 = 0x6b65_6974;

/// A database that is dropped with this.
pub struct Database {
    name: String,
    /// Where it is; its time is the caller's.
    pub url: String,
}

impl Database {
    /// A database with the schema.
    pub async fn new() -> Database {
        let template = template().await;
        Database::create(&format!(" TEMPLATE {template}")).await
    }

    /// A database with nothing in it.
    pub async fn empty() -> Database {
        Database::create("").await
    }

    /// A copy of this one, in which nobody may be.
    pub async fn copy(&self) -> Database {
        Database::create(&format!(" TEMPLATE {}", self.name)).await
    }

    async fn create(template: &str) -> Database {
        let name = format!("keiko_test_{:016x}", RandomState::new().hash_one(std::process::id()));
        execute(&server(), &format!("CREATE DATABASE {name}{template}")).await;
        let url = format!("{}&options[keiko.time]=caller", of(&name));
        Database { name, url }
    }

    /// Options for a store of a test: few connections.
    pub fn options(&self) -> PostgresOptions {
        PostgresOptions {
            size: 2,
            overflow: 4,
            acquire_timeout: Duration::from_secs(20),
            ..PostgresOptions::new(&self.url)
        }
    }

    pub async fn open(&self) -> PostgresStore {
        PostgresStore::open(self.options()).await.unwrap()
    }

    /// A connection beside the store's, for a look into the database or for damage.
    pub async fn beside(&self) -> PgConnection {
        connect(&self.url).await
    }

    pub async fn execute(&self, text: &str) {
        execute(&self.url, text).await;
    }

    pub async fn number(&self, text: &str) -> i64 {
        number(&self.url, text).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A runtime of its own, because this one may be ending.
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(execute(&server(), &drop));
        };
        std::thread::scope(|scope| {
            let _ = scope.spawn(run).join();
        });
    }
}

/// The server's URL.
pub fn server() -> String {
    std::env::var("KEIKO_TEST_POSTGRES").unwrap_or_else(|_| {
        panic!(
            "these tests need PostgreSQL: run them by `cargo xtask test`, which starts one, or set \
             KEIKO_TEST_POSTGRES to the URL of a user who may make databases and roles"
        )
    })
}

/// The URL of another database of the server, with a query to which more can be added.
fn of(name: &str) -> String {
    let url = server();
    let (path, query) = url.split_once('?').unwrap_or((&url, "application_name=test"));
    let (scheme, rest) = path.split_once("://").expect("a URL has a scheme");
    let host = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{host}/{name}?{query}")
}

/// The database that others are copied from, made when it is missing.
async fn template() -> String {
    let mut hasher = DefaultHasher::new();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(SCHEMA).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    files.iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut hasher));
    let name = format!("keiko_template_{:016x}", hasher.finish());
    let ready = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}' AND datistemplate");
    if number(&server(), &ready).await == 0 {
        let mut lock = connect(&server()).await;
        sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut lock).await.unwrap();
        if number(&server(), &ready).await == 0 {
            execute(&server(), &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            execute(&server(), &format!("CREATE DATABASE {name}")).await;
            let store = PostgresStore::open(PostgresOptions::new(of(&name))).await.unwrap();
            store.close().await.unwrap();
            execute(&server(), &format!("ALTER DATABASE {name} IS_TEMPLATE true ALLOW_CONNECTIONS false"))
                .await;
        }
        lock.close().await.unwrap();
    }
    name
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url).unwrap().disable_statement_logging().connect().await.unwrap()
}

async fn execute(url: &str, text: &str) {
    let mut connection = connect(url).await;
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn number(url: &str, text: &str) -> i64 {
    let mut connection = connect(url).await;
    let row = sqlx::query(AssertSqlSafe(text.to_owned())).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    row.get(0)
}
