//! The one constructor of `wasmtime::Engine`.
//!
//! Everything that decides what code is generated stands here once, so that an artifact made by the compile
//! child loads in the serving process and nothing made under other settings does. The two uses differ only in how
//! instances are allocated, which generated code does not depend on. The two profiles differ in their code: an artifact of one
//! is foreign to the other.
//!
//! Figures behind the pool's settings (p50 of an attempt, CPU time): 19-22 µs with the settings here, 48 µs without
//! pagemap_scan, 39 µs without a pool.

use std::num::NonZeroUsize;

use keiko_core::limit::{
    ASYNC_STACK_BYTES, BACKTRACE_FRAMES_MAX, COMPONENT_TASKS_MAX, CORE_INSTANCES_MAX, KEPT_PER_HOST_MAX,
    MEMORIES_MAX, MIB, TABLE_ELEMENTS_MAX, TABLES_MAX, WASM_STACK_BYTES,
};
use keiko_core::policy::BUDGET_CEILING;
use keiko_core::profile::Profile;
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails, WasmFeatures,
};

/// Instances beside those of running attempts: the trial instantiation of an install, and attempts that are
/// being dropped while their successors start.
const SPARE_INSTANCES: u32 = 8;
/// Places of each sort that keep something while no guest uses them. A component finds its own place again there, so more
/// of them make more components quick.
const WARM_PLACES_MAX: u32 = 40;
/// Bytes of a linear memory that a place keeps for its next guest: more than a guest in Rust (26 KiB), TypeScript or Python
/// dirties before it does anything of its own. What goes beyond is faulted in anew by every guest, and its pages are taken
/// from all processors: with 128 KiB two threads made half as many TypeScript guests as one. What places keep stays with
/// the process however greedy a guest was: 23 MiB of all places, with tables and stacks.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 << 10;
/// Bytes of a table that a place keeps: a guest in TypeScript dirties seven pages of its table.
const TABLE_KEEP_RESIDENT_BYTES: usize = 32 << 10;
/// Bytes of a fiber's stack that a place keeps.
const STACK_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Bytes of one instance's own bookkeeping: globals, function references, table and memory descriptors.
const INSTANCE_BYTES_MAX: usize = 4 * MIB as usize;

/// Stacks of all attempts together where each may have as many as it has tasks: every stack is two mappings of the process,
/// of which Linux has 65,530.
const STACKS_MAX: u32 = 16_384;

/// What an engine is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Running up to so many attempts at once.
    Serve {
        /// Attempts.
        running_max: usize,
    },
    /// Compiling, in a process of its own.
    Compile,
}

/// An engine for `purpose`. No other place makes one.
pub fn engine(purpose: Purpose, profile: Profile) -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&settings(purpose, profile))
}

fn settings(purpose: Purpose, profile: Profile) -> Config {
    let mut config = Config::new();
    meter(&mut config);
    features(&mut config, profile);
    config.allocation_strategy(match purpose {
        Purpose::Serve { running_max } => InstanceAllocationStrategy::Pooling(pool(running_max, profile)),
        Purpose::Compile => InstanceAllocationStrategy::OnDemand,
    });
    config
}

fn meter(config: &mut Config) {
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES)
        // A guest's backtrace has names and places. wasmtime 48 would parse the DWARF anew for every frame of every
        // trap, on the thread that runs the guest, without a limit; `symbols` reads it apart.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        // Equal runs are equal on every machine: needed for replay and for memoized results.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true);
}

/// What toolchains emit today is on. What is not needed is off at run time, though compiled in: some advisories of
/// 2026 are aborts only in builds without it. Of the component model's concurrency the one profile has nothing, which costs an
/// attempt 7 µs less, and the other what is finished: functions that are lifted or lowered `async`, with a callback.
///
/// Modules with several memories are on for wasmtime's own glue: where parts of a composed component hand each other texts or lists, it
/// makes a module that has the memories of both. It is WebAssembly as any other, compiled and bounded with the rest. What guests
/// bring has one memory in a module, which `scan` sees to: no toolchain that is known here makes more.
fn features(config: &mut Config, profile: Profile) {
    let has_concurrency = profile == Profile::Concurrent;
    let off = WasmFeatures::GC
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::FUNCTION_REFERENCES
        | WasmFeatures::THREADS
        | WasmFeatures::SHARED_EVERYTHING_THREADS
        | WasmFeatures::MEMORY64
        | WasmFeatures::CUSTOM_PAGE_SIZES
        | WasmFeatures::STACK_SWITCHING
        | WasmFeatures::WIDE_ARITHMETIC
        | WasmFeatures::CM_MORE_ASYNC_BUILTINS
        | WasmFeatures::CM_ASYNC_STACKFUL
        | WasmFeatures::CM_THREADING
        | WasmFeatures::CM_ERROR_CONTEXT
        | WasmFeatures::CM_GC;
    config
        .wasm_component_model(true)
        .wasm_features(off, false)
        .wasm_features(WasmFeatures::MULTI_MEMORY, true)
        .wasm_features(WasmFeatures::CM_ASYNC, has_concurrency)
        .shared_memory(false)
        .concurrency_support(has_concurrency);
}

fn pool(running_max: usize, profile: Profile) -> PoolingAllocationConfig {
    let running = u32::try_from(running_max).unwrap_or(u32::MAX / 64).saturating_add(SPARE_INSTANCES);
    let instances = running.saturating_add(KEPT_PER_HOST_MAX as u32);
    // An attempt instantiates and calls on one fiber each, one after the other; a kept store keeps its last.
    let stacks = match profile {
        Profile::Strict => instances,
        Profile::Concurrent => instances.saturating_mul(COMPONENT_TASKS_MAX as u32).min(STACKS_MAX),
    };
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(instances.saturating_mul(MEMORIES_MAX))
        .total_tables(instances.saturating_mul(TABLES_MAX))
        .total_gc_heaps(instances)
        .total_stacks(stacks)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_memories_per_module(MEMORIES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_memory_size(BUDGET_CEILING.memory_bytes as usize)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_unused_warm_slots(WARM_PLACES_MAX)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .async_stack_keep_resident(STACK_KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    pool
}
