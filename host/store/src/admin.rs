//! What an operator asks of a database: what is in it, whether it holds together, how far it has counted.
//!
//! The rules of [`RULES`] are true at every commit, so they are looked at in one snapshot, and a host that works beside
//! does not disturb. Each is one statement that counts what breaks the rule. They are the same text on both engines;
//! what only one engine has is added in its own `admin` module.

use std::path::PathBuf;

use crate::{postgres, sqlite};

/// What is in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `sqlite` or `postgresql`.
    pub engine: &'static str,
    /// The engine's own version.
    pub version: String,
    /// The newest migration it has; 0 when it is empty.
    pub schema: i64,
    /// The newest migration this binary has.
    pub schema_known: i64,
    /// Sizes of files or tables, in bytes.
    pub sizes: Vec<(String, u64)>,
    /// Every tenant.
    pub tenants: Vec<TenantStatus>,
    /// Every holder of leases: a running host, or one that ended without a word.
    pub holders: Vec<HolderStatus>,
}

/// What a tenant has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStatus {
    /// Its row.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Tasks that have not ended.
    pub live: u64,
    /// Tasks that completed.
    pub completed: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
}

/// What a holder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderStatus {
    /// Its number.
    pub id: i64,
    /// When it was opened.
    pub opened_ms: i64,
    /// When its lease ends.
    pub until_ms: i64,
    /// Tasks that are leased to it.
    pub running: u64,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule, in words.
    pub rule: &'static str,
    /// How often it is broken.
    pub broken: u64,
}

/// The last numbers a database gave out; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of holders.
    pub holder: i64,
    /// Of tasks, agents and users.
    pub task: i64,
}

/// Why an operator got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is nothing to look at.
    #[error("there is no database in {}", .0.display())]
    Missing(PathBuf),
    /// The files cannot be used.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// The server cannot be used.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    /// The schema is another one than this binary's.
    #[error("the database has schema {found}, this binary {known}: {}", if found < known {
        "run `keiko db migrate` first"
    } else {
        "it was written by a newer version"
    })]
    Schema {
        /// The database's.
        found: i64,
        /// This binary's.
        known: i64,
    },
    /// A backup goes where nothing is.
    #[error("{} is there already: a backup needs an empty folder", .0.display())]
    Taken(PathBuf),
    /// A file or folder cannot be used.
    #[error("{} cannot be used", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database failed.
    #[error("the database failed a statement")]
    Database(#[from] sqlx::Error),
}

/// The rule that [`recount`] looks at.
pub(crate) const RECOUNT: &str = "a tenant's counts equal a recount";

