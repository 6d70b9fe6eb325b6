//! Every limit that is not a tenant's to change, and the shape in which a limit is told.
//!
//! Limits that a policy can lower or raise are fields of [`crate::policy::TenantPolicy`]; their defaults are
//! in [`crate::policy`]. Each constant here has a test at the limit and one above.

use std::fmt;

/// One kibibyte and one mebibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// See [`KIB`].
pub const MIB: u64 = 1 << 20;

/// Largest task input, in bytes.
pub const INPUT_BYTES_MAX: u64 = 2 * MIB;
/// Largest task result, in bytes.
pub const RESULT_BYTES_MAX: u64 = 2 * MIB;
/// Longest media type of an input or a result, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// How long an idempotency key is remembered, in milliseconds.
pub const KEY_AGE_MS: i64 = 24 * 60 * 60 * 1000;
/// Longest failure message kept, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 * KIB as usize;
/// Longest delay of a submit, in milliseconds: 366 days.
pub const DELAY_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;

/// Longest time-out that a task may ask for, in milliseconds: 366 days.
pub const TIME_OUT_MS_MAX: u64 = DELAY_MS_MAX;
/// Longest wall clock of a run that is no task, whose caller waits, in milliseconds.
pub const RUN_WALL_MS_MAX: u64 = 60_000;

/// WebAssembly stack of an attempt, in bytes.
pub const WASM_STACK_BYTES: usize = 512 * KIB as usize;
/// Native stack of an attempt's fiber, in bytes.
pub const ASYNC_STACK_BYTES: usize = 2 * MIB as usize;
/// Time between two epoch ticks, in milliseconds; a guest yields at each.
pub const EPOCH_TICK_MS: u64 = 10;
/// Bytes one host call may carry into or out of the host.
pub const HOSTCALL_BYTES_MAX: usize = 4 * MIB as usize;
/// Entries of an attempt's host resource table.
pub const RESOURCES_MAX: usize = 1_024;
/// Seconds that a tenant's uploads may take of the compiler in an hour, on each host: one processor's time.
pub const COMPILE_SECONDS_HOUR_MAX: u64 = 3_600;
/// Component handles of an attempt.
pub const HANDLES_MAX: usize = 1_000;
/// What an attempt has at once of the component model's concurrency, where its engine has that: a waitable set is one, and a
/// task of a component, a stream or a future is three.
pub const WAITABLES_MAX: usize = 128;
/// Tasks among them at most: each of them may hold a stack.
pub const COMPONENT_TASKS_MAX: usize = WAITABLES_MAX / 3;
/// Random bytes one call may ask for.
pub const RANDOM_BYTES_MAX: u64 = 64 * KIB;
/// Table elements of an attempt, all tables together.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Core instances of an attempt.
pub const CORE_INSTANCES_MAX: u32 = 16;
/// Linear memories of an attempt.
pub const MEMORIES_MAX: u32 = 4;
/// Tables of an attempt.
pub const TABLES_MAX: u32 = 8;
/// Frames of a guest backtrace.
pub const BACKTRACE_FRAMES_MAX: usize = 20;
/// Fuel that every host call costs.
pub const HOSTCALL_FUEL_BASE: u64 = 400;
/// Fuel that every byte of a host call costs.
pub const HOSTCALL_FUEL_PER_BYTE: u64 = 1;

/// Largest component, in bytes, unless a policy raises it.
pub const COMPONENT_BYTES_MAX: u64 = 32 * MIB;
/// Largest component a policy may allow, in bytes.
pub const COMPONENT_BYTES_CEILING: u64 = 64 * MIB;
/// Largest compiled artifact, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 96 * MIB;
/// Address space of the compile child, in bytes.
pub const COMPILE_ADDRESS_SPACE_BYTES: u64 = 1536 * MIB;
/// CPU time of the compile child, in seconds.
pub const COMPILE_CPU_SECONDS: u64 = 60;

