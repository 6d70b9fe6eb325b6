//! Tenants, plugins, versions and kinds. Every install and removal goes through the row of the sequence `catalog`, one
//! after the other, and makes it grow.

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::catalog::{
    Canary, Cause, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Tenant,
};
use keiko_core::id::{Digest, KindId, PluginId, TenantId, VersionId};
use keiko_core::manifest::Manifest;
use keiko_core::name::{KindName, PluginName, TenantName};
use keiko_core::port::{StoreError, StoreErrorKind};
use sqlx::postgres::PgRow;

use super::generation::{Place, place, swap};
use super::pool::Pool;
use super::row::{digest, get, large_count, name};
use super::session::Session;
use crate::format::{Undecodable, decode_manifest, read_percent};
use crate::trouble::undecodable;

/// Plugins that are not removed, with their current versions, all their kinds and their open canaries.
const PLUGINS: &str = "SELECT p.id, p.tenant, p.name, v.id, v.name, v.digest, v.component_bytes, v.manifest,
        v.installed_ms, coalesce((SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id), 0),
        p.draining, (SELECT coalesce(json_object_agg(k.name, k.id), '{}')::text FROM kind AS k WHERE k.plugin = p.id) AS kinds,
        c.percent, c.state, w.id, w.name, w.digest, w.component_bytes, w.manifest, w.installed_ms
    FROM plugin AS p JOIN plugin_version AS v ON v.id = p.current AND v.plugin = p.id
    LEFT JOIN plugin_canary AS c ON c.plugin = p.id AND c.state <= 1 AND c.version <> p.current AND c.generation =
        (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id)
    LEFT JOIN plugin_version AS w ON w.id = c.version AND w.plugin = p.id
    WHERE NOT p.removed AND p.id = coalesce($1, p.id) ORDER BY p.id";

/// The rows of tenants, made when they are missing.
pub(crate) async fn ensure_tenants(
    session: &mut Session,
    names: &[TenantName],
) -> Result<Vec<Tenant>, StoreError> {
    let mut wanted: Vec<&str> = names.iter().map(TenantName::as_str).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    // In order, so that two hosts that make the same tenants wait for each other in one direction.
    let query = "INSERT INTO tenant (name) SELECT n FROM unnest($1::text[]) AS n
        WHERE NOT EXISTS (SELECT 1 FROM tenant WHERE name = n) ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(wanted.clone())).await?;
    let query = "INSERT INTO tenant_count (tenant) SELECT id FROM tenant WHERE name = ANY($1)
        AND NOT EXISTS (SELECT 1 FROM tenant_count WHERE tenant = tenant.id) ORDER BY id ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(wanted.clone())).await?;
    let query = "SELECT name, id FROM tenant WHERE name = ANY($1)";
    let mut ids: BTreeMap<String, i64> = BTreeMap::new();
    for row in &session.rows(sqlx::query(query).bind(wanted)).await? {
        ids.insert(get(row, 0)?, get(row, 1)?);
    }
    let tenant = |name: &TenantName| {
        let id = ids.get(name.as_str()).ok_or_else(|| undecodable(Undecodable("tenant")))?;
        Ok(Tenant { id: TenantId(*id), name: name.clone() })
    };
    names.iter().map(tenant).collect()
}

