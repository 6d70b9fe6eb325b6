//! Hosts with a cache each, over levels and a way between them that fail as they are told, and a clock that is moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use keiko_core::TenantId;
use keiko_core::cache::{CacheKey, Installation, Namespace, Wish};
use keiko_core::catalog::Tenant;
use keiko_core::port::Clock;
use keiko_runtime::cache::{Cache, CacheOptions, CacheParts, Found};
use keiko_store::memory::{MemoryLevel, MemoryPlane};

/// When every test begins.
pub const NOW: i64 = 1_800_000_000_000;

/// A clock that is moved.
pub struct Moved(pub AtomicI64);

impl Clock for Moved {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A host.
pub struct Host {
    pub cache: Cache,
    pub redis: MemoryLevel,
    pub database: MemoryLevel,
    pub plane: Arc<MemoryPlane>,
}

/// Hosts of one installation, with two tenants.
pub struct World {
    pub clock: Arc<Moved>,
    pub hosts: Vec<Host>,
    pub ada: Tenant,
    pub bob: Tenant,
}

impl World {
    pub fn new(count: usize) -> World {
        World::with(count, CacheOptions::default())
    }

    pub fn with(count: usize, options: CacheOptions) -> World {
        let installation: Installation = "test".parse().unwrap();
        let clock = Arc::new(Moved(AtomicI64::new(NOW)));
        let redis = MemoryLevel::new(installation.clone());
        let database = MemoryLevel::new(installation.clone());
        let first = Arc::new(MemoryPlane::default());
        let host = |number: usize| {
            let plane = if number == 0 { Arc::clone(&first) } else { Arc::new(first.another_host()) };
            let (redis, database) = (redis.another_host(), database.another_host());
            let parts = CacheParts {
                installation: installation.clone(),
                redis: Some(Arc::new(redis.clone())),
                database: Some(Arc::new(database.clone())),
                backplanes: vec![plane.clone()],
                shared: true,
                clock: clock.clone(),
            };
            Host { cache: Cache::new(parts, options), redis, database, plane }
        };
        let hosts = (0..count).map(host).collect();
        let tenant = |id, name: &str| Tenant { id: TenantId(id), name: name.parse().unwrap() };
        World { clock, hosts, ada: tenant(1, "ada"), bob: tenant(2, "bob") }
    }

    pub fn pass(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn cache(&self, host: usize) -> &Cache {
        &self.hosts[host].cache
    }

    /// Every host hears what it was told.
    pub fn deliver(&self) {
        for host in &self.hosts {
            self.deliver_to(host);
        }
    }

    pub fn deliver_to(&self, host: &Host) {
        while let Some(heard) = host.plane.heard() {
            host.cache.take(0, heard, &[self.ada.clone(), self.bob.clone()]);
        }
    }
}

pub fn namespace() -> Namespace {
    Namespace::shared(&"films".parse().unwrap())
}

pub fn key(tenant: &Tenant, text: &str) -> CacheKey {
    CacheKey::new(tenant, &namespace(), text).unwrap()
}

pub fn lasting(lifetime_ms: u64) -> Wish {
    Wish { lifetime_ms: Some(lifetime_ms), ..Wish::default() }
}

pub fn value(text: &str) -> Found {
    Found::Value(Bytes::copy_from_slice(text.as_bytes()))
}
