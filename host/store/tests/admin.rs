//! What an operator asks of a database: its state, its rules with a damage for each, and a copy of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::id::{Digest, Holder, TaskId};
use keiko_core::port::{CatalogStore, Components, Records, TaskStore};
use keiko_core::task::{Payload, TaskFilter};
use keiko_store::admin::{AdminError, Finding, Numbers, Status};
use keiko_store::postgres;
use keiko_store::sqlite::{self, SqliteOptions, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

#[allow(dead_code, reason = "shared with the conformance suite, which uses more of it")]
#[path = "conformance/world.rs"]
mod world;

use world::database::Database;
use world::{Customer, LEASE_MS, NOW, complete, customer, fail, new_task, request, retry, submit};

/// A statement that breaks each rule which both engines have.
const DAMAGE: &[(&str, &str)] = &[
    ("a tenant's counts equal a recount", "UPDATE tenant_count SET completed = completed + 1 WHERE tenant = 1"),
    ("a tenant's counts equal a recount", "DELETE FROM tenant_count WHERE tenant = 2"),
    (
        "an agent's open tasks equal a recount",
        "INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms) VALUES (1, 1, 'a', 'k', 0, 0, 0);
        INSERT INTO agent_count (agent, tenant, total) VALUES (1, 1, 1)",
    ),
    (
        "an agent's counts are no less than a recount",
        "INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms) VALUES (1, 1, 'a', 'k', 0, 0, 0);
        UPDATE finished SET agent = 1 WHERE state = 3",
    ),
    ("no ended task is live too", "UPDATE task SET id = (SELECT id FROM finished WHERE state = 4)"),
    ("exactly the completed tasks have a result", "UPDATE finished SET result = NULL WHERE state = 2"),
    ("exactly the completed tasks have a result", "UPDATE finished SET result = input WHERE state = 3"),
    ("exactly the failed tasks have a failure", "UPDATE finished SET code = NULL WHERE state = 3"),
    ("every attempt of an ended task had a lease", "UPDATE finished SET token = 0 WHERE state = 2"),
    ("every attempt of a live task had a lease", "UPDATE task SET token = 0 WHERE holder IS NOT NULL"),
    ("every kept attempt belongs to a task", "UPDATE attempt SET task = task + 1000"),
    ("every kept attempt belongs to a task", "UPDATE attempt SET tenant = 2"),
    ("every log belongs to a task", "UPDATE attempt_log SET task = -task"),
    ("every running task has a holder", "DELETE FROM holder"),
    ("every live task's kind is its tenant's", "UPDATE task SET kind = (SELECT min(id) FROM kind WHERE tenant = 2)"),
    ("every ended task's kind is its tenant's", "UPDATE finished SET kind = 1000"),
    ("every live task's agent and user are its tenant's", "UPDATE task SET agent = 1"),
    ("every live task's agent and user are its tenant's", "UPDATE task SET app_user = 1"),
    ("no number is above the last one given out", "UPDATE sequence SET last = 0 WHERE name = 'task'"),
    ("no number is above the last one given out", "UPDATE sequence SET last = 0 WHERE name = 'holder'"),
];

/// The same for rules of the files. An index whose condition is not the one it was made under has wrong entries.
const FILE_DAMAGE: &[(&str, &str)] = &[
    (
        "the file of tasks is sound",
        "PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = 'CREATE INDEX finished_incomplete ON finished (tenant, state) WHERE state = 2'
        WHERE name = 'finished_incomplete'",
    ),
    ("no reference leads nowhere", "UPDATE plugin SET tenant = 1000 WHERE tenant = 1"),
    (
        "every large input belongs to a task",
        "INSERT INTO task_input (task, tenant, bytes) VALUES (1, 1, x'00')",
    ),
    ("every large input is kept", "DELETE FROM task_input"),
    ("the component of every version of a plugin that was not removed is kept", "UPDATE plugin_version SET digest = x'00'"),
];

/// A segment of one task, which the count of its tenant does not know.
macro_rules! segment {
    ($first:literal, $live:literal) => {
        concat!(
            "INSERT INTO task_segment (first, tenant, kind, created_ms, run_at_ms, gone, live, tasks) SELECT ",
            $first,
            ", 1, (SELECT min(id) FROM kind WHERE tenant = 1), 0, 0, ('0' || repeat('1', 127))::bit(128), ",
            $live,
            ", ''"
        )
    };
}

/// The same for rules of a server.
const SERVER_DAMAGE: &[(&str, &str)] = &[
    ("a tenant's counts equal a recount", segment!("1", "1")),
    (
        "every segment's kind is its tenant's, and whoever has leased it is there",
        concat!(segment!("1", "1"), "; UPDATE task_segment SET holder = 1"),
    ),
    (
        "every segment's kind is its tenant's, and whoever has leased it is there",
        concat!(segment!("1", "1"), "; UPDATE task_segment SET tenant = 2"),
    ),
    ("no segment is above the last number given out", segment!("9223372036854775000", "1")),
    ("a segment says how many of its tasks have not left", segment!("1", "2")),
    ("no task of a segment is a row or has ended too", segment!("(SELECT min(id) FROM task)", "1")),
    ("no task of a segment is a row or has ended too", segment!("(SELECT min(id) FROM finished)", "1")),
    (
        "every table of tenants is guarded by row-level security",
        "ALTER TABLE task NO FORCE ROW LEVEL SECURITY",
    ),
    ("every table of tenants is guarded by row-level security", "CREATE TABLE odd (tenant bigint)"),
    (
        "every index is complete",
        "SET allow_system_table_mods = on;
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'task_ready'::regclass",
    ),
    ("the component of every version of a plugin that was not removed is kept", "DELETE FROM component"),
];

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions { data_dir: folder.to_owned(), readers: 2, statement_log: false })
        .await
        .unwrap()
}

