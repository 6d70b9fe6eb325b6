//! Agents and users: each method one statement, whatever the number of ids, under the tenant's own role.

use std::collections::{BTreeMap, HashMap};

use keiko_core::agent::{Agent, AgentFilter, AgentPatch, AgentStatistics, AgentStatus, StatusChange, User};
use keiko_core::id::{AgentId, TenantId, UserId};
use keiko_core::port::StoreError;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::pool::Pool;
use super::row::{get, large_count, name, stored_text};
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// An agent as [`read_from`] takes it.
macro_rules! columns {
    () => {
        "a.id, a.name, a.kind, a.status, a.created_ms, a.updated_ms"
    };
}

/// The statistics of an agent; NULL when it never had a task.
macro_rules! statistics {
    () => {
        ", c.total, c.completed, c.failed, c.cancelled, c.timed, c.elapsed_us"
    };
}

pub(crate) const BY_IDS: &str =
    concat!("SELECT ", columns!(), " FROM agent AS a WHERE a.id = ANY ($1::bigint[]) AND a.tenant = $2");

pub(crate) const ONE: &str = concat!(
    "SELECT ",
    columns!(),
    statistics!(),
    " FROM agent AS a LEFT JOIN agent_count AS c ON c.agent = a.id AND c.tenant = a.tenant
    WHERE a.id = $1 AND a.tenant = $2"
);

/// Gives agents new statuses, all or none, and answers the ids that are unknown.
pub(crate) const SET_STATUSES: &str = "
    WITH wanted AS (SELECT * FROM unnest($1::bigint[], $2::smallint[]) AS w (id, status)),
    known AS MATERIALIZED (
        SELECT a.id, w.status FROM agent AS a JOIN wanted AS w ON w.id = a.id WHERE a.tenant = $3
        ORDER BY a.id FOR UPDATE OF a),
    missing AS MATERIALIZED (SELECT id FROM wanted WHERE id NOT IN (SELECT id FROM known)),
    written AS (
        UPDATE agent AS a SET status = k.status, updated_ms = $4 FROM known AS k
        WHERE a.id = k.id AND a.tenant = $3 AND NOT EXISTS (SELECT 1 FROM missing))
    SELECT id FROM missing ORDER BY id";

/// A page of a tenant's agents. Parameters: tenant, before, limit, kind, status.
pub(crate) fn list_text(filter: &AgentFilter) -> String {
    let kind = if filter.kind.is_some() { " AND a.kind = $4" } else { "" };
    let status = if filter.status.is_some() { " AND a.status = $5" } else { "" };
    // Parameters that a filter does not use still have to have a type.
    format!(
        "WITH unused AS (SELECT $4::text, $5::smallint),
         page AS MATERIALIZED (SELECT * FROM agent AS a WHERE a.tenant = $1 AND a.id < $2{kind}{status}
            ORDER BY a.id DESC LIMIT $3)
         SELECT {columns}{statistics} FROM page AS a
         LEFT JOIN agent_count AS c ON c.agent = a.id AND c.tenant = a.tenant ORDER BY a.id DESC",
        columns = columns!(),
        statistics = statistics!()
    )
}

