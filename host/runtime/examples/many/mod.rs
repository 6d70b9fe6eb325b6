//! What programs that live many lives have in common: what they are asked, and all processors.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lives of a run that asks for nothing else.
const SEEDS: u64 = 10_000;

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

/// Does something with every number, on all processors.
pub fn each(numbers: Range<u64>, work: impl Fn(u64) + Sync) {
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
