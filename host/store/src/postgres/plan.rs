//! What must stay fast whatever the history: the plans of the data layer, of lists and of the lease's walk on a million
//! ended tasks, and how many pages they touch.
//!
//! A lease must not touch more pages when there are more ended tasks: looked at with none, with a million, and, when
//! `KEIKO_TEST_LONG` is set, with five.

use std::collections::BTreeSet;

use keiko_core::agent::{AgentFilter, AgentStatus};
use keiko_core::id::{AgentId, GroupId, TaskId, UserId};
use keiko_core::task::{TaskFilter, TaskState, TimeRange};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::batch::{CANDIDATES, DELETE, GROUPS, NEXT, SEGMENTS};
use super::branch::{BELOW_ROOTS, BELOW_TASKS};
use super::cache::{PRUNE_ENDED, PRUNE_OLDEST};
use super::end::{NEXT_TIME_OUT, OVER};
use super::group::FAILING;
use super::history::{STATISTICS, USER_TASKS};
use super::holder::STALE;
use super::lease::{LEASE, LEASE_BOTH, LEASE_MORE_OF_BOTH, LOOK, RAISE};
use super::pause::UNPARK;
use super::pool::{Plans, WORK_FOR};
use super::prune::WALK;
use super::records::{INPUT, TASK, list_text};
use super::segment::{FIND, HOLD, HOLD_FOUND};
use super::settle::END_PLAIN_IN_SEGMENTS;
use super::submit::PRUNE_KEYS;
use super::tree::{CHARGE, TREES};
use super::{agents, once, schedule, slot};
use crate::world::database::Database;

/// Ended tasks of the short and of the long form.
const ENDED: i64 = 1_000_000;
const ENDED_LONG: i64 = 5_000_000;
/// Pages that a page of a list may touch, a statement about a thousand ids, or a lease. A walk over the ended tasks would
/// touch 24,000.
const PAGES_MAX: i64 = 10_000;
/// A tenant with a twentieth of the history and a hundredth of the agents.
const ORDINARY: i64 = 2;
/// Plans for the values of this execution, and plans for any.
const MODES: [&str; 2] = ["force_custom_plan", "force_generic_plan"];

