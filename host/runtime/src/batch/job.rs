//! A batch on a worker: what is done before and after its runs ([`runs`]), and the writing of what came of them.
//!
//! The version that runs is looked up once, so that all parts of a batch run on the same one whatever is installed in the
//! meantime.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::batch::work::Health;
use keiko_core::batch::{BatchSettlement, Group, Item, ItemEnd, LeasedBatch, Stopped, Waiting, size};
use keiko_core::code::Code;
use keiko_core::crash::{Verdict, verdict};
use keiko_core::effect::Effects;
use keiko_core::outcome::Failure;
use keiko_core::port::{Signal, StoreErrorKind};
use keiko_core::task::Settled;
use keiko_core::{ItemId, TaskId, Token, VersionId};
use tokio::sync::OwnedSemaphorePermit;

use super::memory::Held;
use super::quota;
use super::runs::{self, On, Progress};
use super::{Ended, Entry, Event, MadeBy};
use crate::catalog::Loaded;
use crate::point::Point;
use crate::port::AttemptPort;
use crate::shared::{Counters, Shared};
use crate::tenure::Tenure;

/// Where is told which items are handed over and done with.
const TRACE: &str = "keiko_runtime::batch";
/// How long a batch waits whose plugin is not there, in milliseconds.
const ABSENT_MS: i64 = 5_000;
/// First and longest wait after the store failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What stands for a token where the items are in memory only, so that there is no lease.
pub(super) const IN_MEMORY: Token = Token(0);
/// The token of a batch that nobody else has had.
const FIRST_TOKEN: Token = Token(1);

/// A batch on its way to a worker.
pub(crate) struct BatchJob {
    /// The name it was leased under.
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) batch: LeasedBatch,
    pub(crate) entry: Arc<Entry>,
    pub(crate) health: Health,
    /// The memory of its items: of each its own where they are in memory only, of all together otherwise.
    pub(crate) held: Vec<Held>,
    /// Whether it has found its processor broken, and told of that.
    pub(crate) told_broken: bool,
}

impl BatchJob {
    /// Whether its items are in memory only. The processor does not say: it may have become volatile, or durable, since.
    pub(super) fn is_in_memory(&self) -> bool {
        self.batch.token == IN_MEMORY
    }
}

/// What came of a batch, to be written.
pub(super) struct Outcome {
    /// In the order of the items.
    pub(super) ends: Vec<(ItemId, ItemEnd)>,
    pub(super) effects: Effects,
    pub(super) version: Option<VersionId>,
    /// Why its processor is broken, when this batch has found that out.
    pub(super) broken: Option<Failure>,
    /// Milliseconds that the first run took, when it was of the whole batch and ended.
    pub(super) elapsed_ms: Option<u64>,
    /// When items that were not named are due again.
    pub(super) again_ms: i64,
    /// How the batch goes on when the database refuses its effects.
    pub(super) next: Option<Next>,
    /// Room promised to what the batch asked for.
    #[expect(dead_code, reason = "held, never read")]
    pub(super) ports: Vec<Arc<AttemptPort>>,
}

/// What the database refuses of a batch, and how the batch goes on.
pub(super) struct Refused {
    pub(super) effects: Effects,
    pub(super) next: Next,
}

/// How a batch goes on whose effects the database refuses.
pub(super) enum Next {
    /// They are those of a canary: the current version works it.
    Current,
    /// The parts are found whose effects are refused.
    Sift(Box<Progress>),
}

impl Outcome {
    /// Everything waits as before.
    pub(super) fn nothing(again_ms: i64) -> Outcome {
        Outcome {
            ends: Vec::new(),
            effects: Effects::default(),
            version: None,
            broken: None,
            elapsed_ms: None,
            again_ms,
            next: None,
            ports: Vec::new(),
        }
    }
}

/// How often the store has failed at one thing: each wait is longer than the one before.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    pub(super) async fn wait(&mut self) {
        let backoff = BACKOFF.0.saturating_mul(2u32.saturating_pow(self.0));
        self.0 += 1;
        tokio::time::sleep(backoff.min(BACKOFF.1)).await;
    }
}

/// Works a batch and writes what came of it. `slot` is its room on the worker, which a long run gives back.
pub(crate) async fn run(shared: &Arc<Shared>, job: BatchJob, slot: &mut Option<OwnedSemaphorePermit>) {
    let (mut job, mut refused) = (job, None);
    loop {
        let outcome = work(shared, &job, refused, slot).await;
        shared.points.pass(Point::BatchWorked);
        let Some((back, what)) = finish(shared, job, outcome).await else { return };
        (job, refused) = (back, Some(what));
    }
}

