//! `cargo xtask bench NAME`, `cargo xtask check NAME [--long] [--postgres]` and `cargo xtask check hosts --unfenced`.
//!
//! Both build what they need and hand their one program's output through: JSON lines on standard output, and
//! everything about the building on standard error.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use keiko_tests::check::swap;
use keiko_tests::{ENGINE_VARIABLE, Options, POSTGRESQL, tree};

use crate::arguments::Arguments;
use crate::batch;
use crate::database::{Found, Wish};
use crate::guests::{self, Toolchain};
use crate::languages;
use crate::machine::Install;
use crate::peers;
use crate::redis;
use crate::step::{Steps, cargo};

const BENCHES: &[&str] = &["attempt", BATCH, CACHE, LANGUAGES, QUEUE, RUN, SWAP, WEIGHT];
/// The one of batches, which needs a host and both databases.
const BATCH: &str = "batch";
/// The one of the cache, which needs a Redis.
const CACHE: &str = "cache";
/// Those beside others.
const QUEUE: &str = "queue";
const RUN: &str = "run";
/// The one of the host with more to carry.
const WEIGHT: &str = "weight";
/// The one of swaps under load.
const SWAP: &str = "swap";
/// Its rounds, unless `--rounds` asks for others.
const SWAP_ROUNDS: usize = 4;
const CHECKS: &[&str] = &[
    "canary",
    "cancel",
    "kill",
    "batch-canary",
    "batch-kill",
    "hosts",
    "hostile",
    RESTART,
    "swap",
    "upload",
    CACHE_FAULTS,
    COLD_KEY,
    LANGUAGES,
    MUTATIONS,
    SIMULATION,
    CACHE_SIMULATION,
];
/// The ones of guests in other languages, which need toolchains of their own; a host starts with some of them in its long form.
const LANGUAGES: &str = "languages";
const RESTART: &str = "restart";
/// Those of the cache, which start a Redis of their own.
const CACHE_FAULTS: &str = "cache-faults";
const COLD_KEY: &str = "cold-key";
/// The one of the conformance suite itself.
const MUTATIONS: &str = "conformance-mutations";
/// Those in virtual time: of hosts and store, and of caches.
const SIMULATION: &str = "sim";
const CACHE_SIMULATION: &str = "cache-sim";
/// Lives of their long form.
const LIVES_LONG: &str = "1000000";
/// What they hand on.
const SIMULATION_OPTIONS: &[&str] = &["--seeds", "--from", "--seed", "--without"];
/// Those that start a PostgreSQL of their own: their hosts share it, and some restart it.
const CHECKS_WITH_SERVER: &[&str] = &["hosts", COLD_KEY];

/// One benchmark.
pub fn bench(mut arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name(BENCHES)?;
    match name.as_str() {
        BATCH => return bench_batch(arguments),
        LANGUAGES => return peers::languages(arguments),
        QUEUE => return peers::queue(arguments),
        RUN => return peers::run(arguments),
        SWAP => return bench_swap(arguments),
        WEIGHT => return peers::weight(arguments),
        _ => {}
    }
    let install = Install::unless(arguments.clone().flag("--no-install"));
    let server = (name == CACHE).then(|| redis::ensure(install).and_then(|()| redis::start())).transpose()?;
    // What the cache is asked by, or as little as a guest can be.
    let guest = if name == CACHE { "contract" } else { "noop" };
    let (_, toolchain) = prepare(arguments, &[guest])?;
    let component = toolchain.guests_dir().join(guest).with_extension("wasm");
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--workspace", "--bench", &name]);
    if let Some(server) = &server {
        server.hand_to(&mut bench);
    }
    pass_through(bench.env("KEIKO_BENCH_COMPONENT", component))
}

fn bench_batch(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.clone().flag("--no-install"));
    let found = Wish::asked(&mut arguments)?.ensure(install)?;
    let (mut steps, _) = prepare(arguments, &["batches"])?;
    let program = build_host(&mut steps)?;
    batch::run(&mut steps, &program, found)?;
    Ok(ExitCode::SUCCESS)
}

fn bench_swap(mut arguments: Arguments) -> Result<ExitCode> {
    let rounds = arguments.option("--rounds")?;
    let rounds = rounds.map_or(Ok(SWAP_ROUNDS), |rounds| rounds.parse()).context("--rounds")?;
    let (mut steps, _) = prepare(arguments, &["family"])?;
    let program = build_host(&mut steps)?;
    let folder = tempfile::tempdir().context("a folder")?;
    let options = Options::of(program, folder.path())?;
    let lines = swap::bench(&swap::Plan::round(), rounds.max(1), options)?;
    lines.iter().for_each(|line| println!("{line}"));
    Ok(ExitCode::SUCCESS)
}

