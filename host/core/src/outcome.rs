//! How an attempt ended and what it spent.

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::effect::Effects;
use crate::limit::{LimitFact, MESSAGE_BYTES_MAX};
use crate::log::LogBuffer;
use crate::stop::StopReason;
use crate::task::Payload;

/// One frame of a guest backtrace, innermost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The function's demangled name, or `wasm function N`.
    pub function: String,
    /// Source file, when the component carries debug information.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// Line in `file`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
}

/// Why an attempt failed, classified once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code that programs match on.
    pub code: Code,
    /// For the person who reads the task; at most [`MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// The limit that was met, if one was.
    pub limit: Option<LimitFact>,
    /// Where the guest was.
    pub backtrace: Vec<Frame>,
    /// What the plugin said about another attempt, where the code leaves that to it.
    pub retry: RetryWish,
}

/// What a failure itself says about another attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryWish {
    /// The code's own class decides.
    #[default]
    ByCode,
    /// The plugin says that another attempt may help, after at least so many milliseconds.
    After(Option<u64>),
}

impl Failure {
    /// A failure with nothing but its code and a message, which is cut to its limit.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        let mut message = message.into();
        cut(&mut message, MESSAGE_BYTES_MAX);
        Failure { code, message, limit: None, backtrace: Vec::new(), retry: RetryWish::ByCode }
    }

    /// The failure to stay inside `fact`.
    pub fn at_limit(code: Code, fact: LimitFact) -> Failure {
        let mut failure = Failure::new(code, fact.to_string());
        failure.limit = Some(fact);
        failure
    }
}

/// Cuts `text` to at most `bytes_max` bytes, at a character's edge.
pub fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

/// What happened in an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plugin returned a result.
    Completed(Payload),
    /// It did not, for this reason.
    Failed(Failure),
    /// The host ended it.
    Stopped(StopReason),
}

/// What one attempt spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Units of fuel, host calls included.
    pub fuel_used: u64,
    /// Most bytes that all linear memories held at once.
    pub memory_bytes_peak: u64,
    /// Calls from the guest to the host.
    pub host_calls: u64,
    /// Wall clock from instantiation to drop, in microseconds.
    pub elapsed_us: u64,
}

/// What a run asked of the outside, as a set. An attempt that completed with an empty set and without effects is pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Taint(pub u32);

impl Taint {
    /// Nothing was asked.
    pub const NONE: Taint = Taint(0);
    /// The wall clock was read.
    pub const WALL_CLOCK: Taint = Taint(1);
    /// The monotonic clock was read or waited on.
    pub const MONOTONIC_CLOCK: Taint = Taint(1 << 1);
    /// Secure random bytes were asked for.
    pub const RANDOM: Taint = Taint(1 << 2);
    /// Facts of the attempt were asked for.
    pub const ATTEMPT: Taint = Taint(1 << 3);
    /// Settings were read.
    pub const CONFIG: Taint = Taint(1 << 4);
    /// Children were asked for, or refused.
    pub const TASKS: Taint = Taint(1 << 5);
    /// Agents were looked up, or given statuses.
    pub const AGENTS: Taint = Taint(1 << 6);
    /// What became of other tasks was asked for.
    pub const HISTORY: Taint = Taint(1 << 7);
    /// The cache was read or written.
    pub const CACHE: Taint = Taint(1 << 8);
    /// Items were added to processors, or refused.
    pub const BATCH: Taint = Taint(1 << 9);
    /// The instance had run another attempt before.
    pub const REUSED: Taint = Taint(1 << 10);
    /// What was measured was refused, which a manifest beside the component decides. Nothing is learnt of what is taken.
    pub const METRICS: Taint = Taint(1 << 11);
    /// Random bytes that stand for secure ones were asked for and came from the seed, as the kind wants it. Nothing was asked of
    /// the outside, so a run is none the less pure; it is told because such numbers repeat and are no secret.
    pub const SEEDED: Taint = Taint(1 << 12);

    const NAMES: &'static [(Taint, &'static str)] = &[
        (Taint::WALL_CLOCK, "wall-clock"),
        (Taint::MONOTONIC_CLOCK, "monotonic-clock"),
        (Taint::RANDOM, "random"),
        (Taint::ATTEMPT, "attempt"),
        (Taint::CONFIG, "config"),
        (Taint::TASKS, "tasks"),
        (Taint::AGENTS, "agents"),
        (Taint::HISTORY, "history"),
        (Taint::CACHE, "cache"),
        (Taint::BATCH, "batch"),
        (Taint::REUSED, "reused"),
        (Taint::METRICS, "metrics"),
    ];

    /// This and that.
    #[must_use]
    pub const fn with(self, other: Taint) -> Taint {
        Taint(self.0 | other.0)
    }

    /// Whether nothing of the outside was asked.
    pub const fn is_none(self) -> bool {
        self.0 & !Taint::SEEDED.0 == 0
    }

    /// Whether random bytes that stand for secure ones came from the seed.
    pub const fn is_seeded(self) -> bool {
        self.0 & Taint::SEEDED.0 != 0
    }

    /// The names of what was asked, in a fixed order.
    pub fn names(self) -> Vec<&'static str> {
        let held = |(taint, _): &&(Taint, _)| self.0 & taint.0 != 0;
        Taint::NAMES.iter().filter(held).map(|(_, name)| *name).collect()
    }
}

/// Everything an attempt leaves behind.
#[derive(Debug)]
pub struct AttemptReport {
    /// How it ended.
    pub outcome: Outcome,
    /// What it spent.
    pub meter: Meter,
    /// What it asked of the outside.
    pub taint: Taint,
    /// What it asked to be written; empty unless it completed.
    pub effects: Effects,
    /// What it logged.
    pub log: LogBuffer,
}

impl AttemptReport {
    /// An outcome without a run.
    pub fn unrun(outcome: Outcome) -> AttemptReport {
        AttemptReport {
            outcome,
            meter: Meter::default(),
            taint: Taint::NONE,
            effects: Effects::default(),
            log: LogBuffer::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_at_a_character() {
        let failure = Failure::new(Code::Trap, "é".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(failure.message.len(), MESSAGE_BYTES_MAX);
        let odd = Failure::new(Code::Trap, format!("x{}", "é".repeat(MESSAGE_BYTES_MAX)));
        assert_eq!(odd.message.len(), MESSAGE_BYTES_MAX - 1);
    }

    #[test]
    fn taints_add_up_and_have_names() {
        let taint = Taint::NONE.with(Taint::RANDOM).with(Taint::WALL_CLOCK);
        assert_eq!(taint.names(), ["wall-clock", "random"]);
        assert!(!taint.is_none());
        assert!(Taint::NONE.names().is_empty());
        // A seed is none of the outside.
        assert!(Taint::SEEDED.is_none() && Taint::SEEDED.is_seeded() && Taint::SEEDED.names().is_empty());
        let seeded = Taint::SEEDED.with(Taint::RANDOM);
        assert!(!seeded.is_none() && !Taint::RANDOM.is_seeded() && seeded.names() == ["random"]);
    }
}
