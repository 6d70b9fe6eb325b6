//! Writes the ends of attempts, many in one transaction, and answers whoever waits after the commit.
//!
//! A transaction costs as much as many ends in it, and its threads take turns from guests. So while more tasks wait here, ends that
//! nobody waits for and that let nothing go on are gathered: for [`GATHER`] at most, or until there are [`GATHER_MAX`] of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::outcome::Failure;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{StoreError, StoreErrorKind};
use keiko_core::task::{
    AttemptRecord, AttemptView, Settled, Settlement, TaskState, TaskSummary, TaskView, Transition,
};
use keiko_core::tree::Spending;
use keiko_core::{GroupId, Holder, TenantId, Token};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::batch::job::tell_added;
use crate::batch::quota;
use crate::canary::{Refused, Unsettled, Verdict};
use crate::catalog::Loaded;
use crate::groups;
use crate::port::AttemptPort;
use crate::queue::Lanes;
use crate::shared::{Counters, Job, Leased, Shared};

/// Ends of one transaction at most.
const GROUP_MAX: usize = 500;
/// How long ends are gathered that nobody waits for, and how many of them are enough.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_MAX: usize = 64;
/// First and longest wait after the store failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// An attempt that ended, which is handed on as often as its job was.
pub(crate) struct Ended {
    /// What was leased, without its input.
    pub(crate) job: Box<Leased>,
    /// What the store is told.
    pub(crate) settlement: Box<Settlement>,
    /// What it ran.
    pub(crate) ran: Option<Arc<Loaded>>,
    /// Kept until the store has answered: it holds the room promised to children.
    pub(crate) port: Option<Arc<AttemptPort>>,
    /// What a canary is told of it once the store has answered.
    pub(crate) unsettled: Option<Unsettled>,
}

impl Ended {
    /// A task that goes back to the queue as if it had never been leased.
    pub(crate) fn handed_back(job: Box<Leased>) -> Ended {
        let settlement = Box::new(Settlement {
            id: job.task.id,
            tenant: job.task.tenant,
            token: job.task.token,
            transition: Transition::HandBack,
            attempt: AttemptRecord {
                number: job.task.attempts,
                started_ms: 0,
                meter: Default::default(),
                taint: Default::default(),
                effects: 0,
                version: None,
                memoized_from: None,
                canary: None,
            },
            effects: Default::default(),
            log: Default::default(),
            charge: None,
            group: job.task.group,
            segment: job.task.segment,
        });
        Ended { job, settlement, ran: None, port: None, unsettled: None }
    }

    /// Whether it may be stored a moment later: nobody here waits for it, and nothing begins with it.
    fn may_wait(&self, shared: &Shared) -> bool {
        let (task, settlement) = (&self.job.task, &self.settlement);
        matches!(settlement.transition, Transition::Complete(_))
            && settlement.effects.is_empty()
            && settlement.charge.is_none()
            && settlement.group.is_none()
            && !task.has_slot
            && !shared.waiters.waits_for(settlement.id)
    }

    /// What the store shows now of a task that completed under its first lease; `None` when it may show more than is known
    /// here.
    fn view(&self, shared: &Shared, now_ms: i64) -> Option<TaskView> {
        let (task, settlement) = (&self.job.task, &self.settlement);
        let Transition::Complete(result) = &settlement.transition else { return None };
        let changes_nothing = settlement.effects.is_empty() && settlement.charge.is_none();
        if !changes_nothing || task.token != Token(1) || !task.priority.is_ordinary() {
            return None;
        }
        let (plugin, kind) = shared.catalog.names(task.kind)?;
        let summary = TaskSummary {
            id: task.id,
            plugin,
            kind,
            state: TaskState::Completed,
            created_ms: task.created_ms,
            run_at_ms: task.place_ms,
            finished_ms: Some(now_ms),
            attempts: settlement.attempt.number,
            crashes: task.crashes,
            code: None,
            lineage: task.lineage,
            agent: task.agent,
            user: task.user,
            priority: task.priority,
        };
        let version = self.ran.as_ref().map(|ran| &ran.plugin.current);
        let attempt = AttemptView {
            record: settlement.attempt.clone(),
            version: version.map(|version| version.name.clone()),
            digest: version.map(|version| version.digest),
            failure: None,
        };
        Some(TaskView {
            summary,
            token: task.token,
            result: Some(result.clone()),
            failure: None,
            attempts: vec![attempt],
            tree: None,
            group: task.group,
            slot_key: None,
            budget: BudgetRequest::default(),
        })
    }
}

