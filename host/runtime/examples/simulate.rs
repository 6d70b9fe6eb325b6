//! `simulate [--seeds N] [--from SEED]`: lives of many seeds on all processors, and a life without each safeguard until
//! one misses it, as one JSON line; status 1 when a promise was broken, or when nobody missed a safeguard.
//! `simulate --seed SEED [--without SAFEGUARD]`: one life, with everything that happens in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

#[path = "../tests/simulation/life/mod.rs"]
mod life;
#[path = "many/mod.rs"]
mod many;
#[path = "../tests/simulation/random.rs"]
mod random;
#[path = "../tests/simulation/story.rs"]
mod story;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use life::{Life, Safeguard, first_violation, live};
use many::{Asked, each, named, status};
use parking_lot::Mutex;
use serde_json::json;

/// Lives with violations that are told.
const NOTES_MAX: usize = 5;
/// Lives that a safeguard has to be missed in.
const LIVES_MAX: u64 = 1_000;

fn main() -> ExitCode {
    many::run("simulate", |asked| match asked {
        Asked::Many(seeds) => Ok(lives(seeds)),
        Asked::One { seed, without } => {
            Ok(one(seed, without.map(|name| named(Safeguard::ALL, &name)).transpose()?))
        }
    })
}

/// Tells one life.
fn one(seed: u64, off: Option<Safeguard>) -> ExitCode {
    let life = live(seed, off, Some(|line| println!("{line}")));
    life.violations.iter().for_each(|violation| println!("violation: {violation}"));
    println!("trace {:016x}", life.trace);
    status(life.violations.is_empty())
}

fn lives(seeds: Range<u64>) -> ExitCode {
    let began = Instant::now();
    let count = seeds.end - seeds.start;
    let bad = Mutex::new(Vec::<Life>::new());
    let [tasks, runs, ends, along]: [AtomicU64; 4] = Default::default();
    each(seeds, |seed| {
        let life = live(seed, None, None);
        tasks.fetch_add(life.tasks as u64, Ordering::Relaxed);
        runs.fetch_add(life.runs as u64, Ordering::Relaxed);
        ends.fetch_add(life.ends, Ordering::Relaxed);
        along.fetch_add(life.along, Ordering::Relaxed);
        if !life.violations.is_empty() {
            eprintln!("seed {seed}: {}", life.violations.join("; "));
            bad.lock().push(life);
        }
    });
    let elapsed_s = began.elapsed().as_secs();
    let unnoticed = Mutex::new(Vec::new());
    each(0..Safeguard::ALL.len() as u64, |at| {
        let safeguard = Safeguard::ALL[at as usize];
        match first_violation(0..LIVES_MAX, Some(safeguard)) {
            Some(life) => eprintln!("without {safeguard}, seed {}: {}", life.seed, life.violations[0]),
            None => unnoticed.lock().push(safeguard.to_string()),
        }
    });
    let (mut bad, unnoticed) = (bad.into_inner(), unnoticed.into_inner());
    bad.sort_by_key(|life| life.seed);
    let note = |life: &Life| json!({"seed": life.seed, "violations": life.violations});
    let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let report = json!({
        "check": "sim",
        "tried": {
            "seeds": count, "tasks": number(&tasks), "attempts": number(&runs), "hosts_ended": number(&ends),
            "leased_with_submits": number(&along),
            "safeguards": Safeguard::ALL.len(), "elapsed_s": elapsed_s,
        },
        "violations": {"lives": bad.len(), "safeguards_not_missed": unnoticed.len()},
        "notes": bad.iter().take(NOTES_MAX).map(note).collect::<Vec<_>>(),
        "unnoticed": unnoticed,
    });
    println!("{report}");
    status(bad.is_empty() && unnoticed.is_empty())
}
