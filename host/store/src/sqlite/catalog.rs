//! Tenants, plugins, versions and kinds.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use keiko_core::catalog::{
    Canary, Cause, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Tenant,
};
use keiko_core::id::{Digest, KindId, PluginId, TenantId, VersionId};
use keiko_core::manifest::Manifest;
use keiko_core::name::{KindName, PluginName, TenantName};
use keiko_core::port::StoreError;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::error::store_error;
use super::generation::{Place, place, swap};
use super::session::{Session, json};
use crate::format::{Undecodable, decode_manifest, read_percent};
use crate::trouble::undecodable;

/// Plugins that are not removed, with their current versions, all their kinds and their open canaries.
const PLUGINS: &str = "SELECT p.id, p.tenant, p.name, v.id, v.name, v.digest, v.component_bytes, v.manifest,
        v.installed_ms, coalesce((SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id), 0),
        p.draining, (SELECT json_group_object(k.name, k.id) FROM kind AS k WHERE k.plugin = p.id) AS kinds,
        c.percent, c.state, w.id, w.name, w.digest, w.component_bytes, w.manifest, w.installed_ms
    FROM plugin AS p JOIN plugin_version AS v ON v.id = p.current AND v.plugin = p.id
    LEFT JOIN plugin_canary AS c ON c.plugin = p.id AND c.state <= 1 AND c.version <> p.current AND c.generation =
        (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id)
    LEFT JOIN plugin_version AS w ON w.id = c.version AND w.plugin = p.id
    WHERE p.removed = 0 AND p.id = coalesce(?1, p.id) ORDER BY p.id";

/// The components of every version of plugins that are not removed.
pub(crate) async fn named(pool: &SqlitePool) -> Result<HashSet<Digest>, StoreError> {
    let query = "SELECT DISTINCT v.digest FROM plugin_version AS v JOIN plugin AS p ON p.id = v.plugin AND p.removed = 0";
    let rows = sqlx::query(query).fetch_all(pool).await.map_err(store_error)?;
    rows.iter().map(|row| read_digest(row, 0)).collect()
}

/// The rows of tenants, made when they are missing.
pub(crate) async fn ensure_tenants(
    session: &mut Session,
    names: &[TenantName],
) -> Result<Vec<Tenant>, StoreError> {
    let texts: Vec<&str> = names.iter().map(TenantName::as_str).collect();
    let query = "INSERT INTO tenant (name) SELECT value FROM json_each(?1) WHERE true ON CONFLICT DO NOTHING;
        INSERT INTO tenant_count (tenant) SELECT id FROM tenant WHERE true ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(json(&texts))).await?;
    let query = "SELECT t.id FROM json_each(?1) AS wanted CROSS JOIN tenant AS t ON t.name = wanted.value
        ORDER BY wanted.key";
    let rows = session.rows(sqlx::query(query).bind(json(&texts))).await?;
    let tenant = |(row, name): (&SqliteRow, &TenantName)| {
        Ok(Tenant { id: TenantId(row.try_get(0)?), name: name.clone() })
    };
    rows.iter().zip(names).map(tenant).collect::<Result<_, _>>().map_err(store_error)
}

/// Makes a version the current one of its plugin.
pub(crate) async fn install(
    session: &mut Session,
    new: &NewVersion,
    now_ms: i64,
) -> Result<Installed, StoreError> {
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
        let query = "UPDATE plugin SET draining = 0 WHERE id = ?1 AND tenant = ?2;
            UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
        session.run(sqlx::query(query).bind(plugin.0).bind(new.tenant.0)).await?;
        return plugin_by_id(session, plugin).await.map(Installed::Current);
    }
    ensure_kinds(session, plugin, new).await?;
    let query = "UPDATE plugin SET removed = 0, draining = 0 WHERE id = ?2 AND tenant = ?1";
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
    let query = "SELECT id FROM plugin WHERE tenant = ?1 AND name = ?2 AND removed = 0";
    let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    let Some(row) = rows.first() else { return Ok(Removed::NotFound) };
    let plugin: i64 = row.try_get(0).map_err(store_error)?;
    // Walks the tenant's live tasks, which the quota bounds, through the two indexes they are in.
    let query = "SELECT (SELECT count(*) FROM task INDEXED BY task_ready WHERE tenant = ?1 AND state = 0
            AND kind IN (SELECT id FROM kind WHERE plugin = ?2))
        + (SELECT count(*) FROM task INDEXED BY task_running WHERE tenant = ?1 AND state = 1
            AND kind IN (SELECT id FROM kind WHERE plugin = ?2))";
    let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(plugin)).await?;
    let live: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(store_error)?;
    let live = live.max(0) as u64;
    if live > 0 && when == RemoveWhen::Idle {
        return Ok(Removed::Busy { live });
    }
    let query = "UPDATE plugin SET removed = ?3, draining = 1 - ?3 WHERE id = ?1 AND tenant = ?2;
        UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
    session.run(sqlx::query(query).bind(plugin).bind(tenant.0).bind(i64::from(live == 0))).await?;
    Ok(if live == 0 { Removed::Removed } else { Removed::Draining { live } })
}

/// Every plugin of every tenant.
pub(crate) async fn plugins(readers: &SqlitePool) -> Result<Vec<Plugin>, StoreError> {
    let rows = sqlx::query(PLUGINS).bind(None::<i64>).fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(read_plugin).collect()
}

/// Where the plugin stands; its row is made when it is missing.
async fn ensure_plugin(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
) -> Result<Place, StoreError> {
    let query = "INSERT INTO plugin (tenant, name) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    place(session, tenant, name).await?.ok_or_else(|| store_error(sqlx::Error::RowNotFound))
}

