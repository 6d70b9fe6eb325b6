//! How a run ended, said once: completed, failed by the plugin's own word, ended by a limit, trapped, stopped, or our
//! fault.
//!
//! | what ended it | code |
//! | --- | --- |
//! | fuel of guest and host calls together | `fuel_exhausted` |
//! | host calls | `hostcall_budget` |
//! | wall clock, in the guest or in a host call | `deadline_exceeded` |
//! | time in which nothing moved in a host call | `deadline_exceeded` |
//! | linear memories or tables | `memory_exceeded` |
//! | WebAssembly stack | `stack_exhausted` |
//! | bytes of one host call, random bytes of one call | `hostcall_too_large` |
//! | component handles, host resources, waitables | `handles_exceeded` |
//! | result too large or with a bad media type | `plugin_failed`, permanent |
//! | any other trap, an exit, a broken ABI | `trap` |
//! | a panic of the host, a full pool | `internal` |
//!
//! Two of wasmtime's errors have no public type and are known by their words; tests hold those words.

use keiko_core::code::Code;
use keiko_core::limit::{
    HANDLES_MAX, HOSTCALL_BYTES_MAX, LimitFact, RANDOM_BYTES_MAX, RESOURCES_MAX, TABLE_ELEMENTS_MAX,
    WAITABLES_MAX, WASM_STACK_BYTES,
};
use keiko_core::outcome::Failure;
use keiko_core::policy::{Budget, Limit};
use keiko_core::stop::StopReason;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::task::too_large_a_result;
use crate::exceeded::Exceeded;
use crate::symbols::{RawFrame, function_name};

/// What wasmtime says when one host call carries more than it may.
const HOSTCALL_TOO_LARGE: &str = "fuel allocated for hostcalls has been exhausted";
/// What wasmtime says when there are more component handles than there may be.
const HANDLES_EXCEEDED: &str = "store handle limit exceeded";

/// How the driving of a call ended.
#[derive(Debug)]
pub(crate) enum Ending<T> {
    /// The call returned, or could not.
    Returned(wasmtime::Result<T>),
    /// The guest's time or the runtime's patience was over while the guest waited.
    Exceeded(Exceeded),
    /// The engine or a host function panicked.
    Panicked(String),
}

/// What an ending means. The same for tasks and batches; a batch's failure may be an item's.
#[derive(Debug)]
pub(crate) enum Ended<R> {
    /// The guest answered, within its budget and its contract.
    Answered(R),
    /// It failed, for this reason.
    Failed(Failure),
    /// The host ended it.
    Stopped(StopReason),
}

/// The outcome of an ending. `inside` says whether the run as a whole kept to its budget; `last_words` is
/// the end of the guest's stderr; `read` makes what the guest answered ours, or says how it broke its contract.
pub(crate) fn outcome<T, R>(
    ending: Ending<T>,
    inside: Result<(), Exceeded>,
    budget: &Budget,
    last_words: Option<String>,
    read: impl FnOnce(T) -> Result<R, Failure>,
) -> Ended<R> {
    let failure = match (ending, inside) {
        (Ending::Exceeded(Exceeded::Stopped(reason)), _) => return Ended::Stopped(reason),
        (Ending::Exceeded(exceeded), _) | (Ending::Returned(Ok(_)), Err(exceeded)) => {
            by_limit(exceeded, budget)
        }
        (Ending::Returned(Ok(answer)), Ok(())) => match read(answer) {
            Ok(answer) => return Ended::Answered(answer),
            Err(failure) => failure,
        },
        (Ending::Returned(Err(error)), _) => match stopped(&error) {
            Some(reason) => return Ended::Stopped(reason),
            None => failure(&error, budget, last_words),
        },
        (Ending::Panicked(text), _) => panicked(&text),
    };
    Ended::Failed(failure)
}

/// Where the guest was when its call ended with an error, innermost first.
pub(crate) fn trace<T>(ending: &Ending<T>) -> Vec<RawFrame> {
    let Ending::Returned(Err(error)) = ending else { return Vec::new() };
    let frames = error.downcast_ref().map_or(&[][..], WasmBacktrace::frames);
    let raw = frames.iter().map(|frame| RawFrame {
        function: match frame.func_name() {
            Some(name) => function_name(name),
            None => format!("wasm function {}", frame.func_index()),
        },
        place: frame.module_offset().map(|place| place as u64),
    });
    raw.collect()
}

/// Why a trial instantiation failed, if it did.
pub(crate) fn trial_failure<T>(ending: Ending<T>, budget: &Budget) -> Option<Failure> {
    match ending {
        Ending::Returned(Ok(_)) => None,
        Ending::Returned(Err(error)) => Some(failure(&error, budget, None)),
        Ending::Exceeded(exceeded) => Some(by_limit(exceeded, budget)),
        Ending::Panicked(text) => Some(panicked(&text)),
    }
}

fn panicked(text: &str) -> Failure {
    tracing::error!(error = %text, "the engine panicked");
    Failure::new(Code::Internal, "the host is at fault: it panicked while it ran the guest")
}

fn stopped(error: &wasmtime::Error) -> Option<StopReason> {
    match error.downcast_ref() {
        Some(Exceeded::Stopped(reason)) => Some(*reason),
        _ => None,
    }
}

