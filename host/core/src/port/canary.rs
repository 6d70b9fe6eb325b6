//! Where it is kept how canaries stand. Every change is one transaction over all hosts, by the rules of [`crate::canary`].

use async_trait::async_trait;

use super::StoreError;
use crate::canary::{Entry, News, State};
use crate::catalog::{Begun, Candidate, Tried};
use crate::id::{PluginId, TenantId, VersionId};
use crate::name::PluginName;

/// Canaries. A plugin has one at a time; a swap ends it.
#[async_trait]
pub trait CanaryStore: Send + Sync + 'static {
    /// Gives a part of a plugin's tasks and batches to a version, instead of any canary before.
    async fn begin_canary(
        &self,
        tenant: TenantId,
        candidate: Candidate,
        percent: u8,
        now_ms: i64,
    ) -> Result<Begun, StoreError>;

    /// Takes a plugin's canary back; whether it had one.
    async fn withdraw_canary(
        &self,
        tenant: TenantId,
        name: &PluginName,
        now_ms: i64,
    ) -> Result<bool, StoreError>;

    /// Lets a task or a batch try a canary, if it may: see [`crate::canary::patience_ms`].
    async fn enter_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        patience_ms: i64,
        now_ms: i64,
    ) -> Result<Entry, StoreError>;

    /// Tells what became of a task or a batch that was let in; the verdict, if that was it.
    async fn tell_canary(
        &self,
        tenant: TenantId,
        plugin: PluginId,
        canary: VersionId,
        news: News,
        now_ms: i64,
    ) -> Result<Option<State>, StoreError>;

    /// The last canary of a plugin.
    async fn canary(&self, tenant: TenantId, name: &PluginName) -> Result<Option<Tried>, StoreError>;
}
