//! Batches: items that wait for a named processor and are handed to it together.
//!
//! - [`settings`]: what a processor asks for, narrowed by the tenant's policy.
//! - [`flush`]: when what waits is handed over, and how much of it.
//! - [`machine`]: what waits on this host, which batch is due next; without a clock, a thread or a store.
//! - [`work`]: one batch from its first run to the end of every item, halved around what the processor cannot take.

pub mod flush;
pub mod halve;
pub mod machine;
pub mod settings;
pub mod work;

use bytes::Bytes;

pub use self::settings::{Settings, Wish};
use crate::effect::{Effects, check_content_type};
use crate::id::{BatchId, ItemId, ProcessorId, TenantId, Token, VersionId};
use crate::limit::{ITEM_BYTES_MAX, ITEM_KEY_BYTES_MAX};
use crate::name::ProcessorName;
use crate::outcome::Failure;
use crate::task::{Key, Payload};

/// Bytes that an item counts beside its payload and its key.
const ITEM_BYTES_BASE: u64 = 128;

/// What waits together: the items of one processor under one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// Whose.
    pub tenant: TenantId,
    /// For which processor.
    pub processor: ProcessorId,
    /// Under which key; empty for items that name none.
    pub key: String,
}

/// An item as somebody wants it added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemWish {
    /// Its key; empty for none.
    pub key: String,
    /// What the processor is given.
    pub payload: Payload,
}

/// Why an item is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemRefused {
    /// Its payload is larger than this.
    #[error("the item exceeds the limit of {0} bytes")]
    TooLarge(u64),
    /// It is malformed.
    #[error("{0}")]
    Invalid(String),
}

impl ItemWish {
    /// Whether it can be an item by itself.
    pub fn check(&self) -> Result<(), ItemRefused> {
        if self.payload.bytes.len() as u64 > ITEM_BYTES_MAX {
            return Err(ItemRefused::TooLarge(ITEM_BYTES_MAX));
        }
        check_content_type(&self.payload.content_type).map_err(ItemRefused::Invalid)?;
        if self.key.len() > ITEM_KEY_BYTES_MAX || self.key.chars().any(char::is_control) {
            return Err(ItemRefused::Invalid(format!(
                "an item's key is at most {ITEM_KEY_BYTES_MAX} bytes without control characters"
            )));
        }
        Ok(())
    }

    /// What it counts towards limits in bytes.
    pub fn size(&self) -> u64 {
        size(&self.key, &self.payload)
    }
}

/// What an item counts towards limits in bytes.
pub fn size(key: &str, payload: &Payload) -> u64 {
    ITEM_BYTES_BASE + key.len() as u64 + payload.bytes.len() as u64
}

/// An item to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewItem {
    /// From the host's reserved ids.
    pub id: ItemId,
    /// For which processor.
    pub processor: ProcessorId,
    /// Its key; empty for none.
    pub key: String,
    /// What the processor is given.
    pub payload: Payload,
    /// When it was added, in milliseconds since 1970.
    pub created_ms: i64,
}

impl NewItem {
    /// What it counts towards limits in bytes.
    pub fn size(&self) -> u64 {
        size(&self.key, &self.payload)
    }
}

/// Items of one tenant that are accepted together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Whose items.
    pub tenant: TenantId,
    /// One or more, with consecutive ids; none asks what the key stands for.
    pub items: Vec<NewItem>,
    /// Finds an earlier add of the same body.
    pub key: Option<Key>,
    /// Refused when the tenant would have more items waiting than this.
    pub items_max: u64,
    /// Refused when the tenant's waiting items would be larger together than this.
    pub bytes_max: u64,
}

/// What an add became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The items are stored: their first id and how many there are.
    Accepted {
        /// The first id; the others follow without gaps.
        first: ItemId,
        /// How many items.
        count: u32,
        /// Whether an earlier add with the same key had stored them.
        duplicate: bool,
    },
    /// The key stands for another body.
    Conflict,
    /// The tenant has this much waiting and may have no more.
    QueueFull(Waiting),
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Items.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An item in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id, the same in every batch it is in.
    pub id: ItemId,
    /// What the processor is given.
    pub payload: Payload,
    /// When it was added.
    pub created_ms: i64,
    /// Times it was handed over before.
    pub attempts: u32,
}

