//! What a running guest reaches of the runtime.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::admission::admit;
use keiko_core::agent::{Agent, AgentFilter, AgentStatistics};
use keiko_core::batch::{ItemWish, NewItem};
use keiko_core::effect::ChildWish;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::limit::{DELAY_MS_MAX, HOSTCALL_BYTES_MAX, LimitFact};
use keiko_core::metric::{Measured, MetricRefused};
use keiko_core::page::Page;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{
    AskError, CacheFilling, CacheRefused, HostPort, ItemsError, Keeping, ReserveError, Reserved, StoreError,
};
use keiko_core::task::Lineage;
use keiko_core::{AgentId, KindId, TaskId, TenantId, UserId};
use parking_lot::Mutex;

use crate::batch::promise::Promised;
use crate::cache::plugin::PluginCache;
use crate::catalog::Loaded;
use crate::metrics::{self, Declared};
use crate::request::{Error, Progress};
use crate::running::Entry;
use crate::shared::{Shared, TenantEntry};

/// The port of one attempt, or of one batch. Dropping it gives back the room it promised to children, whether they were stored
/// (the gauge counts them as live by then) or not.
pub(crate) struct AttemptPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) tenant: TenantId,
    pub(crate) policy: Arc<TenantEntry>,
    /// The plugin that runs, pinned.
    pub(crate) loaded: Arc<Loaded>,
    /// Its part of the cache, made when it is first asked for: most attempts never do.
    pub(crate) cache: OnceLock<PluginCache>,
    /// Its metrics, likewise.
    pub(crate) metrics: OnceLock<Declared>,
    pub(crate) lineage: Lineage,
    /// Children promised so far.
    pub(crate) children: Mutex<u64>,
    /// Items promised so far.
    pub(crate) promised: Promised,
}

#[async_trait]
impl HostPort for AttemptPort {
    fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    fn progress(&self, fraction: f64, message: String) {
        self.entry.report(Progress { fraction, message });
    }

    fn emit(&self, piece: Bytes) {
        self.entry.emit(piece);
    }

    fn measure(
        &self,
        name: &str,
        labels: &[(String, String)],
        measured: Measured,
    ) -> Result<(), MetricRefused> {
        let declared = self.metrics.get_or_init(|| self.shared.metrics.of(&self.loaded));
        metrics::measure(declared, name, labels, measured)
    }

    async fn reserve(&self, wishes: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        let policy = &self.policy.policy;
        if self.lineage.depth >= policy.depth_max {
            return Err(ReserveError::DepthExceeded(policy.depth_max));
        }
        let kinds = wishes.iter().map(|wish| self.kind(wish)).collect::<Result<Vec<_>, _>>()?;
        self.promise(wishes.len() as u64)?;
        let count = u32::try_from(wishes.len()).map_err(|_| ReserveError::Unavailable)?;
        let first = self.shared.ids.take(count).await.map_err(|error| {
            tracing::warn!(error = %error, "no ids could be reserved for children");
            ReserveError::Unavailable
        })?;
        let ids = (first.0..).map(TaskId);
        Ok(ids.zip(kinds).map(|(id, (kind, budget))| Reserved { id, kind, budget }).collect())
    }

    async fn reserve_items(&self, processor: &str, items: Vec<ItemWish>) -> Result<Vec<NewItem>, ItemsError> {
        self.promised.reserve(&self.policy, processor, items).await
    }

