//! What programs that live many lives have in common: what they are asked, all processors, and what they report.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// Lives of a run that asks for nothing else.
const SEEDS: u64 = 10_000;
/// Lives that a safeguard has to be missed in.
const LIVES_MAX: u64 = 1_000;
/// Lives with violations that are told.
const NOTES_MAX: usize = 5;

/// What is asked.
pub enum Asked {
    /// Lives of these seeds.
    Many(Range<u64>),
    /// One life, without a safeguard if one is named.
    One {
        /// Its seed.
        seed: u64,
        /// The safeguard.
        without: Option<String>,
    },
}

/// Reads what is asked and has it done; status 2 when it cannot be read.
pub fn run(program: &str, work: impl FnOnce(Asked) -> Result<ExitCode, String>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage =
        format!("usage: {program} [--seeds N] [--from SEED], or {program} --seed SEED [--without SAFEGUARD]");
    match asked(&arguments).and_then(work) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("{text}\n{usage}");
            ExitCode::from(2)
        }
    }
}

fn asked(arguments: &[String]) -> Result<Asked, String> {
    let (mut from, mut seeds, mut one, mut without) = (0, SEEDS, None, None);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} has no value", pair[0])) };
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--from" => from = number()?,
            "--seeds" => seeds = number()?,
            "--seed" => one = Some(number()?),
            "--without" => without = Some(value.clone()),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    Ok(one.map_or_else(|| Asked::Many(from..from.saturating_add(seeds)), |seed| Asked::One { seed, without }))
}

/// The one of these that has this name.
pub fn named<T: Copy + ToString>(all: &[T], name: &str) -> Result<T, String> {
    let names = || all.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|one| one.to_string() == name);
    found.copied().ok_or_else(|| format!("there is no safeguard {name}; there are: {}", names()))
}

pub fn status(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The lives of these seeds in which a promise is broken, by seed, with what is wrong in them.
pub fn bad(seeds: Range<u64>, live: impl Fn(u64) -> Vec<String> + Sync) -> Vec<(u64, Vec<String>)> {
    let bad = Mutex::new(Vec::new());
    each(seeds, |seed| {
        let violations = live(seed);
        if !violations.is_empty() {
            eprintln!("seed {seed}: {}", violations.join("; "));
            bad.lock().push((seed, violations));
        }
    });
    let mut bad = bad.into_inner();
    bad.sort();
    bad
}

/// The safeguards without which every life goes well; `first` is the first of some seeds' lives without one that does not.
pub fn unnoticed<T: Copy + ToString + Sync>(
    all: &[T],
    first: impl Fn(Range<u64>, T) -> Option<(u64, String)> + Sync,
) -> Vec<String> {
    let unnoticed = Mutex::new(Vec::new());
    each(0..all.len() as u64, |at| {
        let safeguard = all[at as usize];
        match first(0..LIVES_MAX, safeguard) {
            Some((seed, violation)) => {
                eprintln!("without {}, seed {seed}: {violation}", safeguard.to_string());
            }
            None => unnoticed.lock().push(safeguard.to_string()),
        }
    });
    unnoticed.into_inner()
}

/// Prints the JSON line of a check.
pub fn report(check: &str, tried: &Value, bad: &[(u64, Vec<String>)], unnoticed: &[String]) -> ExitCode {
    let note = |(seed, violations): &(u64, Vec<String>)| json!({"seed": seed, "violations": violations});
    let report = json!({
        "check": check,
        "tried": tried,
        "violations": {"lives": bad.len(), "safeguards_not_missed": unnoticed.len()},
        "notes": bad.iter().take(NOTES_MAX).map(note).collect::<Vec<_>>(),
        "unnoticed": unnoticed,
    });
    println!("{report}");
    status(bad.is_empty() && unnoticed.is_empty())
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