/// Fifty tenants with a plugin of two kinds, agents, users, keys, attempts and live tasks. One has most of the agents and
/// users, another most of the live tasks.
const LIVE: &str = "
    INSERT INTO tenant (name) SELECT 't' || n FROM generate_series(1, 50) AS n;
    INSERT INTO tenant_count (tenant) SELECT id FROM tenant;
    INSERT INTO plugin (tenant, name) SELECT id, 'p' FROM tenant ORDER BY id;
    INSERT INTO kind (tenant, plugin, name)
        SELECT 1 + (n - 1) % 50, 1 + (n - 1) % 50, 'k' || n FROM generate_series(1, 100) AS n;
    INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms)
        SELECT n, CASE WHEN n > 20000 THEN 1 ELSE 1 + n % 20 END, 'a', 'k' || n % 3, n % 5, n, n
        FROM generate_series(1, 100000) AS n;
    INSERT INTO agent_count (agent, tenant) SELECT id, tenant FROM agent;
    INSERT INTO app_user (id, tenant, name, created_ms)
        SELECT n, CASE WHEN n > 20000 THEN 1 ELSE 1 + n % 20 END, 'u', n FROM generate_series(1, 100000) AS n;
    INSERT INTO idempotency (tenant, key, first, count, body, expires_ms)
        SELECT 1 + n % 20, 'k' || n, n, 1, '', n FROM generate_series(1, 20000) AS n;
    INSERT INTO task_key (tenant, kind, key, task, due_ms, expires_ms)
        SELECT 1 + n % 20, 1 + n % 20, 'k' || n, n, n, n FROM generate_series(1, 20000) AS n;
    INSERT INTO task_group (id, tenant, count, failed, fail_fast, released, created_ms, finished_ms)
        SELECT n, 1 + n % 50, 1, 1, true, 1, n, CASE WHEN n % 100 > 0 THEN n END FROM generate_series(1, 20000) AS n;
    INSERT INTO schedule (tenant, name, definition, input, created_ms, next_ms)
        SELECT 1 + n % 50, 's' || n, '{}', '', n, n FROM generate_series(1, 2000) AS n;
    INSERT INTO task_segment (first, tenant, kind, created_ms, run_at_ms, gone, live, tasks)
        SELECT 9200000000 + n * 128, 1 + n % 46, 1 + n % 46, n, n, ('0' || repeat('1', 127))::bit(128), 1, ''
        FROM generate_series(1, 20000) AS n;
    INSERT INTO slot_wait (tenant, kind, key, place_ms, task)
        SELECT 1 + n % 50, 1 + n % 50, 'k' || n % 3, n, 9000000000 + n FROM generate_series(1, 20000) AS n;
    INSERT INTO pause (tenant, kind, since_ms, ending) VALUES (48, 48, 0, true), (47, 0, 0, false);
    INSERT INTO attempt (task, number, tenant, started_ms, fuel_used, memory_bytes_peak, host_calls, elapsed_us, taint,
            effects)
        SELECT n * 1000, 1, 1 + n % 20, n, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 20000) AS n;
    INSERT INTO batch_item (id, tenant, processor, key, place, created_ms, due_ms, size, bytes)
        SELECT n, 1 + n % 50, 1 + n % 50, 'k' || n % 3, n, n, n, 1, '' FROM generate_series(1, 100000) AS n;
    INSERT INTO batch_segment (id, last_id, tenant, processor, key, created_ms, item_count, size, items)
        SELECT n * 1000, n * 1000 + 1, 1 + n % 50, 1 + n % 50, 'k' || n % 3, n, 2, 1, '' FROM generate_series(1, 100000) AS n;
    INSERT INTO batch (id, tenant, processor, key, ordered, holder, token, formed_ms, items)
        SELECT n, 1 + n % 50, 1 + n % 50, 'k' || n % 3, false, 1, 1, n, ARRAY[n] FROM generate_series(1, 20000) AS n;
    INSERT INTO cache (tenant, namespace, key, marker, stamp, until_ms, size, bytes)
        SELECT 1 + n % 50, 'p', 'k' || n, false, n, CASE WHEN n % 100 < 2 THEN n ELSE 9000000000000 END, 1, ''
        FROM generate_series(1, 100000) AS n;
    INSERT INTO cache_lease (tenant, namespace, key, owner, until_ms)
        SELECT 1 + n % 50, 'p', 'k' || n, n, CASE WHEN n % 100 < 2 THEN n ELSE 9000000000000 END
        FROM generate_series(1, 100000) AS n;
    INSERT INTO tree (root, tenant, fuel_max, host_calls_max, fuel_used, host_calls_used)
        SELECT n * 1000, 1 + n % 20, 9, 9, 1, 1 FROM generate_series(1, 20000) AS n;
    INSERT INTO holder (id, opened_ms, until_ms) VALUES (1, 0, 9000000000000);
    INSERT INTO task (id, tenant, kind, holder, created_ms, run_at_ms, root, parent, input, agent, app_user)
        SELECT 9000000000 + n, 1 + n % 50, 1 + n % 50, CASE WHEN n % 100 = 0 THEN 1 END, n, n, n,
            CASE WHEN n % 7 = 0 THEN n END, '{}', CASE WHEN n % 3 = 0 THEN n % 1000 * 20 END,
            CASE WHEN n % 3 <> 0 THEN n % 1000 * 20 END
        FROM generate_series(1, 20000) AS n;
    INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, due_ms, priority, start_by_ms,
            end_by_ms, root, input)
        SELECT 9050000000 + n, 49, 49, n, n, n, 5, n, n, n, '{}' FROM generate_series(1, 200) AS n;
    INSERT INTO task (id, tenant, kind, created_ms, run_at_ms, root, input)
        SELECT 9100000000 + n, 49, 49, n, n, n, '{}' FROM generate_series(1, 100000) AS n";

