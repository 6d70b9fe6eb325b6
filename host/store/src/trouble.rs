//! Errors that both databases have in common.

use std::error::Error;

use keiko_core::port::{StoreError, StoreErrorKind};

use crate::format::Undecodable;

/// The store's error for stored content that does not decode.
pub(crate) fn undecodable(error: Undecodable) -> StoreError {
    StoreError::new(StoreErrorKind::Integrity, error.to_string())
}

/// The same error for another caller of the same transaction, with its source as text.
pub(crate) fn copy(error: &StoreError) -> StoreError {
    let copy = StoreError::new(error.kind(), error.to_string());
    match error.source() {
        Some(source) => copy.caused_by(source.to_string()),
        None => copy,
    }
}

/// Whether the database took what was tried, where a refusal is an answer.
pub(crate) fn taken(tried: Result<(), StoreError>) -> Result<bool, StoreError> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == StoreErrorKind::Refused => Ok(false),
        Err(error) => Err(error),
    }
}