pub(crate) async fn create(pool: &Pool, tenant: TenantId, agents: &[Agent]) -> Result<(), StoreError> {
    let ids: Vec<i64> = agents.iter().map(|agent| agent.id.0).collect();
    let names: Vec<String> = agents.iter().map(|agent| stored_text(&agent.name)).collect();
    let kinds: Vec<&str> = agents.iter().map(|agent| agent.kind.as_str()).collect();
    let statuses: Vec<i16> = agents.iter().map(|agent| agent.status as i16).collect();
    let created: Vec<i64> = agents.iter().map(|agent| agent.created_ms).collect();
    let updated: Vec<i64> = agents.iter().map(|agent| agent.updated_ms).collect();
    let query = "INSERT INTO agent (id, tenant, name, kind, status, created_ms, updated_ms)
        SELECT n.id, $1, n.name, n.kind, n.status, n.created_ms, n.updated_ms
        FROM unnest($2::bigint[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[])
            AS n (id, name, kind, status, created_ms, updated_ms)";
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(query).bind(connection.id().0).bind(ids).bind(names).bind(kinds);
    connection.rows(query.bind(statuses).bind(created).bind(updated)).await.map(drop)
}

pub(crate) async fn update(
    pool: &Pool,
    tenant: TenantId,
    id: AgentId,
    patch: &AgentPatch,
    now_ms: i64,
) -> Result<Option<Agent>, StoreError> {
    let query = concat!(
        "UPDATE agent AS a SET name = coalesce($3, name), kind = coalesce($4, kind), status = coalesce($5, status),
            updated_ms = $6 WHERE id = $1 AND tenant = $2 RETURNING ",
        columns!()
    );
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(query).bind(id.0).bind(connection.id().0);
    let query = query.bind(patch.name.as_deref().map(stored_text));
    let query = query.bind(patch.kind.as_ref().map(|kind| kind.as_str()));
    let row = connection.row(query.bind(patch.status.map(|status| status as i16)).bind(now_ms)).await?;
    row.as_ref().map(|row| read_from(row, 0)).transpose()
}

pub(crate) async fn by_ids(
    pool: &Pool,
    tenant: TenantId,
    ids: &[AgentId],
) -> Result<Vec<Option<Agent>>, StoreError> {
    let wanted: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(BY_IDS).bind(wanted).bind(connection.id().0);
    let rows = connection.rows(query).await?;
    let found = rows.iter().map(|row| read_from(row, 0).map(|agent| (agent.id, agent)));
    let found: HashMap<AgentId, Agent> = found.collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

pub(crate) async fn list(
    pool: &Pool,
    tenant: TenantId,
    filter: &AgentFilter,
    limit: u32,
) -> Result<Vec<(Agent, AgentStatistics)>, StoreError> {
    let query = |tenant: TenantId| {
        let query = sqlx::query(AssertSqlSafe(list_text(filter))).bind(tenant.0);
        let query = query.bind(filter.before.map_or(i64::MAX, |id| id.0)).bind(i64::from(limit));
        let query = query.bind(filter.kind.as_ref().map(|kind| kind.as_str()));
        query.bind(filter.status.map(|status| status as i16))
    };
    let rows = pool.list(tenant, query).await?;
    rows.iter().map(|row| Ok((read_from(row, 0)?, statistics(row)?))).collect()
}

pub(crate) async fn one(
    pool: &Pool,
    tenant: TenantId,
    id: AgentId,
) -> Result<Option<(Agent, AgentStatistics)>, StoreError> {
    let mut connection = pool.by_key(tenant).await?;
    let row = connection.row(sqlx::query(ONE).bind(id.0).bind(connection.id().0)).await?;
    row.as_ref().map(|row| Ok((read_from(row, 0)?, statistics(row)?))).transpose()
}

pub(crate) async fn set_statuses(
    pool: &Pool,
    tenant: TenantId,
    changes: &[StatusChange],
    now_ms: i64,
) -> Result<Vec<AgentId>, StoreError> {
    let last: BTreeMap<i64, i16> =
        changes.iter().map(|change| (change.agent.0, change.status as i16)).collect();
    let (ids, statuses): (Vec<i64>, Vec<i16>) = last.into_iter().unzip();
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(SET_STATUSES).bind(ids).bind(statuses).bind(connection.id().0);
    connection.rows(query.bind(now_ms)).await?.iter().map(|row| get(row, 0).map(AgentId)).collect()
}

pub(crate) async fn create_users(pool: &Pool, tenant: TenantId, users: &[User]) -> Result<(), StoreError> {
    let ids: Vec<i64> = users.iter().map(|user| user.id.0).collect();
    let names: Vec<String> = users.iter().map(|user| stored_text(&user.name)).collect();
    let created: Vec<i64> = users.iter().map(|user| user.created_ms).collect();
    let query = "INSERT INTO app_user (id, tenant, name, created_ms) SELECT n.id, $1, n.name, n.created_ms
        FROM unnest($2::bigint[], $3::text[], $4::bigint[]) AS n (id, name, created_ms)";
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(query).bind(connection.id().0).bind(ids).bind(names).bind(created);
    connection.rows(query).await.map(drop)
}

pub(crate) const USERS_BY_IDS: &str = "SELECT u.id, u.name, u.created_ms FROM app_user AS u
    WHERE u.id = ANY ($1::bigint[]) AND u.tenant = $2";

pub(crate) async fn users(
    pool: &Pool,
    tenant: TenantId,
    ids: &[UserId],
) -> Result<Vec<Option<User>>, StoreError> {
    let wanted: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let mut connection = pool.tenant(tenant).await?;
    let rows = connection.rows(sqlx::query(USERS_BY_IDS).bind(wanted).bind(connection.id().0)).await?;
    let found = rows.iter().map(|row| read_user(row, 0).map(|user| (user.id, user)));
    let found: HashMap<UserId, User> = found.collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

pub(crate) const LIST_USERS: &str = "SELECT u.id, u.name, u.created_ms FROM app_user AS u
    WHERE u.tenant = $1 AND u.id < $2 ORDER BY u.id DESC LIMIT $3";

pub(crate) async fn list_users(
    pool: &Pool,
    tenant: TenantId,
    before: Option<UserId>,
    limit: u32,
) -> Result<Vec<User>, StoreError> {
    let before = before.map_or(i64::MAX, |id| id.0);
    let query = |tenant: TenantId| sqlx::query(LIST_USERS).bind(tenant.0).bind(before).bind(i64::from(limit));
    pool.list(tenant, query).await?.iter().map(|row| read_user(row, 0)).collect()
}

/// An agent in six columns from this one on.
pub(crate) fn read_from(row: &PgRow, from: usize) -> Result<Agent, StoreError> {
    let status = AgentStatus::numbered(i64::from(get::<i16>(row, from + 3)?));
    Ok(Agent {
        id: AgentId(get(row, from)?),
        name: get(row, from + 1)?,
        kind: name(row, from + 2, "agent kind")?,
        status: status.ok_or_else(|| undecodable(Undecodable("agent status")))?,
        created_ms: get(row, from + 4)?,
        updated_ms: get(row, from + 5)?,
    })
}

fn statistics(row: &PgRow) -> Result<AgentStatistics, StoreError> {
    if get::<Option<i64>>(row, 6)?.is_none() {
        return Ok(AgentStatistics::default());
    }
    Ok(AgentStatistics {
        total: large_count(row, 6)?,
        completed: large_count(row, 7)?,
        failed: large_count(row, 8)?,
        cancelled: large_count(row, 9)?,
        timed: large_count(row, 10)?,
        elapsed_us: large_count(row, 11)?,
    })
}

/// A user in three columns from this one on.
pub(crate) fn read_user(row: &PgRow, from: usize) -> Result<User, StoreError> {
    Ok(User { id: UserId(get(row, from)?), name: get(row, from + 1)?, created_ms: get(row, from + 2)? })
}
