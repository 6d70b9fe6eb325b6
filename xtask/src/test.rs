//! `cargo xtask test`: everything CI runs, and nothing else.
//!
//! Order: what fails soonest comes first. The host is built once, for tests and program alike, with the features of
//! the whole workspace, so that no step rebuilds what another one built. The tests of the program run twice, with their
//! tasks in SQLite and in PostgreSQL.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use keiko_tests::{ENGINE_VARIABLE, POSTGRESQL};

use crate::arguments::Arguments;
use crate::database::{Server, Wish};
use crate::guests::{self, Toolchain};
use crate::languages;
use crate::machine::{self, Install};
use crate::programs;
use crate::redis;
use crate::step::{self, Steps, cargo};

/// Tests of what a guest reaches through its standard library, which has no WASI when the fallback toolchain built it.
const NEED_WASI: &[&str] = &[
    "an_exit_is_told_as_what_it_was",
    "limits_end_an_attempt_with_their_own_code_and_number",
    "wasi_is_bounded_and_marks_the_run",
    "a_panic_names_functions_lines_and_its_message",
    "lines_are_kept_with_their_level_source_and_fields",
    "a_drain_lets_running_attempts_finish",
    "the_first_plugin_works_as_it_is_written",
];

/// Tests that have a long form take it when this is set.
const LONG_VARIABLE: &str = "KEIKO_TEST_LONG";
/// The test binaries that start the program: they run on both engines.
const PROGRAM: &[&str] = &["--test", "it", "--test", "api"];
/// Modules and tests of those that are about one engine, or about what no database is part of: they run once.
const ONCE: &[&str] = &[
    "database::",
    "postgres::",
    "replica::",
    "readme::",
    "hosts_that_die_stop",
    "readers_of_a_cold_key",
    "attacks_end_with",
    "every_language",
    "what_one_host_installs_runs_on_the_other",
    "sharing::",
    "whose_news_get_lost",
];
/// Those of them that are about PostgreSQL.
const POSTGRES: &[&str] =
    &["database::", "postgres::", "replica::", "sharing::", "hosts_that_die_stop", "readers_of_a_cold_key"];
/// The test binaries of the stores.
const STORES: &[&str] =
    &["--lib", "--test", "conformance", "--test", "postgres", "--test", "statements", "--test", "admin"];

/// What the test runners counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// How much of it is wanted.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// What is about PostgreSQL, and no lints.
    only_postgres: bool,
    /// The long form of tests that have one.
    long: bool,
}

/// Runs the command.
pub fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    let wish = Wish::asked(&mut arguments)?;
    let form = Form { only_postgres: arguments.flag("--only-postgres"), long: arguments.flag("--long") };
    arguments.finish()?;
    let mut steps = Steps::new();
    let mut counts = Counts::default();
    let outcome = run_steps(&mut steps, asked, wish, install, form, &mut counts);
    steps.print();
    if let Err(error) = &outcome {
        eprintln!("\nxtask: {error:#}");
    }
    println!("\n{} passed, {} failed", counts.passed, counts.failed);
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_steps(
    steps: &mut Steps,
    asked: Option<Toolchain>,
    wish: Wish,
    install: Install,
    form: Form,
    counts: &mut Counts,
) -> Result<()> {
    let found = steps.step("system packages", || {
        machine::ensure_compiler(install)?;
        redis::ensure(install)?;
        wish.ensure(install)
    })?;
    let toolchain = guests::set_up(steps, asked, install)?;
    if !form.only_postgres {
        steps.run("formatting", cargo().args(["fmt", "--all", "--check"]))?;
        audit(steps)?;
    }
    guests::build(steps, toolchain, &guests::all()?)?;
    programs::ensure(steps, install)?;
    if !form.only_postgres {
        let mut clippy = cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
        steps.run("lints", &mut clippy)?;
        simulator(steps, counts)?;
    }
    // Programs too: tests start the real one. The same selection as the tests', so the same features.
    let mut build = cargo();
    build.args(["build", "--workspace", "--lib", "--bins", "--tests"]);
    steps.run("build the host and its tests", &mut build)?;
    languages::ensure(steps, install)?;
    let server = steps.step("PostgreSQL", || found.start())?;
    let redis = steps.step("Redis", redis::start)?;
    let all =
        Tests { names: &["--lib", "--bins", "--tests"], only: &[], skip: &[], engine: None, long: form.long };
    let stores = Tests { names: STORES, ..all };
    let postgres = Tests { names: PROGRAM, only: POSTGRES, ..all };
    let again = Tests { names: PROGRAM, skip: ONCE, engine: Some(POSTGRESQL), ..all };
    let first = if form.only_postgres { [Some(stores), Some(postgres)] } else { [Some(all), None] };
    // Whatever fails, the others are worth seeing in the same run.
    let outcomes = first
        .into_iter()
        .flatten()
        .chain([again])
        .map(|tests| tests.run(steps, toolchain, (&server, &redis), counts));
    let outcome = outcomes.fold(Ok(()), Result::and);
    let stopped = steps.step("stop PostgreSQL", || server.stop());
    outcome.and(stopped)
}