/// One check, against the release build.
pub fn check(mut arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name(CHECKS)?;
    let (long, unfenced) = (arguments.flag("--long"), arguments.flag("--unfenced"));
    if unfenced && (long || name != "hosts") {
        bail!("`--unfenced` goes with the short check `hosts`");
    }
    if name == MUTATIONS {
        return mutations(arguments, long);
    }
    if name == SIMULATION {
        return simulate(arguments, "simulate", long);
    }
    if name == CACHE_SIMULATION {
        return simulate(arguments, "simulate_caches", long);
    }
    let (own_server, on_postgres) =
        (CHECKS_WITH_SERVER.contains(&name.as_str()), arguments.flag("--postgres"));
    if own_server && on_postgres {
        bail!("the check `{name}` is of hosts on PostgreSQL anyway");
    }
    let install = Install::unless(arguments.clone().flag("--no-install"));
    if [CACHE_FAULTS, COLD_KEY].contains(&name.as_str()) {
        redis::ensure(install)?;
    }
    let wish = Wish::asked(&mut arguments)?;
    let found = (own_server || on_postgres).then(|| wish.ensure(install)).transpose()?;
    let (mut steps, toolchain) = prepare(arguments, &["batches", "contract", "family", "text-digest"])?;
    if name == LANGUAGES || name == RESTART && long {
        languages::ensure(&mut steps, install)?;
    }
    let program = if unfenced { build_unfenced(&mut steps)? } else { build_host(&mut steps)? };
    let mut run = cargo();
    run.args(["run", "--quiet", "--package", "keiko-tests", "--bin", "check", "--", &name])
        .args(long.then_some("--long"))
        .args(unfenced.then_some("--unfenced"))
        .env("KEIKO_PROGRAM", program)
        .env("KEIKO_GUESTS_DIR", toolchain.guests_dir());
    match found {
        Some(found) if on_postgres => on_server(found, &mut steps, &mut run),
        Some(found) => pass_through(found.hand_to(&mut run)),
        None => pass_through(&mut run),
    }
}

/// Runs the conformance suite on stores that break its promises. Needs neither a host nor guests, and installs nothing.
fn mutations(mut arguments: Arguments, long: bool) -> Result<ExitCode> {
    arguments.flag("--no-install");
    arguments.finish()?;
    let mut run = cargo();
    run.args(["run", "--quiet", "--package", "keiko-store", "--example", "conformance_mutations", "--"]);
    pass_through(run.args(long.then_some("--long")))
}

/// Lives many lives in virtual time, of hosts and store or of caches. Needs neither a host nor guests, and installs nothing.
fn simulate(mut arguments: Arguments, example: &str, long: bool) -> Result<ExitCode> {
    arguments.flag("--no-install");
    let mut run = cargo();
    run.args(["run", "--quiet", "--release", "--package", "keiko-runtime", "--features", "simulation"]);
    run.args(["--example", example, "--"]);
    for name in SIMULATION_OPTIONS {
        let value = arguments.option(name)?;
        run.args(value.iter().flat_map(|value| [*name, value.as_str()]));
    }
    arguments.finish()?;
    pass_through(run.args(long.then_some(["--seeds", LIVES_LONG]).into_iter().flatten()))
}

/// Runs a check whose hosts keep their tasks in a database of a server, which is gone with the check.
fn on_server(found: Found, steps: &mut Steps, run: &mut Command) -> Result<ExitCode> {
    let server = steps.step("PostgreSQL", || found.start())?;
    server.hand_to(run);
    let outcome = pass_through(run.env(ENGINE_VARIABLE, POSTGRESQL));
    outcome.and_then(|code| server.stop().map(|()| code))
}

/// Builds the program as a person would run it, and says where it is. Out of the whole workspace, as everything is that is built
/// for release: so all of it has its dependencies with the same features, and they are compiled once.
pub fn build_host(steps: &mut Steps) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--workspace", "--bin", "keiko"]);
    steps.run("build the host", &mut build)?;
    Ok(tree::target_dir().join("release/keiko"))
}

/// Builds the program without its fence, to see that the check fails, and puts it where nobody takes it for the other.
fn build_unfenced(steps: &mut Steps) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "keiko", "--bin", "keiko", "--features", "unfenced"]);
    steps.run("build the host without its fence", &mut build)?;
    let (built, apart) =
        (tree::target_dir().join("release/keiko"), tree::target_dir().join("keiko-unfenced"));
    fs::rename(&built, &apart).with_context(|| format!("move {}", built.display()))?;
    Ok(apart)
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
