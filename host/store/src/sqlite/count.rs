//! Writes what is counted, in the transaction that changes it, once per tenant, agent and call.

use keiko_core::port::StoreError;

use super::group;
use super::session::{Session, json};
pub(crate) use crate::count::{AgentChange, Change, Changes, Spent, Usage};
use keiko_core::usage::day;

impl Changes {
    pub(crate) async fn store(&self, session: &mut Session) -> Result<(), StoreError> {
        if self.is_empty() {
            return Ok(());
        }
        session.run(sqlx::query(UPDATE_COUNT).bind(json(&self.rows()))).await?;
        self.store_rest(session).await
    }

    async fn store_rest(&self, session: &mut Session) -> Result<(), StoreError> {
        self.store_agents(session).await?;
        group::count(session, self).await
    }

    async fn store_agents(&self, session: &mut Session) -> Result<(), StoreError> {
        let rows = self.agent_rows();
        if rows.is_empty() {
            return Ok(());
        }
        session.run(sqlx::query(UPSERT_AGENT_COUNT).bind(json(&rows))).await
    }

    /// Writes these and the usage of the same call, in one go.
    pub(crate) async fn store_with(
        &self,
        usage: &Usage,
        now_ms: i64,
        session: &mut Session,
    ) -> Result<(), StoreError> {
        if usage.is_empty() {
            return self.store(session).await;
        }
        let query = sqlx::query(UPDATE_COUNT_AND_USAGE).bind(json(&self.rows())).bind(json(&usage.rows()));
        session.run(query.bind(day(now_ms))).await?;
        self.store_rest(session).await
    }
}

const UPDATE_COUNT: &str = "UPDATE tenant_count SET live = live + (c.value ->> 1),
        completed = completed + (c.value ->> 2), failed = failed + (c.value ->> 3),
        cancelled = cancelled + (c.value ->> 4)
    FROM json_each(?1) AS c WHERE tenant = c.value ->> 0";

/// An agent's row comes with its first task.
const UPSERT_AGENT_COUNT: &str = "INSERT INTO agent_count (agent, tenant, total, completed, failed, cancelled, timed,
        elapsed_us)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
    FROM json_each(?1) WHERE true
    ON CONFLICT (agent) DO UPDATE SET total = total + excluded.total, completed = completed + excluded.completed,
        failed = failed + excluded.failed, cancelled = cancelled + excluded.cancelled,
        timed = timed + excluded.timed, elapsed_us = elapsed_us + excluded.elapsed_us";

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
