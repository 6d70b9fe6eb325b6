//! Tell how far a running task is. A pure run stays pure. Capability `progress`.

use std::fmt;

use crate::{Failure, host};

/// Say how far the task is: a fraction from 0 to 1, and a message of at most 1 KiB.
///
/// A report replaces the one before it and promises nothing, so most plugins ignore the answer:
/// `let _ = progress::report(0.5, "half of the films");`
pub fn report(fraction: f64, message: &str) -> Result<(), Error> {
    host::report(fraction, message)
}

/// Why a report was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The fraction is not between 0 and 1.
    FractionOutOfRange,
    /// The message is longer than this many bytes.
    MessageTooLong(u64),
    /// The tenant's policy does not grant `progress`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FractionOutOfRange => f.write_str("the fraction is not between 0 and 1"),
            Self::MessageTooLong(limit) => {
                write!(f, "the progress message exceeds the limit of {limit} bytes")
            }
            Self::Denied => f.write_str("the policy does not grant `progress`"),
            Self::Unavailable => f.write_str("progress is unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::FractionOutOfRange | Error::MessageTooLong(_) | Error::Denied => {
                Self::permanent(error.to_string())
            }
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
        }
    }
}
