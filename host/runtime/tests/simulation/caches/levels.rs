//! The levels behind memory as hosts reach them: late, away, silent, or taking what they then lose.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::cache::{CacheKey, Installation, decode, encode};
use keiko_core::catalog::Tenant;
use keiko_core::port::{CacheLevel, Kept, LevelUsage, StoreError, StoreErrorKind};
use keiko_store::memory::MemoryLevel;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::off::Off;
use crate::clock::NOW_MS;
use crate::random::Random;

/// Whether a process lives. What one that was killed has begun does nothing any more and is never answered.
#[derive(Debug)]
pub struct Process(AtomicBool);

impl Process {
    pub fn begin() -> Arc<Process> {
        Arc::new(Process(AtomicBool::new(true)))
    }

    pub fn kill(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub fn lives(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on while it lives.
    pub async fn go_on(&self) {
        if !self.lives() {
            pending::<()>().await;
        }
    }
}

/// What goes wrong between a host and a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    None,
    /// Every call fails and does nothing.
    Down,
    /// Every call is done, and answers that it failed.
    Unanswered,
    /// No call is ever answered.
    Hangs,
    /// Calls take longer than some are waited for.
    Slow,
    /// Calls take longer than others need to change what they ask for; every one is answered.
    Late,
    /// What is put is taken, and lost.
    Loses,
}

impl Trouble {
    /// Whether a host may miss something because of it.
    pub fn is_harm(self) -> bool {
        !matches!(self, Trouble::None | Trouble::Late)
    }
}

/// A level as all hosts have it.
pub struct Server {
    pub level: MemoryLevel,
    installation: Installation,
    /// Whether entries end here by themselves, by this server's clock, as those of Redis do.
    ends: bool,
    start: Instant,
    off: Option<Off>,
    /// The keys of what was ever put, by their names here.
    keys: Mutex<BTreeMap<String, CacheKey>>,
    /// What was taken and lost, by name, and when last.
    lost: Mutex<BTreeMap<String, i64>>,
}

impl Server {
    pub fn new(installation: &Installation, ends: bool, off: Option<Off>) -> Arc<Server> {
        Arc::new(Server {
            level: MemoryLevel::new(installation.clone()),
            installation: installation.clone(),
            ends,
            start: Instant::now(),
            off,
            keys: Mutex::default(),
            lost: Mutex::default(),
        })
    }

    /// When something of a key was last taken and lost here, in milliseconds of this life.
    pub fn lost_ms(&self, key: &CacheKey) -> Option<i64> {
        self.lost.lock().get(&key.external(&self.installation)).copied()
    }

    fn now_ms(&self) -> i64 {
        NOW_MS + self.start.elapsed().as_millis() as i64
    }

    /// The time by which entries end here, for a host whose clock says this.
    fn time(&self, now_ms: i64) -> i64 {
        if self.ends { self.now_ms() } else { now_ms }
    }

    /// What is found under a key by a host that does not look whose envelope it is.
    fn believed(&self, key: &CacheKey, bytes: Bytes) -> Bytes {
        if self.off != Some(Off::EnvelopeChecked) || decode(key, &self.installation, &bytes).is_ok() {
            return bytes;
        }
        let keys = self.keys.lock();
        let entry = keys.values().find_map(|owner| decode(owner, &self.installation, &bytes).ok());
        entry.map_or(bytes, |entry| encode(key, &self.installation, &entry))
    }
}

/// A host's way to a level.
pub struct Way {
    pub server: Arc<Server>,
    pub process: Arc<Process>,
    pub trouble: Arc<Mutex<Trouble>>,
    pub random: Mutex<Random>,
}

fn away() -> StoreError {
    StoreError::new(StoreErrorKind::Down, "the level is away")
}

impl Way {
    fn trouble(&self) -> Trouble {
        *self.trouble.lock()
    }

    async fn delay(&self) {
        let delay_ms = {
            let mut random = self.random.lock();
            match self.trouble() {
                Trouble::Slow => random.among(0, 400),
                Trouble::Late => random.among(0, 40),
                _ if random.percent(40) => random.among(1, 3),
                _ => 0,
            }
        };
        if delay_ms > 0 {
            sleep(Duration::from_millis(delay_ms)).await;
        }
        self.process.go_on().await;
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.delay().await;
        let trouble = self.trouble();
        let answer = match trouble {
            Trouble::Hangs => pending().await,
            Trouble::Down => return Err(away()),
            _ => work.await,
        };
        self.delay().await;
        if trouble == Trouble::Unanswered { Err(away()) } else { answer }
    }

    /// Entries that have ended are gone where they end by themselves.
    async fn end(&self, tenant: &Tenant) {
        if self.server.ends {
            // It fails as little as any call of a level in memory.
            let _ = self.server.level.prune(tenant, u64::MAX, self.server.now_ms(), u32::MAX).await;
        }
    }
}

#[async_trait]
impl CacheLevel for Way {
    async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.call(async {
            let found = self.server.level.get(keys, self.server.time(now_ms)).await?;
            let believed = |(key, bytes): (&CacheKey, Option<Bytes>)| {
                bytes.map(|bytes| self.server.believed(key, bytes))
            };
            Ok(keys.iter().zip(found).map(believed).collect())
        })
        .await
    }

    async fn put(&self, mut kept: Kept, now_ms: i64) -> Result<bool, StoreError> {
        self.call(async {
            let name = kept.key.external(&self.server.installation);
            if self.trouble() == Trouble::Loses {
                self.server.lost.lock().insert(name, self.server.now_ms() - NOW_MS);
                return Ok(true);
            }
            self.end(kept.key.tenant()).await;
            if self.server.ends {
                let left_ms = kept.until_ms - now_ms;
                if left_ms <= 0 {
                    return Ok(true);
                }
                kept.until_ms = self.server.now_ms() + left_ms;
            }
            self.server.keys.lock().insert(name, kept.key.clone());
            if self.server.off == Some(Off::LevelKeepsNewer) {
                self.server.level.discard(&kept.key).await?;
            }
            self.server.level.put(kept, now_ms).await
        })
        .await
    }

    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        self.call(self.server.level.discard(key)).await
    }

    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        self.call(self.server.level.clear(tenant)).await
    }

    async fn prune(&self, tenant: &Tenant, most: u64, now_ms: i64, count: u32) -> Result<u64, StoreError> {
        self.call(self.server.level.prune(tenant, most, now_ms, count)).await
    }

    async fn usage(&self, tenant: &Tenant, now_ms: i64) -> Result<LevelUsage, StoreError> {
        self.call(self.server.level.usage(tenant, now_ms)).await
    }

    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        _: i64,
    ) -> Result<bool, StoreError> {
        self.call(async {
            let answer = self.server.level.take_lease(key, owner, lease_ms, self.server.now_ms()).await;
            if self.server.off == Some(Off::LeaseOfOne) { Ok(true) } else { answer }
        })
        .await
    }

    async fn free_lease(&self, key: &CacheKey, owner: u64, _: i64) -> Result<bool, StoreError> {
        self.call(self.server.level.free_lease(key, owner, self.server.now_ms())).await
    }
}
