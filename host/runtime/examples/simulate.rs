//! `simulate [--seeds N] [--from SEED]`: lives of many seeds on all processors, and a life without each safeguard until
//! one misses it, as one JSON line; status 1 when a promise was broken, or when nobody missed a safeguard.
//! `simulate --seed SEED [--without SAFEGUARD]`: one life, with everything that happens in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

#[path = "../tests/simulation/life/mod.rs"]
mod life;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use life::{Life, Safeguard, first_violation, live};
use parking_lot::Mutex;
use serde_json::json;

const USAGE: &str =
    "usage: simulate [--seeds N] [--from SEED], or simulate --seed SEED [--without SAFEGUARD]";
/// Lives of a run that asks for nothing else.
const SEEDS: u64 = 10_000;
/// Lives with violations that are told.
const NOTES_MAX: usize = 5;
/// Lives that a safeguard has to be missed in.
const LIVES_MAX: u64 = 1_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, String> {
    let (mut from, mut seeds, mut seed, mut off) = (0, SEEDS, None, None);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(USAGE.to_owned()) };
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number\n{USAGE}"));
        match name.as_str() {
            "--from" => from = number()?,
            "--seeds" => seeds = number()?,
            "--seed" => seed = Some(number()?),
            "--without" => off = Some(safeguard(value)?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(seed.map_or_else(|| many(from..from.saturating_add(seeds)), |seed| one(seed, off)))
}

fn safeguard(name: &str) -> Result<Safeguard, String> {
    let found = Safeguard::ALL.iter().find(|safeguard| safeguard.to_string() == name);
    let names = || Safeguard::ALL.iter().map(Safeguard::to_string).collect::<Vec<_>>().join(", ");
    found.copied().ok_or_else(|| format!("there is no safeguard {name}; there are: {}", names()))
}

/// Tells one life.
fn one(seed: u64, off: Option<Safeguard>) -> ExitCode {
    let life = live(seed, off, Some(|line| println!("{line}")));
    life.violations.iter().for_each(|violation| println!("violation: {violation}"));
    println!("trace {:016x}", life.trace);
    status(life.violations.is_empty())
}

fn many(seeds: Range<u64>) -> ExitCode {
    let began = Instant::now();
    let count = seeds.end - seeds.start;
    let bad = Mutex::new(Vec::<Life>::new());
    let (tasks, runs, ends) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    each(seeds, |seed| {
        let life = live(seed, None, None);
        tasks.fetch_add(life.tasks as u64, Ordering::Relaxed);
        runs.fetch_add(life.runs as u64, Ordering::Relaxed);
        ends.fetch_add(life.ends, Ordering::Relaxed);
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
            "safeguards": Safeguard::ALL.len(), "elapsed_s": elapsed_s,
        },
        "violations": {"lives": bad.len(), "safeguards_not_missed": unnoticed.len()},
        "notes": bad.iter().take(NOTES_MAX).map(note).collect::<Vec<_>>(),
        "unnoticed": unnoticed,
    });
    println!("{report}");
    status(bad.is_empty() && unnoticed.is_empty())
}

fn status(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does something with every number, on all processors.
fn each(numbers: Range<u64>, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(numbers.start);
    let mine = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= numbers.end {
            return;
        }
        work(number);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(mine)));
    });
}
