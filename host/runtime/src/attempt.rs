//! One attempt from a leased task to what the settler is told.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::admission::{budget, tree_budget};
use keiko_core::catalog::Plugin;
use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::join;
use keiko_core::limit::{RUN_WALL_MS_MAX, SetBy};
use keiko_core::outcome::{AttemptReport, Failure, Outcome};
use keiko_core::policy::{Budget, BudgetRequest, Limit};
use keiko_core::port::{Attempt, AttemptFacts, HostPort, StoreError};
use keiko_core::retry::{History, RetryPolicy, decide};
use keiko_core::task::{AttemptRecord, Lineage, Payload, Settlement, Transition};
use keiko_core::time_out::Ends;
use keiko_core::tree::{Charge, Spending, Tree};
use keiko_core::{TaskId, TenantId};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::batch::promise::Promised;
use crate::canary::{self, Turned};
use crate::catalog::Handler;
use crate::joins;
use crate::long::{self, Report};
use crate::memo::Memo;
use crate::port::AttemptPort;
use crate::running::Entry;
use crate::settler::Ended;
use crate::shared::{Counters, Leased, Shared, TenantEntry};

/// Runs the attempt of a job. `None` when its end is no longer this host's to tell. `slot` is its room on the worker,
/// which a long attempt gives back.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    mut job: Box<Leased>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Option<Ended> {
    let is_begun = job.refused.is_some();
    if !is_begun && shared.pauses.hold(job.task.tenant, job.task.kind) {
        // It was leased before the pause.
        Counters::add(&shared.counters.handed_back, 1);
        return Some(Ended::handed_back(job));
    }
    let (started_ms, number) = (shared.clock.now_ms(), job.task.attempts + 1);
    let entry = match begin(shared, &mut job, number).await {
        Ok(entry) => entry,
        Err(is_ours) => return is_ours.then(|| Ended::handed_back(job)),
    };
    if let Err(error) = shared.catalog.meet(job.task.kind).await {
        tracing::warn!(error = %error, "the plugins could not be read again");
    }
    let Turned { ran, failed, unsettled } = canary::run(shared, &job, &entry, slot).await;
    let Ran { report, memoized_from, ran, attempts_max } = ran;
    let (port, handler) = ran.unzip();
    shared.running.remove(job.task.id, job.task.token);
    shared.last_words(job.task.id);
    // Without a report the host has stopped before its guest did, and the lease ends by itself.
    let report = report?;
    let used = Spending { fuel: report.meter.fuel_used, host_calls: report.meter.host_calls };
    if let Some(tree) = &job.tree {
        tree.spent(used);
    }
    let (now_ms, Ends { end_by_ms, .. }) = (shared.clock.now_ms(), job.task.ends);
    let history = History { attempt: number, attempts_max, deadlines: job.task.deadlines, end_by_ms };
    let manifest = handler.as_ref().map(Handler::budget).unwrap_or_default();
    let policy = RetryPolicy::of(&manifest.retry, &job.task.budget.retry);
    let outcome = in_time(&job, report.outcome, now_ms);
    // Drawing costs a call of the system, and only waits are drawn.
    let drawn = if matches!(outcome, Outcome::Completed(_)) { 0.0 } else { (shared.options.random)() };
    let transition = decide(history, &policy, outcome, now_ms, drawn)?;
    let version = handler.as_ref().map(|handler| handler.loaded.plugin.current.id);
    let asked = u32::try_from(report.effects.len()).unwrap_or(u32::MAX);
    let keeps_effects = matches!(transition, Transition::Complete(_));
    let effects = if keeps_effects { report.effects } else { Effects::default() };
    let charge = charge(&job, port.as_deref(), &manifest, &effects, used);
    let settlement = Box::new(Settlement {
        id: job.task.id,
        tenant: job.task.tenant,
        token: job.task.token,
        transition,
        attempt: AttemptRecord {
            number,
            started_ms,
            meter: report.meter,
            taint: report.taint,
            effects: asked,
            version,
            memoized_from,
            canary: failed,
        },
        effects,
        log: report.log.encode(),
        charge,
        group: job.task.group,
        segment: job.task.segment,
    });
    if unsettled.is_none() {
        // Nobody asks for it any more.
        job.task.input.bytes = Bytes::new();
    }
    Some(Ended { job, settlement, ran: handler.map(|handler| handler.loaded), port, unsettled })
}

