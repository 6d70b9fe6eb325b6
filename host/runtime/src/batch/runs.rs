//! The runs of one batch, one after the other: on the version that is current, or first on its canary.
//!
//! A batch tries a canary as a whole and once: when nobody has worked it, and none of its items was handed over before. When the canary
//! is done with every item, that is what came of the batch. Otherwise the current version works it as if nothing had been tried:
//! of the run on the canary nothing is kept, neither effects nor log nor what it spent; no item is charged for it, no part of the batch
//! is halved because of it, and it says nothing of the processor.
//!
//! Where the database refuses what the runs asked for, the store is asked part by part ([`Runs::sift`]): a part whose
//! effects it does not take is halved as if it had failed. The parts that it takes are not run again.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use keiko_core::TaskId;
use keiko_core::admission::budget;
use keiko_core::batch::ItemEnd;
use keiko_core::batch::halve::{Halving, Part};
use keiko_core::batch::work::{Ran, Work, Worked};
use keiko_core::canary::{Seen, Unit, compared_of_batch, seen_of_batch};
use keiko_core::code::Code;
use keiko_core::effect::{Effects, Extent};
use keiko_core::log::LogBuffer;
use keiko_core::manifest::{ProcessorSection, Random};
use keiko_core::outcome::{Failure, Meter};
use keiko_core::policy::{BudgetRequest, Capability, Grants};
use keiko_core::port::{Attempt, AttemptFacts, BatchOutcome, BatchReport, BatchRun, HostPort};
use keiko_core::task::{Lineage, Payload};
use keiko_core::usage::Spent;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::job::{BatchJob, Next, Outcome, Refused, Tries};
use super::promise::Promised;
use crate::attempt::random;
use crate::canary::{Trial, Turn};
use crate::catalog::Loaded;
use crate::long::{self, Report};
use crate::port::AttemptPort;
use crate::running;
use crate::shared::{Counters, Shared, TenantEntry};

/// A batch where it is worked.
pub(super) struct On<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) job: &'a BatchJob,
    pub(super) policy: &'a Arc<TenantEntry>,
    pub(super) entry: &'a Arc<running::Entry>,
}

