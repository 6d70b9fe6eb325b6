//! The data layer as a running host offers it: agents, users, and questions about many tasks.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::agent::{
    Agent, AgentFilter, AgentPatch, AgentStatistics, AgentStatus, STATISTICS_AGE_MS, StatusChange, User,
    check_name,
};
use keiko_core::cache::{CacheKey, Lifetime, Namespace, Wish};
use keiko_core::code::Code;
use keiko_core::history::{DateRange, Statistics, UserTask};
use keiko_core::name::AgentKind;
use keiko_core::usage::DaySpent;
use keiko_core::{AgentId, TaskId, TenantId, UserId};
use tokio::sync::oneshot;

use crate::cache::{ComputeError, Computed, Computing, Patience};
use crate::handle::Handle;
use crate::request::Error;

/// Unknown ids that the text of an error names; the error itself has all of them.
const NAMED_MAX: usize = 20;

/// An agent as a client asks for it.
#[derive(Clone, Debug)]
pub struct NewAgent {
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub kind: AgentKind,
    /// What it does.
    pub status: AgentStatus,
}

impl Handle {
    /// Stores new agents, in the order of the request.
    pub async fn create_agents(&self, tenant: TenantId, agents: Vec<NewAgent>) -> Result<Vec<Agent>, Error> {
        for agent in &agents {
            check_name(&agent.name).map_err(invalid)?;
        }
        let first = self.ids(agents.len()).await?;
        let now_ms = self.shared.clock.now_ms();
        let agent = |(id, new): (i64, NewAgent)| Agent {
            id: AgentId(id),
            name: new.name,
            kind: new.kind,
            status: new.status,
            created_ms: now_ms,
            updated_ms: now_ms,
        };
        let agents: Vec<Agent> = (first..).zip(agents).map(agent).collect();
        self.shared.agents.create_agents(tenant, agents.clone()).await?;
        Ok(agents)
    }

