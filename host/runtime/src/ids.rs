//! Task ids, reserved in blocks before they are needed, so that a guest learns a child's id at once.

use std::sync::Arc;

use keiko_core::TaskId;
use keiko_core::port::{Clock, IdBlock, StoreError, TaskStore};

/// Ids in a block.
const BLOCK: u32 = 16_384;
/// A block older than this is left, so that ids keep close to the time, in milliseconds.
const AGE_MS_MAX: i64 = 5_000;

/// This host's ids.
pub(crate) struct Ids {
    tasks: Arc<dyn TaskStore>,
    clock: Arc<dyn Clock>,
    block: tokio::sync::Mutex<Block>,
}

struct Block {
    next: i64,
    end: i64,
    reserved_ms: i64,
}

impl Ids {
    pub(crate) fn new(tasks: Arc<dyn TaskStore>, clock: Arc<dyn Clock>) -> Ids {
        let empty = Block { next: 0, end: 0, reserved_ms: i64::MIN };
        Ids { tasks, clock, block: tokio::sync::Mutex::new(empty) }
    }

    /// The first of `count` ids that follow each other.
    pub(crate) async fn take(&self, count: u32) -> Result<TaskId, StoreError> {
        let mut block = self.block.lock().await;
        let now_ms = self.clock.now_ms();
        let old = now_ms.saturating_sub(block.reserved_ms) > AGE_MS_MAX;
        if old || block.end - block.next < i64::from(count) {
            let IdBlock { first, count } = self.tasks.reserve_ids(count.max(BLOCK), now_ms).await?;
            *block = Block { next: first.0, end: first.0 + i64::from(count), reserved_ms: now_ms };
        }
        let first = TaskId(block.next);
        block.next += i64::from(count);
        Ok(first)
    }
}
