//! What tenants spend, by day.

use async_trait::async_trait;
use keiko_core::id::TenantId;
use keiko_core::port::{StoreError, Usage};
use keiko_core::usage::{DaySpent, Spent, day};

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::State;
use crate::count::Usage as Sums;

#[async_trait]
impl Usage for MemoryStore {
    async fn spend(&self, spent: Vec<(TenantId, Spent)>, now_ms: i64) -> Result<(), StoreError> {
        self.call(|state| {
            if !state.breaks(Mutation::SpentLost) {
                state.add_usage(&Sums::of(spent), now_ms);
            }
            Ok(())
        })
        .await
    }

    async fn usage(&self, tenant: TenantId, from: i64, to: i64) -> Result<Vec<DaySpent>, StoreError> {
        self.call(|state| Ok(state.usage_of(tenant, from, to))).await
    }
}

impl State {
    /// Adds what a call spent.
    pub(super) fn add_usage(&mut self, sums: &Sums, now_ms: i64) {
        for (tenant, spent) in sums.iter() {
            let day = if self.breaks(Mutation::SpentOnOneDay) { 0 } else { day(now_ms) };
            self.usage.entry((tenant, day)).or_default().add(spent);
        }
    }

    fn usage_of(&self, tenant: TenantId, from: i64, to: i64) -> Vec<DaySpent> {
        let others = self.breaks(Mutation::SpentForOthers);
        let own = |(owner, day): &(TenantId, i64)| (*owner == tenant || others) && (from..=to).contains(day);
        let rows = self.usage.iter().filter(|(key, _)| own(key));
        rows.map(|(&(_, day), &spent)| DaySpent { day, spent }).collect()
    }
}