/// Ended tasks of twenty tenants from one number to another, a second apart, one in fifty failed.
fn ended(first: i64, last: i64) -> String {
    format!(
        "INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, depth, created_ms,
            run_at_ms, finished_ms, root, parent, started_ms, elapsed_us, taint, effects, code, message, result, agent,
            app_user)
        SELECT n * 1000, 1 + n % 20, 1 + n % 20 + n / 20 % 2 * 50, CASE WHEN n % 50 = 0 THEN 3 ELSE 2 END, 1, 1, 0, 0, 0,
            n * 1000, n * 1000, n * 1000 + 50, n * 1000, CASE WHEN n % 7 = 0 THEN n / 10 END, n * 1000, n % 1000, 0, 0,
            CASE WHEN n % 50 = 0 THEN 'trap' END, CASE WHEN n % 50 = 0 THEN 'it failed' END,
            CASE WHEN n % 50 <> 0 THEN '{{\"words\": 12, \"letters\": 57}}'::bytea END,
            CASE WHEN n % 3 = 0 THEN n % 20000 END, CASE WHEN n % 2 = 0 THEN n % 20000 END
        FROM generate_series({first}::bigint, {last}::bigint) AS n"
    )
}

/// A statement, what it is given, and the indexes that it must use.
struct Case {
    text: String,
    values: String,
    indexes: &'static [&'static str],
    /// Whether it asks for so many of a table's rows by their ids that reading all of them may be as good.
    by_ids: bool,
}

fn case(text: impl Into<String>, values: impl Into<String>, indexes: &'static [&'static str]) -> Case {
    Case { text: text.into(), values: values.into(), indexes, by_ids: false }
}

/// A number that is a tenant's own, where every twentieth one is.
fn own(number: i64, tenant: i64) -> i64 {
    number + tenant - 1
}

/// What a connection of this tenant asks for by its key.
fn key_cases(tenant: i64) -> Vec<Case> {
    let id = own(20, tenant);
    let task = &["finished_pkey", "task_pkey", "task_segment_pkey", "attempt_pkey", "tree_pkey"];
    vec![
        case(TASK, format!("{}, {tenant}", id * 1_000), task),
        case(INPUT, format!("{}, {tenant}", id * 1_000), &task[..3]),
        case(agents::ONE, format!("{id}, {tenant}"), &["agent_count_pkey"]),
    ]
}

/// What a connection of this tenant asks: pages of a hundred, a thousand ids, a hundredth of the history.
fn tenants_cases(tenant: i64) -> Vec<Case> {
    let all = TaskFilter::default();
    let list = |filter: TaskFilter, indexes| {
        let (agent, user) = (own(60, tenant), own(20, tenant));
        // Of the creation and the end a hundredth of the history.
        let times = "500000000, 500000000, 500999000, 500000000, 500999000";
        let below = if filter.created.is_all() { "9223372036854775807" } else { "500999001" };
        let values =
            format!("{tenant}, {below}, 100, 'p', 'k{tenant}', 14, {agent}, {user}, 14, 500000000, {times}");
        case(list_text(&filter), values, indexes)
    };
    let state = |state| TaskFilter { state: Some(state), ..all.clone() };
    let range = TimeRange { from_ms: Some(500_000_000), to_ms: Some(500_999_000) };
    let kind = TaskFilter { kind: Some("k1".parse().unwrap()), ..all.clone() };
    let plugin = TaskFilter { plugin: Some("p".parse().unwrap()), ..all.clone() };
    vec![
        list(all.clone(), &["finished_pkey"]),
        list(state(TaskState::Pending), &[]),
        list(state(TaskState::Running), &[]),
        list(state(TaskState::Completed), &["finished_pkey"]),
        list(state(TaskState::Failed), &["finished_incomplete"]),
        list(state(TaskState::Cancelled), &["finished_incomplete"]),
        list(kind, &["finished_kind"]),
        list(plugin, &["finished_kind"]),
        list(TaskFilter { parent: Some(TaskId(14)), ..all.clone() }, &["finished_parent"]),
        list(TaskFilter { agent: Some(AgentId(60)), ..all.clone() }, &["finished_agent", "task_agent"]),
        list(TaskFilter { user: Some(UserId(20)), ..all.clone() }, &["finished_user", "task_user"]),
        list(TaskFilter { root: Some(TaskId(14)), ..all.clone() }, &["finished_root"]),
        list(
            TaskFilter { group: Some(GroupId(500_000_000)), created: range, ..all.clone() },
            &["finished_pkey"],
        ),
        list(TaskFilter { created: range, ..all.clone() }, &[]),
        list(TaskFilter { created: range, finished: range, ..all.clone() }, &[]),
        list(
            TaskFilter { created: range, finished: range, ..state(TaskState::Failed) },
            &["finished_incomplete"],
        ),
        case(
            USER_TASKS,
            format!("{tenant}, 20, 9223372036854775807, 100, 16777216"),
            &["finished_user", "task_user"],
        ),
        case(STATISTICS, format!("{tenant}, 500000000, 509999000"), &["finished_created"]),
    ]
}

