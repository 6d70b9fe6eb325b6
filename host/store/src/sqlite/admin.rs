//! What an operator asks of the files: their state, whether they hold together, and a copy of them.
//!
//! [`status`] and [`check`] take the folder's lock, so that they are refused while a host has it. [`backup`] does not:
//! each file is copied in one snapshot while the host goes on. The tasks are copied before the components, which are
//! kept before a version names them and are never removed: the copy has every component that its versions name.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use keiko_core::port::StoreError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Connection, Row};

use super::SqliteStore;
use super::error::{CORRUPT, store_error};
use super::migrate::newest;
use super::open::{Lock, OpenError};
use crate::admin::{
    AdminError, Finding, HolderStatus, Numbers, RECOUNT, RULES, Status, TenantStatus, recount, require_schema,
};

/// The file of tasks.
const TASKS: &str = "keiko.db";
/// The file of components.
const COMPONENTS: &str = "components.db";

/// What is wrong with the one file of a connection.
const SOUND: &str = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'";

/// Rules that need what only the files have.
const FILE_RULES: &[(&str, &str)] = &[
    ("the file of tasks is sound", SOUND),
    ("no reference leads nowhere", "SELECT count(*) FROM pragma_foreign_key_check"),
    (
        "every large input belongs to a task",
        "SELECT count(*) FROM task_input AS i
        WHERE NOT EXISTS (SELECT 1 FROM task AS t
                WHERE t.id = i.task AND t.tenant = i.tenant AND t.input_bytes IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM finished AS f
                WHERE f.id = i.task AND f.tenant = i.tenant AND f.input_bytes IS NOT NULL)",
    ),
    (
        "every large input is kept",
        "SELECT (SELECT count(*) FROM task AS t WHERE t.input_bytes IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM task_input AS i WHERE i.task = t.id))
            + (SELECT count(*) FROM finished AS f WHERE f.input_bytes IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM task_input AS i WHERE i.task = f.id))",
    ),
];

/// What is in the folder's files.
pub async fn status(data_dir: &Path) -> Result<Status, AdminError> {
    let (_lock, mut connection) = open(data_dir).await?;
    let version: String =
        sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await?.try_get(0)?;
    let schema = schema(&mut connection).await?;
    let mut status = Status {
        engine: "sqlite",
        version,
        schema,
        schema_known: newest(),
        sizes: sizes(data_dir)?,
        tenants: Vec::new(),
        holders: Vec::new(),
    };
    if schema > 0 {
        let query = "SELECT t.id, t.name, c.live, c.completed, c.failed, c.cancelled
            FROM tenant AS t JOIN tenant_count AS c ON c.tenant = t.id ORDER BY t.id";
        let rows = sqlx::query(query).fetch_all(&mut connection).await?;
        status.tenants = rows.iter().map(tenant).collect::<Result<_, _>>()?;
        let query = "SELECT h.id, h.opened_ms, h.until_ms,
                (SELECT count(*) FROM task AS t WHERE t.state = 1 AND t.holder = h.id)
            FROM holder AS h ORDER BY h.id";
        let rows = sqlx::query(query).fetch_all(&mut connection).await?;
        status.holders = rows.iter().map(holder).collect::<Result<_, _>>()?;
    }
    connection.close().await?;
    Ok(status)
}

/// Looks whether the folder's files hold together.
pub async fn check(data_dir: &Path) -> Result<Vec<Finding>, AdminError> {
    let (_lock, mut connection) = open(data_dir).await?;
    match schema(&mut connection).await {
        // Too damaged to say what it is.
        Err(AdminError::Database(error)) if is_damage(&error) => {
            return Ok(vec![Finding { rule: FILE_RULES[0].0, broken: 1 }]);
        }
        found => require_schema(found?, newest())?,
    }
    let components = data_dir.join(COMPONENTS);
    let mut findings = Vec::new();
    look(&mut connection, FILE_RULES, &mut findings).await?;
    let mut beside = connect(&components).await?;
    look(&mut beside, &[("the file of components is sound", SOUND)], &mut findings).await?;
    beside.close().await?;
    let attach = sqlx::query("ATTACH ?1 AS components").bind(components.to_string_lossy().into_owned());
    attach.execute(&mut connection).await?;
    look(&mut connection, &[(RECOUNT, recount!("task"))], &mut findings).await?;
    look(&mut connection, RULES, &mut findings).await?;
    connection.close().await?;
    Ok(findings)
}

async fn look(
    connection: &mut SqliteConnection,
    rules: &[(&'static str, &'static str)],
    findings: &mut Vec<Finding>,
) -> Result<(), AdminError> {
    for (rule, statement) in rules {
        let broken: i64 = match sqlx::query(*statement).fetch_one(&mut *connection).await {
            Ok(row) => row.try_get(0)?,
            Err(error) if is_damage(&error) => 1,
            Err(error) => return Err(error.into()),
        };
        findings.push(Finding { rule, broken: broken.unsigned_abs() });
    }
    Ok(())
}

