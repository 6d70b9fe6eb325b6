//! What a guest may grow: one sum over all linear memories of an attempt and one over all its tables.
//!
//! `StoreLimits` counts each memory by itself, so an attempt with four of them would have four times its budget. A
//! growth beyond a limit is an error and not `-1`: the attempt ends with the limit's code, whatever the guest would
//! have made of the refusal.

use keiko_core::limit::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use wasmtime::ResourceLimiter;

use crate::exceeded::Exceeded;

/// The limiter of one attempt.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_bytes_max: u64,
    memory: Sum,
    tables: Sum,
}

/// What is held now, was held at most, and was added last, should the growth fail after all.
#[derive(Debug, Default)]
struct Sum {
    now: u64,
    peak: u64,
    last: u64,
}

impl Sum {
    /// What the sum would be after a growth.
    fn after(&self, current: usize, desired: usize) -> u64 {
        self.now.saturating_add(desired.saturating_sub(current) as u64)
    }

    fn take(&mut self, after: u64) {
        self.last = after - self.now;
        self.now = after;
        self.peak = self.peak.max(after);
    }

    /// The growth that was taken last did not happen.
    fn undo(&mut self) {
        self.now -= std::mem::take(&mut self.last);
    }
}

impl Limiter {
    pub(crate) fn new(memory_bytes_max: u64) -> Limiter {
        Limiter { memory_bytes_max, memory: Sum::default(), tables: Sum::default() }
    }

    /// Starts over with another budget and with what is held now.
    pub(crate) fn renew(&mut self, memory_bytes_max: u64) {
        self.memory_bytes_max = memory_bytes_max;
        self.memory.peak = self.memory.now;
    }

    /// Bytes that all memories hold.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.now
    }

    /// Most bytes that all memories held at once.
    pub(crate) fn memory_bytes_peak(&self) -> u64 {
        self.memory.peak
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let after = self.memory.after(current, desired);
        if after > self.memory_bytes_max {
            return Err(Exceeded::Memory { asked: after }.into());
        }
        // Beyond the memory's own maximum it is the guest's business: `-1`, and nothing is counted.
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        self.memory.take(if fits { after } else { self.memory.now });
        Ok(fits)
    }

    /// The machine refused: a guest that were told so would answer by what the host had left.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.undo();
        Err(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let after = self.tables.after(current, desired);
        if after > TABLE_ELEMENTS_MAX as u64 {
            return Err(Exceeded::TableElements { asked: after }.into());
        }
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        self.tables.take(if fits { after } else { self.tables.now });
        Ok(fits)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.tables.undo();
        Err(error)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 65_536;

    #[test]
    fn memories_are_summed_to_the_byte() {
        let mut limiter = Limiter::new(4 * PAGE as u64);
        assert!(limiter.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(limiter.memory_growing(0, 2 * PAGE, None).unwrap());
        let error = limiter.memory_growing(2 * PAGE, 3 * PAGE, None).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Exceeded::Memory { asked: 5 * PAGE as u64 }));
        assert_eq!(limiter.memory_bytes_peak(), 4 * PAGE as u64);
    }

    #[test]
    fn a_growth_that_fails_is_given_back() {
        let mut limiter = Limiter::new(4 * PAGE as u64);
        assert!(limiter.memory_growing(0, 3 * PAGE, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no memory")).expect_err("the guest is not told");
        assert!(limiter.memory_growing(0, 4 * PAGE, None).unwrap());
    }

    #[test]
    fn a_memory_keeps_to_its_own_maximum_uncounted() {
        let mut limiter = Limiter::new(4 * PAGE as u64);
        assert!(limiter.memory_growing(0, PAGE, Some(PAGE)).unwrap());
        assert!(!limiter.memory_growing(PAGE, 2 * PAGE, Some(PAGE)).unwrap());
        assert!(limiter.memory_growing(0, 3 * PAGE, None).unwrap());
        assert!(limiter.memory_growing(0, PAGE, None).is_err());
    }

    #[test]
    fn tables_are_summed_to_the_element() {
        let mut limiter = Limiter::new(0);
        assert!(limiter.table_growing(0, TABLE_ELEMENTS_MAX - 1, None).unwrap());
        assert!(limiter.table_growing(0, 1, None).unwrap());
        let error = limiter.table_growing(1, 2, None).unwrap_err();
        let asked = TABLE_ELEMENTS_MAX as u64 + 1;
        assert_eq!(error.downcast_ref(), Some(&Exceeded::TableElements { asked }));
    }
}