/// What a connection of this tenant asks about agents, users and the cache.
fn agents_cases(tenant: i64) -> Vec<Case> {
    let list = |kind: Option<&str>, status, indexes| {
        let filter = AgentFilter { kind: kind.map(|kind| kind.parse().unwrap()), status, before: None };
        let values = format!("{tenant}, 9223372036854775807, 100, 'k1', 1::smallint");
        case(agents::list_text(&filter), values, indexes)
    };
    let ids: Vec<String> = (0..1_000).map(|at: i64| own(at * 20, tenant).to_string()).collect();
    let ids = format!("array[{}]", ids.join(", "));
    let idle = Some(AgentStatus::Idle);
    let by_ids = |text, values| Case { by_ids: true, ..case(text, values, &[]) };
    vec![
        by_ids(agents::BY_IDS, format!("{ids}, {tenant}")),
        list(None, None, &["agent_tenant"]),
        list(None, idle, &[]),
        list(Some("k1"), None, &[]),
        list(Some("k1"), idle, &["agent_kind"]),
        case(PRUNE_ENDED, format!("{tenant}, 1800000000000, 100"), &["cache_until", "cache_lease_until"]),
        case(PRUNE_OLDEST, format!("{tenant}, 100, 50"), &["cache_age"]),
        by_ids(agents::USERS_BY_IDS, format!("{ids}, {tenant}")),
        case(agents::LIST_USERS, format!("{tenant}, 9223372036854775807, 100"), &["app_user_tenant"]),
        by_ids(agents::SET_STATUSES, format!("{ids}, array_fill(1::smallint, array[1000]), {tenant}, 5")),
    ]
}

/// What the system's connections ask.
fn systems_cases() -> Vec<Case> {
    vec![
        case(LEASE, LEASE_VALUES, &["task_ready", "task_pkey"]),
        case(
            LEASE_BOTH,
            LEASE_VALUES,
            &["task_ready", "task_pkey", "task_segment_ready", "task_segment_pkey"],
        ),
        case(
            LEASE_MORE_OF_BOTH,
            "1, 1800000000000, '{7,9}', '{50,50}'",
            &["task_ready", "task_pkey", "task_segment_ready", "task_segment_pkey"],
        ),
        case(LOOK, "1, 1800000000000, 30000", &["task_ready", "task_segment_ready"]),
        case(FIND, "'{1000,9200000128,9200000129}', NULL", &["task_segment_pkey"]),
        case(HOLD, "'{9200000128,9200000129}'", &["task_segment_pkey"]),
        case(HOLD_FOUND, "'{1000,9200000128,9200000129}', NULL", &["task_segment_pkey"]),
        case(
            STALE,
            "'{1000,9000000001,9000000100,9200000128,9200000129}', '{1,1,0,1,1}'",
            &["task_pkey", "task_segment_pkey"],
        ),
        case(END_PLAIN_IN_SEGMENTS, END_VALUES, &["task_segment_pkey"]),
        case(RAISE, "1800000000000, 60000, 1000", &["task_raise", "task_pkey"]),
        case(OVER, "1800000000000, 100", &["task_start_by", "task_end_by", "task_pkey"]),
        case(NEXT_TIME_OUT, "0", &["task_start_by", "task_end_by"]),
        case(TREES, "'{1000,2000,999}'", &["tree_pkey"]),
        case(CHARGE, "'{1000,2000}', '{1,1}', '{1,1}'", &["tree_pkey"]),
        case(BELOW_ROOTS, "1000, 2000, 2, 100", &["task_root"]),
        case(BELOW_TASKS, "1000, 1001, 2, 100, 1002", &["task_root", "task_pkey", "finished_pkey"]),
        case(WALK, "2, 0, 9223372036854775807, 100", &["finished_pkey"]),
        case(PRUNE_KEYS, "9000000000000, 100", &["idempotency_expires", "idempotency_pkey"]),
        case(UNPARK, "48, 48, 1000, 2305843009213693952", &["task_ready"]),
        case(FAILING, "100", &["task_group_failing"]),
        case(schedule::DUE, "9000000000000, 100, '{1}', '{s0}'", &["schedule_next"]),
        case(schedule::NEXT, "5", &["schedule_next"]),
        case(slot::STAND, "'{2}', '{2}', '{k}', '{1}'", &["slot_use_pkey", "slot_wait_pkey"]),
        case(slot::WAKE, "'{2}', '{2}', '{k}', '{5}', 2305843009213693952", &["slot_wait_pkey", "task_pkey"]),
        case(once::LOAD, "'{2}', '{2}', '{k41}'", &["task_key_pkey", "task_pkey"]),
        case(once::PRUNE, "9000000000000, 100", &["task_key_expires"]),
        case(once::PUT_OFF, "9000000000000, 100, 5", &["task_key_expires"]),
        case(CANDIDATES, "7, 'k1', 100, 1800000000000, true, 1000, 0", &["batch_item_group", "batch_group"]),
        case(SEGMENTS, "7, 'k1', 100, 1800000000000, true, 0", &["batch_segment_group", "batch_group"]),
        case(NEXT, "7, 'k1', 0, '{}', '{}'", &["batch_item_group", "batch_segment_group"]),
        case(GROUPS, "0, '', 100, 1800000000000", &["batch_item_group", "batch_segment_group"]),
        case(DELETE, "'{1000,3000}', '{1999,3000}'", &["batch_item_pkey"]),
    ]
}

