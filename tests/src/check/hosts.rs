//! Several hosts on one PostgreSQL, killed, stopped and cut off from their database while tasks are submitted and run.
//!
//! What is submitted is in [`super::load`], to all hosts in turn. Hosts are killed (`kill -9`) and started again; one is
//! stopped (SIGSTOP) past the end of its lease, so that others take its tasks, and goes on (SIGCONT); PostgreSQL is
//! restarted as after a crash. When everything is quiet the history is read back from one host, and the database is asked
//! for what the API does not show.
//!
//! Promises: those of [`super::kill`], and I-4 nothing is written under a lease that another host has taken over, I-11
//! counters equal a recount, I-12 no lease, holder or open transaction is left.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Report;
use super::crashed::Crashed;
use super::history::{self, History};
use super::load::{Load, Submitting, check_key_conflict, wait_quiet};
use crate::postgres::{Database, Postgres, Programs};
use crate::{Client, Host, Options, Random, tree, wait};

/// What the check looks at beside [`history::INVARIANTS`].
const INVARIANTS: &[&str] = &["I-4", "I-11"];
/// Lease of the hosts, in seconds: short, so that a run sees many end.
const LEASE_S: u64 = 3;
/// Beyond the lease, other hosts have a task back by then.
const RESCUE_MAX: Duration = Duration::from_secs(2);
/// How long a slow task runs. Shorter than a stop, so that no attempt but one of the stopped host spans it; and longer than
/// what is left of a stop when others have the tasks, so that they run there when the stopped host goes on.
const SLOW: Duration = Duration::from_millis(2_500);
/// Longest random pause before a disturbance, in milliseconds.
const PAUSE_MS_MAX: u64 = 400;
/// Tasks of a page.
const PAGE: u32 = 1_000;

/// How much to try.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is submitted.
    pub load: Load,
    /// Hosts on the database.
    pub hosts: usize,
    /// Times a host is killed.
    pub kills: u64,
    /// Times a host is stopped past its lease.
    pub stops: u64,
    /// Times the database is restarted as after a crash.
    pub restarts: u64,
}

impl Plan {
    /// For every run of the tests: 2 hosts, 1,500 parents, 3 kills, a stop and a restart.
    pub fn short(seed: u64) -> Plan {
        let load = Load {
            parents: 1_500,
            batch: 50,
            live_max: 1_000,
            quiet_max: Duration::from_secs(180),
            slow: SLOW,
            seed,
        };
        Plan { load, hosts: 2, kills: 3, stops: 1, restarts: 1 }
    }

    /// Against hosts whose store does not fence: the same with more stops, one of which is to be noticed.
    pub fn unfenced(seed: u64) -> Plan {
        Plan { kills: 0, stops: 6, restarts: 0, ..Plan::short(seed) }
    }

    /// 4 hosts, 34,000 parents (100,000 tasks), a kill every few seconds, two restarts.
    pub fn long(seed: u64) -> Plan {
        let load = Load {
            parents: 34_000,
            batch: 100,
            live_max: 4_000,
            quiet_max: Duration::from_secs(900),
            // Many kills: a longer task would often be met by three of them.
            slow: Duration::from_millis(1_000),
            ..Plan::short(seed).load
        };
        Plan { load, hosts: 4, kills: 30, stops: 4, restarts: 2 }
    }
}

/// What is done to the hosts.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Kill,
    Stop,
    Restart,
}

/// A host that was stopped, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Stopped {
    from_ms: i64,
    to_ms: i64,
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    let mut postgres = Postgres::start(Programs::find(None)?)?;
    let database = Arc::new(postgres.new_database()?);
    let mut hosts: Vec<Host> =
        (0..plan.hosts).map(|number| start_host(folder, number, &database)).collect::<Result<_>>()?;
    let clients: Vec<Client> = hosts.iter().map(Host::client).collect();
    clients[0].install(&tree::guest("family")?)?;
    let submitting = Submitting::new(&plan.load, clients.clone());
    let (acknowledged, (stopped, crashed)) =
        submitting.beside(|| disturb(plan, &submitting, &mut hosts, &mut postgres, &database))?;
    let mut report = Report::new("hosts", history::INVARIANTS);
    for invariant in INVARIANTS {
        report.look_at(invariant);
    }
    let client = &clients[0];
    wait_quiet(client, plan.load.quiet_max, &mut report)?;
    submitting.tell(&mut report);
    report.tried("hosts", plan.hosts);
    report.tried("kills", plan.kills);
    report.tried("stops", plan.stops);
    report.tried("restarts", plan.restarts);
    report.tried("seconds_until_quiet", start.elapsed().as_secs());
    let history = History::read(client, crashed)?;
    history.check(client, &acknowledged, &mut report)?;
    check_key_conflict(client, &mut report)?;
    check_stopped(client, &stopped, &mut report)?;
    check_database(&database, &hosts, &mut report)?;
    report.tried("seconds", start.elapsed().as_secs());
    Ok(report)
}