/// The short forms of `check sim` and `check cache-sim`. The simulator stops tokio's clock, which nothing else is built for: it is built apart.
fn simulator(steps: &mut Steps, counts: &mut Counts) -> Result<()> {
    let mut clippy = cargo();
    clippy.args(["clippy", "--package", "keiko-runtime", "--features", "simulation", "--test", "simulation"]);
    clippy.args(["--example", "simulate", "--example", "simulate_caches", "--", "--deny", "warnings"]);
    steps.run("lints of the simulator", &mut clippy)?;
    let mut lives = cargo();
    lives.args(["test", "--release", "--package", "keiko-runtime", "--features", "simulation"]);
    lives.args(["--test", "simulation"]);
    steps.step("simulator", || step::run_watched(&mut lives, |line| counts.read(line)))
}

/// Tests that run together.
#[derive(Clone, Copy)]
struct Tests {
    /// Which binaries.
    names: &'static [&'static str],
    /// Parts of names, of which a test has one; all tests when there are none.
    only: &'static [&'static str],
    /// Parts of names of tests that are left out.
    skip: &'static [&'static str],
    /// Where their hosts keep their tasks.
    engine: Option<&'static str>,
    long: bool,
}

impl Tests {
    /// Runs them, with nextest where it is installed.
    fn run(
        self,
        steps: &mut Steps,
        toolchain: Toolchain,
        (server, redis): (&Server, &redis::Server),
        counts: &mut Counts,
    ) -> Result<()> {
        let mut tests = cargo();
        server.hand_to(&mut tests);
        redis.hand_to(&mut tests);
        if step::succeeds(cargo().args(["nextest", "--version"])) {
            tests.args(["nextest", "run", "--workspace"]).args(self.names);
        } else {
            tests.args(["test", "--workspace", "--no-fail-fast"]).args(self.names);
        }
        tests.envs(self.engine.map(|engine| (ENGINE_VARIABLE, engine)));
        tests.envs(self.long.then_some((LONG_VARIABLE, "1")));
        tests.arg("--").args(self.only);
        let mut skipped = self.skip.to_vec();
        if toolchain == Toolchain::Fallback {
            eprintln!(
                "guests have no WASI from this toolchain: {} tests that need it are left out",
                NEED_WASI.len()
            );
            tests.env("KEIKO_GUESTS_DIR", toolchain.guests_dir());
            skipped.extend(NEED_WASI);
        }
        for name in skipped {
            tests.args(["--skip", name]);
        }
        let name =
            self.engine.map_or("tests".to_owned(), |engine| format!("tests of the program on {engine}"));
        steps.step(&name, || step::run_watched(&mut tests, |line| counts.read(line)))
    }
}

/// Advisories, licences and sources of the dependencies, where a tool and its data are at hand.
fn audit(steps: &mut Steps) -> Result<()> {
    steps.step("dependencies", || {
        if step::succeeds(cargo().args(["deny", "--version"])) {
            let mut deny = cargo();
            deny.args(["deny", "--offline", "check", "bans", "licenses", "sources"]);
            if has_advisories("advisory-dbs") {
                deny.arg("advisories");
            } else {
                eprintln!("the advisory database is not on this machine: advisories are not checked here");
            }
            return step::run(&mut deny);
        }
        if step::succeeds(cargo().args(["audit", "--version"])) && has_advisories("advisory-db") {
            return step::run(cargo().args(["audit", "--no-fetch"]));
        }
        eprintln!(
            "there is no cargo-deny, and no cargo-audit with its database: dependencies are not checked here"
        );
        Ok(())
    })
}

/// Whether a tool keeps a database of advisories in this folder of cargo's own.
fn has_advisories(folder: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let entries = home.and_then(|home| fs::read_dir(home.join(folder)).ok());
    entries.is_some_and(|mut entries| entries.next().is_some())
}

impl Counts {
    /// Takes the closing line of either runner: `Summary [ 1.0s] 5 tests run: 4 passed, 1 failed` or
    /// `test result: FAILED. 4 passed; 1 failed; …`.
    fn read(&mut self, line: &str) {
        let plain = without_colour(line);
        let counted = plain.split_once("tests run:").or_else(|| plain.split_once("test run:"));
        let counted = match plain.trim_start().strip_prefix("test result:") {
            Some(rest) => rest,
            None if plain.trim_start().starts_with("Summary") => counted.map_or("", |(_, rest)| rest),
            None => return,
        };
        let words: Vec<&str> =
            counted.split([' ', ',', ';', '(', ')']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let number = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => self.passed += number,
                "failed" | "timed" => self.failed += number,
                _ => {}
            }
        }
    }
}

/// The line without terminal escapes.
fn without_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            letters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], passed: u64, failed: u64) {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.read(line));
        assert_eq!(counts, Counts { passed, failed }, "{lines:?}");
    }

    #[test]
    fn closing_lines_of_both_runners_are_counted() {
        check(&["     Summary [   1.234s] 5 tests run: 5 passed, 0 skipped"], 5, 0);
        check(
            &["     Summary [   1.2s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 0 skipped"],
            5,
            4,
        );
        check(
            &[
                "\u{1b}[32;1m     Summary\u{1b}[0m [ 1s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m",
            ],
            1,
            0,
        );
        check(
            &[
                "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
                "test one ... ok",
                "test result: FAILED. 1 passed; 2 failed; 0 ignored",
            ],
            5,
            2,
        );
        check(&["a line of a test: 3 passed, 4 failed"], 0, 0);
    }
}
