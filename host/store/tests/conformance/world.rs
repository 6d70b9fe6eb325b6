//! An empty store with two tenants, and the few moves that every test makes.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use keiko_core::catalog::{Installed, NewVersion, Plugin};
use keiko_core::code::Code;
use keiko_core::effect::{ChildOptions, ChildWish, Effects};
use keiko_core::id::{AgentId, Digest, Holder, KindId, TaskId, TenantId, Token, VersionId};
use keiko_core::manifest::Manifest;
use keiko_core::name::TenantName;
use keiko_core::outcome::{Failure, Meter, Taint};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{
    Agents, BatchRecords, BatchStore, CanaryStore, CatalogStore, Components, Created, History, Lease,
    LeaseRequest, Records, Reserved, ScheduleKey, Schedules, StoreError, StoreErrorKind, TaskStore, Usage,
};
use keiko_core::priority::Priority;
use keiko_core::schedule::{Missed, Overlap, Recurrence, Schedule, Template};
use keiko_core::task::{
    AttemptRecord, Key, LeasedTask, Lineage, NewTask, Payload, Settled, Settlement, Submit, Submitted,
    TaskFilter, TaskState, TaskSummary, TaskView, Transition,
};
use keiko_store::memory::{MemoryStore, Mutation};
use keiko_store::postgres::{PostgresOptions, PostgresStore};
use keiko_store::sqlite::{SqliteOptions, SqliteStore};

#[allow(dead_code, reason = "the tests of what only PostgreSQL promises use more of it")]
#[path = "database.rs"]
pub mod database;
use self::database::Database;

/// When every test begins.
pub const NOW: i64 = 1_800_000_000_000;
pub const LEASE_MS: i64 = 30_000;
/// A quota that no test meets by accident.
pub const ROOMY: u64 = 1_000_000;

/// A store and what was put into it. Its folder or database goes with it.
pub struct World {
    pub tasks: Arc<dyn TaskStore>,
    pub records: Arc<dyn Records>,
    pub catalog: Arc<dyn CatalogStore>,
    pub canaries: Arc<dyn CanaryStore>,
    pub components: Arc<dyn Components>,
    pub agents: Arc<dyn Agents>,
    pub history: Arc<dyn History>,
    pub batches: Arc<dyn BatchStore>,
    pub batch_records: Arc<dyn BatchRecords>,
    pub usage: Arc<dyn Usage>,
    pub schedules: Arc<dyn Schedules>,
    pub ada: Customer,
    pub bob: Customer,
    _kept: Box<dyn Any + Send + Sync>,
}

/// A tenant with a plugin of two kinds.
#[derive(Clone, Debug)]
pub struct Customer {
    pub tenant: TenantId,
    pub plugin: Plugin,
    pub kind: KindId,
    pub other_kind: KindId,
}

pub async fn sqlite() -> World {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { data_dir: folder.path().to_owned(), readers: 2, statement_log: false };
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    world(store, Box::new(folder)).await
}

pub async fn postgres() -> World {
    let database = Database::new().await;
    world(Arc::new(database.open().await), Box::new(database)).await
}

/// PostgreSQL, where every task that may is in a segment, alone or not.
pub async fn segments() -> World {
    let database = Database::new().await;
    let options = PostgresOptions { segment_min: 1, ..database.options() };
    world(Arc::new(PostgresStore::open(options).await.unwrap()), Box::new(database)).await
}

pub async fn memory() -> World {
    world(Arc::new(MemoryStore::new()), Box::new(())).await
}

/// A store in memory that breaks one promise.
pub async fn broken(mutation: Mutation) -> World {
    world(Arc::new(MemoryStore::broken(mutation)), Box::new(())).await
}

pub async fn world<S>(store: Arc<S>, kept: Box<dyn Any + Send + Sync>) -> World
where
    S: TaskStore
        + Records
        + CatalogStore
        + CanaryStore
        + Components
        + Agents
        + History
        + BatchStore
        + BatchRecords
        + Usage
        + Schedules,
{
    let ada = customer(&*store, "ada").await;
    let bob = customer(&*store, "bob").await;
    World {
        tasks: store.clone(),
        records: store.clone(),
        catalog: store.clone(),
        canaries: store.clone(),
        components: store.clone(),
        agents: store.clone(),
        history: store.clone(),
        batches: store.clone(),
        batch_records: store.clone(),
        usage: store.clone(),
        schedules: store,
        ada,
        bob,
        _kept: kept,
    }
}

/// A tenant of this name with its plugin installed.
pub async fn customer(catalog: &dyn CatalogStore, name: &str) -> Customer {
    let name: TenantName = name.parse().unwrap();
    let tenant = catalog.ensure_tenants(&[name]).await.unwrap().remove(0).id;
    let Installed::Current(plugin) = catalog.install(version(tenant, "1", 1), NOW).await.unwrap() else {
        panic!("a first install makes the version current")
    };
    let kind = plugin.kinds[&"run".parse().unwrap()];
    let other_kind = plugin.kinds[&"walk".parse().unwrap()];
    Customer { tenant, plugin, kind, other_kind }
}

