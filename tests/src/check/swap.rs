//! Swaps of a plugin's version while its tasks run.
//!
//! Two loads of the same rate, one after the other: the first without swaps, to compare with, the second while the current
//! version changes all the time, by activations, rollbacks and installs in turn. Every task is waited for by its submitter,
//! and looked at as it ended.
//!
//! Promises: no task fails, every attempt ran on exactly one digest and it is one of the five, what was swapped out is freed,
//! the memory of the host stays where it was, and the slowest hundredth of the tasks takes at most twice as long as without
//! swaps. As a benchmark, both loads take turns, and only figures are said.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::attack::with_section;
use super::{Report, metric};
use crate::{Client, Host, Options, tree, wait};

/// What is looked at.
pub const INVARIANTS: &[&str] =
    &["task failed", "attempt on no version", "attempt repeated", "p99 over 2x", "memory grew", "not freed"];
/// Versions that are swapped, each with a digest of its own.
const VERSIONS: u32 = 5;
/// Submitters; each waits for its task before the next.
const SUBMITTERS: u64 = 16;
/// A p99 below this is as good as any: on a machine with two processors a scheduler's slice is more.
const P99_FLOOR: Duration = Duration::from_millis(20);
/// How much the host may grow between the first tenth of the swaps and the last.
const GROWTH_BYTES_MAX: u64 = 16 << 20;
/// How long the host may take to free what drains.
const FREED_AT_MOST: Duration = Duration::from_secs(10);

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tasks a second.
    pub rate: u64,
    /// Swaps.
    pub swaps: u64,
    /// How long the load runs without swaps, and at least with them.
    pub time: Duration,
    /// Whether the p99 is judged: that of a few hundred tasks is its third worst, which is whatever else the machine does.
    pub is_timed: bool,
}

impl Plan {
    /// For every run of the tests.
    pub fn short() -> Plan {
        Plan { rate: 100, swaps: 50, time: Duration::from_secs(3), is_timed: false }
    }

    /// A round of the benchmark.
    pub fn round() -> Plan {
        Plan { rate: 500, swaps: 250, time: Duration::from_secs(10), is_timed: false }
    }

