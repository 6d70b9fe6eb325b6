//! Hostile guests and uploads of one tenant, beside the steady small tasks of another.
//!
//! For every attack: the process id stays, the attack ends once with its own code. In all: the neighbour's tasks have
//! no failure and stay quick, and the host's memory comes back.
//!
//! A short run asserts counts only; the neighbour's times and the host's memory are reported. `--long` asserts them
//! too, repeats the attacks, runs several at once and adds uploads that keep the compiler busy.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::Report;
use super::attack::{ATTACKS, Attack, End};
use super::upload::uploads;
use crate::{Client, Host, Options, tree, wait};

/// What the check looks at.
const INVARIANTS: &[&str] = &["process", "end", "once", "upload", "neighbour", "neighbour_p99", "memory"];
/// Tasks of the neighbour before the attacks, to compare with.
const BEFORE: usize = 200;
/// Between two tasks of the neighbour.
const STEADY: Duration = Duration::from_millis(10);
/// Attacks that are named with the neighbour's slowest tasks.
const SLOWEST: usize = 8;
/// The neighbour's p99 may be this many times what it was...
const P99_FACTOR: f64 = 2.0;
/// ...but nobody asks for less than one epoch tick, in milliseconds: that is how long a guest may hold a worker.
const P99_FLOOR_MS: f64 = 10.0;
/// The host's memory comes back to this much above what it was, in bytes...
const MEMORY_ABOVE_MAX: u64 = 32 << 20;
/// ...within this time.
const MEMORY_BACK_MAX: Duration = Duration::from_secs(10);

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Times every attack is run.
    pub rounds: usize,
    /// Tasks of one attack at once.
    pub at_once: usize,
    /// Whether times and memory are asserted, and slow uploads are sent.
    pub long: bool,
}

impl Plan {
    /// Every attack once, or five times with four tasks each.
    pub fn new(long: bool) -> Plan {
        if long { Plan { rounds: 5, at_once: 4, long } } else { Plan { rounds: 1, at_once: 1, long } }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let (mut host, attacker, victim) = two_tenants(folder)?;
    let mut report = Report::new("hostile", INVARIANTS);
    let contract = tree::guest("contract")?;
    victim.install(&contract)?;
    attacker.install(&contract)?;
    let before: Vec<f64> = (0..BEFORE).map(|_| steady_task(&victim)).collect::<Result<_>>()?;
    let (memory_before, _) = host.memory_bytes()?;
    let pid = host.pid();
    let now = Mutex::new(Some("nothing"));
    let during = std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| steady_tasks(&victim, &now));
        let attacked = attack_all(plan, &attacker, &mut host, &folder.join("data"), &now, &mut report);
        set(&now, None);
        let during = neighbour.join().map_err(|_| anyhow!("the neighbour panicked"))?;
        attacked.map(|()| during)
    })?;
    report.require(host.is_running()? && host.pid() == pid, "process", || {
        "the host is another process".to_owned()
    });
    judge_neighbour(plan, &before, &during, &mut report);
    judge_memory(plan, &host, memory_before, &mut report)?;
    Ok(report)
}

/// What runs now, for the neighbour's record; `None` ends the neighbour.
type Now = Mutex<Option<&'static str>>;

fn set(now: &Now, attack: Option<&'static str>) {
    *now.lock().unwrap_or_else(PoisonError::into_inner) = attack;
}

/// A host with the tenants `attacker` and `victim`.
pub fn two_tenants(folder: &Path) -> Result<(Host, Client, Client)> {
    two_tenants_with(folder, "")
}

/// The same with more in its configuration.
pub fn two_tenants_with(folder: &Path, more: &str) -> Result<(Host, Client, Client)> {
    let tokens = [token()?, token()?];
    let config = format!(
        "{more}[tenants.attacker]\ntokens = [{}]\nprofiles = [\"concurrent\"]\n\n[tenants.victim]\ntokens = [{}]\n",
        tokens[0].entry, tokens[1].entry
    );
    let host = Host::start(Options::in_folder(folder)?.with_config(&config)?)?;
    let client = host.client();
    let [attacker, victim] = tokens.map(|token| client.with_token(token.secret));
    Ok((host, attacker, victim))
}

