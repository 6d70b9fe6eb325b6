//! The swaps of a plugin: which version new attempts run, since when, and the way back.

use keiko_core::catalog::{Activated, Cause, Generation, PluginVersion, Target};
use keiko_core::id::{PluginId, TenantId, VersionId};
use keiko_core::name::PluginName;
use keiko_core::port::StoreError;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;

use super::catalog::{self, one_after_the_other, plugin_by_id};
use super::pool::Pool;
use super::row::{get, large_count};
use super::session::Session;
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// A version by its name, and the generation to go back to from it: the latest.
const NAMED: &str = "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms,
        (SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id)
    FROM plugin AS p JOIN plugin_version AS v ON v.plugin = p.id AND v.tenant = p.tenant
    WHERE p.tenant = $1 AND p.name = $2 AND NOT p.removed AND v.name = $3";

/// The version that the current one took over from, and the generation to go back to from it. When the current version is
/// not that of the latest generation, a host of an older release has swapped, and the latest generation is what it took over
/// from.
const BEFORE: &str = "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms, b.before
    FROM plugin AS p
    JOIN plugin_generation AS g ON g.plugin = p.id
        AND g.generation = (SELECT max(m.generation) FROM plugin_generation AS m WHERE m.plugin = p.id)
    JOIN plugin_generation AS b ON b.plugin = p.id
        AND b.generation = CASE WHEN g.version = p.current THEN g.before ELSE g.generation END
    JOIN plugin_version AS v ON v.id = b.version AND v.plugin = p.id
    WHERE p.tenant = $1 AND p.name = $2 AND NOT p.removed AND $3::text IS NULL";

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
    let query = "SELECT p.id, CASE WHEN NOT p.removed THEN p.current END, p.draining,
            coalesce((SELECT max(g.generation) FROM plugin_generation AS g WHERE g.plugin = p.id), 0)
        FROM plugin AS p WHERE p.tenant = $1 AND p.name = $2";
    let row = session.row(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Place {
        plugin: PluginId(get(&row, 0)?),
        current: get::<Option<i64>>(&row, 1)?.map(VersionId),
        draining: get(&row, 2)?,
        last: get(&row, 3)?,
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
    let query = "WITH grown AS (UPDATE sequence SET last = last + 1 WHERE name = 'catalog'),
        noted AS (INSERT INTO plugin_generation (plugin, generation, tenant, version, cause, at_ms, before)
            VALUES ($1, $2, $3, $4, $5, $6, $7))
        UPDATE plugin SET current = $4 WHERE id = $1 AND tenant = $3";
    let query = sqlx::query(query).bind(place.plugin.0).bind(place.last + 1).bind(tenant.0);
    session.run(query.bind(version.0).bind(cause as i16).bind(now_ms).bind(before)).await.map(drop)
}

fn wanted<'q>(
    tenant: TenantId,
    name: &'q PluginName,
    target: &'q Target,
) -> Query<'q, Postgres, PgArguments> {
    let (text, version) = match target {
        Target::Version(version) => (NAMED, Some(version.as_str())),
        Target::Before => (BEFORE, None),
    };
    sqlx::query(text).bind(tenant.0).bind(name.as_str()).bind(version)
}

/// The version that a target means.
pub(crate) async fn version(
    pool: &Pool,
    tenant: TenantId,
    name: &PluginName,
    target: &Target,
) -> Result<Option<PluginVersion>, StoreError> {
    let row = pool.tenant(tenant).await?.row(wanted(tenant, name, target)).await?;
    row.map(|row| catalog::version(&row, 0)).transpose()
}

/// Makes a version that was installed before the current one.
pub(crate) async fn activate(
    session: &mut Session,
    tenant: TenantId,
    name: &PluginName,
    target: &Target,
    now_ms: i64,
) -> Result<Activated, StoreError> {
    one_after_the_other(session).await?;
    let place = place(session, tenant, name).await?.filter(|place| place.current.is_some());
    let Some(place) = place else { return Ok(Activated::NoPlugin) };
    let row = session.row(wanted(tenant, name, target)).await?;
    let Some(row) = row else { return Ok(Activated::NoVersion) };
    let version = VersionId(get(&row, 0)?);
    if place.current == Some(version) {
        return plugin_by_id(session, place.plugin).await.map(Activated::Unchanged);
    }
    let cause = if *target == Target::Before { Cause::Rollback } else { Cause::Activate };
    swap(session, tenant, &place, version, cause, get(&row, 6)?, now_ms).await?;
    plugin_by_id(session, place.plugin).await.map(Activated::Current)
}

/// Up to `limit` swaps, newest first.
pub(crate) async fn generations(
    pool: &Pool,
    tenant: TenantId,
    name: &PluginName,
    before: Option<u64>,
    limit: u32,
) -> Result<Option<Vec<Generation>>, StoreError> {
    let query =
        "SELECT v.id, v.name, v.digest, v.component_bytes, v.manifest, v.installed_ms, g.generation, g.cause,
            g.at_ms
        FROM plugin AS p JOIN plugin_generation AS g ON g.plugin = p.id AND g.generation < $3
        JOIN plugin_version AS v ON v.id = g.version AND v.plugin = p.id
        WHERE p.tenant = $1 AND p.name = $2 AND NOT p.removed ORDER BY g.generation DESC LIMIT $4";
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let mut connection = pool.tenant(tenant).await?;
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str()).bind(before).bind(i64::from(limit));
    let rows = connection.rows(query).await?;
    if rows.is_empty() {
        let query = "SELECT 1 FROM plugin WHERE tenant = $1 AND name = $2 AND NOT removed";
        let found = connection.row(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
        return Ok(found.map(|_| Vec::new()));
    }
    rows.iter().map(generation).collect::<Result<_, _>>().map(Some)
}

fn generation(row: &PgRow) -> Result<Generation, StoreError> {
    let cause = Cause::numbered(i64::from(get::<i16>(row, 7)?));
    Ok(Generation {
        number: large_count(row, 6)?,
        version: catalog::version(row, 0)?,
        cause: cause.ok_or_else(|| undecodable(Undecodable("cause of a swap")))?,
        at_ms: get(row, 8)?,
    })
}
