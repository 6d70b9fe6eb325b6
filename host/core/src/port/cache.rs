//! A level of the cache that lies outside of the host's memory, and the way in which hosts tell each other of changes.

use async_trait::async_trait;
use bytes::Bytes;

use super::StoreError;
use crate::cache::{CacheKey, Stamp};
use crate::catalog::Tenant;
use crate::id::TenantId;

/// An envelope to be kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Where.
    pub key: CacheKey,
    /// The stamp that is in the envelope.
    pub stamp: Stamp,
    /// Until when.
    pub until_ms: i64,
    /// The envelope.
    pub bytes: Bytes,
}

/// What a tenant has on a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelUsage {
    /// Entries, notes of removals included.
    pub entries: u64,
    /// Bytes of their envelopes.
    pub bytes: u64,
}

/// Where envelopes are kept. A level does not look into them; whoever reads one must not believe it unseen. All keys of a
/// call are one tenant's.
#[async_trait]
pub trait CacheLevel: Send + Sync + 'static {
    /// The envelopes under these keys, in their order. Nothing is written, and nothing comes that is kept no longer.
    async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Keeps an envelope unless one with a higher stamp is there; whether it is kept.
    async fn put(&self, kept: Kept, now_ms: i64) -> Result<bool, StoreError>;

    /// Takes away whatever is under a key, because it is no envelope of that key.
    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError>;

    /// Takes away everything of a tenant; how much there was.
    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError>;

    /// Takes away up to `count_max` envelopes of a tenant: those that are kept no longer, and the oldest when there are more
    /// than `bytes_max` bytes; how many. Notes of removed tags stay.
    async fn prune(
        &self,
        tenant: &Tenant,
        bytes_max: u64,
        now_ms: i64,
        count_max: u32,
    ) -> Result<u64, StoreError>;

    /// What a tenant has here.
    async fn usage(&self, tenant: &Tenant, now_ms: i64) -> Result<LevelUsage, StoreError>;

    /// Gives the right to compute a key's value to one owner for a time, or prolongs it; whether it is the owner's.
    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError>;

    /// Gives the right back; whether it was still the owner's.
    async fn free_lease(&self, key: &CacheKey, owner: u64, now_ms: i64) -> Result<bool, StoreError>;
}

/// What became of an entry elsewhere. Values are not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// There is another value.
    Set,
    /// It is gone.
    Remove,
    /// It is no longer fresh, and still good when a new one cannot be had.
    Expire,
}

/// A change that a host tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub tenant: TenantId,
    /// In which part of the tenant's cache.
    pub namespace: String,
    /// Under which key.
    pub key: String,
    /// What became of it.
    pub kind: ChangeKind,
    /// The change's stamp.
    pub stamp: Stamp,
}

/// What a host hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Another host changed something.
    Changes(Vec<Change>),
    /// From now on nothing is heard: what this host has may be old at any time.
    Lost,
    /// From now on everything is heard; what happened before may not have been.
    Found,
}

/// The way on which hosts tell each other of changes. A hint: what is told may be lost, but not unnoticed.
#[async_trait]
pub trait Backplane: Send + Sync + 'static {
    /// Tells the other hosts.
    async fn tell(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// What is heard next. Without other hosts it waits for ever.
    async fn next(&self) -> Heard;
}
