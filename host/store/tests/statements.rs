//! How many statements each question of the data layer takes: as many for a thousand ids as for one, on both engines.
//!
//! They are counted where the driver itself tells of them, in the statement log. One test, because that log is the whole
//! process's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use keiko_core::agent::{Agent, AgentFilter, AgentStatus, StatusChange, User};
use keiko_core::history::DateRange;
use keiko_core::id::{AgentId, Holder, UserId};
use keiko_core::task::{LeasedTask, Settled, TaskFilter};
use keiko_store::postgres::PostgresStore;
use keiko_store::sqlite::{SqliteOptions, SqliteStore};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
#[path = "conformance/world.rs"]
mod world;

use world::database::Database;
use world::{NOW, World, complete};

/// Ids of a question. Every question may take as many as the largest.
const SIZES: [u32; 3] = [1, 10, 1_000];
/// Calls to the database that a question may take: one that reads says for whom first, one that writes has a transaction
/// around it.
const STATEMENTS_MAX: usize = 4;

/// Statements that were logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Takes what was logged so far.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        static SPANS: AtomicUsize = AtomicUsize::new(1);
        Id::from_u64(SPANS.fetch_add(1, Ordering::Relaxed) as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut summary = Summary::default();
        event.record(&mut summary);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(summary.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The beginning of a statement.
#[derive(Default)]
struct Summary(String);

impl Visit for Summary {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "summary" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// What a question is about: as many of each as its size.
struct Subject<'w> {
    world: &'w World,
    size: u32,
    first: i64,
    holder: Holder,
    running: Mutex<Vec<LeasedTask>>,
}

impl Subject<'_> {
    /// Ids that nobody has yet for agents and users, a user's tasks, and a task that runs.
    async fn new(world: &World, size: u32) -> Subject<'_> {
        let first = world.tasks.reserve_ids(size, NOW).await.unwrap().first.0;
        let holder = world.holder().await;
        Subject { world, size, first, holder, running: Mutex::default() }
    }

    fn ids(&self) -> impl Iterator<Item = i64> {
        self.first..self.first + i64::from(self.size)
    }

    fn agents(&self) -> Vec<AgentId> {
        self.ids().map(AgentId).collect()
    }

    fn users(&self) -> Vec<UserId> {
        self.ids().map(UserId).collect()
    }

    fn statuses(&self, status: AgentStatus) -> Vec<StatusChange> {
        self.ids().map(|id| StatusChange { agent: AgentId(id), status }).collect()
    }

    /// As many tasks of the first user, and a task that runs.
    async fn fill(&self) {
        let World { ada, .. } = self.world;
        let mut tasks = self.world.new_tasks(ada, self.size).await;
        for (task, id) in tasks.iter_mut().zip(self.ids()) {
            (task.agent, task.user) = (Some(AgentId(id)), Some(UserId(self.first)));
        }
        self.world.submit(ada, tasks).await;
        let running = self.world.lease(self.holder, 1).await;
        *self.running.lock().unwrap() = running;
    }

    async fn create_agents(&self) -> usize {
        let agent = |id: i64| Agent {
            id: AgentId(id),
            name: "a".to_owned(),
            kind: "writer".parse().unwrap(),
            status: AgentStatus::Idle,
            created_ms: NOW,
            updated_ms: NOW,
        };
        let agents = self.ids().map(agent).collect();
        self.world.agents.create_agents(self.world.ada.tenant, agents).await.unwrap();
        self.size as usize
    }

    async fn load_agents(&self) -> usize {
        let found = self.world.agents.agents(self.world.ada.tenant, &self.agents()).await.unwrap();
        found.into_iter().flatten().count()
    }

    async fn list_agents(&self) -> usize {
        let filter = AgentFilter::default();
        self.world.agents.list_agents(self.world.ada.tenant, &filter, self.size).await.unwrap().len()
    }

    async fn set_statuses(&self) -> usize {
        let changes = self.statuses(AgentStatus::Active);
        let unknown = self.world.agents.set_statuses(self.world.ada.tenant, changes, NOW).await.unwrap();
        self.size as usize - unknown.len()
    }

    async fn create_users(&self) -> usize {
        let user = |id: i64| User { id: UserId(id), name: "u".to_owned(), created_ms: NOW };
        let users = self.ids().map(user).collect();
        self.world.agents.create_users(self.world.ada.tenant, users).await.unwrap();
        self.size as usize
    }

    async fn load_users(&self) -> usize {
        let found = self.world.agents.users(self.world.ada.tenant, &self.users()).await.unwrap();
        found.into_iter().flatten().count()
    }

    async fn list_users(&self) -> usize {
        self.world.agents.list_users(self.world.ada.tenant, None, self.size).await.unwrap().len()
    }

    async fn user_tasks(&self) -> usize {
        let history = &self.world.history;
        let page = history.user_tasks(self.world.ada.tenant, UserId(self.first), None, self.size).await;
        page.unwrap().unwrap().len()
    }

    async fn statistics(&self) -> usize {
        let range = DateRange { from_ms: 0, to_ms: i64::MAX };
        let rows = self.world.history.statistics(self.world.ada.tenant, range).await.unwrap();
        rows.iter().map(|row| row.count as usize).sum::<usize>().min(self.size as usize)
    }

    async fn list_tasks(&self) -> usize {
        let filter = TaskFilter { user: Some(UserId(self.first)), ..TaskFilter::default() };
        self.world.records.list(self.world.ada.tenant, &filter, self.size).await.unwrap().len()
    }

    /// Statuses as effects of a task that completes.
    async fn settle_statuses(&self) -> usize {
        let task = self.running.lock().unwrap().remove(0);
        let mut settlement = complete(&task);
        settlement.effects.push_statuses(self.statuses(AgentStatus::Paused));
        assert_eq!(self.world.settle(self.holder, settlement).await, Settled::Stored);
        let agents = self.world.agents.agents(self.world.ada.tenant, &self.agents()).await.unwrap();
        agents.iter().flatten().filter(|agent| agent.status == AgentStatus::Paused).count()
    }
}

