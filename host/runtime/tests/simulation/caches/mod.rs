//! Hosts with a cache each, over levels and ways between them that fail, in virtual time on one thread: a seed makes a life in
//! which levels are late, away, silent or lose what they take, Redis forgets or has garbage, lines are cut, messages come late,
//! twice and in another order, clocks differ, and hosts are killed, while clients read, set, remove, expire, clear, fill
//! and compute. Equal seeds make equal lives.
//!
//! The caches are real ones over levels in memory. What may be read, and how old it may be, is said in [`model`]; it is looked
//! at with every answer, and once more when everything works again (I-14). Beside that: of all who want a value one
//! computes it, what was computed after that right was lost is not kept, nobody waits for what nobody computes, every call is
//! answered in time, and what a level has missed is repeated.
//!
//! What it cannot fail to notice is itself checked: a life without one of [`Off`] is found.

mod clients;
mod hosts;
mod levels;
mod model;
mod off;
mod planes;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_runtime::cache::Safeguard;
use tokio::time::sleep;

use self::clients::{Client, ask_all};
use self::hosts::Hosts;
use self::model::Counts;
pub use self::off::Off;
use crate::random::Random;
use crate::story::{Reader, Story};

/// How long things go wrong, in milliseconds.
const HARSH_MS: i64 = 30_000;
/// How long everything works before it is looked at again.
const QUIET: Duration = Duration::from_secs(20);

/// What a life came to.
#[derive(Debug)]
pub struct Life {
    /// Its seed.
    pub seed: u64,
    /// What was broken.
    pub violations: Vec<String>,
    /// Stands for everything that happened: equal for equal lives.
    pub trace: u64,
    /// What was asked and answered.
    pub counts: Counts,
    /// Hosts that were killed.
    pub ends: u64,
}

/// Lives the life of a seed, without one safeguard if that is asked for; `reader` is told its story.
pub fn live(seed: u64, off: Option<Off>, reader: Option<Reader>) -> Life {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without drivers");
    Safeguard::switch_off(match off {
        Some(Off::Cache(safeguard)) => Some(safeguard),
        _ => None,
    });
    let life = runtime.block_on(whole(seed, off, reader));
    // What is left of hosts that were killed goes with the runtime.
    runtime.shutdown_background();
    Safeguard::switch_off(None);
    life
}

#[allow(clippy::disallowed_methods, reason = "clients and harm live beside each other")]
async fn whole(seed: u64, off: Option<Off>, reader: Option<Reader>) -> Life {
    let mut random = Random::new(seed);
    let story = Arc::new(Story::new(reader));
    let hosts = Hosts::begin(&mut random, Arc::clone(&story), off);
    let watching = tokio::spawn({
        let hosts = Arc::clone(&hosts);
        async move { hosts.watch().await }
    });
    let clients: Vec<_> = (0..random.among(3, 6))
        .map(|_| {
            let client = Client { hosts: Arc::clone(&hosts), random: random.split() };
            tokio::spawn(client.work(HARSH_MS))
        })
        .collect();
    tokio::join!(hosts.harm(random.split(), HARSH_MS), hosts.harm(random.split(), HARSH_MS));
    for client in clients {
        client.await.expect("a client does not panic");
    }
    story.tell(format_args!("everything works from now on"));
    sleep(QUIET).await;
    ask_all(&hosts).await;
    watching.abort();
    let model = hosts.model.lock();
    let ends = hosts.ends.load(Ordering::Relaxed);
    Life { seed, violations: model.violations.clone(), trace: story.trace(), counts: model.counts, ends }
}

/// The first life of these seeds that breaks a promise; `None` when there is none.
pub fn first_violation(seeds: impl Iterator<Item = u64>, off: Option<Off>) -> Option<Life> {
    seeds.map(|seed| live(seed, off, None)).find(|life| !life.violations.is_empty())
}
