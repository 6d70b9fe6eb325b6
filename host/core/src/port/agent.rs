//! Where agents, users and the history of tasks are kept. Always one tenant's.

use async_trait::async_trait;

use super::StoreError;
use crate::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, StatusChange, User};
use crate::history::{DateRange, Statistics, UserTask};
use crate::id::{AgentId, TaskId, TenantId, UserId};

/// Agents and users.
///
/// Each method is one statement of the database, whatever the number of ids; a test counts them.
#[async_trait]
pub trait Agents: Send + Sync + 'static {
    /// Stores new agents, with ids from the host's reserved ones.
    async fn create_agents(&self, tenant: TenantId, agents: Vec<Agent>) -> Result<(), StoreError>;

    /// Changes an agent; the agent as it is now, or `None` when the tenant has no such one.
    async fn update_agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        patch: AgentPatch,
        now_ms: i64,
    ) -> Result<Option<Agent>, StoreError>;

    /// The agents with these ids, in the order of the ids; missing ones are `None`. An id may be named twice.
    async fn agents(&self, tenant: TenantId, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, StoreError>;

    /// Up to `limit` agents with the statistics of their tasks, newest first; those without tasks appear too.
    async fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Vec<(Agent, AgentStatistics)>, StoreError>;

    /// One agent with the statistics of its tasks.
    async fn agent(
        &self,
        tenant: TenantId,
        id: AgentId,
    ) -> Result<Option<(Agent, AgentStatistics)>, StoreError>;

    /// Gives agents new statuses, all or none: the answer is the unknown ids, and nothing is written when there are
    /// any. Of an agent that is named twice the last counts.
    async fn set_statuses(
        &self,
        tenant: TenantId,
        changes: Vec<StatusChange>,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, StoreError>;

    /// Stores new users, with ids from the host's reserved ones.
    async fn create_users(&self, tenant: TenantId, users: Vec<User>) -> Result<(), StoreError>;

    /// The users with these ids, in the order of the ids; missing ones are `None`.
    async fn users(&self, tenant: TenantId, ids: &[UserId]) -> Result<Vec<Option<User>>, StoreError>;

    /// Up to `limit` users, newest first, older than `before`.
    async fn list_users(
        &self,
        tenant: TenantId,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError>;
}

/// Questions about many tasks at once. Each method is one statement of the database.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Up to `limit` tasks of a user with agent, user and result, newest first, older than `before`; fewer when their
    /// results are more than [`crate::limit::USER_RESULTS_BYTES_MAX`]: then the last one is that with which they are.
    /// `None` when the tenant has no such user.
    async fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Option<Vec<UserTask>>, StoreError>;

    /// Tasks created in the range by plugin, kind and state, in that order.
    async fn statistics(&self, tenant: TenantId, range: DateRange) -> Result<Vec<Statistics>, StoreError>;
}