/// Gives a batch back that was not begun.
pub(crate) async fn hand_back(shared: &Arc<Shared>, job: BatchJob) {
    let now_ms = shared.clock.now_ms();
    let _over = finish(shared, job, Outcome::nothing(now_ms)).await;
}

/// Gives batches back that were not begun, for so long at most.
pub(crate) async fn hand_back_all(shared: &Arc<Shared>, jobs: Vec<BatchJob>, limit: Duration) {
    let all = futures::future::join_all(jobs.into_iter().map(|job| hand_back(shared, job)));
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!("batches could not be given back in time; their leases will end");
    }
}

/// Keeps a batch's items as rows: what the host's own processors do.
pub(crate) async fn keep(shared: &Arc<Shared>, job: BatchJob) {
    let ends = job.batch.items.iter().map(|item| (item.id, ItemEnd::Done)).collect();
    shared.points.pass(Point::BatchWorked);
    let _over = finish(shared, job, Outcome { ends, ..Outcome::nothing(0) }).await;
}

async fn work(
    shared: &Arc<Shared>,
    job: &BatchJob,
    refused: Option<Refused>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Outcome {
    let now_ms = shared.clock.now_ms();
    let batch = &job.batch;
    if batch.crashes > 0 && verdict(batch.crashes) == Verdict::Quarantine {
        let message = "the host died three times while this batch ran, the last time with nothing beside it";
        let dead = |item: &Item| (item.id, ItemEnd::Dead(Failure::new(Code::Quarantined, message)));
        return Outcome { ends: batch.items.iter().map(dead).collect(), ..Outcome::nothing(now_ms) };
    }
    let now = shared.batches.processors.of(job.entry.row.id);
    if now.is_some_and(|entry| entry.row.stopped.is_some()) {
        // It was found to be broken, or stopped, while the batch was on its way.
        return Outcome::nothing(now_ms);
    }
    let Some(loaded) = loaded(shared, &job.entry) else {
        tracing::warn!(processor = %job.entry.row.name, "a batch waits for its plugin, which is not there");
        return Outcome::nothing(now_ms.saturating_add(ABSENT_MS));
    };
    let Some(tenant) = shared.tenant(batch.group.tenant) else { return Outcome::nothing(now_ms) };
    let id = TaskId(batch.id.0);
    let entry = shared.running.insert_batch(batch.group.tenant, id, batch.token);
    if job.tenure.is_lost() {
        shared.running.remove(id, batch.token);
        return Outcome::nothing(now_ms);
    }
    let noted = shared.noted(id, batch.token);
    let on = On { shared, job, policy: tenant, entry: &entry };
    let outcome = runs::run(&on, &loaded, refused, slot).await;
    drop(noted);
    shared.running.remove(id, batch.token);
    outcome
}

/// The version that works a processor's batches now, if it can.
fn loaded(shared: &Shared, entry: &Entry) -> Option<Arc<Loaded>> {
    let MadeBy::Plugin { name, .. } = &entry.made_by else { return None };
    shared.catalog.loaded(entry.row.tenant, name)
}

/// Writes what came of a batch, and tells whom it concerns; or says how it goes on, because its effects are refused.
async fn finish(
    shared: &Arc<Shared>,
    mut job: BatchJob,
    mut outcome: Outcome,
) -> Option<(BatchJob, Refused)> {
    let group = job.batch.group.clone();
    if let Some(failure) = outcome.broken.take_if(|_| !job.told_broken) {
        stop(shared, &job.entry, outcome.version, failure).await;
        job.told_broken = true;
    }
    let again_ms = if job.is_in_memory() {
        put_back(shared, &mut job, &outcome).await
    } else {
        match write(shared, &job, &mut outcome).await {
            Written::Over(again_ms) => again_ms,
            Written::Refused(refused) => return Some((job, refused)),
        }
    };
    let items = job.batch.items.len() as u64;
    let worked = outcome.elapsed_ms.map(|elapsed_ms| (items, elapsed_ms));
    let told_broken = job.told_broken;
    drop((job, outcome));
    shared.batches.tell(Event::Ended(Ended { group, again_ms, worked, told_broken })).await;
    None
}

/// Stops a broken processor for all hosts, and says so.
async fn stop(shared: &Shared, entry: &Entry, version: Option<VersionId>, failure: Failure) {
    let row = &entry.row;
    tracing::error!(
        processor = %row.name,
        error_kind = %failure.code,
        error = %failure.message,
        "a processor is broken: it is stopped, and its items are kept"
    );
    Counters::add(&shared.batches.counters.stopped, 1);
    let stopped = Stopped { at_ms: shared.clock.now_ms(), version, failure };
    let mut tries = Tries::default();
    while let Err(error) =
        shared.batches.store.stop_processor(row.tenant, row.id, Some(stopped.clone())).await
    {
        tracing::warn!(error = %error, "a broken processor could not be stopped for other hosts");
        if error.kind() == StoreErrorKind::Refused || shared.is_stopping() {
            break;
        }
        tries.wait().await;
    }
    super::refresh(shared).await;
    shared.signals.tell(Signal { items: true, ..Signal::default() });
}

/// What came of writing the end of a batch.
enum Written {
    /// It is over here; when the first of its items that wait is due.
    Over(Option<i64>),
    /// Its effects are refused, and there is a way to go on.
    Refused(Refused),
}

/// Writes the end of a batch, and takes what it writes from the outcome.
async fn write(shared: &Shared, job: &BatchJob, outcome: &mut Outcome) -> Written {
    // What an earlier holder may have worked stays one batch, so that whoever takes it over hands it over under the same
    // id; and what is another's already is not ours to change.
    let goes_on = shared.is_stopping() && outcome.ends.is_empty() && job.batch.token > FIRST_TOKEN;
    if goes_on || job.tenure.is_lost() {
        return Written::Over(None);
    }
    let mut settlement = BatchSettlement {
        id: job.batch.id,
        tenant: job.batch.group.tenant,
        token: job.batch.token,
        ends: std::mem::take(&mut outcome.ends),
        keep_rows: job.entry.made_by == MadeBy::Host,
        effects: std::mem::take(&mut outcome.effects),
        version: outcome.version,
    };
    let mut tries = Tries::default();
    loop {
        let now_ms = shared.clock.now_ms();
        match shared.batches.store.settle_batches(job.tenure.holder, vec![settlement.clone()], now_ms).await {
            Ok(answers) if answers.first() == Some(&Settled::Stored) => {
                tell_done(job, &settlement);
                shared.points.pass(Point::BatchSettled);
                return Written::Over(noted(shared, job, &settlement, outcome.again_ms).await);
            }
            Ok(_) => {
                Counters::add(&shared.batches.counters.stale, 1);
                tracing::debug!(batch = %job.batch.id, "a stale lease changed nothing");
                return Written::Over(None);
            }
            Err(error) if error.kind() == StoreErrorKind::Refused && !settlement.effects.is_empty() => {
                tracing::error!(error = %error, "the database refuses the end of a batch");
                if let Some(next) = outcome.next.take() {
                    return Written::Refused(Refused { effects: settlement.effects, next });
                }
                refuse(&mut settlement);
            }
            Err(error) => {
                tracing::warn!(error = %error, "the end of a batch could not be stored");
                if shared.is_stopping() {
                    // The lease ends, and the batch is taken over.
                    return Written::Over(None);
                }
                tries.wait().await;
            }
        }
    }
}

/// Says that a batch is over and which of its items are done with, so that a test sees whether one is handed over again.
fn tell_done(job: &BatchJob, one: &BatchSettlement) {
    if tracing::enabled!(target: TRACE, tracing::Level::TRACE) {
        let done = one.ends.iter().filter(|(_, end)| *end == ItemEnd::Done);
        let ids: Vec<String> = done.map(|(id, _)| id.to_string()).collect();
        tracing::trace!(target: TRACE, batch = %job.batch.id, ids = ids.join(","), "items are done with");
    }
}

/// Says which items are handed over.
pub(super) fn tell_handed_over(batch: &LeasedBatch) {
    if tracing::enabled!(target: TRACE, tracing::Level::TRACE) {
        let ids: Vec<String> = batch.items.iter().map(|item| item.id.to_string()).collect();
        tracing::trace!(target: TRACE, batch = %batch.id, ids = ids.join(","), "items are handed over");
    }
}

/// What is refused together, though it was taken part by part, is nobody's fault alone: everything that would be done
/// becomes a dead letter.
fn refuse(settlement: &mut BatchSettlement) {
    settlement.effects = Effects::default();
    for (_, end) in &mut settlement.ends {
        if *end == ItemEnd::Done {
            *end =
                ItemEnd::Dead(Failure::new(Code::Internal, "the database refused what the batch asked for"));
        }
    }
}

/// Counts what was written, and tells of items that were asked for.
async fn noted(shared: &Shared, job: &BatchJob, one: &BatchSettlement, again_ms: i64) -> Option<i64> {
    let tenant = job.batch.group.tenant;
    let first = count(shared, &one.ends);
    shared.batches.quota.added(tenant, quota::sum(&one.effects.items));
    shared.batches.quota.left(tenant, gone(&job.batch, &one.ends));
    tell_added(shared, tenant, &one.effects).await;
    let unnamed = (one.ends.len() < job.batch.items.len()).then_some(again_ms);
    first.into_iter().chain(unnamed).min()
}

/// What has left for good by these ends.
fn gone(batch: &LeasedBatch, ends: &[(ItemId, ItemEnd)]) -> Waiting {
    let mut waiting = Waiting::default();
    for (item, end) in ended(&batch.items, ends) {
        if matches!(end, Some(ItemEnd::Done | ItemEnd::Dead(_))) {
            waiting.items += 1;
            waiting.bytes += size(&batch.group.key, &item.payload);
        }
    }
    waiting
}

/// Each item with its end, if it has one; ends are in the order of the items.
fn ended<'a>(
    items: &'a [Item],
    ends: &'a [(ItemId, ItemEnd)],
) -> impl Iterator<Item = (&'a Item, Option<&'a ItemEnd>)> {
    let mut ends = ends.iter().peekable();
    items.iter().map(move |item| (item, ends.next_if(|(id, _)| *id == item.id).map(|(_, end)| end)))
}

