//! Restarts of a host that has many plugins.
//!
//! A host gets as many distinct components as the plan says, some of them of Python and TypeScript, whose machine code is a hundred times as
//! large as that of Rust, each under a name of its own, and is then started again and again:
//! after it stopped in order, and after it was killed. Each start is timed from the start of the process until the host is ready.
//!
//! Promises: every plugin is there and loaded when the host is ready, what was compiled is not compiled again, a task of each
//! plugin runs, and the host is ready within two seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::attack::with_section;
use super::languages::install;
use super::{Report, metric};
use crate::{Client, Host, Options, tree};

/// What is looked at.
pub const INVARIANTS: &[&str] = &["plugin missing", "compiled again", "task failed", "not ready in time"];
/// A host is ready by then, however many plugins it has.
const READY: Duration = Duration::from_secs(2);
/// Installs beside each other; a host takes no more uploads at once.
const INSTALLERS: usize = 3;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Plugins, each of a component of its own.
    pub plugins: usize,
    /// How many of them are in Python or TypeScript.
    pub scripted: usize,
    /// Starts after each way to end.
    pub starts: usize,
    /// Whether the time is judged: that of a build for development is no promise.
    pub is_timed: bool,
}

impl Plan {
    /// For every run of the tests: of what takes long to compile, nothing.
    pub fn short() -> Plan {
        Plan { plugins: 12, scripted: 0, starts: 1, is_timed: false }
    }

    /// 200 plugins, ten of them in Python or TypeScript.
    pub fn long() -> Plan {
        Plan { plugins: 200, scripted: 10, starts: 5, is_timed: true }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let options = Options::in_folder(folder)?;
    let artifacts = options.data_dir.join("artifacts");
    let mut host = Host::start(options)?;
    let client = host.client();
    let mut report = Report::new("restart", INVARIANTS);
    install_all(&client, plan)?;
    let made = files(&artifacts)?;
    let mut times = Vec::new();
    for start in 0..2 * plan.starts {
        match start % 2 {
            0 => drop(host.stop()?),
            _ => host.kill()?,
        }
        let began = Instant::now();
        host.start_again()?;
        times.push(began.elapsed());
        let loaded = metric(&client, "keiko_components_loaded")?;
        report.require(loaded == plan.plugins as u64, "plugin missing", || {
            format!("{loaded} of {} components are loaded", plan.plugins)
        });
        let refused = metric(&client, "keiko_artifacts_refused_total")?;
        report.require(refused == 0 && files(&artifacts)? == made, "compiled again", || {
            format!("{refused} artifacts were refused, or made anew")
        });
    }
    for number in 0..plan.plugins {
        let (kind, input) = match Guest::of(plan, number) {
            Guest::Rust => ("child", json!({"n": 1, "which": 0})),
            Guest::Python | Guest::TypeScript => ("digest", json!({"text": "A short text."})),
        };
        let body = json!({"plugin": name(number), "kind": kind, "input": input});
        let task = client.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
        report.require(task["state"] == "completed", "task failed", || task.to_string());
    }
    times.sort_unstable();
    let slowest = times.last().copied().unwrap_or_default();
    report.require(slowest <= READY || !plan.is_timed, "not ready in time", || format!("{slowest:?}"));
    report.tried("plugins", plan.plugins);
    report.tried("plugins_scripted", plan.scripted);
    report.tried("starts", times.len());
    report.tried("ready_p50_ms", times[times.len() / 2].as_millis() as u64);
    report.tried("ready_max_ms", slowest.as_millis() as u64);
    Ok(report)
}

fn name(number: usize) -> String {
    format!("restarted-{number}")
}

/// What a plugin is made of.
#[derive(Clone, Copy)]
enum Guest {
    Rust,
    Python,
    TypeScript,
}

impl Guest {
    /// Of the plugin of this number: those that take long to compile come first.
    fn of(plan: &Plan, number: usize) -> Guest {
        match number {
            number if number >= plan.scripted => Guest::Rust,
            number if number % 2 == 0 => Guest::Python,
            _ => Guest::TypeScript,
        }
    }

    fn component(self) -> Result<Vec<u8>> {
        let scripted = |name: &str| {
            let path = tree::languages_dir().join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        match self {
            Guest::Rust => tree::guest("family"),
            Guest::Python => scripted("text-digest-python.wasm"),
            Guest::TypeScript => scripted("text-digest-typescript.wasm"),
        }
    }
}

/// Installs components that differ in a section that nobody reads: each has a digest and an artifact of its own. What takes long to compile
/// has all processors for each, one after the other, so that no upload waits for others beyond its time.
fn install_all(client: &Client, plan: &Plan) -> Result<()> {
    (0..plan.scripted).try_for_each(|number| install_one(client, plan, number))?;
    let install_some = |installer: usize| -> Result<()> {
        let mut numbers = (plan.scripted + installer..plan.plugins).step_by(INSTALLERS);
        numbers.try_for_each(|number| install_one(client, plan, number))
    };
    std::thread::scope(|scope| {
        let install_some = &install_some;
        let threads: Vec<_> =
            (0..INSTALLERS).map(|installer| scope.spawn(move || install_some(installer))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(installed) => installed,
            Err(_) => bail!("an installing thread panicked"),
        })
    })
}

fn install_one(client: &Client, plan: &Plan, number: usize) -> Result<()> {
    let guest = Guest::of(plan, number);
    let kind = if matches!(guest, Guest::Rust) { "child" } else { "digest" };
    let name = name(number);
    let manifest = format!("[plugin]\nname = \"{name}\"\nversion = \"1\"\n[[kind]]\nname = \"{kind}\"\n");
    let component = with_section(guest.component()?, "restart", number.to_string().as_bytes());
    install(client, &component, &manifest).map(drop)
}

/// The artifacts of a host, and when each was written.
fn files(folder: &Path) -> Result<Vec<(std::ffi::OsString, std::time::SystemTime)>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let file = |entry: std::io::Result<std::fs::DirEntry>| -> Result<_> {
        let entry = entry?;
        Ok((entry.file_name(), entry.metadata()?.modified()?))
    };
    let mut files = entries.map(file).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
