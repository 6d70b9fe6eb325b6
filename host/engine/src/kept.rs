//! Instances that are kept for the next attempt, when a plugin's manifest asks for it.
//!
//! An instance is one tenant's and one version's: what a guest left in its memory is seen by attempts of the same tenant and
//! version only. It is kept only when its call returned within every limit; whatever trapped, was stopped, met a limit, still
//! holds a right that others wait for, has a task, a stream or a set of waitables left, or was swapped out is dropped.
//!
//! What bounds them: so many of a version, calls of each and idle time, by the manifest; [`KEPT_PER_HOST_MAX`] and
//! [`KEPT_BYTES_MAX`] of a host, where the tenant that keeps most gives its oldest up first. An instance that holds more than
//! half of an attempt's memory, or more than [`KEPT_RESOURCES_MAX`] handles, is not kept, so that what a guest leaks ends the
//! instance and not a later task. Kept instances stand in places of the pool that are there for them, so they never keep an
//! attempt from starting.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use keiko_core::VersionId;
use keiko_core::id::Digest;
use keiko_core::limit::{KEPT_BYTES_MAX, KEPT_PER_HOST_MAX, KEPT_RESOURCES_MAX};
use keiko_core::name::TenantName;
use keiko_core::port::Keep;
use parking_lot::Mutex;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

use crate::attempt;
use crate::registry::Generation;
use crate::state::State;

/// A store that is called: with an instance that was kept, or none yet.
pub(crate) struct Place {
    pub(crate) store: Store<State>,
    instance: Option<Instance>,
    /// Attempts that the instance has run.
    calls: u32,
}

impl Place {
    /// A store that is used for the first time.
    pub(crate) fn fresh(store: Store<State>) -> Place {
        Place { store, instance: None, calls: 0 }
    }

    /// The instance to call: the kept one, or one that is made now.
    pub(crate) async fn instance(&mut self, pre: &InstancePre<State>) -> wasmtime::Result<Instance> {
        if let Some(instance) = self.instance {
            return Ok(instance);
        }
        let instance = pre.instantiate_async(&mut self.store).await?;
        self.instance = Some(instance);
        Ok(instance)
    }

    /// Calls what the guest wants called before it is used again, if anything.
    pub(crate) async fn reset(&mut self, generation: &Generation) -> wasmtime::Result<()> {
        let (Some(instance), Some(reset)) = (self.instance, &generation.reset) else { return Ok(()) };
        let reset = instance.get_typed_func::<(), ()>(&mut self.store, reset)?;
        reset.call_async(&mut self.store, ()).await
    }
}

/// An instance between two attempts.
struct Kept {
    place: Place,
    digest: Digest,
    tenant: TenantName,
    keep: Keep,
    memory_bytes: u64,
    since: Instant,
}

impl Kept {
    /// Whether it may run an attempt that has this much memory.
    fn is_fit(&self, keep: &Keep, memory_bytes_max: u64) -> bool {
        self.place.calls < keep.reuse.calls
            && is_small(self.memory_bytes, memory_bytes_max)
            && self.since.elapsed() < Duration::from_secs(keep.reuse.idle_s)
    }

    fn is_idle(&self) -> bool {
        self.since.elapsed() >= Duration::from_secs(self.keep.reuse.idle_s)
    }
}

/// Whether what an instance holds leaves an attempt half of its memory.
fn is_small(memory_bytes: u64, memory_bytes_max: u64) -> bool {
    memory_bytes <= memory_bytes_max / 2
}

/// The kept instances of a host, and what became of attempts that wanted one.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Mutex<Places>,
    pub(crate) reused: AtomicU64,
    pub(crate) fresh: AtomicU64,
    pub(crate) resets_failed: AtomicU64,
}

/// What is kept, and for whom.
#[derive(Default)]
struct Places {
    /// By version, the oldest first; a version is one tenant's.
    kept: HashMap<VersionId, Vec<Kept>>,
    /// Versions that new attempts run; `None` until somebody says which. One that is not among them may share its component with one that is.
    live: Option<HashSet<VersionId>>,
}

impl Places {
    fn is_live(&self, version: VersionId) -> bool {
        self.live.as_ref().is_none_or(|live| live.contains(&version))
    }

