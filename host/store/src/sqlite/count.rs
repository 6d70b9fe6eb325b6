//! What is counted per tenant: tasks by state, and usage by day. Written in the transaction that changes it, once
//! per tenant and call, so that the counts equal a recount at every commit.

use std::collections::BTreeMap;

use keiko_core::id::TenantId;
use keiko_core::port::StoreError;

use super::session::{Session, json};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// How a tenant's numbers change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub(crate) live: i64,
    pub(crate) completed: i64,
    pub(crate) failed: i64,
    pub(crate) cancelled: i64,
}

/// Changes of one call, by tenant.
#[derive(Default)]
pub(crate) struct Changes(BTreeMap<i64, Change>);

impl Changes {
    pub(crate) fn add(&mut self, tenant: TenantId, change: Change) {
        let sum = self.0.entry(tenant.0).or_default();
        sum.live += change.live;
        sum.completed += change.completed;
        sum.failed += change.failed;
        sum.cancelled += change.cancelled;
    }

    pub(crate) async fn store(&self, session: &mut Session) -> Result<(), StoreError> {
        if self.0.is_empty() {
            return Ok(());
        }
        session.run(sqlx::query(UPDATE_COUNT).bind(self.json())).await
    }

    /// Writes these and the usage of the same call, in one go.
    pub(crate) async fn store_with(
        &self,
        usage: &Usage,
        now_ms: i64,
        session: &mut Session,
    ) -> Result<(), StoreError> {
        if usage.0.is_empty() {
            return self.store(session).await;
        }
        let day = now_ms.div_euclid(DAY_MS);
        let query = sqlx::query(UPDATE_COUNT_AND_USAGE).bind(self.json()).bind(usage.json()).bind(day);
        session.run(query).await
    }

    fn json(&self) -> String {
        let row = |(tenant, change): (&i64, &Change)| {
            (*tenant, change.live, change.completed, change.failed, change.cancelled)
        };
        json(&self.0.iter().map(row).collect::<Vec<_>>())
    }
}

const UPDATE_COUNT: &str = "UPDATE tenant_count SET live = live + (c.value ->> 1),
        completed = completed + (c.value ->> 2), failed = failed + (c.value ->> 3),
        cancelled = cancelled + (c.value ->> 4)
    FROM json_each(?1) AS c WHERE tenant = c.value ->> 0";

const UPDATE_COUNT_AND_USAGE: &str = "UPDATE tenant_count SET live = live + (c.value ->> 1),
        completed = completed + (c.value ->> 2), failed = failed + (c.value ->> 3),
        cancelled = cancelled + (c.value ->> 4)
    FROM json_each(?1) AS c WHERE tenant = c.value ->> 0;
    INSERT INTO usage (tenant, day, attempts, completed, failed, fuel_used, guest_us)
    SELECT value ->> 0, ?3, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
    FROM json_each(?2) WHERE true
    ON CONFLICT (tenant, day) DO UPDATE SET attempts = attempts + excluded.attempts,
        completed = completed + excluded.completed, failed = failed + excluded.failed,
        fuel_used = fuel_used + excluded.fuel_used, guest_us = guest_us + excluded.guest_us";

/// What a tenant spent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) attempts: i64,
    pub(crate) completed: i64,
    pub(crate) failed: i64,
    pub(crate) fuel_used: i64,
    pub(crate) guest_us: i64,
}

/// What the tenants of one call spent.
#[derive(Default)]
pub(crate) struct Usage(BTreeMap<i64, Spent>);

impl Usage {
    pub(crate) fn add(&mut self, tenant: TenantId, spent: Spent) {
        let sum = self.0.entry(tenant.0).or_default();
        sum.attempts += spent.attempts;
        sum.completed += spent.completed;
        sum.failed += spent.failed;
        sum.fuel_used = sum.fuel_used.saturating_add(spent.fuel_used);
        sum.guest_us = sum.guest_us.saturating_add(spent.guest_us);
    }

    fn json(&self) -> String {
        let row = |(tenant, spent): (&i64, &Spent)| {
            (*tenant, spent.attempts, spent.completed, spent.failed, spent.fuel_used, spent.guest_us)
        };
        json(&self.0.iter().map(row).collect::<Vec<_>>())
    }
}
