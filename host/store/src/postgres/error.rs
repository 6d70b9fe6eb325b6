//! What PostgreSQL says, in the words of the seam. Messages carry neither SQL nor payloads.

use keiko_core::port::{StoreError, StoreErrorKind};

/// The store's error for one of sqlx.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    let (kind, message) = classify(&error);
    StoreError::new(kind, message).caused_by(error)
}

/// Whether the connection is of no use any more, so that the next statement needs another one.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            true
        }
        sqlx::Error::Database(database) => {
            database.code().is_some_and(|code| by_state(&code).0 == StoreErrorKind::Down)
        }
        _ => false,
    }
}

/// Whether a task of the same number is there already.
pub(crate) fn is_taken(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.constraint() == Some("task_pkey"))
}

/// Whether the server ended a statement that ran for too long.
pub(crate) fn ran_too_long(error: &StoreError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    cause.is_some_and(|cause| match cause {
        sqlx::Error::Database(database) => database.code().as_deref() == Some("57014"),
        _ => false,
    })
}

fn classify(error: &sqlx::Error) -> (StoreErrorKind, &'static str) {
    match error {
        sqlx::Error::Database(database) => by_state(&database.code().unwrap_or_default()),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            (StoreErrorKind::Down, "the database cannot be reached")
        }
        sqlx::Error::PoolTimedOut => (StoreErrorKind::Busy, "no connection became free in time"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (StoreErrorKind::Integrity, "a stored value cannot be read")
        }
        _ => (StoreErrorKind::Internal, "the database layer failed"),
    }
}

/// By SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
fn by_state(state: &str) -> (StoreErrorKind, &'static str) {
    match state {
        "53100" => (StoreErrorKind::Full, "the database's disk is full"),
        // A transaction that stood still too long lost its connection with it.
        "25P03" => (StoreErrorKind::Down, "the database ended the connection"),
        // Not busy: whoever comes back at once makes it worse.
        "53300" => (StoreErrorKind::Down, "the database takes no more connections"),
        // What was the primary is a standby now.
        "25006" => (StoreErrorKind::Down, "the database only answers reads"),
        "58030" => (StoreErrorKind::Down, "the database cannot use its files"),
        "40001" | "40P01" | "55P03" | "57014" => {
            (StoreErrorKind::Busy, "another user of the database is in the way")
        }
        "XX001" | "XX002" => (StoreErrorKind::Integrity, "the database is damaged"),
        _ => match state.get(..2) {
            Some("08" | "28" | "3D") => (StoreErrorKind::Down, "the database cannot be reached"),
            Some("57") if state.starts_with("57P0") => {
                (StoreErrorKind::Down, "the database ended the connection")
            }
            Some("22" | "23") => (StoreErrorKind::Refused, "the database refuses this write"),
            _ => (StoreErrorKind::Internal, "the database failed a statement"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_trouble_has_its_states() {
        let check = |states: &[&str], kind| {
            for state in states {
                assert_eq!(by_state(state).0, kind, "{state}");
            }
        };
        let down = ["08000", "08006", "57P01", "57P02", "57P03", "57P05", "53300", "25P03", "25006", "28P01"];
        check(&down, StoreErrorKind::Down);
        check(&["3D000", "58030"], StoreErrorKind::Down);
        check(&["53100"], StoreErrorKind::Full);
        check(&["40001", "40P01", "55P03", "57014"], StoreErrorKind::Busy);
        check(&["23505", "23514", "22021", "22P02"], StoreErrorKind::Refused);
        check(&["XX001", "XX002"], StoreErrorKind::Integrity);
        check(&["", "42P01", "42501", "XX000", "53200", "57000"], StoreErrorKind::Internal);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut).0, StoreErrorKind::Busy);
        assert_eq!(classify(&sqlx::Error::PoolClosed).0, StoreErrorKind::Down);
        let broken = sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((classify(&broken).0, is_lost(&broken)), (StoreErrorKind::Down, true));
        assert!(!is_lost(&sqlx::Error::RowNotFound));
    }
}
