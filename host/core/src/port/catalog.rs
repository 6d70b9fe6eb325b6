//! Where plugins and their bytes are kept.

use async_trait::async_trait;
use bytes::Bytes;

use super::StoreError;
use crate::catalog::{
    Activated, Generation, Installed, NewVersion, Plugin, PluginVersion, RemoveWhen, Removed, Target, Tenant,
};
use crate::id::{Digest, TenantId};
use crate::name::{PluginName, TenantName};
use crate::pause::{Pause, Paused};

/// Tenants, plugins and versions.
#[async_trait]
pub trait CatalogStore: Send + Sync + 'static {
    /// The rows of these tenants, in the order of the names; those that are missing are made.
    async fn ensure_tenants(&self, names: &[TenantName]) -> Result<Vec<Tenant>, StoreError>;

    /// Makes a version the current one of its plugin. Its component must have been kept before.
    async fn install(&self, version: NewVersion, now_ms: i64) -> Result<Installed, StoreError>;

    /// The version that a target means; `None` when the tenant has no such plugin, or it no such version.
    async fn version(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: &Target,
    ) -> Result<Option<PluginVersion>, StoreError>;

    /// Makes a version that was installed before the current one of its plugin.
    async fn activate(
        &self,
        tenant: TenantId,
        name: &PluginName,
        target: Target,
        now_ms: i64,
    ) -> Result<Activated, StoreError>;

    /// Up to `limit` swaps of a plugin, newest first, before the generation `before`; `None` when the tenant has no
    /// such plugin.
    async fn generations(
        &self,
        tenant: TenantId,
        name: &PluginName,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Generation>>, StoreError>;

    /// Takes a plugin away, at once or when its tasks have ended. Its versions stay, for the attempts that name them.
    async fn remove(
        &self,
        tenant: TenantId,
        name: &PluginName,
        when: RemoveWhen,
    ) -> Result<Removed, StoreError>;

    /// Every plugin of every tenant, with its current version.
    async fn plugins(&self) -> Result<Vec<Plugin>, StoreError>;

    /// Keeps these tasks from being leased, from the next lease on; what is leased stays leased. Returns whether anything
    /// changed: not when they are paused already, or the kind is not the tenant's.
    async fn pause(&self, what: Paused, now_ms: i64) -> Result<bool, StoreError>;

    /// Lets these tasks be leased again, a kind's as soon as [`CatalogStore::unpark`] has found them. Returns whether
    /// anything changed.
    async fn resume(&self, what: Paused) -> Result<bool, StoreError>;

    /// Gives up to `count_max` parked tasks of a kind that was resumed their due times again, and returns how many; when
    /// they were fewer, the pause is forgotten. Nothing when the kind is paused.
    async fn unpark(&self, what: Paused, count_max: u32) -> Result<u64, StoreError>;

    /// Every pause, in the order of tenants and kinds.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;
}

/// Components by digest.
#[async_trait]
pub trait Components: Send + Sync + 'static {
    /// Keeps bytes under their digest, which the caller has computed. Keeping them again is no error, and makes them new again.
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError>;

    /// The bytes under a digest.
    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Forgets what was put, and found to be needed, before `before_ms` the last time. Needed is the component of every version
    /// of a plugin that is not removed: when half of the time to `now_ms` is over, that is noted. `None` when this keeps
    /// everything.
    async fn forget(&self, _before_ms: i64, _now_ms: i64) -> Result<Option<Forgotten>, StoreError> {
        Ok(None)
    }

    /// Keeps a component's machine code for the other hosts of this database, when the component is kept; what is kept under the
    /// same name goes. A store that is one host's keeps none: that host has it in its data folder.
    async fn put_artifact(
        &self,
        _digest: Digest,
        _name: ArtifactName,
        _bytes: Bytes,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// A component's machine code as another host has kept it. It is not believed for having been kept.
    async fn artifact(&self, _digest: Digest, _name: ArtifactName) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }
}

/// What became of components that nothing needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// How many were forgotten.
    pub count: u64,
    /// Those that are kept.
    pub kept: Vec<Digest>,
}

/// What machine code of a component is known by beside its digest: a hash, under the cluster key, of all that must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArtifactName(pub [u8; 32]);
