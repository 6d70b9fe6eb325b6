//! The host's side of the cache in a component.

use crate::bindings::keiko::cache::cache::{self, Error};
use crate::cache::{Fill as Right, Filling, Keeping};

/// The right to compute, as the host knows it.
pub(crate) use crate::bindings::keiko::cache::cache::Fill;

type Answer<T> = Result<T, crate::cache::Error>;

pub(crate) fn cache_get(key: &str) -> Answer<Option<Vec<u8>>> {
    Ok(cache::get(key)?)
}

pub(crate) fn cache_get_many(keys: &[&str]) -> Answer<Vec<Option<Vec<u8>>>> {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    Ok(cache::get_many(&keys)?)
}

pub(crate) fn cache_set(key: &str, value: &[u8], keeping: &Keeping) -> Answer<()> {
    Ok(cache::set(key, value, &keeping.into())?)
}

pub(crate) fn cache_remove(key: &str) -> Answer<()> {
    Ok(cache::remove(key)?)
}

pub(crate) fn cache_remove_tag(tag: &str) -> Answer<()> {
    Ok(cache::remove_tag(tag)?)
}

pub(crate) fn cache_get_or_fill(key: &str) -> Answer<Filling> {
    Ok(match cache::get_or_fill(key)? {
        cache::Filling::Hit(value) => Filling::Hit(value),
        cache::Filling::Fill(fill) => Filling::Fill(Right(fill)),
    })
}

pub(crate) fn cache_complete(fill: &Fill, value: &[u8], keeping: &Keeping) -> Answer<()> {
    Ok(fill.complete(value, &keeping.into())?)
}

impl From<&Keeping> for cache::Keeping {
    fn from(keeping: &Keeping) -> Self {
        let lifetime_ms = keeping.lifetime.map(super::milliseconds);
        Self { lifetime_ms, tags: keeping.tags.clone() }
    }
}

impl From<Error> for crate::cache::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidKey(text) => Self::InvalidKey(text),
            Error::InvalidTag(text) => Self::InvalidTag(text),
            Error::TooManyTags(limit) => Self::TooManyTags(limit),
            Error::TooManyKeys(limit) => Self::TooManyKeys(limit),
            Error::ValueTooLarge(limit) => Self::ValueTooLarge(limit),
            Error::AnswerTooLarge(limit) => Self::AnswerTooLarge(limit),
            Error::InvalidLifetime(limit) => Self::InvalidLifetime(limit),
            Error::FillHeld => Self::FillHeld,
            Error::FillLost => Self::FillLost,
            Error::Denied => Self::Denied,
            Error::Unavailable => Self::Unavailable,
            Error::Other(text) => Self::Other(text),
        }
    }
}
