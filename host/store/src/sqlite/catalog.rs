//! Tenants, plugins, versions and kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use keiko_core::catalog::{Installed, NewVersion, Plugin, PluginVersion, Removed, Tenant};
use keiko_core::id::{Digest, KindId, PluginId, TenantId, VersionId};
use keiko_core::manifest::Manifest;
use keiko_core::name::{KindName, PluginName, TenantName};
use keiko_core::port::StoreError;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::error::store_error;
use super::session::{Session, json};
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// Plugins that are not removed, with their current versions and all their kinds.
const PLUGINS: &str = "SELECT p.id, p.tenant, p.name, v.id, v.name, v.digest, v.component_bytes, v.manifest,
        v.installed_ms,
        (SELECT json_group_object(k.name, k.id) FROM kind AS k WHERE k.plugin = p.id) AS kinds
    FROM plugin AS p JOIN plugin_version AS v ON v.id = p.current AND v.plugin = p.id
    WHERE p.removed = 0 AND p.id = coalesce(?1, p.id) ORDER BY p.id";

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
    let (plugin, current) = ensure_plugin(session, new.tenant, &section.name).await?;
    let query = "SELECT id, digest, manifest FROM plugin_version WHERE plugin = ?1 AND name = ?2";
    let query = sqlx::query(query).bind(plugin.0).bind(section.version.as_str());
    let version = match session.rows(query).await?.first() {
        None => insert_version(session, plugin, new, now_ms).await?,
        Some(row) => {
            let digest = read_digest(row, 1)?;
            if digest != new.digest || read_manifest(row, 2)? != *new.manifest {
                return Ok(Installed::VersionTaken { digest });
            }
            VersionId(row.try_get(0).map_err(store_error)?)
        }
    };
    if current == Some(version) {
        return plugin_by_id(session, plugin).await.map(Installed::Unchanged);
    }
    let kinds: Vec<&str> = new.manifest.kinds.iter().map(|kind| kind.name.as_str()).collect();
    let query = "INSERT INTO kind (tenant, plugin, name)
            SELECT ?1, ?2, value FROM json_each(?3) WHERE true ON CONFLICT DO NOTHING;
        UPDATE plugin SET current = ?4, removed = 0 WHERE id = ?2 AND tenant = ?1;
        UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
    let query = sqlx::query(query).bind(new.tenant.0).bind(plugin.0).bind(json(&kinds)).bind(version.0);
    session.run(query).await?;
    plugin_by_id(session, plugin).await.map(Installed::Current)
}

/// Takes a plugin away unless it has live tasks.
pub(crate) async fn remove(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
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
    if live > 0 {
        return Ok(Removed::Busy { live: live as u64 });
    }
    let query = "UPDATE plugin SET removed = 1 WHERE id = ?1 AND tenant = ?2;
        UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
    session.run(sqlx::query(query).bind(plugin).bind(tenant.0)).await?;
    Ok(Removed::Removed)
}

/// Every plugin of every tenant.
pub(crate) async fn plugins(readers: &SqlitePool) -> Result<Vec<Plugin>, StoreError> {
    let rows = sqlx::query(PLUGINS).bind(None::<i64>).fetch_all(readers).await.map_err(store_error)?;
    rows.iter().map(read_plugin).collect()
}

/// The plugin's row, made when it is missing, and its current version unless it was removed.
async fn ensure_plugin(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
) -> Result<(PluginId, Option<VersionId>), StoreError> {
    let query = "INSERT INTO plugin (tenant, name) VALUES (?1, ?2) ON CONFLICT DO NOTHING;
        SELECT id, iif(removed = 0, current, NULL) FROM plugin WHERE tenant = ?1 AND name = ?2";
    let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    let row = rows.first().ok_or_else(|| store_error(sqlx::Error::RowNotFound))?;
    let current: Option<i64> = row.try_get(1).map_err(store_error)?;
    Ok((PluginId(row.try_get(0).map_err(store_error)?), current.map(VersionId)))
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

async fn plugin_by_id(session: &mut Session, id: PluginId) -> Result<Plugin, StoreError> {
    let rows = session.rows(sqlx::query(PLUGINS).bind(Some(id.0))).await?;
    rows.first().map_or_else(|| Err(store_error(sqlx::Error::RowNotFound)), read_plugin)
}

fn read_plugin(row: &SqliteRow) -> Result<Plugin, StoreError> {
    let kinds: String = row.try_get(9).map_err(store_error)?;
    let kinds: BTreeMap<KindName, i64> =
        serde_json::from_str(&kinds).map_err(|_| undecodable(Undecodable("kind name")))?;
    let component_bytes: i64 = row.try_get(6).map_err(store_error)?;
    Ok(Plugin {
        id: PluginId(row.try_get(0).map_err(store_error)?),
        tenant: TenantId(row.try_get(1).map_err(store_error)?),
        name: read_name(row, 2, "plugin name")?,
        current: PluginVersion {
            id: VersionId(row.try_get(3).map_err(store_error)?),
            name: read_name(row, 4, "version name")?,
            digest: read_digest(row, 5)?,
            component_bytes: component_bytes.max(0) as u64,
            manifest: Arc::new(read_manifest(row, 7)?),
            installed_ms: row.try_get(8).map_err(store_error)?,
        },
        kinds: kinds.into_iter().map(|(name, id)| (name, KindId(id))).collect(),
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

fn read_digest(row: &SqliteRow, column: usize) -> Result<Digest, StoreError> {
    let bytes: &[u8] = row.try_get(column).map_err(store_error)?;
    bytes.try_into().map(Digest).map_err(|_| undecodable(Undecodable("digest")))
}

fn read_manifest(row: &SqliteRow, column: usize) -> Result<Manifest, StoreError> {
    let text: &str = row.try_get(column).map_err(store_error)?;
    serde_json::from_str(text).map_err(|_| undecodable(Undecodable("manifest")))
}
