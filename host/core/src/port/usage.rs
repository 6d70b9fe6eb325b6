//! Where it is kept what tenants spend.

use async_trait::async_trait;

use super::StoreError;
use crate::id::TenantId;
use crate::usage::{DaySpent, Spent};

/// Usage by tenant and day. What attempts of tasks spend is written by the settle that stores their end; this adds what
/// leaves nothing else behind, and reads both.
#[async_trait]
pub trait Usage: Send + Sync + 'static {
    /// Adds what runs spent to the day of `now_ms`, in one transaction.
    async fn spend(&self, spent: Vec<(TenantId, Spent)>, now_ms: i64) -> Result<(), StoreError>;

    /// What the tenant spent on the days from `from` to `to`, both included, in their order; days without any are left
    /// out.
    async fn usage(&self, tenant: TenantId, from: i64, to: i64) -> Result<Vec<DaySpent>, StoreError>;
}
