//! A cache whose Redis is killed, stopped, emptied and filled with garbage, while tasks of two tenants use it.
//!
//! The host keeps nothing in memory, so that every question goes to Redis first, and to the database when that is away. Both
//! tenants run the same plugin over the same keys; each value names its tenant and key.
//!
//! Promises: no task fails, no value is anything but what was stored by that tenant under that key, Redis is asked again
//! and answers when it works again, and the slowest hundredth of the tasks takes at most a fifth longer once the host has
//! given up on Redis than it did with it. The last is judged in the long form alone: it needs many tasks, and it is that of
//! the middle one of several rounds with Redis and without it in turn, since one stall of the machine is one of a round.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Report;
use super::hostile::two_tenants_with;
use crate::redis::Redis;
use crate::{Client, Random, tree, wait};

/// What is looked at.
pub const INVARIANTS: &[&str] = &["task failed", "value of another", "no hits again", "p99 over 1.2x"];
/// Submitters of each tenant; each waits for its task before the next.
const SUBMITTERS: u64 = 4;
/// How long the host may take to use Redis again: it rests for at most ten seconds.
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// How long the host may take to see that Redis does not answer.
const NOTICED: Duration = Duration::from_secs(2);
/// What the slowest hundredth may take of what it takes with Redis.
const P99_TIMES_MAX: f64 = 1.2;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tasks of a tenant in a second.
    pub rate: u64,
    /// How long the load runs under each fault, and without one.
    pub time: Duration,
    /// Rounds with Redis and without it, in turn.
    pub rounds: usize,
    /// Keys of a tenant.
    pub keys: u64,
    /// Whether the p99 is judged.
    pub is_timed: bool,
    /// Repeats the choices.
    pub seed: u64,
}

impl Plan {
    /// For every run of the tests.
    pub fn short(seed: u64) -> Plan {
        Plan { rate: 50, time: Duration::from_secs(1), rounds: 1, keys: 50, is_timed: false, seed }
    }

    /// Five times ten seconds of each fault that is timed.
    pub fn long(seed: u64) -> Plan {
        Plan { rate: 250, time: Duration::from_secs(10), rounds: 5, keys: 1_000, is_timed: true, seed }
    }
}

/// What is done to Redis while tasks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    Emptied,
    Garbage,
    WrongTypes,
    AnotherTenants,
}