/// Bytes of results that a page of a user's tasks loads. The task with which they are more still comes, so that whoever
/// shows less sees that there is more; further ones are left for the next page.
pub const USER_RESULTS_BYTES_MAX: u64 = 16 * MIB;

/// Guest log bytes kept with an attempt.
pub const LOG_BYTES_MAX: usize = MIB as usize;
/// Guest log bytes taken within one second.
pub const LOG_BYTES_PER_SECOND: usize = 64 * KIB as usize;
/// Longest log message, in bytes.
pub const LOG_MESSAGE_BYTES_MAX: usize = 8 * KIB as usize;
/// Fields of a log line.
pub const LOG_FIELDS_MAX: usize = 16;
/// Longest name of a log field, in bytes.
pub const LOG_FIELD_NAME_BYTES_MAX: usize = 64;
/// Longest value of a log field, in bytes.
pub const LOG_FIELD_VALUE_BYTES_MAX: usize = KIB as usize;
/// Longest progress message, in bytes.
pub const PROGRESS_MESSAGE_BYTES_MAX: usize = KIB as usize;
/// Bytes of one piece of what a running attempt gives out: it goes to other hosts in one message.
pub const OUTPUT_PIECE_BYTES_MAX: usize = 4 * KIB as usize;
/// Pieces that one attempt gives out.
pub const OUTPUT_PIECES_MAX: u64 = 10_000;
/// Bytes that one attempt gives out.
pub const OUTPUT_BYTES_MAX: u64 = 8 * MIB;
/// Bytes of it that are kept while it runs, for who begins to watch: the newest.
pub const OUTPUT_KEPT_BYTES_MAX: usize = 64 * KIB as usize;

/// Instances of one plugin, version and tenant that a host keeps for reuse.
pub const KEPT_INSTANCES_MAX: u32 = 50;
/// Attempts that one of them runs.
pub const KEPT_CALLS_MAX: u32 = 1_000_000;
/// Seconds for which one of them may be idle.
pub const KEPT_IDLE_S_MAX: u64 = 3_600;
/// Instances of all plugins and tenants that a host keeps.
pub const KEPT_PER_HOST_MAX: usize = 200;
/// Bytes of linear memory of all of them together.
pub const KEPT_BYTES_MAX: u64 = 512 * MIB;
/// Host resources, such as streams, that one of them holds.
pub const KEPT_RESOURCES_MAX: usize = 64;

/// The largest part of a plugin's tasks and batches that may try a canary, in percent.
pub const CANARY_PERCENT_MAX: u8 = 50;
/// Tasks and batches that try a canary, together, before there is a verdict.
pub const CANARY_TASKS_MAX: u32 = 200;
/// How long the verdict waits at least for those that do not tell, in milliseconds; longer where attempts may take longer.
pub const CANARY_PATIENCE_MS: i64 = 600_000;
/// Bytes that are kept of why a task or a batch failed on a canary.
pub const CANARY_FAILURE_BYTES_MAX: usize = 1_000;

/// Effects of one attempt.
pub const EFFECTS_MAX: usize = 1_000;
/// Bytes of one attempt's effects together.
pub const EFFECT_BYTES_MAX: usize = 8 * MIB as usize;

/// Agents or users that one call makes, loads, or gives statuses.
pub const AGENTS_MAX: usize = 1_000;
/// Longest page that a guest may ask for, and the page of one that names no length.
pub const GUEST_PAGE_MAX: u32 = 100;

