//! Settings the tenant granted to this plugin. A run that asks is no longer pure. Capability `config`.

use std::fmt;

use crate::{Failure, host};

/// The value of one setting; `Ok(None)` when the tenant set none under this name.
pub fn get(key: &str) -> Result<Option<String>, Error> {
    host::config(key)
}

/// All settings of this plugin, by name in order.
pub fn get_all() -> Result<Vec<(String, String)>, Error> {
    host::config_all()
}

/// Why the host does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The tenant's policy does not grant `config`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("the policy does not grant `config`"),
            Self::Unavailable => f.write_str("the settings are unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Denied => Self::permanent(error.to_string()),
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
        }
    }
}
