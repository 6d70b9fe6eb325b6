//! Entries as levels store them.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | number of the format: 1 |
//! | 8 | stamp |
//! | 1 | content (0 value, 1 absent, 2 removed), and 4 when the lifetime was given |
//! | 8, 8, 8 | fresh until, kept until, eager from (0 for never), in milliseconds since 1970 |
//! | 1, and 2 + n each | tags |
//! | the rest | the value |
//! | 16 | BLAKE3 of the key with its length, and of everything before |
//!
//! Numbers are big-endian, so that a level that cannot read the rest compares stamps as texts.

use std::sync::Arc;

use bytes::Bytes;

use super::rule::{Content, Entry, Stamp};
use super::{CacheKey, Installation, TAGS_MAX, Tag};

const FORMAT: u8 = 1;
const GIVEN: u8 = 4;
const SUM_BYTES: usize = 16;

/// What is stored is no entry of this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what is stored under a key is not what was stored")]
pub struct Undecodable;

/// The envelope of an entry.
pub fn encode(key: &CacheKey, installation: &Installation, entry: &Entry) -> Bytes {
    let (content, value): (u8, &[u8]) = match &entry.content {
        Content::Value(value) => (0, value),
        Content::Absent => (1, &[]),
        Content::Removed => (2, &[]),
    };
    let tags: usize = entry.tags.iter().map(|tag| 2 + tag.as_str().len()).sum();
    let mut bytes = Vec::with_capacity(35 + tags + value.len() + SUM_BYTES);
    bytes.push(FORMAT);
    bytes.extend(entry.stamp.0.to_be_bytes());
    bytes.push(content | if entry.given { GIVEN } else { 0 });
    for time in [entry.logical_ms, entry.physical_ms, entry.eager_ms.unwrap_or(0)] {
        bytes.extend(time.to_be_bytes());
    }
    // A host gives one tag beside those of the limit.
    bytes.push(entry.tags.len().min(TAGS_MAX + 1) as u8);
    for tag in entry.tags.iter().take(TAGS_MAX + 1) {
        bytes.extend((tag.as_str().len() as u16).to_be_bytes());
        bytes.extend(tag.as_str().as_bytes());
    }
    bytes.extend(value);
    let sum = sum(key, installation, &bytes);
    bytes.extend(sum);
    bytes.into()
}

/// The entry of an envelope, which shares its bytes.
pub fn decode(key: &CacheKey, installation: &Installation, bytes: &Bytes) -> Result<Entry, Undecodable> {
    let end = bytes.len().checked_sub(SUM_BYTES).ok_or(Undecodable)?;
    if bytes[end..] != sum(key, installation, &bytes[..end]) {
        return Err(Undecodable);
    }
    let mut reader = Reader { bytes, at: 0, end };
    if reader.number::<1>()? != [FORMAT] {
        return Err(Undecodable);
    }
    let stamp = Stamp(u64::from_be_bytes(reader.number()?));
    let [flags] = reader.number()?;
    let [logical_ms, physical_ms, eager_ms] =
        [reader.number()?, reader.number()?, reader.number()?].map(i64::from_be_bytes);
    let [count] = reader.number()?;
    let tags = (0..count).map(|_| reader.tag()).collect::<Result<Vec<Tag>, _>>()?;
    let rest = bytes.slice(reader.at..end);
    let content = match flags & !GIVEN {
        0 => Content::Value(rest),
        1 if rest.is_empty() => Content::Absent,
        2 if rest.is_empty() => Content::Removed,
        _ => return Err(Undecodable),
    };
    Ok(Entry {
        stamp,
        content,
        given: flags & GIVEN != 0,
        logical_ms,
        physical_ms,
        eager_ms: (eager_ms != 0).then_some(eager_ms),
        tags: Arc::from(tags),
    })
}

