//! Give out what a running task has so far, to whoever watches it. A pure run stays pure. Capability `progress`.

use std::fmt;

use crate::{Failure, host};

/// Give out a piece of at most 4 KiB: a line, a few words, anything that is of use before the whole is there.
///
/// Nothing of it is stored, and the result stands for itself. An attempt gives out at most 10,000 pieces and 8 MiB; most
/// plugins ignore the answer: `let _ = output::emit("the first film\n");`
pub fn emit(piece: impl AsRef<[u8]>) -> Result<(), Error> {
    host::emit(piece.as_ref())
}

/// Why a piece was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The piece is longer than this many bytes.
    PieceTooLarge(u64),
    /// The attempt has given out this many pieces.
    TooManyPieces(u64),
    /// The attempt would have given out more than this many bytes.
    TooManyBytes(u64),
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
            Self::PieceTooLarge(limit) => write!(f, "the piece exceeds the limit of {limit} bytes"),
            Self::TooManyPieces(limit) => write!(f, "the attempt exceeds the limit of {limit} pieces"),
            Self::TooManyBytes(limit) => write!(f, "the pieces exceed the limit of {limit} bytes"),
            Self::Denied => f.write_str("the policy does not grant `progress`"),
            Self::Unavailable => f.write_str("output is unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::PieceTooLarge(_) | Error::TooManyPieces(_) | Error::TooManyBytes(_) | Error::Denied => {
                Self::permanent(error.to_string())
            }
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
        }
    }
}