/// Counts ends; when the first item that is tried again is due.
fn count(shared: &Shared, ends: &[(ItemId, ItemEnd)]) -> Option<i64> {
    let counters = &shared.batches.counters;
    let mut first_ms: Option<i64> = None;
    for (_, end) in ends {
        match end {
            ItemEnd::Done => Counters::add(&counters.done, 1),
            ItemEnd::Dead(_) => Counters::add(&counters.dead, 1),
            ItemEnd::Retry { due_ms } => {
                Counters::add(&counters.retried, 1);
                first_ms = Some(first_ms.map_or(*due_ms, |first_ms| first_ms.min(*due_ms)));
            }
        }
    }
    first_ms
}

/// Tells of the items that effects added.
pub(crate) async fn tell_added(shared: &Shared, tenant: keiko_core::TenantId, effects: &Effects) {
    let mut groups: std::collections::BTreeMap<Group, (u64, u64)> = std::collections::BTreeMap::new();
    for item in &effects.items {
        let group = Group { tenant, processor: item.processor, key: item.key.clone() };
        let sum = groups.entry(group).or_default();
        *sum = (sum.0 + 1, sum.1 + item.size());
    }
    Counters::add(&shared.batches.counters.added, effects.items.len() as u64);
    for (group, (items, bytes)) in groups {
        shared.batches.tell(Event::Added { group, items, bytes }).await;
    }
}

