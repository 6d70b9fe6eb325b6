//! Every command of a developer, run as `cargo xtask COMMAND`.
//!
//! Each step of a command is named, printed so that it can be repeated by hand, and timed. Nothing is
//! installed without being told, and with `--no-install` nothing is.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod arguments;
mod batch;
mod database;
mod demo;
mod films;
mod groups;
mod guests;
mod languages;
mod machine;
mod measure;
mod peers;
mod programs;
mod redis;
mod step;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::arguments::Arguments;
use crate::machine::Install;
use crate::step::Steps;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test  [--no-install]            everything CI runs: formatting, lints, all tests, on SQLite and PostgreSQL
  test  --only-postgres [--long]  what runs on PostgreSQL alone: the stores' tests and the program's;
                                  --long: plans with 5,000,000 ended tasks, too
  demo  [--exit] [--port N]       a host with real records, from nothing to a table of results
  bench NAME                      one benchmark, as JSON lines
  bench queue|run [--sides A,B] [--rounds N]
                                  beside others, in turns; of queue also --tasks N and --bulk-only
  bench swap [--rounds N]         tasks beside swaps, and without, in turns
  check NAME [--long] [--postgres]
                                  one check of the whole system, as one JSON line; --postgres: of a host on PostgreSQL
  check sim [--long] [--seeds N] [--from SEED]
                                  lives of hosts and store in virtual time, 10,000 or 1,000,000, and one without each safeguard;
                                  --seed SEED [--without SAFEGUARD]: one life, and everything that happens in it
  check cache-sim [--long] [...]  the same of caches: their hosts, levels and the ways between them
  check hosts --unfenced          the same against hosts whose store does not fence: it must fail
  programs                        make and fetch the WASI programs and the guests in other languages that tests run
  postgres                        a PostgreSQL server for tests that are run by hand, until Ctrl-C

  --no-install                    never install anything; say what is missing
  --postgres-bin DIR              the PostgreSQL to test with, 14 to 18; KEIKO_TEST_POSTGRES=URL uses one that runs
  --guest-toolchain fallback      build plugins without rustup's wasm32-wasip2 target";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = Arguments::new(words);
    match command.as_str() {
        "test" => test::run(arguments),
        "demo" => demo::run(arguments),
        "bench" => measure::bench(arguments),
        "check" => measure::check(arguments),
        "postgres" => database::serve(arguments),
        "programs" => programs(arguments),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("there is no command `{other}`\n\n{USAGE}"),
    }
}

/// Makes and fetches the WASI programs of the tests, and the guests in other languages than Rust.
fn programs(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    arguments.finish()?;
    let mut steps = Steps::new();
    programs::ensure(&mut steps, install)?;
    languages::ensure(&mut steps, install)?;
    Ok(ExitCode::SUCCESS)
}
