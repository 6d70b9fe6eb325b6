//! Structured lines, kept with the task. Capability `log`.
//!
//! Say what happened in a constant message and put the values into fields:
//!
//! ```
//! use keiko_sdk::log;
//!
//! let films = 3201;
//! log::info("list read", &[("films", &films), ("source", &"movies.json")]);
//! log::debug("nothing to do", &[]);
//! ```
//!
//! Writing never fails. The host cuts a message at 8 KiB, keeps 16 fields of 64 bytes (name) and 1 KiB (value), and
//! drops and counts what is above 1 MiB per attempt or faster than 64 KiB in a second.

use std::fmt::{self, Display};

use crate::host;

/// One named value beside the message.
pub type Field<'a> = (&'a str, &'a dyn Display);

/// Finer than anything a reader wants by default.
pub fn trace(message: &str, fields: &[Field<'_>]) {
    write(Level::Trace, message, fields);
}

/// For the author while working on the plugin.
pub fn debug(message: &str, fields: &[Field<'_>]) {
    write(Level::Debug, message, fields);
}

/// The normal course of things.
pub fn info(message: &str, fields: &[Field<'_>]) {
    write(Level::Info, message, fields);
}

/// Unexpected, and dealt with.
pub fn warn(message: &str, fields: &[Field<'_>]) {
    write(Level::Warn, message, fields);
}

/// Unexpected, and the reason for a failure.
pub fn error(message: &str, fields: &[Field<'_>]) {
    write(Level::Error, message, fields);
}

/// Write one line at a level chosen at run time.
pub fn write(level: Level, message: &str, fields: &[Field<'_>]) {
    host::log(level, message, fields);
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Finer than anything a reader wants by default.
    Trace,
    /// For the author while working on the plugin.
    Debug,
    /// The normal course of things.
    Info,
    /// Unexpected, and dealt with.
    Warn,
    /// Unexpected, and the reason for a failure.
    Error,
}

impl Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        })
    }
}