/// A token as `keiko token hash` makes it.
pub(super) struct Token {
    /// What a client sends.
    pub(super) secret: String,
    /// What the configuration holds.
    pub(super) entry: String,
}

pub(super) fn token() -> Result<Token> {
    let output =
        Command::new(tree::program()?).args(["token", "hash"]).output().context("keiko token hash")?;
    let text = |bytes| String::from_utf8(bytes).context("what keiko token hash prints");
    let (entry, said) = (text(output.stdout)?, text(output.stderr)?);
    let secret = said.split_whitespace().find(|word| word.starts_with("keiko_"));
    let secret = secret.with_context(|| format!("keiko token hash made no token: {said}"))?.to_owned();
    Ok(Token { secret, entry: entry.trim().to_owned() })
}

fn attack_all(
    plan: &Plan,
    attacker: &Client,
    host: &mut Host,
    data_dir: &Path,
    now: &Now,
    report: &mut Report,
) -> Result<()> {
    let uploads = uploads(data_dir, plan.long)?;
    for _ in 0..plan.rounds {
        for attack in ATTACKS {
            set(now, Some(attack.name));
            run_attack(attack, attacker, plan.at_once, report).with_context(|| attack.name)?;
            if !host.is_running()? {
                bail!("{} took the host down; see {}", attack.name, host.log().display());
            }
        }
    }
    for upload in &uploads {
        set(now, Some(upload.name));
        let answer = attacker.upload(&upload.bytes)?;
        let refused = answer.status >= 400 && answer.status < 500 && answer.code() == upload.code;
        report.require(refused, "upload", || {
            format!("{}: {answer:.400}, expected {}", upload.name, upload.code)
        });
        if !host.is_running()? {
            bail!("the upload {} took the host down; see {}", upload.name, host.log().display());
        }
    }
    report.tried("attacks", plan.rounds * plan.at_once * ATTACKS.len());
    report.tried("uploads", uploads.len());
    Ok(())
}

/// Runs one attack `at_once` times side by side and counts what differs from its expected end.
pub fn run_attack(attack: &Attack, attacker: &Client, at_once: usize, report: &mut Report) -> Result<()> {
    let installed = attacker.upload(&attack.component()?)?;
    if let End::Refused(code) = attack.end {
        let refused = installed.status >= 400 && installed.code() == code;
        report.require(refused, "end", || format!("{}: {installed:.600}, expected {code}", attack.name));
        return Ok(());
    }
    if !matches!(installed.status, 200 | 201) {
        report.violation("end", format!("{} was not installed: {installed:.600}", attack.name));
        return Ok(());
    }
    let submit = |_| attacker.submit(&attack.plugin(), "run", json!({}), attack.submit());
    let ids: Vec<String> = (0..at_once).map(submit).collect::<Result<_>>()?;
    for id in ids {
        let task = attacker.ended(&id)?;
        let end = (task["state"].as_str().unwrap_or_default(), task["error"]["code"].as_str());
        let expected = match attack.end {
            End::Failed(code) => ("failed", Some(code)),
            End::Completed | End::Refused(_) => ("completed", None),
        };
        report.require(end == expected, "end", || {
            format!("{}: {task:.1000}, expected {expected:?}", attack.name)
        });
        let attempts = task["attempts"].as_array().map_or(0, Vec::len);
        report.require(attempts == 1, "once", || format!("{}: {attempts} attempts: {task}", attack.name));
    }
    Ok(())
}

