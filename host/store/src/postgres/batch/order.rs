//! Tests that whoever adds items or ends batches locks rows in the order that all writers keep: agents and keys before what
//! waits of a tenant, which is last. Otherwise two of them wait for each other until the server ends one.

use keiko_core::agent::{Agent, AgentStatus, StatusChange};
use keiko_core::batch::flush::Why;
use keiko_core::batch::machine::Form;
use keiko_core::batch::{Add, Added, BatchSettlement, Group, ItemEnd, NewItem, Processor, payload_of};
use keiko_core::effect::Effects;
use keiko_core::id::{AgentId, BatchId, ItemId};
use keiko_core::port::{Agents, BatchStore, FormRequest, StoreError, TaskStore};
use keiko_core::task::{Key, Settled};
use sqlx::{AssertSqlSafe, Row};

use super::super::PostgresStore;
use super::add;
use crate::transaction::Priority;
use crate::world::database::Database;
use crate::world::{Customer, NOW, customer};

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

struct World {
    database: Database,
    store: PostgresStore,
    ada: Customer,
    films: Processor,
}

impl World {
    async fn new() -> World {
        let database = Database::new().await;
        let store = database.open().await;
        let ada = customer(&store, "ada").await;
        let names = ["films".parse().unwrap()];
        let films = store.ensure_processors(ada.tenant, &names).await.unwrap().remove(0);
        World { database, store, ada, films }
    }

    async fn id(&self) -> i64 {
        self.store.reserve_ids(1, NOW).await.unwrap().first.0
    }

    async fn add_of_one(&self, key: Option<Key>) -> Add {
        let (id, processor, payload) = (ItemId(self.id().await), self.films.id, payload_of(1));
        let items = vec![NewItem { id, processor, key: String::new(), payload, created_ms: NOW }];
        Add { tenant: self.ada.tenant, items, key, items_max: 10, bytes_max: 10_000 }
    }

    /// Another host holds the row that `hold` locks; when `write` waits for it, it goes on to what waits of the tenant.
    async fn beside<T>(
        &self,
        hold: String,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut other = self.database.beside().await;
        // Sooner than the server looks for circles.
        let text = format!("SET lock_timeout = '500ms'; BEGIN; {hold}");
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut other).await.unwrap();
        let going_on = async {
            let mut watching = self.database.beside().await;
            loop {
                let row = sqlx::query(WAITING).fetch_one(&mut watching).await.unwrap();
                if row.get::<i64, _>(0) > 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let text = "UPDATE batch_count SET items = items WHERE tenant";
            let text = format!("{text} = {}; COMMIT", self.ada.tenant);
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut other).await
        };
        let (written, went_on) = futures::join!(write, going_on);
        went_on.expect("who waits holds nothing that the other takes later");
        written
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_add_that_locks_what_waits_has_its_keys_before() {
    let world = World::new().await;
    let add_of = world.add_of_one(Some(Key { text: "k".to_owned(), body: [1; 32] })).await;
    let adding = world.store.write(Priority::Task, 0, add_of, |session, add_of| {
        session.locks_first = true;
        Box::pin(async move { add(session, &[(add_of, NOW)]).await })
    });
    let hold = format!(
        "INSERT INTO idempotency (tenant, key, first, count, body, expires_ms)
        VALUES ({}, 'k', 7, 1, '', 9000000000000)",
        world.ada.tenant
    );
    let added = world.beside(hold, adding).await.unwrap();
    assert_eq!(added, [Added::Conflict], "looked at again, the key is another's");
    world.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_add_that_locks_what_waits_is_stored_once_with_its_key() {
    let world = World::new().await;
    let key = Some(Key { text: "k".to_owned(), body: [1; 32] });
    for expected in [false, true] {
        let add_of = world.add_of_one(key.clone()).await;
        let adding = world.store.write(Priority::Task, 0, add_of, |session, add_of| {
            session.locks_first = true;
            Box::pin(async move { add(session, &[(add_of, NOW)]).await })
        });
        let added = adding.await.unwrap();
        assert!(
            matches!(added[..], [Added::Accepted { duplicate, .. }] if duplicate == expected),
            "{added:?}"
        );
    }
    // A key of an add that is refused stands for nothing.
    let full =
        Add { items_max: 1, ..world.add_of_one(Some(Key { text: "l".to_owned(), body: [2; 32] })).await };
    let adding = world.store.write(Priority::Task, 0, full.clone(), |session, add_of| {
        session.locks_first = true;
        Box::pin(async move { add(session, &[(add_of, NOW)]).await })
    });
    assert!(matches!(adding.await.unwrap()[..], [Added::QueueFull(_)]));
    let added = world.store.add(vec![Add { items_max: 2, ..full }], NOW).await.unwrap();
    assert!(matches!(added[..], [Added::Accepted { duplicate: false, .. }]), "{added:?}");
    world.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_of_a_batch_that_counts_has_its_agents_before() {
    let world = World::new().await;
    let (tenant, store) = (world.ada.tenant, &world.store);
    let id = AgentId(world.id().await);
    let (name, kind, status) = ("Ada".to_owned(), "writer".parse().unwrap(), AgentStatus::Idle);
    let agent = Agent { id, name, kind, status, created_ms: NOW, updated_ms: NOW };
    store.create_agents(tenant, vec![agent]).await.unwrap();
    let add_of = world.add_of_one(None).await;
    store.add(vec![add_of], NOW).await.unwrap();
    let holder = store.open_holder(NOW, 30_000).await.unwrap();
    let group = Group { tenant, processor: world.films.id, key: String::new() };
    let form =
        Form { group, why: Why::Requested, items_max: 3, bytes_max: 1_000, age_ms: 1_000, ordered: false };
    let request = FormRequest { holder, id: BatchId(world.id().await), form, now_ms: NOW };
    let batch = store.form(request).await.unwrap().batch.expect("somebody asked for it");
    let mut effects = Effects::default();
    effects.push_statuses(vec![StatusChange { agent: id, status: AgentStatus::Paused }]);
    let settlement = BatchSettlement {
        id: batch.id,
        tenant,
        token: batch.token,
        ends: batch.items.iter().map(|item| (item.id, ItemEnd::Done)).collect(),
        keep_rows: false,
        effects,
        version: None,
    };
    let hold = format!("UPDATE agent SET name = 'Bo' WHERE id = {}", id.0);
    let settling = store.settle_batches(holder, vec![settlement], NOW);
    assert_eq!(world.beside(hold, settling).await.unwrap(), [Settled::Stored]);
    world.store.close().await.unwrap();
}