/// The holder, now, its lease, the tenant served last, room, no caps of their own.
const LEASE_VALUES: &str = "1, 1800000000000, 30000, 7, 500, '{}', '{}', 9223372036854775807";

/// One end of a task in a segment: its columns, the holder, now, its segment and that of all of them, a day.
const END_VALUES: &str = "'{9200000128}', '{2}', '{0}', '{1}', '{NULL}', '{1}', '{1}', '{1}', '{1}', '{0}', '{0}', '{NULL}',
    '{NULL}', '{NULL}', '{2}', '{NULL}', '{NULL}', '{NULL}', 1, 1800000000000, '{9200000128}', '{9200000128}', 20000";

/// What a statement did.
#[derive(Debug)]
struct Explained {
    indexes: BTreeSet<String>,
    /// Tables that were read from one end to the other.
    walked: BTreeSet<String>,
    pages: i64,
}

impl Explained {
    fn add(&mut self, node: &Value) {
        let text = |key: &str| node[key].as_str().map(str::to_owned);
        self.indexes.extend(text("Index Name"));
        if node["Node Type"] == "Seq Scan" {
            self.walked.extend(text("Relation Name"));
        }
        node["Plans"].as_array().into_iter().flatten().for_each(|below| self.add(below));
    }
}

/// Runs a statement in a transaction that is rolled back.
async fn explain(connection: &mut PgConnection, case: &Case) -> Explained {
    let Case { text, values, .. } = case;
    let text = format!(
        "DEALLOCATE ALL; PREPARE looked_at AS {text}; BEGIN;
        EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE looked_at ({values})"
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *connection).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}: {}", case.text));
    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.unwrap();
    let plan: Value = serde_json::from_str(&rows[0].get_unchecked::<String, _>(0)).unwrap();
    let root = &plan[0]["Plan"];
    let blocks = |key: &str| root[key].as_i64().unwrap();
    let pages = blocks("Shared Hit Blocks") + blocks("Shared Read Blocks");
    let mut explained = Explained { indexes: BTreeSet::new(), walked: BTreeSet::new(), pages };
    explained.add(root);
    explained
}

