//! The cache of a host: its memory, then Redis, then the database, with one computation of a value for however many want
//! it.
//!
//! - Reads go from the nearest level to the last, and take what they find to the nearer ones with what is left of its
//!   lifetime. Changes go to every level; of two changes of a key the newer counts, wherever they meet.
//! - A level that fails is a miss and a counter, and rests. What it has missed is repeated when it is back, newest change
//!   per key only.
//! - Other hosts are told what changed, after it is changed. A host that may have missed something looks up what it holds.
//! - How old a value may be: a change elsewhere is known when its message arrives, within milliseconds; while messages
//!   are lost, within [`epoch::BLIND_MS`]; and where no level that hosts share could be reached by the one that made the
//!   change, when the change has been repeated there, or when the value's own lifetime ends.

mod epoch;
mod figures;
mod fill;
mod hear;
mod lease;
mod memory;
mod plane;
pub(crate) mod plugin;
mod read;
mod reading;
mod recovery;
mod safeguard;
#[cfg(feature = "simulation")]
mod simulation;
mod tier;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::cache::{
    CacheKey, Content, Entry, Installation, Level, Namespace, REMOVED_MS, Stamp, Stamps, Tag, Times,
    VALUE_BYTES_MAX, Verdict, Why, Wish, expired, judge, made, removed,
};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Backplane, CacheLevel, Change, ChangeKind, Clock, LevelUsage};

pub use self::epoch::BLIND_MS;
use self::epoch::Epoch;
use self::figures::Counters;
pub use self::figures::{CacheFigures, Event, Outcome};
use self::fill::Fills;
pub use self::fill::{ComputeError, Computed, Fenced, FillGuard, Filling, Patience};
pub(crate) use self::hear::SignalPlane;
use self::memory::Memory;
use self::plane::Plane;
use self::read::Look;
use self::reading::Readings;
use self::recovery::Recovery;
#[cfg(feature = "simulation")]
pub use self::safeguard::Safeguard;
#[cfg(not(feature = "simulation"))]
use self::safeguard::Safeguard;
use self::safeguard::on;
#[cfg(feature = "simulation")]
pub use self::simulation::Loops;
use self::tier::Tier;

/// What a cache is built of.
#[derive(Clone)]
pub struct CacheParts {
    /// Whose entries these are on shared levels.
    pub installation: Installation,
    /// The server that hosts share.
    pub redis: Option<Arc<dyn CacheLevel>>,
    /// The table of the database.
    pub database: Option<Arc<dyn CacheLevel>>,
    /// The ways to other hosts; the first that works is used, and all are listened to.
    pub backplanes: Vec<Arc<dyn Backplane>>,
    /// Whether other hosts have the same installation.
    pub shared: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What an operator can set about a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheOptions {
    /// Bytes of memory for each tenant; 0 keeps nothing in memory.
    pub memory_bytes: u64,
    /// Bytes in the database for each tenant.
    pub database_bytes: u64,
    /// Lifetimes by level.
    pub times: Times,
    /// Whether lifetimes are shortened at random, by a tenth at most, so that what was made together does not end together.
    pub jitter: bool,
    /// Longest wait for Redis.
    pub redis_patience: Duration,
    /// Longest wait for the database.
    pub database_patience: Duration,
    /// Values that the host computes itself.
    pub computing: Computing,
}

/// How a value that the host computes itself is kept beyond its lifetime, and how long somebody waits for a new one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Computing {
    /// How long it is kept after its lifetime, in case a new one cannot be had; 0 keeps it no longer.
    pub stale_ms: u64,
    /// The part of its lifetime, from 0 to 1, after which whoever asks for it has it computed again; `None` for never.
    pub eager: Option<f64>,
    /// How long callers wait.
    pub patience: Patience,
}

impl Default for Computing {
    fn default() -> Computing {
        Computing { stale_ms: 3_600_000, eager: Some(0.8), patience: Patience::default() }
    }
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions {
            memory_bytes: 64 << 20,
            database_bytes: 1 << 30,
            times: Times::default(),
            jitter: true,
            redis_patience: Duration::from_millis(250),
            database_patience: Duration::from_secs(2),
            computing: Computing::default(),
        }
    }
}