/// Whether a file is too damaged for a statement to come to its end.
fn is_damage(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == CORRUPT)
}

/// Copies the files into a new or empty folder, whether a host works with them or not; their sizes.
pub async fn backup(data_dir: &Path, target: &Path) -> Result<Vec<(PathBuf, u64)>, AdminError> {
    require_file(data_dir)?;
    make_target(target)?;
    let mut copied = Vec::new();
    for name in [TASKS, COMPONENTS] {
        let (from, to) = (data_dir.join(name), target.join(name));
        let mut connection = connect(&from).await?;
        let vacuum = sqlx::query("VACUUM INTO ?1").bind(to.to_string_lossy().into_owned());
        vacuum.execute(&mut connection).await?;
        connection.close().await?;
        copied.push((to.clone(), sync(&to)?));
    }
    sync(target)?;
    Ok(copied)
}

impl SqliteStore {
    /// The last numbers given out.
    pub async fn numbers(&self) -> Result<Numbers, StoreError> {
        let query = "SELECT (SELECT last FROM sequence WHERE name = 'holder'),
            (SELECT last FROM sequence WHERE name = 'task')";
        let row = sqlx::query(query).fetch_one(&self.0.readers).await.map_err(store_error)?;
        let read = |place: usize| row.try_get(place).map_err(store_error);
        Ok(Numbers { holder: read(0)?, task: read(1)? })
    }
}

/// Locks the folder and opens the file of tasks, which must be there.
async fn open(data_dir: &Path) -> Result<(Lock, SqliteConnection), AdminError> {
    require_file(data_dir)?;
    let lock = Lock::take(data_dir)?;
    Ok((lock, connect(&data_dir.join(TASKS)).await?))
}

async fn connect(path: &Path) -> Result<SqliteConnection, AdminError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    Ok(options.connect().await.map_err(OpenError::database(path))?)
}

fn require_file(data_dir: &Path) -> Result<(), AdminError> {
    // A folder that cannot be looked into is another trouble than an empty one.
    match std::fs::metadata(data_dir.join(TASKS)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(AdminError::Missing(data_dir.to_owned()))
        }
        Err(source) => Err(AdminError::Folder { path: data_dir.to_owned(), source }),
    }
}

async fn schema(connection: &mut SqliteConnection) -> Result<i64, AdminError> {
    let query = "SELECT count(*) FROM sqlite_schema WHERE name = 'migration'";
    let tables: i64 = sqlx::query(query).fetch_one(&mut *connection).await?.try_get(0)?;
    if tables == 0 {
        return Ok(0);
    }
    let query = "SELECT coalesce(max(number), 0) FROM migration";
    Ok(sqlx::query(query).fetch_one(&mut *connection).await?.try_get(0)?)
}

fn sizes(data_dir: &Path) -> Result<Vec<(String, u64)>, AdminError> {
    let names = [TASKS, COMPONENTS].into_iter().flat_map(|name| [name.to_owned(), format!("{name}-wal")]);
    let mut sizes = Vec::new();
    for name in names {
        // A file that is not there is made when it is wanted.
        if let Ok(metadata) = std::fs::metadata(data_dir.join(&name)) {
            sizes.push((name, metadata.len()));
        }
    }
    Ok(sizes)
}

fn make_target(target: &Path) -> Result<(), AdminError> {
    let failed = |source| AdminError::Folder { path: target.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(target).map_err(failed)?;
    match std::fs::read_dir(target).map_err(failed)?.next() {
        Some(_) => Err(AdminError::Taken(target.to_owned())),
        None => Ok(()),
    }
}

/// Waits until a file or folder is on the disk; its size.
fn sync(path: &Path) -> Result<u64, AdminError> {
    let failed = |source| AdminError::Folder { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(file.metadata().map_err(failed)?.len())
}

fn tenant(row: &SqliteRow) -> Result<TenantStatus, sqlx::Error> {
    let count = |place: usize| row.try_get::<i64, _>(place).map(i64::unsigned_abs);
    Ok(TenantStatus {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        live: count(2)?,
        completed: count(3)?,
        failed: count(4)?,
        cancelled: count(5)?,
    })
}

fn holder(row: &SqliteRow) -> Result<HolderStatus, sqlx::Error> {
    let running = row.try_get::<i64, _>(3)?.unsigned_abs();
    Ok(HolderStatus { id: row.try_get(0)?, opened_ms: row.try_get(1)?, until_ms: row.try_get(2)?, running })
}