    async fn agents(&self, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, AskError> {
        let (agents, tenant, ids) = (Arc::clone(&self.shared.agents), self.tenant, ids.to_vec());
        let asked = self.shared.apart.run(async move { agents.agents(tenant, &ids).await });
        asked.await.map_err(unanswered)
    }

    async fn list_agents(
        &self,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Page<(Agent, AgentStatistics)>, AskError> {
        let (agents, tenant, filter) = (Arc::clone(&self.shared.agents), self.tenant, filter.clone());
        let more = limit.saturating_add(1);
        let rows = self.shared.apart.run(async move { agents.list_agents(tenant, &filter, more).await });
        Ok(Page::of(rows.await.map_err(unanswered)?, limit))
    }

    async fn user_tasks(
        &self,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Page<UserTask>, AskError> {
        let (history, tenant) = (Arc::clone(&self.shared.history), self.tenant);
        let more = limit.saturating_add(1);
        let asked = async move { history.user_tasks(tenant, user, before, more).await };
        let rows = self.shared.apart.run(asked).await.map_err(unanswered)?.ok_or(AskError::NoUser(user))?;
        Ok(Page::of(rows, limit).within(HOSTCALL_BYTES_MAX, UserTask::bytes))
    }

    async fn statistics(&self, range: DateRange) -> Result<Vec<Statistics>, AskError> {
        let (history, tenant) = (Arc::clone(&self.shared.history), self.tenant);
        let asked = self.shared.apart.run(async move { history.statistics(tenant, range).await });
        within(asked.await.map_err(unanswered)?, HOSTCALL_BYTES_MAX)
    }

    async fn cache_get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, CacheRefused> {
        self.cache().get(keys).await
    }

    async fn cache_set(&self, key: &str, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused> {
        self.cache().set(key, value, keeping).await
    }

    async fn cache_remove(&self, key: &str) -> Result<(), CacheRefused> {
        self.cache().remove(key).await
    }

    async fn cache_remove_tag(&self, tag: &str) -> Result<(), CacheRefused> {
        self.cache().remove_tag(tag).await
    }

    async fn cache_fill(&self, key: &str) -> Result<CacheFilling, CacheRefused> {
        self.cache().fill(key).await
    }
}

fn unanswered(error: StoreError) -> AskError {
    tracing::warn!(error = %error, "a plugin's question could not be answered");
    AskError::Unavailable
}

/// The statistics, unless they are larger than a host call may be: they are of use only when they are whole.
fn within(statistics: Vec<Statistics>, bytes_max: usize) -> Result<Vec<Statistics>, AskError> {
    let bytes: usize = statistics.iter().map(Statistics::bytes).sum();
    if bytes > bytes_max { Err(AskError::TooLarge(bytes_max as u64)) } else { Ok(statistics) }
}

impl AttemptPort {
    fn cache(&self) -> &PluginCache {
        self.cache.get_or_init(|| {
            let (cache, tenant) = (self.shared.cache.clone(), self.policy.row(self.tenant));
            PluginCache::new(cache, tenant, &self.loaded, self.shared.apart.clone())
        })
    }

    /// Which handler a child means, and the budget that it asks for, if its tenant may have that.
    fn kind(&self, wish: &ChildWish) -> Result<(KindId, BudgetRequest), ReserveError> {
        let invalid = |text: String| ReserveError::Invalid(text);
        let plugin = wish.plugin.as_deref().unwrap_or(self.loaded.plugin.name.as_str());
        let found = self.shared.catalog.resolve(self.tenant, Some(plugin), wish.kind.as_deref());
        let (kind, handler) = found.map_err(|error: Error| ReserveError::NotFound(error.message))?;
        let (manifest, asked) = (handler.budget(), &wish.options.budget);
        admit(&self.policy.policy, &manifest, asked).map_err(|denied| invalid(denied.to_string()))?;
        let ahead_ms = wish.options.run_at_ms.map_or(0, |at| at.saturating_sub(self.now_ms()).max(0) as u64);
        if ahead_ms > DELAY_MS_MAX {
            return Err(invalid(LimitFact::of_host("delay_ms", DELAY_MS_MAX, Some(ahead_ms)).to_string()));
        }
        Ok((kind, asked.with_time_outs_of(&manifest)))
    }

    fn promise(&self, more: u64) -> Result<(), ReserveError> {
        let policy = &self.policy.policy;
        let mut children = self.children.lock();
        if *children + more > policy.fan_out_max as u64 {
            return Err(ReserveError::FanOutExceeded(policy.fan_out_max as u64));
        }
        let room = self.shared.gauge.promise(self.tenant, more, policy.queue_max);
        room.map_err(|_| ReserveError::QueueFull(policy.queue_max))?;
        *children += more;
        Ok(())
    }
}

impl Drop for AttemptPort {
    fn drop(&mut self) {
        let promised = *self.children.get_mut();
        if promised > 0 {
            self.shared.gauge.release(self.tenant, promised);
        }
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::task::TaskState;

    use super::*;

    #[test]
    fn statistics_are_whole_or_refused() {
        let row = Statistics {
            plugin: "films".parse().unwrap(),
            kind: "cut".parse().unwrap(),
            state: TaskState::Completed,
            count: 1,
            average_us: 0,
            minimum_us: 0,
            maximum_us: 0,
            p50_us: 0,
            p95_us: 0,
        };
        let rows = vec![row.clone(), row.clone()];
        let most = 2 * row.bytes();
        assert_eq!(within(rows.clone(), most), Ok(rows.clone()));
        assert_eq!(within(rows, most - 1), Err(AskError::TooLarge(most as u64 - 1)));
    }
}
