//! Level 1: this host's memory, weighed in bytes, with one exact quota for each tenant, so that none takes another's room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keiko_core::TenantId;
use keiko_core::cache::{CacheKey, Content, Entry, Stamp, expired, removed};
use keiko_core::port::{ChangeKind, LevelUsage};
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::safeguard::{Safeguard, on};

/// Bytes of a quota for each of its parts, which are locked one by one: a part must hold the largest value several times.
const SHARD_BYTES: u64 = 16 << 20;
/// Parts at most.
const SHARDS_MAX: u64 = 8;
/// Entries that are expected for so many bytes; only how much is remembered of evicted ones depends on it.
const BYTES_PER_ENTRY: u64 = 2_048;

/// An entry in memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) entry: Entry,
    /// Where it is noted which of its tags were removed.
    pub(crate) markers: Box<[CacheKey]>,
    /// The epoch in which it was known to be the newest.
    epoch: AtomicU64,
    weight: u64,
}

impl Held {
    /// Whether it was known to be the newest in this epoch.
    pub(crate) fn is_of(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Relaxed) == epoch
    }
}

#[derive(Clone, Copy)]
struct Bytes;

impl Weighter<CacheKey, Arc<Held>> for Bytes {
    fn weight(&self, _key: &CacheKey, held: &Arc<Held>) -> u64 {
        held.weight
    }
}

type Entries = Cache<CacheKey, Arc<Held>, Bytes, DefaultHashBuilder, DefaultLifecycle<CacheKey, Arc<Held>>>;

struct TenantMemory {
    entries: Entries,
    /// Held while something is compared and then written.
    writing: Mutex<()>,
    /// The stamp of the newest clear that is known here: what is not newer is not taken.
    cleared: AtomicU64,
}

impl TenantMemory {
    fn new(quota_bytes: u64) -> TenantMemory {
        let entries = entries(quota_bytes);
        TenantMemory { entries, writing: Mutex::default(), cleared: AtomicU64::new(0) }
    }

    /// Notes a clear. Whoever calls holds `writing`.
    fn clear_until(&self, stamp: Stamp) {
        if self.cleared.fetch_max(stamp.0, Ordering::Relaxed) < stamp.0 {
            self.entries.retain(|key, held| key.namespace().is_markers() || held.entry.stamp > stamp);
        }
    }

    /// Whether everything was cleared since an entry of this stamp was made.
    fn is_cleared(&self, key: &CacheKey, stamp: Stamp) -> bool {
        !key.namespace().is_markers() && stamp.0 <= self.cleared.load(Ordering::Relaxed)
    }
}

/// The memory of all tenants.
pub(crate) struct Memory {
    /// Replaced as a whole when a tenant comes, so that a look takes no lock.
    tenants: ArcSwap<BTreeMap<TenantId, Arc<TenantMemory>>>,
    quota_bytes: u64,
}

impl Memory {
    /// A memory with a quota for each tenant; 0 holds nothing.
    pub(crate) fn new(quota_bytes: u64) -> Memory {
        Memory { tenants: ArcSwap::default(), quota_bytes }
    }

    fn of(&self, tenant: TenantId) -> Option<Arc<TenantMemory>> {
        self.tenants.load().get(&tenant).cloned()
    }

