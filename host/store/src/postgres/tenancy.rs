//! Tenants in the pool: what a connection sees and may write, and how much of the pool a tenant has.

use std::time::Duration;

use keiko_core::port::{CatalogStore, StoreErrorKind, TaskStore};
use sqlx::{AssertSqlSafe, Row};

use super::pool::{Pool, TenantConnection};
use super::row::get;
use super::session::Session;
use crate::transaction::Priority;
use crate::world::database::Database;
use crate::world::{NOW, customer, new_task, submit};

/// Tables of a tenant's rows.
const TABLES: &str = "SELECT c.relname::text, c.relrowsecurity AND c.relforcerowsecurity,
        has_table_privilege('keiko_tenant', c.oid, 'UPDATE')
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relkind = 'r' AND a.attname = 'tenant' ORDER BY 1";

async fn count(connection: &mut TenantConnection, table: &str) -> i64 {
    let text = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    connection.row(sqlx::query(text)).await.unwrap().unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_connection_sees_and_writes_its_rows_without_being_asked_to() {
    let database = Database::new().await;
    let store = database.open().await;
    let (ada, bob) = (customer(&store, "ada").await, customer(&store, "bob").await);
    for (one, tasks) in [(&ada, 3), (&bob, 2)] {
        let first = store.reserve_ids(tasks, NOW).await.unwrap().first.0;
        let ids = first..first + i64::from(tasks);
        let tasks = ids.map(|id| new_task(keiko_core::TaskId(id), one.kind)).collect();
        store.enqueue(vec![submit(one, tasks)], NOW).await.unwrap();
        let insert = format!(
            "INSERT INTO agent VALUES ({first}, {}, 'a', 'k', 0, 0, 0); \
             INSERT INTO app_user VALUES ({first}, {}, 'u', 0)",
            one.tenant, one.tenant
        );
        database.execute(&insert).await;
    }
    let mut connection = store.pool().tenant(ada.tenant).await.unwrap();
    assert_eq!(connection.id(), ada.tenant);
    let expected = [("task", 3), ("agent", 1), ("plugin", 1), ("kind", 2), ("tenant_count", 1)];
    for (table, rows) in expected {
        assert_eq!(count(&mut connection, table).await, rows, "{table}");
    }
    // Another's rows are not there to be changed, and cannot be made.
    let update = format!("UPDATE agent SET name = 'mine' WHERE tenant = {} RETURNING id", bob.tenant);
    assert!(connection.rows(sqlx::query(AssertSqlSafe(update))).await.unwrap().is_empty());
    let insert = format!("INSERT INTO agent VALUES (1, {}, 'a', 'k', 0, 0, 0)", bob.tenant);
    let refused = connection.rows(sqlx::query(AssertSqlSafe(insert))).await.unwrap_err();
    assert!(
        format!("{:?}", std::error::Error::source(&refused)).contains("row-level security"),
        "{refused:?}"
    );
    let stolen = format!("UPDATE agent SET tenant = {} RETURNING id", bob.tenant);
    assert!(connection.rows(sqlx::query(AssertSqlSafe(stolen))).await.is_err());
    drop(connection);
    // The same connection of the server works for whoever takes it next.
    let mut connection = store.pool().tenant(bob.tenant).await.unwrap();
    assert_eq!(count(&mut connection, "task").await, 2);
    drop(connection);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_of_tenants_rows_is_kept_apart_even_from_its_owner() {
    let database = Database::new().await;
    let mut beside = database.beside().await;
    let tables = sqlx::query(TABLES).fetch_all(&mut beside).await.unwrap();
    assert!(tables.len() >= 13, "{} tables", tables.len());
    for table in &tables {
        let name: &str = table.get(0);
        assert!(table.get::<bool, _>(1), "{name} is not kept apart");
        let written = ["agent", "agent_count", "app_user", "cache", "cache_lease"].contains(&name);
        assert_eq!(table.get::<bool, _>(2), written, "whether tenants write {name}");
    }
    // A connection that names nobody sees nobody's rows.
    sqlx::raw_sql("SET ROLE keiko_tenant").execute(&mut beside).await.unwrap();
    let seen = sqlx::query("SELECT count(*) FROM tenant_count").fetch_one(&mut beside).await.unwrap();
    assert_eq!(seen.get::<i64, _>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_half_of_the_pool_at_most() {
    let database = Database::new().await;
    let store = database.open().await;
    let (ada, bob) = (customer(&store, "ada").await, customer(&store, "bob").await);
    let mut options = database.options();
    (options.size, options.overflow, options.acquire_timeout) = (4, 0, Duration::from_millis(300));
    let pool = Pool::new(&options).unwrap();
    let first = pool.tenant(ada.tenant).await.unwrap();
    let second = pool.tenant(ada.tenant).await.unwrap();
    let third = pool.tenant(ada.tenant).await.err().unwrap();
    assert_eq!(third.kind(), StoreErrorKind::Busy);
    let other = pool.tenant(bob.tenant).await.unwrap();
    let figures = pool.figures();
    assert_eq!((figures.in_use, figures.size, figures.idle, figures.waiting), (3, 3, 0, 0));
    assert_eq!((figures.acquires, figures.timeouts), (3, 1));
    drop(second);
    let again = pool.tenant(ada.tenant).await.unwrap();
    drop((first, again, other));
    pool.close().await;
    assert_eq!(pool.figures().in_use, 0);
    assert_eq!(pool.tenant(ada.tenant).await.err().unwrap().kind(), StoreErrorKind::Down);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_are_kept_than_asked_for() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let mut options = database.options();
    (options.size, options.overflow) = (2, 6);
    let pool = Pool::new(&options).unwrap();
    let held = futures::future::join_all((0..4).map(|_| pool.tenant(ada.tenant))).await;
    assert_eq!(pool.figures().size, 4);
    drop(held);
    // What is beyond is closed in its own time.
    while pool.figures().size > 2 {
        tokio::task::yield_now().await;
    }
    drop(pool.tenant(ada.tenant).await.unwrap());
    pool.close().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_has_its_time_outs_and_its_role() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let text =
        "SELECT array_to_string(array[current_setting('statement_timeout'), current_setting('lock_timeout'),
        current_setting('idle_in_transaction_session_timeout'), current_user::text], ' ')";
    async fn look(session: &mut Session, text: &'static str) -> Result<String, keiko_core::port::StoreError> {
        let row = session.row(sqlx::query(text)).await?;
        get(&row.unwrap(), 0)
    }
    let of_writer = store.write(Priority::Task, 0, (), move |session, ()| Box::pin(look(session, text)));
    assert_eq!(of_writer.await.unwrap(), "30s 5s 3s keiko_system");
    let commits = store.write(Priority::Task, 0, (), |session, ()| {
        Box::pin(look(session, "SELECT current_setting('synchronous_commit')"))
    });
    assert_eq!(commits.await.unwrap(), "on");
    let mut connection = store.pool().tenant(ada.tenant).await.unwrap();
    let of_reader: String = connection.row(sqlx::query(text)).await.unwrap().unwrap().get(0);
    assert_eq!(of_reader, "30s 5s 3s keiko_tenant");
    drop(connection);
    store.ensure_tenants(&["eve".parse().unwrap()]).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_walks_its_index_whatever_the_statistics_say() {
    let database = Database::new().await;
    let store = database.open().await;
    // The server believes that nearly everything runs, and then it waits.
    let fill = "INSERT INTO task (id, tenant, kind, holder, created_ms, run_at_ms, root, input)
            SELECT n, 1 + n % 20, 1, 1, 0, n, n, '{}' FROM generate_series(1, 20000) AS n;
        ANALYZE task; UPDATE task SET holder = NULL";
    database.execute(fill).await;
    async fn explain(session: &mut Session, text: &str) -> Result<String, keiko_core::port::StoreError> {
        let query =
            sqlx::query(AssertSqlSafe(format!("EXPLAIN {text}"))).bind(1_i64).bind(NOW).bind(30_000_i64);
        let query = query.bind(7_i64).bind(500_i64).bind(Vec::<i64>::new()).bind(Vec::<i64>::new());
        let rows = session.rows(query.bind(i64::MAX)).await?;
        Ok(rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect())
    }
    let plan =
        store.write(Priority::Task, 0, (), |session, ()| Box::pin(explain(session, super::lease::LEASE)));
    let plan = plan.await.unwrap();
    assert_eq!(plan.matches("Index Scan using task_ready").count(), 6, "{plan}");
    assert_eq!(plan.matches("Index Scan using task_raise").count(), 1, "{plan}");
    // What is paused is few rows, read once.
    for walk in ["Bitmap", "Sort", "Seq Scan on task", "Seq Scan on holder"] {
        assert!(!plan.contains(walk), "{walk} in {plan}");
    }
    store.close().await.unwrap();
}
