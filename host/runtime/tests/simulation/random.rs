//! Numbers from a seed.

use std::cell::Cell;

/// A stream of numbers that its seed decides (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed ^ 0x6b65_696b_6f20_7369)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to `most`, both included.
    pub fn among(&mut self, least: u64, most: u64) -> u64 {
        least + self.bits() % (most - least + 1)
    }

    /// A place in a list of so many.
    pub fn place(&mut self, count: usize) -> usize {
        (self.bits() % count.max(1) as u64) as usize
    }

    /// Whether something happens that happens so often in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.bits() % 100 < chance
    }

    /// A stream of its own.
    pub fn split(&mut self) -> Random {
        Random(self.bits())
    }
}

thread_local! {
    static JITTER: Cell<u64> = const { Cell::new(0) };
}

/// Starts the jitter of this thread's hosts.
pub fn seed_jitter(seed: u64) {
    JITTER.set(seed);
}

/// What the hosts draw their jitter from.
pub fn jitter() -> f64 {
    let mut random = Random(JITTER.get());
    let drawn = random.bits();
    JITTER.set(random.0);
    (drawn >> 11) as f64 / (1u64 << 53) as f64
}
