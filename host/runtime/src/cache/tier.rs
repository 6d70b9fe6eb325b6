//! A level outside of this host's memory, as the cache asks it: within a time, never while it rests, and counted.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keiko_core::cache::{Breaker, CacheKey, Entry, Installation, Level, decode, encode};
use keiko_core::port::{CacheLevel, Clock, Kept, StoreError};
use parking_lot::Mutex;

use super::figures::{Counters, Outcome};

/// The level did not answer: it failed, was too slow, or rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Away;

/// A level, guarded.
pub(crate) struct Tier {
    pub(crate) level: Level,
    pub(crate) store: Arc<dyn CacheLevel>,
    installation: Installation,
    patience: Duration,
    breaker: Mutex<Breaker>,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
}

impl Tier {
    pub(crate) fn new(
        level: Level,
        store: Arc<dyn CacheLevel>,
        installation: Installation,
        patience: Duration,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
    ) -> Tier {
        Tier { level, store, installation, patience, breaker: Mutex::default(), counters, clock }
    }

    /// The entries under these keys; what else stands there is taken away.
    pub(crate) async fn get(&self, keys: &[CacheKey]) -> Result<Vec<Option<Entry>>, Away> {
        let found = self.ask(self.store.get(keys, self.clock.now_ms())).await?;
        let mut entries = Vec::with_capacity(keys.len());
        for (key, bytes) in keys.iter().zip(found) {
            entries.push(self.entry(key, bytes).await);
        }
        Ok(entries)
    }

    /// The same for one.
    pub(crate) async fn get_one(&self, key: &CacheKey) -> Result<Option<Entry>, Away> {
        self.get(std::slice::from_ref(key)).await.map(|mut found| found.pop().flatten())
    }

    async fn entry(&self, key: &CacheKey, bytes: Option<Bytes>) -> Option<Entry> {
        let Some(bytes) = bytes else {
            self.counters.level(self.level, Outcome::Miss);
            return None;
        };
        match decode(key, &self.installation, &bytes) {
            Ok(entry) => {
                self.counters.level(self.level, Outcome::Hit);
                Some(entry)
            }
            Err(_) => {
                self.counters.level(self.level, Outcome::Garbage);
                // What stays there is found and refused again.
                let _ = self.ask(self.store.discard(key)).await;
                None
            }
        }
    }

    /// Keeps an entry unless a newer one is there; whether it is kept.
    pub(crate) async fn put(&self, key: &CacheKey, entry: &Entry) -> Result<bool, Away> {
        let kept = Kept {
            key: key.clone(),
            stamp: entry.stamp,
            until_ms: entry.physical_ms,
            bytes: encode(key, &self.installation, entry),
        };
        let answer = self.ask(self.store.put(kept, self.clock.now_ms())).await;
        self.counters.level(self.level, if answer.is_ok() { Outcome::Kept } else { Outcome::Unkept });
        answer
    }

    /// Takes or prolongs the right to compute.
    pub(crate) async fn take_lease(&self, key: &CacheKey, owner: u64, lease: Duration) -> Result<bool, Away> {
        let lease_ms = lease.as_millis() as u64;
        self.ask(self.store.take_lease(key, owner, lease_ms, self.clock.now_ms())).await
    }

    /// Gives it back.
    pub(crate) async fn free_lease(&self, key: &CacheKey, owner: u64) -> Result<bool, Away> {
        self.ask(self.store.free_lease(key, owner, self.clock.now_ms())).await
    }

    /// Whether the level rests.
    pub(crate) fn rests(&self) -> bool {
        self.breaker.lock().rests()
    }

    /// Waits for an answer, but not for long, and not at all while the level rests.
    pub(crate) async fn ask<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Away> {
        if !self.breaker.lock().allows(self.clock.now_ms()) {
            self.counters.level(self.level, Outcome::Rested);
            return Err(Away);
        }
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(answer)) => {
                if self.breaker.lock().answered() {
                    tracing::info!(level = self.level.as_str(), "a level of the cache is back");
                }
                Ok(answer)
            }
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => Err(self.failed("no answer in time")),
        }
    }

    fn failed(&self, error: &str) -> Away {
        self.counters.level(self.level, Outcome::Failed);
        if self.breaker.lock().failed(self.clock.now_ms()) {
            tracing::warn!(level = self.level.as_str(), error = %error, "a level of the cache fails and rests");
        }
        Away
    }
}
