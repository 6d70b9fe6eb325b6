//! What only the embedded store promises: its files, its lock, its group commit, and what it does with damage.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::id::{Digest, Holder, TaskId};
use keiko_core::port::{CatalogStore, Components, Records, StoreErrorKind, TaskStore};
use keiko_core::task::{Payload, Settled, Submitted, TaskFilter, TaskState};
use keiko_store::sqlite::{OpenError, SqliteOptions, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use tempfile::TempDir;

#[allow(dead_code, reason = "shared with the conformance suite, which uses more of it")]
#[path = "conformance/world.rs"]
mod world;

use world::{Customer, LEASE_MS, NOW, complete, customer, fail, new_task, request, retry, submit};

async fn try_open(folder: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(SqliteOptions { data_dir: folder.to_owned(), readers: 2, statement_log: false }).await
}

async fn open(folder: &TempDir) -> SqliteStore {
    try_open(folder.path()).await.unwrap()
}

/// A connection beside the store's, for a look into the file or for damage.
async fn beside(folder: &TempDir) -> SqliteConnection {
    SqliteConnectOptions::new().filename(folder.path().join("keiko.db")).connect().await.unwrap()
}

async fn execute(folder: &TempDir, text: &str) {
    let mut connection = beside(folder).await;
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn number(folder: &TempDir, text: &str) -> i64 {
    let mut connection = beside(folder).await;
    let row = sqlx::query(AssertSqlSafe(text.to_owned())).fetch_one(&mut connection).await.unwrap();
    let number = row.get(0);
    connection.close().await.unwrap();
    number
}

async fn submit_plain(store: &SqliteStore, customer: &Customer, count: u32) -> Vec<TaskId> {
    let first = store.reserve_ids(count, NOW).await.unwrap().first.0;
    let ids: Vec<TaskId> = (first..first + i64::from(count)).map(TaskId).collect();
    let tasks = ids.iter().map(|id| new_task(*id, customer.kind)).collect();
    let answers = store.enqueue(vec![submit(customer, tasks)], NOW).await.unwrap();
    assert!(matches!(answers[0], Submitted::Accepted { .. }));
    ids
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    submit_plain(&store, &ada, 4).await;
    let leased = store.lease(request(holder, 3)).await.unwrap().tasks;
    let call = vec![complete(&leased[0]), retry(&leased[1], Code::Internal, NOW)];
    store.settle(holder, call, NOW).await.unwrap();
    store.put(Digest([1; 32]), Bytes::from_static(b"component"), 0).await.unwrap();
    let (list, ids) = (store.list(ada.tenant, &TaskFilter::default(), 10).await.unwrap(), [0, 1, 2]);
    let mut views = Vec::new();
    for at in ids {
        views.push(store.task(ada.tenant, leased[at].id).await.unwrap());
    }
    store.close().await.unwrap();

    let store = open(&folder).await;
    assert_eq!(store.list(ada.tenant, &TaskFilter::default(), 10).await.unwrap(), list);
    for (at, view) in ids.into_iter().zip(views) {
        assert_eq!(store.task(ada.tenant, leased[at].id).await.unwrap(), view);
    }
    assert_eq!(store.plugins().await.unwrap(), std::slice::from_ref(&ada.plugin));
    assert_eq!(store.get(Digest([1; 32])).await.unwrap(), Some(Bytes::from_static(b"component")));
    let again = store.settle(holder, vec![complete(&leased[2])], NOW).await.unwrap();
    assert_eq!(again, [Settled::Stored], "a lease outlives a restart, until it is rescued");
    assert!(store.open_holder(NOW, LEASE_MS).await.unwrap() > holder);
}

#[tokio::test]
async fn a_second_open_is_refused_and_says_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let error = try_open(folder.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()) && text.contains("running host"), "{text}");
    assert!(!text.contains('\n'));
    store.close().await.unwrap();
    let again = open(&folder).await;
    again.close().await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_dropped_frees_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let store = open(&folder).await;
        let ada = customer(&store, "ada").now_or_never();
        assert!(ada.is_none(), "nothing is done before anything is awaited");
        drop(store);
        // The loop ends in its own time; the lock says when.
        loop {
            match try_open(folder.path()).await {
                Ok(store) => break store.close().await.unwrap(),
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[tokio::test]
async fn a_newer_or_foreign_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder).await.close().await.unwrap();
    execute(&folder, "INSERT INTO migration VALUES (9999, 'tomorrow', 0)").await;
    let error = try_open(folder.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
    assert!(error.to_string().contains("9999 `tomorrow`"), "{error}");
    execute(
        &folder,
        "DELETE FROM migration WHERE number = 9999; UPDATE migration SET name = 'other' WHERE number = 1",
    )
    .await;
    assert!(matches!(try_open(folder.path()).await, Err(OpenError::Newer { .. })));
    execute(&folder, "UPDATE migration SET name = 'init' WHERE number = 1").await;
    open(&folder).await.close().await.unwrap();
    std::fs::write(folder.path().join("keiko.db"), vec![7; 8_192]).unwrap();
    assert!(matches!(try_open(folder.path()).await, Err(OpenError::Database { .. })));
}

#[tokio::test]
async fn a_newer_component_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder).await.close().await.unwrap();
    change_components(&folder, "PRAGMA user_version = 3").await;
    assert!(matches!(try_open(folder.path()).await, Err(OpenError::Newer { .. })));
}

