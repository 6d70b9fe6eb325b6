//! The database stores as the cache's last level: the seam over what each does.

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::cache::{CacheKey, Installation};
use keiko_core::catalog::Tenant;
use keiko_core::port::{CacheLevel, Kept, LevelUsage, StoreError};

use crate::postgres::{self, PostgresStore};
use crate::sqlite::SqliteStore;

impl SqliteStore {
    /// The random name of this database, by which its entries are known where several share a server.
    pub fn installation(&self) -> Installation {
        self.cache().installation().clone()
    }
}

#[async_trait]
impl CacheLevel for SqliteStore {
    async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.cache().get(keys, now_ms).await
    }

    async fn put(&self, kept: Kept, _now_ms: i64) -> Result<bool, StoreError> {
        self.cache().put(kept).await
    }

    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        self.cache().discard(key).await
    }

    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        self.cache().clear(tenant).await
    }

    async fn prune(
        &self,
        tenant: &Tenant,
        bytes_max: u64,
        now_ms: i64,
        count_max: u32,
    ) -> Result<u64, StoreError> {
        self.cache().prune(tenant, bytes_max, now_ms, count_max).await
    }

    async fn usage(&self, tenant: &Tenant, _now_ms: i64) -> Result<LevelUsage, StoreError> {
        self.cache().usage(tenant).await
    }

    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.cache().take_lease(key, owner, lease_ms, now_ms).await
    }

    async fn free_lease(&self, key: &CacheKey, owner: u64, now_ms: i64) -> Result<bool, StoreError> {
        self.cache().free_lease(key, owner, now_ms).await
    }
}

impl PostgresStore {
    /// The random name of this database, by which its entries are known where several share a server.
    pub async fn installation(&self) -> Result<Installation, StoreError> {
        postgres::cache::installation(self.pool()).await
    }
}

#[async_trait]
impl CacheLevel for PostgresStore {
    async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        postgres::cache::load(self.pool(), keys, now_ms).await
    }

    async fn put(&self, kept: Kept, _now_ms: i64) -> Result<bool, StoreError> {
        postgres::cache::put(self.pool(), kept).await
    }

    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        postgres::cache::discard(self.pool(), key).await
    }

    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        postgres::cache::clear(self.pool(), tenant).await
    }

    async fn prune(
        &self,
        tenant: &Tenant,
        bytes_max: u64,
        now_ms: i64,
        count_max: u32,
    ) -> Result<u64, StoreError> {
        postgres::cache::prune(self.pool(), tenant, bytes_max, now_ms, count_max).await
    }

    async fn usage(&self, tenant: &Tenant, _now_ms: i64) -> Result<LevelUsage, StoreError> {
        postgres::cache::usage(self.pool(), tenant).await
    }

    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        postgres::cache::take_lease(self.pool(), key, owner, lease_ms, now_ms).await
    }

    async fn free_lease(&self, key: &CacheKey, owner: u64, now_ms: i64) -> Result<bool, StoreError> {
        postgres::cache::free_lease(self.pool(), key, owner, now_ms).await
    }
}
