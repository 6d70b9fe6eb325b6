//! The plans of the statements that must stay fast whatever the history: what `EXPLAIN QUERY PLAN` says of them.

use keiko_core::agent::{AgentFilter, AgentStatus};
use keiko_core::task::{TaskFilter, TaskState, TimeRange};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use super::batch::{CANDIDATES, GROUPS, LETTERS, LOOK, NEXT, ROWS, SEGMENTS};
use super::branch::{BELOW_ROOTS, BELOW_TASKS};
use super::child::PARENTS;
use super::end::{FINISH, NEXT_TIME_OUT, OVER};
use super::group::{FAILING, OUTCOMES, RELEASE};
use super::history::{STATISTICS, USER_TASKS};
use super::holder::STALE;
use super::lease::{COUNT_DUE, LEASE_TASKS, NEXT_RUN_AT, RAISE, READY_TENANTS};
use super::open::writer_options;
use super::pause::UNPARK;
use super::records::{COUNTS, INPUT, TASK, list_text};
use super::submit::PRUNE_KEYS;
use super::tree::{CHARGE, TREES};
use super::{agents, migrate, once, prune, schedule, settle, slot};

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
        INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms)
            SELECT n, 1 + n % 20, 'a', 'k' || n % 3, n % 5, n, n FROM {people};
        INSERT INTO agent_count (agent, tenant) SELECT id, tenant FROM agent WHERE id % 2 = 0;
        INSERT INTO app_user (id, tenant, name, created_ms) SELECT n, 1 + n % 20, 'u', n FROM {people};
        INSERT INTO task (id, tenant, kind, state, holder, created_ms, run_at_ms, root, parent, input, agent, app_user)
            SELECT n, 1 + n % 20, 1 + n % 20, n % 100 = 0, iif(n % 100 = 0, 1, NULL), n, n, n,
                iif(n % 7 = 0, n / 10, NULL), x'', iif(n % 3 = 0, n % 2000, NULL), iif(n % 2 = 0, n % 2000, NULL)
                FROM {live};
        INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
                finished_ms, root, parent, depth, result, elapsed_us, agent, app_user)
            SELECT n, 1 + n % 20, 1 + n % 20, iif(n % 50 = 0, 3, 2), 1, 1, 0, 0, n, n, n, n,
                iif(n % 7 = 0, n / 10, NULL), 0, x'', n % 1000, iif(n % 3 = 0, n % 2000, NULL),
                iif(n % 2 = 0, n % 2000, NULL) FROM {ended};
        INSERT INTO tree (root, tenant, fuel_max, host_calls_max, fuel_used, host_calls_used)
            SELECT n, 1 + n % 20, 9, 9, 1, 1 FROM {live};
        INSERT INTO idempotency (tenant, key, first, count, body, expires_ms)
            SELECT 1 + n % 20, 'k' || n, n, 1, x'', n FROM {live}{last}",
        tenants = series(1, 20),
        people = series(1, 2_000),
        live = series(1, 5_000),
        ended = series(10_001, 110_000),
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
        Some(
            "task"
                | "finished"
                | "due"
                | "next"
                | "one"
                | "t"
                | "attempt"
                | "a"
                | "task_input"
                | "f"
                | "agent"
                | "agent_count"
                | "c"
                | "app_user"
                | "u"
                | "known"
                | "idempotency"
                | "task_key"
                | "k"
                | "batch_item"
                | "batch_segment"
                | "tree"
        )
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
        for text in [OUTCOMES, RELEASE] {
            check(&mut connection, text, &["INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]).await;
        }
        check(&mut connection, RAISE, &["task_raise (due_ms<?)"]).await;
        check(&mut connection, UNPARK, &["task_ready (tenant=? AND run_at_ms=?)"]).await;
        for text in [once::PUT_OFF, once::PRUNE] {
            check(&mut connection, text, &["task_key_expires (expires_ms<?)"]).await;
        }
        let load = ["k USING PRIMARY KEY (tenant=? AND kind=? AND key=?)", "t USING INTEGER PRIMARY KEY"];
        check(&mut connection, once::LOAD, &load).await;
        check(&mut connection, COUNTS, &["COVERING INDEX task_ready (tenant=?)"]).await;
        for text in settle::texts().into_iter().chain([TASK, INPUT, PARENTS, FINISH, STALE, TREES, CHARGE]) {
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
async fn batches_are_formed_and_found_along_their_index() {
    for (mut connection, _folder) in databases().await {
        check(&mut connection, CANDIDATES, &["batch_item_group (processor=? AND key=? AND place>?)"]).await;
        check(&mut connection, SEGMENTS, &["batch_segment_group (processor=? AND key=? AND id>?)"]).await;
        let both =
            ["batch_item_group (processor=? AND key=?)", "batch_segment_group (processor=? AND key=?)"];
        check(&mut connection, NEXT, &both).await;
        for text in [CANDIDATES, SEGMENTS, GROUPS] {
            let plan = plan(&mut connection, text).await;
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER BY")), "{plan:#?}");
        }
    }
}

#[tokio::test]
async fn what_is_below_a_task_is_found_along_its_root() {
    for (mut connection, _folder) in databases().await {
        check(&mut connection, BELOW_ROOTS, &["task_root (root>? AND root<?)"]).await;
        let climb = ["task_root (root=?)", "INTEGER PRIMARY KEY (rowid=?)"];
        let plan = plan(&mut connection, BELOW_TASKS).await;
        for index in climb {
            assert!(plan.iter().any(|step| step.contains(index)), "{plan:#?}");
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
        let incomplete = "finished_incomplete (tenant=? AND state=? AND rowid<?)";
        for state in [TaskState::Failed, TaskState::Cancelled] {
            check(&mut connection, &list(Some(state)), &[incomplete]).await;
        }
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
        let root = TaskFilter { root: Some(keiko_core::TaskId(1)), ..TaskFilter::default() };
        let all =
            ["task_root (root=? AND rowid<?)", "finished_root (root=? AND rowid<?)", "PRIMARY KEY (rowid=?)"];
        check(&mut connection, &list_text(&root), &all).await;
        let group = TaskFilter { group: Some(keiko_core::GroupId(1)), ..TaskFilter::default() };
        check(&mut connection, &list_text(&group), &["INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]).await;
        let created = TimeRange { from_ms: Some(1), to_ms: Some(2) };
        let created = TaskFilter { created, ..TaskFilter::default() };
        let all = ["task_ready (tenant=?", "finished_tenant (tenant=? AND rowid>? AND rowid<?)"];
        check(&mut connection, &list_text(&created), &all).await;
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
        for text in [agents::BY_IDS, agents::ONE, agents::USERS_BY_IDS, agents::SET_STATUSES] {
            check(&mut connection, text, &["INTEGER PRIMARY KEY (rowid=?)"]).await;
        }
        check(&mut connection, agents::LIST_USERS, &["app_user_tenant (tenant=? AND rowid<?)"]).await;
        let list = |kind: Option<&str>, status| {
            let kind = kind.map(|kind| kind.parse().unwrap());
            agents::list_text(&AgentFilter { kind, status, before: None })
        };
        let status = Some(AgentStatus::Idle);
        for (filter, index) in [
            (list(None, None), "agent_tenant (tenant=? AND rowid<?)"),
            (list(None, status), "agent_tenant (tenant=? AND rowid<?)"),
            (list(Some("k"), None), "agent_kind (tenant=? AND kind=?"),
            (list(Some("k"), status), "agent_kind (tenant=? AND kind=? AND status=? AND rowid<?)"),
        ] {
            check(&mut connection, &filter, &[index]).await;
        }
        check(&mut connection, prune::WALK, &["finished_tenant (tenant=? AND rowid>? AND rowid<?)"]).await;
        check(&mut connection, PRUNE_KEYS, &["idempotency_expires (expires_ms<?)"]).await;
        check(&mut connection, schedule::DUE, &["schedule_next (next_ms>? AND next_ms<?)"]).await;
        check(
            &mut connection,
            slot::STAND,
            &["u USING PRIMARY KEY (tenant=? AND kind=? AND key=?", "w USING PRIMARY KEY (tenant=?"],
        )
        .await;
        check(&mut connection, slot::FIRST, &["w USING PRIMARY KEY (tenant=? AND kind=? AND key=?)"]).await;
    }
}

/// Every statement whose plan is checked.
fn statements() -> Vec<String> {
    let all = TaskFilter::default();
    let mut filters: Vec<TaskFilter> =
        TaskState::ALL.into_iter().map(|state| TaskFilter { state: Some(state), ..all.clone() }).collect();
    filters.push(TaskFilter { parent: Some(keiko_core::TaskId(1)), ..all.clone() });
    filters.push(TaskFilter { kind: Some("k".parse().unwrap()), ..all.clone() });
    filters.push(TaskFilter { agent: Some(keiko_core::AgentId(1)), ..all.clone() });
    filters.push(TaskFilter { root: Some(keiko_core::TaskId(1)), ..all.clone() });
    filters.push(TaskFilter { user: Some(keiko_core::UserId(1)), ..all });
    let agents = |kind: Option<&str>| {
        agents::list_text(&AgentFilter {
            kind: kind.map(|kind| kind.parse().unwrap()),
            ..AgentFilter::default()
        })
    };
    let fixed = [
        LEASE_TASKS,
        RAISE,
        OVER,
        NEXT_TIME_OUT,
        COUNTS,
        STATISTICS,
        agents::LIST_USERS,
        PRUNE_KEYS,
        BELOW_ROOTS,
        FAILING,
        once::PRUNE,
        schedule::DUE,
        schedule::NEXT,
    ];
    let batches = [CANDIDATES, GROUPS, LETTERS, LOOK, NEXT, ROWS, SEGMENTS];
    let fixed = fixed.into_iter().chain(batches).map(str::to_owned);
    fixed.chain(filters.iter().map(list_text)).chain([agents(None), agents(Some("k"))]).collect()
}

#[tokio::test]
async fn every_index_is_some_statements() {
    let [(mut connection, _folder), _] = databases().await;
    let mut plans = Vec::new();
    for text in statements() {
        plans.extend(plan(&mut connection, &text).await);
    }
    let all = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL";
    let rows = sqlx::query(all).fetch_all(&mut connection).await.unwrap();
    let unused = rows.iter().map(|row| row.get::<String, _>(0)).filter(|index| {
        let named = [format!("INDEX {index} "), format!("INDEX {index}(")];
        !plans.iter().any(|step| format!("{step} ").contains(&named[0]) || step.contains(&named[1]))
    });
    let unused: Vec<String> = unused.collect();
    assert!(
        rows.len() >= 16 && unused.is_empty(),
        "of {} indexes nobody uses {unused:?}: {plans:#?}",
        rows.len()
    );
}
