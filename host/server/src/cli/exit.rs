//! What the program's exit status means; `docs/operations.md` lists it.

use std::fmt;

use keiko_core::Code;

/// The task or the plugin failed.
pub(super) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(super) const USAGE: u8 = 2;
/// The host refused.
pub(super) const REFUSED: u8 = 3;
/// The host is unreachable, or at fault.
pub(super) const HOST: u8 = 4;
/// A limit stopped the run.
pub(super) const LIMIT: u8 = 5;
/// Time was up before the task had ended.
pub(super) const TIME: u8 = 6;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line or the configuration is wrong.
    Usage(String),
    /// The host said no, with its words.
    Refused(String),
    /// The host could not be reached, or is at fault.
    Host(String),
}

impl Failure {
    /// The exit status it ends with.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Refused(_) => REFUSED,
            Failure::Host(_) => HOST,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Refused(text) | Failure::Host(text) => f.write_str(text),
        }
    }
}

/// The exit status of a run that failed with this code.
pub(super) fn of_run(code: Code) -> u8 {
    match code {
        Code::PluginFailed | Code::Trap | Code::Quarantined | Code::Cancelled => FAILED,
        Code::FuelExhausted
        | Code::DeadlineExceeded
        | Code::MemoryExceeded
        | Code::StackExhausted
        | Code::HostcallTooLarge
        | Code::HostcallBudget
        | Code::HandlesExceeded
        | Code::CompileLimit => LIMIT,
        Code::Denied
        | Code::QuotaExceeded
        | Code::RateLimited
        | Code::ComponentInvalid
        | Code::QueueFull
        | Code::EgressBlocked
        | Code::InvalidInput
        | Code::NotFound
        | Code::Conflict
        | Code::Unauthorized => REFUSED,
        Code::Integrity
        | Code::LeaseLost
        | Code::StorageBusy
        | Code::StorageDown
        | Code::StorageFull
        | Code::EgressFailed
        | Code::Internal => HOST,
    }
}