    fn discard(&mut self, gone: impl Fn(VersionId, &Kept) -> bool) -> Vec<Kept> {
        let mut dropped = Vec::new();
        self.kept.retain(|version, kept| {
            dropped.extend(kept.extract_if(.., |kept| gone(*version, kept)));
            !kept.is_empty()
        });
        dropped
    }
}

impl Pool {
    /// The instance that was kept last, if one may run an attempt that has this much memory.
    pub(crate) fn take(
        &self,
        generation: &Generation,
        tenant: &TenantName,
        keep: &Keep,
        memory_bytes_max: u64,
    ) -> Option<Place> {
        let (mut unfit, mut found) = (Vec::new(), None);
        let mut pool = self.kept.lock();
        let kept = pool.kept.get_mut(&keep.version)?;
        while let Some(last) = kept.pop() {
            let is_ours = last.tenant == *tenant && last.digest == generation.digest();
            if is_ours && last.is_fit(keep, memory_bytes_max) {
                found = Some(last.place);
                break;
            }
            unfit.push(last);
        }
        // What is let go of gives its memory back, which takes longer than a look at a list.
        drop(pool);
        drop(unfit);
        found
    }

    /// Keeps an instance whose call returned, or drops it.
    pub(crate) fn put(&self, generation: &Generation, keep: Keep, mut place: Place, memory_bytes_max: u64) {
        place.calls += 1;
        // What goes on behind an answer is not carried into the next attempt, nor paid for by it.
        let is_quiet = attempt::waitables(&mut place.store) == 0;
        let state = place.store.data_mut();
        let memory_bytes = state.limiter.memory_bytes();
        let is_fit = place.calls < keep.reuse.calls
            && is_quiet
            && is_small(memory_bytes, memory_bytes_max)
            && !state.holds_fill
            && state.resources() <= KEPT_RESOURCES_MAX;
        if !is_fit {
            return;
        }
        let tenant = state.facts.tenant.clone();
        state.rest();
        let since = Instant::now();
        let kept = Kept { place, digest: generation.digest(), tenant, keep, memory_bytes, since };
        let mut dropped = Vec::new();
        let mut pool = self.kept.lock();
        // Asked under the lock: whoever retires a generation empties the pool afterwards.
        if generation.is_live() && pool.is_live(keep.version) {
            let all = pool.kept.entry(keep.version).or_default();
            all.push(kept);
            let over = all.len().saturating_sub(keep.reuse.instances as usize);
            dropped.extend(all.drain(..over));
            dropped.extend(bound(&mut pool.kept));
        } else {
            dropped.push(kept);
        }
        drop(pool);
    }

    /// Drops what versions left that are not used any more, and what generations did.
    pub(crate) fn retire(&self, is_live: impl Fn(&Digest) -> bool, versions: HashSet<VersionId>) {
        let mut pool = self.kept.lock();
        let dropped = pool.discard(|version, kept| !versions.contains(&version) || !is_live(&kept.digest));
        pool.live = Some(versions);
        drop(pool);
        drop(dropped);
    }

    /// Drops what was idle for too long.
    pub(crate) fn sweep(&self) {
        let dropped = self.kept.lock().discard(|_, kept| kept.is_idle());
        drop(dropped);
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.lock().kept.values().map(Vec::len).sum()
    }
}

/// Takes out what is beyond a host's bounds: of the tenant that keeps most, the oldest.
fn bound(pool: &mut HashMap<VersionId, Vec<Kept>>) -> Vec<Kept> {
    let mut dropped = Vec::new();
    loop {
        let all = pool.values().flatten();
        let (count, bytes) = all.fold((0, 0), |(count, bytes), kept| (count + 1, bytes + kept.memory_bytes));
        if count <= KEPT_PER_HOST_MAX && bytes <= KEPT_BYTES_MAX {
            return dropped;
        }
        let mut counts = HashMap::<&TenantName, usize>::new();
        pool.values().flatten().for_each(|kept| *counts.entry(&kept.tenant).or_default() += 1);
        let Some(most) = counts.into_iter().max_by_key(|(_, count)| *count).map(|(tenant, _)| tenant.clone())
        else {
            return dropped;
        };
        let of_most = pool.values_mut().filter(|kept| kept.first().is_some_and(|kept| kept.tenant == most));
        match of_most.min_by_key(|kept| kept.first().map(|kept| kept.since)) {
            Some(oldest) => dropped.push(oldest.remove(0)),
            None => return dropped,
        }
    }
}
