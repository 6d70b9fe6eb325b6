//! Batches in a component: items that it adds, and the export that works them.

use crate::batch::{Batch, Error, Item, NewItem, Outcome};
use crate::bindings::exports::keiko::plugin::batch as export;
use crate::bindings::keiko::batch::batch;
use crate::{Payload, TaskPlugin};

pub(crate) fn add_items(processor: &str, items: Vec<NewItem>) -> Result<Vec<String>, Error> {
    let items: Vec<_> = items.into_iter().map(Into::into).collect();
    Ok(batch::add(processor, &items)?)
}

/// The component's export, for the type that `plugin!` makes.
impl<P: TaskPlugin> export::Guest for P {
    fn process(batch: export::BatchInfo, items: Vec<export::Item>) -> Vec<export::ItemOutcome> {
        let batch = Batch { id: batch.id, processor: batch.processor, key: batch.key };
        let item = |item: export::Item| Item {
            id: item.id,
            payload: Payload { content_type: item.content_type, bytes: item.bytes },
            attempts: item.attempts,
        };
        P::process(batch, items.into_iter().map(item).collect()).into_iter().map(Into::into).collect()
    }
}

impl From<Outcome> for export::ItemOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Reject(reason) => Self::Reject(reason),
            Outcome::Retry { reason, after } => {
                Self::Retry(export::Later { reason, after_ms: after.map(super::milliseconds) })
            }
        }
    }
}

impl From<NewItem> for batch::NewItem {
    /// JSON is what the contract takes for granted, so its name need not cross.
    fn from(item: NewItem) -> Self {
        let content_type = item.payload.content_type;
        Self {
            key: item.key,
            content_type: (content_type != Payload::JSON).then_some(content_type),
            bytes: item.payload.bytes,
        }
    }
}

impl From<batch::Error> for Error {
    fn from(error: batch::Error) -> Self {
        match error {
            batch::Error::NotFound(name) => Self::NotFound(name),
            batch::Error::InvalidInput(how) => Self::InvalidInput(how),
            batch::Error::ItemTooLarge(limit) => Self::ItemTooLarge(limit),
            batch::Error::EffectsExceeded(limit) => Self::EffectsExceeded(limit),
            batch::Error::EffectBytesExceeded(limit) => Self::EffectBytesExceeded(limit),
            batch::Error::QueueFull(limit) => Self::QueueFull(limit),
            batch::Error::Denied => Self::Denied,
            batch::Error::Unavailable => Self::Unavailable,
            batch::Error::Other(text) => Self::Other(text),
        }
    }
}