    /// 1,000 swaps under 500 tasks a second.
    pub fn long() -> Plan {
        Plan { rate: 500, swaps: 1_000, time: Duration::from_secs(30), is_timed: true }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let host = Host::start(Options::in_folder(folder)?)?;
    let client = host.client();
    let digests = install_all(&client)?;
    let mut report = Report::new("swap", INVARIANTS);
    let quiet = load(plan, &client, &digests, None, &mut report)?;
    let (swapping, swapped) = load_swapping(plan, &host, &digests, &mut report)?;
    let (before, after) = (quiet.p99(), swapped.p99());
    let idle = swapped.versions.iter().filter(|count| count.load(Ordering::Relaxed) == 0).count();
    report.require(idle == 0, "attempt on no version", || format!("{idle} of the versions ran nothing"));
    let fits = after <= (before * 2).max(P99_FLOOR);
    report.require(fits || !plan.is_timed, "p99 over 2x", || {
        format!("{before:?} without swaps, {after:?} with them")
    });
    let grown = swapping.last_bytes.saturating_sub(swapping.first_bytes);
    report.require(grown <= GROWTH_BYTES_MAX, "memory grew", || format!("by {grown} bytes"));
    let freed = wait::until("what drained to be freed", FREED_AT_MOST, || {
        Ok((metric(&client, "keiko_components_held")? == 1).then_some(()))
    });
    report.require(freed.is_ok(), "not freed", || "more than one component is held at the end".to_owned());
    for (name, run) in [("quiet", &quiet), ("swapping", &swapped)] {
        report.tried(&format!("{name}_tasks"), run.times.len());
        report.tried(&format!("{name}_tasks_per_second"), run.times.len() as u64 / run.took.as_secs().max(1));
        report.tried(&format!("{name}_p99_us"), run.p99().as_micros() as u64);
    }
    report.tried("digests", digests.len());
    report.tried("swaps", swapping.swaps);
    report.tried("swap_p50_us", swapping.p50.as_micros() as u64);
    report.tried("memory_grown_bytes", grown);
    Ok(report)
}

/// Rounds of the load without swaps and with them, in turns, on one host: a line of figures for each side of each round, and one of
/// both. Fails where a task does.
pub fn bench(plan: &Plan, rounds: usize, options: Options) -> Result<Vec<Value>> {
    let host = Host::start(options)?;
    let client = host.client();
    let digests = install_all(&client)?;
    let mut report = Report::new("swap", INVARIANTS);
    let (mut lines, mut quiet, mut swapped) = (Vec::new(), Vec::new(), Vec::new());
    let (mut swap_times, mut memory) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whichever comes second meets a host that has done more: they change places.
        for side in [round % 2, (round + 1) % 2] {
            let (run, side, swaps) = if side == 0 {
                (load(plan, &client, &digests, None, &mut report)?, "quiet", 0)
            } else {
                let (swapping, run) = load_swapping(plan, &host, &digests, &mut report)?;
                swap_times.push(swapping.p50);
                memory.push(swapping.last_bytes);
                (run, "swapping", swapping.swaps)
            };
            let p99s = if side == "quiet" { &mut quiet } else { &mut swapped };
            p99s.push(run.p99());
            let seconds = run.took.as_secs_f64();
            lines.push(json!({
                "bench": "swap", "round": round, "side": side, "tasks": run.times.len(),
                "tasks_per_s": (run.times.len() as f64 / seconds).round(), "swaps": swaps,
                "swaps_per_s": swaps as f64 / seconds, "p50_us": run.at(50).as_micros() as u64,
                "p99_us": run.p99().as_micros() as u64,
            }));
        }
    }
    if report.violations() > 0 {
        bail!("a task did not go as it should: {}", report.json());
    }
    let (quiet, swapped) = (median(quiet), median(swapped));
    // Of the first round, what a host needs anyway is a part.
    let grown = memory.last().zip(memory.first()).map_or(0, |(last, first)| *last as i64 - *first as i64);
    lines.push(json!({
        "bench": "swap", "side": "swapping/quiet", "rounds": rounds, "quiet_p99_us": quiet.as_micros() as u64,
        "swapping_p99_us": swapped.as_micros() as u64,
        "p99_ratio": swapped.as_secs_f64() / quiet.as_secs_f64().max(f64::EPSILON),
        "swap_p50_us": median(swap_times).as_micros() as u64, "memory_grown_bytes": grown,
        "swaps_between": plan.swaps * (rounds.saturating_sub(1)) as u64,
    }));
    Ok(lines)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The load while the current version changes all the time.
fn load_swapping(
    plan: &Plan,
    host: &Host,
    digests: &[String],
    report: &mut Report,
) -> Result<(Swapping, Run)> {
    let (done, client) = (AtomicBool::new(false), host.client());
    let (swapping, tasks) = std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let swapped = swap_all(plan, host, &client);
            done.store(true, Ordering::Release);
            swapped
        });
        let tasks = load(plan, &client, digests, Some(&done), report);
        (swaps.join(), tasks)
    });
    let Ok(swapping) = swapping else { bail!("the swapping thread panicked") };
    Ok((swapping?, tasks?))
}

/// Installs every version; the last one is current then.
fn install_all(client: &Client) -> Result<Vec<String>> {
    let digests: Vec<String> =
        (1..=VERSIONS).map(|version| install(client, version)).collect::<Result<_>>()?;
    let distinct: BTreeSet<&String> = digests.iter().collect();
    if distinct.len() != digests.len() {
        bail!("two versions have one digest: {digests:?}");
    }
    Ok(digests)
}

/// Installs a version of the plugin with a digest of its own, and gives that.
fn install(client: &Client, version: u32) -> Result<String> {
    let manifest =
        format!("[plugin]\nname = \"swapped\"\nversion = \"{version}\"\n[[kind]]\nname = \"child\"\n");
    let guest = with_section(tree::guest("family")?, "swap", version.to_string().as_bytes());
    let path = format!("/v1/plugins?manifest={}", super::attack::base64_url(manifest.as_bytes()));
    let answer = client.post(&path, &[("content-type", "application/wasm")], &guest)?.expect(&[200, 201])?;
    Ok(answer["digest"].as_str().context("a plugin has a digest")?.to_owned())
}

/// What a load was.
struct Run {
    /// How long each task took from when it was due to be submitted until its submitter had its end.
    times: Vec<Duration>,
    /// Attempts of each version.
    versions: Vec<AtomicU64>,
    took: Duration,
}