/// What was found of many statements.
#[derive(Default)]
struct Found {
    used: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Found {
    /// Explains the cases; their indexes must be used when `named` says so.
    async fn check(&mut self, connection: &mut PgConnection, cases: &[Case], named: bool) {
        let large = [
            "task",
            "task_segment",
            "finished",
            "attempt",
            "agent_count",
            "idempotency",
            "task_key",
            "batch_item",
            "batch_segment",
            "batch",
            "agent",
            "app_user",
            "tree",
        ];
        for case in cases {
            let large = if case.by_ids { &large[..10] } else { &large };
            let explained = explain(connection, case).await;
            let wanted = if named { case.indexes } else { &[] };
            let fits = wanted.iter().all(|index| explained.indexes.contains(*index))
                && !large.iter().any(|table| explained.walked.contains(*table))
                && explained.pages <= PAGES_MAX;
            if !fits {
                self.wrong.push(format!("wanted {wanted:?}, {explained:?}: {}", case.text));
            }
            self.used.extend(explained.indexes);
        }
    }

    async fn check_system(&mut self, database: &Database) {
        let mut system = open(database.options().writer("plan").unwrap()).await;
        for mode in MODES {
            // What was rolled back before is in the way.
            database.execute("VACUUM task").await;
            let set = AssertSqlSafe(format!("SET plan_cache_mode = {mode}"));
            sqlx::raw_sql(set).execute(&mut system).await.unwrap();
            self.check(&mut system, &systems_cases(), true).await;
        }
        system.close().await.unwrap();
    }

    /// A tenant among many, the one that has most of the agents, and one that has next to nothing: whatever a plan walks
    /// is the others'.
    async fn check_tenants(&mut self, database: &Database) {
        let mut tenant = open(database.options().reader(&database.url).unwrap()).await;
        for id in [ORDINARY, 1, 50] {
            for plans in [Plans::Common, Plans::Own] {
                let work = sqlx::query(WORK_FOR).persistent(false).bind("keiko_tenant").bind(id.to_string());
                work.bind(None::<i64>).bind(plans.mode()).execute(&mut tenant).await.unwrap();
                self.check(&mut tenant, &key_cases(id), id == ORDINARY).await;
            }
            self.check(&mut tenant, &tenants_cases(id), id == ORDINARY).await;
            self.check(&mut tenant, &agents_cases(id), id == ORDINARY).await;
        }
        tenant.close().await.unwrap();
    }

    /// The indexes that nothing used. What a constraint needs stands for itself.
    async fn unused(&self, database: &Database) -> Vec<String> {
        let all = "SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
            WHERE NOT i.indisunique AND c.relnamespace = 'public'::regnamespace";
        let mut owner = database.beside().await;
        let rows = sqlx::query(all).fetch_all(&mut owner).await.unwrap();
        owner.close().await.unwrap();
        assert!(rows.len() >= 12, "{}", rows.len());
        rows.iter().map(|row| row.get(0)).filter(|index: &String| !self.used.contains(index)).collect()
    }
}

async fn open(options: PgConnectOptions) -> PgConnection {
    options.connect().await.unwrap()
}

/// Pages that a lease of 500 tasks touches: the fewest of three, because what was rolled back before is in the way.
async fn lease_pages(database: &Database) -> i64 {
    let mut connection = open(database.options().writer("plan").unwrap()).await;
    let mut fewest = i64::MAX;
    for _ in 0..3 {
        database.execute("VACUUM ANALYZE task").await;
        database.execute("VACUUM ANALYZE holder").await;
        let lease = case(LEASE, LEASE_VALUES, &[]);
        fewest = fewest.min(explain(&mut connection, &lease).await.pages);
    }
    connection.close().await.unwrap();
    fewest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_slows_nothing_down() {
    let database = Database::new().await;
    database.execute(LIVE).await;
    let before = lease_pages(&database).await;
    let check = async |ended: i64| {
        let pages = lease_pages(&database).await;
        assert!(
            pages <= before + before / 20,
            "{before} pages without a history, {pages} with {ended} ended tasks"
        );
        println!("a lease touches {before} pages without a history, {pages} with {ended} ended tasks");
    };
    database.execute(&ended(1, ENDED)).await;
    for table in [
        "finished",
        "attempt",
        "agent",
        "agent_count",
        "app_user",
        "idempotency",
        "task_key",
        "task_segment",
        "pause",
        "tenant",
        "kind",
        "plugin",
        "batch",
        "batch_item",
        "batch_segment",
        "cache",
        "cache_lease",
        "tree",
    ] {
        database.execute(&format!("VACUUM ANALYZE {table}")).await;
    }
    check(ENDED).await;

    let mut found = Found::default();
    found.check_system(&database).await;
    found.check_tenants(&database).await;
    assert!(found.wrong.is_empty(), "{} plans are wrong:\n{}", found.wrong.len(), found.wrong.join("\n"));
    let unused = found.unused(&database).await;
    assert!(unused.is_empty(), "nobody uses {unused:?}");

    if std::env::var_os("KEIKO_TEST_LONG").is_some() {
        database.execute(&ended(ENDED + 1, ENDED_LONG)).await;
        database.execute("VACUUM ANALYZE finished").await;
        check(ENDED_LONG).await;
    }
}