/// Submits a task and leases it.
async fn leased(store: &dyn TaskStore, ada: &Customer, holder: Holder) -> keiko_core::task::LeasedTask {
    submit_plain(store, ada, 1).await;
    store.lease(request(holder, 1)).await.unwrap().tasks.remove(0)
}

async fn submit_plain(store: &dyn TaskStore, ada: &Customer, count: u32) -> Vec<TaskId> {
    let first = store.reserve_ids(count, NOW).await.unwrap().first.0;
    let ids: Vec<TaskId> = (first..first + i64::from(count)).map(TaskId).collect();
    let tasks = ids.iter().map(|id| new_task(*id, ada.kind)).collect();
    store.enqueue(vec![submit(ada, tasks)], NOW).await.unwrap();
    ids
}

/// Two tenants; the first one has a task in every state, an attempt, a log, and a large input.
async fn populate<S: TaskStore + CatalogStore + Components>(store: &S) -> (Customer, Holder) {
    let ada = customer(store, "ada").await;
    customer(store, "bob").await;
    store.put(Digest([1; 32]), Bytes::from_static(b"component"), 0).await.unwrap();
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let mut call = vec![complete(&leased(store, &ada, holder).await)];
    call.push(fail(&leased(store, &ada, holder).await, Code::PluginFailed));
    call.push(retry(&leased(store, &ada, holder).await, Code::PluginFailed, NOW + 1_000_000));
    for settlement in &mut call {
        settlement.log = Bytes::from_static(b"log");
    }
    store.settle(holder, call, NOW).await.unwrap();
    let cancelled = submit_plain(store, &ada, 1).await;
    store.cancel(ada.tenant, cancelled[0], NOW).await.unwrap();
    leased(store, &ada, holder).await;
    let id = store.reserve_ids(1, NOW).await.unwrap().first;
    let mut large = new_task(id, ada.kind);
    large.input = Payload::json(format!("\"{}\"", "x".repeat(200_000)));
    store.enqueue(vec![submit(&ada, vec![large])], NOW).await.unwrap();
    (ada, holder)
}

async fn populated() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    populate(&store).await;
    store.close().await.unwrap();
    folder
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).connect().await.unwrap()
}

