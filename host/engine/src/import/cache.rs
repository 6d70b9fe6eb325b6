//! `keiko:cache`.

use std::mem;

use keiko_core::cache::KEYS_MAX;
use keiko_core::limit::HOSTCALL_BYTES_MAX;
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;
use keiko_core::port::{CacheFill, CacheFilling, CacheRefused, Keeping as Wish};
use wasmtime::component::Resource;

use crate::bindings::keiko::cache::cache::{Error, Filling, Host, HostFill, Keeping};
use crate::gate::{Call, Verdict};
use crate::state::State;

const GET: Call =
    Call { name: "keiko:cache/cache.get", capability: Some(Capability::Cache), taint: Taint::CACHE };
const GET_MANY: Call = Call { name: "keiko:cache/cache.get-many", ..GET };
const SET: Call = Call { name: "keiko:cache/cache.set", ..GET };
const REMOVE: Call = Call { name: "keiko:cache/cache.remove", ..GET };
const REMOVE_TAG: Call = Call { name: "keiko:cache/cache.remove-tag", ..GET };
const GET_OR_FILL: Call = Call { name: "keiko:cache/cache.get-or-fill", ..GET };
const COMPLETE: Call = Call { name: "keiko:cache/cache.fill.complete", ..GET };
const DROP: Call = Call { name: "keiko:cache/cache.fill.drop", capability: None, ..GET };

/// A guest's right to compute a value, until it is completed.
pub struct Fill(Option<Box<dyn CacheFill>>);

impl Host for State {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        if self.gate.pass(&GET, key.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let answer = self.port.cache_get(&[key]).await;
        let value = answer.map(|mut values| values.pop().flatten());
        self.gate.charge_bytes(value.iter().flatten().map(bytes::Bytes::len).sum());
        Ok(value.map(|value| value.map(Vec::from)).map_err(Error::from))
    }

    async fn get_many(&mut self, keys: Vec<String>) -> wasmtime::Result<Result<Vec<Option<Vec<u8>>>, Error>> {
        if self.gate.pass(&GET_MANY, keys.iter().map(String::len).sum())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        if keys.len() > KEYS_MAX {
            return Ok(Err(Error::TooManyKeys(KEYS_MAX as u64)));
        }
        let values = match self.port.cache_get(&keys).await {
            Ok(values) => values,
            Err(error) => return Ok(Err(error.into())),
        };
        let bytes = values.iter().flatten().map(bytes::Bytes::len).sum();
        if bytes > HOSTCALL_BYTES_MAX {
            return Ok(Err(Error::AnswerTooLarge(HOSTCALL_BYTES_MAX as u64)));
        }
        self.gate.charge_bytes(bytes);
        Ok(Ok(values.into_iter().map(|value| value.map(Vec::from)).collect()))
    }

    async fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        keeping: Keeping,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bytes = key.len() + value.len() + tag_bytes(&keeping);
        if self.gate.pass(&SET, bytes)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let done = self.port.cache_set(&key, value.into(), keeping.into()).await;
        Ok(done.map_err(Error::from))
    }

    async fn remove(&mut self, key: String) -> wasmtime::Result<Result<(), Error>> {
        if self.gate.pass(&REMOVE, key.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        Ok(self.port.cache_remove(&key).await.map_err(Error::from))
    }

    async fn remove_tag(&mut self, tag: String) -> wasmtime::Result<Result<(), Error>> {
        if self.gate.pass(&REMOVE_TAG, tag.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        Ok(self.port.cache_remove_tag(&tag).await.map_err(Error::from))
    }

    async fn get_or_fill(&mut self, key: String) -> wasmtime::Result<Result<Filling, Error>> {
        if self.gate.pass(&GET_OR_FILL, key.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        // Whoever holds one right and waits for another could wait for somebody who waits for it.
        if self.holds_fill {
            return Ok(Err(Error::FillHeld));
        }
        match self.port.cache_fill(&key).await {
            Ok(CacheFilling::Hit(value)) => {
                self.gate.charge_bytes(value.len());
                Ok(Ok(Filling::Hit(value.into())))
            }
            Ok(CacheFilling::Fill(fill)) => {
                let fill = self.table.push(Fill(Some(fill)))?;
                self.holds_fill = true;
                Ok(Ok(Filling::Fill(fill)))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl HostFill for State {
    async fn complete(
        &mut self,
        fill: Resource<Fill>,
        value: Vec<u8>,
        keeping: Keeping,
    ) -> wasmtime::Result<Result<(), Error>> {
        if self.gate.pass(&COMPLETE, value.len() + tag_bytes(&keeping))? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let Some(right) = mem::take(&mut self.table.get_mut(&fill)?.0) else {
            return Ok(Err(Error::FillLost));
        };
        self.holds_fill = false;
        Ok(right.complete(value.into(), keeping.into()).await.map_err(Error::from))
    }

    fn drop(&mut self, fill: Resource<Fill>) -> wasmtime::Result<()> {
        self.gate.pass(&DROP, 0)?;
        if self.table.delete(fill)?.0.is_some() {
            self.holds_fill = false;
        }
        Ok(())
    }
}

fn tag_bytes(keeping: &Keeping) -> usize {
    keeping.tags.iter().map(String::len).sum()
}

impl From<Keeping> for Wish {
    fn from(keeping: Keeping) -> Wish {
        Wish { lifetime_ms: keeping.lifetime_ms, tags: keeping.tags }
    }
}

impl From<CacheRefused> for Error {
    fn from(refused: CacheRefused) -> Error {
        match refused {
            CacheRefused::Key(error) => Error::InvalidKey(error.to_string()),
            CacheRefused::Tag(error) => Error::InvalidTag(error.to_string()),
            CacheRefused::TooManyTags(limit) => Error::TooManyTags(limit),
            CacheRefused::TooManyKeys(limit) => Error::TooManyKeys(limit),
            CacheRefused::TooLarge(limit) => Error::ValueTooLarge(limit),
            CacheRefused::AnswerTooLarge(limit) => Error::AnswerTooLarge(limit),
            CacheRefused::Lifetime(limit) => Error::InvalidLifetime(limit),
            CacheRefused::Lost => Error::FillLost,
            CacheRefused::Unavailable => Error::Unavailable,
        }
    }
}
