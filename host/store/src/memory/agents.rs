//! Agents and users.

use async_trait::async_trait;
use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, StatusChange, User};
use keiko_core::id::{AgentId, TenantId, UserId};
use keiko_core::port::{Agents, StoreError};

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::{State, refused};

#[async_trait]
impl Agents for MemoryStore {
    async fn create_agents(&self, tenant: TenantId, agents: Vec<Agent>) -> Result<(), StoreError> {
        self.call(|state| {
            let new = agents.iter().enumerate().all(|(at, agent)| {
                let twice = agents[..at].iter().any(|other| other.id == agent.id);
                !twice && !state.agents.contains_key(&agent.id)
            });
            state.check_new(tenant, new)?;
            state.agents.extend(agents.iter().map(|agent| (agent.id, (tenant, agent.clone()))));
            Ok(())
        })
        .await
    }

    async fn update_agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        patch: AgentPatch,
        now_ms: i64,
    ) -> Result<Option<Agent>, StoreError> {
        self.call(|state| {
            let still = state.breaks(Mutation::UpdateKeepsTime);
            let Some((_, agent)) = state.agents.get_mut(&id).filter(|(owner, _)| *owner == tenant) else {
                return Ok(None);
            };
            agent.name = patch.name.clone().unwrap_or_else(|| agent.name.clone());
            agent.kind = patch.kind.clone().unwrap_or_else(|| agent.kind.clone());
            agent.status = patch.status.unwrap_or(agent.status);
            agent.updated_ms = if still { agent.updated_ms } else { now_ms };
            Ok(Some(agent.clone()))
        })
        .await
    }

    async fn agents(&self, tenant: TenantId, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, StoreError> {
        self.call(|state| {
            let mut ids = ids.to_vec();
            if state.breaks(Mutation::AgentsInIdOrder) {
                ids.sort_unstable();
            }
            let found = ids.iter().map(|id| state.agent_of(tenant, *id).cloned());
            let left_out = state.breaks(Mutation::MissingAgentsLeftOut);
            Ok(found.filter(|found| found.is_some() || !left_out).collect())
        })
        .await
    }

    async fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Vec<(Agent, AgentStatistics)>, StoreError> {
        self.call(|state| Ok(state.list_agents(tenant, filter, limit))).await
    }

    async fn agent(
        &self,
        tenant: TenantId,
        id: AgentId,
    ) -> Result<Option<(Agent, AgentStatistics)>, StoreError> {
        self.call(|state| {
            Ok(state.agent_of(tenant, id).map(|agent| (agent.clone(), state.statistics_of(id))))
        })
        .await
    }

    async fn set_statuses(
        &self,
        tenant: TenantId,
        changes: Vec<StatusChange>,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, StoreError> {
        self.call(|state| Ok(state.set_statuses(tenant, changes, now_ms))).await
    }

    async fn create_users(&self, tenant: TenantId, users: Vec<User>) -> Result<(), StoreError> {
        self.call(|state| {
            let new = users.iter().enumerate().all(|(at, user)| {
                let twice = users[..at].iter().any(|other| other.id == user.id);
                !twice && !state.users.contains_key(&user.id)
            });
            state.check_new(tenant, new)?;
            state.users.extend(users.iter().map(|user| (user.id, (tenant, user.clone()))));
            Ok(())
        })
        .await
    }

    async fn users(&self, tenant: TenantId, ids: &[UserId]) -> Result<Vec<Option<User>>, StoreError> {
        self.call(|state| {
            let others = state.breaks(Mutation::UsersForOthers);
            let user = |id| state.users.get(id).filter(|(owner, _)| *owner == tenant || others);
            Ok(ids.iter().map(|id| user(id).map(|(_, user)| user.clone())).collect())
        })
        .await
    }

    async fn list_users(
        &self,
        tenant: TenantId,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        self.call(|state| {
            let edge = i64::from(state.breaks(Mutation::UserPageRepeatsItsEdge));
            let before = before.map_or(i64::MAX, |before| before.0 + edge);
            let users = state.users.range(..UserId(before)).rev();
            let own = users.filter(|(_, (owner, _))| *owner == tenant).map(|(_, (_, user))| user.clone());
            Ok(own.take(limit as usize).collect())
        })
        .await
    }
}

impl State {
    fn check_new(&self, tenant: TenantId, new: bool) -> Result<(), StoreError> {
        if !self.tenants.contains_key(&tenant) {
            return Err(refused("an agent or a user names a tenant that does not exist"));
        }
        if new { Ok(()) } else { Err(refused("an agent's or a user's id is another's already")) }
    }

    fn agent_of(&self, tenant: TenantId, id: AgentId) -> Option<&Agent> {
        let others = self.breaks(Mutation::AgentsForOthers);
        self.agents.get(&id).filter(|(owner, _)| *owner == tenant || others).map(|(_, agent)| agent)
    }

    fn statistics_of(&self, id: AgentId) -> AgentStatistics {
        self.agent_counts.get(&id).copied().unwrap_or_default()
    }

    fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Vec<(Agent, AgentStatistics)> {
        let idle_too = !self.breaks(Mutation::IdleAgentsLeftOut);
        let edge = i64::from(self.breaks(Mutation::AgentPageRepeatsItsEdge));
        let before = filter.before.map_or(i64::MAX, |before| before.0 + edge);
        let any_kind = self.breaks(Mutation::AgentsOfAnyKind);
        let any_status = self.breaks(Mutation::AgentsOfAnyStatus);
        let agents = self.agents.range(..AgentId(before));
        let fits = |(id, (owner, agent)): &(&AgentId, &(TenantId, Agent))| {
            *owner == tenant
                && (filter.kind.as_ref().is_none_or(|kind| *kind == agent.kind) || any_kind)
                && (filter.status.is_none_or(|status| status == agent.status) || any_status)
                && (idle_too || self.agent_counts.contains_key(id))
        };
        let found = agents.filter(fits).map(|(id, (_, agent))| (agent.clone(), self.statistics_of(*id)));
        if self.breaks(Mutation::AgentsOldestFirst) {
            return found.take(limit as usize).collect();
        }
        found.rev().take(limit as usize).collect()
    }

    fn set_statuses(
        &mut self,
        tenant: TenantId,
        mut changes: Vec<StatusChange>,
        now_ms: i64,
    ) -> Vec<AgentId> {
        let others = self.breaks(Mutation::StatusesForOthers);
        let known = |id| self.agents.get(&id).is_some_and(|(owner, _)| *owner == tenant || others);
        let mut unknown: Vec<AgentId> = changes.iter().map(|change| change.agent).collect();
        unknown.retain(|id| !known(*id));
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() && !self.breaks(Mutation::StatusesThoughUnknown) {
            return unknown;
        }
        if self.breaks(Mutation::FirstStatusCounts) {
            changes.reverse();
        }
        for change in changes {
            self.set_status(tenant, change.agent, change.status as i64, now_ms);
        }
        unknown
    }
}