/// Notes that a task runs here, and gives it what it joins. When that cannot be: whether the task is still this host's.
async fn begin(shared: &Shared, job: &mut Leased, number: u32) -> Result<Arc<Entry>, bool> {
    let (tenant, id, token) = (job.task.tenant, job.task.id, job.task.token);
    let entry = shared.running.insert(tenant, id, token, number);
    if job.tenure.is_lost() {
        shared.running.remove(id, token);
        return Err(false);
    }
    if let Err(error) = take_joined(shared, job).await {
        tracing::warn!(error = %error, "the outcomes that a task joins could not be read");
        shared.running.remove(id, token);
        return Err(true);
    }
    Ok(entry)
}

/// Gives a task that joins others their outcomes.
async fn take_joined(shared: &Shared, job: &mut Leased) -> Result<(), StoreError> {
    if let Some(group) = join::group_of(&job.task.input) {
        job.task.input = joins::input(shared, job.task.tenant, group, job.task.id, &job.task.input).await?;
    }
    Ok(())
}

/// A run of an attempt on one version, and what came of it.
pub(crate) struct Ran {
    /// `None` when the host has stopped before.
    report: Option<AttemptReport>,
    memoized_from: Option<TaskId>,
    /// What it ran with; `None` when it could not begin.
    ran: Option<(Arc<AttemptPort>, Handler)>,
    attempts_max: u32,
}

impl Ran {
    /// How it ended.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.report.as_ref().map(|report| &report.outcome)
    }

    /// Whether it completed, and asks for something to be written with that.
    pub(crate) fn has_effects(&self) -> bool {
        let asks = |report: &AttemptReport| {
            matches!(report.outcome, Outcome::Completed(_)) && !report.effects.is_empty()
        };
        self.report.as_ref().is_some_and(asks)
    }

    /// Whether a guest ran.
    pub(crate) fn has_run(&self) -> bool {
        self.ran.is_some() && self.memoized_from.is_none()
    }
}

