//! The data layer's seams.

use async_trait::async_trait;
use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, StatusChange, User};
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::port::{Agents, History, StoreError};

use super::{PostgresStore, agents, history};

#[async_trait]
impl Agents for PostgresStore {
    async fn create_agents(&self, tenant: TenantId, agents: Vec<Agent>) -> Result<(), StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        agents::create(&self.0.pool, tenant, &agents).await
    }

    async fn update_agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        patch: AgentPatch,
        now_ms: i64,
    ) -> Result<Option<Agent>, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        agents::update(&self.0.pool, tenant, id, &patch, now_ms).await
    }

    async fn agents(&self, tenant: TenantId, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, StoreError> {
        agents::by_ids(&self.0.pool, tenant, ids).await
    }

    async fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Vec<(Agent, AgentStatistics)>, StoreError> {
        agents::list(&self.0.pool, tenant, filter, limit).await
    }

    async fn agent(
        &self,
        tenant: TenantId,
        id: AgentId,
    ) -> Result<Option<(Agent, AgentStatistics)>, StoreError> {
        agents::one(&self.0.pool, tenant, id).await
    }

    async fn set_statuses(
        &self,
        tenant: TenantId,
        changes: Vec<StatusChange>,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        agents::set_statuses(&self.0.pool, tenant, &changes, now_ms).await
    }

    async fn create_users(&self, tenant: TenantId, users: Vec<User>) -> Result<(), StoreError> {
        let _writing = self.0.pool.writing([tenant]);
        agents::create_users(&self.0.pool, tenant, &users).await
    }

    async fn users(&self, tenant: TenantId, ids: &[UserId]) -> Result<Vec<Option<User>>, StoreError> {
        agents::users(&self.0.pool, tenant, ids).await
    }

    async fn list_users(
        &self,
        tenant: TenantId,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        agents::list_users(&self.0.pool, tenant, before, limit).await
    }
}

#[async_trait]
impl History for PostgresStore {
    async fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Option<Vec<UserTask>>, StoreError> {
        history::user_tasks(&self.0.pool, tenant, user, before, limit).await
    }

    async fn statistics(&self, tenant: TenantId, range: DateRange) -> Result<Vec<Statistics>, StoreError> {
        history::statistics(&self.0.pool, tenant, range).await
    }
}