/// Settles until the last sender is gone, or until stopped while the store fails.
pub(crate) async fn settle(shared: Arc<Shared>, mut ended: mpsc::Receiver<Ended>, stop: CancellationToken) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        tokio::select! {
            biased;
            got = ended.recv_many(&mut group, GROUP_MAX) => if got == 0 { break },
            // Stopped, and nothing is left in the channel.
            () = stop.cancelled() => break,
        }
        gather(&shared, &mut ended, &mut group, &stop).await;
        let mut by_holder: BTreeMap<Holder, Vec<Ended>> = BTreeMap::new();
        for one in group.drain(..) {
            by_holder.entry(one.job.tenure.holder).or_default().push(one);
        }
        for (holder, ended) in by_holder {
            write(&shared, holder, ended, &stop).await;
        }
    }
}

/// Waits for more ends while those that there are may wait, and more tasks wait for a worker.
async fn gather(
    shared: &Shared,
    ended: &mut mpsc::Receiver<Ended>,
    group: &mut Vec<Ended>,
    stop: &CancellationToken,
) {
    let over = tokio::time::sleep(GATHER);
    tokio::pin!(over);
    let mut seen = 0;
    loop {
        let may_wait = group[seen..].iter().all(|ended| ended.may_wait(shared));
        seen = group.len();
        if !may_wait || seen >= GATHER_MAX || shared.queue.look(Lanes::waiting) == 0 {
            return;
        }
        let got = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = &mut over => return,
            got = ended.recv_many(group, GROUP_MAX - seen) => got,
        };
        if got == 0 {
            return;
        }
    }
}

