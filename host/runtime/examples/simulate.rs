//! `simulate [--seeds N] [--from SEED]`: lives of many seeds on all processors, and a life without each safeguard until
//! one misses it, as one JSON line; status 1 when a promise was broken, or when nobody missed a safeguard.
//! `simulate --seed SEED [--without SAFEGUARD]`: one life, with everything that happens in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

#[path = "../tests/simulation/clock.rs"]
mod clock;
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

use life::{Safeguard, first_violation, live};
use many::{Asked, named, status};
use serde_json::json;

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
    let sums: [AtomicU64; 4] = Default::default();
    let bad = many::bad(seeds, |seed| {
        let life = live(seed, None, None);
        let counts = [life.tasks as u64, life.runs as u64, life.ends, life.along];
        for (sum, count) in sums.iter().zip(counts) {
            sum.fetch_add(count, Ordering::Relaxed);
        }
        life.violations
    });
    let elapsed_s = began.elapsed().as_secs();
    let unnoticed = many::unnoticed(Safeguard::ALL, |seeds, safeguard| {
        let life = first_violation(seeds, Some(safeguard))?;
        Some((life.seed, life.violations[0].clone()))
    });
    let [tasks, runs, ends, along] = sums.map(AtomicU64::into_inner);
    let tried = json!({
        "seeds": count, "tasks": tasks, "attempts": runs, "hosts_ended": ends, "leased_with_submits": along,
        "safeguards": Safeguard::ALL.len(), "elapsed_s": elapsed_s,
    });
    many::report("sim", &tried, &bad, &unnoticed)
}
