//! `check NAME [--long | --unfenced]`: runs one check against a real host and prints its report as one JSON line.
//!
//! Ends with status 0 when no invariant was violated, 1 when one was, 2 when the check could not be run.

use std::process::ExitCode;

use anyhow::{Result, bail};
use keiko_tests::check::{
    Report, batch_canary, batch_kill, cache_faults, canary, cancel, cold_key, hostile, hosts, kill,
    languages, restart, swap, uploading,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(report) => {
            print(&report);
            if report.violations() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<Report> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, long, unfenced) = match arguments[..] {
        [name] => (name, false, false),
        [name, "--long"] | ["--long", name] => (name, true, false),
        ["hosts", "--unfenced"] => ("hosts", false, true),
        _ => bail!("usage: check NAME [--long], or check hosts --unfenced"),
    };
    let folder = tempfile::Builder::new().prefix("keiko-check-").tempdir()?;
    let seed = keiko_tests::seed();
    let report = match name {
        "kill" => {
            kill::run(&if long { kill::Plan::long(seed) } else { kill::Plan::short(seed) }, folder.path())
        }
        "hosts" if unfenced => hosts::run(&hosts::Plan::unfenced(seed), folder.path()),
        "hosts" => {
            hosts::run(&if long { hosts::Plan::long(seed) } else { hosts::Plan::short(seed) }, folder.path())
        }
        "canary" => {
            canary::run(&if long { canary::Plan::long() } else { canary::Plan::short() }, folder.path())
        }
        "cancel" => cancel::run(&cancel::Plan { races: if long { 100_000 } else { 10_000 } }, folder.path()),
        "batch-canary" => {
            let plan = if long { canary::Plan::long() } else { canary::Plan::short() };
            batch_canary::run(&plan, folder.path())
        }
        "batch-kill" => {
            let plan = if long { batch_kill::Plan::long(seed) } else { batch_kill::Plan::short(seed) };
            batch_kill::run(&plan, folder.path())
        }
        "cache-faults" => {
            let plan = if long { cache_faults::Plan::long(seed) } else { cache_faults::Plan::short(seed) };
            cache_faults::run(&plan, folder.path())
        }
        "cold-key" => {
            cold_key::run(&if long { cold_key::Plan::long() } else { cold_key::Plan::short() }, folder.path())
        }
        "hostile" => hostile::run(&hostile::Plan::new(long), folder.path()),
        "restart" => {
            restart::run(&if long { restart::Plan::long() } else { restart::Plan::short() }, folder.path())
        }
        "languages" => {
            let plan = if long { languages::Plan::long(seed) } else { languages::Plan::short(seed) };
            languages::run(&plan, folder.path())
        }
        "swap" => swap::run(&if long { swap::Plan::long() } else { swap::Plan::short() }, folder.path()),
        "upload" => {
            let plan = if long { uploading::Plan::long(seed) } else { uploading::Plan::short(seed) };
            uploading::run(&plan, folder.path())
        }
        _ => bail!(
            "there is no check `{name}`; there are: batch-canary, batch-kill, cache-faults, canary, cancel, cold-key, hostile, hosts, kill, languages, restart, swap, upload"
        ),
    };
    if !matches!(&report, Ok(report) if report.violations() == 0) {
        // What the host said and stored is worth more than a tidy temporary folder.
        let kept = folder.keep();
        return report
            .map_err(|error| error.context(format!("seed {seed}; data and log: {}", kept.display())));
    }
    report
}

#[allow(clippy::print_stdout, reason = "the report is this program's output")]
fn print(report: &Report) {
    println!("{}", report.json());
}

#[allow(clippy::print_stderr, reason = "this program has no other log")]
fn complain(error: &anyhow::Error) {
    eprintln!("check: {error:#}");
}
