//! `kill -9` of the host at random moments, while tasks are submitted and run.
//!
//! What is submitted is in [`super::load`]. When everything is quiet the whole history is read page by page and compared
//! with what was acknowledged: see [`super::history`].
//!
//! Promises: I-1 acknowledged tasks exist, I-2 every task ended, I-3 one result each, I-5 children exactly once,
//! I-6 no duplicate by key, I-7 attempts inside their limit, I-12 nothing is left running; counts equal lists, and
//! nothing is quarantined.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Report;
use super::crashed::Crashed;
use super::history::{self, History};
use super::load::{Load, Submitting, check_key_conflict, wait_quiet};
use crate::{Host, Options, Random, tree, wait};

/// Longest random pause before a kill, in milliseconds.
const PAUSE_MS_MAX: u64 = 400;
/// One kill in this many hits a host that is still starting.
const EARLY_ONE_IN: u64 = 4;

/// How much to try.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is submitted.
    pub load: Load,
    /// Times the host is killed.
    pub kills: u64,
}

impl Plan {
    /// For every run of the tests: 4 kills over 2,000 parents.
    pub fn short(seed: u64) -> Plan {
        let load = Load {
            parents: 2_000,
            batch: 50,
            live_max: 400,
            quiet_max: Duration::from_secs(120),
            slow: Duration::ZERO,
            seed,
        };
        Plan { load, kills: 4 }
    }

    /// 50 kills over 200,000 parents.
    pub fn long(seed: u64) -> Plan {
        let load = Load {
            parents: 200_000,
            batch: 500,
            live_max: 20_000,
            quiet_max: Duration::from_secs(1_800),
            ..Plan::short(seed).load
        };
        Plan { load, kills: 50 }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    let mut host = Host::start(Options::in_folder(folder)?)?;
    let client = host.client();
    client.install(&tree::guest("family")?)?;
    let submitting = Submitting::new(&plan.load, vec![client.clone()]);
    let (acknowledged, early_kills) = submitting.beside(|| kill_all(plan, &submitting, &mut host))?;
    let mut report = Report::new("kill", history::INVARIANTS);
    wait_quiet(&client, plan.load.quiet_max, &mut report)?;
    submitting.tell(&mut report);
    report.tried("kills", plan.kills);
    report.tried("kills_while_starting", early_kills);
    report.tried("seconds_until_quiet", start.elapsed().as_secs());
    let history = History::read(&client, Crashed::default())?;
    history.check(&client, &acknowledged, &mut report)?;
    check_key_conflict(&client, &mut report)?;
    report.tried("seconds", start.elapsed().as_secs());
    Ok(report)
}

/// Kills spread over the whole time of submitting, each after a random pause; some while the host starts.
fn kill_all(plan: &Plan, submitting: &Submitting<'_>, host: &mut Host) -> Result<u64> {
    let mut random = Random::new(plan.load.seed);
    let mut early = 0;
    for kill in 1..=plan.kills {
        submitting.wait_for(kill, plan.kills)?;
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