fn by_limit(exceeded: Exceeded, budget: &Budget) -> Failure {
    let of_budget = |name: &str, limit: Limit, asked| LimitFact {
        name: name.to_owned(),
        limit: limit.value,
        asked,
        set_by: limit.set_by,
    };
    let (code, fact) = match exceeded {
        Exceeded::Fuel => (Code::FuelExhausted, of_budget("fuel", budget.fuel, None)),
        Exceeded::HostCalls => (Code::HostcallBudget, of_budget("host_calls", budget.host_calls, None)),
        Exceeded::Deadline => (Code::DeadlineExceeded, of_budget("wall_ms", budget.wall_ms, None)),
        Exceeded::Heartbeat => {
            let limit = budget.heartbeat_ms.unwrap_or(budget.wall_ms);
            (Code::DeadlineExceeded, of_budget("heartbeat_ms", limit, None))
        }
        Exceeded::Memory { asked } => {
            (Code::MemoryExceeded, of_budget("memory_bytes", budget.memory_bytes, Some(asked)))
        }
        Exceeded::TableElements { asked } => {
            let limit = TABLE_ELEMENTS_MAX as u64;
            (Code::MemoryExceeded, LimitFact::of_host("table_elements", limit, Some(asked)))
        }
        Exceeded::Waitables => {
            (Code::HandlesExceeded, LimitFact::of_host("waitables", WAITABLES_MAX as u64, None))
        }
        Exceeded::RandomBytes { asked } => {
            (Code::HostcallTooLarge, LimitFact::of_host("random_bytes", RANDOM_BYTES_MAX, Some(asked)))
        }
        Exceeded::ResultBytes { asked } => return too_large_a_result(Some(asked)),
        Exceeded::Stopped(_) => return Failure::new(Code::Internal, "the host stopped the attempt"),
    };
    Failure::at_limit(code, fact)
}

/// The failure that an error of a call or an instantiation is.
fn failure(error: &wasmtime::Error, budget: &Budget, last_words: Option<String>) -> Failure {
    if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
        by_limit(*exceeded, budget)
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        by_trap(*trap, budget, last_words)
    } else {
        by_error(error, last_words)
    }
}

fn by_trap(trap: Trap, budget: &Budget, last_words: Option<String>) -> Failure {
    match trap {
        Trap::OutOfFuel => by_limit(Exceeded::Fuel, budget),
        Trap::Interrupt => by_limit(Exceeded::Deadline, budget),
        Trap::StackOverflow => {
            let fact = LimitFact::of_host("wasm_stack_bytes", WASM_STACK_BYTES as u64, None);
            Failure::at_limit(Code::StackExhausted, fact)
        }
        Trap::UnreachableCodeReached => match last_words.as_deref().map(panic_message) {
            Some(words) if !words.is_empty() => {
                Failure::new(Code::Trap, format!("{words} (wasm trap: unreachable)"))
            }
            _ => Failure::new(Code::Trap, trap.to_string()),
        },
        _ => Failure::new(Code::Trap, trap.to_string()),
    }
}

fn by_error(error: &wasmtime::Error, last_words: Option<String>) -> Failure {
    if let Some(full) = error.downcast_ref::<ResourceTableError>() {
        return match full {
            ResourceTableError::Full => {
                let fact = LimitFact::of_host("host_resources", RESOURCES_MAX as u64, None);
                Failure::at_limit(Code::HandlesExceeded, fact)
            }
            _ => Failure::new(Code::Trap, format!("the guest misused a host resource: {full}")),
        };
    }
    if let Some(I32Exit(status)) = error.downcast_ref() {
        let words = last_words.map(|words| format!(": {words}")).unwrap_or_default();
        return Failure::new(Code::Trap, format!("the guest exited with status {status}{words}"));
    }
    if let Some(full) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        tracing::warn!(error = %full, "more attempts run than the pool has room for");
        return Failure::new(Code::Internal, format!("the host had no room to run the attempt: {full}"));
    }
    let text = format!("{:#}", error.root_cause());
    if text.contains(HANDLES_EXCEEDED) {
        let fact = LimitFact::of_host("component_handles", HANDLES_MAX as u64, None);
        return Failure::at_limit(Code::HandlesExceeded, fact);
    }
    if text.contains(HOSTCALL_TOO_LARGE) {
        // Only inside a host call is there a guest to show a backtrace of; outside, the guest had returned.
        if error.downcast_ref::<WasmBacktrace>().is_none() {
            return too_large_a_result(None);
        }
        let fact = LimitFact::of_host("hostcall_bytes", HOSTCALL_BYTES_MAX as u64, None);
        return Failure::at_limit(Code::HostcallTooLarge, fact);
    }
    // Whatever else wasmtime refuses in a call is what the guest handed over: text that is not UTF-8, a pointer
    // outside of its memory, a handle that does not exist.
    Failure::new(Code::Trap, format!("the guest broke the component ABI: {text}"))
}

/// What a guest said when it panicked, without what a person who reads the task has no use for.
fn panic_message(last_words: &str) -> String {
    // Where an interpreter tells of its exception first, the panic behind it says only that there was one.
    let from =
        ["Traceback (most recent call last)", "panicked at"].iter().find_map(|words| last_words.find(words));
    let from = from.unwrap_or(0);
    let lines = last_words[from..].lines();
    let kept: Vec<&str> = lines.filter(|line| !line.starts_with("note: run with `RUST_BACKTRACE")).collect();
    kept.join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_without_its_noise() {
        let said = "before\n\nthread '<unnamed>' panicked at src/lib.rs:3:5:\nno more\nnote: run with `RUST_BACKTRACE=1` \
                    environment variable to display a backtrace";
        assert_eq!(panic_message(said), "panicked at src/lib.rs:3:5:\nno more");
        assert_eq!(panic_message("Traceback\nValueError: x\n"), "Traceback\nValueError: x");
        let python = "before\nTraceback (most recent call last):\n  File \"/0/app.py\", line 7, in run\nValueError: x\n\nthread \
                      '<unnamed>' (1) panicked at runtime/src/lib.rs:1293:29:\nPython function threw an unexpected exception";
        assert_eq!(panic_message(python), python.split_once('\n').unwrap().1);
    }
}
