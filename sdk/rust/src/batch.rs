//! Add items to named processors, and work the batches that a processor is handed. Adding needs the capability `batch`.
//!
//! Adding is an effect: items appear in the transaction that stores this task's result, or this batch's end, exactly
//! once, and never when the attempt does not complete.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Failure, Payload, host};

/// Add up to 1,000 items to one processor, all or none; the ids are in the order of the items.
pub fn add(processor: &str, items: Vec<NewItem>) -> Result<Vec<String>, Error> {
    host::add_items(processor, items)
}

/// An item to add: `NewItem::json(&film)?.key("1994")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// Items of one key go into batches of their own; at most 255 bytes.
    pub key: Option<String>,
    /// At most 1 MiB.
    pub payload: Payload,
}

impl NewItem {
    /// An item without a key, with any payload.
    pub fn new(payload: Payload) -> Self {
        Self { key: None, payload }
    }

    /// An item without a key, with JSON.
    pub fn json(value: &impl Serialize) -> Result<Self, Failure> {
        Payload::json(value).map(Self::new)
    }

    /// Which key it has.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// What a processor is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Names the batch, the same whenever the same items are handed over again.
    pub id: String,
    /// Which of the plugin's processors.
    pub processor: String,
    /// The key that all items have.
    pub key: Option<String>,
}

/// One item of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Names the item, the same in every batch it is in.
    pub id: String,
    /// What was added.
    pub payload: Payload,
    /// Times it was handed over before.
    pub attempts: u32,
}

impl Item {
    /// The item as serde reads it from JSON.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.payload.clone().parse()
    }
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done with.
    Done,
    /// It is handed over again later.
    Retry {
        /// For the person who reads the dead letter when it was the last time.
        reason: String,
        /// Not before so long; `None` leaves the wait to the host.
        after: Option<Duration>,
    },
    /// It never will be done, for this reason.
    Reject(String),
}

impl Outcome {
    /// Handed over again when the host thinks fit.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }

    /// Never to be done.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }
}

/// What another attempt may not meet is tried again; the rest is rejected.
impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidInput(message) | Failure::Permanent(message) => Self::Reject(message),
            Failure::Retryable { message, retry_after } => {
                Self::Retry { reason: message, after: retry_after }
            }
        }
    }
}

impl From<Result<(), Failure>> for Outcome {
    fn from(result: Result<(), Failure>) -> Self {
        result.map_or_else(Self::from, |()| Self::Done)
    }
}

/// The answer to a processor that does not exist.
#[doc(hidden)]
pub fn unknown_processor(name: &str, processors: &[&str], items: usize) -> Vec<Outcome> {
    let known = if processors.is_empty() { "none".to_owned() } else { processors.join(", ") };
    vec![Outcome::reject(format!("no processor {name:?}; the processors are {known}")); items]
}

/// Why items were not taken. Nothing was added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The tenant has no such processor.
    NotFound(String),
    /// The item is malformed; the text says how.
    InvalidInput(String),
    /// The item is larger than this many bytes.
    ItemTooLarge(u64),
    /// This attempt has asked for as many effects as it may: this many.
    EffectsExceeded(u64),
    /// This attempt's effects together would be larger than this many bytes.
    EffectBytesExceeded(u64),
    /// The tenant has as many items waiting as it may, or as many bytes of them: this many.
    QueueFull(u64),
    /// The tenant's policy does not grant `batch`.
    Denied,
    /// Trying again may help.
    Unavailable,
    /// For a log; nothing to match on.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(name) => write!(f, "item not taken: no processor {name}"),
            Self::InvalidInput(how) => write!(f, "item not taken: {how}"),
            Self::ItemTooLarge(limit) => write!(f, "the item exceeds the limit of {limit} bytes"),
            Self::EffectsExceeded(limit) => write!(f, "the attempt exceeds the limit of {limit} effects"),
            Self::EffectBytesExceeded(limit) => {
                write!(f, "the attempt's effects exceed the limit of {limit} bytes")
            }
            Self::QueueFull(limit) => write!(f, "the tenant is at its limit of {limit} items"),
            Self::Denied => f.write_str("the policy does not grant `batch`"),
            Self::Unavailable => f.write_str("adding items is unavailable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

/// What another attempt may not meet is retryable: a full queue, a host that cannot answer. The rest is permanent.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::QueueFull(_) | Error::Unavailable | Error::Other(_) => {
                Self::retryable(error.to_string(), None)
            }
            _ => Self::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_one_item_becomes_its_outcome() {
        assert_eq!(Outcome::from(Ok(())), Outcome::Done);
        assert_eq!(Outcome::from(Err(Failure::invalid_input("odd"))), Outcome::reject("odd"));
        let wait = Some(Duration::from_secs(3));
        let expected = Outcome::Retry { reason: "busy".to_owned(), after: wait };
        assert_eq!(Outcome::from(Failure::retryable("busy", wait)), expected);
    }

    #[test]
    fn an_unknown_processor_rejects_every_item() {
        let outcomes = unknown_processor("nap", &["eat"], 2);
        assert_eq!(outcomes, vec![Outcome::reject("no processor \"nap\"; the processors are eat"); 2]);
    }

    #[test]
    fn without_a_host_nothing_is_added() {
        let item = NewItem::json(&1).unwrap().key("k");
        assert_eq!(add("films", vec![item]), Err(Error::Unavailable));
        assert!(matches!(Failure::from(Error::Denied), Failure::Permanent(_)));
    }
}
