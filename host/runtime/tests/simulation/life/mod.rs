//! Hosts, their one store and their clocks, in virtual time on one thread: a seed makes a life with kills, drains, stalls,
//! outages, lost answers, lost notifications, clocks that jump and tasks that take their host down, while clients submit,
//! repeat, cancel, wait, add, group, pause and resume. At its quiet end, where some hosts may be gone for good and notifications lost for ever,
//! every invariant is looked at. Equal seeds make equal lives.
//!
//! The hosts are real ones ([`keiko_runtime::Runtime`] with everything it starts) over the store in memory, which keeps
//! the promises of the others by the same suite. Guests are scripts. What datasets and the cache promise is looked at
//! elsewhere.
//!
//! What it cannot fail to notice is itself checked: a host or a store without one [`Safeguard`] is found.

mod client;
mod groups;
mod guest;
mod hosts;
mod judge;
mod onces;
mod pauses;
mod safeguard;
mod trees;

use std::sync::Arc;
use std::time::Duration;

use keiko_runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::client::Clients;
use self::guest::Runs;
use self::hosts::{Hosts, World};
pub use self::safeguard::Safeguard;
use crate::random::Random;
use crate::story::{Reader, Story};

/// How long things go wrong.
const HARSH: Duration = Duration::from_secs(90);
/// Hosts that nothing happens to bring everything to its end within this.
const QUIET: Duration = Duration::from_secs(3_600);

/// What a life came to.
#[derive(Debug)]
pub struct Life {
    /// Its seed.
    pub seed: u64,
    /// What was broken, each with its invariant.
    pub violations: Vec<String>,
    /// Stands for everything that happened: equal for equal lives.
    pub trace: u64,
    /// Tasks that were accepted.
    pub tasks: usize,
    /// Attempts that began.
    pub runs: usize,
    /// Hosts that were killed or drained.
    pub ends: u64,
    /// Tasks that a host leased with the submit that stored them.
    pub along: u64,
}

/// Lives the life of a seed, without one safeguard if that is asked for; `reader` is told its story.
pub fn live(seed: u64, off: Option<Safeguard>, reader: Option<Reader>) -> Life {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without drivers");
    let life = runtime.block_on(whole(seed, off, reader));
    // What is left of hosts that were killed goes with the runtime.
    runtime.shutdown_background();
    life
}

#[allow(clippy::disallowed_methods, reason = "what crashes hosts lives beside them")]
async fn whole(seed: u64, off: Option<Safeguard>, reader: Option<Reader>) -> Life {
    crate::random::seed_jitter(seed);
    let mut random = Random::new(seed);
    let (story, runs) = (Arc::new(Story::new(reader)), Arc::new(Runs::default()));
    let (crash, mut crashes) = mpsc::unbounded_channel();
    let world = World { story: Arc::clone(&story), runs: Arc::clone(&runs), off, crash };
    let hosts = Arc::new(Hosts::start(&mut random, world).await);
    let clients = Arc::new(Clients::new(Arc::clone(&hosts)));
    let crashing = tokio::spawn({
        let (hosts, mut random) = (Arc::clone(&hosts), random.split());
        async move {
            while let Some(place) = crashes.recv().await {
                // A process that crashes is back before anybody misses it.
                hosts.kill(place, random.among(500, 5_000)).await;
            }
        }
    });
    let lived = tokio::select! {
        biased;
        // Hosts may go round and round over it, in no time: there is no quiet to wait for.
        () = hosts.store.until_broken() => None,
        quiet = until_quiet(seed, random, &hosts, &clients) => Some(quiet),
    };
    let mut violations = match lived {
        Some(quiet) => judge::look(&hosts, &clients, &runs, quiet).await,
        None => judge::seen(&hosts, &runs),
    };
    crashing.abort();
    if lived.is_some() {
        violations.extend(hosts.close().await);
    }
    let (tasks, runs) = (clients.book.lock().accepted.len(), runs.count());
    let (ends, along) = (hosts.ends(), hosts.store.leased_along());
    Life { seed, violations, trace: story.trace(), tasks, runs, ends, along }
}

/// Goes through everything that happens, until nothing does any more; whether that came.
#[allow(clippy::disallowed_methods, reason = "clients live beside each other")]
async fn until_quiet(seed: u64, mut random: Random, hosts: &Arc<Hosts>, clients: &Arc<Clients>) -> bool {
    let end = Instant::now() + HARSH;
    let working: Vec<_> = (0..random.among(1, 3))
        .map(|_| {
            let (clients, random) = (Arc::clone(clients), random.split());
            tokio::spawn(async move { clients.work(random, end).await })
        })
        .collect();
    let working = working.into_iter().chain(beside(seed, clients, end));
    let working: Vec<_> = working.collect();
    tokio::join!(hosts.harm(random.split(), end), hosts.harm(random.split(), end));
    for one in working {
        one.await.expect("a client does not panic");
    }
    hosts
        .heal(&mut random, async |handle: &Handle, random: &mut Random| {
            clients.last_words(handle, random).await
        })
        .await;
    let quiet = hosts.quiet(QUIET).await;
    hosts.story.tell(format_args!("it is quiet: {quiet}"));
    quiet
}

/// What goes on in some lives beside everything else: groups, pauses, trees, and keys of kinds.
#[allow(clippy::disallowed_methods, reason = "clients live beside each other")]
fn beside(seed: u64, clients: &Arc<Clients>, end: Instant) -> Vec<JoinHandle<()>> {
    let mut random = Random::new(!seed);
    let mut beside = Vec::new();
    if random.percent(60) {
        let (clients, random) = (Arc::clone(clients), random.split());
        beside.push(tokio::spawn(async move { clients.work_with_groups(random, end).await }));
    }
    if random.percent(40) {
        let (clients, random) = (Arc::clone(clients), random.split());
        beside.push(tokio::spawn(async move { clients.pause(random, end).await }));
    }
    if random.percent(30) {
        let (clients, random) = (Arc::clone(clients), random.split());
        beside.push(tokio::spawn(async move { clients.work_with_trees(random, end).await }));
    }
    if random.percent(30) {
        let (clients, random) = (Arc::clone(clients), random.split());
        beside.push(tokio::spawn(async move { clients.work_with_keys(random, end).await }));
    }
    beside
}

/// The first life of these seeds that breaks a promise; `None` when there is none.
pub fn first_violation(seeds: impl Iterator<Item = u64>, off: Option<Safeguard>) -> Option<Life> {
    seeds.map(|seed| live(seed, off, None)).find(|life| !life.violations.is_empty())
}
