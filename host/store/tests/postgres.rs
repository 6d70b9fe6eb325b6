//! What only the store of many hosts promises: its migrations, its connections, its clock, and what hosts do to each
//! other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a proxy and hosts that run at once")]

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use keiko_core::batch::{Add, Added, NewItem, Processor, Waiting, payload_of};
use keiko_core::id::{Digest, ItemId, TaskId, TenantId};
use keiko_core::port::{
    ArtifactName, BatchStore, Beat, CatalogStore, Components, Dead, LeaseRequest, Records, StoreErrorKind,
    TaskStore,
};
use keiko_core::task::{CancelAnswer, Settled, Submit, Submitted, TaskFilter};
use keiko_store::postgres::{OpenError, PostgresOptions, PostgresStore};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/news.rs"]
mod news;
#[path = "postgres/next.rs"]
mod next;
#[path = "postgres/segments.rs"]
mod segments;
#[path = "postgres/together.rs"]
mod together;
#[allow(dead_code, reason = "shared with the conformance suite, which uses more of it")]
#[path = "conformance/world.rs"]
mod world;

use world::database::Database;
use world::{Customer, LEASE_MS, NOW, complete, customer, key, new_task, request, submit};

async fn submit_plain(store: &PostgresStore, customer: &Customer, count: u32) -> Vec<TaskId> {
    let first = store.reserve_ids(count, NOW).await.unwrap().first.0;
    let ids: Vec<TaskId> = (first..first + i64::from(count)).map(TaskId).collect();
    let tasks = ids.iter().map(|id| new_task(*id, customer.kind)).collect();
    let answers = store.enqueue(vec![submit(customer, tasks)], NOW).await.unwrap();
    assert!(matches!(answers[0], Submitted::Accepted { .. }), "{answers:?}");
    ids
}