/// Largest payload of an item, in bytes.
pub const ITEM_BYTES_MAX: u64 = MIB;
/// Longest key of an item, in bytes.
pub const ITEM_KEY_BYTES_MAX: usize = 255;
/// Items that one call adds.
pub const ADD_ITEMS_MAX: usize = 10_000;
/// Processors of one plugin.
pub const PROCESSORS_MAX: usize = 100;
/// Items of a batch, unless its processor asks for another number.
pub const BATCH_ITEMS: u64 = 100;
/// Most items of a batch that a policy can allow.
pub const BATCH_ITEMS_MAX: u64 = 10_000;
/// Bytes of a batch, unless its processor asks for another number.
pub const BATCH_BYTES: u64 = MIB;
/// Most bytes of a batch that a policy can allow.
pub const BATCH_BYTES_MAX: u64 = 8 * MIB;
/// How long an item waits for others, unless its processor asks for another time, in milliseconds.
pub const BATCH_AGE_MS: u64 = 5_000;
/// The longest that an item can wait for others, in milliseconds: an hour.
pub const BATCH_AGE_MS_MAX: u64 = 3_600_000;
/// Times an item is handed over, unless its processor asks for another number.
pub const BATCH_ATTEMPTS: u64 = 5;
/// Most times an item can be handed over.
pub const BATCH_ATTEMPTS_MAX: u64 = 100;
/// Batches of one processor that a host works at once, unless it asks for another number.
pub const BATCH_IN_FLIGHT: u64 = 2;
/// Most batches of one processor that a host works at once.
pub const BATCH_IN_FLIGHT_MAX: u64 = 16;
/// Bytes of items that a host has in memory at once.
pub const BATCH_MEMORY_BYTES: u64 = 256 * MIB;
/// Items that fail alone, one after the other and without one success, until their processor counts as broken.
pub const BAD_LEAVES_MAX: u32 = 20;

/// Tasks of one bulk submit.
pub const BULK_TASKS_MAX: usize = 10_000;
/// Tasks that a host has leased and not started.
pub const LOCAL_QUEUE_MAX: usize = 1_000;
/// Bytes of the inputs of those tasks, from which on a host leases only of tenants of whom none waits: as much as one lease loads.
pub const LOCAL_QUEUE_BYTES_MAX: usize = 64 * MIB as usize;
/// Attempts that run on one worker thread at once.
pub const RUNNING_PER_WORKER_MAX: usize = 16;
/// Calls that block a thread and that attempts of one worker thread have under way at once, unless the host says otherwise.
pub const BLOCKING_PER_WORKER: usize = 4;
/// The same for everything else of a host.
pub const BLOCKING_PER_HOST: usize = 64;
/// Attempts that run on one host at once.
pub const RUNNING_PER_HOST_MAX: usize = 100;

/// How long a lease lasts without a beat, in milliseconds.
pub const LEASE_MS: i64 = 30_000;
/// Time between two beats, in milliseconds.
pub const BEAT_MS: u64 = 5_000;
/// Time between two beats of a host that holds no task, in milliseconds.
pub const IDLE_BEAT_MS: u64 = 20_000;
/// A host that could not beat for this long stops its own attempts, in milliseconds.
pub const SELF_CANCEL_MS: u64 = 20_000;

/// Who set a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetBy {
    /// The host's own constant or default.
    Host,
    /// The tenant's policy.
    Tenant,
    /// The kind's entry in the plugin's manifest.
    Manifest,
    /// The submit.
    Task,
    /// What is left of the budget that all tasks of a tree share.
    Tree,
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SetBy::Host => "the host",
            SetBy::Tenant => "the tenant's policy",
            SetBy::Manifest => "the plugin's manifest",
            SetBy::Task => "the task",
            SetBy::Tree => "the tree of the task",
        })
    }
}

/// A limit that was met: what a person needs to see why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LimitFact {
    /// The limit's name with its unit, for example `memory_bytes`.
    pub name: String,
    /// The limit.
    pub limit: u64,
    /// What was asked for or reached, when it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub asked: Option<u64>,
    /// Who set the limit.
    pub set_by: SetBy,
}

impl LimitFact {
    /// A limit of the host's own.
    pub fn of_host(name: &str, limit: u64, asked: Option<u64>) -> LimitFact {
        LimitFact { name: name.to_owned(), limit, asked, set_by: SetBy::Host }
    }
}

impl fmt::Display for LimitFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(asked) = self.asked {
            write!(f, "{asked} exceeds ")?;
        }
        write!(f, "the limit `{}` of {}, set by {}", self.name, self.limit, self.set_by)
    }
}
