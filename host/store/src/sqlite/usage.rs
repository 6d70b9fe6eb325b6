//! What tenants spend: what runs add beside the ends of tasks, and what was added.

use async_trait::async_trait;
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, Usage};
use keiko_core::usage::{DaySpent, Spent};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::error::store_error;
use crate::count::{Changes, Usage as Sums};
use crate::transaction::Priority;

const USAGE: &str = "SELECT day, attempts, completed, failed, fuel_used, guest_us FROM usage
    WHERE tenant = ?1 AND day BETWEEN ?2 AND ?3 ORDER BY day";

#[async_trait]
impl Usage for SqliteStore {
    async fn spend(&self, spent: Vec<(TenantId, Spent)>, now_ms: i64) -> Result<(), StoreError> {
        self.write(Priority::Background, 0, Sums::of(spent), move |session, sums| {
            Box::pin(async move { Changes::default().store_with(sums, now_ms, session).await })
        })
        .await
    }

    async fn usage(&self, tenant: TenantId, from: i64, to: i64) -> Result<Vec<DaySpent>, StoreError> {
        let query = sqlx::query(USAGE).bind(tenant.0).bind(from).bind(to);
        let rows = query.fetch_all(&self.0.readers).await.map_err(store_error)?;
        rows.iter().map(read_day).collect::<Result<_, _>>().map_err(store_error)
    }
}

fn read_day(row: &SqliteRow) -> Result<DaySpent, sqlx::Error> {
    let number = |column: usize| row.try_get::<i64, _>(column).map(|number| number.max(0) as u64);
    let spent = Spent {
        attempts: number(1)?,
        completed: number(2)?,
        failed: number(3)?,
        fuel_used: number(4)?,
        guest_us: number(5)?,
    };
    Ok(DaySpent { day: row.try_get(0)?, spent })
}
