//! `keiko:batch`.

use keiko_core::batch::ItemWish;
use keiko_core::effect::Refused;
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;
use keiko_core::port::ItemsError;
use keiko_core::task::{JSON, Payload};
use wasmtime::format_err;

use crate::bindings::keiko::batch::batch::{Error, Host, NewItem};
use crate::gate::{Call, Verdict};
use crate::state::State;

const ADD: Call =
    Call { name: "keiko:batch/batch.add", capability: Some(Capability::Batch), taint: Taint::BATCH };

impl Host for State {
    async fn add(
        &mut self,
        processor: String,
        items: Vec<NewItem>,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let bytes = processor.len() + items.iter().map(bytes).sum::<usize>();
        if self.gate.pass(&ADD, bytes)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let wishes: Vec<ItemWish> = items.into_iter().map(wish).collect();
        if let Err(refused) = self.effects.check_items(&wishes) {
            return Ok(Err(refused.into()));
        }
        let count = wishes.len();
        let reserved = match self.port.reserve_items(&processor, wishes).await {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error.into())),
        };
        if reserved.len() != count {
            return Err(format_err!("{} items were reserved for {count}", reserved.len()));
        }
        let ids: Vec<String> = reserved.iter().map(|item| item.id.to_string()).collect();
        for item in reserved {
            self.effects.push_item(item);
        }
        self.gate.charge_bytes(ids.iter().map(String::len).sum());
        Ok(Ok(ids))
    }
}

fn bytes(item: &NewItem) -> usize {
    let texts = [&item.key, &item.content_type];
    item.bytes.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

fn wish(item: NewItem) -> ItemWish {
    let content_type = item.content_type.unwrap_or_else(|| JSON.to_owned());
    ItemWish {
        key: item.key.unwrap_or_default(),
        payload: Payload { content_type, bytes: item.bytes.into() },
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Invalid(text) => Error::InvalidInput(text),
            Refused::InputTooLarge(limit) => Error::ItemTooLarge(limit),
            Refused::TooMany(limit) => Error::EffectsExceeded(limit),
            Refused::TooLarge(limit) => Error::EffectBytesExceeded(limit),
        }
    }
}

impl From<ItemsError> for Error {
    fn from(error: ItemsError) -> Error {
        match error {
            ItemsError::NotFound(name) => Error::NotFound(name),
            ItemsError::QueueFull(limit) => Error::QueueFull(limit),
            ItemsError::Unavailable => Error::Unavailable,
        }
    }
}
