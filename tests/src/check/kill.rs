//! `kill -9` of the host at random moments, while tasks are submitted and run.
//!
//! Tasks of the fixture plugin `family`, kind `parent`, each ask for two children. Some fail for good, some fail on
//! their first attempt. Submits carry idempotency keys and are sent again with the same key when their answer was
//! lost with the host. When everything is quiet the whole history is read page by page and compared with what was
//! acknowledged: see [`super::history`].
//!
//! Promises: I-1 acknowledged tasks exist, I-2 every task ended, I-3 one result each, I-5 children exactly once,
//! I-6 no duplicate by key, I-7 attempts inside their limit, I-12 nothing is left running; counts equal lists, and
//! nothing is quarantined.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::Report;
use super::history::{self, History};
use crate::{Answer, Client, Host, Options, Random, tree, wait};

/// Threads that submit.
const SUBMITTERS: u64 = 2;
/// A killed host is back by then.
const BACK_MAX: Duration = Duration::from_secs(120);
/// Longest random pause before a kill, in milliseconds.
const PAUSE_MS_MAX: u64 = 400;
/// One kill in this many hits a host that is still starting.
const EARLY_ONE_IN: u64 = 4;

/// How much to try.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Parents to submit; each that completes has two children.
    pub parents: u64,
    /// Times the host is killed.
    pub kills: u64,
    /// Parents of one request; every tenth request carries just one.
    pub batch: u64,
    /// Submitters wait while more tasks than this are live, so that the tenant's queue has room for children.
    pub live_max: u64,
    /// Everything must have ended so long after the last submit.
    pub quiet_max: Duration,
    /// Of the random choices.
    pub seed: u64,
}

impl Plan {
    /// For every run of the tests: 4 kills over 2,000 parents.
    pub fn short(seed: u64) -> Plan {
        Plan { parents: 2_000, kills: 4, batch: 50, live_max: 400, quiet_max: Duration::from_secs(120), seed }
    }

    /// 50 kills over 200,000 parents.
    pub fn long(seed: u64) -> Plan {
        Plan {
            parents: 200_000,
            kills: 50,
            batch: 500,
            live_max: 20_000,
            quiet_max: Duration::from_secs(1_800),
            ..Plan::short(seed)
        }
    }
}

/// What the n-th parent is asked to do after it submitted its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Complete.
    Complete,
    /// Fail for good.
    Permanent,
    /// Fail on the first attempt, complete on the next.
    Once,
}

impl Ask {
    /// One parent in twenty fails for good, another one fails once.
    pub(super) fn of(n: u64) -> Ask {
        match n % 20 {
            7 => Ask::Permanent,
            13 => Ask::Once,
            _ => Ask::Complete,
        }
    }

    fn input(self, n: u64) -> Value {
        match self {
            Ask::Complete => json!({ "n": n }),
            Ask::Permanent => json!({ "n": n, "fail": "permanent" }),
            Ask::Once => json!({ "n": n, "fail": "once" }),
        }
    }
}

/// What the threads of a run share.
struct Run<'a> {
    plan: &'a Plan,
    client: Client,
    /// Taken by the killer for every kill, by nobody else.
    host: Mutex<Host>,
    /// The next request to send; written by submitters.
    next: AtomicU64,
    /// Parents whose submit was answered; written by submitters, read by the killer.
    acknowledged: AtomicU64,
    /// Submits sent again because no answer came.
    resent: AtomicU64,
    /// Of those, how many the host had accepted before.
    found_again: AtomicU64,
    /// Set when a submitter or the killer gives up, so that the others do too.
    failed: AtomicBool,
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    let host = Host::start(Options::in_folder(folder)?)?;
    let client = host.client();
    client.install(&tree::guest("family")?)?;
    let run = Run {
        plan,
        client: client.clone(),
        host: Mutex::new(host),
        next: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        resent: AtomicU64::new(0),
        found_again: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let (acknowledged, early_kills) = run.drive()?;
    let mut report = Report::new("kill", history::INVARIANTS);
    wait_quiet(&client, plan.quiet_max, &mut report)?;
    report.tried("seed", plan.seed);
    report.tried("kills", plan.kills);
    report.tried("kills_while_starting", early_kills);
    report.tried("parents", plan.parents);
    report.tried("submits_resent", run.resent.load(Ordering::Relaxed));
    report.tried("submits_found_again", run.found_again.load(Ordering::Relaxed));
    report.tried("seconds_until_quiet", start.elapsed().as_secs());
    let history = History::read(&client)?;
    history.check(&client, &acknowledged, &mut report)?;
    check_key_conflict(&client, &mut report)?;
    report.tried("seconds", start.elapsed().as_secs());
    Ok(report)
}

