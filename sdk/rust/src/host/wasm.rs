//! The host's side in a component: each function is one call through the bindings, with the types turned over.

mod batch;
mod cache;
mod data;
mod metrics;
mod tasks;

use std::fmt::Display;
use std::time::Duration;

use crate::bindings::exports::keiko::plugin::task as export;
use crate::bindings::keiko::{attempt, config, log, progress};
use crate::{Failure, Payload, TaskPlugin};

pub(crate) use batch::*;
pub(crate) use cache::*;
pub(crate) use data::*;
pub(crate) use metrics::*;
pub(crate) use tasks::*;

pub(crate) fn log(level: crate::log::Level, message: &str, fields: &[(&str, &dyn Display)]) {
    let field = |(name, value): &(&str, &dyn Display)| log::log::Field {
        name: (*name).into(),
        value: value.to_string(),
    };
    let fields: Vec<_> = fields.iter().map(field).collect();
    log::log::write(level.into(), message, &fields);
}

pub(crate) fn report(fraction: f64, message: &str) -> Result<(), crate::progress::Error> {
    Ok(progress::progress::report(fraction, message)?)
}

pub(crate) fn emit(piece: &[u8]) -> Result<(), crate::output::Error> {
    Ok(progress::output::emit(piece)?)
}

pub(crate) fn facts() -> Result<crate::attempt::Facts, crate::attempt::Error> {
    let facts = attempt::attempt::get()?;
    Ok(crate::attempt::Facts {
        tenant: facts.tenant,
        task: facts.task,
        root: facts.root,
        parent: facts.parent,
        depth: facts.depth,
        number: facts.number,
        attempts_max: facts.attempts_max,
        trace: facts.trace,
    })
}

pub(crate) fn remaining_ms() -> Result<u64, crate::attempt::Error> {
    Ok(attempt::attempt::remaining_ms()?)
}

pub(crate) fn config(key: &str) -> Result<Option<String>, crate::config::Error> {
    Ok(config::config::get(key)?)
}

pub(crate) fn config_all() -> Result<Vec<(String, String)>, crate::config::Error> {
    Ok(config::config::get_all()?)
}

/// The component's export, for the type that `plugin!` makes.
impl<P: TaskPlugin> export::Guest for P {
    fn run(kind: String, input: export::Payload) -> Result<export::Payload, export::Failure> {
        let input = Payload { content_type: input.content_type, bytes: input.bytes };
        match P::run(&kind, input) {
            Ok(output) => Ok(export::Payload { content_type: output.content_type, bytes: output.bytes }),
            Err(failure) => Err(failure.into()),
        }
    }
}

impl From<Failure> for export::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidInput(message) => Self::InvalidInput(message),
            Failure::Permanent(message) => Self::Permanent(message),
            Failure::Retryable { message, retry_after } => {
                let retry_after_ms = retry_after.map(milliseconds);
                Self::Retryable(crate::bindings::keiko::plugin::types::Retryable { message, retry_after_ms })
            }
        }
    }
}

impl From<crate::log::Level> for log::log::Level {
    fn from(level: crate::log::Level) -> Self {
        match level {
            crate::log::Level::Trace => Self::Trace,
            crate::log::Level::Debug => Self::Debug,
            crate::log::Level::Info => Self::Info,
            crate::log::Level::Warn => Self::Warn,
            crate::log::Level::Error => Self::Error,
        }
    }
}

impl From<attempt::attempt::Error> for crate::attempt::Error {
    fn from(error: attempt::attempt::Error) -> Self {
        match error {
            attempt::attempt::Error::Denied => Self::Denied,
            attempt::attempt::Error::Unavailable => Self::Unavailable,
            attempt::attempt::Error::Other(text) => Self::Other(text),
        }
    }
}

impl From<config::config::Error> for crate::config::Error {
    fn from(error: config::config::Error) -> Self {
        match error {
            config::config::Error::Denied => Self::Denied,
            config::config::Error::Unavailable => Self::Unavailable,
            config::config::Error::Other(text) => Self::Other(text),
        }
    }
}

impl From<progress::progress::Error> for crate::progress::Error {
    fn from(error: progress::progress::Error) -> Self {
        use progress::progress::Error;
        match error {
            Error::FractionOutOfRange => Self::FractionOutOfRange,
            Error::MessageTooLong(limit) => Self::MessageTooLong(limit),
            Error::Denied => Self::Denied,
            Error::Unavailable => Self::Unavailable,
            Error::Other(text) => Self::Other(text),
        }
    }
}

impl From<progress::output::Error> for crate::output::Error {
    fn from(error: progress::output::Error) -> Self {
        use progress::output::Error;
        match error {
            Error::PieceTooLarge(limit) => Self::PieceTooLarge(limit),
            Error::TooManyPieces(limit) => Self::TooManyPieces(limit),
            Error::TooManyBytes(limit) => Self::TooManyBytes(limit),
            Error::Denied => Self::Denied,
            Error::Unavailable => Self::Unavailable,
            Error::Other(text) => Self::Other(text),
        }
    }
}

/// The contract counts in milliseconds. A part of one counts as a whole, so nothing comes earlier than asked.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
