//! The swaps of a plugin: which version new attempts run, since when, and the way back.

use keiko_core::catalog::{Activated, Cause, Generation, PluginVersion, Target};
use keiko_core::id::{PluginId, TenantId, VersionId};
use keiko_core::name::PluginName;
use keiko_core::port::StoreError;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{Row, Sqlite};

use super::catalog::{plugin_by_id, read_version};
use super::error::store_error;
use super::session::Session;
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// A version by its name, and the generation to go back to from it: the latest.
const NAMED: &str = "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms,
        (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id)
    FROM plugin AS p JOIN plugin_version AS v ON v.plugin = p.id AND v.tenant = p.tenant
    WHERE p.tenant = ?1 AND p.name = ?2 AND p.removed = 0 AND v.name = ?3";

/// The version that the current one took over from, and the generation to go back to from it. When the current version is
/// not that of the latest generation, a host of an older release has swapped, and the latest generation is what it took over
/// from.
const BEFORE: &str = "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms, b.before
    FROM plugin AS p
    JOIN plugin_generation AS g ON g.plugin = p.id
        AND g.generation = (SELECT max(m.generation) FROM plugin_generation AS m WHERE m.plugin = p.id)
    JOIN plugin_generation AS b ON b.plugin = p.id
        AND b.generation = iif(g.version = p.current, g.before, g.generation)
    JOIN plugin_version AS v ON v.id = b.version AND v.plugin = p.id
    WHERE p.tenant = ?1 AND p.name = ?2 AND p.removed = 0 AND ?3 IS NULL";

/// Where a plugin stands.
pub(crate) struct Place {
    pub(crate) plugin: PluginId,
    /// Its current version, unless it was removed.
    pub(crate) current: Option<VersionId>,
    pub(crate) draining: bool,
    last: i64,
}

impl Place {
    /// The generation to go back to from the next; none when the plugin is new or comes back from a removal.
    pub(crate) fn latest(&self) -> Option<i64> {
        self.current.map(|_| self.last)
    }
}

/// Where a plugin stands, if there is or was one.
pub(crate) async fn place(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
) -> Result<Option<Place>, StoreError> {
    let query = "SELECT p.id, iif(p.removed = 0, p.current, NULL), p.draining,
            coalesce((SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id), 0)
        FROM plugin AS p WHERE p.tenant = ?1 AND p.name = ?2";
    let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let current: Option<i64> = row.try_get(1).map_err(store_error)?;
    Ok(Some(Place {
        plugin: PluginId(row.try_get(0).map_err(store_error)?),
        current: current.map(VersionId),
        draining: row.try_get(2).map_err(store_error)?,
        last: row.try_get(3).map_err(store_error)?,
    }))
}

/// Makes a version the current one, as the next generation.
pub(crate) async fn swap(
    session: &mut Session,
    tenant: TenantId,
    place: &Place,
    version: VersionId,
    cause: Cause,
    before: Option<i64>,
    now_ms: i64,
) -> Result<(), StoreError> {
    let query = "INSERT INTO plugin_generation (plugin, generation, tenant, version, cause, at_ms, before)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7);
        UPDATE plugin SET current = ?4 WHERE id = ?1 AND tenant = ?3;
        UPDATE sequence SET last = last + 1 WHERE name = 'catalog'";
    let query = sqlx::query(query).bind(place.plugin.0).bind(place.last + 1).bind(tenant.0);
    session.run(query.bind(version.0).bind(cause as i64).bind(now_ms).bind(before)).await
}

fn wanted<'q>(
    tenant: TenantId,
    name: &'q PluginName,
    target: &'q Target,
) -> Query<'q, Sqlite, SqliteArguments> {
    let (text, version) = match target {
        Target::Version(version) => (NAMED, Some(version.as_str())),
        Target::Before => (BEFORE, None),
    };
    sqlx::query(text).bind(tenant.0).bind(name.as_str()).bind(version)
}

/// The version that a target means.
pub(crate) async fn version(
    readers: &SqlitePool,
    tenant: TenantId,
    name: &PluginName,
    target: &Target,
) -> Result<Option<PluginVersion>, StoreError> {
    let row = wanted(tenant, name, target).fetch_optional(readers).await.map_err(store_error)?;
    row.map(|row| read_version(&row, 0)).transpose()
}

/// Makes a version that was installed before the current one.
pub(crate) async fn activate(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
    target: &Target,
    now_ms: i64,
) -> Result<Activated, StoreError> {
    let place = place(session, tenant, name).await?.filter(|place| place.current.is_some());
    let Some(place) = place else { return Ok(Activated::NoPlugin) };
    let rows = session.rows(wanted(tenant, name, target)).await?;
    let Some(row) = rows.first() else { return Ok(Activated::NoVersion) };
    let version = VersionId(row.try_get(0).map_err(store_error)?);
    if place.current == Some(version) {
        return plugin_by_id(session, place.plugin).await.map(Activated::Unchanged);
    }
    let cause = if *target == Target::Before { Cause::Rollback } else { Cause::Activate };
    let before = row.try_get(6).map_err(store_error)?;
    swap(session, tenant, &place, version, cause, before, now_ms).await?;
    plugin_by_id(session, place.plugin).await.map(Activated::Current)
}

/// Up to `limit` swaps, newest first.
pub(crate) async fn generations(
    readers: &SqlitePool,
    tenant: TenantId,
    name: &PluginName,
    before: Option<u64>,
    limit: u32,
) -> Result<Option<Vec<Generation>>, StoreError> {
    let query =
        "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms, g.generation, g.cause,
            g.at_ms
        FROM plugin AS p JOIN plugin_generation AS g ON g.plugin = p.id AND g.generation < ?3
        JOIN plugin_version AS v ON v.id = g.version AND v.plugin = p.id
        WHERE p.tenant = ?1 AND p.name = ?2 AND p.removed = 0 ORDER BY g.generation DESC LIMIT ?4";
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str()).bind(before).bind(limit);
    let rows = query.fetch_all(readers).await.map_err(store_error)?;
    if rows.is_empty() {
        let query = "SELECT 1 FROM plugin WHERE tenant = ?1 AND name = ?2 AND removed = 0";
        let query = sqlx::query(query).bind(tenant.0).bind(name.as_str());
        let found = query.fetch_optional(readers).await.map_err(store_error)?;
        return Ok(found.map(|_| Vec::new()));
    }
    let generation = |row| {
        let row: &sqlx::sqlite::SqliteRow = row;
        let (number, cause): (i64, i64) =
            (row.try_get(6).map_err(store_error)?, row.try_get(7).map_err(store_error)?);
        Ok(Generation {
            number: number.max(0) as u64,
            version: read_version(row, 0)?,
            cause: Cause::numbered(cause).ok_or_else(|| undecodable(Undecodable("cause of a swap")))?,
            at_ms: row.try_get(8).map_err(store_error)?,
        })
    };
    rows.iter().map(generation).collect::<Result<_, _>>().map(Some)
}