/// Writes one host's group; a part that the database refuses is halved until the offender stands alone.
async fn write(shared: &Shared, holder: Holder, group: Vec<Ended>, stop: &CancellationToken) {
    let mut parts = vec![group];
    let mut backoff = BACKOFF.0;
    while let Some(mut part) = parts.pop() {
        let settlements = part.iter().map(|ended| Settlement::clone(&ended.settlement)).collect();
        let now_ms = shared.clock.now_ms();
        match shared.tasks.settle(holder, settlements, now_ms).await {
            Ok(answers) => {
                backoff = BACKOFF.0;
                let Told { conflicts, failed, added, verdicts } = answer(shared, part, answers, now_ms);
                groups::failed(shared, failed).await;
                for (tenant, effects) in added {
                    tell_added(shared, tenant, &effects).await;
                }
                for verdict in verdicts {
                    verdict.tell(shared).await;
                }
                if !conflicts.is_empty() {
                    parts.push(conflicts);
                }
            }
            Err(error) if error.kind() == StoreErrorKind::Refused && part.len() > 1 => {
                parts.push(part.split_off(part.len() / 2));
                parts.push(part);
            }
            Err(error) if error.kind() == StoreErrorKind::Refused => {
                parts.extend(refuse(shared, part, &error).await);
            }
            Err(error) => {
                tracing::warn!(error = %error, items = part.len(), "ends of attempts could not be stored");
                parts.push(part);
                backoff = (backoff * 2).min(BACKOFF.1);
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(backoff) => {}
                    // The leases end, and the tasks are rescued: a stop does not wait for a database.
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

/// The one end that the database refuses becomes a failure that it does not, or its task runs again; `None` when it was one already.
async fn refuse(shared: &Shared, part: Vec<Ended>, error: &StoreError) -> Option<Vec<Ended>> {
    tracing::error!(error = %error, "the database refuses the end of an attempt");
    let mut left = Vec::new();
    let mut failed = false;
    for ended in part {
        failed |= matches!(ended.settlement.transition, Transition::Fail(_));
        let (refused, verdict) =
            refused(shared, ended, Failure::new(Code::Internal, "the database refused this task's end"));
        left.extend(refused);
        if let Some(verdict) = verdict {
            verdict.tell(shared).await;
        }
    }
    (!failed && !left.is_empty()).then_some(left)
}

/// What becomes of an attempt whose end cannot be stored: its task runs again, here and under the same lease, if that was its run on
/// a canary; otherwise it fails, and that is to be stored.
fn refused(shared: &Shared, mut ended: Ended, failure: Failure) -> (Option<Ended>, Option<Verdict>) {
    let verdict = match ended.unsettled.take().map(|unsettled| unsettled.refused(failure.clone())) {
        Some(Ok(refused)) => {
            run_again(shared, ended, refused);
            return (None, None);
        }
        Some(Err(verdict)) => Some(verdict),
        None => None,
    };
    fail(&mut ended.settlement, failure);
    (Some(ended), verdict)
}

/// Puts a task back for the current version to run it. Nothing that its run on the canary asked for or spent is kept.
fn run_again(shared: &Shared, ended: Ended, refused: Box<Refused>) {
    Counters::add(&shared.counters.canary_failures, 1);
    let Ended { mut job, settlement, .. } = ended;
    if let Some(tree) = &job.tree {
        let meter = settlement.attempt.meter;
        tree.spared(Spending { fuel: meter.fuel_used, host_calls: meter.host_calls });
    }
    job.refused = Some(refused);
    let (tenant, place_ms) = (job.task.tenant, job.task.place_ms);
    let running_max = shared.tenant(tenant).map_or(1, |entry| entry.policy.running_max);
    shared.queue.push([(tenant, running_max, false, place_ms, Job::Task(job))]);
}

fn fail(settlement: &mut Settlement, failure: Failure) {
    settlement.transition = Transition::Fail(failure);
    settlement.effects = Default::default();
}

/// What is left to do when everyone was told what was stored.
#[derive(Default)]
struct Told {
    /// Ends that conflict, as failures to be stored.
    conflicts: Vec<Ended>,
    /// Groups of tasks that failed.
    failed: BTreeSet<(TenantId, GroupId)>,
    /// Effects that added items.
    added: Vec<(TenantId, Effects)>,
    /// What canaries are told.
    verdicts: Vec<Verdict>,
}

/// Tells everyone what was stored.
fn answer(shared: &Shared, part: Vec<Ended>, answers: Vec<Settled>, now_ms: i64) -> Told {
    let Told { mut conflicts, mut failed, mut added, mut verdicts } = Told::default();
    let mut terminal = Vec::new();
    let (mut stored, mut stale, mut wake) = (0, 0, false);
    for (mut ended, answer) in part.into_iter().zip(answers) {
        if answer != Settled::Conflict
            && let Some(unsettled) = ended.unsettled.take()
        {
            verdicts.extend(unsettled.settled(shared, ended.settlement.id, answer == Settled::Stored));
        }
        if answer == Settled::Stored && shared.waiters.waits_for(ended.settlement.id) {
            let view = ended.view(shared, now_ms);
            view.into_iter().for_each(|view| shared.waiters.leave(ended.settlement.tenant, view));
        }
        let settlement = &mut ended.settlement;
        match answer {
            Settled::Stored => {
                stored += 1;
                let children = settlement.effects.children.len() as i64;
                // One of the same group, or who waits for its slot, may go now.
                wake |= children > 0 || settlement.group.is_some() || ended.job.task.has_slot;
                if let Transition::Fail(failure) = &settlement.transition {
                    let (tenant, code) = (settlement.tenant, failure.code);
                    shared.metrics.failed(&shared.catalog, tenant, ended.job.task.kind, code, 1);
                    failed.extend(settlement.group.map(|group| (settlement.tenant, group)));
                }
                if settlement.effects.children.iter().any(|child| !child.budget.is_empty()) {
                    shared.time_outs.look();
                }
                match &settlement.transition {
                    Transition::Complete(_) | Transition::Fail(_) => {
                        shared.gauge.change(settlement.tenant, children - 1);
                        let items = quota::sum(&settlement.effects.items);
                        shared.batches.quota.added(settlement.tenant, items);
                        // Children and items are counted now: their promise is kept.
                        drop(ended.port.take());
                        terminal.push(settlement.id);
                        if items.items > 0 {
                            added.push((settlement.tenant, std::mem::take(&mut settlement.effects)));
                        }
                    }
                    Transition::Retry { .. } | Transition::HandBack => wake = true,
                }
            }
            Settled::Stale => {
                stale += 1;
                if matches!(settlement.transition, Transition::Fail(_)) {
                    // Perhaps it was stored before, and only the answer was lost.
                    failed.extend(settlement.group.map(|group| (settlement.tenant, group)));
                }
                tracing::debug!(task = %settlement.id, "a stale lease changed nothing");
                // It has ended otherwise, or goes on elsewhere.
                shared.waiters.tell([settlement.id]);
            }
            Settled::Conflict => {
                let message = "a child's idempotency key stands for another submit";
                let (left, verdict) = refused(shared, ended, Failure::new(Code::Conflict, message));
                conflicts.extend(left);
                verdicts.extend(verdict);
            }
        }
    }
    Counters::add(&shared.counters.settled, stored);
    Counters::add(&shared.counters.stale, stale);
    shared.ended(terminal);
    if wake {
        shared.ready();
    }
    Told { conflicts, failed, added, verdicts }
}