impl Fault {
    const ALL: [(Fault, &'static str); 6] = [
        (Fault::Killed, "killed"),
        (Fault::Stopped, "stopped"),
        (Fault::Emptied, "emptied"),
        (Fault::Garbage, "garbage"),
        (Fault::WrongTypes, "wrong_types"),
        (Fault::AnotherTenants, "another_tenants"),
    ];

    /// Whether Redis does not answer meanwhile.
    fn is_away(self) -> bool {
        matches!(self, Fault::Killed | Fault::Stopped)
    }

    /// What is asked of Redis again and again. Every key of the host is spoilt by the last three.
    fn command(self) -> Option<&'static str> {
        match self {
            Fault::Killed | Fault::Stopped => None,
            Fault::Emptied => Some("FLUSHALL"),
            Fault::Garbage => Some(
                r#"EVAL "for _,k in ipairs(redis.call('KEYS','k1:*')) do redis.call('SET',k,string.rep('\\1',64)) end" 0"#,
            ),
            Fault::WrongTypes => Some(
                r#"EVAL "for _,k in ipairs(redis.call('KEYS','k1:*')) do redis.call('DEL',k) redis.call('LPUSH',k,'x') end" 0"#,
            ),
            // What one tenant stored, under the other's keys, envelope and all.
            Fault::AnotherTenants => Some(
                r#"EVAL "for _,k in ipairs(redis.call('KEYS','k1:*:attacker:*')) do local v=redis.pcall('GET',k) if type(v)=='string' then redis.call('SET',(string.gsub(k,':attacker:',':victim:')),v) end end" 0"#,
            ),
        }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let mut redis = Redis::start()?;
    let config = format!("[cache]\nmemory_mib = 0\nredis_url = \"{}\"\n\n", redis.url());
    let (host, attacker, victim) = two_tenants_with(folder, &config)?;
    let guest = tree::guest("contract")?;
    for client in [&attacker, &victim] {
        client.install(&guest)?;
    }
    let tenants = [("attacker", attacker), ("victim", victim)];
    let mut report = Report::new("cache-faults", INVARIANTS);
    report.tried("seed", plan.seed);
    let page = host.client();
    for (fault, name) in Fault::ALL {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..if fault.is_away() { plan.rounds } else { 1 } {
            if fault.is_away() {
                with.push(load(plan, &tenants, &mut report, |_| Ok(()))?);
            }
            match fault {
                Fault::Killed => redis.kill()?,
                Fault::Stopped => redis.pause()?,
                _ => {}
            }
            without.push(load(plan, &tenants, &mut report, |done| spoil(fault, &redis, done))?);
            match fault {
                // Here, because a server goes with the thread that started it.
                Fault::Killed => redis.run()?,
                Fault::Stopped => redis.resume()?,
                _ => {}
            }
            let took = hits_again(&page, &tenants, plan, &mut report)?;
            report.require(took.is_some(), "no hits again", || format!("after Redis was {name}"));
            report.tried(&format!("{name}_hits_again_ms"), took.unwrap_or_default().as_millis() as u64);
        }
        let tasks = with.iter().chain(&without).map(|load| load.times.len()).sum::<usize>();
        report.tried(&format!("{name}_tasks"), tasks);
        if fault.is_away() {
            let [with, without] = [&with, &without].map(|loads| middle_p99(loads));
            judge_p99(plan, name, with, without, &mut report);
        }
    }
    for (name, value) in outcomes(&page)? {
        report.tried(&name, value);
    }
    Ok(report)
}

/// The p99 of the middle one of several loads, of tasks since the host has noticed what was done.
fn middle_p99(loads: &[Load]) -> Duration {
    let mut all: Vec<Duration> = loads.iter().map(|load| load.p99(NOTICED)).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn judge_p99(plan: &Plan, name: &str, with: Duration, without: Duration, report: &mut Report) {
    report.tried(&format!("{name}_p99_before_us"), with.as_micros() as u64);
    report.tried(&format!("{name}_p99_us"), without.as_micros() as u64);
    let fits = without <= with.mul_f64(P99_TIMES_MAX);
    report.require(fits || !plan.is_timed, "p99 over 1.2x", || {
        format!("{with:?} with Redis, {without:?} while it is {name}")
    });
}

/// Spoils what Redis has, again and again until `done`.
fn spoil(fault: Fault, redis: &Redis, done: &AtomicBool) -> Result<()> {
    let Some(command) = fault.command() else { return Ok(()) };
    while !done.load(Ordering::Acquire) {
        let answer = redis.ask(command)?;
        if answer.starts_with('-') {
            bail!("Redis refused what spoils it: {answer}");
        }
        wait::pause(Duration::from_millis(50));
    }
    Ok(())
}

/// When a task was submitted, and how long it took.
type Timed = (Duration, Duration);

/// The tasks of a load.
struct Load {
    times: Vec<Timed>,
}

impl Load {
    /// Of the tasks that were submitted after so long.
    fn p99(&self, from: Duration) -> Duration {
        let mut times: Vec<Duration> =
            self.times.iter().filter(|(at, _)| *at >= from).map(|(_, took)| *took).collect();
        times.sort_unstable();
        times.get(times.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// Runs tasks of both tenants for the plan's time, with `beside` beside them, which is told when they are done.
fn load(
    plan: &Plan,
    tenants: &[(&'static str, Client); 2],
    report: &mut Report,
    beside: impl FnOnce(&AtomicBool) -> Result<()> + Send,
) -> Result<Load> {
    let (start, done) = (Instant::now(), AtomicBool::new(false));
    let submit = |number: u64| -> Result<(Vec<Timed>, Vec<Problem>)> {
        let (name, client) = &tenants[(number % 2) as usize];
        let mut random = Random::new(plan.seed ^ number);
        let (mut times, mut wrong) = (Vec::new(), Vec::new());
        for turn in 0.. {
            let due = Duration::from_micros(turn * SUBMITTERS * 1_000_000 / plan.rate);
            if due > plan.time {
                break;
            }
            wait::pause(due.saturating_sub(start.elapsed()));
            let (at, key) = (start.elapsed(), format!("key-{}", random.below(plan.keys)));
            wrong.extend(one(name, client, &key)?);
            times.push((at, start.elapsed().saturating_sub(at)));
        }
        Ok((times, wrong))
    };
    let (parts, spoilt) = std::thread::scope(|scope| {
        let (submit, done) = (&submit, &done);
        let beside = scope.spawn(move || beside(done));
        let threads: Vec<_> = (0..2 * SUBMITTERS).map(|number| scope.spawn(move || submit(number))).collect();
        let parts: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Release);
        (parts, beside.join())
    });
    let Ok(spoilt) = spoilt else { bail!("the thread that spoils Redis panicked") };
    spoilt?;
    let mut times = Vec::new();
    for part in parts {
        let Ok(part) = part else { bail!("a submitting thread panicked") };
        let (mine, wrong) = part?;
        times.extend(mine);
        wrong.into_iter().for_each(|(invariant, note)| report.violation(invariant, note));
    }
    Ok(Load { times })
}

/// An invariant that does not hold, and where it was seen.
type Problem = (&'static str, String);

/// A task that wants the value of a key, computes it if it has to, and reads it again; what is wrong with it.
fn one(tenant: &str, client: &Client, key: &str) -> Result<Option<Problem>> {
    let value = format!("{tenant} {key}");
    let steps = json!([
        {"do": "fill", "key": key},
        {"do": "complete", "value": value, "tags": ["faults"]},
        {"do": "get", "key": key},
    ]);
    let body = json!({"plugin": "contract", "kind": "cache", "input": {"steps": steps}, "attempts": 1});
    let task = client.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
    if task["state"] != "completed" {
        return Ok(Some(("task failed", task.to_string())));
    }
    let answer = |at: usize| &task["result"][at]["ok"];
    // A value that was there; or a fill, and afterwards the value, or nothing when it was lost in the meantime.
    let hit = answer(0)["hit"].as_str();
    let fits = hit.map_or(*answer(0) == "fill", |hit| hit == value);
    let again = answer(2).is_null() || *answer(2) == *value;
    Ok((!fits || !again).then(|| ("value of another", format!("{tenant}, {key}: {}", task["result"]))))
}

/// How long it takes until Redis answers with values again, if it does; tasks go on meanwhile.
fn hits_again(
    page: &Client,
    tenants: &[(&'static str, Client); 2],
    plan: &Plan,
    report: &mut Report,
) -> Result<Option<Duration>> {
    let (start, mut random) = (Instant::now(), Random::new(plan.seed));
    let before = hits(page)?;
    while start.elapsed() < AGAIN_AT_MOST {
        for (name, client) in tenants {
            let key = format!("key-{}", random.below(plan.keys));
            if let Some((invariant, note)) = one(name, client, &key)? {
                report.violation(invariant, note);
            }
        }
        if hits(page)? > before {
            return Ok(Some(start.elapsed()));
        }
    }
    Ok(None)
}

/// Values that Redis has given.
fn hits(page: &Client) -> Result<u64> {
    let all = outcomes(page)?;
    let hits = all.iter().find(|(name, _)| name == "redis_hit").map(|(_, value)| *value);
    hits.context("the host does not count what Redis answers")
}

/// How often Redis did what, as the host counts it.
fn outcomes(page: &Client) -> Result<Vec<(String, u64)>> {
    let page = page.get("/metrics")?;
    let text = String::from_utf8_lossy(&page.bytes).into_owned();
    let read = |line: &str| {
        let rest = line.strip_prefix("keiko_cache_level_total{level=\"redis\",outcome=\"")?;
        let (outcome, value) = rest.split_once("\"} ")?;
        Some((format!("redis_{outcome}"), value.trim().parse::<f64>().ok()? as u64))
    };
    Ok(text.lines().filter_map(read).collect())
}
