//! `cargo xtask bench languages`: durable no-op tasks in bulk of guests in Python and TypeScript, beside what their bare instantiation
//! allows: the same component instantiated, called and dropped in a loop with the same engine settings and pool, on as many threads as
//! the host has workers.
//!
//! With one worker the rest of a host has what other processors there are, as the client has; with as many as the machine has
//! processors, both take their time from the guests.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use keiko_tests::check::languages::install as install_on;
use keiko_tests::{Client, Host, Options, tree};

use super::{Plan, Rounds, bench};
use crate::arguments::Arguments;
use crate::languages::ensure_noops;
use crate::machine::Install;
use crate::measure::build_host;
use crate::step::{Steps, cargo};

const LANGUAGES: &[&str] = &["python", "typescript"];
const PLUGIN: &str = "noop";
const MANIFEST: &str = "[plugin]\nname = \"noop\"\nversion = \"1\"\n[[kind]]\nname = \"noop\"\n";
/// Seconds that the tasks of a round take, were nothing but instances made for them; and tasks before the first round.
const ROUND_S: f64 = 4.0;
const WARM_UP: &str = "200";

/// Runs the comparison.
pub fn languages(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let plan = Plan::asked(&mut arguments, LANGUAGES)?;
    arguments.finish()?;
    let mut steps = Steps::new();
    ensure_noops(&mut steps, install)?;
    let keiko = build_host(&mut steps)?;
    let processors = available_parallelism().context("the number of processors")?.get();
    let mut workers = vec![1, processors];
    workers.dedup();
    let mut rounds = Rounds::default();
    for language in LANGUAGES.iter().filter(|language| plan.wants(language)) {
        let component = tree::languages_dir().join(format!("noop-{language}.wasm"));
        let bytes = std::fs::read(&component).with_context(|| format!("read {}", component.display()))?;
        let mut bare = Bare::start(&component)?;
        let folder = tempfile::Builder::new().prefix("keiko-bench-").tempdir()?;
        for workers in &workers {
            let options = Options::of(keiko.clone(), folder.path())?;
            let mut host = Host::start(options.with_config(&format!("[host]\nworkers = {workers}\n"))?)?;
            let client = host.client();
            install_on(&client, &bytes, MANIFEST)?;
            tasks(&keiko, &client, WARM_UP)?;
            for round in 1..=plan.rounds {
                eprintln!("{language}, {workers} workers, round {round}");
                let figure = format!("tasks_per_s@{workers}");
                let allowed = bare.per_second(*workers)?;
                rounds.add(&format!("bare-{language}"), &figure, allowed);
                let count = (allowed * ROUND_S).ceil().to_string();
                let line = tasks(&keiko, &client, &count)?;
                rounds.take(&format!("keiko-{language}"), &figure, &line, "per_second")?;
            }
            host.stop().map(drop)?;
        }
    }
    print(&rounds, &workers);
    Ok(ExitCode::SUCCESS)
}

fn print(rounds: &Rounds, workers: &[usize]) {
    let names: Vec<_> =
        LANGUAGES.iter().map(|name| (format!("keiko-{name}"), format!("bare-{name}"))).collect();
    let figures: Vec<_> = workers.iter().map(|workers| format!("tasks_per_s@{workers}")).collect();
    let of = |(keiko, bare)| figures.iter().map(move |figure: &String| (figure.as_str(), keiko, bare));
    let ratios: Vec<_> = names.iter().flat_map(|(keiko, bare)| of((keiko.as_str(), bare.as_str()))).collect();
    rounds.print("languages", &ratios);
}

fn tasks(keiko: &Path, client: &Client, count: &str) -> Result<serde_json::Value> {
    let server = format!("http://{}", client.address());
    bench(keiko, &["--server", &server, "--plugin", PLUGIN, "--kind", PLUGIN, "--tasks", count])
}

/// The program that only instantiates, ended with this.
struct Bare {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Bare {
    fn start(component: &Path) -> Result<Bare> {
        let mut program = cargo();
        program.args(["bench", "--quiet", "--workspace", "--bench", "languages"]);
        program.env("KEIKO_BENCH_COMPONENT", component).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = program.spawn().context("start cargo")?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Bare { child, input, output })
    }

    /// Attempts a second on so many threads.
    fn per_second(&mut self, threads: usize) -> Result<f64> {
        writeln!(self.input, "{threads}").context("ask for a rate")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("read a rate")?;
        let answer: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("not a line of JSON: {line}"))?;
        answer["per_second"].as_f64().with_context(|| format!("no rate in {line}"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