async fn execute(path: &Path, text: &str) {
    let mut connection = connect(path).await;
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn copy(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["keiko.db", "components.db"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

fn broken(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().filter(|finding| finding.broken > 0).map(|finding| finding.rule).collect()
}

fn counts(status: &Status) -> Vec<(&str, u64, u64, u64, u64)> {
    let tenants = status.tenants.iter();
    let counts = tenants.map(|of| (of.name.as_str(), of.live, of.completed, of.failed, of.cancelled));
    counts.collect()
}

#[tokio::test]
async fn every_rule_holds_and_notices_its_damage() {
    let whole = populated().await;
    let findings = sqlite::admin::check(whole.path()).await.unwrap();
    assert_eq!(broken(&findings), [""; 0]);
    let mut noticed = BTreeSet::new();
    for (rule, damage) in DAMAGE.iter().chain(FILE_DAMAGE) {
        let folder = copy(whole.path());
        // One statement moves all tasks to one id: only one may be left.
        if rule.starts_with("no ended task") {
            execute(&folder.path().join("keiko.db"), "DELETE FROM task WHERE holder IS NULL").await;
        }
        execute(&folder.path().join("keiko.db"), damage).await;
        let broken = broken(&sqlite::admin::check(folder.path()).await.unwrap());
        assert!(broken.contains(rule), "{rule}: {damage}\nonly broke {broken:?}");
        noticed.extend(broken.contains(rule).then_some(*rule));
    }
    let components =
        "CREATE INDEX odd ON component (digest) WHERE length(bytes) < 0; PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = 'CREATE INDEX odd ON component (digest) WHERE length(bytes) > 0'
        WHERE name = 'odd'";
    execute(&whole.path().join("components.db"), components).await;
    assert_eq!(
        broken(&sqlite::admin::check(whole.path()).await.unwrap()),
        ["the file of components is sound"]
    );
    noticed.insert("the file of components is sound");
    assert_eq!(noticed, findings.iter().map(|finding| finding.rule).collect());
}

#[tokio::test]
async fn every_rule_holds_on_postgresql_and_notices_its_damage() {
    let whole = Database::new().await;
    let store = whole.open().await;
    populate(&store).await;
    let findings = postgres::admin::check(&whole.options()).await.unwrap();
    assert_eq!(broken(&findings), [""; 0], "beside a host, too");
    store.close().await.unwrap();
    let mut noticed = BTreeSet::new();
    for (rule, damage) in DAMAGE.iter().chain(SERVER_DAMAGE) {
        let database = whole.copy().await;
        if rule.starts_with("no ended task") {
            database.execute("DELETE FROM task WHERE holder IS NULL").await;
        }
        database.execute(damage).await;
        let broken = broken(&postgres::admin::check(&database.options()).await.unwrap());
        assert!(broken.contains(rule), "{rule}: {damage}\nonly broke {broken:?}");
        noticed.insert(*rule);
    }
    assert_eq!(noticed, findings.iter().map(|finding| finding.rule).collect());
}

#[tokio::test]
async fn a_status_of_postgresql_says_what_is_there() {
    let database = Database::empty().await;
    let status = postgres::admin::status(&database.options()).await.unwrap();
    assert_eq!((status.engine, status.schema, status.tenants.len()), ("postgresql", 0, 0));
    let error = postgres::admin::check(&database.options()).await.unwrap_err();
    assert!(error.to_string().contains("run `keiko db migrate` first"), "{error}");
    postgres::admin::migrate(&database.options()).await.unwrap();
    let store = database.open().await;
    let (_, holder) = populate(&store).await;
    let status = postgres::admin::status(&database.options()).await.unwrap();
    assert_eq!(status.schema, status.schema_known);
    assert!(status.version.split('.').next().unwrap().parse::<u32>().unwrap() >= 14, "{}", status.version);
    assert_eq!(counts(&status), [("ada", 3, 1, 1, 1), ("bob", 0, 0, 0, 0)]);
    assert_eq!((status.holders[0].id, status.holders[0].running), (holder.0, 1));
    let size = |name: &str| status.sizes.iter().find(|(table, _)| table == name).unwrap().1;
    assert!(size("database") > size("task") && size("task") > 0);
    let numbers = store.numbers().await.unwrap();
    assert!(numbers.holder == holder.0 && numbers.task > 0, "{numbers:?}");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_page_breaks_a_rule_and_not_the_check() {
    let folder = populated().await;
    let path = folder.path().join("keiko.db");
    let whole = std::fs::read(&path).unwrap();
    let pages = whole.len() / 4_096;
    // What was written last; and everything but the first page, which says what the others are.
    for first in [pages / 2, 1] {
        let mut bytes = whole.clone();
        bytes[first * 4_096..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        let findings = sqlite::admin::check(folder.path()).await.unwrap();
        assert!(broken(&findings).contains(&"the file of tasks is sound"), "{findings:?}");
    }
}

#[tokio::test]
async fn a_status_says_what_is_there() {
    let folder = populated().await;
    let status = sqlite::admin::status(folder.path()).await.unwrap();
    assert_eq!((status.engine, status.schema), ("sqlite", status.schema_known));
    assert!(status.version.starts_with("3."), "{}", status.version);
    assert_eq!(counts(&status), [("ada", 3, 1, 1, 1), ("bob", 0, 0, 0, 0)]);
    assert_eq!((status.holders.len(), status.holders[0].running), (1, 1));
    assert_eq!((status.holders[0].opened_ms, status.holders[0].until_ms), (NOW, NOW + LEASE_MS));
    let size = |name: &str| status.sizes.iter().find(|(file, _)| file == name).unwrap().1;
    assert!(size("keiko.db") > 200_000 && size("components.db") > 0);
}

#[tokio::test]
async fn a_folder_in_use_without_a_database_or_of_another_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = sqlite::admin::status(folder.path()).await.unwrap_err();
    assert!(matches!(error, AdminError::Missing(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "looking makes nothing");
    let store = open(folder.path()).await;
    let error = sqlite::admin::check(folder.path()).await.unwrap_err();
    assert!(matches!(error, AdminError::Sqlite(sqlite::OpenError::InUse { pid: Some(_), .. })), "{error}");
    store.close().await.unwrap();
    for (change, advice) in [
        ("DELETE FROM migration WHERE number > 1", "run `keiko db migrate` first"),
        ("INSERT INTO migration VALUES (1000, 'x', 0)", "newer"),
    ] {
        execute(&folder.path().join("keiko.db"), change).await;
        let error = sqlite::admin::check(folder.path()).await.unwrap_err();
        assert!(matches!(error, AdminError::Schema { .. }) && error.to_string().contains(advice), "{error}");
        assert!(sqlite::admin::status(folder.path()).await.is_ok(), "a status needs no schema");
    }
}

#[tokio::test]
async fn a_backup_while_tasks_are_written_holds_together_and_opens() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (ada, holder) = populate(&store).await;
    let target = tempfile::tempdir().unwrap();
    let (work, copied) = tokio::join!(
        async {
            let mut ended = 0;
            for _ in 0..200 {
                let task = leased(&store, &ada, holder).await;
                ended += store.settle(holder, vec![complete(&task)], NOW).await.unwrap().len();
            }
            ended
        },
        async {
            let mut copied = Vec::new();
            for number in 0..5 {
                let target = target.path().join(number.to_string());
                copied.push(sqlite::admin::backup(folder.path(), &target).await.unwrap());
            }
            copied
        }
    );
    assert_eq!((work, copied.len()), (200, 5));
    let mut before = 0;
    for files in copied {
        assert!(files.iter().all(|(path, bytes)| std::fs::metadata(path).unwrap().len() == *bytes));
        let copy = files[0].0.parent().unwrap();
        assert_eq!(broken(&sqlite::admin::check(copy).await.unwrap()), [""; 0]);
        let opened = open(copy).await;
        assert_eq!(opened.plugins().await.unwrap().len(), 2);
        assert_eq!(opened.get(Digest([1; 32])).await.unwrap(), Some(Bytes::from_static(b"component")));
        let tasks = opened.list(ada.tenant, &TaskFilter::default(), 1_000).await.unwrap().len();
        assert!(tasks >= before, "a later copy has no fewer tasks");
        before = tasks;
        opened.close().await.unwrap();
    }
    let again = sqlite::admin::backup(folder.path(), &target.path().join("0")).await.unwrap_err();
    assert!(matches!(again, AdminError::Taken(_)), "{again}");
    let nowhere = sqlite::admin::backup(target.path(), &target.path().join("9")).await.unwrap_err();
    assert!(matches!(nowhere, AdminError::Missing(_)) && !target.path().join("9").exists(), "{nowhere}");
}

#[tokio::test]
async fn numbers_only_grow() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.numbers().await.unwrap(), Numbers::default());
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let ids = store.reserve_ids(10, NOW).await.unwrap();
    let numbers = store.numbers().await.unwrap();
    assert_eq!(numbers, Numbers { holder: holder.0, task: ids.first.0 + 9 });
}