/// Makes a version the current one of its plugin.
pub(crate) async fn install(
    session: &mut Session,
    new: &NewVersion,
    now_ms: i64,
) -> Result<Installed, StoreError> {
    one_after_the_other(session).await?;
    let section = &new.manifest.plugin;
    let place = ensure_plugin(session, new.tenant, &section.name).await?;
    let plugin = place.plugin;
    let version = match ensure_version(session, plugin, new, now_ms).await? {
        Ok(version) => version,
        Err(digest) => return Ok(Installed::VersionTaken { digest }),
    };
    if place.current == Some(version) && !place.draining {
        return plugin_by_id(session, plugin).await.map(Installed::Unchanged);
    }
    if place.current == Some(version) {
        let query = "WITH grown AS (UPDATE sequence SET last = last + 1 WHERE name = 'catalog')
            UPDATE plugin SET draining = false WHERE id = $1 AND tenant = $2";
        session.run(sqlx::query(query).bind(plugin.0).bind(new.tenant.0)).await?;
        return plugin_by_id(session, plugin).await.map(Installed::Current);
    }
    ensure_kinds(session, plugin, new).await?;
    let query = "UPDATE plugin SET removed = false, draining = false WHERE id = $2 AND tenant = $1";
    session.run(sqlx::query(query).bind(new.tenant.0).bind(plugin.0)).await?;
    swap(session, new.tenant, &place, version, Cause::Install, place.latest(), now_ms).await?;
    plugin_by_id(session, plugin).await.map(Installed::Current)
}

