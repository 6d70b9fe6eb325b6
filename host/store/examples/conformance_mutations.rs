//! Prints as one JSON line which bodies of the conformance suite notice which broken promise; ends with status 1 when
//! nobody notices one. With `--long` every body is run against every mutation, which tells how many notice it.

#![allow(clippy::print_stdout, reason = "the report is this program's output")]

use std::process::ExitCode;

#[allow(dead_code, reason = "the suite has more to it than its bodies")]
#[path = "../tests/conformance.rs"]
mod conformance;

// Bodies name each other by their place in the crate of the suite.
use conformance::*;

fn main() -> ExitCode {
    let every = std::env::args().any(|argument| argument == "--long");
    let report = mutations::try_all(&promises(), every);
    println!("{}", report.json());
    if report.violations().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
