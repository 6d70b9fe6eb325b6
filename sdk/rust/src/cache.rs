//! Values that can be had again: the tenant's cache, as far as it is this plugin's. A run that asks is no longer pure.
//! Capability `cache`.
//!
//! [`memoized`] is all that most plugins need:
//!
//! ```
//! use keiko_sdk::{Failure, cache};
//!
//! fn length(title: &str) -> Result<usize, Failure> {
//!     cache::memoized("length", &title, &cache::Keeping::for_seconds(3_600), || Ok(title.len()))
//! }
//! # assert_eq!(length("Alien").unwrap(), 5);
//! ```

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Failure, host};

/// How a value is to be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// How long it may be read, at most 30 days; without one the host decides.
    pub lifetime: Option<Duration>,
    /// What it has in common with others, so that they can be removed together: at most 16.
    pub tags: Vec<String>,
    /// Whether [`memoized`] keeps an output that is `null` in JSON, such as `None`.
    pub none: bool,
}

impl Keeping {
    /// For so many seconds.
    pub fn for_seconds(seconds: u64) -> Self {
        Self { lifetime: Some(Duration::from_secs(seconds)), ..Self::default() }
    }

    /// Also when there is nothing.
    #[must_use]
    pub fn with_none(self) -> Self {
        Self { none: true, ..self }
    }

    /// With one more tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

/// A value, or the right to compute it while others wait.
#[derive(Debug)]
pub enum Filling {
    /// The value.
    Hit(Vec<u8>),
    /// The right.
    Fill(Fill),
}

/// The right to compute a value. Dropped without being completed, it goes to the next who waits.
#[derive(Debug)]
pub struct Fill(pub(crate) host::Fill);

impl Fill {
    /// Keeps the value, at most 2 MiB, and hands it to all who wait.
    pub fn complete(self, value: &[u8], keeping: &Keeping) -> Result<(), Error> {
        host::cache_complete(&self.0, value, keeping)
    }
}

/// The value under a key of 1 to 512 bytes; `Ok(None)` when there is none.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
    host::cache_get(key)
}

/// The values under up to 100 keys, in their order; together at most 4 MiB.
pub fn get_many(keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
    host::cache_get_many(keys)
}

/// Stores a value of at most 2 MiB under a key.
pub fn set(key: &str, value: &[u8], keeping: &Keeping) -> Result<(), Error> {
    host::cache_set(key, value, keeping)
}

/// Removes what is under a key; no error when nothing is.
pub fn remove(key: &str) -> Result<(), Error> {
    host::cache_remove(key)
}

/// Removes everything that has a tag.
pub fn remove_tag(tag: &str) -> Result<(), Error> {
    host::cache_remove_tag(tag)
}

/// The value under a key, or the right to compute it. Waits while another has the right.
pub fn get_or_fill(key: &str) -> Result<Filling, Error> {
    host::cache_get_or_fill(key)
}

/// What `compute` answers for this input, from the cache when it has it. Of those who ask at the same time one computes.
///
/// `name` tells functions apart; together with the input, as canonical JSON, it is the key. A failure is not kept, and an
/// output that is `null` only when that is asked for. Where the cache does not answer, or is not granted, it is computed
/// every time.
pub fn memoized<I, O>(
    name: &str,
    input: &I,
    keeping: &Keeping,
    compute: impl FnOnce() -> Result<O, Failure>,
) -> Result<O, Failure>
where
    I: Serialize + ?Sized,
    O: Serialize + DeserializeOwned,
{
    let key = key(name, input)?;
    let filling = get_or_fill(&key).ok();
    if let Some(Filling::Hit(bytes)) = &filling
        && let Ok(output) = serde_json::from_slice(bytes)
    {
        return Ok(output);
    }
    let output = compute()?;
    let bytes = serde_json::to_vec(&output).map_err(|error| Failure::permanent(error.to_string()))?;
    if keeping.none || bytes != b"null" {
        // What cannot be kept is no less right.
        let _ = match filling {
            Some(Filling::Fill(fill)) => fill.complete(&bytes, keeping),
            // It was not what this function answers.
            Some(Filling::Hit(_)) => set(&key, &bytes, keeping),
            None => Ok(()),
        };
    }
    Ok(output)
}

/// Objects have their names in order here, so equal inputs have equal keys.
fn key<I: Serialize + ?Sized>(name: &str, input: &I) -> Result<String, Failure> {
    let input = serde_json::to_value(input).map_err(|error| Failure::permanent(error.to_string()))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(input.to_string().as_bytes());
    Ok(format!("memoized:{}", hasher.finalize().to_hex()))
}

/// Why the host does not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A key is empty, too long or has control characters.
    InvalidKey(String),
    /// The same of a tag.
    InvalidTag(String),
    /// More tags than an entry may have: this many.
    TooManyTags(u64),
    /// More keys than one call may name: this many.
    TooManyKeys(u64),
    /// The value is larger than this many bytes, and is not kept.
    ValueTooLarge(u64),
    /// The values together are larger than an answer may be: this many bytes.
    AnswerTooLarge(u64),
    /// The lifetime is 0, or longer than this many milliseconds.
    InvalidLifetime(u64),
    /// This attempt has a fill already.
    FillHeld,
    /// The right to complete has gone to another: the value is not kept.
    FillLost,
    /// The tenant's policy does not grant `cache`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey(text) | Self::InvalidTag(text) | Self::Other(text) => f.write_str(text),
            Self::TooManyTags(limit) => write!(f, "an entry has at most {limit} tags"),
            Self::TooManyKeys(limit) => write!(f, "a call names at most {limit} keys"),
            Self::ValueTooLarge(limit) => write!(f, "the value exceeds the limit of {limit} bytes"),
            Self::AnswerTooLarge(limit) => write!(f, "the answer exceeds the limit of {limit} bytes"),
            Self::InvalidLifetime(limit) => write!(f, "a lifetime is 1 to {limit} milliseconds"),
            Self::FillHeld => f.write_str("this attempt has a fill already"),
            Self::FillLost => f.write_str("the right to complete has gone to another"),
            Self::Denied => f.write_str("the policy does not grant `cache`"),
            Self::Unavailable => f.write_str("the cache is unavailable"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::FillLost | Error::Unavailable | Error::Other(_) => {
                Self::retryable(error.to_string(), None)
            }
            _ => Self::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_equal_for_equal_inputs_of_one_function() {
        let key = |name, input| key(name, &input).unwrap();
        assert_eq!(key("f", json!({"a": 1, "b": 2})), key("f", json!({"b": 2, "a": 1})));
        assert_ne!(key("f", json!({"a": 1})), key("f", json!({"a": 2})));
        assert_ne!(key("f", json!({"a": 1})), key("g", json!({"a": 1})));
        assert_ne!(key("f1", json!(2)), key("f", json!(12)));
        assert!(key("f", json!("x".repeat(10_000))).len() < 512);
    }

    #[test]
    fn without_a_cache_it_is_computed_every_time() {
        for expected in [1, 2] {
            let output = memoized("f", "input", &Keeping::default(), || Ok(expected));
            assert_eq!(output, Ok(expected));
        }
        let failed: Result<u32, _> =
            memoized("f", "input", &Keeping::default(), || Err(Failure::permanent("no")));
        assert_eq!(failed, Err(Failure::permanent("no")));
    }
}
