//! The plans of the statements that must stay fast whatever the history: what `EXPLAIN QUERY PLAN` says of them.

use keiko_core::agent::{AgentFilter, AgentStatus};
use keiko_core::task::{TaskFilter, TaskState};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use super::agents;
use super::child::PARENTS;
use super::end::{FINISH, NEXT_TIME_OUT, OVER};
use super::history::{STATISTICS, USER_TASKS};
use super::lease::{COUNT_DUE, LEASE_TASKS, NEXT_RUN_AT, RAISE, READY_TENANTS};
use super::open::writer_options;
use super::records::{COUNTS, TASK, list_text};
use super::{migrate, settle};

/// Databases with so many tasks that the planner's guesses matter: without statistics, as the store leaves it, and
/// with them, as after somebody's `ANALYZE`.
async fn databases() -> [(SqliteConnection, tempfile::TempDir); 2] {
    [database(";").await, database("; ANALYZE").await]
}

async fn database(last: &str) -> (SqliteConnection, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = writer_options(&folder.path().join("keiko.db")).connect().await.unwrap();
    migrate::migrate(&mut connection).await.unwrap();
    let series = |first: u32, last: u32| {
        format!(
            "(WITH RECURSIVE s (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s)"
        )
    };
    let fill = format!(
        "INSERT INTO tenant (id, name) SELECT n, 't' || n FROM {tenants};
        INSERT INTO tenant_count (tenant) SELECT id FROM tenant;
        INSERT INTO plugin (id, tenant, name, current) SELECT id, id, 'p', id FROM tenant;
        INSERT INTO plugin_version (id, tenant, plugin, name, digest, component_bytes, manifest, installed_ms)
            SELECT id, id, id, '1', zeroblob(32), 1, '{{}}', 0 FROM tenant;
        INSERT INTO kind (id, tenant, plugin, name) SELECT id, id, id, 'k' FROM tenant;
        INSERT INTO task (id, tenant, kind, state, holder, created_ms, run_at_ms, root, parent, input)
            SELECT n, 1 + n % 20, 1 + n % 20, n % 100 = 0, iif(n % 100 = 0, 1, NULL), n, n, n,
                iif(n % 7 = 0, n / 10, NULL), x'' FROM {live};
        INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
                finished_ms, root, parent, depth, result)
            SELECT n, 1 + n % 20, 1 + n % 20, iif(n % 50 = 0, 3, 2), 1, 1, 0, 0, n, n, n, n,
                iif(n % 7 = 0, n / 10, NULL), 0, x'' FROM {ended}{last}",
        tenants = series(1, 20),
        live = series(1, 5_000),
        ended = series(10_001, 30_000),
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut connection).await.unwrap();
    (connection, folder)
}

async fn plan(connection: &mut SqliteConnection, text: &str) -> Vec<String> {
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
    let rows = sqlx::query(explain).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail")).collect()
}

/// Whether a step walks a whole table or index that grows with the tasks.
fn walks(step: &str) -> bool {
    let table = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
    matches!(
        table,
        Some("task" | "finished" | "due" | "next" | "one" | "t" | "attempt" | "a" | "task_input" | "f")
    )
}

async fn check(connection: &mut SqliteConnection, text: &str, indexes: &[&str]) {
    let plan = plan(connection, text).await;
    for index in indexes {
        assert!(plan.iter().any(|step| step.contains(index)), "{index} is not used in {plan:#?}");
    }
    assert!(!plan.iter().any(|step| walks(step)), "a table is walked in {plan:#?}");
}

#[tokio::test]
async fn hot_statements_use_their_indexes() {
    for (mut connection, _folder) in databases().await {
        for text in [LEASE_TASKS, COUNT_DUE] {
            check(&mut connection, text, &["task_ready (tenant=? AND run_at_ms<?)"]).await;
        }
        let lease = plan(&mut connection, LEASE_TASKS).await;
        assert!(
            !lease.iter().any(|step| step.contains("ORDER BY")),
            "the oldest are found unsorted: {lease:#?}"
        );
        let time_outs = ["task_start_by (start_by_ms", "task_end_by (end_by_ms"];
        check(&mut connection, OVER, &time_outs).await;
        check(&mut connection, NEXT_TIME_OUT, &time_outs).await;
        check(&mut connection, RAISE, &["task_raise (due_ms<?)"]).await;
        check(&mut connection, TASK, &["INTEGER PRIMARY KEY (rowid=?)"]).await;
        check(&mut connection, COUNTS, &["COVERING INDEX task_ready (tenant=?)"]).await;
        for text in settle::texts().into_iter().chain([PARENTS, FINISH]) {
            check(&mut connection, text, &["INTEGER PRIMARY KEY (rowid=?)"]).await;
        }
    }
}

