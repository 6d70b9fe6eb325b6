//! Questions about many tasks at once.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{TaskId, TenantId, UserId};
use keiko_core::limit::USER_RESULTS_BYTES_MAX;
use keiko_core::name::{KindName, PluginName};
use keiko_core::port::{History, StoreError};
use keiko_core::task::TaskState;

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::{Row, State};

#[async_trait]
impl History for MemoryStore {
    async fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Option<Vec<UserTask>>, StoreError> {
        self.call(|state| Ok(state.user_tasks(tenant, user, before, limit))).await
    }

    async fn statistics(&self, tenant: TenantId, range: DateRange) -> Result<Vec<Statistics>, StoreError> {
        self.call(|state| Ok(state.statistics(tenant, range))).await
    }
}

/// Tasks of one kind in one state: how many, and the durations of those that have one.
#[derive(Default)]
struct Group {
    count: u64,
    durations_us: Vec<u64>,
}

impl State {
    fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Option<Vec<UserTask>> {
        let others = self.breaks(Mutation::UserTasksForOthers);
        let Some((owner, row)) = self.users.get(&user).filter(|(owner, _)| *owner == tenant || others) else {
            return self.breaks(Mutation::UserTasksOfNobodyEmpty).then(Vec::new);
        };
        let edge = i64::from(self.breaks(Mutation::UserTasksPageRepeatsItsEdge));
        let before = before.map_or(i64::MAX, |before| before.0 + edge);
        let range = (*owner, TaskId(i64::MIN))..(*owner, TaskId(before));
        let found = self.owned.range(range).filter_map(|(_, id)| Some((*id, self.tasks.get(id)?)));
        let found = found.filter(|(_, task)| task.user == Some(user)).filter_map(|(id, task)| {
            let agent = task.agent.and_then(|agent| self.agents.get(&agent));
            let agent = agent.filter(|_| !self.breaks(Mutation::UserTasksWithoutAgents));
            Some(UserTask {
                summary: self.summary(id, task)?,
                user: row.clone(),
                agent: agent.filter(|(of, _)| *of == task.tenant).map(|(_, agent)| agent.clone()),
                result: task.result.clone().filter(|_| !self.breaks(Mutation::UserTasksWithoutResults)),
                failure: task.failure.clone(),
            })
        });
        if self.breaks(Mutation::UserTasksOldestFirst) {
            return Some(found.take(limit as usize).collect());
        }
        let mut newer = 0;
        let fits = |task: &UserTask| {
            let fits = newer <= USER_RESULTS_BYTES_MAX || self.breaks(Mutation::UserTasksUnbounded);
            newer += task.result.as_ref().map_or(0, |result| result.bytes.len() as u64);
            fits
        };
        Some(found.rev().take(limit as usize).take_while(fits).collect())
    }

    fn statistics(&self, tenant: TenantId, range: DateRange) -> Vec<Statistics> {
        let from_ms = range.from_ms.saturating_add(i64::from(self.breaks(Mutation::RangeStartExcluded)));
        let to_ms = range.to_ms.saturating_sub(i64::from(self.breaks(Mutation::RangeEndExcluded)));
        let others = self.breaks(Mutation::StatisticsForOthers);
        let live_too = !self.breaks(Mutation::StatisticsWithoutLive);
        let counted = |row: &&Row| {
            (row.tenant == tenant || others)
                && (from_ms..=to_ms).contains(&row.created_ms)
                && (live_too || row.state.is_terminal())
        };
        let mut groups: BTreeMap<(&PluginName, &KindName, i64), Group> = BTreeMap::new();
        for row in self.tasks.values().filter(counted) {
            let Some(kind) = self.kinds.get(&row.kind) else { continue };
            let Some(plugin) = self.plugins.get(&kind.plugin) else { continue };
            let group = groups.entry((&plugin.name, &kind.name, row.state as i64)).or_default();
            group.count += 1;
            let ended = row.state.is_terminal();
            group.durations_us.extend(row.elapsed_us().filter(|_| ended));
        }
        let statistics = groups.into_iter().filter_map(|((plugin, kind, state), group)| {
            let state = TaskState::numbered(state)?;
            Some(self.summed_up(plugin.clone(), kind.clone(), state, group))
        });
        statistics.collect()
    }

    fn summed_up(&self, plugin: PluginName, kind: KindName, state: TaskState, group: Group) -> Statistics {
        let Group { count, mut durations_us } = group;
        durations_us.sort_unstable();
        let sum = durations_us.iter().fold(0_u64, |sum, one| sum.saturating_add(*one));
        let number = durations_us.len().max(1) as u64;
        let up = self.breaks(Mutation::AverageRoundedUp);
        Statistics {
            plugin,
            kind,
            state,
            count,
            average_us: if up { sum.div_ceil(number) } else { sum / number },
            minimum_us: durations_us.first().copied().unwrap_or_default(),
            maximum_us: durations_us.last().copied().unwrap_or_default(),
            p50_us: self.percentile(&durations_us, 50),
            p95_us: self.percentile(&durations_us, 95),
        }
    }

    /// The smallest of the sorted numbers that is not below so many in 100 of them; 0 of none.
    fn percentile(&self, sorted: &[u64], percent: usize) -> u64 {
        let rank = (sorted.len() * percent).div_ceil(100);
        let at = match self.mutation {
            Some(Mutation::PercentileOneUp) => rank.min(sorted.len().saturating_sub(1)),
            Some(Mutation::PercentileOneDown) => rank.saturating_sub(2),
            _ => rank.saturating_sub(1),
        };
        sorted.get(at).copied().unwrap_or_default()
    }
}