/// The statement of [`RECOUNT`], with a row for every live task in `$tasks`.
macro_rules! recount {
    ($tasks:literal) => {
        concat!(
            "SELECT count(*) FROM tenant AS n
        LEFT JOIN tenant_count AS c ON c.tenant = n.id
        LEFT JOIN (SELECT tenant, count(*) AS live FROM ",
            $tasks,
            " AS live GROUP BY tenant) AS t ON t.tenant = n.id
        LEFT JOIN (SELECT tenant,
                sum(CASE WHEN state = 2 THEN 1 ELSE 0 END) AS completed,
                sum(CASE WHEN state = 3 THEN 1 ELSE 0 END) AS failed,
                sum(CASE WHEN state = 4 THEN 1 ELSE 0 END) AS cancelled
            FROM finished GROUP BY tenant) AS f ON f.tenant = n.id
        WHERE coalesce(c.live, -1) <> coalesce(t.live, 0)
            OR c.completed <> coalesce(f.completed, 0)
            OR c.failed <> coalesce(f.failed, 0)
            OR c.cancelled <> coalesce(f.cancelled, 0)"
        )
    };
}
pub(crate) use recount;

/// Rules, and the statements that count what breaks them.
pub(crate) const RULES: &[(&str, &str)] = &[
    (
        "an agent's open tasks equal a recount",
        "SELECT count(*) FROM agent AS a
        LEFT JOIN agent_count AS c ON c.agent = a.id
        LEFT JOIN (SELECT agent, count(*) AS live FROM task WHERE agent IS NOT NULL GROUP BY agent) AS t
            ON t.agent = a.id
        WHERE coalesce(c.total - c.completed - c.failed - c.cancelled, 0) <> coalesce(t.live, 0)",
    ),
    (
        // Its counts outlive the tasks' own rows.
        "an agent's counts are no less than a recount",
        "SELECT count(*) FROM agent AS a
        JOIN (SELECT agent,
                sum(CASE WHEN state = 2 THEN 1 ELSE 0 END) AS completed,
                sum(CASE WHEN state = 3 THEN 1 ELSE 0 END) AS failed,
                sum(CASE WHEN state = 4 THEN 1 ELSE 0 END) AS cancelled
            FROM finished WHERE agent IS NOT NULL GROUP BY agent) AS f ON f.agent = a.id
        LEFT JOIN agent_count AS c ON c.agent = a.id
        WHERE coalesce(c.completed, 0) < f.completed OR coalesce(c.failed, 0) < f.failed
            OR coalesce(c.cancelled, 0) < f.cancelled",
    ),
    ("no ended task is live too", "SELECT count(*) FROM task AS t JOIN finished AS f ON f.id = t.id"),
    (
        "exactly the completed tasks have a result",
        "SELECT count(*) FROM finished WHERE (result IS NOT NULL) <> (state = 2)",
    ),
    (
        "exactly the failed tasks have a failure",
        "SELECT count(*) FROM finished WHERE (state = 3 AND code IS NULL) OR (state = 2 AND code IS NOT NULL)",
    ),
    (
        "every attempt of an ended task had a lease",
        "SELECT count(*) FROM finished WHERE token < earlier + attempts",
    ),
    (
        "every attempt of a live task had a lease",
        "SELECT count(*) FROM task
        WHERE token < earlier + attempts + CASE WHEN holder IS NULL THEN 0 ELSE 1 END",
    ),
    (
        "every kept attempt belongs to a task",
        "SELECT count(*) FROM attempt AS a
        WHERE NOT EXISTS (SELECT 1 FROM task AS t WHERE t.id = a.task AND t.tenant = a.tenant)
            AND NOT EXISTS (SELECT 1 FROM finished AS f WHERE f.id = a.task AND f.tenant = a.tenant)",
    ),
    (
        "every log belongs to a task",
        "SELECT count(*) FROM attempt_log AS a
        WHERE NOT EXISTS (SELECT 1 FROM task AS t WHERE t.id = a.task AND t.tenant = a.tenant)
            AND NOT EXISTS (SELECT 1 FROM finished AS f WHERE f.id = a.task AND f.tenant = a.tenant)",
    ),
    (
        "every running task has a holder",
        "SELECT count(*) FROM task AS t
        WHERE t.holder IS NOT NULL AND NOT EXISTS (SELECT 1 FROM holder AS h WHERE h.id = t.holder)",
    ),
    (
        "every live task's kind is its tenant's",
        "SELECT count(*) FROM task AS t
        WHERE NOT EXISTS (SELECT 1 FROM kind AS k WHERE k.id = t.kind AND k.tenant = t.tenant)",
    ),
    (
        "every ended task's kind is its tenant's",
        "SELECT count(*) FROM finished AS f
        WHERE NOT EXISTS (SELECT 1 FROM kind AS k WHERE k.id = f.kind AND k.tenant = f.tenant)",
    ),
    (
        "every live task's agent and user are its tenant's",
        "SELECT count(*) FROM task AS t
        WHERE t.agent IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM agent AS a WHERE a.id = t.agent AND a.tenant = t.tenant)
            OR t.app_user IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM app_user AS u WHERE u.id = t.app_user AND u.tenant = t.tenant)",
    ),
    (
        "the component of every version of a plugin that was not removed is kept",
        "SELECT count(*) FROM plugin_version AS v JOIN plugin AS p ON p.id = v.plugin
        WHERE NOT p.removed AND NOT EXISTS (SELECT 1 FROM component AS c WHERE c.digest = v.digest)",
    ),
    (
        "no number is above the last one given out",
        "SELECT (SELECT count(*) FROM task WHERE id > (SELECT last FROM sequence WHERE name = 'task'))
            + (SELECT count(*) FROM finished WHERE id > (SELECT last FROM sequence WHERE name = 'task'))
            + (SELECT count(*) FROM holder WHERE id > (SELECT last FROM sequence WHERE name = 'holder'))",
    ),
];

/// Refuses a schema that the statements here do not fit.
pub(crate) fn require_schema(found: i64, known: i64) -> Result<(), AdminError> {
    if found == known { Ok(()) } else { Err(AdminError::Schema { found, known }) }
}