    /// Changes an agent; the agent as it is now.
    pub async fn update_agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        patch: AgentPatch,
    ) -> Result<Agent, Error> {
        if let Some(name) = &patch.name {
            check_name(name).map_err(invalid)?;
        }
        let now_ms = self.shared.clock.now_ms();
        let agent = self.shared.agents.update_agent(tenant, id, patch, now_ms).await?;
        agent.ok_or_else(|| no_agent(&[id]))
    }

    /// The agents with these ids, in the order of the ids; missing ones are `None`.
    pub async fn agents(&self, tenant: TenantId, ids: &[AgentId]) -> Result<Vec<Option<Agent>>, Error> {
        Ok(self.shared.agents.agents(tenant, ids).await?)
    }

    /// Up to `limit` agents with the statistics of their tasks, newest first.
    pub async fn list_agents(
        &self,
        tenant: TenantId,
        filter: &AgentFilter,
        limit: u32,
    ) -> Result<Vec<(Agent, AgentStatistics)>, Error> {
        Ok(self.shared.agents.list_agents(tenant, filter, limit).await?)
    }

    /// One agent as it is now, with the statistics of its tasks, which may be half an hour old unless `fresh` ones are
    /// asked for: ends of tasks do not touch what is cached. Of all who want them at the same time, on all hosts, one
    /// counts; while that takes long or fails, older ones are good enough for as long as the cache keeps stale values.
    pub async fn agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        fresh: bool,
    ) -> Result<(Agent, AgentStatistics), Error> {
        let (cache, owner) = (&self.shared.cache, self.entry(tenant)?.row(tenant));
        let key = CacheKey::new(&owner, &Namespace::of_host("agents"), &id.to_string())
            .map_err(|error| invalid(error.to_string()))?;
        let Computing { stale_ms, eager, patience } = cache.options().computing;
        let lifetime = Lifetime::of_ms(STATISTICS_AGE_MS);
        let wish = Wish { lifetime, stale_ms, eager, ..Wish::default() };
        if !fresh && let Some(found) = self.counted_agent(tenant, id, &key, &wish, patience).await? {
            return Ok(found);
        }
        let found = self.shared.agents.agent(tenant, id).await?.ok_or_else(|| no_agent(&[id]))?;
        cache.set(&key, Bytes::copy_from_slice(&found.1.encode()), &wish).await;
        Ok(found)
    }

    /// An agent with statistics from the cache, or counted for it; `None` when what is cached cannot be read.
    async fn counted_agent(
        &self,
        tenant: TenantId,
        id: AgentId,
        key: &CacheKey,
        wish: &Wish,
        patience: Patience,
    ) -> Result<Option<(Agent, AgentStatistics)>, Error> {
        let shared = Arc::clone(&self.shared);
        // Whoever counts has read the agent as well.
        let (read, mut just_read) = oneshot::channel();
        let compute = move || {
            async move {
                let found = shared.agents.agent(tenant, id).await.map_err(Error::from)?;
                let value = found.map(|(agent, statistics)| {
                    // A caller that is gone needs no agent.
                    let _ = read.send(agent);
                    Bytes::copy_from_slice(&statistics.encode())
                });
                Ok(Computed { value, wish: None })
            }
            .boxed()
        };
        let counted = self.shared.cache.get_or_compute(key, wish, patience, compute).await;
        let bytes = counted.map_err(|error| match error {
            ComputeError::Failed(error) => error,
            ComputeError::Late => Error::new(Code::StorageBusy, "counting the agent's tasks takes too long"),
        })?;
        let bytes = bytes.ok_or_else(|| no_agent(&[id]))?;
        let Some(statistics) = AgentStatistics::decode(&bytes) else { return Ok(None) };
        let agent = match just_read.try_recv() {
            Ok(agent) => Some(agent),
            Err(_) => self.agents(tenant, &[id]).await?.pop().flatten(),
        };
        Ok(Some((agent.ok_or_else(|| no_agent(&[id]))?, statistics)))
    }

    /// Gives agents new statuses, all or none.
    pub async fn set_statuses(&self, tenant: TenantId, changes: Vec<StatusChange>) -> Result<(), Error> {
        let unknown = self.shared.agents.set_statuses(tenant, changes, self.shared.clock.now_ms()).await?;
        if unknown.is_empty() { Ok(()) } else { Err(no_agent(&unknown)) }
    }

    /// Stores new users of these names, in that order.
    pub async fn create_users(&self, tenant: TenantId, names: Vec<String>) -> Result<Vec<User>, Error> {
        for name in &names {
            check_name(name).map_err(invalid)?;
        }
        let first = self.ids(names.len()).await?;
        let created_ms = self.shared.clock.now_ms();
        let users: Vec<User> =
            (first..).zip(names).map(|(id, name)| User { id: UserId(id), name, created_ms }).collect();
        self.shared.agents.create_users(tenant, users.clone()).await?;
        Ok(users)
    }

    /// A user.
    pub async fn user(&self, tenant: TenantId, id: UserId) -> Result<User, Error> {
        let found = self.shared.agents.users(tenant, &[id]).await?.pop().flatten();
        found.ok_or_else(|| no_user(id))
    }

    /// Up to `limit` users, newest first.
    pub async fn list_users(
        &self,
        tenant: TenantId,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, Error> {
        Ok(self.shared.agents.list_users(tenant, before, limit).await?)
    }

    /// Up to `limit` tasks of a user with agent, user and result, newest first.
    pub async fn user_tasks(
        &self,
        tenant: TenantId,
        user: UserId,
        before: Option<TaskId>,
        limit: u32,
    ) -> Result<Vec<UserTask>, Error> {
        let tasks = self.shared.history.user_tasks(tenant, user, before, limit).await?;
        tasks.ok_or_else(|| no_user(user))
    }

    /// Tasks created in the range by plugin, kind and state.
    pub async fn statistics(&self, tenant: TenantId, range: DateRange) -> Result<Vec<Statistics>, Error> {
        if range.from_ms > range.to_ms {
            return Err(invalid("the range ends before it begins"));
        }
        Ok(self.shared.history.statistics(tenant, range).await?)
    }

    /// What the tenant spent on the days from `from` to `to`, counted from 1970-01-01; what runs of the last second spent
    /// may be missing.
    pub async fn usage(&self, tenant: TenantId, from: i64, to: i64) -> Result<Vec<DaySpent>, Error> {
        Ok(self.shared.usage.usage(tenant, from, to).await?)
    }

    /// The first of so many numbers.
    async fn ids(&self, count: usize) -> Result<i64, Error> {
        let count = u32::try_from(count).map_err(|_| invalid("too many at once"))?;
        Ok(self.shared.ids.take(count).await?.0)
    }
}

fn no_user(id: UserId) -> Error {
    Error::new(Code::NotFound, format!("there is no user {id}"))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, text)
}

fn no_agent(ids: &[AgentId]) -> Error {
    let mut named: Vec<String> = ids.iter().take(NAMED_MAX).map(AgentId::to_string).collect();
    if ids.len() > NAMED_MAX {
        named.push(format!("and {} more", ids.len() - NAMED_MAX));
    }
    let error = Error::new(Code::NotFound, format!("there is no agent {}", named.join(", ")));
    Error { unknown: ids.iter().map(AgentId::to_string).collect(), ..error }
}