/// A store whose time is the database's.
async fn open_by_its_own_clock(database: &Database) -> PostgresStore {
    let url = database.url.replace("caller", "database");
    PostgresStore::open(PostgresOptions { url, ..database.options() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_open_an_empty_database_at_once_agree_on_its_schema() {
    let database = Database::empty().await;
    let opens = join_all((0..8).map(|_| PostgresStore::open(database.options()))).await;
    for store in opens {
        store.unwrap().close().await.unwrap();
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres"));
    assert_eq!(database.number("SELECT count(*) FROM migration").await, files.unwrap().count() as i64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_cannot_be_read_stops_no_other() {
    let database = Database::new().await;
    let store = database.open().await;
    world::unreadable_schedules(&store, async |damage: &str| database.execute(damage).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_or_foreign_database_is_refused() {
    let database = Database::new().await;
    let open = || async { PostgresStore::open(database.options()).await.err() };
    database.execute("INSERT INTO migration VALUES (9999, 'tomorrow', 0)").await;
    let error = open().await.unwrap();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
    assert!(error.to_string().contains("9999 `tomorrow`"), "{error}");
    database
        .execute("DELETE FROM migration WHERE number = 9999; UPDATE migration SET name = name || 'x'")
        .await;
    assert!(matches!(open().await, Some(OpenError::Newer { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_be_used_is_told_apart() {
    let database = Database::new().await;
    let open = |url: String| async {
        let options = PostgresOptions { url, ..database.options() };
        PostgresStore::open(options).await.err().unwrap()
    };
    assert!(matches!(open("nonsense".to_owned()).await, OpenError::Url));
    let nobody = open(format!("{}&host=/nonexistent", database.url)).await;
    assert!(matches!(nobody, OpenError::Unreachable { .. }), "{nobody:?}");
    let missing = open(format!("{}&dbname=keiko_no_such_database", database.url)).await;
    assert!(matches!(missing, OpenError::Denied { .. }), "{missing:?}");
    let stranger = open(format!("{}&user=keiko_no_such_user", database.url)).await;
    assert!(matches!(stranger, OpenError::Denied { .. }), "{stranger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_is_no_superuser_is_told_what_to_run_and_then_works() {
    // Another database has made the roles by now, as for the second installation on a server.
    drop(Database::new().await);
    let database = Database::empty().await;
    let user = format!("keiko_owner_{}", std::process::id());
    let name =
        database.number("SELECT oid::bigint FROM pg_database WHERE datname = current_database()").await;
    let own = format!(
        "CREATE ROLE {user} LOGIN; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO {user}',
            (SELECT datname FROM pg_database WHERE oid = {name})); END $$"
    );
    database.execute(&own).await;
    let url = format!("{}&user={user}", database.url);
    let options = || PostgresOptions { url: url.clone(), ..database.options() };
    let error = PostgresStore::open(options()).await.err().unwrap();
    assert!(matches!(error, OpenError::Roles { .. }), "{error:?}");
    assert!(
        error.to_string().contains(&format!("GRANT keiko_system, keiko_tenant TO \"{user}\"")),
        "{error}"
    );
    database.execute(&format!("GRANT keiko_system, keiko_tenant TO {user}")).await;
    let store = PostgresStore::open(options()).await.unwrap();
    let ada = customer(&store, "ada").await;
    let id = submit_plain(&store, &ada, 1).await[0];
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let tasks = store.lease(request(holder, 1)).await.unwrap().tasks;
    assert_eq!(store.settle(holder, vec![complete(&tasks[0])], NOW).await.unwrap(), [Settled::Stored]);
    assert!(store.task(ada.tenant, id).await.unwrap().is_some());
    // What owns the tables sees nothing in them without a role.
    database.execute(&format!("REVOKE keiko_system, keiko_tenant FROM {user}")).await;
    let options = PgConnectOptions::from_str(&url).unwrap();
    let mut owner = options.connect().await.unwrap();
    let seen = sqlx::query("SELECT count(*) FROM finished").fetch_one(&mut owner).await.unwrap();
    assert_eq!(seen.get::<i64, _>(0), 0);
    assert_eq!(database.number("SELECT count(*) FROM finished").await, 1);
    owner.close().await.unwrap();
    store.close().await.unwrap();
    drop(database);
    let server = PgConnectOptions::from_str(&world::database::server()).unwrap();
    let mut server = server.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("DROP ROLE {user}"))).execute(&mut server).await.unwrap();
}

/// Ends every connection of the stores in a database.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'keiko %'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_ended_are_replaced_and_nobody_notices() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let films = films(&store, &ada).await;
    for _ in 0..3 {
        let ids = submit_plain(&store, &ada, 2).await;
        for _ in 0..2 {
            // Two connections take them in turn.
            let add = new_add(&store, &films, 1, 1_000).await;
            store.add(vec![add], NOW).await.unwrap();
        }
        let tasks = store.lease(request(holder, 2)).await.unwrap().tasks;
        assert!(store.task(ada.tenant, ids[0]).await.unwrap().is_some());
        assert!(database.number(TERMINATE).await >= 7, "six that write, and at least one that reads");
        let answers = store.settle(holder, vec![complete(&tasks[0])], NOW).await.unwrap();
        assert_eq!(answers, [Settled::Stored]);
        assert_eq!(store.cancel(ada.tenant, tasks[1].id, NOW).await.unwrap(), CancelAnswer::Cancelled);
        assert!(matches!(store.beat(holder, NOW, LEASE_MS).await.unwrap(), Beat::Alive { .. }));
        assert!(store.lease(request(holder, 5)).await.unwrap().tasks.is_empty());
        assert_eq!(store.counts(ada.tenant).await.unwrap().running, 0);
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_with_somebody_else_is_run_again() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let id = submit_plain(&store, &ada, 1).await[0];
    let mut other = database.beside().await;
    let lock = format!(
        "SET deadlock_timeout = '10min'; BEGIN; SELECT 1 FROM tenant_count WHERE tenant = {} FOR UPDATE",
        ada.tenant
    );
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'keiko settle' AND wait_event_type = 'Lock'";
    let before =
        database.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await;
    let cross = async {
        while database.number(waits).await == 0 {}
        // The store holds the task and waits for the count; now it waits for itself.
        let text = AssertSqlSafe(format!("SELECT 1 FROM task WHERE id = {} FOR UPDATE", id.0));
        sqlx::raw_sql(text).execute(&mut other).await.unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    };
    let (cancelled, ()) = futures::join!(store.cancel(ada.tenant, id, NOW), cross);
    assert_eq!(cancelled.unwrap(), CancelAnswer::Cancelled);
    assert_eq!(store.counts(ada.tenant).await.unwrap().cancelled, 1);
    // Counted when the server's backend says so, which it does at the latest when it ends.
    store.close().await.unwrap();
    while database.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await
        == before
    {}
}

const STANDING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE '%keiko%' AND state LIKE 'idle in transaction%'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_leave_no_transaction_standing() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let ids = submit_plain(&store, &ada, 1).await;
    for round in 0..200 {
        let write = store.cancel(ada.tenant, ids[0], NOW).map(drop);
        let read = store.task(ada.tenant, ids[0]).map(drop);
        let mut both = std::pin::pin!(futures::future::join(write, read));
        for _ in 0..round % 10 {
            if futures::poll!(both.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    store.ping().await.unwrap();
    store.cancel(ada.tenant, ids[0], NOW).await.unwrap();
    assert_eq!(store.counts(ada.tenant).await.unwrap().cancelled, 1);
    assert_eq!(database.number(STANDING).await, 0, "every write has answered, so that none is on its way");

    // What the store does not do: a transaction on a connection of the pool, of a caller who goes away after the first
    // statement was sent. The pool takes the connection back as it is.
    let options = PgConnectOptions::from_str(&database.url).unwrap().application_name("naive keiko");
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .unwrap();
    let mut connection = pool.acquire().await.unwrap();
    // Sent, and forgotten.
    let _ = sqlx::raw_sql("BEGIN").execute(&mut *connection).now_or_never();
    drop(connection);
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    assert_eq!(database.number(STANDING).await, 1);
    pool.close().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_hosts_tasks_go_to_another_and_its_late_ends_are_stale() {
    let database = Database::new().await;
    let (dead, alive) = (database.open().await, database.open().await);
    let ada = customer(&dead, "ada").await;
    submit_plain(&dead, &ada, 3).await;
    let (lost, kept) =
        (dead.open_holder(NOW, 10).await.unwrap(), alive.open_holder(NOW, LEASE_MS).await.unwrap());
    let tasks = dead.lease(LeaseRequest { lease_ms: 10, ..request(lost, 2) }).await.unwrap().tasks;
    let Beat::Alive { others_end_ms, .. } = alive.beat(kept, NOW, LEASE_MS).await.unwrap() else {
        panic!("it was opened just now")
    };
    assert_eq!(others_end_ms, Some(NOW + 10));
    let rescued = alive.rescue(Dead::Expired, vec![(tasks[0].id, tasks[0].token)], NOW + 10).await.unwrap();
    assert_eq!((rescued.returned, rescued.crashed), (2, 1));
    let again = alive.lease(request(kept, 5)).await.unwrap().tasks;
    assert_eq!(again.len(), 3);
    let call = tasks.iter().map(complete).collect();
    assert_eq!(dead.settle(lost, call, NOW).await.unwrap(), [Settled::Stale; 2]);
    assert!(dead.lease(request(lost, 1)).await.unwrap().lost);
    let call = again.iter().map(complete).collect();
    assert_eq!(alive.settle(kept, call, NOW).await.unwrap(), [Settled::Stored; 3]);
    dead.close().await.unwrap();
    alive.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hosts_that_lease_at_once_lease_everything_once() {
    const TASKS: usize = 10_000;
    let database = Database::new().await;
    let stores = join_all((0..4).map(|_| database.open())).await;
    for at in 0..50 {
        let one = customer(&stores[0], &format!("t-{at}")).await;
        submit_plain(&stores[at % 4], &one, (TASKS / 50) as u32).await;
    }
    let taken = std::sync::atomic::AtomicUsize::new(0);
    let drain = |store: PostgresStore| {
        let taken = &taken;
        async move {
            let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
            let (mut ids, mut after) = (Vec::new(), None);
            while taken.load(Ordering::SeqCst) < TASKS {
                let lease = store.lease(LeaseRequest { after, ..request(holder, 130) }).await.unwrap();
                after = lease.after;
                taken.fetch_add(lease.tasks.len(), Ordering::SeqCst);
                ids.extend(lease.tasks.iter().map(|task| task.id));
            }
            ids
        }
    };
    let leased = join_all(stores.iter().cloned().map(drain)).await;
    assert!(leased.iter().filter(|ids| !ids.is_empty()).count() > 1, "more than one took part");
    let ids: Vec<TaskId> = leased.into_iter().flatten().collect();
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (TASKS, TASKS));
    let leased = "SELECT (SELECT count(*) FROM task WHERE token = 1 AND holder IS NOT NULL)
        + (SELECT coalesce(sum(live), 0) FROM task_segment WHERE token = 1 AND holder IS NOT NULL)";
    assert_eq!(database.number(leased).await, 10_000);
    join_all(stores.iter().map(PostgresStore::close)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tenant_has_a_turn_within_two_leases_beside_a_large_one() {
    let database = Database::new().await;
    let store = database.open().await;
    let large = customer(&store, "large").await;
    let fill = format!(
        "INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, root, input)
            SELECT n, {tenant}, {kind}, 0, n, n, '{{}}' FROM generate_series(1, 100000) AS n;
         UPDATE tenant_count SET live = 100000 WHERE tenant = {tenant}",
        tenant = large.tenant,
        kind = large.kind,
    );
    database.execute(&fill).await;
    let mut all = HashSet::from([large.tenant]);
    for at in 0..50 {
        let one = customer(&store, &format!("small-{at}")).await;
        submit_plain(&store, &one, 2).await;
        all.insert(one.tenant);
    }
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let (mut after, mut served) = (None, HashSet::<TenantId>::new());
    for _ in 0..2 {
        let lease = store.lease(LeaseRequest { after, ..request(holder, 30) }).await.unwrap();
        assert_eq!(lease.tasks.len(), 30);
        served.extend(lease.tasks.iter().map(|task| task.tenant));
        after = lease.after;
    }
    assert_eq!(served, all);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_keep_to_one_quota_and_one_submit_of_a_key() {
    let database = Database::new().await;
    let stores = [database.open().await, database.open().await];
    let ada = customer(&stores[0], "ada").await;
    let first = stores[0].reserve_ids(400, NOW).await.unwrap().first.0;
    let new = |at: i64| new_task(TaskId(first + at), ada.kind);
    let calls = (0..200).map(|at| {
        let one = Submit { queue_max: 90, ..submit(&ada, vec![new(at)]) };
        stores[at as usize % 2].enqueue(vec![one], NOW)
    });
    let answers = join_all(calls).await.into_iter().map(|answer| answer.unwrap().remove(0));
    let full = answers.filter(|answer| matches!(answer, Submitted::QueueFull { live: 90 })).count();
    assert_eq!(full, 110);
    assert_eq!(stores[1].live().await.unwrap()[&ada.tenant], 90);

    let calls = (200..400).map(|at| {
        let one = Submit { key: key(&format!("k{}", at % 10), 1), ..submit(&ada, vec![new(at)]) };
        stores[at as usize / 10 % 2].enqueue(vec![one], NOW)
    });
    let answers = join_all(calls).await.into_iter().map(|answer| answer.unwrap().remove(0));
    let stored =
        answers.filter(|answer| matches!(answer, Submitted::Accepted { duplicate: false, .. })).count();
    assert_eq!(stored, 10);
    assert_eq!(stores[0].live().await.unwrap()[&ada.tenant], 100);
    assert_eq!(database.number("SELECT count(*) FROM task").await, 100);
    join_all(stores.iter().map(PostgresStore::close)).await;
}

/// A processor.
async fn films(store: &PostgresStore, customer: &Customer) -> Processor {
    let names = ["films".parse().unwrap()];
    store.ensure_processors(customer.tenant, &names).await.unwrap().remove(0)
}

/// An add of so many items, of which no more may wait than `items_max`.
async fn new_add(store: &PostgresStore, processor: &Processor, count: u32, items_max: u64) -> Add {
    let first = store.reserve_ids(count, NOW).await.unwrap().first.0;
    let item = |id| NewItem {
        id: ItemId(id),
        processor: processor.id,
        key: String::new(),
        payload: payload_of(1),
        created_ms: NOW,
    };
    let items = (first..first + i64::from(count)).map(item).collect();
    Add { tenant: processor.tenant, items, key: None, items_max, bytes_max: 1 << 40 }
}

/// How many items are stored.
const ITEMS: &str = "SELECT (SELECT count(*) FROM batch_item)
    + (SELECT coalesce(sum(item_count), 0)::bigint FROM batch_segment)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_keep_to_one_quota_of_items_and_one_add_of_a_key() {
    let database = Database::new().await;
    let stores = [database.open().await, database.open().await];
    let ada = customer(&stores[0], "ada").await;
    let films = films(&stores[0], &ada).await;
    let calls = (0..200).map(async |at: usize| {
        let store = &stores[at % 2];
        store.add(vec![new_add(store, &films, 3, 90).await], NOW).await.unwrap().remove(0)
    });
    let answers = join_all(calls).await;
    let full = answers.iter().filter(|answer| matches!(answer, Added::QueueFull(sum) if sum.items == 90));
    assert_eq!(full.count(), 170);

    let calls = (0..200).map(async |at: usize| {
        let store = &stores[at / 10 % 2];
        let add = new_add(store, &films, 1, 1_000).await;
        let one = Add { key: key(&format!("k{}", at % 10), 1), ..add };
        store.add(vec![one], NOW).await.unwrap().remove(0)
    });
    let answers = join_all(calls).await;
    let stored = answers.iter().filter(|answer| matches!(answer, Added::Accepted { duplicate: false, .. }));
    assert_eq!(stored.count(), 10);
    assert_eq!(database.number("SELECT items FROM batch_count").await, 100);
    assert_eq!(database.number(ITEMS).await, 100);
    join_all(stores.iter().map(PostgresStore::close)).await;
}

/// An add that had room when it looked, while somebody else adds `other` items before it counts.
async fn add_beside(other: u64, items_max: u64) -> (Added, i64) {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let films = films(&store, &ada).await;
    let mut beside = database.beside().await;
    let more = format!("BEGIN; UPDATE batch_count SET items = items + {other}");
    sqlx::raw_sql(AssertSqlSafe(more)).execute(&mut beside).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'keiko add' AND wait_event_type = 'Lock'";
    let add = new_add(&store, &films, 3, items_max).await;
    let commit = async {
        while database.number(waits).await == 0 {}
        assert_eq!(database.number(ITEMS).await, 0, "nothing is committed");
        sqlx::raw_sql("COMMIT").execute(&mut beside).await.unwrap();
    };
    let (answers, ()) = futures::join!(store.add(vec![add], NOW), commit);
    store.close().await.unwrap();
    (answers.unwrap().remove(0), database.number(ITEMS).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_add_whose_room_another_took_stores_nothing_and_says_how_much_waits() {
    let full = Added::QueueFull(Waiting { items: 8, bytes: 0 });
    assert_eq!(add_beside(8, 10).await, (full, 0));
    let (answer, stored) = add_beside(7, 10).await;
    assert!(matches!(answer, Added::Accepted { count: 3, duplicate: false, .. }), "{answer:?}");
    assert_eq!(stored, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_find_each_others_machine_code_by_its_name_and_the_last_four_of_a_component_stay() {
    let database = Database::new().await;
    let (store, other) = (database.open().await, database.open().await);
    let (kept, unknown) = (Digest([1; 32]), Digest([2; 32]));
    store.put(kept, Bytes::from_static(b"component"), 0).await.unwrap();
    let name = |number: u8| ArtifactName([number; 32]);
    let code = |number: u8| Bytes::from(vec![number; 100_000]);
    assert_eq!(other.artifact(kept, name(1)).await.unwrap(), None);
    store.put_artifact(unknown, name(1), code(1)).await.unwrap();
    assert_eq!(other.artifact(unknown, name(1)).await.unwrap(), None, "of a component that is not kept");
    for number in 1..=4 {
        store.put_artifact(kept, name(number), code(number)).await.unwrap();
    }
    let found = async || {
        let mut found = Vec::new();
        for number in 1..=5 {
            found.push(other.artifact(kept, name(number)).await.unwrap().map(|bytes| bytes[99_999]));
        }
        found
    };
    assert_eq!(found().await, [Some(1), Some(2), Some(3), Some(4), None]);
    // The newest of a name counts, and takes no other's place.
    other.put_artifact(kept, name(1), code(9)).await.unwrap();
    assert_eq!(found().await, [Some(9), Some(2), Some(3), Some(4), None]);
    other.put_artifact(kept, name(5), code(5)).await.unwrap();
    assert_eq!(found().await, [Some(9), None, Some(3), Some(4), Some(5)]);
    assert_eq!(database.number("SELECT count(*) FROM artifact").await, 4);
    store.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hosts_compare_is_on_the_databases_clock() {
    let database = Database::new().await;
    let (early, late) = (open_by_its_own_clock(&database).await, open_by_its_own_clock(&database).await);
    // Two hosts whose clocks are an hour apart, and both far from the database's.
    let late_now = NOW - 3_600_000;
    let ada = customer(&early, "ada").await;
    let holder = early.open_holder(NOW, LEASE_MS).await.unwrap();
    let other = late.open_holder(late_now, LEASE_MS).await.unwrap();
    let Beat::Alive { others_end_ms: Some(end), .. } = late.beat(other, late_now, LEASE_MS).await.unwrap()
    else {
        panic!("both live")
    };
    assert!((late_now..=late_now + LEASE_MS).contains(&end), "on its own clock: {}", end - late_now);
    let rescued = early.rescue(Dead::Expired, Vec::new(), NOW).await.unwrap();
    assert_eq!(rescued.returned, 0);
    assert!(
        matches!(late.beat(other, late_now, LEASE_MS).await.unwrap(), Beat::Alive { .. }),
        "nobody is dead"
    );

    let first = early.reserve_ids(2, NOW).await.unwrap().first.0;
    let mut tasks: Vec<_> = (first..first + 2).map(|id| new_task(TaskId(id), ada.kind)).collect();
    tasks[1].run_at_ms = NOW + 600_000;
    early.enqueue(vec![submit(&ada, tasks)], NOW).await.unwrap();
    let lease = late.lease(LeaseRequest { now_ms: late_now, ..request(other, 5) }).await.unwrap();
    assert_eq!(lease.tasks.iter().map(|task| task.id.0).collect::<Vec<_>>(), [first], "due for everybody");
    let next = lease.next_run_at_ms.unwrap() - late_now;
    assert!((570_000..=600_000).contains(&next), "ten minutes from now on its own clock: {next}");
    let none = early.lease(request(holder, 5)).await.unwrap();
    assert!(none.tasks.is_empty());
    early.close().await.unwrap();
    late.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_column_of_a_text_cannot_hold_is_stored_all_the_same() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    submit_plain(&store, &ada, 1).await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    let task = store.lease(request(holder, 1)).await.unwrap().tasks.remove(0);
    let mut end = world::fail(&task, keiko_core::code::Code::PluginFailed);
    if let keiko_core::task::Transition::Fail(failure) = &mut end.transition {
        failure.message = "a\0b".to_owned();
    }
    assert_eq!(store.settle(holder, vec![end], NOW).await.unwrap(), [Settled::Stored]);
    let view = store.task(ada.tenant, task.id).await.unwrap().unwrap();
    assert_eq!(view.failure.unwrap().message, "a\u{fffd}b");
    assert_eq!(store.list(ada.tenant, &TaskFilter::default(), 10).await.unwrap().len(), 1);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_store_finishes_what_waits_and_answers_down() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let first = store.reserve_ids(50, NOW).await.unwrap().first.0;
    let calls = (first..first + 50)
        .map(|id| store.enqueue(vec![submit(&ada, vec![new_task(TaskId(id), ada.kind)])], NOW));
    let (answers, closed) = futures::join!(join_all(calls), store.close());
    closed.unwrap();
    assert!(answers.into_iter().all(|answer| answer.is_ok()), "sent before the close");
    assert_eq!(database.number("SELECT count(*) FROM task").await, 50);
    assert_eq!(store.reserve_ids(1, NOW).await.unwrap_err().kind(), StoreErrorKind::Down);
    assert_eq!(store.ping().await.unwrap_err().kind(), StoreErrorKind::Down);
    assert_eq!(store.counts(ada.tenant).await.unwrap_err().kind(), StoreErrorKind::Down);
    let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name LIKE 'keiko %'";
    // Connections end in their own time.
    while database.number(left).await > 0 {}
    assert!(store.ensure_tenants(&["eve".parse().unwrap()]).await.is_err());
}