/// What became of the neighbour while the attacks ran.
#[derive(Default)]
struct During {
    /// Of every task, in milliseconds.
    times: Vec<f64>,
    /// The slowest task beside each attack, in milliseconds.
    slowest: BTreeMap<&'static str, f64>,
    /// How many tasks beside each attack took longer than [`P99_FLOOR_MS`].
    slow: BTreeMap<&'static str, usize>,
    /// Why tasks failed.
    failures: Vec<String>,
}

fn steady_tasks(victim: &Client, now: &Now) -> During {
    let mut during = During::default();
    loop {
        let Some(attack) = *now.lock().unwrap_or_else(PoisonError::into_inner) else { return during };
        match steady_task(victim) {
            Ok(time) => {
                during.times.push(time);
                let slowest = during.slowest.entry(attack).or_default();
                *slowest = time.max(*slowest);
                *during.slow.entry(attack).or_default() += usize::from(time > P99_FLOOR_MS);
            }
            Err(error) => during.failures.push(format!("beside {attack}: {error:#}")),
        }
        wait::pause(STEADY);
    }
}

/// One small task from submit to result, in milliseconds.
fn steady_task(victim: &Client) -> Result<f64> {
    let body = json!({"plugin": "contract", "kind": "spin", "input": {"turns": 1000}});
    let start = Instant::now();
    let task = victim.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
    if task["state"] != "completed" {
        bail!("a task of the neighbour ended as {task}");
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn judge_neighbour(plan: &Plan, before: &[f64], during: &During, report: &mut Report) {
    let (p99_before, p99_during) = (percentile(before, 0.99), percentile(&during.times, 0.99));
    report.tried("neighbour_tasks", during.times.len());
    report.tried("neighbour_p50_ms", rounded(percentile(&during.times, 0.5)));
    report.tried("neighbour_p99_ms_before", rounded(p99_before));
    report.tried("neighbour_p99_ms", rounded(p99_during));
    let mut slowest: Vec<_> = during.slowest.iter().collect();
    slowest.sort_by(|a, b| b.1.total_cmp(a.1));
    let slowest = slowest.into_iter().take(SLOWEST).map(|(attack, time)| json!([attack, rounded(*time)]));
    report.tried("neighbour_slowest_ms_beside", slowest.collect::<Vec<Value>>());
    let mut slow: Vec<_> = during.slow.iter().filter(|(_, tasks)| **tasks > 0).collect();
    slow.sort_by_key(|(_, tasks)| Reverse(**tasks));
    let slow = slow.into_iter().take(SLOWEST).map(|(attack, tasks)| json!([attack, tasks]));
    report.tried("neighbour_slow_tasks_beside", slow.collect::<Vec<Value>>());
    for failure in &during.failures {
        report.violation("neighbour", failure.as_str());
    }
    report.require(!during.times.is_empty(), "neighbour", || "the neighbour had no task at all".to_owned());
    let bound = (P99_FACTOR * p99_before).max(P99_FLOOR_MS);
    report.require(!plan.long || p99_during <= bound, "neighbour_p99", || {
        format!("{p99_during:.1} ms while attacked, {p99_before:.1} ms before")
    });
}

fn judge_memory(plan: &Plan, host: &Host, before: u64, report: &mut Report) -> Result<()> {
    let bound = before + MEMORY_ABOVE_MAX;
    let back = wait::until("memory to come back", MEMORY_BACK_MAX, || {
        Ok(Some(host.memory_bytes()?.0).filter(|now| *now <= bound))
    });
    let (now, peak) = host.memory_bytes()?;
    report.tried("memory_mib_before", before >> 20);
    report.tried("memory_mib_after", now >> 20);
    report.tried("memory_mib_peak", peak >> 20);
    report.require(!plan.long || back.is_ok(), "memory", || {
        format!("{} MiB, before {}", now >> 20, before >> 20)
    });
    Ok(())
}

/// The value below which this share of the values lies; 0 of none.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn rounded(milliseconds: f64) -> f64 {
    (milliseconds * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 100.0);
        assert_eq!(percentile(&values, 0.99), 198.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.99), 0.0);
    }
}