    fn of_or_new(&self, tenant: TenantId) -> Option<Arc<TenantMemory>> {
        if self.quota_bytes == 0 {
            return None;
        }
        if let Some(memory) = self.of(tenant) {
            return Some(memory);
        }
        let new = Arc::new(TenantMemory::new(self.quota_bytes));
        self.tenants.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.entry(tenant).or_insert_with(|| Arc::clone(&new));
            known
        });
        self.of(tenant)
    }

    /// What is held under a key, whatever it is still good for.
    pub(crate) fn get(&self, key: &CacheKey) -> Option<Arc<Held>> {
        self.tenants.load().get(&key.tenant().id)?.entries.get(key)
    }

    /// Holds an entry unless a newer one is there, or everything was cleared since.
    pub(crate) fn put(&self, key: &CacheKey, entry: Entry, epoch: u64) {
        let Some(memory) = self.of_or_new(key.tenant().id) else { return };
        let markers = entry.tags.iter().map(|tag| key.marker(tag)).collect();
        let weight = entry.weight(key);
        let held = Arc::new(Held { entry, markers, epoch: AtomicU64::new(epoch), weight });
        let is_clear = held.entry.content == Content::Absent && key.is_cleared();
        let _writing = memory.writing.lock();
        if is_clear {
            memory.clear_until(held.entry.stamp);
        }
        if memory.is_cleared(key, held.entry.stamp) && on(Safeguard::ClearedMarker) {
            return;
        }
        let old = memory.entries.peek(key);
        if old.is_none_or(|old| old.entry.stamp <= held.entry.stamp) || !on(Safeguard::MemoryNewer) {
            memory.entries.insert(key.clone(), held);
        }
    }

    /// Notes another host's change. What is not held here is left alone.
    pub(crate) fn change(&self, key: &CacheKey, kind: ChangeKind, stamp: Stamp, now_ms: i64) {
        let Some(memory) = self.of(key.tenant().id) else { return };
        let _writing = memory.writing.lock();
        let Some(old) = memory.entries.peek(key).filter(|old| old.entry.stamp < stamp) else { return };
        let entry = match kind {
            ChangeKind::Set => {
                memory.entries.remove(key);
                return;
            }
            ChangeKind::Remove => removed(stamp, now_ms),
            ChangeKind::Expire => expired(&old.entry, stamp, now_ms),
        };
        let epoch = AtomicU64::new(old.epoch.load(Ordering::Relaxed));
        let weight = entry.weight(key);
        let markers = entry.tags.iter().map(|tag| key.marker(tag)).collect();
        memory.entries.insert(key.clone(), Arc::new(Held { entry, markers, epoch, weight }));
    }

    /// Holds an entry for longer, unless it has been changed, or is gone.
    pub(crate) fn prolong(&self, key: &CacheKey, entry: Entry) {
        let Some(memory) = self.of(key.tenant().id) else { return };
        let _writing = memory.writing.lock();
        let Some(old) = memory.entries.peek(key).filter(|old| old.entry.stamp == entry.stamp) else { return };
        let (markers, epoch) = (old.markers.clone(), AtomicU64::new(old.epoch.load(Ordering::Relaxed)));
        let weight = entry.weight(key);
        memory.entries.insert(key.clone(), Arc::new(Held { entry, markers, epoch, weight }));
    }

    /// Forgets an entry that has proved not to be the newest.
    pub(crate) fn forget(&self, key: &CacheKey, stamp: Stamp) {
        let Some(memory) = self.of(key.tenant().id) else { return };
        let _writing = memory.writing.lock();
        memory.entries.remove_if(key, |held| held.entry.stamp <= stamp);
    }

    /// Notes that another host has cleared.
    pub(crate) fn cleared(&self, tenant: TenantId, stamp: Stamp) {
        let Some(memory) = self.of_or_new(tenant) else { return };
        let _writing = memory.writing.lock();
        memory.clear_until(stamp);
    }

    /// The stamp of the newest clear that is known here.
    pub(crate) fn cleared_at(&self, tenant: TenantId) -> Option<Stamp> {
        let known = self.tenants.load().get(&tenant)?.cleared.load(Ordering::Relaxed);
        (known > 0).then_some(Stamp(known))
    }

    /// Forgets everything of a tenant.
    pub(crate) fn clear(&self, tenant: TenantId) -> u64 {
        let Some(memory) = self.of(tenant) else { return 0 };
        let _writing = memory.writing.lock();
        let count = memory.entries.len() as u64;
        memory.entries.clear();
        count
    }

    /// Lets go what is kept no longer.
    pub(crate) fn sweep(&self, now_ms: i64) {
        for memory in self.tenants.load_full().values() {
            memory.entries.retain(|_, held| held.entry.physical_ms > now_ms);
        }
    }

    /// What a tenant has here.
    pub(crate) fn usage(&self, tenant: TenantId) -> LevelUsage {
        let usage = |memory: Arc<TenantMemory>| LevelUsage {
            entries: memory.entries.len() as u64,
            bytes: memory.entries.weight(),
        };
        self.of(tenant).map(usage).unwrap_or_default()
    }

    /// What all have together.
    pub(crate) fn total(&self) -> LevelUsage {
        let tenants = self.tenants.load();
        tenants.values().fold(LevelUsage::default(), |sum, memory| LevelUsage {
            entries: sum.entries + memory.entries.len() as u64,
            bytes: sum.bytes + memory.entries.weight(),
        })
    }
}