/// A batch that this host may hand over now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedBatch {
    /// The batch; the same though another host has it after a crash.
    pub id: BatchId,
    /// What it is of.
    pub group: Group,
    /// Proof of the lease.
    pub token: Token,
    /// Times it was handed over when its host died.
    pub crashes: u32,
    /// Its items, in order.
    pub items: Vec<Item>,
}

impl LeasedBatch {
    /// What its items count towards limits in bytes.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| size(&self.group.key, &item.payload)).sum()
    }
}

/// What a processor says of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemOutcome {
    /// It is done with.
    Done,
    /// It may succeed later.
    Retry {
        /// Not before so many milliseconds.
        after_ms: Option<u64>,
        /// Why.
        reason: String,
    },
    /// It never will.
    Reject(String),
}

/// What becomes of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemEnd {
    /// It leaves.
    Done,
    /// It waits again until this time, with one more time handed over.
    Retry {
        /// Milliseconds since 1970.
        due_ms: i64,
    },
    /// It becomes a dead letter.
    Dead(Failure),
}

/// What the store is told about one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSettlement {
    /// The batch.
    pub id: BatchId,
    /// Whose.
    pub tenant: TenantId,
    /// The lease it was worked under; a stale one changes nothing.
    pub token: Token,
    /// What becomes of its items; those that are not named wait as if they had never been in a batch.
    pub ends: Vec<(ItemId, ItemEnd)>,
    /// Whether items that are done are kept as rows.
    pub keep_rows: bool,
    /// What the processor asked to be written.
    pub effects: Effects,
    /// The version that worked it.
    pub version: Option<VersionId>,
}

/// An item that no processor could take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The item's id.
    pub id: ItemId,
    /// Its key; empty for none.
    pub key: String,
    /// What the processor was given.
    pub payload: Payload,
    /// When it was added.
    pub created_ms: i64,
    /// When it became a dead letter.
    pub dead_ms: i64,
    /// Times it was handed over.
    pub attempts: u32,
    /// Why, with the trap's backtrace.
    pub failure: Failure,
}

/// A processor's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its row.
    pub id: ProcessorId,
    /// Whose.
    pub tenant: TenantId,
    /// Its name, unique in the tenant.
    pub name: ProcessorName,
    /// Why nothing is handed to it; `None` while it works.
    pub stopped: Option<Stopped>,
}

/// Why a processor was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// When.
    pub at_ms: i64,
    /// The version that failed; another one starts the processor again.
    pub version: Option<VersionId>,
    /// The last failure of those that stopped it.
    pub failure: Failure,
}

/// How much a processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorCounts {
    /// Items that wait or are in a batch.
    pub items: u64,
    /// When the oldest of them was added.
    pub oldest_ms: Option<i64>,
    /// Batches that a host works.
    pub batches: u64,
    /// Dead letters.
    pub dead: u64,
    /// Rows kept, of a processor that keeps its items.
    pub rows: u64,
}

/// An item as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemView {
    /// Its id.
    pub id: ItemId,
    /// Its key; empty for none.
    pub key: String,
    /// What the processor is given.
    pub payload: Payload,
    /// When it was added.
    pub created_ms: i64,
    /// Times it was handed over; of items that wait.
    pub attempts: u32,
}

impl ItemView {
    /// Bytes that it takes in an answer, about.
    pub fn bytes(&self) -> usize {
        size(&self.key, &self.payload) as usize
    }
}

/// A payload of so many bytes, for tests of limits.
#[doc(hidden)]
pub fn payload_of(len: usize) -> Payload {
    Payload::json(Bytes::from(vec![b'1'; len]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(len: usize, key: &str) -> ItemWish {
        ItemWish { key: key.to_owned(), payload: payload_of(len) }
    }

    #[test]
    fn an_item_is_checked_by_itself() {
        let most = ITEM_BYTES_MAX as usize;
        assert_eq!(wish(most, "").check(), Ok(()));
        assert_eq!(wish(most + 1, "").check(), Err(ItemRefused::TooLarge(ITEM_BYTES_MAX)));
        assert_eq!(wish(0, &"k".repeat(ITEM_KEY_BYTES_MAX)).check(), Ok(()));
        for key in ["k".repeat(ITEM_KEY_BYTES_MAX + 1), "a\nb".to_owned()] {
            assert!(matches!(wish(0, &key).check(), Err(ItemRefused::Invalid(_))));
        }
        let mut typed = wish(0, "");
        typed.payload.content_type = "text/plain\r\nx: y".to_owned();
        assert!(matches!(typed.check(), Err(ItemRefused::Invalid(_))));
    }
}
