//! Leases: the right to compute a value, among hosts. One is taken on the first level that answers, prolonged while its holder
//! lives, and given back; whatever is cut off on the way, it ends by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keiko_core::cache::CacheKey;
use tokio::sync::oneshot;

use super::Cache;
use crate::service::spawn_beside;

/// How long a right to compute lasts without a sign of its host.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// A lease of this host.
pub(super) struct Lease {
    /// Drawn for this one alone.
    pub(super) owner: u64,
    /// Another has it now.
    pub(super) lost: AtomicBool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Cache {
    /// Takes a lease, and gives it back when nobody waits for it any more.
    pub(super) async fn ask_lease(&self, key: &CacheKey, owner: u64) -> Option<bool> {
        let (cache, key) = (self.clone(), key.clone());
        let (tell, told) = oneshot::channel();
        spawn_beside(async move {
            let ours = cache.take_lease(&key, owner).await;
            let unheard = (ours == Some(true)).then(|| Unheard { cache, key, owner, heard: false });
            // Whoever is gone does not hear it.
            let _ = tell.send((ours, unheard));
        });
        let (ours, unheard) = told.await.ok()?;
        if let Some(mut unheard) = unheard {
            unheard.heard = true;
        }
        ours
    }

    /// Takes or prolongs a lease on the first level that answers; `None` when none does.
    pub(super) async fn take_lease(&self, key: &CacheKey, owner: u64) -> Option<bool> {
        for tier in &self.0.tiers {
            if let Ok(ours) = tier.take_lease(key, owner, LEASE).await {
                return Some(ours);
            }
        }
        None
    }

    /// Whether this host still holds a lease.
    fn holds(&self, key: &CacheKey, lease: &Arc<Lease>) -> bool {
        self.0.fills.held.lock().get(key).is_some_and(|held| Arc::ptr_eq(held, lease))
    }

    /// Prolongs a lease no longer.
    fn let_go(&self, key: &CacheKey, lease: &Arc<Lease>) {
        let mut held = self.0.fills.held.lock();
        if held.get(key).is_some_and(|held| Arc::ptr_eq(held, lease)) {
            held.remove(key);
        }
    }

    /// Gives a lease back.
    pub(super) async fn free_lease(&self, key: &CacheKey, lease: &Arc<Lease>) {
        self.let_go(key, lease);
        self.give_lease_back(key, lease.owner).await;
    }

    /// Gives it back under its owner. It may have been taken on a level that has been away since, and on one that is away now: it ends by itself.
    async fn give_lease_back(&self, key: &CacheKey, owner: u64) {
        for tier in &self.0.tiers {
            if tier.free_lease(key, owner).await == Ok(true) {
                return;
            }
        }
    }

    /// Prolongs every lease that this host holds.
    pub(super) async fn prolong_leases(&self) {
        let mut held: Vec<_> =
            self.0.fills.held.lock().iter().map(|(key, lease)| (key.clone(), Arc::clone(lease))).collect();
        // In an order that equal lives of a simulation have alike.
        held.sort_by(|(one, _), (other, _)| one.text().cmp(other.text()));
        for (key, lease) in held {
            match self.take_lease(&key, lease.owner).await {
                Some(false) => {
                    lease.lost.store(true, Ordering::Release);
                    self.let_go(&key, &lease);
                }
                // It was given back meanwhile, and taken once more.
                Some(true) if !self.holds(&key, &lease) => self.give_lease_back(&key, lease.owner).await,
                _ => {}
            }
        }
    }
}

/// A lease that is given back unless somebody hears of it.
struct Unheard {
    cache: Cache,
    key: CacheKey,
    owner: u64,
    heard: bool,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if self.heard || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (cache, key, owner) = (self.cache.clone(), self.key.clone(), self.owner);
        spawn_beside(async move { cache.give_lease_back(&key, owner).await });
    }
}
