//! Why a run produced no result.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why a run produced no result; the task's retry policy depends on which one it is.
///
/// Errors of the SDK's capabilities and of `serde_json` turn into the fitting one with `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The input is not what this kind takes: the task fails with `invalid_input` and is not tried again.
    InvalidInput(String),
    /// The task cannot succeed: it fails with `plugin_failed` and is not tried again.
    Permanent(String),
    /// The task may succeed later: it is tried again while it has attempts left.
    Retryable {
        /// What happened, for the person who reads the task; the host keeps the first 4 KiB.
        message: String,
        /// Wait at least this long; `None` leaves the wait to the task's retry policy.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    /// The input is not what this kind takes.
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::InvalidInput(message.into())
    }

    /// The task cannot succeed, whatever is tried.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::Permanent(message.into())
    }

    /// The task may succeed later: `Failure::retryable("the upstream answered 503", Duration::from_secs(5))`,
    /// or `None` as the second argument to leave the wait to the retry policy.
    pub fn retryable(message: impl Into<String>, retry_after: impl Into<Option<Duration>>) -> Self {
        Self::Retryable { message: message.into(), retry_after: retry_after.into() }
    }

    /// What happened, without its class.
    pub fn message(&self) -> &str {
        match self {
            Self::InvalidInput(message) | Self::Permanent(message) | Self::Retryable { message, .. } => {
                message
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl Error for Failure {}

/// In a plugin, JSON that does not parse came in with the task. Who parses JSON from elsewhere, or writes some,
/// maps the error himself.
impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::invalid_input(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parse_error_is_invalid_input_with_its_place() {
        let parse = || -> Result<u32, Failure> { Ok(serde_json::from_str("\n  true")?) };
        let Failure::InvalidInput(message) = parse().unwrap_err() else { panic!("another class") };
        assert!(message.contains("line 2 column 6"), "{message}");
    }

    #[test]
    fn a_retry_takes_a_wait_or_leaves_it_to_the_policy() {
        let wait = Duration::from_secs(5);
        assert_eq!(
            Failure::retryable("busy", wait),
            Failure::Retryable { message: "busy".into(), retry_after: Some(wait) }
        );
        assert_eq!(
            Failure::retryable("busy", None),
            Failure::Retryable { message: "busy".into(), retry_after: None }
        );
    }
}