/// Runs an attempt with this handler, if there is one.
pub(crate) async fn on(
    shared: &Arc<Shared>,
    job: &Leased,
    wanted: &Wanted<'_>,
    handler: Result<Handler, Failure>,
    entry: &Arc<Entry>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Ran {
    let prepared = handler.and_then(|handler| prepare(shared, wanted, handler, Arc::clone(entry)));
    match prepared {
        Ok(run) => {
            let (report, memoized_from) = report_of(shared, job, &run, slot).await;
            let attempts_max = run.attempt.facts.attempts_max;
            Ran { report, memoized_from, ran: Some((run.port, run.handler)), attempts_max }
        }
        // Without a handler there is nothing to try again with: the attempts of the task do not matter.
        Err(failure) => {
            Ran { report: Some(unstarted(failure)), memoized_from: None, ran: None, attempts_max: 1 }
        }
    }
}

/// What came of an attempt, or what is kept of an equal one, with the task of that.
async fn report_of(
    shared: &Shared,
    job: &Leased,
    run: &Run,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> (Option<AttemptReport>, Option<TaskId>) {
    if let Some(memo) = &run.memo
        && let Some(kept) = memo.find(&shared.cache).await
    {
        Counters::add(&shared.counters.memoized, 1);
        return (Some(AttemptReport::unrun(Outcome::Completed(kept.result))), Some(kept.from));
    }
    let noted = shared.noted(job.task.id, job.task.token);
    let report = run.drive(shared, slot).await;
    drop(noted);
    if let (Some(memo), Some(report)) = (&run.memo, &report) {
        memo.keep(&shared.cache, job.task.id, report);
    }
    (report, None)
}

/// What the attempt is charged to: the tree it is below, or the one it opens.
fn charge(
    job: &Leased,
    port: Option<&AttemptPort>,
    manifest: &BudgetRequest,
    effects: &Effects,
    used: Spending,
) -> Option<Charge> {
    let root = job.task.lineage.root;
    if job.task.lineage.parent.is_some() {
        return Some(Charge { root, used, opens: None });
    }
    let policy = &port.filter(|_| !effects.children.is_empty())?.policy.policy;
    Some(Charge { root, used, opens: Some(tree_budget(policy, manifest, &job.task.budget)) })
}

/// The outcome, or that the whole task's time is over where an attempt's wall clock was cut to it.
fn in_time(job: &Leased, outcome: Outcome, now_ms: i64) -> Outcome {
    match outcome {
        Outcome::Failed(failure) if failure.code == Code::DeadlineExceeded => {
            let over = job.task.ends.over(false, now_ms);
            let own = over.map(|over| over.told(&job.task.budget)).map(|(over, ms)| over.failure(ms));
            Outcome::Failed(own.unwrap_or(failure))
        }
        outcome => outcome,
    }
}

/// What is to be run, for whom, and as what it is known.
pub(crate) struct Wanted<'a> {
    pub(crate) tenant: TenantId,
    pub(crate) id: TaskId,
    pub(crate) lineage: Lineage,
    /// Of the attempt, from 1.
    pub(crate) number: u32,
    pub(crate) input: &'a Payload,
    pub(crate) budget: &'a BudgetRequest,
    pub(crate) trace: Option<&'a str>,
    /// When its time is over.
    pub(crate) ends: Ends,
    /// Whether no attempt of it has begun.
    pub(crate) waits: bool,
    /// Whether it is a task, whose end takes along what the attempt asks to be written.
    pub(crate) is_task: bool,
    /// Its tree, when it is below a root.
    pub(crate) tree: Option<Tree>,
}

pub(crate) fn wanted(job: &Leased) -> Wanted<'_> {
    let task = &job.task;
    Wanted {
        tenant: task.tenant,
        id: task.id,
        lineage: task.lineage,
        number: task.attempts + 1,
        input: &task.input,
        budget: &task.budget,
        trace: task.trace.as_deref(),
        ends: task.ends,
        waits: task.attempts == 0 && task.crashes == 0 && job.refused.is_none(),
        is_task: true,
        tree: job.tree.as_ref().map(|tree| tree.now()),
    }
}

/// Everything one attempt needs, its generation pinned.
pub(crate) struct Run {
    attempt: Attempt,
    port: Arc<AttemptPort>,
    entry: Arc<Entry>,
    handler: Handler,
    /// Where its result is kept, when its kind wants that.
    memo: Option<Memo>,
}

