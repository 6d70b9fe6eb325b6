//! Tenants, plugins, versions, kinds, and components by digest.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::catalog::{Installed, NewVersion, Plugin, PluginVersion, Removed, Tenant};
use keiko_core::id::{Digest, KindId, PluginId, TenantId, VersionId};
use keiko_core::name::{KindName, PluginName, TenantName};
use keiko_core::port::{CatalogStore, Components, StoreError, StoreErrorKind};

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::{KindRow, PluginRow, State, TenantRow, VersionRow, refused};

#[async_trait]
impl CatalogStore for MemoryStore {
    async fn ensure_tenants(&self, names: &[TenantName]) -> Result<Vec<Tenant>, StoreError> {
        self.call(|state| Ok(names.iter().map(|name| state.ensure_tenant(name)).collect())).await
    }

    async fn install(&self, version: NewVersion, now_ms: i64) -> Result<Installed, StoreError> {
        self.call(|state| state.install(&version, now_ms)).await
    }

    async fn remove(&self, tenant: TenantId, name: &PluginName) -> Result<Removed, StoreError> {
        self.call(|state| Ok(state.remove(tenant, name))).await
    }

    async fn plugins(&self) -> Result<Vec<Plugin>, StoreError> {
        self.call(|state| {
            let removed_too = state.breaks(Mutation::RemovedStillListed);
            let kept = state.plugins.iter().filter(|(_, plugin)| !plugin.removed || removed_too);
            Ok(kept.filter_map(|(id, _)| state.plugin(*id)).collect())
        })
        .await
    }
}

#[async_trait]
impl Components for MemoryStore {
    async fn put(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        self.call(|state| {
            if state.breaks(Mutation::ComponentLost) {
                state.components.clear();
            }
            state.components.entry(digest).or_insert(bytes);
            Ok(())
        })
        .await
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.call(|state| Ok(state.components.get(&digest).cloned())).await
    }
}

/// The number of the next row.
fn next<K: Copy + Ord, V>(rows: &BTreeMap<K, V>, number: impl Fn(K) -> i64) -> i64 {
    rows.last_key_value().map_or(1, |(last, _)| number(*last) + 1)
}

impl State {
    fn ensure_tenant(&mut self, name: &TenantName) -> Tenant {
        let known = self.tenants.iter().find(|(_, row)| row.name == *name).map(|(id, _)| *id);
        let known = known.filter(|_| !self.breaks(Mutation::TenantsMadeAnew));
        let id = known.unwrap_or_else(|| {
            let id = TenantId(next(&self.tenants, |id| id.0));
            let row = TenantRow { name: name.clone(), live: 0, completed: 0, failed: 0, cancelled: 0 };
            self.tenants.insert(id, row);
            id
        });
        Tenant { id, name: name.clone() }
    }

    fn install(&mut self, new: &NewVersion, now_ms: i64) -> Result<Installed, StoreError> {
        if !self.tenants.contains_key(&new.tenant) {
            return Err(refused("a plugin names a tenant that does not exist"));
        }
        let section = &new.manifest.plugin;
        let plugin = self.ensure_plugin(new.tenant, &section.name);
        let named = |row: &VersionRow| row.plugin == plugin && row.name == section.version;
        let version = match self.versions.iter().find(|(_, row)| named(row)).map(|(id, row)| (*id, row)) {
            None => self.insert_version(plugin, new, now_ms),
            Some((id, row)) if row.digest == new.digest && row.manifest == new.manifest => id,
            Some((id, _)) if self.breaks(Mutation::VersionReplaced) => {
                self.versions.remove(&id);
                self.insert_version(plugin, new, now_ms)
            }
            Some((_, row)) => return Ok(Installed::VersionTaken { digest: row.digest }),
        };
        let unchanged =
            self.plugins.get(&plugin).is_some_and(|row| !row.removed && row.current == Some(version));
        if !unchanged || self.breaks(Mutation::UnchangedInstalledAnew) {
            self.make_current(plugin, version, new);
        }
        let now = self.plugin(plugin).ok_or_else(|| broken("an installed plugin is gone"))?;
        let anew = !unchanged || self.breaks(Mutation::UnchangedInstalledAnew);
        Ok(if anew { Installed::Current(now) } else { Installed::Unchanged(now) })
    }

