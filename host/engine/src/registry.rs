//! Components as they are loaded now, by digest.
//!
//! An attempt takes its generation once and keeps it until it ends. A generation that was let go of is freed when
//! the last of its attempts has ended; reading the map takes no lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use keiko_core::VersionId;
use keiko_core::id::Digest;
use keiko_core::profile::Profile;
use wasmtime::component::{ComponentExportIndex, InstancePre};

use crate::bindings::TaskHostIndices;
use crate::bindings::batch::BatchHostIndices;
use crate::kept::Pool;
use crate::state::State;
use crate::symbols::Symbols;

/// How a component runs tasks.
pub(crate) enum Tasks {
    /// As a plugin of our world.
    Plugin(TaskHostIndices),
    /// As a WASI program, by this function.
    Program(ComponentExportIndex),
}

/// A component with everything that it imports, and what it can be called for.
pub(crate) struct Linked {
    pub(crate) pre: InstancePre<State>,
    pub(crate) tasks: Option<Tasks>,
    pub(crate) batch: Option<BatchHostIndices>,
    pub(crate) reset: Option<ComponentExportIndex>,
}

/// A component that is linked and ready to be instantiated.
pub(crate) struct Generation {
    pub(crate) pre: InstancePre<State>,
    /// How its tasks are run, when it runs any.
    pub(crate) tasks: Option<Tasks>,
    /// How its batches are worked, when it works any.
    pub(crate) batch: Option<BatchHostIndices>,
    /// What it wants called before an instance is used again.
    pub(crate) reset: Option<ComponentExportIndex>,
    pub(crate) symbols: Arc<Symbols>,
    /// Whose engine it is loaded into.
    pub(crate) profile: Profile,
    /// Whether new attempts run it; the registry says so.
    is_live: AtomicBool,
    /// Whether its machine code was made here and the other hosts have not been handed it.
    is_unshared: AtomicBool,
    _held: Held,
}

/// Counts a generation for as long as it is in memory.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Generation {
    pub(crate) fn digest(&self) -> Digest {
        self.symbols.digest()
    }

    /// Notes that its machine code was made here.
    pub(crate) fn made_here(&self) {
        self.is_unshared.store(true, Ordering::Release);
    }

    /// Whether the other hosts are to be handed its machine code: once.
    pub(crate) fn take_unshared(&self) -> bool {
        self.is_unshared.swap(false, Ordering::AcqRel)
    }

    /// Whether new attempts run it.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Acquire)
    }
}

/// The map of generations.
#[derive(Default)]
pub(crate) struct Registry {
    live: ArcSwap<HashMap<Digest, Arc<Generation>>>,
    /// How many generations are in memory; shared with each of them.
    held: Arc<AtomicUsize>,
    /// Instances that wait for their next attempt.
    pub(crate) pool: Pool,
}

impl Registry {
    /// A generation that is counted here, and not in the map yet.
    pub(crate) fn generation(&self, linked: Linked, profile: Profile, symbols: Arc<Symbols>) -> Generation {
        self.held.fetch_add(1, Ordering::Relaxed);
        let Linked { pre, tasks, batch, reset } = linked;
        let (is_live, is_unshared) = (AtomicBool::new(false), AtomicBool::new(false));
        let held = Held(Arc::clone(&self.held));
        Generation { pre, tasks, batch, reset, symbols, profile, is_live, is_unshared, _held: held }
    }

    /// The generation of a digest.
    pub(crate) fn get(&self, digest: Digest) -> Option<Arc<Generation>> {
        self.live.load().get(&digest).cloned()
    }

    /// Adds a generation; one of the same digest stays, because it is the same.
    pub(crate) fn insert(&self, generation: Generation) {
        let generation = Arc::new(generation);
        generation.is_live.store(true, Ordering::Release);
        self.live.rcu(|live| {
            let mut live = HashMap::clone(live);
            live.entry(generation.digest()).or_insert_with(|| generation.clone());
            live
        });
    }

    /// Lets go of every generation that is not in `keep`, and of the kept instances of all versions but these.
    pub(crate) fn retain(&self, keep: &[Digest], versions: &[VersionId]) {
        let keep: HashSet<&Digest> = keep.iter().collect();
        let before = self.live.rcu(|live| {
            let mut live = HashMap::clone(live);
            live.retain(|digest, _| keep.contains(digest));
            live
        });
        let gone = before.values().filter(|generation| !keep.contains(&generation.digest()));
        gone.for_each(|generation| generation.is_live.store(false, Ordering::Release));
        self.pool.retire(|digest| keep.contains(digest), versions.iter().copied().collect());
    }

    /// How many generations are in memory, those that drain included.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many components are loaded.
    pub(crate) fn len(&self) -> usize {
        self.live.load().len()
    }
}
