//! Agents and users: each method one statement, whatever the number of ids.

use std::collections::{BTreeMap, HashMap, HashSet};

use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, AgentStatus, StatusChange, User};
use keiko_core::id::{AgentId, TenantId, UserId};
use keiko_core::port::StoreError;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::catalog::read_name;
use super::error::store_error;
use super::session::{Session, json};
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// Agents as [`read`] takes them.
macro_rules! columns {
    ($of:literal) => {
        concat!(
            $of,
            "id, ",
            $of,
            "name, ",
            $of,
            "kind, ",
            $of,
            "status, ",
            $of,
            "created_ms, ",
            $of,
            "updated_ms"
        )
    };
}

pub(crate) const BY_IDS: &str = concat!(
    "SELECT ",
    columns!("a."),
    " FROM json_each(?1) AS wanted CROSS JOIN agent AS a ON a.id = wanted.value AND a.tenant = ?2"
);

/// One agent with its statistics; of none when it never had a task.
pub(crate) const ONE: &str = concat!(
    "SELECT ",
    columns!("a."),
    ", c.total, c.completed, c.failed, c.cancelled, c.timed, c.elapsed_us
    FROM agent AS a LEFT JOIN agent_count AS c ON c.agent = a.id WHERE a.id = ?1 AND a.tenant = ?2"
);

/// A page of a tenant's agents: all, by kind, or by kind and status. Those of a status alone are sorted from its few kinds.
pub(crate) fn list_text(filter: &AgentFilter) -> String {
    let (index, kind, status) = match (&filter.kind, filter.status) {
        (None, None) => ("agent_tenant", "", ""),
        (Some(_), None) => ("agent_kind", " AND kind = ?4", ""),
        (None, Some(_)) => ("agent_tenant", "", " AND status = ?5"),
        (Some(_), Some(_)) => ("agent_kind", " AND kind = ?4", " AND status = ?5"),
    };
    format!(
        "SELECT {columns}, c.total, c.completed, c.failed, c.cancelled, c.timed, c.elapsed_us
         FROM (SELECT * FROM agent INDEXED BY {index} WHERE tenant = ?1 AND id < ?2{kind}{status}
            ORDER BY id DESC LIMIT ?3) AS page
         LEFT JOIN agent_count AS c ON c.agent = page.id ORDER BY page.id DESC",
        columns = columns!("page.")
    )
}

/// Gives agents new statuses, all or none, and answers the ids that are known: when some are not, the others keep what
/// they have.
pub(crate) const SET_STATUSES: &str = "
    UPDATE agent NOT INDEXED SET status = iif(complete, wanted_status, agent.status),
        updated_ms = iif(complete, ?3, agent.updated_ms)
    FROM (SELECT k.id AS known, w.value ->> 1 AS wanted_status, count(*) OVER () = json_array_length(?1) AS complete
        FROM json_each(?1) AS w CROSS JOIN agent AS k ON k.id = w.value ->> 0 AND k.tenant = ?2)
    WHERE agent.id = known RETURNING agent.id";

pub(crate) async fn create(
    session: &mut Session,
    tenant: TenantId,
    agents: &[Agent],
) -> Result<(), StoreError> {
    let row = |agent: &Agent| {
        let Agent { id, name, kind, status, created_ms, updated_ms } = agent;
        (id.0, name.clone(), kind.as_str().to_owned(), *status as i64, *created_ms, *updated_ms)
    };
    let rows: Vec<_> = agents.iter().map(row).collect();
    let query = "INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms)
        SELECT value ->> 0, ?2, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(?1)";
    session.run(sqlx::query(query).bind(json(&rows)).bind(tenant.0)).await
}

pub(crate) async fn update(
    session: &mut Session,
    tenant: TenantId,
    id: AgentId,
    patch: &AgentPatch,
    now_ms: i64,
) -> Result<Option<Agent>, StoreError> {
    let query = concat!(
        "UPDATE agent SET name = coalesce(?3, name), kind = coalesce(?4, kind), status = coalesce(?5, status),
            updated_ms = ?6 WHERE id = ?1 AND tenant = ?2 RETURNING ",
        columns!("")
    );
    let query = sqlx::query(query).bind(id.0).bind(tenant.0).bind(patch.name.as_deref());
    let query = query.bind(patch.kind.as_ref().map(|kind| kind.as_str()));
    let rows = session.rows(query.bind(patch.status.map(|status| status as i64)).bind(now_ms)).await?;
    rows.first().map(read).transpose()
}

