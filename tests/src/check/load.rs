//! Families of tasks, submitted by several threads while something is done to the hosts.
//!
//! Tasks of the fixture plugin `family`, kind `parent`, each ask for two children. Some fail for good, some fail on
//! their first attempt, some take their time. Submits carry idempotency keys and are sent again with the same key, to
//! whichever host is next, when their answer was lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::Report;
use crate::{Answer, Client, wait};

/// Threads that submit.
const SUBMITTERS: u64 = 2;
/// A killed host is back by then.
const BACK_MAX: Duration = Duration::from_secs(120);

/// How much to submit.
#[derive(Clone, Debug)]
pub struct Load {
    /// Parents to submit; each that completes has two children.
    pub parents: u64,
    /// Parents of one request; every tenth request carries just one.
    pub batch: u64,
    /// Submitters wait while more tasks than this are live, so that the tenant's queue has room for children.
    pub live_max: u64,
    /// Everything must have ended so long after the last submit.
    pub quiet_max: Duration,
    /// How long a parent that takes its time does so; zero for none.
    pub slow: Duration,
    /// Of the random choices.
    pub seed: u64,
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
    /// Take some time, then complete.
    Slow,
}

impl Ask {
    /// One parent in twenty fails for good, another one fails once, and one in a hundred is slow.
    pub(super) fn of(n: u64) -> Ask {
        match n % 20 {
            7 => Ask::Permanent,
            13 => Ask::Once,
            _ if n % 100 == 50 => Ask::Slow,
            _ => Ask::Complete,
        }
    }

    fn input(self, n: u64, slow: Duration) -> Value {
        match self {
            Ask::Complete => json!({ "n": n }),
            Ask::Permanent => json!({ "n": n, "fail": "permanent" }),
            Ask::Once => json!({ "n": n, "fail": "once" }),
            Ask::Slow => json!({ "n": n, "sleep_ms": slow.as_millis() as u64 }),
        }
    }
}

/// What the threads of a run share.
pub(super) struct Submitting<'a> {
    load: &'a Load,
    /// One for each host.
    clients: Vec<Client>,
    /// The next request to send; written by submitters.
    next: AtomicU64,
    /// Parents whose submit was answered; written by submitters, read by whoever disturbs.
    acknowledged: AtomicU64,
    /// Submits sent again because no answer came.
    resent: AtomicU64,
    /// Of those, how many a host had accepted before.
    found_again: AtomicU64,
    /// Set when a submitter or the disturber gives up, so that the others do too.
    failed: AtomicBool,
}

impl<'a> Submitting<'a> {
    pub(super) fn new(load: &'a Load, clients: Vec<Client>) -> Submitting<'a> {
        Submitting {
            load,
            clients,
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            found_again: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Submits everything while `disturb` runs beside; the answer is the acknowledged ids with their `n`, and what the
    /// disturber says.
    pub(super) fn beside<T>(&self, disturb: impl FnOnce() -> Result<T>) -> Result<(Vec<(String, u64)>, T)> {
        let run_or_fail = |outcome: Result<_>| {
            if outcome.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            outcome
        };
        std::thread::scope(|scope| {
            let submitters: Vec<_> =
                (0..SUBMITTERS).map(|_| scope.spawn(|| run_or_fail(self.submit_all()))).collect();
            let disturbed = disturb();
            if disturbed.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            let mut acknowledged = Vec::new();
            for submitter in submitters {
                let ids = submitter.join().map_err(|_| anyhow!("a submitter panicked"))?;
                acknowledged.extend(ids?);
            }
            Ok((acknowledged, disturbed?))
        })
    }

    /// Waits until the `event`-th of `events`, spread evenly over the submits, is due.
    pub(super) fn wait_for(&self, event: u64, events: u64) -> Result<()> {
        let due = self.load.parents * event / (events + 1);
        wait::until("enough submits for the next disturbance", self.load.quiet_max, || {
            self.check_not_failed()?;
            Ok((self.acknowledged.load(Ordering::Relaxed) >= due).then_some(()))
        })
    }

    /// Says what was submitted.
    pub(super) fn tell(&self, report: &mut Report) {
        report.tried("seed", self.load.seed);
        report.tried("parents", self.load.parents);
        report.tried("submits_resent", self.resent.load(Ordering::Relaxed));
        report.tried("submits_found_again", self.found_again.load(Ordering::Relaxed));
    }

    fn submit_all(&self) -> Result<Vec<(String, u64)>> {
        let mut acknowledged = Vec::new();
        loop {
            let request = self.next.fetch_add(1, Ordering::Relaxed);
            let first = request * self.load.batch;
            if first >= self.load.parents {
                return Ok(acknowledged);
            }
            let last = (first + self.load.batch).min(self.load.parents);
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
        let key = format!("load-{}-{}", self.load.seed, numbers[0]);
        let task = |&n: &u64| json!({"plugin": "family", "kind": "parent", "input": Ask::of(n).input(n, self.load.slow)});
        let body = match numbers {
            [n] => task(n),
            _ => json!({ "tasks": numbers.iter().map(task).collect::<Vec<_>>() }),
        };
        let mut sent_before = false;
        let mut turn = numbers[0] as usize;
        wait::until("an answer to a submit", BACK_MAX, || {
            self.check_not_failed()?;
            turn += 1;
            match self.clients[turn % self.clients.len()].post_json("/v1/tasks", &body, Some(&key)) {
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
        wait::until("room in the queue", self.load.quiet_max, || {
            self.check_not_failed()?;
            let live = self.clients.iter().find_map(|client| client.live().ok());
            Ok(live.filter(|&live| live <= self.load.live_max).map(|_| ()))
        })
    }

    fn check_not_failed(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            bail!("another part of the check failed");
        }
        Ok(())
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
pub(super) fn wait_quiet(client: &Client, at_most: Duration, report: &mut Report) -> Result<()> {
    let quiet = wait::until("every task to end", at_most, || {
        Ok(client.live().ok().filter(|&live| live == 0).map(|_| ()))
    });
    if let Err(error) = quiet {
        report.violation("I-2", format!("{error:#}: {} are live", client.live()?));
    }
    Ok(())
}

/// I-6: a key that stands for another body is a conflict.
pub(super) fn check_key_conflict(client: &Client, report: &mut Report) -> Result<()> {
    let submit = |n: u64| {
        let body = json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 0}});
        client.post_json("/v1/tasks", &body, Some("load-conflict"))
    };
    let (first, again, other) = (submit(1)?, submit(1)?, submit(2)?);
    report.require(first.status == 201 && again.status == 200, "I-6", || {
        format!("{first:.200}, then {again:.200}")
    });
    report.require(other.code() == "conflict", "I-6", || format!("another body under a key: {other:.200}"));
    Ok(())
}