fn sum(key: &CacheKey, installation: &Installation, bytes: &[u8]) -> [u8; SUM_BYTES] {
    let parts = key.parts(installation);
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(length as u64).to_be_bytes());
    for part in parts {
        hasher.update(part.as_bytes());
    }
    hasher.update(bytes);
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..SUM_BYTES]);
    sum
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Undecodable> {
        let to = self.at.checked_add(count).filter(|to| *to <= self.end).ok_or(Undecodable)?;
        let taken = &self.bytes[self.at..to];
        self.at = to;
        Ok(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], Undecodable> {
        self.take(BYTES)?.try_into().map_err(|_| Undecodable)
    }

    fn tag(&mut self) -> Result<Tag, Undecodable> {
        let length = u16::from_be_bytes(self.number()?);
        let text = self.take(usize::from(length))?;
        std::str::from_utf8(text).ok().and_then(Tag::stored).ok_or(Undecodable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Lifetime, Namespace, VALUE_BYTES_MAX, Wish, made, removed};
    use crate::catalog::Tenant;
    use crate::id::TenantId;

    const NOW: i64 = 1_800_000_000_000;

    fn installation() -> Installation {
        "a1".parse().unwrap()
    }

    fn key(tenant: &str, text: &str) -> CacheKey {
        let tenant = Tenant { id: TenantId(1), name: tenant.parse().unwrap() };
        CacheKey::new(&tenant, &Namespace::shared(&"films".parse().unwrap()), text).unwrap()
    }

    fn sample() -> Entry {
        let wish = Wish {
            lifetime: Lifetime::of_ms(1_000),
            stale_ms: 5_000,
            eager: Some(0.5),
            absent: None,
            tags: vec![Tag::given("a").unwrap(), Tag::stored(&format!("@{}", "07".repeat(32))).unwrap()],
        };
        made(Content::Value(Bytes::from_static(b"value")), Stamp(0x0102_0304_0506_0708), &wish, 1, NOW, 0.0)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Bytes {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn entries_come_back() {
        let empty = Entry { content: Content::Value(Bytes::new()), ..sample() };
        let large = Entry { content: Content::Value(vec![7; VALUE_BYTES_MAX].into()), ..sample() };
        let absent = Entry { content: Content::Absent, eager_ms: None, tags: Arc::from([]), ..sample() };
        for entry in [sample(), empty, large, absent, removed(Stamp(3), NOW), Entry::marker(Stamp(3), NOW)] {
            let encoded = encode(&key("ada", "k"), &installation(), &entry);
            assert_eq!(decode(&key("ada", "k"), &installation(), &encoded), Ok(entry));
        }
    }

    /// What version 1 wrote, which every later version must still read or refuse.
    #[test]
    fn a_sample_of_every_format_still_decodes() {
        let version_1 = format!(
            "01{}04{}{}{}02{}{}{}",
            "0102030405060708",
            "000001a3185c53e8",
            "000001a3185c6770",
            "000001a3185c51f4",
            "00023d61",
            "0041403037".to_owned() + &"3037".repeat(31),
            "76616c7565"
        );
        let encoded = encode(&key("ada", "k"), &installation(), &sample());
        let body = hex(&encoded[..encoded.len() - SUM_BYTES]);
        assert_eq!(body, version_1);
        let mut kept = bytes(&body).to_vec();
        kept.extend(sum(&key("ada", "k"), &installation(), &kept));
        assert_eq!(decode(&key("ada", "k"), &installation(), &kept.into()), Ok(sample()));
    }

    #[test]
    fn nothing_else_is_taken_for_an_entry() {
        let good = encode(&key("ada", "k"), &installation(), &sample());
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert_eq!(decode(&key("ada", "k"), &installation(), &bad.into()), Err(Undecodable), "{at}");
            let short = good.slice(..at);
            assert_eq!(decode(&key("ada", "k"), &installation(), &short), Err(Undecodable), "{at}");
        }
        for other in [key("bob", "k"), key("ada", "kk"), key("ada", "K")] {
            assert_eq!(decode(&other, &installation(), &good), Err(Undecodable), "{other:?}");
        }
        assert_eq!(decode(&key("ada", "k"), &"b2".parse().unwrap(), &good), Err(Undecodable));
        // Another format under a right sum.
        let mut other = good[..good.len() - SUM_BYTES].to_vec();
        other[0] = 2;
        other.extend(sum(&key("ada", "k"), &installation(), &other));
        assert_eq!(decode(&key("ada", "k"), &installation(), &other.into()), Err(Undecodable));
    }
}
