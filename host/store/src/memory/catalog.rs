//! Tenants, plugins, versions, kinds, and components by digest.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::catalog::{
    Activated, Cause, Generation, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Target,
    Tenant,
};
use keiko_core::id::{Digest, KindId, PluginId, TenantId, VersionId};
use keiko_core::name::{KindName, PluginName, TenantName};
use keiko_core::pause::{Pause, Paused};
use keiko_core::port::{CatalogStore, Components, Forgotten, StoreError, StoreErrorKind};

use super::MemoryStore;
use super::mutation::Mutation;
use super::state::{GenerationRow, KindRow, PluginRow, State, TenantRow, VersionRow, refused};

#[async_trait]
impl CatalogStore for MemoryStore {
    async fn ensure_tenants(&self, names: &[TenantName]) -> Result<Vec<Tenant>, StoreError> {
        self.call(|state| Ok(names.iter().map(|name| state.ensure_tenant(name)).collect())).await
    }

    async fn install(&self, version: NewVersion, now_ms: i64) -> Result<Installed, StoreError> {
        self.call(|state| state.install(&version, now_ms)).await
    }

    async fn version(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: &Target,
    ) -> Result<Option<PluginVersion>, StoreError> {
        self.call(|state| {
            let plugin = state.standing(tenant, name);
            let found = plugin.and_then(|plugin| state.wanted(plugin, target));
            Ok(found.and_then(|(version, _)| state.version(version)))
        })
        .await
    }

    async fn activate(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: Target,
        now_ms: i64,
    ) -> Result<Activated, StoreError> {
        self.call(|state| state.activate(tenant, name, &target, now_ms)).await
    }

    async fn generations(
        &self,
        tenant: TenantId,
        name: &PluginName,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Generation>>, StoreError> {
        self.call(|state| Ok(state.generations(tenant, name, before, limit))).await
    }

    async fn remove(
        &self,
        tenant: TenantId,
        name: &PluginName,
        when: RemoveWhen,
    ) -> Result<Removed, StoreError> {
        self.call(|state| Ok(state.remove(tenant, name, when))).await
    }

    async fn plugins(&self) -> Result<Vec<Plugin>, StoreError> {
        self.call(|state| {
            let removed_too = state.breaks(Mutation::RemovedStillListed);
            let kept = state.plugins.iter().filter(|(_, plugin)| !plugin.removed || removed_too);
            Ok(kept.filter_map(|(id, _)| state.plugin(*id)).collect())
        })
        .await
    }

    async fn pause(&self, what: Paused, now_ms: i64) -> Result<bool, StoreError> {
        self.call(|state| Ok(state.pause(what, now_ms))).await
    }

    async fn resume(&self, what: Paused) -> Result<bool, StoreError> {
        self.call(|state| Ok(state.resume(what))).await
    }

    async fn unpark(&self, what: Paused, count_max: u32) -> Result<u64, StoreError> {
        self.call(|state| Ok(state.unpark(what, count_max))).await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.call(|state| Ok(state.pauses())).await
    }
}

#[async_trait]
impl Components for MemoryStore {
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
        self.call(|state| {
            if state.breaks(Mutation::ComponentLost) {
                state.components.clear();
            }
            let ages = state.breaks(Mutation::ComponentAgesThoughPut);
            let kept_ms = &mut state.components.entry(digest).or_insert((bytes, now_ms)).1;
            if !ages {
                *kept_ms = now_ms.max(*kept_ms);
            }
            Ok(())
        })
        .await
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.call(|state| Ok(state.components.get(&digest).map(|(bytes, _)| bytes.clone()))).await
    }

    async fn forget(&self, before_ms: i64, now_ms: i64) -> Result<Option<Forgotten>, StoreError> {
        self.call(|state| Ok(Some(state.forget_components(before_ms, now_ms)))).await
    }
}

/// The number of the next row.
fn next<K: Copy + Ord, V>(rows: &BTreeMap<K, V>, number: impl Fn(K) -> i64) -> i64 {
    rows.last_key_value().map_or(1, |(last, _)| number(*last) + 1)
}