impl Run {
    /// Runs the attempt to its end, here while it is short. `None` when the host has stopped before.
    pub(crate) async fn drive(
        &self,
        shared: &Shared,
        slot: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<AttemptReport> {
        let pace = self.handler.loaded.pace(&self.handler.kind);
        let (tenant, short, guest) = (self.port.tenant, shared.options.short, guarded(shared, self));
        match shared.long.drive(tenant, pace, short, guest, slot).await? {
            Report::Attempt(report) => Some(report),
            Report::Batch(_) => None,
        }
    }

    /// The plugin version that runs.
    pub(crate) fn plugin(&self) -> &Plugin {
        &self.handler.loaded.plugin
    }
}

pub(crate) fn prepare(
    shared: &Arc<Shared>,
    wanted: &Wanted<'_>,
    handler: Handler,
    entry: Arc<Entry>,
) -> Result<Run, Failure> {
    let tenant = shared.tenant(wanted.tenant).ok_or_else(|| {
        Failure::new(Code::NotFound, "the tenant of this task is not in the host's configuration")
    })?;
    let now_ms = shared.clock.now_ms();
    if let Some(over) = wanted.ends.over(wanted.waits, now_ms) {
        let (over, limit_ms) = over.told(wanted.budget);
        return Err(over.failure(limit_ms));
    }
    let mut budget = budget(&tenant.policy, &handler.budget(), wanted.budget);
    // What is left for its tree ends a task or does not; what results depend on are its own limits.
    let limits = budget;
    if let Some(tree) = wanted.tree {
        tree.cut(&mut budget)?;
    }
    if let Some(end_by_ms) = wanted.ends.end_by_ms {
        budget.wall_ms.value = budget.wall_ms.value.min(end_by_ms.saturating_sub(now_ms).max(1) as u64);
    }
    if !wanted.is_task && budget.wall_ms.value > RUN_WALL_MS_MAX {
        budget.wall_ms = Limit { value: RUN_WALL_MS_MAX, set_by: SetBy::Host };
    }
    let plugin = &handler.loaded.plugin;
    let grants = if wanted.is_task { &tenant.grants } else { &tenant.run_grants };
    let mut attempt = Attempt {
        facts: facts(wanted, tenant, &budget),
        digest: plugin.current.digest,
        kind: handler.kind.clone(),
        input: wanted.input.clone(),
        budget,
        grants: Arc::clone(grants),
        settings: tenant.settings.get(&plugin.name).cloned().unwrap_or_default(),
        command: plugin.current.manifest.command(&handler.kind),
        keep: plugin.current.keep(),
        random: plugin.current.manifest.random(&handler.kind),
    };
    // A run that is no task is run because somebody wants it to.
    let owner = tenant.row(wanted.tenant);
    let memo = wanted.is_task.then(|| Memo::of(&owner, plugin, &limits, &mut attempt)).flatten();
    let port = Arc::new(AttemptPort {
        shared: Arc::clone(shared),
        entry: Arc::clone(&entry),
        tenant: wanted.tenant,
        policy: Arc::clone(tenant),
        loaded: Arc::clone(&handler.loaded),
        cache: OnceLock::new(),
        metrics: OnceLock::new(),
        lineage: wanted.lineage,
        children: Mutex::new(0),
        promised: Promised::new(shared, wanted.tenant),
    });
    Ok(Run { attempt, port, entry, handler, memo })
}

fn facts(wanted: &Wanted<'_>, tenant: &TenantEntry, budget: &Budget) -> AttemptFacts {
    let attempts_max = if wanted.is_task { budget.attempts.value } else { 1 };
    AttemptFacts {
        tenant: tenant.name.clone(),
        task: wanted.id,
        lineage: wanted.lineage,
        number: wanted.number,
        attempts_max: u32::try_from(attempts_max).unwrap_or(u32::MAX),
        trace: wanted.trace.map(str::to_owned),
    }
}

/// The runner promises never to panic; a worker with other tenants' attempts does not rely on it.
fn guarded(shared: &Shared, run: &Run) -> long::Run {
    let port: Arc<dyn HostPort> = Arc::clone(&run.port) as Arc<dyn HostPort>;
    let (runner, attempt, stop) = (Arc::clone(&shared.runner), run.attempt.clone(), run.entry.stop.clone());
    let task = attempt.facts.task;
    let guest = async move {
        let guest = AssertUnwindSafe(runner.run(attempt, port, stop)).catch_unwind();
        Report::Attempt(guest.await.unwrap_or_else(|_| {
            tracing::error!(task = %task, "the engine panicked in an attempt");
            unstarted(Failure::new(Code::Internal, "the host failed while it ran this attempt"))
        }))
    };
    guest.boxed()
}

pub(crate) fn unstarted(failure: Failure) -> AttemptReport {
    AttemptReport::unrun(Outcome::Failed(failure))
}

/// Evenly drawn from 0 to 1, for jitter.
pub(crate) fn random() -> f64 {
    // Without randomness there is no jitter, and retries still work.
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / f64::from(u32::MAX)
}
