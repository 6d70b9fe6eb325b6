//! `cargo xtask demo [--exit] [--port N]`: from nothing to a table of real results.
//!
//! Builds host and plugins, starts the host on `data/demo` in the checkout, submits every record of the film list as
//! a task of its own, prints what came out, and goes on serving until Ctrl-C, which is passed on to the host so that
//! it drains. Every run submits all records again, under idempotency keys of its own: what was built, compiled and
//! installed before is used again, so a second run is quick and measures the same work.
//!
//! With `--exit` the status is 0 only when every task ended as [`films::EXPECTED`](crate::films::EXPECTED) says.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use keiko_tests::{Client, Host, Options, source, tree, wait};
use serde_json::{Value, json};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::arguments::Arguments;
use crate::films::{self, Summary};
use crate::groups;
use crate::guests::{self, Toolchain};
use crate::machine::{self, Install};
use crate::measure;
use crate::step::Steps;

/// Where the host listens unless told otherwise.
const PORT: u16 = 7700;
/// Tasks of one request.
const BULK: usize = 500;
/// All tasks have ended by then, on the slowest machine.
const TASKS_MAX: Duration = Duration::from_secs(600);
/// Threads that read results.
const READERS: usize = 4;
/// The plugins of the demo.
const PLUGINS: &[&str] = &["movie-facts", "text-digest", "film-feed", "film-groups"];
/// What `text-digest` is shown.
const SAMPLE: &str = "CHANGELOG.md";

