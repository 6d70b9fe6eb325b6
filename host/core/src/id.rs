//! Identifiers: small integers inside, opaque text with a prefix outside.
//!
//! - A task id is 63 bits: milliseconds since 2024-01-01 shifted by [`TASK_ID_SEQUENCE_BITS`], plus a sequence,
//!   so that ids of one host rise with time and ids of several hosts do so to within one block's age.
//! - Outside, an id is its prefix (`task_`, `group_`, `agent_`, `user_`, `item_`, `batch_`) and 13 letters of Crockford's base
//!   32. All but groups have numbers from the same blocks as tasks; a group has the number of its first task.

use std::fmt;
use std::str::FromStr;

/// Low bits of a task id that count within a millisecond.
pub const TASK_ID_SEQUENCE_BITS: u32 = 20;

/// 2024-01-01T00:00:00Z in milliseconds since 1970: where the clock in a task id starts.
pub const TASK_ID_EPOCH_MS: i64 = 1_704_067_200_000;
/// An id is reserved at most so long before its task is created, or after it by another host's clock: a child's when its
/// parent's attempt asks for it, which runs for an hour at most.
pub const TASK_ID_AGE_MS_MAX: i64 = 2 * 60 * 60 * 1_000;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LETTERS: usize = 13;

macro_rules! row_id {
    ($($(#[$meta:meta])* $name:ident;)+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

row_id! {
    /// A tenant's row.
    TenantId;
    /// A plugin's row.
    PluginId;
    /// A kind of one plugin.
    KindId;
    /// An immutable version of a plugin.
    VersionId;
    /// A processor's row.
    ProcessorId;
    /// One incarnation of a host, which holds leases. Higher is later.
    Holder;
    /// Proof of the right to run a task: grows by one with every lease and every cancel of that task.
    Token;
}

macro_rules! public_id {
    ($($(#[$meta:meta])* $name:ident $prefix:literal $error:ident;)+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_letters(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// A text that is not such an id.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        #[error("not an id: expected `{}` and 13 letters or digits", $prefix)]
        pub struct $error;

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                text.strip_prefix($prefix).and_then(read_letters).map($name).ok_or($error)
            }
        }
    )+};
}

public_id! {
    /// A task's id.
    TaskId "task_" NotATaskId;
    /// A group's id, which has the number of its first task.
    GroupId "group_" NotAGroupId;
    /// An agent's id.
    AgentId "agent_" NotAnAgentId;
    /// A user's id.
    UserId "user_" NotAUserId;
    /// An item's id.
    ItemId "item_" NotAnItemId;
    /// A batch's id.
    BatchId "batch_" NotABatchId;
}

impl TaskId {
    /// The smallest id that a task submitted at `now_ms` (since 1970) may have.
    pub fn floor(now_ms: i64) -> TaskId {
        let since = now_ms.saturating_sub(TASK_ID_EPOCH_MS);
        TaskId(since.clamp(0, i64::MAX >> TASK_ID_SEQUENCE_BITS) << TASK_ID_SEQUENCE_BITS)
    }
}

fn write_letters(number: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut letters = [0u8; ID_LETTERS];
    let mut rest = number as u64;
    for letter in letters.iter_mut().rev() {
        *letter = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    f.write_str(std::str::from_utf8(&letters).map_err(|_| fmt::Error)?)
}

fn read_letters(letters: &str) -> Option<i64> {
    if letters.len() != ID_LETTERS {
        return None;
    }
    let mut value: u128 = 0;
    for letter in letters.bytes() {
        let digit = ALPHABET.iter().position(|&known| known == letter)?;
        value = value << 5 | digit as u128;
    }
    i64::try_from(value).ok()
}

/// SHA-256 of a component's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The first 12 hexadecimal digits, for tables and file names that a person reads.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// All 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits in lower case")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let digits = text.strip_prefix("sha256:").ok_or(NotADigest)?.as_bytes();
        let value = |digit: &u8| HEX.iter().position(|known| known == digit).map(|value| value as u8);
        let mut digest = [0; 32];
        if digits.len() != 2 * digest.len() {
            return Err(NotADigest);
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (value(&pair[0]).ok_or(NotADigest)?, value(&pair[1]).ok_or(NotADigest)?);
            *byte = high << 4 | low;
        }
        Ok(Digest(digest))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_read_back_and_sort_as_text() {
        let ids = [0, 1, 31, 32, TaskId::floor(1_800_000_000_000).0, i64::MAX].map(TaskId);
        for pair in ids.windows(2) {
            assert!(pair[0].to_string() < pair[1].to_string());
        }
        for id in ids {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(AgentId(7).to_string().parse(), Ok(AgentId(7)));
        assert_eq!(UserId(7).to_string().parse::<AgentId>(), Err(NotAnAgentId));
    }

    #[test]
    fn digests_read_back_and_other_texts_are_none() {
        let digest = Digest(std::array::from_fn(|at| (at * 37) as u8));
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        for bad in [
            "",
            "sha256:",
            &text[..70],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace("sha256", "sha512"),
            &text.replace(":0", ":é"),
            &text.replace(":0", ":g"),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest), "{bad}");
        }
    }

    #[test]
    fn other_texts_are_not_task_ids() {
        for text in [
            "",
            "task_",
            "task_0000000000000 ",
            "task_00000000000000",
            "task_000000000000",
            "task_000000000000u",
            "task_zzzzzzzzzzzzz",
            "plugin_000000000000",
            "task_00000000000é",
        ] {
            assert_eq!(text.parse::<TaskId>(), Err(NotATaskId), "{text:?}");
        }
    }

    #[test]
    fn a_digest_is_written_as_oci_writes_it() {
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string(), format!("sha256:{}", "ab".repeat(32)));
        assert_eq!(digest.short(), "abababababab");
    }
}
