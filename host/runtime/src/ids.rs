//! Task ids, reserved in blocks before they are needed, so that a guest learns a child's id at once.
//!
//! Clients and guests take from the same block, and a guest goes on only when it has a turn. So nobody holds anything
//! that others need while it waits: a new block is asked for by whoever of those that wait for it can go on.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use keiko_core::TaskId;
use keiko_core::port::{Clock, IdBlock, StoreError, StoreErrorKind, TaskStore};
use parking_lot::Mutex;

/// Ids in a block.
const BLOCK: u32 = 16_384;
/// A block older than this is left, so that ids keep close to the time, in milliseconds.
const AGE_MS_MAX: i64 = 5_000;

/// This host's ids.
pub(crate) struct Ids {
    tasks: Arc<dyn TaskStore>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    block: Block,
    /// The next block, while it is being reserved.
    coming: Option<Coming>,
}

#[derive(Clone, Copy)]
struct Block {
    next: i64,
    end: i64,
    reserved_ms: i64,
}

/// A block for everybody who waits for it.
type Coming = Shared<BoxFuture<'static, Result<Block, (StoreErrorKind, String)>>>;

impl Ids {
    pub(crate) fn new(tasks: Arc<dyn TaskStore>, clock: Arc<dyn Clock>) -> Ids {
        let block = Block { next: 0, end: 0, reserved_ms: i64::MIN };
        Ids { tasks, clock, state: Mutex::new(State { block, coming: None }) }
    }

    /// The first of `count` ids that follow each other.
    pub(crate) async fn take(&self, count: u32) -> Result<TaskId, StoreError> {
        loop {
            let coming = {
                let mut state = self.state.lock();
                if let Some(first) = state.block.take(count, self.clock.now_ms()) {
                    return Ok(first);
                }
                state.coming.get_or_insert_with(|| self.reserve(count)).clone()
            };
            let reserved = coming.clone().await;
            let mut state = self.state.lock();
            // The first of those who waited.
            if state.coming.as_ref().is_some_and(|other| other.ptr_eq(&coming)) {
                state.coming = None;
                state.block = reserved.clone().unwrap_or(state.block);
            }
            drop(state);
            if let Err((kind, message)) = reserved {
                return Err(StoreError::new(kind, message));
            }
        }
    }

    fn reserve(&self, count: u32) -> Coming {
        let (tasks, clock) = (Arc::clone(&self.tasks), Arc::clone(&self.clock));
        let reserve = async move {
            let reserved = tasks.reserve_ids(count.max(BLOCK), clock.now_ms()).await;
            let IdBlock { first, count } = reserved.map_err(|error| (error.kind(), error.to_string()))?;
            Ok(Block { next: first.0, end: first.0 + i64::from(count), reserved_ms: clock.now_ms() })
        };
        reserve.boxed().shared()
    }
}

impl Block {
    fn take(&mut self, count: u32, now_ms: i64) -> Option<TaskId> {
        let old = now_ms.saturating_sub(self.reserved_ms) > AGE_MS_MAX;
        if old || self.end - self.next < i64::from(count) {
            return None;
        }
        let first = TaskId(self.next);
        self.next += i64::from(count);
        Some(first)
    }
}
