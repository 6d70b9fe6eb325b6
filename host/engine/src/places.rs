//! What the pool of an engine holds now: places that attempts and kept instances have, and what free ones keep for their next guest.

use keiko_core::profile::Profile;
use wasmtime::PoolingAllocatorMetrics;

/// The places of one profile's pool. An engine that was not made has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Whose pool.
    pub profile: Profile,
    /// Components that are instantiated.
    pub instances: u64,
    /// Linear memories in use.
    pub memories: u64,
    /// Tables in use.
    pub tables: u64,
    /// Stacks in use.
    pub stacks: u64,
    /// Bytes that free places keep for their next guest.
    pub kept_bytes: u64,
}

impl Places {
    pub(crate) fn none(profile: Profile) -> Places {
        Places { profile, instances: 0, memories: 0, tables: 0, stacks: 0, kept_bytes: 0 }
    }

    pub(crate) fn of(profile: Profile, pool: &PoolingAllocatorMetrics) -> Places {
        let kept = [pool.unused_memory_bytes_resident(), pool.unused_table_bytes_resident()];
        let of_stacks = pool.unused_stack_bytes_resident().unwrap_or(0);
        Places {
            profile,
            instances: pool.component_instances(),
            memories: pool.memories() as u64,
            tables: pool.tables() as u64,
            stacks: pool.stacks() as u64,
            kept_bytes: (kept.into_iter().sum::<usize>() + of_stacks) as u64,
        }
    }
}
