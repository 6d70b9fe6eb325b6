//! `cargo xtask bench NAME` and `cargo xtask check NAME [--long]`.
//!
//! Both build what they need and hand their one program's output through: JSON lines on standard output, and
//! everything about the building on standard error.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use keiko_tests::tree;

use crate::arguments::Arguments;
use crate::guests::{self, Toolchain};
use crate::machine::Install;
use crate::step::{Steps, cargo};

const BENCHES: &[&str] = &["attempt"];
const CHECKS: &[&str] = &["kill", "hostile"];

/// One benchmark.
pub fn bench(mut arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name(BENCHES)?;
    let (_, toolchain) = prepare(arguments, &["contract"])?;
    let component = toolchain.guests_dir().join("contract.wasm");
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "keiko-engine", "--bench", &name]);
    pass_through(bench.env("KEIKO_BENCH_COMPONENT", component))
}

/// One check, against the release build.
pub fn check(mut arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name(CHECKS)?;
    let long = arguments.flag("--long");
    let (mut steps, toolchain) = prepare(arguments, &["contract", "family"])?;
    let program = build_host(&mut steps)?;
    let mut run = cargo();
    run.args(["run", "--quiet", "--package", "keiko-tests", "--bin", "check", "--", &name])
        .args(long.then_some("--long"))
        .env("KEIKO_PROGRAM", program)
        .env("KEIKO_GUESTS_DIR", toolchain.guests_dir());
    pass_through(&mut run)
}

/// Builds the program as a person would run it, and says where it is.
pub fn build_host(steps: &mut Steps) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "keiko", "--bin", "keiko"]);
    steps.run("build the host", &mut build)?;
    Ok(tree::root().join("target/release/keiko"))
}

fn prepare(mut arguments: Arguments, guests: &[&str]) -> Result<(Steps, Toolchain)> {
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    arguments.finish()?;
    let mut steps = Steps::new();
    let toolchain = guests::set_up(&mut steps, asked, install)?;
    let names: Vec<String> = guests.iter().map(|name| (*name).to_owned()).collect();
    guests::build(&mut steps, toolchain, &names)?;
    Ok((steps, toolchain))
}

/// Runs a command whose output is ours.
fn pass_through(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