impl Run<'_> {
    /// Submits and kills; the answer is the acknowledged ids with their `n`, and how many kills hit a starting host.
    fn drive(&self) -> Result<(Vec<(String, u64)>, u64)> {
        let run_or_fail = |outcome: Result<_>| {
            if outcome.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            outcome
        };
        std::thread::scope(|scope| {
            let submitters: Vec<_> =
                (0..SUBMITTERS).map(|_| scope.spawn(|| run_or_fail(self.submit_all()))).collect();
            let killed = self.kill_all();
            if killed.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            let mut acknowledged = Vec::new();
            for submitter in submitters {
                let ids = submitter.join().map_err(|_| anyhow!("a submitter panicked"))?;
                acknowledged.extend(ids?);
            }
            Ok((acknowledged, killed?))
        })
    }

    fn submit_all(&self) -> Result<Vec<(String, u64)>> {
        let mut acknowledged = Vec::new();
        loop {
            let request = self.next.fetch_add(1, Ordering::Relaxed);
            let first = request * self.plan.batch;
            if first >= self.plan.parents {
                return Ok(acknowledged);
            }
            let last = (first + self.plan.batch).min(self.plan.parents);
            // Requests of one task go another way through the API.
            let numbers: Vec<u64> = (first..last).collect();
            let parts = if request % 10 == 9 { numbers.chunks(1) } else { numbers.chunks(numbers.len()) };
            for part in parts {
                self.wait_for_room()?;
                for (id, &n) in self.submit(part)?.into_iter().zip(part) {
                    acknowledged.push((id, n));
                }
                self.acknowledged.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Sends one request until it is answered.
    fn submit(&self, numbers: &[u64]) -> Result<Vec<String>> {
        let key = format!("kill-{}-{}", self.plan.seed, numbers[0]);
        let task = |&n: &u64| json!({"plugin": "family", "kind": "parent", "input": Ask::of(n).input(n)});
        let body = match numbers {
            [n] => task(n),
            _ => json!({ "tasks": numbers.iter().map(task).collect::<Vec<_>>() }),
        };
        let mut sent_before = false;
        wait::until("an answer to a submit", BACK_MAX, || {
            self.check_not_failed()?;
            match self.client.post_json("/v1/tasks", &body, Some(&key)) {
                Ok(answer) if matches!(answer.status, 200 | 201) => {
                    if answer.status == 200 {
                        self.found_again.fetch_add(1, Ordering::Relaxed);
                    }
                    ids(&answer, numbers.len()).map(Some)
                }
                // Room may come, and a host that is just up or just down says so.
                Ok(answer) if matches!(answer.status, 429 | 503) => Ok(None),
                Ok(answer) => bail!("a submit was refused: {answer:.600}"),
                Err(_) => {
                    if !std::mem::replace(&mut sent_before, true) {
                        self.resent.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(None)
                }
            }
        })
    }

    fn wait_for_room(&self) -> Result<()> {
        wait::until("room in the queue", self.plan.quiet_max, || {
            self.check_not_failed()?;
            Ok(self.client.live().ok().filter(|&live| live <= self.plan.live_max).map(|_| ()))
        })
    }

    fn check_not_failed(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            bail!("another part of the check failed");
        }
        Ok(())
    }

    /// Kills spread over the whole time of submitting, each after a random pause; some while the host starts.
    fn kill_all(&self) -> Result<u64> {
        let mut random = Random::new(self.plan.seed);
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let mut early = 0;
        for kill in 1..=self.plan.kills {
            let due = self.plan.parents * kill / (self.plan.kills + 1);
            wait::until("enough submits for the next kill", self.plan.quiet_max, || {
                self.check_not_failed()?;
                Ok((self.acknowledged.load(Ordering::Relaxed) >= due).then_some(()))
            })?;
            wait::pause(Duration::from_millis(random.below(PAUSE_MS_MAX)));
            let starting = kill > 1 && random.below(EARLY_ONE_IN) == 0;
            if starting {
                // The kill before this one left a host that was ready; this one hits it before it is again.
                host.kill()?;
                host.spawn_again()?;
                wait::pause(Duration::from_millis(random.below(PAUSE_MS_MAX / 4)));
                early += 1;
            }
            if !host.is_running()? {
                bail!("the host ended by itself before kill {kill}; see {}", host.log().display());
            }
            host.kill()?;
            host.start_again().with_context(|| format!("after kill {kill}"))?;
        }
        Ok(early)
    }
}

fn ids(answer: &Answer, expected: usize) -> Result<Vec<String>> {
    let body = answer.json()?;
    let ids: Vec<String> = match &body["tasks"] {
        Value::Array(ids) => ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect(),
        _ => body["id"].as_str().map(str::to_owned).into_iter().collect(),
    };
    if ids.len() != expected {
        bail!("{} ids for {expected} tasks: {answer:.600}", ids.len());
    }
    Ok(ids)
}

/// I-2: everything ends. The time is counted from the last submit.
fn wait_quiet(client: &Client, at_most: Duration, report: &mut Report) -> Result<()> {
    let quiet = wait::until("every task to end", at_most, || Ok((client.live()? == 0).then_some(())));
    if let Err(error) = quiet {
        report.violation("I-2", format!("{error:#}: {} are live", client.live()?));
    }
    Ok(())
}

/// I-6: a key that stands for another body is a conflict.
fn check_key_conflict(client: &Client, report: &mut Report) -> Result<()> {
    let submit = |n: u64| {
        let body = json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 0}});
        client.post_json("/v1/tasks", &body, Some("kill-conflict"))
    };
    let (first, again, other) = (submit(1)?, submit(1)?, submit(2)?);
    report.require(first.status == 201 && again.status == 200, "I-6", || {
        format!("{first:.200}, then {again:.200}")
    });
    report.require(other.code() == "conflict", "I-6", || format!("another body under a key: {other:.200}"));
    Ok(())
}
