//! Reading rows: numbers in the types of the core, and what a column that does not fit means.

use keiko_core::id::Digest;
use keiko_core::port::StoreError;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row, Type};

use super::error::store_error;
use crate::format::Undecodable;
use crate::trouble::undecodable;

/// A column.
pub(crate) fn get<'r, T>(row: &'r PgRow, column: usize) -> Result<T, StoreError>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column).map_err(store_error)
}

/// A count that is never negative, of an `integer`.
pub(crate) fn count(row: &PgRow, column: usize) -> Result<u32, StoreError> {
    u32::try_from(get::<i32>(row, column)?).map_err(|_| undecodable(Undecodable("count")))
}

/// A count that is never negative, of a `bigint`.
pub(crate) fn large_count(row: &PgRow, column: usize) -> Result<u64, StoreError> {
    Ok(get::<i64>(row, column)?.max(0) as u64)
}

/// A name in a column.
pub(crate) fn name<T: std::str::FromStr>(
    row: &PgRow,
    column: usize,
    what: &'static str,
) -> Result<T, StoreError> {
    get::<&str>(row, column)?.parse().map_err(|_| undecodable(Undecodable(what)))
}

/// The digest of a component.
pub(crate) fn digest(row: &PgRow, column: usize) -> Result<Digest, StoreError> {
    get::<&[u8]>(row, column)?.try_into().map(Digest).map_err(|_| undecodable(Undecodable("digest")))
}

/// A text as a column can hold it: without the one character that PostgreSQL has no place for.
pub(crate) fn stored_text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