/// The version's row, which is made when it is missing; or the component that its name stands for.
pub(super) async fn ensure_version(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
    now_ms: i64,
) -> Result<Result<VersionId, Digest>, StoreError> {
    let query = "SELECT id, digest, manifest FROM plugin_version WHERE plugin = ?1 AND name = ?2";
    let query = sqlx::query(query).bind(plugin.0).bind(new.manifest.plugin.version.as_str());
    let rows = session.rows(query).await?;
    let Some(row) = rows.first() else { return insert_version(session, plugin, new, now_ms).await.map(Ok) };
    let digest = read_digest(row, 1)?;
    if digest != new.digest || read_manifest(row, 2)? != *new.manifest {
        return Ok(Err(digest));
    }
    Ok(Ok(VersionId(row.try_get(0).map_err(store_error)?)))
}

/// The rows of a version's kinds, made when they are missing.
pub(super) async fn ensure_kinds(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
) -> Result<(), StoreError> {
    let kinds: Vec<&str> = new.manifest.kinds.iter().map(|kind| kind.name.as_str()).collect();
    let query = "INSERT INTO kind (tenant, plugin, name)
        SELECT ?1, ?2, value FROM json_each(?3) WHERE true ON CONFLICT DO NOTHING";
    session.run(sqlx::query(query).bind(new.tenant.0).bind(plugin.0).bind(json(&kinds))).await
}

async fn insert_version(
    session: &mut Session,
    plugin: PluginId,
    new: &NewVersion,
    now_ms: i64,
) -> Result<VersionId, StoreError> {
    let query =
        "INSERT INTO plugin_version (tenant, plugin, name, digest, component_bytes, manifest, installed_ms)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) RETURNING id";
    let query =
        sqlx::query(query).bind(new.tenant.0).bind(plugin.0).bind(new.manifest.plugin.version.as_str());
    let query = query.bind(&new.digest.0[..]).bind(new.component_bytes as i64);
    let rows = session.rows(query.bind(json(&*new.manifest)).bind(now_ms)).await?;
    let row = rows.first().ok_or_else(|| store_error(sqlx::Error::RowNotFound))?;
    row.try_get(0).map(VersionId).map_err(store_error)
}

pub(crate) async fn plugin_by_id(session: &mut Session, id: PluginId) -> Result<Plugin, StoreError> {
    let rows = session.rows(sqlx::query(PLUGINS).bind(Some(id.0))).await?;
    rows.first().map_or_else(|| Err(store_error(sqlx::Error::RowNotFound)), read_plugin)
}

fn read_plugin(row: &SqliteRow) -> Result<Plugin, StoreError> {
    let kinds: String = row.try_get(11).map_err(store_error)?;
    let kinds: BTreeMap<KindName, i64> =
        serde_json::from_str(&kinds).map_err(|_| undecodable(Undecodable("kind name")))?;
    let generation: i64 = row.try_get(9).map_err(store_error)?;
    Ok(Plugin {
        id: PluginId(row.try_get(0).map_err(store_error)?),
        tenant: TenantId(row.try_get(1).map_err(store_error)?),
        name: read_name(row, 2, "plugin name")?,
        current: read_version(row, 3)?,
        generation: generation.max(0) as u64,
        draining: row.try_get(10).map_err(store_error)?,
        kinds: kinds.into_iter().map(|(name, id)| (name, KindId(id))).collect(),
        canary: read_canary(row)?,
    })
}

fn read_canary(row: &SqliteRow) -> Result<Option<Canary>, StoreError> {
    let percent: Option<i64> = row.try_get(12).map_err(store_error)?;
    let Some(percent) = percent else { return Ok(None) };
    let state: i64 = row.try_get(13).map_err(store_error)?;
    Ok(Some(Canary {
        version: read_version(row, 14)?,
        percent: read_percent(percent).map_err(undecodable)?,
        is_trying: state == 0,
    }))
}

/// A version of a plugin, whose columns begin at `first`: id, name, digest, component_bytes, manifest, installed_ms.
pub(crate) fn read_version(row: &SqliteRow, first: usize) -> Result<PluginVersion, StoreError> {
    let component_bytes: i64 = row.try_get(first + 3).map_err(store_error)?;
    Ok(PluginVersion {
        id: VersionId(row.try_get(first).map_err(store_error)?),
        name: read_name(row, first + 1, "version name")?,
        digest: read_digest(row, first + 2)?,
        component_bytes: component_bytes.max(0) as u64,
        manifest: Arc::new(read_manifest(row, first + 4)?),
        installed_ms: row.try_get(first + 5).map_err(store_error)?,
    })
}

/// A name in a column.
pub(crate) fn read_name<T: std::str::FromStr>(
    row: &SqliteRow,
    column: usize,
    what: &'static str,
) -> Result<T, StoreError> {
    let text: &str = row.try_get(column).map_err(store_error)?;
    text.parse().map_err(|_| undecodable(Undecodable(what)))
}

pub(super) fn read_digest(row: &SqliteRow, column: usize) -> Result<Digest, StoreError> {
    let bytes: &[u8] = row.try_get(column).map_err(store_error)?;
    bytes.try_into().map(Digest).map_err(|_| undecodable(Undecodable("digest")))
}

fn read_manifest(row: &SqliteRow, column: usize) -> Result<Manifest, StoreError> {
    let text: &str = row.try_get(column).map_err(store_error)?;
    decode_manifest(text).map_err(undecodable)
}