    fn ensure_plugin(&mut self, tenant: TenantId, name: &PluginName) -> PluginId {
        let named = |row: &PluginRow| row.tenant == tenant && row.name == *name;
        if let Some((id, _)) = self.plugins.iter().find(|(_, row)| named(row)) {
            return *id;
        }
        let id = PluginId(next(&self.plugins, |id| id.0));
        self.plugins.insert(id, PluginRow { tenant, name: name.clone(), current: None, removed: false });
        id
    }

    fn insert_version(&mut self, plugin: PluginId, new: &NewVersion, now_ms: i64) -> VersionId {
        let id = VersionId(next(&self.versions, |id| id.0));
        let row = VersionRow {
            tenant: new.tenant,
            plugin,
            name: new.manifest.plugin.version.clone(),
            digest: new.digest,
            component_bytes: new.component_bytes,
            manifest: new.manifest.clone(),
            installed_ms: now_ms,
        };
        self.versions.insert(id, row);
        id
    }

    fn make_current(&mut self, plugin: PluginId, version: VersionId, new: &NewVersion) {
        for kind in &new.manifest.kinds {
            let anew = self.breaks(Mutation::KindsMadeAnew);
            let mut known = self.kinds.values().filter(|row| row.plugin == plugin);
            if anew || !known.any(|row| row.name == kind.name) {
                let id = KindId(next(&self.kinds, |id| id.0));
                let row = KindRow { tenant: new.tenant, plugin, name: kind.name.clone() };
                self.kinds.insert(id, row);
            }
        }
        if let Some(row) = self.plugins.get_mut(&plugin) {
            (row.current, row.removed) = (Some(version), false);
        }
        self.last.catalog += i64::from(!self.breaks(Mutation::CatalogNumberStands));
    }

    fn remove(&mut self, tenant: TenantId, name: &PluginName) -> Removed {
        let named = |row: &PluginRow| row.tenant == tenant && row.name == *name && !row.removed;
        let Some(plugin) = self.plugins.iter().find(|(_, row)| named(row)).map(|(id, _)| *id) else {
            return Removed::NotFound;
        };
        let of_plugin = |kind: &KindId| self.kinds.get(kind).is_some_and(|row| row.plugin == plugin);
        let live = self.tasks.values().filter(|row| !row.state.is_terminal() && of_plugin(&row.kind));
        let live = live.count() as u64;
        if live > 0 && !self.breaks(Mutation::RemoveOfBusy) {
            return Removed::Busy { live };
        }
        if let Some(row) = self.plugins.get_mut(&plugin) {
            row.removed = true;
        }
        self.last.catalog += i64::from(!self.breaks(Mutation::CatalogNumberStands));
        Removed::Removed
    }

    /// A plugin with its current version and every kind it ever had.
    fn plugin(&self, id: PluginId) -> Option<Plugin> {
        let row = self.plugins.get(&id)?;
        let version = row.current?;
        let current = self.versions.get(&version)?;
        let kinds = self.kinds.iter().filter(|(_, kind)| kind.plugin == id);
        let kinds: BTreeMap<KindName, KindId> = kinds.map(|(id, kind)| (kind.name.clone(), *id)).collect();
        Some(Plugin {
            id,
            tenant: row.tenant,
            name: row.name.clone(),
            current: PluginVersion {
                id: version,
                name: current.name.clone(),
                digest: current.digest,
                component_bytes: current.component_bytes,
                manifest: current.manifest.clone(),
                installed_ms: current.installed_ms,
            },
            kinds,
        })
    }
}

/// What the code above rules out.
fn broken(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Integrity, message)
}