/// The cache; cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    options: CacheOptions,
    shared: bool,
    clock: Arc<dyn Clock>,
    stamps: Stamps,
    memory: Memory,
    /// The levels behind memory, nearest first.
    tiers: Vec<Tier>,
    planes: Vec<Plane>,
    readings: Readings,
    fills: Arc<Fills>,
    recovery: Recovery,
    epoch: Epoch,
    /// Changes that were made or heard here.
    changes: AtomicU64,
    counters: Arc<Counters>,
}

/// What came of storing a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is kept.
    Kept,
    /// It is larger than values may be, and is not kept.
    TooLarge,
}

/// What a question found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A value.
    Value(Bytes),
    /// The knowledge that there is none.
    Absent,
    /// Nothing, and why.
    Nothing(Why),
}

/// What one level knows of a key, for whoever asks why something is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which level.
    pub level: Level,
    /// What it has; `None` when it could not be asked, or is off.
    pub known: Option<StepKnown>,
}

/// What a level has under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKnown {
    /// Nothing.
    Nothing,
    /// This, which is good for that much.
    Entry(Entry, Verdict),
}

impl Cache {
    /// A cache that reads and writes. Its loops are started by [`Cache::keep`].
    pub fn new(parts: CacheParts, options: CacheOptions) -> Cache {
        let counters = Arc::new(Counters::default());
        let tier = |level, store: Option<Arc<dyn CacheLevel>>, patience| {
            let (counters, clock) = (Arc::clone(&counters), Arc::clone(&parts.clock));
            let installation = parts.installation.clone();
            store.map(|store| Tier::new(level, store, installation, patience, counters, clock))
        };
        let redis = tier(Level::Redis, parts.redis.clone(), options.redis_patience);
        let database = tier(Level::Database, parts.database.clone(), options.database_patience);
        Cache(Arc::new(Inner {
            options,
            shared: parts.shared,
            stamps: Stamps::default(),
            memory: Memory::new(options.memory_bytes),
            tiers: redis.into_iter().chain(database).collect(),
            planes: parts.backplanes.into_iter().map(Plane::new).collect(),
            readings: Readings::default(),
            fills: Arc::default(),
            recovery: Recovery::default(),
            epoch: Epoch::new(),
            changes: AtomicU64::new(0),
            counters,
            clock: parts.clock,
        }))
    }

    /// What is under a key. What is stale is not served here: nobody tries to have it anew.
    pub async fn get(&self, key: &CacheKey) -> Found {
        found(self.look(key).await)
    }

    /// What is under several keys of one tenant, in their order.
    pub async fn get_many(&self, keys: &[CacheKey]) -> Vec<Found> {
        join_all(keys.iter().map(|key| self.look(key))).await.into_iter().map(found).collect()
    }

    /// Stores a value everywhere.
    pub async fn set(&self, key: &CacheKey, value: Bytes, wish: &Wish) -> Stored {
        self.store(key, Content::Value(value), wish, self.begin()).await
    }

    /// Removes a key everywhere.
    pub async fn remove(&self, key: &CacheKey) {
        let Begun { stamp, epoch } = self.begin();
        let entry = removed(stamp, self.0.clock.now_ms());
        self.spread(key, epoch, |_| entry.clone(), ChangeKind::Remove).await;
    }

    /// Makes what is under a key stale everywhere; it is still there in case a new one cannot be had. Says whether there
    /// was something.
    pub async fn expire(&self, key: &CacheKey) -> bool {
        let entry = match self.look(key).await {
            Look::Gone(_) => return false,
            _ => self.newest(key).await,
        };
        let Some(entry) = entry else { return false };
        let Begun { stamp, epoch } = self.begin();
        let entry = expired(&entry, stamp, self.0.clock.now_ms());
        self.spread(key, epoch, |_| entry.clone(), ChangeKind::Expire).await;
        true
    }

    /// Removes everything of a part that has a tag, by noting it: the cost is that of one entry.
    pub async fn remove_tag(&self, tenant: &Tenant, namespace: &Namespace, tag: &Tag) {
        self.mark(&CacheKey::marker_of(tenant, namespace, tag)).await;
    }

