//! A level of the cache, and the way between hosts, in memory: for simulations and for the tests of other crates. Clones share it; each has faults of
//! its own, as hosts have.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::cache::{CacheKey, Installation, Stamp};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Backplane, CacheLevel, Change, Heard, Kept, LevelUsage, StoreError, StoreErrorKind};
use parking_lot::Mutex;

/// What goes wrong between one host and the level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LevelFault {
    /// Nothing.
    #[default]
    None,
    /// Every call fails and does nothing.
    Down,
    /// Every call is done and answers that it failed: the caller cannot know.
    Lost,
    /// No call ever answers.
    Silent,
}

impl LevelFault {
    const ALL: [LevelFault; 4] = [LevelFault::None, LevelFault::Down, LevelFault::Lost, LevelFault::Silent];
}

struct Held {
    marker: bool,
    stamp: Stamp,
    until_ms: i64,
    bytes: Bytes,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Held>,
    leases: BTreeMap<String, (u64, i64)>,
}

/// A level in memory, as one host has it.
#[derive(Clone)]
pub struct MemoryLevel {
    installation: Installation,
    state: Arc<Mutex<State>>,
    fault: Arc<AtomicU8>,
    reads: Arc<AtomicU64>,
}

impl MemoryLevel {
    /// An empty level.
    pub fn new(installation: Installation) -> MemoryLevel {
        MemoryLevel { installation, state: Arc::default(), fault: Arc::default(), reads: Arc::default() }
    }

    /// The same level as another host has it.
    #[must_use]
    pub fn another_host(&self) -> MemoryLevel {
        MemoryLevel { fault: Arc::default(), reads: Arc::default(), ..self.clone() }
    }

    /// What goes wrong for this host from now on.
    pub fn set_fault(&self, fault: LevelFault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// How often this host has asked it for entries.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Puts something else in the place of every envelope.
    pub fn spoil(&self, garbage: &[u8]) {
        for held in self.state.lock().entries.values_mut() {
            held.bytes = Bytes::copy_from_slice(garbage);
        }
    }

    /// Gives every envelope to the key after it.
    pub fn mix_up(&self) {
        let mut state = self.state.lock();
        let mut all: Vec<Bytes> = state.entries.values().map(|held| held.bytes.clone()).collect();
        if !all.is_empty() {
            all.rotate_right(1);
        }
        for (held, bytes) in state.entries.values_mut().zip(all) {
            held.bytes = bytes;
        }
    }

    /// Forgets everything.
    pub fn flush(&self) {
        *self.state.lock() = State::default();
    }

    async fn call<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let failed = || StoreError::new(StoreErrorKind::Down, "the level is away");
        match LevelFault::ALL[usize::from(self.fault.load(Ordering::SeqCst))] {
            LevelFault::None => Ok(work(&mut self.state.lock())),
            LevelFault::Down => Err(failed()),
            LevelFault::Lost => {
                work(&mut self.state.lock());
                Err(failed())
            }
            LevelFault::Silent => std::future::pending().await,
        }
    }

    fn of_tenant(&self, tenant: &Tenant) -> String {
        CacheKey::external_of_tenant(&self.installation, tenant)
    }
}

#[async_trait]
impl CacheLevel for MemoryLevel {
    async fn get(&self, keys: &[CacheKey], now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.call(|state| {
            let of = |key: &CacheKey| {
                let held = state.entries.get(&key.external(&self.installation));
                held.filter(|held| held.until_ms > now_ms).map(|held| held.bytes.clone())
            };
            keys.iter().map(of).collect()
        })
        .await
    }

