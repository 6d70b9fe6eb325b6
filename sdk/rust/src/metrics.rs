//! Count what happens, under metrics that the manifest declares. A pure run stays pure. Capability `metrics`.
//!
//! ```toml
//! [[metric]]
//! name = "films_read_total"
//! type = "counter"
//! description = "Films that were read."
//! labels = { outcome = ["read", "skipped"] }
//!
//! [[metric]]
//! name = "film_minutes"
//! type = "histogram"
//! buckets = [60, 90, 120, 180]
//! ```

use std::fmt;

use crate::{Failure, host};

/// Add to a counter: `metrics::add("films_read_total", &[("outcome", "read")], 1)`.
///
/// What is measured counts at once, also when the attempt fails, so most plugins ignore the answer.
pub fn add(name: &str, labels: &[(&str, &str)], more: u64) -> Result<(), Error> {
    host::add_metric(name, labels, more)
}

/// Take a value into a histogram: `metrics::observe("film_minutes", &[], 93.0)`; as [`add`].
pub fn observe(name: &str, labels: &[(&str, &str)], value: f64) -> Result<(), Error> {
    host::observe_metric(name, labels, value)
}

/// Why what was measured was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The manifest declares no metric of this name and type; the text says which type.
    NotFound(String),
    /// The labels are not those of the metric, each once with a value that it can have; the text says what is wrong.
    InvalidLabels(String),
    /// The value is not finite.
    InvalidValue,
    /// The tenant's policy does not grant `metrics`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(text) | Self::InvalidLabels(text) | Self::Other(text) => f.write_str(text),
            Self::InvalidValue => f.write_str("the value is not finite"),
            Self::Denied => f.write_str("the policy does not grant `metrics`"),
            Self::Unavailable => f.write_str("metrics are unavailable"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) | Error::InvalidLabels(_) | Error::InvalidValue | Error::Denied => {
                Self::permanent(error.to_string())
            }
            Error::Unavailable | Error::Other(_) => Self::retryable(error.to_string(), None),
        }
    }
}