fn entries(quota_bytes: u64) -> Entries {
    let shards = (quota_bytes / SHARD_BYTES).clamp(1, SHARDS_MAX);
    let options = OptionsBuilder::new()
        .shards(shards as usize)
        .estimated_items_capacity((quota_bytes / BYTES_PER_ENTRY).clamp(64, 1 << 16) as usize)
        .weight_capacity(quota_bytes)
        .build()
        .expect("a capacity and an estimate are all that options need");
    Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keiko_core::cache::{Namespace, Tag, Verdict, Why, Wish, judge, made};
    use keiko_core::catalog::Tenant;

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn key(tenant: i64, text: &str) -> CacheKey {
        let tenant = Tenant { id: TenantId(tenant), name: format!("t{tenant}").parse().unwrap() };
        CacheKey::new(&tenant, &Namespace::of_host("test"), text).unwrap()
    }

    fn entry(stamp: u64, bytes: usize) -> Entry {
        let wish = Wish { tags: vec![Tag::given("t").unwrap()], stale_ms: 1_000, ..Wish::default() };
        made(Content::Value(Bytes::from(vec![7; bytes])), Stamp(stamp), &wish, 1_000, NOW, 0.0)
    }

    #[test]
    fn a_tenants_quota_is_exact_and_takes_nothing_from_another() {
        let memory = Memory::new(1 << 20);
        memory.put(&key(2, "theirs"), entry(1, 100), 0);
        for number in 0..5_000 {
            memory.put(&key(1, &number.to_string()), entry(1, 1_000), 0);
            assert!(memory.usage(TenantId(1)).bytes <= 1 << 20);
        }
        assert!(memory.usage(TenantId(1)).bytes > 1_000_000, "the quota is used");
        assert!(memory.get(&key(2, "theirs")).is_some());
        assert_eq!(memory.total().entries, memory.usage(TenantId(1)).entries + 1);
        assert!(memory.clear(TenantId(1)) > 0 && memory.total().entries == 1);
    }

    #[test]
    fn the_newer_of_two_is_held() {
        let memory = Memory::new(1 << 20);
        let key = key(1, "k");
        for (stamp, expected) in [(5, 5), (4, 5), (6, 6)] {
            memory.put(&key, entry(stamp, 1), 0);
            assert_eq!(memory.get(&key).unwrap().entry.stamp, Stamp(expected));
        }
    }

    #[test]
    fn what_is_older_than_a_clear_is_not_taken_any_more() {
        let memory = Memory::new(1 << 20);
        memory.put(&key(1, "old"), entry(4, 1), 0);
        memory.put(&key(1, "new"), entry(6, 1), 0);
        memory.cleared(TenantId(1), Stamp(5));
        memory.put(&key(1, "late"), entry(5, 1), 0);
        memory.put(&key(2, "theirs"), entry(5, 1), 0);
        assert!(memory.get(&key(1, "old")).is_none() && memory.get(&key(1, "late")).is_none());
        assert!(memory.get(&key(1, "new")).is_some() && memory.get(&key(2, "theirs")).is_some());

        // The note itself is as good as a message.
        let note = CacheKey::cleared(key(1, "k").tenant());
        memory.put(&note, Entry::marker(Stamp(7), NOW), 0);
        assert!(memory.get(&key(1, "new")).is_none() && memory.get(&note).is_some());
        // To know that there is none is no clear.
        memory.put(&note, removed(Stamp(9), NOW), 0);
        memory.put(&key(1, "new"), entry(8, 1), 0);
        assert!(memory.get(&key(1, "new")).is_some());
    }

    #[test]
    fn a_change_elsewhere_counts_when_it_is_newer() {
        let held = |kind, stamp| {
            let memory = Memory::new(1 << 20);
            memory.put(&key(1, "k"), entry(5, 1), 0);
            memory.change(&key(1, "k"), kind, Stamp(stamp), NOW + 10);
            memory.get(&key(1, "k")).map(|held| judge(&held.entry, None, NOW + 10))
        };
        assert_eq!(held(ChangeKind::Set, 6), None);
        assert_eq!(held(ChangeKind::Remove, 6), Some(Verdict::Gone(Why::Removed)));
        assert_eq!(held(ChangeKind::Expire, 6), Some(Verdict::Stale));
        for kind in [ChangeKind::Set, ChangeKind::Remove, ChangeKind::Expire] {
            assert_eq!(held(kind, 5), Some(Verdict::Fresh));
        }
        let memory = Memory::new(1 << 20);
        memory.change(&key(1, "k"), ChangeKind::Remove, Stamp(6), NOW);
        assert!(memory.get(&key(1, "k")).is_none(), "what is not held costs nothing");
    }

    #[test]
    fn a_memory_without_a_quota_holds_nothing_and_a_sweep_lets_go_what_has_ended() {
        let none = Memory::new(0);
        none.put(&key(1, "k"), entry(1, 1), 0);
        assert!(none.get(&key(1, "k")).is_none());
        let memory = Memory::new(1 << 20);
        memory.put(&key(1, "k"), entry(1, 1), 0);
        memory.put(&key(1, "gone"), removed(Stamp(1), NOW), 0);
        memory.sweep(NOW + 1_999);
        assert_eq!(memory.usage(TenantId(1)).entries, 2);
        memory.sweep(NOW + 2_000);
        assert_eq!(memory.usage(TenantId(1)).entries, 1);
    }
}
