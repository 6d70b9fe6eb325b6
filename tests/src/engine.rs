//! Where the hosts of a test keep their tasks: in files of their own, or in a PostgreSQL database of the test's own.
//!
//! The same tests run on both: `cargo xtask test` runs them a second time with `KEIKO_TEST_ENGINE=postgresql`. What is
//! about one engine stands in a module named after it, or in `database`, and has no second run.

use std::sync::Arc;

use anyhow::{Result, bail};

use crate::postgres::Database;

/// Names the engine: `sqlite`, which it is without, or `postgresql`.
pub const ENGINE_VARIABLE: &str = "KEIKO_TEST_ENGINE";
/// PostgreSQL.
pub const POSTGRESQL: &str = "postgresql";

/// The engine of one test, with what it keeps there.
#[derive(Debug, Default)]
pub enum Engine {
    /// Files in the data folder of each host.
    #[default]
    Sqlite,
    /// One database of all its hosts.
    Postgres(Arc<Database>),
}

impl Engine {
    /// The engine that this run of the tests is on, with nothing in it.
    pub fn of_this_run() -> Result<Engine> {
        let name = std::env::var(ENGINE_VARIABLE).unwrap_or_default();
        match name.as_str() {
            "" | "sqlite" => Ok(Engine::Sqlite),
            POSTGRESQL => Ok(Engine::Postgres(Arc::new(Database::for_test()?))),
            other => bail!("{ENGINE_VARIABLE} is `{other}`; there are: sqlite, {POSTGRESQL}"),
        }
    }

    /// What a host's environment says of it. Tests have many hosts at once, and each few connections.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Engine::Sqlite => Vec::new(),
            Engine::Postgres(database) => vec![
                ("KEIKO_DATABASE_URL", database.url().to_owned()),
                ("KEIKO_DATABASE__POOL_SIZE", "2".to_owned()),
                ("KEIKO_DATABASE__POOL_OVERFLOW", "8".to_owned()),
            ],
        }
    }
}
