//! Limits of the HTTP side that nobody can change. Those of an operator are [`crate::config::ApiLimits`].

use keiko_core::limit::MIB;

/// Longest path with its query, in bytes.
pub const URL_BYTES_MAX: usize = 8 << 10;
/// A request's headers together, in bytes: names, values, and 4 for each line.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
/// What hyper buffers of a request's head, in bytes: enough that we, not it, refuse the heads that are only
/// somewhat too large, with an answer that says so.
pub const HEAD_BUFFER_BYTES: usize = 96 << 10;
/// A JSON body, in bytes; a task's input fits.
pub const JSON_BYTES_MAX: u64 = 3 * MIB;
/// The body of a submit of many tasks, in bytes. Over [`JSON_BYTES_MAX`] it counts as an upload.
pub const BULK_BYTES_MAX: u64 = 64 * MIB;
/// Objects and lists within each other in a JSON body.
pub const JSON_DEPTH_MAX: usize = 64;
/// Longest `wait`, in seconds.
pub const WAIT_S_MAX: u64 = 60;
/// Longest page of a list.
pub const PAGE_MAX: u32 = 1_000;
/// Page of a list that asks for none.
pub const PAGE_DEFAULT: u32 = 100;
/// Longest page of a user's tasks, whose results come with them.
pub const USER_TASKS_MAX: u32 = 100;
/// Results of such a page together, in bytes; the first is exempt.
pub const USER_TASKS_BYTES_MAX: usize = keiko_core::limit::USER_RESULTS_BYTES_MAX as usize;
/// Page of a user's tasks that asks for none.
pub const USER_TASKS_DEFAULT: u32 = 20;
/// Longest page of a group's outcomes, whose results come with them.
pub const OUTCOMES_MAX: u32 = 1_000;
/// Page of a group's outcomes that asks for none.
pub const OUTCOMES_DEFAULT: u32 = 100;
/// Items of a page together, in bytes; the first is exempt.
pub const ITEMS_BYTES_MAX: usize = 16 << 20;
/// Longest range of statistics, in days.
pub const STATISTICS_DAYS_MAX: i64 = 366;
/// Longest request id that is taken from a client, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Answers about the host's own health at once.
pub const HEALTH_MAX: usize = 64;
/// Connections beyond the limit that are told so, at once; the others are closed without a word.
pub const REFUSALS_MAX: usize = 64;
/// What is read and thrown away of a body that was refused, in bytes, so that its sender sees the answer: as much as the
/// largest body that is taken.
pub const DISCARD_BYTES_MAX: u64 = BULK_BYTES_MAX;
/// How long that may take, in seconds.
pub const DISCARD_S_MAX: u64 = 5;