#[tokio::test]
async fn components_of_the_first_form_count_from_when_they_are_first_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let digest = Digest([1; 32]);
    store.put(digest, Bytes::from_static(b"component"), 0).await.unwrap();
    store.close().await.unwrap();
    change_components(&folder, "DROP TABLE kept; PRAGMA user_version = 1").await;
    let store = open(&folder).await;
    // Longer ago than any that is there could have been put, and in a time to come.
    for (before_ms, kept) in [(1_700_000_000_000, vec![digest]), (i64::MAX, vec![])] {
        let forgotten = store.forget(before_ms, before_ms).await.unwrap().unwrap();
        assert_eq!((forgotten.count, &forgotten.kept), (1 - kept.len() as u64, &kept));
        assert_eq!(store.get(digest).await.unwrap().is_some(), !kept.is_empty());
    }
    store.close().await.unwrap();
}

async fn change_components(folder: &TempDir, text: &str) {
    let path = folder.path().join("components.db");
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_thousand_submits_at_once_share_few_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let first = store.reserve_ids(1_000, NOW).await.unwrap().first.0;
    let before = store.writer_counts();
    let calls = (first..first + 1_000).map(|id| {
        let submit = submit(&ada, vec![new_task(TaskId(id), ada.kind)]);
        store.enqueue(vec![submit], NOW)
    });
    for answer in join_all(calls).await {
        assert!(matches!(answer.unwrap()[0], Submitted::Accepted { duplicate: false, .. }));
    }
    let after = store.writer_counts();
    let (transactions, statements) =
        (after.transactions - before.transactions, after.statements - before.statements);
    assert_eq!(after.writes - before.writes, 1_000);
    assert!(transactions <= 20, "{transactions} transactions");
    assert!(statements <= 10 * transactions, "{statements} statements");
    assert_eq!(store.live().await.unwrap()[&ada.tenant], 1_000);
}

/// Calls to the database that `work` makes.
async fn statements<T>(store: &SqliteStore, work: impl Future<Output = T>) -> (T, u64) {
    let before = store.writer_counts().statements;
    let answer = work.await;
    (answer, store.writer_counts().statements - before)
}

#[tokio::test]
async fn the_number_of_statements_hardly_grows_with_the_number_of_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    for (count, most) in [(1, 6), (10, 7), (1_000, 7)] {
        let first = store.reserve_ids(count, NOW).await.unwrap().first.0;
        let ids = first..first + i64::from(count);
        let call = vec![submit(&ada, ids.map(|id| new_task(TaskId(id), ada.kind)).collect())];
        let (_, submitting) = statements(&store, store.enqueue(call, NOW)).await;
        let (lease, leasing) = statements(&store, store.lease(request(holder, count as usize))).await;
        let call: Vec<_> = lease.unwrap().tasks.iter().map(complete).collect();
        assert_eq!(call.len(), count as usize);
        let (_, settling) = statements(&store, store.settle(holder, call, NOW)).await;
        assert!(
            submitting.max(leasing).max(settling) <= most,
            "{count} tasks: {submitting} + {leasing} + {settling} statements"
        );
    }
}