/// A version of the plugin `p` with the kinds `run` and `walk`.
pub fn version(tenant: TenantId, name: &str, digest: u8) -> NewVersion {
    let text = format!(
        "[plugin]\nname = \"p\"\nversion = \"{name}\"\n[[kind]]\nname = \"run\"\n[[kind]]\nname = \"walk\"\n"
    );
    let manifest = Arc::new(Manifest::parse(text.as_bytes()).unwrap());
    NewVersion { tenant, digest: Digest([digest; 32]), component_bytes: 7, manifest }
}

impl World {
    pub async fn holder(&self) -> Holder {
        self.tasks.open_holder(NOW, LEASE_MS).await.unwrap()
    }

    /// So many plain tasks with ids of their own.
    pub async fn new_tasks(&self, customer: &Customer, count: u32) -> Vec<NewTask> {
        let first = self.tasks.reserve_ids(count, NOW).await.unwrap().first.0;
        (first..first + i64::from(count)).map(|id| new_task(TaskId(id), customer.kind)).collect()
    }

    /// Submits tasks under a roomy quota; their ids.
    pub async fn submit(&self, customer: &Customer, tasks: Vec<NewTask>) -> Vec<TaskId> {
        let ids = tasks.iter().map(|task| task.id).collect();
        let answer = self.try_submit(submit(customer, tasks)).await;
        assert!(matches!(answer, Submitted::Accepted { duplicate: false, .. }), "{answer:?}");
        ids
    }

    pub async fn try_submit(&self, submit: Submit) -> Submitted {
        self.tasks.enqueue(vec![submit], NOW).await.unwrap().remove(0)
    }

    /// Submits plain tasks; their ids.
    pub async fn submit_plain(&self, customer: &Customer, count: u32) -> Vec<TaskId> {
        let tasks = self.new_tasks(customer, count).await;
        self.submit(customer, tasks).await
    }

    pub async fn lease(&self, holder: Holder, room: usize) -> Vec<LeasedTask> {
        self.lease_at(holder, room, NOW).await.tasks
    }

    pub async fn lease_at(&self, holder: Holder, room: usize, now_ms: i64) -> Lease {
        self.tasks.lease(LeaseRequest { now_ms, ..request(holder, room) }).await.unwrap()
    }

    /// Submits one plain task and leases it.
    pub async fn running(&self, customer: &Customer, holder: Holder) -> LeasedTask {
        self.submit_plain(customer, 1).await;
        self.lease(holder, 1).await.remove(0)
    }

    pub async fn settle(&self, holder: Holder, settlement: Settlement) -> Settled {
        self.tasks.settle(holder, vec![settlement], NOW).await.unwrap().remove(0)
    }

    pub async fn view(&self, customer: &Customer, id: TaskId) -> TaskView {
        self.records.task(customer.tenant, id).await.unwrap().expect("the task exists")
    }

    pub async fn state(&self, customer: &Customer, id: TaskId) -> TaskState {
        self.view(customer, id).await.summary.state
    }

    pub async fn list(&self, customer: &Customer, filter: &TaskFilter) -> Vec<TaskSummary> {
        self.records.list(customer.tenant, filter, 1_000).await.unwrap()
    }

    pub async fn live(&self, customer: &Customer) -> u64 {
        self.records.live().await.unwrap().get(&customer.tenant).copied().unwrap_or_default()
    }
}

pub fn request(holder: Holder, room: usize) -> LeaseRequest {
    LeaseRequest {
        holder,
        room,
        caps: HashMap::new(),
        cap_default: usize::MAX,
        after: None,
        slots: Default::default(),
        expects: false,
        lease_ms: LEASE_MS,
        now_ms: NOW,
    }
}

pub fn new_task(id: TaskId, kind: KindId) -> NewTask {
    NewTask {
        id,
        kind,
        input: Payload::json("{}"),
        created_ms: NOW,
        run_at_ms: NOW,
        priority: Priority::default(),
        budget: BudgetRequest::default(),
        lineage: Lineage::root(id),
        agent: None,
        user: None,
        trace: None,
        group: None,
        held: false,
        tree_end_ms: None,
        slot_key: None,
        once: None,
    }
}

pub fn submit(customer: &Customer, tasks: Vec<NewTask>) -> Submit {
    Submit { tenant: customer.tenant, tasks, key: None, queue_max: ROOMY, group: None }
}

