//! Where plugins and their bytes are kept.

use async_trait::async_trait;
use bytes::Bytes;

use super::StoreError;
use crate::catalog::{Installed, NewVersion, Plugin, Removed, Tenant};
use crate::id::{Digest, TenantId};
use crate::name::{PluginName, TenantName};

/// Tenants, plugins and versions.
#[async_trait]
pub trait CatalogStore: Send + Sync + 'static {
    /// The rows of these tenants, in the order of the names; those that are missing are made.
    async fn ensure_tenants(&self, names: &[TenantName]) -> Result<Vec<Tenant>, StoreError>;

    /// Makes a version the current one of its plugin. Its component must have been kept before.
    async fn install(&self, version: NewVersion, now_ms: i64) -> Result<Installed, StoreError>;

    /// Takes a plugin away unless it has tasks that have not ended. Its versions stay, for the attempts
    /// that name them.
    async fn remove(&self, tenant: TenantId, name: &PluginName) -> Result<Removed, StoreError>;

    /// Every plugin of every tenant, with its current version.
    async fn plugins(&self) -> Result<Vec<Plugin>, StoreError>;
}

/// Components by digest.
#[async_trait]
pub trait Components: Send + Sync + 'static {
    /// Keeps bytes under their digest, which the caller has computed. Keeping them twice is no error.
    async fn put(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError>;

    /// The bytes under a digest.
    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;
}
