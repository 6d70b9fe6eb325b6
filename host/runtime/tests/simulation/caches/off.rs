//! What can be switched off: a life without it must break a promise.

use std::fmt;

use keiko_runtime::cache::Safeguard;

/// One safeguard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// One of the cache.
    Cache(Safeguard),
    /// Keys carry whose they are.
    TenantInKey,
    /// What stands under a key is believed only if it is that key's envelope.
    EnvelopeChecked,
    /// A level keeps the newer of two.
    LevelKeepsNewer,
    /// A level gives a lease to one at a time.
    LeaseOfOne,
}

impl Off {
    /// Every one.
    pub fn all() -> Vec<Off> {
        let of_others = [Off::TenantInKey, Off::EnvelopeChecked, Off::LevelKeepsNewer, Off::LeaseOfOne];
        Safeguard::ALL.iter().copied().map(Off::Cache).chain(of_others).collect()
    }
}

impl fmt::Display for Off {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Off::Cache(safeguard) => write!(formatter, "{safeguard:?}"),
            other => write!(formatter, "{other:?}"),
        }
    }
}