fn start_host(folder: &Path, number: usize, database: &Arc<Database>) -> Result<Host> {
    let folder = folder.join(format!("host-{number}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let config = format!("[host]\nlease_s = {LEASE_S}\n");
    Host::start(Options::in_folder(&folder)?.on(database).with_config(&config)?)
}

/// Disturbances spread over the whole time of submitting, in random order; returns when hosts were stopped, and what ran on
/// those that were killed.
fn disturb(
    plan: &Plan,
    submitting: &Submitting<'_>,
    hosts: &mut [Host],
    postgres: &mut Postgres,
    database: &Database,
) -> Result<(Vec<Stopped>, Crashed)> {
    let mut crashed = Crashed::default();
    let mut random = Random::new(plan.load.seed);
    let mut stopped = Vec::new();
    let disturbances = shuffled(plan, &mut random);
    let count = disturbances.len() as u64;
    for (number, disturbance) in (1..).zip(disturbances) {
        submitting.wait_for(number, count)?;
        wait::pause(Duration::from_millis(random.below(PAUSE_MS_MAX)));
        let at = random.below(hosts.len() as u64) as usize;
        let host = &mut hosts[at];
        if !host.is_running()? {
            bail!("host {at} ended by itself before disturbance {number}; see {}", host.log().display());
        }
        match disturbance {
            Disturbance::Kill => {
                host.kill()?;
                crashed.add(host.data_dir())?;
                host.start_again().with_context(|| format!("host {at} after disturbance {number}"))?;
            }
            Disturbance::Stop => stopped.push(stop(host, database)?),
            Disturbance::Restart => postgres.restart(true)?,
        }
    }
    Ok((stopped, crashed))
}

fn shuffled(plan: &Plan, random: &mut Random) -> Vec<Disturbance> {
    let mut all = vec![Disturbance::Kill; plan.kills as usize];
    all.extend(vec![Disturbance::Stop; plan.stops as usize]);
    all.extend(vec![Disturbance::Restart; plan.restarts as usize]);
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at as u64 + 1) as usize);
    }
    all
}

/// Stops a host until others have its tasks, and lets it go on.
fn stop(host: &Host, database: &Database) -> Result<Stopped> {
    host.pause()?;
    let from_ms = now_ms(database)?;
    wait::pause(Duration::from_secs(LEASE_S) + RESCUE_MAX);
    let to_ms = now_ms(database)?;
    host.resume()?;
    Ok(Stopped { from_ms, to_ms })
}

/// The time of the machine, which hosts and database share.
fn now_ms(database: &Database) -> Result<i64> {
    let text = database.query("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")?;
    text.parse().context("the database's time")
}

/// I-4: an attempt that was running when its host was stopped does not end its task after the host went on: others had
/// the task by then. No other attempt can span that time: it is longer than the slowest task.
fn check_stopped(client: &Client, stopped: &[Stopped], report: &mut Report) -> Result<()> {
    if stopped.is_empty() {
        return Ok(());
    }
    let mut ended = 0u64;
    client.each_listed("&kind=parent&state=completed", PAGE, |task| {
        let (created, finished) = (time_ms(&task["created_at"])?, time_ms(&task["finished_at"])?);
        let spans = |stop: &&Stopped| created <= stop.from_ms && finished >= stop.to_ms;
        let Some(stop) = stopped.iter().find(spans) else { return Ok(()) };
        ended += 1;
        let id = task["id"].as_str().context("a listed task has no id")?;
        let detail = client.task(id)?;
        let last =
            detail["attempts"].as_array().and_then(|attempts| attempts.last().cloned()).unwrap_or_default();
        let started = time_ms(&last["started_at"])?;
        // What ended elsewhere and was stored late did not run over the whole stop.
        let until = started + last["duration_us"].as_i64().unwrap_or_default() / 1_000;
        report.require(started > stop.from_ms || until < stop.to_ms, "I-4", || {
            format!("{id} was ended by an attempt of a stopped host: {last}")
        });
        Ok(())
    })?;
    report.tried("tasks_over_a_stop", ended);
    Ok(())
}

/// Milliseconds since 1970 of an RFC 3339 time.
fn time_ms(text: &Value) -> Result<i64> {
    let text = text.as_str().with_context(|| format!("{text} is no time"))?;
    let time: jiff::Timestamp = text.parse().with_context(|| format!("`{text}` is no time"))?;
    Ok(time.as_millisecond())
}

/// What only the database knows: each statement answers a number that is 0 when all is well.
fn check_database(database: &Database, hosts: &[Host], report: &mut Report) -> Result<()> {
    let checks: &[(&'static str, &str)] = &[
        ("I-3", "SELECT count(*) FROM finished WHERE (result IS NOT NULL) <> (state = 2)"),
        ("I-4", "SELECT count(*) FROM finished WHERE token < attempts"),
        (
            "I-11",
            "SELECT count(*) FROM tenant_count AS c WHERE
                c.live <> (SELECT count(*) FROM task AS t WHERE t.tenant = c.tenant)
                    + (SELECT coalesce(sum(s.live), 0) FROM task_segment AS s WHERE s.tenant = c.tenant)
                OR c.completed <> (SELECT count(*) FROM finished AS f WHERE f.tenant = c.tenant AND f.state = 2)
                OR c.failed <> (SELECT count(*) FROM finished AS f WHERE f.tenant = c.tenant AND f.state = 3)
                OR c.cancelled <> (SELECT count(*) FROM finished AS f WHERE f.tenant = c.tenant AND f.state = 4)",
        ),
        ("I-12", "SELECT count(*) FROM task WHERE holder IS NOT NULL"),
        ("I-12", "SELECT count(*) FROM task_segment WHERE holder IS NOT NULL"),
        // The hosts live and beat: between two statements of theirs are milliseconds.
        (
            "I-12",
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'
                AND datname = current_database() AND state_change < now() - interval '2 seconds'",
        ),
        ("I-3", "SELECT count(*) FROM task AS t JOIN finished AS f ON f.id = t.id"),
    ];
    for (invariant, statement) in checks {
        let found = database.query(statement)?;
        report.require(found == "0", invariant, || format!("{found} rows of: {statement}"));
    }
    let holders = database.query("SELECT count(*) FROM holder")?;
    report.require(holders == hosts.len().to_string(), "I-12", || {
        format!("{holders} holders of {} hosts", hosts.len())
    });
    Ok(())
}
