//! What tenants spend: what runs add beside the ends of tasks, and what was added.

use async_trait::async_trait;
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, Usage};
use keiko_core::usage::{DaySpent, Spent};
use sqlx::postgres::PgRow;

use super::row::{get, large_count};
use super::{PostgresStore, count};
use crate::count::{Changes, Usage as Sums};
use crate::transaction::Priority;

/// Fuel is stored without an end, and read up to the largest number.
const USAGE: &str = "SELECT day, attempts, completed, failed,
        least(fuel_used, 9223372036854775807)::bigint, guest_us
    FROM usage WHERE tenant = $1 AND day BETWEEN $2 AND $3 ORDER BY day";

#[async_trait]
impl Usage for PostgresStore {
    async fn spend(&self, spent: Vec<(TenantId, Spent)>, now_ms: i64) -> Result<(), StoreError> {
        self.write(Priority::Background, 0, Sums::of(spent), move |session, sums| {
            Box::pin(async move { count::store_with(session, &Changes::default(), sums, now_ms).await })
        })
        .await
    }

    async fn usage(&self, tenant: TenantId, from: i64, to: i64) -> Result<Vec<DaySpent>, StoreError> {
        let mut connection = self.pool().tenant(tenant).await?;
        let query = sqlx::query(USAGE).bind(connection.id().0).bind(from).bind(to);
        connection.rows(query).await?.iter().map(read_day).collect()
    }
}

fn read_day(row: &PgRow) -> Result<DaySpent, StoreError> {
    let spent = Spent {
        attempts: large_count(row, 1)?,
        completed: large_count(row, 2)?,
        failed: large_count(row, 3)?,
        fuel_used: large_count(row, 4)?,
        guest_us: large_count(row, 5)?,
    };
    Ok(DaySpent { day: get(row, 0)?, spent })
}