#[tokio::test]
async fn a_write_completes_when_its_caller_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let id = submit_plain(&store, &ada, 1).await[0];
    // Sent with the first poll, and forgotten.
    assert!(store.cancel(ada.tenant, id, NOW).now_or_never().is_none());
    store.reserve_ids(1, NOW).await.unwrap();
    let view = store.task(ada.tenant, id).await.unwrap().unwrap();
    assert_eq!(view.summary.state, TaskState::Cancelled);

    // A lease that nobody hears of is given back: its tasks run for nobody.
    let id = submit_plain(&store, &ada, 1).await[0];
    assert!(store.lease(request(holder, 1)).now_or_never().is_none());
    // The one that takes it back comes right behind the commit, so the next lease or the one after finds the task.
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.extend(store.lease(request(holder, 1)).await.unwrap().tasks);
    }
    assert_eq!(tasks.len(), 1);
    assert_eq!((tasks[0].id, tasks[0].attempts), (id, 0));
    assert_eq!(tasks[0].token.0, 2, "the unheard lease had the first token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_anywhere_leave_whole_writes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder).await);
    let ada = customer(&*store, "ada").await;
    let first = store.reserve_ids(600, NOW).await.unwrap().first.0;
    for round in 0..300 {
        let ids = [first + 2 * round, first + 2 * round + 1];
        let pair = submit(&ada, ids.map(|id| new_task(TaskId(id), ada.kind)).to_vec());
        let enqueue = store.enqueue(vec![pair], NOW);
        // Polled a few times, then dropped: at every place it can wait.
        let mut enqueue = std::pin::pin!(enqueue);
        for _ in 0..round % 6 {
            if futures::poll!(enqueue.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    store.ping().await.unwrap();
    store.close().await.unwrap();
    let live = number(&folder, "SELECT live FROM tenant_count").await;
    assert_eq!(number(&folder, "SELECT count(*) FROM task").await, live);
    assert_eq!(live % 2, 0, "each pair is there or is not");
    assert!(live >= 500, "what was sent was stored: {live}");
}

#[tokio::test]
async fn a_closed_store_finishes_what_waits_and_answers_down() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let first = store.reserve_ids(50, NOW).await.unwrap().first.0;
    let calls = (first..first + 50)
        .map(|id| store.enqueue(vec![submit(&ada, vec![new_task(TaskId(id), ada.kind)])], NOW));
    let (answers, closed, again) = futures::join!(join_all(calls), store.close(), store.close());
    closed.unwrap();
    again.unwrap();
    assert!(answers.into_iter().all(|answer| answer.is_ok()), "sent before the close");
    assert_eq!(number(&folder, "SELECT count(*) FROM task").await, 50);
    assert_eq!(store.reserve_ids(1, NOW).await.unwrap_err().kind(), StoreErrorKind::Down);
    assert_eq!(store.ping().await.unwrap_err().kind(), StoreErrorKind::Down);
    let read = store.counts(ada.tenant).await.unwrap_err();
    assert_eq!(read.kind(), StoreErrorKind::Down);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let damages = [
        "attempts = -1",
        "budget = '{'",
        "depth = 4294967296",
        "trace = CAST(x'ff' AS TEXT)",
        "input = NULL",
        "input = NULL, input_bytes = 5",
    ];
    let bad = submit_plain(&store, &ada, damages.len() as u32).await;
    let good = submit_plain(&store, &ada, 1).await;
    for (id, damage) in bad.iter().zip(damages) {
        execute(&folder, &format!("UPDATE task SET {damage} WHERE id = {}", id.0)).await;
    }
    let lease = store.lease(request(holder, 10)).await.unwrap();
    assert_eq!(lease.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), good);
    let counts = store.counts(ada.tenant).await.unwrap();
    assert_eq!((counts.failed, counts.running, counts.pending), (damages.len() as u64, 1, 0));
    let view = store.task(ada.tenant, bad[1]).await.unwrap().unwrap();
    assert_eq!(view.failure.map(|failure| failure.code), Some(Code::Integrity));
    let error = store.task(ada.tenant, bad[0]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Integrity);
}

#[tokio::test]
async fn a_schedule_that_cannot_be_read_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    world::unreadable_schedules(&store, async |damage: &str| execute(&folder, damage).await).await;
}

#[tokio::test]
async fn damage_is_answered_as_integrity_for_its_task_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    submit_plain(&store, &ada, 3).await;
    let tasks = store.lease(request(holder, 3)).await.unwrap().tasks;
    let call = tasks.iter().map(|task| fail(task, Code::Trap)).collect();
    store.settle(holder, call, NOW).await.unwrap();
    for (task, damage) in tasks.iter().zip(["detail = '{'", "code = 'oops'"]) {
        execute(&folder, &format!("UPDATE finished SET {damage} WHERE id = {}", task.id.0)).await;
        let error = store.task(ada.tenant, task.id).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Integrity);
        assert!(!error.to_string().contains("oops"), "{error}");
    }
    assert!(store.task(ada.tenant, tasks[2].id).await.unwrap().is_some());
}