impl State {
    fn forget_components(&mut self, before_ms: i64, now_ms: i64) -> Forgotten {
        let stands = |version: &VersionRow| {
            !self.plugins[&version.plugin].removed || self.breaks(Mutation::RemovedPluginsNameComponents)
        };
        let all = self.versions.values().filter(|version| stands(version));
        let mut named: BTreeSet<Digest> = all.map(|version| version.digest).collect();
        if self.breaks(Mutation::ForgetsNamedComponents) {
            named.clear();
        }
        let forgets_young = self.breaks(Mutation::ForgetsYoungComponents);
        let ages = self.breaks(Mutation::ComponentAgesThoughNamed);
        let before = self.components.len();
        self.components.retain(|digest, (_, kept_ms)| {
            let is_named = named.contains(digest);
            if is_named && !ages && *kept_ms < i64::midpoint(before_ms, now_ms) {
                *kept_ms = now_ms;
            }
            is_named || (*kept_ms >= before_ms && !forgets_young)
        });
        let count = (before - self.components.len()) as u64;
        Forgotten { count, kept: self.components.keys().copied().collect() }
    }

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
        let anew = self.breaks(Mutation::UnchangedInstalledAnew);
        let stays = self.breaks(Mutation::InstallKeepsDraining);
        let row = self.plugins.get_mut(&plugin).ok_or_else(|| broken("an installed plugin is gone"))?;
        let is_current = !row.removed && row.current == Some(version);
        let unchanged = is_current && !row.draining && !anew;
        row.draining &= stays;
        if !is_current || anew {
            self.make_current(plugin, version, new, now_ms);
        }
        if !unchanged {
            self.last.catalog += i64::from(!self.breaks(Mutation::CatalogNumberStands));
        }
        let now = self.plugin(plugin).ok_or_else(|| broken("an installed plugin is gone"))?;
        Ok(if unchanged { Installed::Unchanged(now) } else { Installed::Current(now) })
    }

    fn ensure_plugin(&mut self, tenant: TenantId, name: &PluginName) -> PluginId {
        let named = |row: &PluginRow| row.tenant == tenant && row.name == *name;
        if let Some((id, _)) = self.plugins.iter().find(|(_, row)| named(row)) {
            return *id;
        }
        let id = PluginId(next(&self.plugins, |id| id.0));
        let row = PluginRow {
            tenant,
            name: name.clone(),
            current: None,
            removed: false,
            draining: false,
            generations: Vec::new(),
        };
        self.plugins.insert(id, row);
        id
    }

    pub(super) fn insert_version(&mut self, plugin: PluginId, new: &NewVersion, now_ms: i64) -> VersionId {
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

    pub(super) fn ensure_kinds(&mut self, plugin: PluginId, new: &NewVersion) {
        for kind in &new.manifest.kinds {
            let anew = self.breaks(Mutation::KindsMadeAnew);
            let mut known = self.kinds.values().filter(|row| row.plugin == plugin);
            if anew || !known.any(|row| row.name == kind.name) {
                let id = KindId(next(&self.kinds, |id| id.0));
                let row = KindRow { tenant: new.tenant, plugin, name: kind.name.clone() };
                self.kinds.insert(id, row);
            }
        }
    }

    fn make_current(&mut self, plugin: PluginId, version: VersionId, new: &NewVersion, now_ms: i64) {
        self.ensure_kinds(plugin, new);
        let was_removed = self.plugins.get(&plugin).is_none_or(|row| row.removed);
        let keeps = !was_removed || self.breaks(Mutation::RollbackOverRemoval);
        let before = if keeps { self.latest(plugin) } else { None };
        self.swap(plugin, version, Cause::Install, before, now_ms);
    }

    fn swap(
        &mut self,
        plugin: PluginId,
        version: VersionId,
        cause: Cause,
        before: Option<usize>,
        at_ms: i64,
    ) {
        let unnoted = self.breaks(Mutation::SwapUnnoted);
        let Some(row) = self.plugins.get_mut(&plugin) else { return };
        (row.current, row.removed) = (Some(version), false);
        if !unnoted || row.generations.is_empty() {
            row.generations.push(GenerationRow { version, cause, at_ms, before });
        }
    }

    /// The place of a plugin's latest swap.
    fn latest(&self, plugin: PluginId) -> Option<usize> {
        self.plugins.get(&plugin)?.generations.len().checked_sub(1)
    }

    /// A plugin that is not removed.
    pub(super) fn standing(&self, tenant: TenantId, name: &PluginName) -> Option<PluginId> {
        let anyones = self.breaks(Mutation::ActivateForOthers);
        let named = |row: &PluginRow| (row.tenant == tenant || anyones) && row.name == *name && !row.removed;
        self.plugins.iter().rev().find(|(_, row)| named(row)).map(|(id, _)| *id)
    }

    /// The version that a target means, and the swap to go back to from it.
    fn wanted(&self, plugin: PluginId, target: &Target) -> Option<(VersionId, Option<usize>)> {
        let row = self.plugins.get(&plugin)?;
        match target {
            Target::Version(name) => {
                let mut own = self.versions.iter().filter(|(_, version)| version.plugin == plugin);
                let (id, _) = own.find(|(_, version)| version.name == *name)?;
                Some((*id, self.latest(plugin)))
            }
            Target::Before => {
                let before = &row.generations[row.generations.last()?.before?];
                let back =
                    if self.breaks(Mutation::RollbackSwings) { self.latest(plugin) } else { before.before };
                Some((before.version, back))
            }
        }
    }

    fn activate(
        &mut self,
        tenant: TenantId,
        name: &PluginName,
        target: &Target,
        now_ms: i64,
    ) -> Result<Activated, StoreError> {
        let Some(plugin) = self.standing(tenant, name) else { return Ok(Activated::NoPlugin) };
        let Some((version, before)) = self.wanted(plugin, target) else { return Ok(Activated::NoVersion) };
        let unchanged = self.plugins.get(&plugin).is_some_and(|row| row.current == Some(version));
        if !unchanged {
            let cause = if *target == Target::Before { Cause::Rollback } else { Cause::Activate };
            self.swap(plugin, version, cause, before, now_ms);
            self.last.catalog += i64::from(!self.breaks(Mutation::ActivateTellsNobody));
        }
        let now = self.plugin(plugin).ok_or_else(|| broken("an activated plugin is gone"))?;
        Ok(if unchanged { Activated::Unchanged(now) } else { Activated::Current(now) })
    }

    fn generations(
        &self,
        tenant: TenantId,
        name: &PluginName,
        before: Option<u64>,
        limit: u32,
    ) -> Option<Vec<Generation>> {
        let row = self.plugins.get(&self.standing(tenant, name)?)?;
        let edge = u64::from(self.breaks(Mutation::GenerationPageRepeatsItsEdge));
        let before = before.map_or(u64::MAX, |before| before + edge);
        let numbered = row.generations.iter().enumerate().rev().map(|(place, row)| (row, place as u64 + 1));
        let numbered = numbered.filter(|(_, number)| *number < before);
        let generation = |(row, number): (&GenerationRow, u64)| {
            let version = self.version(row.version)?;
            Some(Generation { number, version, cause: row.cause, at_ms: row.at_ms })
        };
        Some(numbered.take(limit as usize).filter_map(generation).collect())
    }

    fn remove(&mut self, tenant: TenantId, name: &PluginName, when: RemoveWhen) -> Removed {
        let named = |row: &PluginRow| row.tenant == tenant && row.name == *name && !row.removed;
        let Some(plugin) = self.plugins.iter().find(|(_, row)| named(row)).map(|(id, _)| *id) else {
            return Removed::NotFound;
        };
        let of_plugin = |kind: &KindId| self.kinds.get(kind).is_some_and(|row| row.plugin == plugin);
        let live = self.tasks.values().filter(|row| !row.state.is_terminal() && of_plugin(&row.kind));
        let live = live.count() as u64;
        let goes = live == 0 || self.breaks(Mutation::RemoveOfBusy);
        if !goes && when == RemoveWhen::Idle {
            return Removed::Busy { live };
        }
        let unmarked = self.breaks(Mutation::DrainingUnmarked);
        if let Some(row) = self.plugins.get_mut(&plugin) {
            (row.removed, row.draining) = (goes, !goes && !unmarked);
        }
        self.last.catalog += i64::from(!self.breaks(Mutation::CatalogNumberStands));
        if goes { Removed::Removed } else { Removed::Draining { live } }
    }

    /// A plugin with its current version and every kind it ever had.
    pub(super) fn plugin(&self, id: PluginId) -> Option<Plugin> {
        let row = self.plugins.get(&id)?;
        let current = self.version(row.current?)?;
        let kinds = self.kinds.iter().filter(|(_, kind)| kind.plugin == id);
        let kinds: BTreeMap<KindName, KindId> = kinds.map(|(id, kind)| (kind.name.clone(), *id)).collect();
        Some(Plugin {
            id,
            tenant: row.tenant,
            name: row.name.clone(),
            current,
            generation: row.generations.len() as u64,
            draining: row.draining,
            kinds,
            canary: self.open_canary(id),
        })
    }

    pub(super) fn version(&self, id: VersionId) -> Option<PluginVersion> {
        let row = self.versions.get(&id)?;
        Some(PluginVersion {
            id,
            name: row.name.clone(),
            digest: row.digest,
            component_bytes: row.component_bytes,
            manifest: row.manifest.clone(),
            installed_ms: row.installed_ms,
        })
    }
}

/// What the code above rules out.
pub(super) fn broken(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Integrity, message)
}
