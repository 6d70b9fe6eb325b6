//! `simulate_caches [--seeds N] [--from SEED]`: lives of caches of many seeds on all processors, and lives without each
//! safeguard until one misses it, as one JSON line; status 1 when a promise was broken, or when nobody missed a safeguard.
//! `simulate_caches --seed SEED [--without SAFEGUARD]`: one life, with everything that happens in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

#[path = "../tests/simulation/caches/mod.rs"]
mod caches;
#[path = "../tests/simulation/clock.rs"]
mod clock;
#[path = "many/mod.rs"]
mod many;
#[allow(dead_code, reason = "what hosts draw their jitter from is of other lives")]
#[path = "../tests/simulation/random.rs"]
mod random;
#[path = "../tests/simulation/story.rs"]
mod story;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use caches::{Off, first_violation, live};
use many::{Asked, named, status};
use serde_json::json;

fn main() -> ExitCode {
    many::run("simulate_caches", |asked| match asked {
        Asked::Many(seeds) => Ok(lives(seeds)),
        Asked::One { seed, without } => {
            Ok(one(seed, without.map(|name| named(&Off::all(), &name)).transpose()?))
        }
    })
}

/// Tells one life.
fn one(seed: u64, off: Option<Off>) -> ExitCode {
    let life = live(seed, off, Some(|line| println!("{line}")));
    life.violations.iter().for_each(|violation| println!("violation: {violation}"));
    println!("{:?}, trace {:016x}", life.counts, life.trace);
    status(life.violations.is_empty())
}

fn lives(seeds: Range<u64>) -> ExitCode {
    let began = Instant::now();
    let count = seeds.end - seeds.start;
    let sums: [AtomicU64; 5] = Default::default();
    let bad = many::bad(seeds, |seed| {
        let life = live(seed, None, None);
        let counts = life.counts;
        let counts = [counts.calls, counts.hits, counts.computed, counts.fenced, life.ends];
        for (sum, count) in sums.iter().zip(counts) {
            sum.fetch_add(count, Ordering::Relaxed);
        }
        life.violations
    });
    let elapsed_s = began.elapsed().as_secs();
    let all = Off::all();
    let unnoticed = many::unnoticed(&all, |seeds, off| {
        let life = first_violation(seeds, Some(off))?;
        Some((life.seed, life.violations[0].clone()))
    });
    let [calls, hits, computed, fenced, ends] = sums.map(AtomicU64::into_inner);
    let tried = json!({
        "seeds": count, "calls": calls, "hits": hits, "computed": computed, "fenced": fenced,
        "hosts_ended": ends, "safeguards": all.len(), "elapsed_s": elapsed_s,
    });
    many::report("cache-sim", &tried, &bad, &unnoticed)
}