#[tokio::test]
async fn usage_is_counted_by_tenant_and_day() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (ada, bob) = (customer(&store, "ada").await, customer(&store, "bob").await);
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    submit_plain(&store, &ada, 3).await;
    submit_plain(&store, &bob, 1).await;
    let tasks = store.lease(request(holder, 4)).await.unwrap().tasks;
    let (adas, bobs): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task.tenant == ada.tenant);
    let call = vec![
        complete(adas[0]),
        fail(adas[1], Code::Trap),
        retry(adas[2], Code::Internal, NOW),
        complete(bobs[0]),
    ];
    store.settle(holder, call, NOW).await.unwrap();
    let day = NOW / 86_400_000;
    let sums = "attempts * 1000 + completed * 100 + failed * 10";
    let of = |customer: &Customer, what: &str, day: i64| {
        format!(
            "SELECT coalesce(sum({what}), 0) FROM usage WHERE tenant = {} AND day = {day}",
            customer.tenant
        )
    };
    assert_eq!(number(&folder, &of(&ada, sums, day)).await, 3_110);
    assert_eq!(number(&folder, &of(&ada, "fuel_used", day)).await, 15);
    assert_eq!(number(&folder, &of(&ada, "guest_us", day)).await, 2_700);
    assert_eq!(number(&folder, &of(&bob, sums, day)).await, 1_100);
    let again = store.lease(request(holder, 1)).await.unwrap().tasks;
    store.settle(holder, vec![complete(&again[0])], NOW + 86_400_000).await.unwrap();
    assert_eq!(number(&folder, &of(&ada, sums, day + 1)).await, 1_100);
}

#[tokio::test]
async fn nothing_of_a_completed_task_stays_but_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let first = store.reserve_ids(2, NOW).await.unwrap().first.0;
    let large = |id| {
        let mut task = new_task(TaskId(id), ada.kind);
        task.input = Payload::json(vec![b'1'; 10_000]);
        task
    };
    let call = vec![submit(&ada, vec![large(first), large(first + 1)])];
    store.enqueue(call, NOW).await.unwrap();
    assert_eq!(number(&folder, "SELECT count(*) FROM task_input").await, 2);
    let tasks = store.lease(request(holder, 2)).await.unwrap().tasks;
    store.settle(holder, vec![complete(&tasks[0]), fail(&tasks[1], Code::Trap)], NOW).await.unwrap();
    assert_eq!(number(&folder, "SELECT count(*) FROM task").await, 0);
    assert_eq!(number(&folder, "SELECT task FROM task_input").await, tasks[1].id.0, "for a retry by hand");
    assert_eq!(number(&folder, "SELECT count(*) FROM attempt").await, 0);
}

#[tokio::test]
async fn an_older_file_put_back_gives_no_number_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.close().await.unwrap();
    let copy = std::fs::read(folder.path().join("keiko.db")).unwrap();
    let store = open(&folder).await;
    let ids = store.reserve_ids(1_000, NOW).await.unwrap();
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    store.close().await.unwrap();
    std::fs::write(folder.path().join("keiko.db"), copy).unwrap();
    let store = open(&folder).await;
    assert!(store.open_holder(NOW + 1, LEASE_MS).await.unwrap() > holder);
    assert!(store.reserve_ids(1, NOW + 1).await.unwrap().first.0 >= ids.first.0 + 1_000);
    assert!(holder > Holder(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_does_not_wait_for_a_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let ada = customer(&store, "ada").await;
    let id = submit_plain(&store, &ada, 1).await[0];
    // Somebody with a shell holds the write lock: the writer waits, readers do not.
    let mut shell = beside(&folder).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut shell).await.unwrap();
    let mut write = std::pin::pin!(store.cancel(ada.tenant, id, NOW));
    assert!(futures::poll!(write.as_mut()).is_pending());
    let view = store.task(ada.tenant, id).await.unwrap().unwrap();
    assert_eq!(view.summary.state, TaskState::Pending);
    sqlx::query("ROLLBACK").execute(&mut shell).await.unwrap();
    write.await.unwrap();
}
