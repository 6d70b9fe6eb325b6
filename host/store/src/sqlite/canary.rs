//! How canaries stand: which version tries, how far it is, and its verdict.

use async_trait::async_trait;
use keiko_core::canary::{Entry, News, Standing, State};
use keiko_core::catalog::{Begun, Candidate, Tried};
use keiko_core::id::{PluginId, TenantId, VersionId};
use keiko_core::name::PluginName;
use keiko_core::port::{CanaryStore, StoreError};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::SqliteStore;
use super::catalog::{ensure_kinds, ensure_version, plugin_by_id, read_name};
use super::error::store_error;
use super::generation::place;
use super::session::Session;
use crate::format::{Undecodable, decode_trial, encode_trial, read_percent};
use crate::transaction::Priority;
use crate::trouble::undecodable;

/// A canary that no swap has ended.
const STANDING: &str =
    "SELECT c.state, c.touched, c.touched_ms, c.since_ms, c.trial, c.failure FROM plugin_canary AS c
    WHERE c.plugin = ?1 AND c.tenant = ?2 AND c.version = ?3
        AND c.generation = (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = c.plugin)";

#[async_trait]
impl CanaryStore for SqliteStore {
    async fn begin_canary(
        &self,
        tenant: TenantId,
        candidate: Candidate,
        percent: u8,
        now_ms: i64,
    ) -> Result<Begun, StoreError> {
        self.write(Priority::Background, 0, candidate, move |session, candidate| {
            Box::pin(begin(session, tenant, candidate, percent, now_ms))
        })
        .await
    }

    async fn withdraw_canary(
        &self,
        tenant: TenantId,
        name: &PluginName,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.write(Priority::Background, 0, name.clone(), move |session, name| {
            Box::pin(withdraw(session, tenant, name, now_ms))
        })
        .await
    }

    async fn enter_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        patience_ms: i64,
        now_ms: i64,
    ) -> Result<Entry, StoreError> {
        self.write(Priority::Task, 0, (), move |session, ()| {
            Box::pin(enter(session, tenant, plugin, canary, patience_ms, now_ms))
        })
        .await
    }

    async fn tell_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        news: News,
        now_ms: i64,
    ) -> Result<Option<State>, StoreError> {
        self.write(Priority::Task, 0, news, move |session, news| {
            Box::pin(tell(session, tenant, plugin, canary, news, now_ms))
        })
        .await
    }

    async fn canary(&self, tenant: TenantId, name: &PluginName) -> Result<Option<Tried>, StoreError> {
        last(&self.0.readers, tenant, name).await
    }
}

/// Gives a part of a plugin's tasks and batches to a version, instead of any canary before.
async fn begin(
    session: &mut Session,
    tenant: TenantId,
    candidate: &Candidate,
    percent: u8,
    now_ms: i64,
) -> Result<Begun, StoreError> {
    let name = match candidate {
        Candidate::Named(name, _) => name,
        Candidate::New(new) => &new.manifest.plugin.name,
    };
    let place = place(session, tenant, name).await?.filter(|place| place.current.is_some());
    let Some(place) = place else { return Ok(Begun::NoPlugin) };
    let plugin = place.plugin;
    let version = match candidate {
        Candidate::Named(_, version) => {
            let query = "SELECT id FROM plugin_version WHERE plugin = ?1 AND name = ?2";
            let rows = session.rows(sqlx::query(query).bind(plugin.0).bind(version.as_str())).await?;
            let Some(row) = rows.first() else { return Ok(Begun::NoVersion) };
            VersionId(row.try_get(0).map_err(store_error)?)
        }
        Candidate::New(new) => {
            let version = match ensure_version(session, plugin, new, now_ms).await? {
                Ok(version) => version,
                Err(digest) => return Ok(Begun::VersionTaken { digest }),
            };
            ensure_kinds(session, plugin, new).await?;
            version
        }
    };
    if place.current == Some(version) {
        return plugin_by_id(session, plugin).await.map(Begun::IsCurrent);
    }
    let query = "INSERT INTO plugin_canary (plugin, tenant, version, generation, percent, state, touched, touched_ms, since_ms,
            trial)
        VALUES (?1, ?2, ?3, (SELECT max(generation) FROM plugin_generation WHERE plugin = ?1), ?4, ?5, ?6, ?7, ?7, ?8)
        ON CONFLICT (plugin) DO UPDATE SET version = excluded.version, generation = excluded.generation,
            percent = excluded.percent, state = excluded.state, touched = excluded.touched,
            touched_ms = excluded.touched_ms, since_ms = excluded.since_ms, trial = excluded.trial, failure = NULL;
        UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
    let new = Standing::new(now_ms);
    let query = sqlx::query(query).bind(plugin.0).bind(tenant.0).bind(version.0).bind(i64::from(percent));
    let query = query.bind(new.state as i64).bind(i64::from(new.touched)).bind(now_ms);
    session.run(query.bind(encode_trial(&new.trial))).await?;
    plugin_by_id(session, plugin).await.map(Begun::Canary)
}