/// A schedule with everything that one can have.
pub fn schedule(customer: &Customer, name: &str, next_ms: Option<i64>) -> Schedule {
    Schedule {
        tenant: customer.tenant,
        name: name.parse().unwrap(),
        recurrence: Recurrence {
            cron: "* * * * *".to_owned(),
            zone: "UTC".to_owned(),
            missed: Missed::RunOnce,
            overlap: Overlap::Skip,
        },
        task: Template {
            plugin: Some("p".to_owned()),
            kind: None,
            input: Payload { content_type: "text/plain".to_owned(), bytes: vec![0, 159, 7].into() },
            budget: BudgetRequest { fuel: Some(9), ..BudgetRequest::default() },
            priority: Priority::new(4).unwrap(),
            agent: Some(AgentId(6)),
            user: None,
            slot_key: Some("é".to_owned()),
        },
        created_ms: NOW,
        paused_ms: None,
        next_ms,
        last: None,
    }
}

/// Three schedules that are due: two of Ada's that `damage` makes unreadable, by a statement, and one of Bob's.
#[allow(dead_code, reason = "used where rows can be damaged, which the suite cannot do")]
pub async fn unreadable_schedules<S: Schedules + CatalogStore>(store: &S, damage: impl AsyncFn(&str)) {
    let (ada, bob) = (customer(store, "ada").await, customer(store, "bob").await);
    let good = schedule(&bob, "good", Some(NOW));
    for made in [schedule(&ada, "newer", Some(NOW - 2)), schedule(&ada, "odd", Some(NOW - 1)), good.clone()] {
        assert_eq!(store.create(made, 10).await.unwrap(), Created::Stored);
    }
    damage(
        "UPDATE schedule SET definition = replace(definition, 'run_once', 'run_all') WHERE name = 'newer'",
    )
    .await;
    damage("UPDATE schedule SET name = 'Odd One' WHERE name = 'odd'").await;
    let due = store.due_schedules(NOW, &[], 2).await.unwrap();
    assert!(due.schedules.is_empty() && due.next_ms.is_none(), "{due:?}");
    let (keys, errors): (Vec<ScheduleKey>, Vec<StoreError>) = due.unreadable.into_iter().unzip();
    assert_eq!(keys, ["newer", "Odd One"].map(|name| (ada.tenant, name.to_owned())));
    assert!(errors.iter().all(|error| error.kind() == StoreErrorKind::Integrity), "{errors:?}");
    let due = store.due_schedules(NOW, &keys, 2).await.unwrap();
    assert_eq!((due.schedules, due.unreadable.len()), (vec![good.clone()], 0));
    let due = store.due_schedules(NOW, &[], 10).await.unwrap();
    assert_eq!((due.schedules, due.unreadable.len()), (vec![good], 2));
}

pub fn key(text: &str, body: u8) -> Option<Key> {
    Some(Key { text: text.to_owned(), body: [body; 32] })
}

pub fn complete(task: &LeasedTask) -> Settlement {
    settlement(task, Transition::Complete(Payload::json("\"done\"")))
}

pub fn fail(task: &LeasedTask, code: Code) -> Settlement {
    settlement(task, Transition::Fail(Failure::new(code, "it failed")))
}

pub fn retry(task: &LeasedTask, code: Code, run_at_ms: i64) -> Settlement {
    settlement(task, Transition::Retry { run_at_ms, failure: Failure::new(code, "it failed") })
}

pub fn hand_back(task: &LeasedTask) -> Settlement {
    settlement(task, Transition::HandBack)
}

pub fn settlement(task: &LeasedTask, transition: Transition) -> Settlement {
    Settlement {
        id: task.id,
        tenant: task.tenant,
        token: task.token,
        transition,
        attempt: record(task, None),
        effects: Effects::default(),
        log: bytes::Bytes::new(),
        charge: None,
        group: task.group,
        segment: task.segment,
    }
}

pub fn record(task: &LeasedTask, version: Option<VersionId>) -> AttemptRecord {
    AttemptRecord {
        number: task.attempts + 1,
        started_ms: NOW + 1,
        meter: Meter { fuel_used: 5, memory_bytes_peak: 65_536, host_calls: 2, elapsed_us: 900 },
        taint: Taint::RANDOM,
        effects: 0,
        version,
        memoized_from: None,
        canary: None,
    }
}

/// A child as the runtime makes one: what a guest wished for, and what was reserved for it.
#[derive(Clone, Debug)]
pub struct NewChild {
    pub id: TaskId,
    pub kind: KindId,
    pub wish: ChildWish,
}

/// A child of the customer's first kind.
pub fn child(customer: &Customer, id: TaskId, key: Option<&str>, input: &'static str) -> NewChild {
    let (input, key) = (Payload::json(input), key.map(str::to_owned));
    NewChild {
        id,
        kind: customer.kind,
        wish: ChildWish {
            plugin: None,
            kind: None,
            input,
            key,
            delay_ms: 0,
            options: ChildOptions::default(),
        },
    }
}

/// The settlement with these children.
pub fn with_children(mut settlement: Settlement, children: Vec<NewChild>) -> Settlement {
    for child in children {
        let budget = child.wish.options.budget;
        settlement.effects.push(child.wish, Reserved { id: child.id, kind: child.kind, budget });
    }
    settlement
}

/// A token that is not the task's.
pub fn other_token(token: Token) -> Token {
    Token(token.0 + 1)
}