    /// Removes everything of a tenant.
    pub async fn clear(&self, tenant: &Tenant) {
        self.mark(&CacheKey::cleared(tenant)).await;
        self.0.memory.clear(tenant.id);
        for tier in &self.0.tiers {
            // What stays there is older than the note, and so gone all the same.
            let _ = tier.ask(tier.store.clear(tenant)).await;
        }
        // The levels have forgotten the note with the rest.
        self.mark(&CacheKey::cleared(tenant)).await;
    }

    /// What each level has under a key, and what it is good for.
    pub async fn explain(&self, key: &CacheKey) -> Vec<Step> {
        let now_ms = self.0.clock.now_ms();
        let mut steps = vec![(Level::Memory, Some(self.0.memory.get(key).map(|held| held.entry.clone())))];
        for tier in &self.0.tiers {
            steps.push((tier.level, tier.get_one(key).await.ok()));
        }
        let mut explained = Vec::new();
        for (level, answer) in steps {
            let known = match answer {
                None => None,
                Some(None) => Some(StepKnown::Nothing),
                Some(Some(entry)) => {
                    let marker = self.newest_marker(key, &entry, now_ms).await;
                    let verdict = judge(&entry, marker, now_ms);
                    Some(StepKnown::Entry(entry, verdict))
                }
            };
            explained.push(Step { level, known });
        }
        explained
    }

    /// What a tenant has on each level; `None` where it could not be asked.
    pub async fn usage(&self, tenant: &Tenant) -> Vec<(Level, Option<LevelUsage>)> {
        let mut usage = vec![(Level::Memory, Some(self.0.memory.usage(tenant.id)))];
        for tier in &self.0.tiers {
            let answer = tier.ask(tier.store.usage(tenant, self.0.clock.now_ms())).await;
            usage.push((tier.level, answer.ok()));
        }
        usage
    }

    /// What was counted since the host started.
    pub fn figures(&self) -> CacheFigures {
        let total = self.0.memory.total();
        let mut figures = self.0.counters.figures();
        (figures.memory_entries, figures.memory_bytes) = (total.entries, total.bytes);
        figures.unrepeated = self.0.recovery.len();
        figures
    }

    /// Levels that rest because they failed.
    pub fn resting(&self) -> Vec<Level> {
        self.0.tiers.iter().filter(|tier| tier.rests()).map(|tier| tier.level).collect()
    }

    /// How this cache was set.
    pub fn options(&self) -> &CacheOptions {
        &self.0.options
    }

    /// A change, or a computation, begins.
    fn begin(&self) -> Begun {
        let now_ms = self.0.clock.now_ms();
        Begun { stamp: self.0.stamps.next(now_ms), epoch: self.0.epoch.now(now_ms) }
    }

    /// Stores what a computation has found.
    async fn store(&self, key: &CacheKey, content: Content, wish: &Wish, begun: Begun) -> Stored {
        if let Content::Value(value) = &content
            && value.len() > VALUE_BYTES_MAX
        {
            self.0.counters.event(Event::TooLarge);
            return Stored::TooLarge;
        }
        let random = if self.0.options.jitter { random() } else { 0.0 };
        let now_ms = self.0.clock.now_ms();
        let times = self.0.options.times;
        let of = |level| made(content.clone(), begun.stamp, wish, times.of(level), now_ms, random);
        self.spread(key, begun.epoch, of, ChangeKind::Set).await;
        Stored::Kept
    }

    async fn mark(&self, key: &CacheKey) {
        let Begun { stamp, epoch } = self.begin();
        let marker = Entry::marker(stamp, self.0.clock.now_ms());
        self.spread(key, epoch, |_| marker.clone(), ChangeKind::Set).await;
    }