#[tokio::test]
async fn walks_from_tenant_to_tenant_look_into_the_index_only() {
    for (mut connection, _folder) in databases().await {
        for text in [READY_TENANTS, NEXT_RUN_AT] {
            let plan = plan(&mut connection, text).await;
            // The first look takes the first entry of the index, which is called a scan.
            let scans: Vec<_> = plan.iter().filter(|step| walks(step)).collect();
            assert!(scans.iter().all(|step| step.ends_with("task_ready")), "{plan:#?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:#?}");
        }
    }
}

#[tokio::test]
async fn lists_use_their_indexes() {
    for (mut connection, _folder) in databases().await {
        let list = |state| list_text(&TaskFilter { state, ..TaskFilter::default() });
        let ended = "finished_tenant (tenant=? AND rowid<?)";
        let all = ["task_ready (tenant=?", "task_running (tenant=?", ended];
        check(&mut connection, &list(None), &all).await;
        check(&mut connection, &list(Some(TaskState::Completed)), &[ended]).await;
        let incomplete = "finished_incomplete (tenant=? AND rowid<?)";
        check(&mut connection, &list(Some(TaskState::Failed)), &[incomplete]).await;
        let parent = Some(keiko_core::TaskId(1));
        let children = list_text(&TaskFilter { parent, ..TaskFilter::default() });
        let both = ["task_parent (parent=? AND rowid<?)", "finished_parent (parent=? AND rowid<?)"];
        check(&mut connection, &children, &both).await;
        let kind = TaskFilter { kind: Some("k".parse().unwrap()), ..TaskFilter::default() };
        check(&mut connection, &list_text(&kind), &["finished_kind (tenant=? AND kind=? AND rowid<?)"]).await;
        let agent = TaskFilter { agent: Some(keiko_core::AgentId(1)), ..TaskFilter::default() };
        let both = [
            "task_agent (tenant=? AND agent=? AND rowid<?)",
            "finished_agent (tenant=? AND agent=? AND rowid<?)",
        ];
        check(&mut connection, &list_text(&agent), &both).await;
        let user = TaskFilter { user: Some(keiko_core::UserId(1)), ..TaskFilter::default() };
        let both = [
            "task_user (tenant=? AND app_user=? AND rowid<?)",
            "finished_user (tenant=? AND app_user=? AND rowid<?)",
        ];
        check(&mut connection, &list_text(&user), &both).await;
        check(&mut connection, USER_TASKS, &both).await;
    }
}

#[tokio::test]
async fn the_data_layer_uses_its_indexes() {
    for (mut connection, _folder) in databases().await {
        check(
            &mut connection,
            STATISTICS,
            &["finished_created (tenant=? AND created_ms>? AND created_ms<?)"],
        )
        .await;
        for text in [agents::BY_IDS, agents::ONE, agents::USERS_BY_IDS] {
            check(&mut connection, text, &["INTEGER PRIMARY KEY (rowid=?)"]).await;
        }
        check(&mut connection, agents::LIST_USERS, &["app_user_tenant (tenant=? AND rowid<?)"]).await;
        let list = |kind: Option<&str>, status| {
            let kind = kind.map(|kind| kind.parse().unwrap());
            agents::list_text(&AgentFilter { kind, status, before: None })
        };
        check(&mut connection, &list(None, None), &["agent_tenant (tenant=? AND rowid<?)"]).await;
        let status = Some(AgentStatus::Idle);
        check(
            &mut connection,
            &list(Some("k"), status),
            &["agent_kind (tenant=? AND kind=? AND status=? AND rowid<?)"],
        )
        .await;
    }
}