/// Runs the command.
pub fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let exit = arguments.flag("--exit");
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    let port =
        arguments.option("--port")?.map(|text| text.parse().context("`--port` needs a number up to 65535"));
    let port = port.transpose()?.unwrap_or(PORT);
    arguments.finish()?;
    let data_dir = tree::root().join("data/demo");
    // Before minutes of building.
    check_free(&data_dir, port)?;

    let mut steps = Steps::new();
    steps.step("system packages", || machine::ensure_compiler(install))?;
    let toolchain = guests::set_up(&mut steps, asked, install)?;
    let names: Vec<String> = PLUGINS.iter().map(|name| (*name).to_owned()).collect();
    guests::build(&mut steps, toolchain, &names)?;
    let program = measure::build_host(&mut steps)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGCHLD]).context("listen for signals")?;
    let place = Place { program, data_dir, port };
    let mut host = steps.step("start the host", || place.start())?;
    steps.step("install the plugins", || place.install_plugins(&mut host, toolchain))?;
    let client = host.client();
    let (summary, tasks) = steps.step("run every record as a task", || run_records(&client, &mut signals))?;
    let groups = steps.step("group the films in batches", || groups::run(&client, &tasks))?;
    let sample = steps.step("digest a text", || digest_sample(&client))?;
    steps.print();
    summary.print();
    groups.print();
    print_host(&host)?;
    println!("\ntext-digest of {SAMPLE}:\n{sample}");
    let surprises = [summary.surprises(), groups.surprises()].concat();
    for surprise in &surprises {
        println!("not as expected: {surprise}");
    }
    if !exit {
        serve(&mut host, &mut signals)?;
    } else if !host.stop()?.success() {
        bail!("the host did not stop well; its log is {}", host.log().display());
    }
    Ok(if surprises.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says in one sentence who is in the way, if somebody is.
fn check_free(data_dir: &Path, port: u16) -> Result<()> {
    if let Ok(address) = fs::read_to_string(data_dir.join("keiko.address")) {
        let address = address.trim();
        if Client::new(address).get("/livez").is_ok() {
            bail!(
                "a host of an earlier demo still serves at http://{address}: stop it first (Ctrl-C where it runs)"
            );
        }
    }
    if port != 0 && TcpListener::bind(("127.0.0.1", port)).is_err() {
        bail!("port {port} is in use by another program: choose one with `--port N`, or `--port 0` for any");
    }
    Ok(())
}

/// Where the demo's host runs, and on what.
struct Place {
    program: PathBuf,
    data_dir: PathBuf,
    port: u16,
}

impl Place {
    fn start(&self) -> Result<Host> {
        let Place { program, data_dir, port } = self;
        fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
        let log = data_dir.join("host.log");
        // Only the log of this run is of interest when something fails.
        fs::write(&log, "").with_context(|| format!("write {}", log.display()))?;
        let options = Options {
            program: program.clone(),
            data_dir: data_dir.clone(),
            engine: Arc::default(),
            listen: format!("127.0.0.1:{port}"),
            arguments: Vec::new(),
            log,
            kill_at: None,
            apart: true,
        };
        let host = Host::start(options.with_config(groups::CONFIG)?)?;
        let (address, log) = (host.client().address(), source::from_root(host.log()));
        eprintln!("process {} serves at http://{address}; its log is {log}", host.pid());
        Ok(host)
    }

    /// Installs the plugins; when one changed under an old version's name, the demo's data starts anew first.
    fn install_plugins(&self, host: &mut Host, toolchain: Toolchain) -> Result<()> {
        if install_plugins(&host.client(), toolchain)? {
            return Ok(());
        }
        eprintln!("a version stands for the same bytes for ever: the demo starts on new data instead");
        host.stop()?;
        fs::remove_dir_all(&self.data_dir).with_context(|| format!("remove {}", self.data_dir.display()))?;
        *host = self.start()?;
        if !install_plugins(&host.client(), toolchain)? {
            bail!("two plugins of the demo have the same name and version");
        }
        Ok(())
    }
}

/// Installs the plugins; `false` when a version's name stands for other bytes already.
fn install_plugins(client: &Client, toolchain: Toolchain) -> Result<bool> {
    for name in PLUGINS {
        let path = toolchain.guests_dir().join(format!("{}.wasm", name.replace('-', "_")));
        let component = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let answer = client.upload(&component)?;
        if answer.code() == "conflict" {
            eprintln!("{name} changed since the last demo and has the same version");
            return Ok(false);
        }
        let plugin = answer.expect(&[200, 201])?;
        let what = if answer.status == 200 { "is there already" } else { "installed" };
        eprintln!(
            "{name} {} {what}, {} KiB",
            plugin["version"].as_str().unwrap_or_default(),
            component.len() >> 10
        );
    }
    Ok(true)
}

fn run_records(client: &Client, signals: &mut Signals) -> Result<(Summary, Vec<Value>)> {
    let records: Vec<Value> = serde_json::from_slice(&tree::fixture("data/movies.json")?)?;
    let live_before = client.live()?;
    if live_before > 0 {
        eprintln!("{live_before} tasks of an interrupted run are still to do; they are done first");
        wait_all(client, live_before, signals)?;
    }
    let start = Instant::now();
    let ids = submit_all(client, &records)?;
    wait_all(client, ids.len() as u64, signals)?;
    let elapsed = start.elapsed();
    let tasks = read_all(client, &ids)?;
    Ok((Summary::of(&tasks, elapsed)?, tasks))
}

fn submit_all(client: &Client, records: &[Value]) -> Result<Vec<String>> {
    let run = keiko_tests::seed();
    let mut ids = Vec::new();
    for (part, records) in records.chunks(BULK).enumerate() {
        let task = |record| json!({"plugin": "movie-facts", "kind": "normalise", "input": record});
        let body = json!({ "tasks": records.iter().map(task).collect::<Vec<_>>() });
        let key = format!("demo-{run:016x}-{part}");
        let answer = client.post_json("/v1/tasks", &body, Some(&key))?.expect(&[201])?;
        let accepted = answer["tasks"].as_array().context("the answer to a submit names no tasks")?;
        ids.extend(accepted.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    Ok(ids)
}

fn wait_all(client: &Client, tasks: u64, signals: &mut Signals) -> Result<()> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tasks, {elapsed}")?;
    let bar = ProgressBar::new(tasks).with_style(style);
    let done = wait::until("every task to end", TASKS_MAX, || {
        if signals.pending().any(|signal| signal == SIGINT || signal == SIGTERM) {
            bail!("interrupted; what was submitted is kept, and done when the demo runs again");
        }
        let live = client.live()?;
        bar.set_position(tasks.saturating_sub(live));
        Ok((live == 0).then_some(()))
    });
    bar.finish();
    done
}

fn read_all(client: &Client, ids: &[String]) -> Result<Vec<Value>> {
    let parts: Vec<Result<Vec<Value>>> = std::thread::scope(|scope| {
        let read = |part: &[String]| part.iter().map(|id| client.task(id)).collect();
        let readers: Vec<_> = ids
            .chunks(ids.len().div_ceil(READERS).max(1))
            .map(|part| scope.spawn(move || read(part)))
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or_else(|_| Err(anyhow!("a reader panicked"))))
            .collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

fn digest_sample(client: &Client) -> Result<String> {
    let path = tree::root().join(SAMPLE);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let task = client.run("text-digest", "digest", json!({"text": text, "sentences": 2}), Value::Null)?;
    films::sample(&task)
}

fn print_host(host: &Host) -> Result<()> {
    let (now, peak) = host.memory_bytes()?;
    println!("host: {} MiB resident, {} MiB at most", now >> 20, peak >> 20);
    Ok(())
}

/// Passes signals on until the host has ended.
fn serve(host: &mut Host, signals: &mut Signals) -> Result<()> {
    println!("\nserving at http://{} until Ctrl-C", host.client().address());
    loop {
        if let Some(status) = host.ended()? {
            if !status.success() {
                bail!("the host ended with {status}; its log is {}", host.log().display());
            }
            println!("the host has drained and ended");
            return Ok(());
        }
        for signal in signals.wait() {
            match signal {
                SIGINT => host.interrupt()?,
                SIGTERM => host.ask_to_stop()?,
                // The host may have ended: that is looked at above.
                _ => {}
            }
        }
    }
}