    /// Brings a change to every level, and tells the others when it is where they look. In a later epoch than the one in
    /// which it began this host looks again: it may not have heard what happened since.
    async fn spread(&self, key: &CacheKey, epoch: u64, of: impl Fn(Level) -> Entry, kind: ChangeKind) {
        let inner = &*self.0;
        let near = of(Level::Memory);
        let stamp = near.stamp;
        inner.changes.fetch_add(1, Ordering::AcqRel);
        inner.readings.raise(key, stamp);
        inner.memory.put(key, near, epoch);
        let puts = inner.tiers.iter().map(|tier| async {
            let entry = of(tier.level);
            match tier.put(key, &entry).await {
                Ok(kept) => Some(kept),
                Err(_) => {
                    inner.missed(tier.level, key, entry, kind);
                    None
                }
            }
        });
        if !on(Safeguard::TellLast) {
            inner.tell(key, kind, stamp).await;
        }
        let answers = join_all(puts).await;
        if answers.contains(&Some(false)) && on(Safeguard::Forget) {
            // Somebody changed it since, and told us before we had anything to change.
            inner.memory.forget(key, stamp);
            inner.take_back(key, stamp, &answers).await;
        }
        let is_somewhere = answers.iter().any(Option::is_some) && on(Safeguard::TellLast);
        if is_somewhere && !inner.tell(key, kind, stamp).await {
            inner.missed(Level::Memory, key, of(Level::Memory), kind);
        }
    }

    /// The newest entry of a key on any level.
    async fn newest(&self, key: &CacheKey) -> Option<Entry> {
        let mut newest = self.0.memory.get(key).map(|held| held.entry.clone());
        for tier in &self.0.tiers {
            let found = tier.get_one(key).await.ok().flatten();
            newest = match (newest, found) {
                (Some(newest), Some(found)) if newest.stamp >= found.stamp => Some(newest),
                (newest, found) => found.or(newest),
            };
        }
        newest
    }

    /// Keeps a stale entry in this host's memory for a while longer, because a new one could not be had.
    fn throttle(&self, key: &CacheKey, entry: &Entry, throttle: Duration) {
        let now_ms = self.0.clock.now_ms();
        let later = keiko_core::cache::throttled(entry, throttle.as_millis() as u64, now_ms);
        self.0.memory.prolong(key, later);
    }
}

/// When a change began.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// It is newer than what has an older one.
    stamp: Stamp,
    /// What this host had heard of by then.
    epoch: u64,
}

impl Inner {
    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether an entry of this key goes when everything of its tenant does.
    fn cleared_applies(&self, key: &CacheKey) -> bool {
        !key.namespace().is_markers() && on(Safeguard::ClearedMarker)
    }

    /// Tells the other hosts by the first way that works; whether one did, or there is nobody to tell.
    async fn tell(&self, key: &CacheKey, kind: ChangeKind, stamp: Stamp) -> bool {
        let change = Change {
            tenant: key.tenant().id,
            namespace: key.namespace().as_str().to_owned(),
            key: key.text().to_owned(),
            kind,
            stamp,
        };
        if !on(Safeguard::Tell) {
            return true;
        }
        for plane in &self.planes {
            if plane.tell(&change, self.options.redis_patience, &*self.clock).await {
                return true;
            }
        }
        self.planes.is_empty()
    }

    /// Takes away what is kept no longer, here and in the database.
    async fn sweep(&self, tenants: &[Tenant]) {
        const COUNT: u32 = 1_000;
        let now_ms = self.clock.now_ms();
        self.memory.sweep(now_ms);
        // For a while longer what has ended tells that it is newer than what is late.
        let ended_ms = now_ms.saturating_sub(REMOVED_MS);
        for tier in self.tiers.iter().filter(|tier| tier.level == Level::Database) {
            for tenant in tenants {
                let bytes_max = self.options.database_bytes;
                while let Ok(count) = tier.ask(tier.store.prune(tenant, bytes_max, ended_ms, COUNT)).await
                    && count >= u64::from(COUNT)
                {}
            }
        }
    }
}

fn found(look: Look) -> Found {
    match look {
        Look::Fresh(Content::Value(value)) | Look::Eager(Content::Value(value)) => Found::Value(value),
        Look::Fresh(_) | Look::Eager(_) => Found::Absent,
        Look::Stale(_) => Found::Nothing(Why::Expired),
        Look::Gone(why) => Found::Nothing(why),
    }
}

/// Evenly drawn from 0 to 1, for jitter.
fn random() -> f64 {
    // Without randomness there is no jitter, and entries still end.
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}