type Question = (&'static str, for<'s> fn(&'s Subject<'s>) -> BoxFuture<'s, usize>);

/// Each answers how many it was about. Some need what those before them stored.
const QUESTIONS: &[Question] = &[
    ("create agents", |subject| Box::pin(subject.create_agents())),
    ("load agents", |subject| Box::pin(subject.load_agents())),
    ("list agents", |subject| Box::pin(subject.list_agents())),
    ("set statuses", |subject| Box::pin(subject.set_statuses())),
    ("create users", |subject| Box::pin(subject.create_users())),
    ("load users", |subject| Box::pin(subject.load_users())),
    ("list users", |subject| Box::pin(subject.list_users())),
    ("tasks of a user", |subject| Box::pin(subject.user_tasks())),
    ("statistics", |subject| Box::pin(subject.statistics())),
    ("list tasks of a user", |subject| Box::pin(subject.list_tasks())),
];

/// The statements of each question at each size.
async fn ask(world: &World, log: &Log) -> Vec<(&'static str, [Vec<String>; SIZES.len()])> {
    let mut found: Vec<_> = QUESTIONS.iter().map(|(name, _)| (*name, [const { Vec::new() }; 3])).collect();
    let mut settles = [const { Vec::new() }; 3];
    for (at, size) in SIZES.into_iter().enumerate() {
        let subject = Subject::new(world, size).await;
        for ((name, question), (_, statements)) in QUESTIONS.iter().zip(&mut found) {
            if *name == "tasks of a user" {
                subject.fill().await;
            }
            log.take();
            let answered = question(&subject).await;
            statements[at] = log.take();
            assert_eq!(answered, size as usize, "{name}");
        }
        log.take();
        assert_eq!(subject.settle_statuses().await, size as usize);
        settles[at] = log.take();
    }
    found.push(("statuses as effects", settles));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_question_takes_as_many_statements_for_a_thousand_ids_as_for_one() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { data_dir: folder.path().to_owned(), readers: 1, statement_log: true };
    let sqlite = world::world(Arc::new(SqliteStore::open(options).await.unwrap()), Box::new(folder)).await;
    let database = Database::new().await;
    let mut options = database.options();
    options.statement_log = true;
    let postgres = Arc::new(PostgresStore::open(options).await.unwrap());
    let postgres = world::world(postgres, Box::new(database)).await;
    for (engine, world) in [("SQLite", sqlite), ("PostgreSQL", postgres)] {
        // Connections are made, and their settings asked for.
        ask(&world, &log).await;
        for (question, [one, ten, thousand]) in ask(&world, &log).await {
            let counts = [one.len(), ten.len(), thousand.len()];
            let settles = question == "statuses as effects";
            assert!(
                counts[0] > 0 && counts == [counts[0]; 3] && (settles || counts[0] <= STATEMENTS_MAX),
                "{engine}, {question}: {counts:?} statements for {SIZES:?} ids: {thousand:#?}"
            );
            println!("{engine}, {question}: {} statements", counts[0]);
        }
    }
}
