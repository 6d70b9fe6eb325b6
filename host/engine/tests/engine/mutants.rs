//! Mutated components: refused or run, never a crash, and the engine goes on.

use keiko_core::Code;
use keiko_core::limit::COMPONENT_BYTES_MAX;
use keiko_core::port::Runner;
use keiko_core::profile::Profiles;

use crate::guest::{CONFIG, LOG, TASKS, guest};
use crate::host::{Run, block_on, shared};

const MUTANTS: u64 = 1_000;

/// A small generator of its own, so that a seed means the same everywhere (Steele, "Fast splittable pseudorandom
/// number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn mutant(good: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(3) {
        // The first 8 bytes decide nothing but whether it is looked at.
        let at = 8 + random.below(bytes.len() - 8);
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
    bytes
}

#[test]
fn mutated_components_never_crash_the_host() {
    let good = guest("(call $done)").with(LOG).with(CONFIG).with(TASKS).bytes();
    let run = Run::of(guest("(call $done)")).fuel(10_000_000).wall_ms(2_000);
    let mut accepted = 0;
    block_on(async {
        for seed in 0..MUTANTS {
            match shared().compile(mutant(&good, seed).into(), COMPONENT_BYTES_MAX, Profiles::ALL).await {
                Ok(compiled) => {
                    accepted += 1;
                    shared().run(run.attempt(compiled.digest), run.port.clone(), run.stop.clone()).await;
                }
                Err(error) => assert!(
                    matches!(error.code, Code::ComponentInvalid | Code::CompileLimit | Code::QuotaExceeded),
                    "seed {seed}: {error:?}"
                ),
            }
        }
    });
    assert!(accepted > 0 && accepted < MUTANTS, "{accepted} of {MUTANTS} were accepted");
    assert_eq!(run.result(), "null");
}
