//! Runs: attempts whose callers wait and that are no tasks. Nothing of them is stored but what they spent.
//!
//! A run passes the same policy, permits, workers and gate as an attempt of a task. It goes before the tasks of its own
//! tenant, which wait for nobody; where there is no room it is refused at once ([`crate::queue`]). It is known by an id
//! that no task has, and what it asks to be written is denied: there is no end to write it with. When its caller goes
//! away it is stopped, or never begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keiko_core::code::Code;
use keiko_core::limit::{LimitFact, RUN_WALL_MS_MAX, SetBy};
use keiko_core::outcome::Outcome;
use keiko_core::policy::BudgetRequest;
use keiko_core::stop::StopReason;
use keiko_core::task::{Lineage, Payload};
use keiko_core::time_out::Ends;
use keiko_core::usage::Spent;
use keiko_core::{KindId, TaskId, TenantId, Token};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::attempt::{Wanted, prepare, unstarted};
use crate::handle::Handle;
use crate::queue::{Full, Ticket};
use crate::request::{Error, RunReport, RunRequest};
use crate::running::Entry;
use crate::shared::{Counters, Job, Shared};

/// A run on its way to a worker.
pub(crate) struct Direct {
    id: TaskId,
    tenant: TenantId,
    kind: KindId,
    input: Payload,
    budget: BudgetRequest,
    trace: Option<String>,
    entry: Arc<Entry>,
    /// Closed when the caller has gone.
    answer: oneshot::Sender<RunReport>,
}

/// Where the ids of a host's runs start: below all ids of tasks, and not where another host's start.
pub(crate) fn first_number() -> i64 {
    // Without randomness runs of two hosts may have one id, which only a reader of logs would notice.
    let random = getrandom::u64().unwrap_or(1 << 62) >> 2;
    i64::MIN | random as i64
}

impl Handle {
    /// Runs a plugin here and now and waits for its report: at most once, and nothing is stored but what it spent.
    /// Dropping this stops the run.
    ///
    /// Errors: `invalid_input`, `not_found`, `quota_exceeded`, `queue_full`, `storage_busy` when the host stops. What
    /// becomes of the run itself is in the report.
    pub async fn run(&self, tenant: TenantId, request: RunRequest) -> Result<RunReport, Error> {
        let shared = &self.shared;
        if !shared.accepting.load(Ordering::Acquire) {
            return Err(stopping());
        }
        let (kind, running_max) = self.admit_run(tenant, &request).await?;
        let RunRequest { input, budget, trace, .. } = request;
        let id = TaskId(shared.next_run.fetch_add(1, Ordering::Relaxed) | i64::MIN);
        let entry = shared.runs.insert(tenant, id, Token(0), 1);
        let mut caller = Caller { shared, id, entry: Arc::clone(&entry), ticket: None };
        let (answer, report) = oneshot::channel();
        let direct = Direct { id, tenant, kind, input, budget, trace, entry, answer };
        let offered = shared.queue.offer(tenant, running_max, Job::Run(Box::new(direct)));
        let ticket = offered.map_err(|full| no_room(shared, full))?;
        caller.ticket = Some(ticket);
        // A drain may have cleared the queue before this run was in it.
        if !shared.accepting.load(Ordering::Acquire) {
            shared.queue.withdraw(ticket);
        }
        let report = report.await.map_err(|_| stopping())?;
        caller.ticket = None;
        match report.report.outcome {
            Outcome::Stopped(_) => Err(stopping()),
            _ => Ok(report),
        }
    }
}

impl Handle {
    /// Which handler a run means, and how many of its tenant's may run at once.
    async fn admit_run(&self, tenant: TenantId, request: &RunRequest) -> Result<(KindId, usize), Error> {
        let entry = self.entry(tenant)?;
        if let Some(asked) = request.budget.wall_ms.filter(|asked| *asked > RUN_WALL_MS_MAX) {
            let fact = LimitFact::of_host("wall_ms", RUN_WALL_MS_MAX, Some(asked));
            return Err(Error::at_limit(Code::QuotaExceeded, fact));
        }
        let names = (request.plugin.as_deref(), request.kind.as_deref());
        let admitted = self.admit(tenant, entry, names, &request.input, &request.budget);
        let (kind, _) = match admitted {
            Err(error) if error.code == Code::NotFound => {
                self.shared.catalog.read_again().await?;
                self.admit(tenant, entry, names, &request.input, &request.budget)?
            }
            admitted => admitted?,
        };
        Ok((kind, entry.policy.running_max))
    }
}

fn stopping() -> Error {
    Error::new(Code::StorageBusy, "the host is stopping and runs nothing")
}

fn no_room(shared: &Shared, full: Full) -> Error {
    Counters::add(&shared.counters.runs_refused, 1);
    let (limit, set_by) = match full {
        Full::Tenant(limit) => (limit as u64, SetBy::Tenant),
        Full::Host(limit) => (limit as u64, SetBy::Host),
    };
    let fact = LimitFact { name: "runs_waiting".to_owned(), limit, asked: Some(limit + 1), set_by };
    Error::at_limit(Code::QueueFull, fact)
}

/// Who waits for a run. When they are gone it does not begin any more, or is stopped.
struct Caller<'a> {
    shared: &'a Shared,
    id: TaskId,
    entry: Arc<Entry>,
    ticket: Option<Ticket>,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        // Of a run that has ended neither does anything.
        self.entry.stop.set(StopReason::Cancelled);
        if let Some(ticket) = self.ticket {
            self.shared.queue.withdraw(ticket);
        }
        self.shared.runs.remove(self.id, Token(0));
    }
}

/// Runs it. `None` when nobody waits for it any more, or the host stops before it ends.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    direct: &Direct,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Option<RunReport> {
    if direct.answer.is_closed() {
        return None;
    }
    let wanted = Wanted {
        tenant: direct.tenant,
        id: direct.id,
        lineage: Lineage::root(direct.id),
        number: 1,
        input: &direct.input,
        budget: &direct.budget,
        trace: direct.trace.as_deref(),
        ends: Ends::default(),
        waits: true,
        is_task: false,
        tree: None,
    };
    let started_ms = shared.clock.now_ms();
    let handler = shared.catalog.handler(direct.kind);
    match handler.and_then(|handler| prepare(shared, &wanted, handler, Arc::clone(&direct.entry))) {
        Ok(run) => {
            let current = &run.plugin().current;
            let version = Some((current.name.clone(), current.digest));
            let report = run.drive(shared, slot).await?;
            Some(RunReport { report, started_ms, version })
        }
        Err(failure) => Some(RunReport { report: unstarted(failure), started_ms, version: None }),
    }
}

/// Tells the caller, and counts what was spent whether or not there is still one.
pub(crate) fn answer(shared: &Shared, direct: Direct, report: Option<RunReport>) {
    let Some(report) = report else { return };
    Counters::add(&shared.counters.runs, 1);
    shared.meters.add(direct.tenant, Spent::of_run(&report.report));
    // Nobody waits when the caller has gone.
    let _ = direct.answer.send(report);
}