/// Takes a plugin away, at once or when its live tasks have ended.
pub(crate) async fn remove(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
    when: RemoveWhen,
) -> Result<Removed, StoreError> {
    one_after_the_other(session).await?;
    let query = "SELECT id FROM plugin WHERE tenant = $1 AND name = $2 AND NOT removed";
    let row = session.row(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    let Some(row) = row else { return Ok(Removed::NotFound) };
    let plugin: i64 = get(&row, 0)?;
    // Walks the tenant's live tasks, which the quota bounds.
    let query = "WITH own AS MATERIALIZED (SELECT id FROM kind WHERE plugin = $2)
        SELECT (SELECT count(*) FROM task WHERE tenant = $1 AND kind = ANY(ARRAY(SELECT id FROM own)))
            + (SELECT coalesce(sum(live), 0) FROM task_segment WHERE tenant = $1 AND kind = ANY(ARRAY(SELECT id FROM own)))";
    let row = session.row(sqlx::query(query).bind(tenant.0).bind(plugin)).await?;
    let live = row.as_ref().map_or(Ok(0), |row| large_count(row, 0))?;
    if live > 0 && when == RemoveWhen::Idle {
        return Ok(Removed::Busy { live });
    }
    let query = "WITH grown AS (UPDATE sequence SET last = last + 1 WHERE name = 'catalog')
        UPDATE plugin SET removed = $3, draining = NOT $3 WHERE id = $1 AND tenant = $2";
    session.run(sqlx::query(query).bind(plugin).bind(tenant.0).bind(live == 0)).await?;
    Ok(if live == 0 { Removed::Removed } else { Removed::Draining { live } })
}

/// Every plugin of every tenant.
pub(crate) async fn plugins(pool: &Pool) -> Result<Vec<Plugin>, StoreError> {
    let rows = pool.system().await?.rows(sqlx::query(PLUGINS).bind(None::<i64>)).await?;
    rows.iter().map(plugin).collect()
}

/// Waits for whoever changes the catalog, and keeps others waiting.
pub(crate) async fn one_after_the_other(session: &mut Session) -> Result<(), StoreError> {
    let query = "SELECT last FROM sequence WHERE name = 'catalog' FOR UPDATE";
    session.row(sqlx::query(query)).await.map(drop)
}

/// Where the plugin stands; its row is made when it is missing.
async fn ensure_plugin(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
) -> Result<Place, StoreError> {
    if let Some(place) = place(session, tenant, name).await? {
        return Ok(place);
    }
    let query = "INSERT INTO plugin (tenant, name) VALUES ($1, $2)";
    session.run(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    place(session, tenant, name).await?.ok_or_else(missing)
}

/// The version's row, which is made when it is missing; or the component that its name stands for.
pub(super) async fn ensure_version(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
    now_ms: i64,
) -> Result<Result<VersionId, Digest>, StoreError> {
    let query = "SELECT id, digest, manifest FROM plugin_version WHERE plugin = $1 AND name = $2";
    let query = sqlx::query(query).bind(plugin.0).bind(new.manifest.plugin.version.as_str());
    let Some(row) = session.row(query).await? else {
        return insert_version(session, plugin, new, now_ms).await.map(Ok);
    };
    let digest = digest(&row, 1)?;
    if digest != new.digest || manifest(&row, 2)? != *new.manifest {
        return Ok(Err(digest));
    }
    Ok(Ok(VersionId(get(&row, 0)?)))
}

/// The rows of a version's kinds, made when they are missing.
pub(super) async fn ensure_kinds(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
) -> Result<(), StoreError> {
    let kinds: Vec<&str> = new.manifest.kinds.iter().map(|kind| kind.name.as_str()).collect();
    let query = "INSERT INTO kind (tenant, plugin, name) SELECT $1, $2, n FROM unnest($3::text[]) AS n
        WHERE NOT EXISTS (SELECT 1 FROM kind WHERE plugin = $2 AND name = n)";
    session.run(sqlx::query(query).bind(new.tenant.0).bind(plugin.0).bind(kinds)).await.map(drop)
}

async fn insert_version(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
    now_ms: i64,
) -> Result<VersionId, StoreError> {
    let query =
        "INSERT INTO plugin_version (tenant, plugin, name, digest, component_bytes, manifest, installed_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id";
    let query =
        sqlx::query(query).bind(new.tenant.0).bind(plugin.0).bind(new.manifest.plugin.version.as_str());
    let manifest = serde_json::to_string(&*new.manifest).expect("numbers and texts always encode");
    let query = query.bind(&new.digest.0[..]).bind(new.component_bytes as i64).bind(manifest).bind(now_ms);
    let row = session.row(query).await?.ok_or_else(missing)?;
    get(&row, 0).map(VersionId)
}

pub(crate) async fn plugin_by_id(session: &mut Session, id: PluginId) -> Result<Plugin, StoreError> {
    let row = session.row(sqlx::query(PLUGINS).bind(Some(id.0))).await?.ok_or_else(missing)?;
    plugin(&row)
}

fn missing() -> StoreError {
    StoreError::new(StoreErrorKind::Internal, "a row that was just written is missing")
}

fn plugin(row: &PgRow) -> Result<Plugin, StoreError> {
    let kinds: BTreeMap<KindName, i64> =
        serde_json::from_str(get(row, 11)?).map_err(|_| undecodable(Undecodable("kind name")))?;
    Ok(Plugin {
        id: PluginId(get(row, 0)?),
        tenant: TenantId(get(row, 1)?),
        name: name(row, 2, "plugin name")?,
        current: version(row, 3)?,
        generation: large_count(row, 9)?,
        draining: get(row, 10)?,
        kinds: kinds.into_iter().map(|(name, id)| (name, KindId(id))).collect(),
        canary: canary(row)?,
    })
}

fn canary(row: &PgRow) -> Result<Option<Canary>, StoreError> {
    let Some(percent) = get::<Option<i16>>(row, 12)? else { return Ok(None) };
    let percent = read_percent(i64::from(percent)).map_err(undecodable)?;
    Ok(Some(Canary { version: version(row, 14)?, percent, is_trying: get::<i16>(row, 13)? == 0 }))
}

/// A version of a plugin, whose columns begin at `first`: id, name, digest, component_bytes, manifest, installed_ms.
pub(crate) fn version(row: &PgRow, first: usize) -> Result<PluginVersion, StoreError> {
    Ok(PluginVersion {
        id: VersionId(get(row, first)?),
        name: name(row, first + 1, "version name")?,
        digest: digest(row, first + 2)?,
        component_bytes: large_count(row, first + 3)?,
        manifest: Arc::new(manifest(row, first + 4)?),
        installed_ms: get(row, first + 5)?,
    })
}

fn manifest(row: &PgRow, column: usize) -> Result<Manifest, StoreError> {
    decode_manifest(get(row, column)?).map_err(undecodable)
}