/// Takes a plugin's canary back.
async fn withdraw(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let query = "UPDATE plugin_canary SET state = ?3, since_ms = ?4 WHERE tenant = ?1 AND state <= 1
            AND plugin = (SELECT id FROM plugin WHERE tenant = ?1 AND name = ?2 AND removed = 0)
            AND generation = (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = plugin_canary.plugin)
        RETURNING 1";
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str()).bind(State::Withdrawn as i64);
    if session.rows(query.bind(now_ms)).await?.is_empty() {
        return Ok(false);
    }
    session.run(sqlx::query("UPDATE sequence SET last = last + 1 WHERE name = 'catalog'")).await?;
    Ok(true)
}

/// Lets a task or a batch try a canary, if it may.
async fn enter(
    session: &mut Session,
    tenant: TenantId,
    plugin: PluginId,
    canary: VersionId,
    patience_ms: i64,
    now_ms: i64,
) -> Result<Entry, StoreError> {
    let Some(mut standing) = standing(session, tenant, plugin, canary).await? else {
        return Ok(Entry::Closed);
    };
    let before = standing.clone();
    let entry = standing.enter(patience_ms, now_ms);
    if standing != before {
        keep(session, tenant, plugin, &before, &standing).await?;
    }
    Ok(entry)
}

/// Takes in what became of a task or a batch that was let in.
async fn tell(
    session: &mut Session,
    tenant: TenantId,
    plugin: PluginId,
    canary: VersionId,
    news: &News,
    now_ms: i64,
) -> Result<Option<State>, StoreError> {
    let Some(mut standing) = standing(session, tenant, plugin, canary).await? else { return Ok(None) };
    let before = standing.clone();
    let is_verdict = standing.tell(news.clone(), now_ms);
    keep(session, tenant, plugin, &before, &standing).await?;
    Ok(is_verdict.then_some(standing.state))
}

async fn standing(
    session: &mut Session,
    tenant: TenantId,
    plugin: PluginId,
    canary: VersionId,
) -> Result<Option<Standing>, StoreError> {
    let query = sqlx::query(STANDING).bind(plugin.0).bind(tenant.0).bind(canary.0);
    session.rows(query).await?.first().map(|row| read_standing(row, 0)).transpose()
}

async fn keep(
    session: &mut Session,
    tenant: TenantId,
    plugin: PluginId,
    before: &Standing,
    now: &Standing,
) -> Result<(), StoreError> {
    let query = "UPDATE plugin_canary SET state = ?3, touched = ?4, touched_ms = ?5, since_ms = ?6, trial = ?7, failure = ?8
            WHERE plugin = ?1 AND tenant = ?2;
        UPDATE sequence SET last = last + ?9 WHERE name = 'catalog'";
    let query = sqlx::query(query).bind(plugin.0).bind(tenant.0).bind(now.state as i64);
    let query = query.bind(i64::from(now.touched)).bind(now.touched_ms).bind(now.since_ms);
    let query = query.bind(encode_trial(&now.trial)).bind(now.failure.as_deref());
    session.run(query.bind(i64::from(before.state != now.state))).await
}

/// The last canary of a plugin.
async fn last(
    readers: &SqlitePool,
    tenant: TenantId,
    name: &PluginName,
) -> Result<Option<Tried>, StoreError> {
    let query =
        "SELECT v.name, c.percent, c.generation < (SELECT max(g.generation) FROM plugin_generation AS g
            WHERE g.plugin = p.id), c.state, c.touched, c.touched_ms, c.since_ms, c.trial, c.failure
        FROM plugin AS p JOIN plugin_canary AS c ON c.plugin = p.id AND c.tenant = p.tenant
        JOIN plugin_version AS v ON v.id = c.version AND v.plugin = p.id
        WHERE p.tenant = ?1 AND p.name = ?2 AND p.removed = 0";
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str());
    let Some(row) = query.fetch_optional(readers).await.map_err(store_error)? else { return Ok(None) };
    Ok(Some(Tried {
        version: read_name(&row, 0, "version name")?,
        percent: read_percent(row.try_get(1).map_err(store_error)?).map_err(undecodable)?,
        is_over: row.try_get(2).map_err(store_error)?,
        standing: read_standing(&row, 3)?,
    }))
}

/// Columns from `first` on: state, touched, touched_ms, since_ms, trial, failure.
fn read_standing(row: &SqliteRow, first: usize) -> Result<Standing, StoreError> {
    let (state, touched): (i64, i64) =
        (row.try_get(first).map_err(store_error)?, row.try_get(first + 1).map_err(store_error)?);
    let trial: &str = row.try_get(first + 4).map_err(store_error)?;
    Ok(Standing {
        state: State::numbered(state).ok_or_else(|| undecodable(Undecodable("state of a canary")))?,
        touched: u32::try_from(touched).map_err(|_| undecodable(Undecodable("count of a canary")))?,
        touched_ms: row.try_get(first + 2).map_err(store_error)?,
        since_ms: row.try_get(first + 3).map_err(store_error)?,
        trial: decode_trial(trial).map_err(undecodable)?,
        failure: row.try_get(first + 5).map_err(store_error)?,
    })
}
