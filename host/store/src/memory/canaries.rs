//! How canaries stand.

use async_trait::async_trait;
use keiko_core::canary::{Entry, News, Standing, State as Stage, Unit};
use keiko_core::catalog::{Begun, Canary, Candidate, Tried};
use keiko_core::id::{PluginId, TenantId, VersionId};
use keiko_core::name::PluginName;
use keiko_core::port::{CanaryStore, StoreError};

use super::MemoryStore;
use super::catalog::broken;
use super::mutation::Mutation;
use super::state::{State, VersionRow};

/// The last canary of a plugin.
pub(super) struct CanaryRow {
    version: VersionId,
    /// The generation that it is compared with.
    generation: usize,
    percent: u8,
    standing: Standing,
}

#[async_trait]
impl CanaryStore for MemoryStore {
    async fn begin_canary(
        &self,
        tenant: TenantId,
        candidate: Candidate,
        percent: u8,
        now_ms: i64,
    ) -> Result<Begun, StoreError> {
        self.call(|state| state.begin_canary(tenant, &candidate, percent, now_ms)).await
    }

    async fn withdraw_canary(
        &self,
        tenant: TenantId,
        name: &PluginName,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.call(|state| Ok(state.withdraw_canary(tenant, name, now_ms))).await
    }

    async fn enter_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        patience_ms: i64,
        now_ms: i64,
    ) -> Result<Entry, StoreError> {
        self.call(|state| Ok(state.enter_canary(tenant, plugin, canary, patience_ms, now_ms))).await
    }

    async fn tell_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        news: News,
        now_ms: i64,
    ) -> Result<Option<Stage>, StoreError> {
        self.call(|state| Ok(state.tell_canary(tenant, plugin, canary, &news, now_ms))).await
    }

    async fn canary(&self, tenant: TenantId, name: &PluginName) -> Result<Option<Tried>, StoreError> {
        self.call(|state| Ok(state.last_canary(tenant, name))).await
    }
}

impl State {
    /// The canary that a part of a plugin's tasks runs.
    pub(super) fn open_canary(&self, plugin: PluginId) -> Option<Canary> {
        let (row, canary) = (self.plugins.get(&plugin)?, self.canaries.get(&plugin)?);
        let is_swapped =
            canary.generation != row.generations.len() && !self.breaks(Mutation::CanaryOutlivesSwap);
        if !canary.standing.state.is_open() || is_swapped || row.current == Some(canary.version) {
            return None;
        }
        let is_trying = canary.standing.state == Stage::Trying;
        Some(Canary { version: self.version(canary.version)?, percent: canary.percent, is_trying })
    }

    fn begin_canary(
        &mut self,
        tenant: TenantId,
        candidate: &Candidate,
        percent: u8,
        now_ms: i64,
    ) -> Result<Begun, StoreError> {
        let name = match candidate {
            Candidate::Named(name, _) => name,
            Candidate::New(new) => &new.manifest.plugin.name,
        };
        let Some(plugin) = self.standing(tenant, name) else { return Ok(Begun::NoPlugin) };
        let mut known = self.versions.iter().filter(|(_, row)| row.plugin == plugin);
        let version = match candidate {
            Candidate::Named(_, version) => match known.find(|(_, row)| row.name == *version) {
                Some((id, _)) => *id,
                None => return Ok(Begun::NoVersion),
            },
            Candidate::New(new) => {
                let named = |row: &VersionRow| row.name == new.manifest.plugin.version;
                let version = match known.find(|(_, row)| named(row)) {
                    Some((id, row)) if row.digest == new.digest && row.manifest == new.manifest => *id,
                    Some((_, row)) => return Ok(Begun::VersionTaken { digest: row.digest }),
                    None => self.insert_version(plugin, new, now_ms),
                };
                self.ensure_kinds(plugin, new);
                version
            }
        };
        let broken = || broken("a plugin with a canary is gone");
        let row = self.plugins.get(&plugin).ok_or_else(broken)?;
        if row.current == Some(version) {
            return self.plugin(plugin).map(Begun::IsCurrent).ok_or_else(broken);
        }
        let generation = row.generations.len();
        let standing = match self.canaries.remove(&plugin) {
            Some(before) if self.breaks(Mutation::CanaryKeepsItsCounts) => before.standing,
            _ => Standing::new(now_ms),
        };
        self.canaries.insert(plugin, CanaryRow { version, generation, percent, standing });
        self.last.catalog += i64::from(!self.breaks(Mutation::CanaryTellsNobody));
        self.plugin(plugin).map(Begun::Canary).ok_or_else(broken)
    }

    fn withdraw_canary(&mut self, tenant: TenantId, name: &PluginName, now_ms: i64) -> bool {
        let Some(plugin) = self.standing(tenant, name) else { return false };
        let is_open = self.open_canary(plugin).is_some();
        let Some(canary) = self.canaries.get_mut(&plugin).filter(|_| is_open) else { return false };
        (canary.standing.state, canary.standing.since_ms) = (Stage::Withdrawn, now_ms);
        self.last.catalog += 1;
        true
    }

    fn enter_canary(
        &mut self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        patience_ms: i64,
        now_ms: i64,
    ) -> Entry {
        let uncounted = self.breaks(Mutation::CanaryTasksUncounted);
        let Some(standing) = self.standing_canary(tenant, plugin, canary) else { return Entry::Closed };
        let (before, touched) = (standing.state, standing.touched);
        let entry = standing.enter(patience_ms, now_ms);
        if uncounted {
            standing.touched = touched;
        }
        let is_verdict = standing.state != before;
        self.last.catalog += i64::from(is_verdict);
        entry
    }

    fn tell_canary(
        &mut self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        news: &News,
        now_ms: i64,
    ) -> Option<Stage> {
        let (silent, forgets) =
            (self.breaks(Mutation::VerdictTellsNobody), self.breaks(Mutation::CanaryForgetsCurrent));
        let no_batches = self.breaks(Mutation::CanaryBatchesAsTasks);
        let standing = self.standing_canary(tenant, plugin, canary)?;
        let mut news = news.clone();
        if forgets {
            news.current = Default::default();
        }
        if let Some((unit, _)) = &mut news.canary
            && no_batches
        {
            *unit = Unit::Task;
        }
        let is_verdict = standing.tell(news, now_ms);
        let state = standing.state;
        self.last.catalog += i64::from(is_verdict && !silent);
        is_verdict.then_some(state)
    }

    /// A canary that no swap has ended.
    fn standing_canary(
        &mut self,
        tenant: TenantId,
        plugin: PluginId,
        version: VersionId,
    ) -> Option<&mut Standing> {
        let (anyones, outlives) =
            (self.breaks(Mutation::CanaryOfOthers), self.breaks(Mutation::CanaryOutlivesSwap));
        let row = self.plugins.get(&plugin).filter(|row| row.tenant == tenant || anyones)?;
        let canary = self.canaries.get_mut(&plugin).filter(|canary| canary.version == version)?;
        (canary.generation == row.generations.len() || outlives).then_some(&mut canary.standing)
    }

    fn last_canary(&self, tenant: TenantId, name: &PluginName) -> Option<Tried> {
        let plugin = self.standing(tenant, name)?;
        let (row, canary) = (self.plugins.get(&plugin)?, self.canaries.get(&plugin)?);
        Some(Tried {
            version: self.versions.get(&canary.version)?.name.clone(),
            percent: canary.percent,
            is_over: canary.generation < row.generations.len(),
            standing: canary.standing.clone(),
        })
    }
}