    async fn put(&self, kept: Kept, _now_ms: i64) -> Result<bool, StoreError> {
        let Kept { key, stamp, until_ms, bytes } = kept;
        let held = Held { marker: key.namespace().is_markers(), stamp, until_ms, bytes };
        self.call(|state| {
            let key = key.external(&self.installation);
            let newest = state.entries.get(&key).is_none_or(|old| old.stamp <= stamp);
            if newest {
                state.entries.insert(key, held);
            }
            newest
        })
        .await
    }

    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        self.call(|state| drop(state.entries.remove(&key.external(&self.installation)))).await
    }

    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        let prefix = self.of_tenant(tenant);
        self.call(|state| {
            let before = state.entries.len();
            state.entries.retain(|key, _| !key.starts_with(&prefix));
            (before - state.entries.len()) as u64
        })
        .await
    }

    async fn prune(
        &self,
        tenant: &Tenant,
        bytes_max: u64,
        now_ms: i64,
        count_max: u32,
    ) -> Result<u64, StoreError> {
        let prefix = self.of_tenant(tenant);
        self.call(|state| {
            let ours = state.entries.iter().filter(|(key, _)| key.starts_with(&prefix));
            let mut by_age: Vec<_> = ours
                .map(|(key, held)| (held.stamp, key.clone(), held.until_ms, held.marker, held.bytes.len()))
                .collect();
            by_age.sort();
            let counts = |(.., until_ms, marker, _): &&(Stamp, String, i64, bool, usize)| {
                !marker && *until_ms > now_ms
            };
            let total: usize = by_age.iter().filter(counts).map(|(.., size)| size).sum();
            let mut excess = (total as u64).saturating_sub(bytes_max);
            let mut doomed: Vec<String> = Vec::new();
            for (_, key, until_ms, marker, size) in by_age {
                if until_ms <= now_ms {
                    doomed.insert(0, key);
                } else if !marker && excess > 0 {
                    excess = excess.saturating_sub(size as u64);
                    doomed.push(key);
                }
            }
            doomed.truncate(count_max as usize);
            for key in &doomed {
                state.entries.remove(key);
            }
            doomed.len() as u64
        })
        .await
    }

    async fn usage(&self, tenant: &Tenant, _now_ms: i64) -> Result<LevelUsage, StoreError> {
        let prefix = self.of_tenant(tenant);
        self.call(|state| {
            let ours = state.entries.iter().filter(|(key, held)| key.starts_with(&prefix) && !held.marker);
            ours.fold(LevelUsage::default(), |sum, (_, held)| LevelUsage {
                entries: sum.entries + 1,
                bytes: sum.bytes + held.bytes.len() as u64,
            })
        })
        .await
    }

    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.call(|state| {
            let until_ms = now_ms.saturating_add_unsigned(lease_ms);
            let lease = state.leases.entry(key.external(&self.installation)).or_insert((owner, 0));
            let free = lease.0 == owner || lease.1 <= now_ms;
            if free {
                *lease = (owner, until_ms);
            }
            free
        })
        .await
    }

    async fn free_lease(&self, key: &CacheKey, owner: u64, now_ms: i64) -> Result<bool, StoreError> {
        self.call(|state| {
            let key = key.external(&self.installation);
            let ours = state.leases.get(&key).is_some_and(|lease| lease.0 == owner && lease.1 > now_ms);
            if ours {
                state.leases.remove(&key);
            }
            ours
        })
        .await
    }
}

/// The way between hosts in memory, as one host has it.
pub struct MemoryPlane {
    hub: Arc<Mutex<Hub>>,
    number: usize,
}

#[derive(Default)]
struct Hub {
    boxes: Vec<Letters>,
}

#[derive(Default)]
struct Letters {
    heard: VecDeque<Heard>,
    deaf: bool,
    waiting: Option<Waker>,
}

impl Letters {
    fn add(&mut self, heard: Heard) {
        self.heard.push_back(heard);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl Default for MemoryPlane {
    fn default() -> MemoryPlane {
        MemoryPlane { hub: Arc::new(Mutex::new(Hub { boxes: vec![Letters::default()] })), number: 0 }
    }
}

impl MemoryPlane {
    /// The same way as another host has it.
    #[must_use]
    pub fn another_host(&self) -> MemoryPlane {
        let mut hub = self.hub.lock();
        hub.boxes.push(Letters::default());
        MemoryPlane { hub: Arc::clone(&self.hub), number: hub.boxes.len() - 1 }
    }

    /// Whether this host neither hears nor tells from now on. It notices both.
    pub fn set_deaf(&self, deaf: bool) {
        let mut hub = self.hub.lock();
        let letters = &mut hub.boxes[self.number];
        if std::mem::replace(&mut letters.deaf, deaf) != deaf {
            letters.add(if deaf { Heard::Lost } else { Heard::Found });
        }
    }

    /// What is heard next, if anything was told.
    pub fn heard(&self) -> Option<Heard> {
        self.hub.lock().boxes[self.number].heard.pop_front()
    }
}

#[async_trait]
impl Backplane for MemoryPlane {
    async fn tell(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut hub = self.hub.lock();
        if hub.boxes[self.number].deaf {
            return Err(StoreError::new(StoreErrorKind::Down, "nobody hears this host"));
        }
        for (number, letters) in hub.boxes.iter_mut().enumerate() {
            if number != self.number && !letters.deaf {
                letters.add(Heard::Changes(changes.to_vec()));
            }
        }
        Ok(())
    }

    async fn next(&self) -> Heard {
        poll_fn(|context| {
            let mut hub = self.hub.lock();
            let letters = &mut hub.boxes[self.number];
            if let Some(heard) = letters.heard.pop_front() {
                return Poll::Ready(heard);
            }
            letters.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
