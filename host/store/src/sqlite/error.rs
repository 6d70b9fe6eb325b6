//! What SQLite says, in the words of the seam. Messages carry neither SQL nor payloads.

use keiko_core::port::{StoreError, StoreErrorKind};

// Primary result codes: https://www.sqlite.org/rescode.html
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const READONLY: u32 = 8;
const IOERR: u32 = 10;
pub(super) const CORRUPT: u32 = 11;
const FULL: u32 = 13;
const CANTOPEN: u32 = 14;
const TOOBIG: u32 = 18;
const CONSTRAINT: u32 = 19;
const NOTADB: u32 = 26;

/// The store's error for one of sqlx.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    let (kind, message) = classify(&error);
    StoreError::new(kind, message).caused_by(error)
}

fn classify(error: &sqlx::Error) -> (StoreErrorKind, &'static str) {
    match error {
        sqlx::Error::Database(database) => {
            // The extended code; its low byte is the primary one.
            let code = database.code().and_then(|code| code.parse::<u32>().ok());
            by_code(code.unwrap_or_default() & 0xff)
        }
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            (StoreErrorKind::Full, "the disk is full")
        }
        sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            (StoreErrorKind::Down, "the database cannot be reached")
        }
        sqlx::Error::PoolTimedOut => (StoreErrorKind::Busy, "no connection became free in time"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (StoreErrorKind::Integrity, "a stored value cannot be read")
        }
        _ => (StoreErrorKind::Internal, "the database layer failed"),
    }
}

fn by_code(primary: u32) -> (StoreErrorKind, &'static str) {
    match primary {
        BUSY | LOCKED => (StoreErrorKind::Busy, "another user of the database is in the way"),
        FULL => (StoreErrorKind::Full, "the disk is full"),
        CORRUPT | NOTADB => (StoreErrorKind::Integrity, "the database file is damaged"),
        CANTOPEN | IOERR | READONLY => (StoreErrorKind::Down, "the database file cannot be used"),
        CONSTRAINT | TOOBIG => (StoreErrorKind::Refused, "the database refuses this write"),
        _ => (StoreErrorKind::Internal, "the database failed a statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_trouble_has_its_codes() {
        let check = |codes: &[u32], kind| {
            for &code in codes {
                assert_eq!(by_code(code).0, kind, "{code}");
            }
        };
        check(&[5, 6], StoreErrorKind::Busy);
        check(&[13], StoreErrorKind::Full);
        check(&[11, 26], StoreErrorKind::Integrity);
        check(&[8, 10, 14], StoreErrorKind::Down);
        check(&[18, 19], StoreErrorKind::Refused);
        check(&[0, 1, 7, 21], StoreErrorKind::Internal);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut).0, StoreErrorKind::Busy);
        assert_eq!(classify(&sqlx::Error::WorkerCrashed).0, StoreErrorKind::Down);
    }
}