/// The same for items that are in memory only: those that wait again are put back, those that cannot be worked are
/// dropped and counted.
async fn put_back(shared: &Shared, job: &mut BatchJob, outcome: &Outcome) -> Option<i64> {
    let again = volatile_again(shared, job, outcome);
    if !outcome.effects.items.is_empty() {
        add_effects(shared, job, outcome).await;
    }
    again
}

fn volatile_again(shared: &Shared, job: &mut BatchJob, outcome: &Outcome) -> Option<i64> {
    let first = count(shared, &outcome.ends);
    let mut unnamed = None;
    // What waits again goes on with the memory that it has, so that no other item takes its room.
    for ((item, end), held) in ended(&job.batch.items, &outcome.ends).zip(std::mem::take(&mut job.held)) {
        let due_ms = match end {
            Some(ItemEnd::Retry { due_ms }) => *due_ms,
            Some(ItemEnd::Done) => continue,
            Some(ItemEnd::Dead(_)) => {
                Counters::add(&shared.batches.counters.dropped, 1);
                continue;
            }
            None => outcome.again_ms,
        };
        unnamed = Some(unnamed.map_or(due_ms, |unnamed: i64| unnamed.min(due_ms)));
        let item = Item { attempts: item.attempts + 1, ..item.clone() };
        shared.batches.volatile.add(&job.batch.group, item, due_ms, held);
    }
    first.into_iter().chain(unnamed).min()
}

/// Writes what a batch without rows asked for: there is no end to write it with. What cannot be stored until the host stops is
/// lost, and counted.
async fn add_effects(shared: &Shared, job: &BatchJob, outcome: &Outcome) {
    let tenant = job.batch.group.tenant;
    let items = outcome.effects.items.clone();
    let count = items.len() as i64;
    let add = keiko_core::batch::Add { tenant, items, key: None, items_max: u64::MAX, bytes_max: u64::MAX };
    let mut tries = Tries::default();
    loop {
        match shared.batches.store.add(vec![add.clone()], shared.clock.now_ms()).await {
            Ok(_) => {
                shared.batches.quota.added(tenant, quota::sum(&outcome.effects.items));
                return tell_added(shared, tenant, &outcome.effects).await;
            }
            Err(error) if error.kind() == StoreErrorKind::Refused || shared.is_stopping() => {
                tracing::warn!(error = %error, items = count, "what a volatile batch asked for was lost");
                return Counters::add(&shared.batches.counters.dropped, count.unsigned_abs());
            }
            Err(error) => {
                tracing::warn!(error = %error, "what a volatile batch asked for could not be stored");
                tries.wait().await;
            }
        }
    }
}