pub(crate) async fn by_ids(
    readers: &SqlitePool,
    tenant: TenantId,
    ids: &[AgentId],
) -> Result<Vec<Option<Agent>>, StoreError> {
    let wanted: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let query = sqlx::query(BY_IDS).bind(json(&wanted)).bind(tenant.0);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let found = rows.iter().map(|row| read(row).map(|agent| (agent.id, agent)));
    let found: HashMap<AgentId, Agent> = found.collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

pub(crate) async fn list(
    readers: &SqlitePool,
    tenant: TenantId,
    filter: &AgentFilter,
    limit: u32,
) -> Result<Vec<(Agent, AgentStatistics)>, StoreError> {
    let query = sqlx::query(sqlx::AssertSqlSafe(list_text(filter)));
    let query = query.bind(tenant.0).bind(filter.before.map_or(i64::MAX, |id| id.0)).bind(limit);
    let query = query.bind(filter.kind.as_ref().map(|kind| kind.as_str()));
    let query = query.bind(filter.status.map(|status| status as i64));
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(|row| Ok((read(row)?, statistics(row)?))).collect()
}

pub(crate) async fn one(
    readers: &SqlitePool,
    tenant: TenantId,
    id: AgentId,
) -> Result<Option<(Agent, AgentStatistics)>, StoreError> {
    let query = sqlx::query(ONE).bind(id.0).bind(tenant.0);
    let row = query.fetch_optional(readers).await.map_err(store_error)?;
    row.as_ref().map(|row| Ok((read(row)?, statistics(row)?))).transpose()
}

pub(crate) async fn set_statuses(
    session: &mut Session,
    tenant: TenantId,
    changes: &[StatusChange],
    now_ms: i64,
) -> Result<Vec<AgentId>, StoreError> {
    let last: BTreeMap<i64, i64> =
        changes.iter().map(|change| (change.agent.0, change.status as i64)).collect();
    if last.is_empty() {
        return Ok(Vec::new());
    }
    let pairs: Vec<(i64, i64)> = last.iter().map(|(agent, status)| (*agent, *status)).collect();
    let query = sqlx::query(SET_STATUSES).bind(json(&pairs)).bind(tenant.0).bind(now_ms);
    let rows = session.rows(query).await?;
    let known =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<i64>, _>>().map_err(store_error)?;
    Ok(last.into_keys().filter(|id| !known.contains(id)).map(AgentId).collect())
}

pub(crate) async fn create_users(
    session: &mut Session,
    tenant: TenantId,
    users: &[User],
) -> Result<(), StoreError> {
    let rows: Vec<_> = users.iter().map(|user| (user.id.0, user.name.as_str(), user.created_ms)).collect();
    let query = "INSERT INTO app_user (id, tenant, name, created_ms)
        SELECT value ->> 0, ?2, value ->> 1, value ->> 2 FROM json_each(?1)";
    session.run(sqlx::query(query).bind(json(&rows)).bind(tenant.0)).await
}

pub(crate) const USERS_BY_IDS: &str = "SELECT u.id, u.name, u.created_ms FROM json_each(?1) AS wanted
    CROSS JOIN app_user AS u ON u.id = wanted.value AND u.tenant = ?2";

pub(crate) async fn users(
    readers: &SqlitePool,
    tenant: TenantId,
    ids: &[UserId],
) -> Result<Vec<Option<User>>, StoreError> {
    let wanted: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let query = sqlx::query(USERS_BY_IDS).bind(json(&wanted)).bind(tenant.0);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    let found = rows.iter().map(|row| read_user(row).map(|user| (user.id, user)));
    let found: HashMap<UserId, User> = found.collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

pub(crate) const LIST_USERS: &str = "SELECT id, name, created_ms FROM app_user INDEXED BY app_user_tenant
    WHERE tenant = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";

pub(crate) async fn list_users(
    readers: &SqlitePool,
    tenant: TenantId,
    before: Option<UserId>,
    limit: u32,
) -> Result<Vec<User>, StoreError> {
    let query = sqlx::query(LIST_USERS).bind(tenant.0).bind(before.map_or(i64::MAX, |id| id.0)).bind(limit);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(read_user).collect()
}

fn read(row: &SqliteRow) -> Result<Agent, StoreError> {
    read_from(row, 0)
}

/// An agent in six columns from this one on.
pub(crate) fn read_from(row: &SqliteRow, from: usize) -> Result<Agent, StoreError> {
    let status: i64 = row.try_get(from + 3).map_err(store_error)?;
    Ok(Agent {
        id: AgentId(row.try_get(from).map_err(store_error)?),
        name: row.try_get(from + 1).map_err(store_error)?,
        kind: read_name(row, from + 2, "agent kind")?,
        status: AgentStatus::numbered(status).ok_or_else(|| undecodable(Undecodable("agent status")))?,
        created_ms: row.try_get(from + 4).map_err(store_error)?,
        updated_ms: row.try_get(from + 5).map_err(store_error)?,
    })
}

fn statistics(row: &SqliteRow) -> Result<AgentStatistics, StoreError> {
    let number = |column: usize| {
        let number: Option<i64> = row.try_get(column).map_err(store_error)?;
        Ok(number.unwrap_or_default().max(0) as u64)
    };
    Ok(AgentStatistics {
        total: number(6)?,
        completed: number(7)?,
        failed: number(8)?,
        cancelled: number(9)?,
        timed: number(10)?,
        elapsed_us: number(11)?,
    })
}

fn read_user(row: &SqliteRow) -> Result<User, StoreError> {
    let read =
        || Ok(User { id: UserId(row.try_get(0)?), name: row.try_get(1)?, created_ms: row.try_get(2)? });
    read().map_err(store_error)
}