/// Works a batch to its end, or goes on with one whose effects the database refuses.
pub(super) async fn run(
    on: &On<'_>,
    loaded: &Arc<Loaded>,
    refused: Option<Refused>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Outcome {
    let Some(Refused { effects, next }) = refused else { return anew(on, loaded, slot).await };
    match next {
        Next::Current => on.version(loaded).all(slot, Look::Away).await,
        Next::Sift(progress) => {
            let loaded = Arc::clone(&progress.loaded);
            on.version(&loaded).sift(*progress, effects, slot).await
        }
    }
}

/// What the runs of a batch came to on one version.
pub(super) struct Progress {
    work: Work,
    /// The parts that were answered, in order, and how much each asked for.
    asked: Vec<(Part, Extent)>,
    loaded: Arc<Loaded>,
    /// Milliseconds that the run of the whole batch took, when it ended.
    elapsed_ms: Option<u64>,
    /// Room promised to what was asked for.
    ports: Vec<Arc<AttemptPort>>,
}

/// Works a batch from its start: on the current version, or first on its canary when it is the batch's turn to try that.
async fn anew(on: &On<'_>, loaded: &Arc<Loaded>, slot: &mut Option<OwnedSemaphorePermit>) -> Outcome {
    let batch = &on.job.batch;
    let is_first = batch.crashes == 0 && batch.items.iter().all(|item| item.attempts == 0);
    let name = &on.job.entry.row.name;
    let has_it = |loaded: &Arc<Loaded>| loaded.plugin.current.manifest.processor(name).is_some();
    let trying = loaded.trying().filter(|trying| is_first && has_it(&trying.loaded));
    let Some(trying) = trying else { return on.version(loaded).all(slot, Look::Away).await };
    let trial = Trial::of(&trying, Unit::Batch);
    let is_counted = match trial.turn(on.shared, TaskId(batch.id.0)).await {
        Turn::Closed => return on.version(loaded).all(slot, Look::Away).await,
        Turn::Current => return on.version(loaded).all(slot, Look::Note(trial)).await,
        Turn::Canary { is_counted } => is_counted,
    };
    let (seen, outcome) = match on.version(&trying.loaded).once(slot).await {
        Tried::Not(ran) => {
            Counters::add(&on.shared.counters.canary_failures, 1);
            let look = if is_counted { Look::Compare(trial, ran) } else { Look::Away };
            return on.version(loaded).all(slot, look).await;
        }
        Tried::Done(outcome) => (Some(Seen::Well), *outcome),
        Tried::Stopped => (None, Outcome::nothing(on.shared.clock.now_ms())),
    };
    if is_counted {
        trial.tell(on.shared, seen, None).await;
    }
    outcome
}

/// What is told of a batch's first run on the current version, which is of the whole batch.
enum Look {
    /// Nothing.
    Away,
    /// What it came to there.
    Note(Trial),
    /// What it says of the canary, on which that came of the batch.
    Compare(Trial, Ran),
}

impl Look {
    /// Tells at once what came of the run, before the batch is halved, which may take longer than a trial waits; `None` when it was stopped.
    async fn at(self, shared: &Arc<Shared>, items: usize, current: Option<&Ran>) {
        match self {
            Look::Away => {}
            Look::Note(trial) => trial.note(shared, current.and_then(|ran| seen_of_batch(items, ran))),
            Look::Compare(trial, canary) => {
                let seen = current.and_then(|ran| compared_of_batch(items, &canary, ran));
                trial.tell(shared, seen, canary.failure(items).as_ref()).await;
            }
        }
    }
}

/// What came of a run on the canary.
enum Tried {
    /// It was done with every item.
    Done(Box<Outcome>),
    /// It was not.
    Not(Ran),
    /// The host stopped it, or has stopped.
    Stopped,
}

impl<'a> On<'a> {
    /// The runs on one version.
    fn version(&self, loaded: &'a Arc<Loaded>) -> Runs<'a> {
        let On { shared, job, policy, entry } = *self;
        let (tenant, id) = (job.batch.group.tenant, TaskId(job.batch.id.0));
        let port = AttemptPort {
            shared: Arc::clone(shared),
            entry: Arc::clone(entry),
            tenant,
            policy: Arc::clone(policy),
            loaded: Arc::clone(loaded),
            cache: OnceLock::new(),
            metrics: OnceLock::new(),
            lineage: Lineage::root(id),
            children: Mutex::new(0),
            promised: Promised::new(shared, tenant),
        };
        Runs { shared, job, loaded, entry, port: Arc::new(port) }
    }
}

/// Everything the runs of one batch on one version have in common.
struct Runs<'a> {
    shared: &'a Arc<Shared>,
    job: &'a BatchJob,
    loaded: &'a Arc<Loaded>,
    entry: &'a Arc<running::Entry>,
    port: Arc<AttemptPort>,
}

impl Runs<'_> {
    /// Works the batch to its end; `look` is shown what came of the first run.
    async fn all(self, slot: &mut Option<OwnedSemaphorePermit>, look: Look) -> Outcome {
        let batch = &self.job.batch;
        let attempts = batch.items.iter().map(|item| item.attempts).collect();
        let work = Work::new(attempts, self.job.entry.settings.attempts_max, self.job.health.clone());
        let (loaded, ports) = (Arc::clone(self.loaded), vec![Arc::clone(&self.port)]);
        let mut progress = Progress { work, asked: Vec::new(), loaded, elapsed_ms: None, ports };
        let mut effects = Effects::default();
        let mut look = Some(look);
        while let Some(part) = progress.work.next_part().cloned() {
            let began = Instant::now();
            let ended = self.ran(&part, slot).await;
            if let Some(look) = look.take() {
                look.at(self.shared, batch.items.len(), ended.as_ref().map(|(ran, _)| ran)).await;
            }
            // The host stops, or lost its lease: what has ended is written, if it still may be.
            let Some((ran, asked)) = ended else { break };
            if part.len() == batch.items.len() {
                let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                progress.elapsed_ms = matches!(ran, Ran::Answered(_)).then_some(elapsed_ms);
            }
            if let Some(asked) = asked {
                progress.asked.push((part, asked.extent()));
                effects.append(asked);
            }
            progress.work.ran(ran, self.shared.clock.now_ms(), random());
        }
        let outcome = self.outcome(&progress, effects);
        Outcome { next: Some(Next::Sift(Box::new(progress))), ..outcome }
    }

    /// Goes on with a batch whose effects the database refuses together: runs the parts again in halves whose effects it
    /// refuses, and keeps the others. When the host stops meanwhile, nothing came of the batch.
    async fn sift(
        self,
        mut progress: Progress,
        mut refused: Effects,
        slot: &mut Option<OwnedSemaphorePermit>,
    ) -> Outcome {
        let mut taken = Effects::default();
        progress.ports.push(Arc::clone(&self.port));
        for (part, extent) in std::mem::take(&mut progress.asked) {
            let mut answered = Some((part, refused.take_first(extent)));
            loop {
                if let Some((part, asked)) = answered.take() {
                    let mut all = taken.clone();
                    all.append(asked);
                    match self.accepts(&all).await {
                        Some(true) => taken = all,
                        Some(false) => progress.work.refused(&part),
                        None => return self.nothing(),
                    }
                }
                let Some(part) = progress.work.next_part().cloned() else { break };
                let Some((ran, asked)) = self.ran(&part, slot).await else { return self.nothing() };
                answered = asked.map(|asked| (part, asked));
                progress.work.ran(ran, self.shared.clock.now_ms(), random());
            }
        }
        self.outcome(&progress, taken)
    }

    /// Whether the database takes these effects; `None` when the host stops before it says so.
    async fn accepts(&self, effects: &Effects) -> Option<bool> {
        let (tenant, mut tries) = (self.job.batch.group.tenant, Tries::default());
        loop {
            let now_ms = self.shared.clock.now_ms();
            match self.shared.batches.store.accepts(tenant, effects.clone(), now_ms).await {
                Ok(accepts) => return Some(accepts),
                Err(error) => tracing::warn!(error = %error, "the effects of a batch could not be looked at"),
            }
            if self.shared.is_stopping() || self.job.tenure.is_lost() {
                return None;
            }
            tries.wait().await;
        }
    }

    /// What came of the batch, with these effects.
    fn outcome(&self, progress: &Progress, effects: Effects) -> Outcome {
        let Worked { ends, broken, .. } = progress.work.worked();
        let named = self.job.batch.items.iter().zip(ends).filter_map(|(item, end)| Some((item.id, end?)));
        let (elapsed_ms, ports) = (progress.elapsed_ms, progress.ports.clone());
        Outcome { ends: named.collect(), effects, broken, elapsed_ms, ports, ..self.nothing() }
    }

    /// One run and what came of it, with its effects when it answered for every item; `None` when it was stopped.
    async fn ran(
        &self,
        part: &Part,
        slot: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<(Ran, Option<Effects>)> {
        let report = self.part(part, slot).await?;
        self.shared.meters.add(self.job.batch.group.tenant, Spent::of_batch(&report));
        let (ran, asked) = ended(report)?;
        let is_whole = matches!(&ran, Ran::Answered(outcomes) if outcomes.len() == part.len());
        Some((ran, is_whole.then_some(asked)))
    }

    /// Runs the whole batch once, on a canary. How long that took says nothing of the current version.
    async fn once(self, slot: &mut Option<OwnedSemaphorePermit>) -> Tried {
        let batch = &self.job.batch;
        let Some(whole) = Halving::new(batch.items.len()).next_part().cloned() else { return Tried::Stopped };
        let Some(report) = self.part(&whole, slot).await else { return Tried::Stopped };
        let spent = Spent::of_batch(&report);
        let Some((ran, effects)) = ended(report) else { return Tried::Stopped };
        if seen_of_batch(whole.len(), &ran) != Some(Seen::Well) {
            return Tried::Not(ran);
        }
        self.shared.meters.add(batch.group.tenant, spent);
        let ends = batch.items.iter().map(|item| (item.id, ItemEnd::Done)).collect();
        let next = Some(Next::Current);
        Tried::Done(Box::new(Outcome { ends, effects, next, ..self.nothing() }))
    }

    /// Nothing came of it, on this version; what it was promised is held.
    fn nothing(&self) -> Outcome {
        let (version, ports) = (Some(self.loaded.plugin.current.id), vec![Arc::clone(&self.port)]);
        Outcome { version, ports, ..Outcome::nothing(self.shared.clock.now_ms()) }
    }

    /// One run; `None` when the host has stopped before its guest did.
    async fn part(&self, part: &Part, slot: &mut Option<OwnedSemaphorePermit>) -> Option<BatchReport> {
        Counters::add(&self.shared.batches.counters.runs, 1);
        let attempt = self.attempt();
        let pace = self.loaded.pace(&attempt.kind);
        let (tenant, short) = (self.job.batch.group.tenant, self.shared.options.short);
        let guest = self.guarded(part, attempt);
        match self.shared.long.drive(tenant, pace, short, guest, slot).await? {
            Report::Batch(report) => Some(report),
            Report::Attempt(_) => None,
        }
    }

    /// The runner promises never to panic; a worker with other tenants' attempts does not rely on it.
    fn guarded(&self, part: &Part, attempt: Attempt) -> long::Run {
        let batch = &self.job.batch;
        let run = BatchRun {
            id: part.id(batch.id),
            processor: self.job.entry.row.name.clone(),
            key: batch.group.key.clone(),
            items: batch.items[part.start..part.end].to_vec(),
        };
        let port: Arc<dyn HostPort> = Arc::clone(&self.port) as Arc<dyn HostPort>;
        let (runner, stop) = (Arc::clone(&self.shared.runner), self.entry.stop.clone());
        let id = batch.id;
        let guest = async move {
            let guest = AssertUnwindSafe(runner.process(attempt, run, port, stop)).catch_unwind();
            Report::Batch(guest.await.unwrap_or_else(|_| {
                tracing::error!(batch = %id, "the engine panicked in a batch");
                let failure = Failure::new(Code::Internal, "the host failed while it ran this batch");
                let (meter, effects, log) = (Meter::default(), Effects::default(), LogBuffer::default());
                BatchReport { outcome: BatchOutcome::Failed(failure), meter, effects, log }
            }))
        };
        guest.boxed()
    }

    fn attempt(&self) -> Attempt {
        let (batch, entry) = (&self.job.batch, &self.job.entry);
        let plugin = &self.loaded.plugin;
        let tenant = &self.port.policy;
        let section = plugin.current.manifest.processor(&entry.row.name);
        let asked = section.map(ProcessorSection::budget).unwrap_or_default();
        // A batch is nobody's parent; and one in memory only has no end to store a status with.
        let is_in_memory = self.job.is_in_memory();
        let grants = tenant.grants.iter().filter(|capability| match capability {
            Capability::Tasks => false,
            Capability::Agents => !is_in_memory,
            _ => true,
        });
        let id = TaskId(batch.id.0);
        let kind = entry.row.name.as_str().parse();
        Attempt {
            facts: AttemptFacts {
                tenant: tenant.name.clone(),
                task: id,
                lineage: Lineage::root(id),
                number: 1,
                attempts_max: 1,
                trace: None,
            },
            digest: plugin.current.digest,
            kind: kind.expect("processors and kinds have names of the same letters"),
            input: Payload::json(""),
            budget: budget(&tenant.policy, &asked, &BudgetRequest::default()),
            grants: Arc::new(Grants::new(grants)),
            settings: tenant.settings.get(&plugin.name).cloned().unwrap_or_default(),
            command: None,
            keep: plugin.current.keep(),
            random: Random::Secure,
        }
    }
}

/// What a run came to, and what it asked for; `None` when it was stopped.
fn ended(report: BatchReport) -> Option<(Ran, Effects)> {
    match report.outcome {
        BatchOutcome::Answered(outcomes) => Some((Ran::Answered(outcomes), report.effects)),
        BatchOutcome::Failed(failure) => Some((Ran::Failed(failure), Effects::default())),
        BatchOutcome::Stopped(_) => None,
    }
}