impl Run {
    fn p99(&self) -> Duration {
        self.at(99)
    }

    /// What so many of a hundred tasks were quicker than.
    fn at(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() * percent / 100).copied().unwrap_or_default()
    }
}

/// Submits at the plan's rate for the plan's time, and on until `done`.
fn load(
    plan: &Plan,
    client: &Client,
    digests: &[String],
    done: Option<&AtomicBool>,
    report: &mut Report,
) -> Result<Run> {
    let start = Instant::now();
    let versions: Vec<AtomicU64> = digests.iter().map(|_| AtomicU64::new(0)).collect();
    let submit = |number: u64| -> Result<(Vec<Duration>, Vec<Problem>)> {
        let (mut times, mut wrong) = (Vec::new(), Vec::new());
        for turn in 0.. {
            let due = Duration::from_micros((turn * SUBMITTERS + number) * 1_000_000 / plan.rate);
            if due > plan.time && done.is_none_or(|done| done.load(Ordering::Acquire)) {
                break;
            }
            wait::pause(due.saturating_sub(start.elapsed()));
            let body = json!({"plugin": "swapped", "kind": "child", "input": {"n": 1, "which": 0}});
            let task = client.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
            times.push(start.elapsed().saturating_sub(due));
            if let Some(problem) = look(&task, digests, &versions) {
                wrong.push(problem);
            }
        }
        Ok((times, wrong))
    };
    let mut times = Vec::new();
    let parts = std::thread::scope(|scope| {
        let submit = &submit;
        let threads: Vec<_> = (0..SUBMITTERS).map(|number| scope.spawn(move || submit(number))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for part in parts {
        let Ok(part) = part else { bail!("a submitting thread panicked") };
        let (mine, wrong) = part?;
        times.extend(mine);
        wrong.into_iter().for_each(|(invariant, note)| report.violation(invariant, note));
    }
    Ok(Run { times, versions, took: start.elapsed() })
}

/// An invariant that does not hold, and where it was seen.
type Problem = (&'static str, String);

/// What is wrong with a task as it ended.
fn look(task: &Value, digests: &[String], versions: &[AtomicU64]) -> Option<Problem> {
    if task["state"] != "completed" || task["result"]["answer"] != 10 {
        return Some(("task failed", task.to_string()));
    }
    let attempts = task["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [attempt] = attempts else { return Some(("attempt repeated", task.to_string())) };
    match digests.iter().position(|digest| attempt["digest"] == **digest) {
        Some(version) => {
            versions[version].fetch_add(1, Ordering::Relaxed);
            None
        }
        None => Some(("attempt on no version", task.to_string())),
    }
}

/// What the swaps were.
struct Swapping {
    swaps: u64,
    p50: Duration,
    /// Memory of the host after a tenth of the swaps, and after the last.
    first_bytes: u64,
    last_bytes: u64,
}

/// Swaps evenly over the plan's time, by each of the ways in turn: two versions forward and one back, so that each becomes current in
/// every way.
fn swap_all(plan: &Plan, host: &Host, client: &Client) -> Result<Swapping> {
    let start = Instant::now();
    let (mut times, mut first_bytes, mut current) = (Vec::new(), 0, VERSIONS);
    let after = |version: u32| version % VERSIONS + 1;
    for swap in 0..plan.swaps {
        let due = plan.time.mul_f64(swap as f64 / plan.swaps as f64);
        wait::pause(due.saturating_sub(start.elapsed()));
        let began = Instant::now();
        match swap % 3 {
            0 => {
                current = after(current);
                activate(client, &current.to_string())?;
            }
            1 => drop(install(client, after(current))?),
            _ => drop(client.post("/v1/plugins/swapped/rollback", &[], &[])?.expect(&[200])?),
        }
        times.push(began.elapsed());
        if swap == plan.swaps / 10 {
            first_bytes = host.memory_bytes()?.0;
        }
    }
    times.sort_unstable();
    let p50 = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Swapping { swaps: plan.swaps, p50, first_bytes, last_bytes: host.memory_bytes()?.0 })
}

fn activate(client: &Client, version: &str) -> Result<()> {
    let body = json!({ "version": version });
    client.post_json("/v1/plugins/swapped/activate", &body, None)?.expect(&[200]).map(drop)
}
