//! The data layer's seams. Of the readers a tenant has at most half, so that it cannot keep the others out.

use async_trait::async_trait;
use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, StatusChange, User};
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::port::{Agents, History, StoreError};

use super::{SqliteStore, agents, history};
use crate::transaction::Priority;

#[async_trait]
impl Agents for SqliteStore {
    async fn create_agents(&self, tenant: TenantId, agents: Vec<Agent>) -> Result<(), StoreError> {
        self.write(Priority::Task, 0, agents, move |session, agents| {
            Box::pin(agents::create(session, tenant, agents))
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
        self.write(Priority::Task, 0, patch, move |session, patch| {
            Box::pin(agents::update(session, tenant, id, patch, now_ms))
        })
        .await
    }

    async fn agents(&self, tenant: TenantId, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        agents::by_ids(&self.0.readers, tenant, ids).await
    }

    async fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Vec<(Agent, AgentStatistics)>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        agents::list(&self.0.readers, tenant, filter, limit).await
    }

    async fn agent(
        &self,
        tenant: TenantId,
        id: AgentId,
    ) -> Result<Option<(Agent, AgentStatistics)>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        agents::one(&self.0.readers, tenant, id).await
    }

    async fn set_statuses(
        &self,
        tenant: TenantId,
        changes: Vec<StatusChange>,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, StoreError> {
        self.write(Priority::Task, 0, changes, move |session, changes| {
            Box::pin(agents::set_statuses(session, tenant, changes, now_ms))
        })
        .await
    }

    async fn create_users(&self, tenant: TenantId, users: Vec<User>) -> Result<(), StoreError> {
        self.write(Priority::Task, 0, users, move |session, users| {
            Box::pin(agents::create_users(session, tenant, users))
        })
        .await
    }

    async fn users(&self, tenant: TenantId, ids: &[UserId]) -> Result<Vec<Option<User>>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        agents::users(&self.0.readers, tenant, ids).await
    }

    async fn list_users(
        &self,
        tenant: TenantId,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        agents::list_users(&self.0.readers, tenant, before, limit).await
    }
}

#[async_trait]
impl History for SqliteStore {
    async fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Option<Vec<UserTask>>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        history::user_tasks(&self.0.readers, tenant, user, before, limit).await
    }

    async fn statistics(&self, tenant: TenantId, range: DateRange) -> Result<Vec<Statistics>, StoreError> {
        let _place = self.0.places.take(tenant).await;
        history::statistics(&self.0.readers, tenant, range).await
    }
}
