//! Components as they are loaded now, by digest.
//!
//! An attempt takes its generation once and keeps it until it ends. A generation that was let go of is freed when
//! the last of its attempts has ended; reading the map takes no lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keiko_core::id::Digest;
use wasmtime::component::InstancePre;

use crate::bindings::TaskHostPre;
use crate::bindings::batch::BatchHostPre;
use crate::state::State;
use crate::symbols::Symbols;

/// A component that is linked and ready to be instantiated.
pub(crate) struct Generation {
    pub(crate) pre: InstancePre<State>,
    /// How its tasks are run, when it runs any.
    pub(crate) task: Option<TaskHostPre<State>>,
    /// How its batches are worked, when it works any.
    pub(crate) batch: Option<BatchHostPre<State>>,
    pub(crate) symbols: Arc<Symbols>,
}

impl Generation {
    pub(crate) fn digest(&self) -> Digest {
        self.symbols.digest()
    }
}

/// The map of generations.
#[derive(Default)]
pub(crate) struct Registry {
    live: ArcSwap<HashMap<Digest, Arc<Generation>>>,
}

impl Registry {
    /// The generation of a digest.
    pub(crate) fn get(&self, digest: Digest) -> Option<Arc<Generation>> {
        self.live.load().get(&digest).cloned()
    }

    /// Adds a generation; one of the same digest stays, because it is the same.
    pub(crate) fn insert(&self, generation: Generation) {
        let generation = Arc::new(generation);
        self.live.rcu(|live| {
            let mut live = HashMap::clone(live);
            live.entry(generation.digest()).or_insert_with(|| generation.clone());
            live
        });
    }

    /// Lets go of every generation that is not in `keep`.
    pub(crate) fn retain(&self, keep: &[Digest]) {
        let keep: HashSet<&Digest> = keep.iter().collect();
        self.live.rcu(|live| {
            let mut live = HashMap::clone(live);
            live.retain(|digest, _| keep.contains(digest));
            live
        });
    }

    /// How many components are loaded.
    pub(crate) fn len(&self) -> usize {
        self.live.load().len()
    }
}
