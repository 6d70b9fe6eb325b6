//! `simulate_caches [--seeds N] [--from SEED]`: lives of caches of many seeds on all processors, and lives without each
//! safeguard until one misses it, as one JSON line; status 1 when a promise was broken, or when nobody missed a safeguard.
//! `simulate_caches --seed SEED [--without SAFEGUARD]`: one life, with everything that happens in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

#[path = "../tests/simulation/caches/mod.rs"]
mod caches;
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

use caches::{Life, Off, first_violation, live};
use many::{Asked, each, named, status};
use parking_lot::Mutex;
use serde_json::json;

/// Lives with violations that are told.
const NOTES_MAX: usize = 5;
/// Lives that a safeguard has to be missed in.
const LIVES_MAX: u64 = 1_000;

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
    let bad = Mutex::new(Vec::<Life>::new());
    let sums: [AtomicU64; 5] = Default::default();
    each(seeds, |seed| {
        let life = live(seed, None, None);
        let counts = life.counts;
        for (sum, count) in
            sums.iter().zip([counts.calls, counts.hits, counts.computed, counts.fenced, life.ends])
        {
            sum.fetch_add(count, Ordering::Relaxed);
        }
        if !life.violations.is_empty() {
            eprintln!("seed {seed}: {}", life.violations.join("; "));
            bad.lock().push(life);
        }
    });
    let elapsed_s = began.elapsed().as_secs();
    let all = Off::all();
    let unnoticed = Mutex::new(Vec::new());
    each(0..all.len() as u64, |at| {
        let off = all[at as usize];
        match first_violation(0..LIVES_MAX, Some(off)) {
            Some(life) => eprintln!("without {off}, seed {}: {}", life.seed, life.violations[0]),
            None => unnoticed.lock().push(off.to_string()),
        }
    });
    let (mut bad, unnoticed) = (bad.into_inner(), unnoticed.into_inner());
    bad.sort_by_key(|life| life.seed);
    let note = |life: &Life| json!({"seed": life.seed, "violations": life.violations});
    let [calls, hits, computed, fenced, ends] = sums.map(AtomicU64::into_inner);
    let report = json!({
        "check": "cache-sim",
        "tried": {
            "seeds": count, "calls": calls, "hits": hits, "computed": computed, "fenced": fenced,
            "hosts_ended": ends, "safeguards": all.len(), "elapsed_s": elapsed_s,
        },
        "violations": {"lives": bad.len(), "safeguards_not_missed": unnoticed.len()},
        "notes": bad.iter().take(NOTES_MAX).map(note).collect::<Vec<_>>(),
        "unnoticed": unnoticed,
    });
    println!("{report}");
    status(bad.is_empty() && unnoticed.is_empty())
}
