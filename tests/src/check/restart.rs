//! Restarts of a host that has many plugins.
//!
//! A host gets as many distinct components as the plan says, each under a name of its own, and is then started again and again:
//! after it stopped in order, and after it was killed. Each start is timed from the start of the process until the host is ready.
//!
//! Promises: every plugin is there and loaded when the host is ready, what was compiled is not compiled again, a task of each
//! plugin runs, and the host is ready within two seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::attack::{base64_url, with_section};
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
    /// Starts after each way to end.
    pub starts: usize,
    /// Whether the time is judged: that of a build for development is no promise.
    pub is_timed: bool,
}

impl Plan {
    /// For every run of the tests.
    pub fn short() -> Plan {
        Plan { plugins: 12, starts: 1, is_timed: false }
    }

    /// 200 plugins.
    pub fn long() -> Plan {
        Plan { plugins: 200, starts: 5, is_timed: true }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let options = Options::in_folder(folder)?;
    let artifacts = options.data_dir.join("artifacts");
    let mut host = Host::start(options)?;
    let client = host.client();
    let mut report = Report::new("restart", INVARIANTS);
    install_all(&client, plan.plugins)?;
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
        let body = json!({"plugin": name(number), "kind": "child", "input": {"n": 1, "which": 0}});
        let task = client.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
        report.require(task["state"] == "completed", "task failed", || task.to_string());
    }
    times.sort_unstable();
    let slowest = times.last().copied().unwrap_or_default();
    report.require(slowest <= READY || !plan.is_timed, "not ready in time", || format!("{slowest:?}"));
    report.tried("plugins", plan.plugins);
    report.tried("starts", times.len());
    report.tried("ready_p50_ms", times[times.len() / 2].as_millis() as u64);
    report.tried("ready_max_ms", slowest.as_millis() as u64);
    Ok(report)
}

fn name(number: usize) -> String {
    format!("restarted-{number}")
}

/// Installs components that differ in a section that nobody reads: each has a digest and an artifact of its own.
fn install_all(client: &Client, plugins: usize) -> Result<()> {
    let guest = tree::guest("family")?;
    let install = |installer: usize| -> Result<()> {
        for number in (installer..plugins).step_by(INSTALLERS) {
            let manifest = format!(
                "[plugin]\nname = \"{}\"\nversion = \"1\"\n[[kind]]\nname = \"child\"\n",
                name(number)
            );
            let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
            let component = with_section(guest.clone(), "restart", number.to_string().as_bytes());
            client.post(&path, &[("content-type", "application/wasm")], &component)?.expect(&[201])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let install = &install;
        let threads: Vec<_> =
            (0..INSTALLERS).map(|installer| scope.spawn(move || install(installer))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(installed) => installed,
            Err(_) => bail!("an installing thread panicked"),
        })
    })
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
