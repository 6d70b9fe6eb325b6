//! How many attempts of a component its bare instantiation allows, on so many threads at once.
//!
//! The other side of `cargo xtask bench languages`, which asks for it between rounds of tasks on a host: each line of standard input is
//! a number of threads, and is answered with one JSON object, `per_second`. Compiling takes long for the guests of some languages,
//! and is done once, before the first answer. `KEIKO_BENCH_COMPONENT` names the component, which answers every kind.

use std::io::{BufRead, stdin};
use std::time::{Duration, Instant};

mod bare;
use bare::Bare;

/// How long each answer is measured.
const ROUND: Duration = Duration::from_secs(3);
/// Threads at most.
const THREADS_MAX: usize = 64;
const KIND: &str = "noop";
const INPUT: &[u8] = b"null";

fn main() {
    let path = std::env::var_os("KEIKO_BENCH_COMPONENT").expect("KEIKO_BENCH_COMPONENT names a component");
    let bare = Bare::new(&std::fs::read(path).expect("the component can be read"), THREADS_MAX);
    // The first attempts find nothing in its place.
    rate(&bare, 1, ROUND / 10);
    for line in stdin().lock().lines() {
        let threads = line.expect("a line").trim().parse().expect("a number of threads");
        assert!((1..=THREADS_MAX).contains(&threads), "1 to {THREADS_MAX} threads, not {threads}");
        report(threads, rate(&bare, threads, ROUND));
    }
}

/// Attempts a second.
fn rate(bare: &Bare, threads: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let attempts = bare.attempts(threads, time, KIND, INPUT);
    attempts as f64 / began.elapsed().as_secs_f64()
}

#[allow(clippy::print_stdout, reason = "figures are what a benchmark is for")]
fn report(threads: usize, per_second: f64) {
    println!(r#"{{"bench":"instantiation","threads":{threads},"per_second":{per_second:.1}}}"#);
}
