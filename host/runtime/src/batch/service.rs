//! The service of batches: a thin task around `core::batch::machine`. It tells the machine what happens, forms the
//! batches that the machine asks for, and hands them to the workers.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use keiko_core::batch::machine::{Form, Left, Machine};
use keiko_core::batch::{LeasedBatch, size};
use keiko_core::crash::runs_alone;
use keiko_core::port::{FormRequest, Formed, StoreError};
use keiko_core::{BatchId, ProcessorId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::{self, BatchJob};
use super::memory::Held;
use super::{Ended, Entry, Event, MadeBy};
use crate::point::Point;
use crate::shared::{Counters, Job, Shared};
use crate::tenure::Tenure;

/// Batches that are formed at once.
const FORMING_MAX: usize = 8;
/// Time between two looks for what no host knows of, if nothing asks for one before.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Groups of one statement of a look, and batches that one takes over.
const LOOK_GROUPS: u32 = 1_000;
const TAKE_OVER: usize = 16;
/// Wait before a batch is formed again whose items had no room in memory, or whose store failed; in milliseconds.
const NO_ROOM_MS: i64 = 50;
const FAILED_MS: i64 = 1_000;
/// What is told as the number of batches in flight when there will be no more.
pub(super) const CLOSED: u64 = u64::MAX;

/// What the service waits for beside its events.
enum Done {
    Formed(Box<Answer>),
    /// A batch was written without a worker, and whoever wrote it has told so.
    Kept,
    /// There is room for a batch of a dead host.
    HasRoom(Box<Orphan>),
}

/// A batch of a dead host, whose memory is held.
struct Orphan {
    batch: LeasedBatch,
    tenure: Arc<Tenure>,
    entry: Arc<Entry>,
    held: Held,
}

/// What the store answered to a wish for a batch, whose memory is held.
struct Answer {
    form: Form,
    formed: Result<Formed, StoreError>,
    tenure: Arc<Tenure>,
    held: Held,
}

struct Service {
    shared: Arc<Shared>,
    machine: Machine,
    doing: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Those of them that form a batch.
    forming: usize,
    next_look: Instant,
    closing: bool,
}

/// Serves until stopped.
pub(crate) async fn serve(shared: Arc<Shared>, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
    let mut service = Service {
        shared,
        machine: Machine::default(),
        doing: FuturesUnordered::new(),
        forming: 0,
        next_look: Instant::now(),
        closing: false,
    };
    service.set_all();
    let told = Arc::clone(&service.shared);
    loop {
        // What is due comes before what is new.
        service.poll();
        if service.next_look <= Instant::now() {
            service.look().await;
            continue;
        }
        let wake = service.wake();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(done) = service.doing.next(), if !service.doing.is_empty() => service.done(done),
            () = told.batches.lost_told.notified() => service.lost(),
            Some(event) = events.recv() => service.take(event).await,
            () = tokio::time::sleep_until(wake) => {}
        }
    }
    let lost = service.shared.batches.volatile.clear();
    if lost > 0 {
        Counters::add(&service.shared.batches.counters.dropped, lost);
        tracing::warn!(items = lost, "volatile items were lost with the host's stop");
    }
}

impl Service {
    fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    /// Starts to form whatever is due, as far as there is room.
    fn poll(&mut self) {
        while self.may_form() {
            let now_ms = self.now_ms();
            let Some(form) = self.machine.next_form(now_ms) else { break };
            let Some(entry) = self.shared.batches.processors.of(form.group.processor) else {
                self.machine.formed(&form.group, 0, 0, Left::Nothing, now_ms);
                continue;
            };
            // Whatever the processor is by now: items may be rows that a guest added, or that were there before it was volatile.
            if self.shared.batches.volatile.has(&form.group) {
                self.form_volatile(form, entry);
                continue;
            }
            let tenant = form.group.tenant;
            let Some(held) = self.shared.batches.memory.try_take(tenant, form.bytes_max) else {
                self.machine.not_formed(&form.group, now_ms.saturating_add(NO_ROOM_MS), now_ms);
                continue;
            };
            self.forming += 1;
            self.doing.push(ask(Arc::clone(&self.shared), form, held).boxed());
        }
        if self.machine.must_look() {
            self.next_look = Instant::now();
        }
        let in_flight = self.machine.in_flight();
        let nothing = in_flight == 0 && self.doing.is_empty() && !self.is_due();
        let shown = if self.closing && nothing { CLOSED } else { in_flight };
        self.shared.batches.in_flight.send_if_modified(|told| std::mem::replace(told, shown) != shown);
    }

    fn may_form(&self) -> bool {
        let stopped = self.shared.batches.is_halted() || self.shared.pauses.of_host();
        self.forming < FORMING_MAX && !stopped
    }

    fn is_due(&self) -> bool {
        self.machine.next_due_ms().is_some_and(|due_ms| due_ms <= self.now_ms())
    }

    /// When to look at the clock again.
    fn wake(&self) -> Instant {
        let due = self.machine.next_due_ms().filter(|_| self.may_form());
        let wait_ms = due.map(|due_ms| due_ms.saturating_sub(self.now_ms()).max(0) as u64);
        let due = wait_ms.map(|wait_ms| Instant::now() + Duration::from_millis(wait_ms.min(3_600_000)));
        due.map_or(self.next_look, |due| due.min(self.next_look))
    }

    fn form_volatile(&mut self, form: Form, entry: Arc<Entry>) {
        let now_ms = self.now_ms();
        let batches = &self.shared.batches;
        let (taken, left) = batches.volatile.form(&form, now_ms);
        // Behind what is in memory there may be rows, if the tenant has any.
        let has_rows = batches.quota.has_rows(form.group.tenant);
        let left = if left == Left::Nothing && has_rows { Left::Unknown } else { left };
        let bytes = taken.iter().map(|(item, _)| size(&form.group.key, &item.payload)).sum();
        self.machine.formed(&form.group, taken.len() as u64, bytes, left, now_ms);
        let (items, held): (Vec<_>, Vec<Held>) = taken.into_iter().unzip();
        let Some(first) = items.first() else { return };
        // Named after its first item, whose number is no other batch's.
        let id = BatchId(first.id.0);
        let batch = LeasedBatch { id, group: form.group, token: job::IN_MEMORY, crashes: 0, items };
        self.hand_over(batch, self.shared.tenure(), entry, held);
    }

    fn done(&mut self, done: Done) {
        let now_ms = self.now_ms();
        let answer = match done {
            Done::Formed(answer) => answer,
            Done::Kept => return,
            Done::HasRoom(orphan) => {
                let Orphan { batch, tenure, entry, held } = *orphan;
                return self.hand_over(batch, tenure, entry, vec![held]);
            }
        };
        self.forming -= 1;
        let Answer { form, formed, tenure, held } = *answer;
        let formed = match formed {
            Ok(formed) => formed,
            Err(error) => {
                tracing::warn!(error = %error, "a batch could not be formed");
                self.shared.doubt(&error);
                self.machine.not_formed(&form.group, now_ms.saturating_add(FAILED_MS), now_ms);
                return;
            }
        };
        if formed.lost {
            self.shared.lost(&tenure);
            self.machine.not_formed(&form.group, now_ms.saturating_add(FAILED_MS), now_ms);
            return;
        }
        let items = formed.batch.as_ref().map_or(0, |batch| batch.items.len() as u64);
        let bytes = formed.batch.as_ref().map_or(0, LeasedBatch::bytes);
        self.machine.formed(&form.group, items, bytes, formed.left, now_ms);
        let Some(batch) = formed.batch else { return };
        self.shared.points.pass(Point::BatchFormed);
        match self.shared.batches.processors.of(form.group.processor) {
            Some(entry) => self.hand_over(batch, tenure, entry, vec![held]),
            None => tracing::warn!(batch = %batch.id, "a batch has lost its processor"),
        }
    }

    fn hand_over(&mut self, batch: LeasedBatch, tenure: Arc<Tenure>, entry: Arc<Entry>, held: Vec<Held>) {
        Counters::add(&self.shared.batches.counters.formed, 1);
        job::tell_handed_over(&batch);
        let health = self.machine.health(entry.row.id);
        let (tenant, crashes, by_host) = (entry.row.tenant, batch.crashes, entry.made_by == MadeBy::Host);
        let job = BatchJob { tenure, batch, entry, health, held, told_broken: false };
        if self.shared.batches.is_halted() {
            // It was formed while the host gave up.
            let shared = Arc::clone(&self.shared);
            self.doing.push(async move { job::hand_back(&shared, job).map(|()| Done::Kept).await }.boxed());
            return;
        }
        if by_host {
            let shared = Arc::clone(&self.shared);
            self.doing.push(async move { job::keep(&shared, job).map(|()| Done::Kept).await }.boxed());
            return;
        }
        let running_max = self.shared.tenant(tenant).map_or(1, |entry| entry.policy.running_max);
        self.shared.queue.push([(
            tenant,
            running_max,
            runs_alone(crashes),
            self.now_ms(),
            Job::Batch(Box::new(job)),
        )]);
        self.shared.pulse.quicken();
    }

    async fn take(&mut self, event: Event) {
        let now_ms = self.now_ms();
        match event {
            Event::Added { group, items, bytes } => self.machine.added(group, items, bytes, now_ms),
            Event::Ended(ended) => self.ended(&ended),
            Event::Flush { processor, reply } => {
                self.look().await;
                let groups = self.machine.flush(processor, self.now_ms());
                // Nobody waits any more: it is flushed all the same.
                let _ = reply.send(groups as u64);
            }
            Event::Look => self.next_look = Instant::now(),
            Event::Changed => self.set_all(),
            Event::Close => {
                self.closing = true;
                self.machine.close(now_ms);
            }
        }
    }

    /// The lease was lost, or there is a new one.
    fn lost(&mut self) {
        let groups = std::mem::take(&mut *self.shared.batches.lost.lock());
        for group in groups {
            self.machine.ended(&group, None, None, self.now_ms());
        }
        self.next_look = Instant::now();
    }

    fn ended(&mut self, ended: &Ended) {
        if ended.told_broken {
            self.machine.told_broken(ended.group.processor);
        }
        self.machine.ended(&ended.group, ended.again_ms, ended.worked, self.now_ms());
    }

    /// Tells the machine of the processors as they are now; of new ones there may be items already.
    fn set_all(&mut self) {
        let entries = self.shared.batches.processors.all();
        let known: std::collections::HashSet<ProcessorId> =
            entries.iter().map(|entry| entry.row.id).collect();
        let mut is_new = false;
        for entry in entries {
            is_new |= self.machine.settings(entry.row.id).is_none() || entry.row.stopped.is_none();
            self.machine.set(entry.row.id, entry.settings, entry.row.stopped.is_some());
        }
        self.machine.retain(|id| known.contains(&id));
        if is_new {
            self.next_look = Instant::now();
        }
    }

    /// Looks for batches whose host died and for groups that this host does not know.
    async fn look(&mut self) {
        self.next_look = Instant::now() + LOOK_EVERY;
        if self.shared.batches.processors.all().is_empty() {
            return;
        }
        if let Err(error) = self.try_look().await {
            tracing::warn!(error = %error, "a look for items failed");
            self.next_look = Instant::now() + Duration::from_secs(1);
        }
    }

    async fn try_look(&mut self) -> Result<(), StoreError> {
        let (shared, tenure) = (Arc::clone(&self.shared), self.shared.tenure());
        if !self.closing {
            let orphans = shared.batches.store.take_over(tenure.holder, TAKE_OVER, self.now_ms()).await;
            let orphans = orphans.inspect_err(|error| shared.doubt(error))?;
            if orphans.len() == TAKE_OVER {
                self.next_look = Instant::now() + Duration::from_secs(1);
            }
            for batch in orphans {
                self.take_over(batch, Arc::clone(&tenure));
            }
        }
        let mut after = None;
        loop {
            let page = shared.batches.store.groups(after, LOOK_GROUPS, self.now_ms()).await?;
            let full = page.len() == LOOK_GROUPS as usize;
            after = page.last().map(|last| (last.group.processor, last.group.key.clone()));
            for found in page {
                let Some(settings) = self.machine.settings(found.group.processor) else { continue };
                let at_ms = found.oldest_ms.saturating_add_unsigned(settings.age_ms);
                let now_ms = self.now_ms();
                self.machine.found(found.group, at_ms, now_ms);
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Hands a batch of a dead host over as soon as there is room for it. Nobody waits for that here: what holds the memory may
    /// be on its way through this service.
    fn take_over(&mut self, batch: LeasedBatch, tenure: Arc<Tenure>) {
        let Some(entry) = self.shared.batches.processors.of(batch.group.processor) else {
            tracing::warn!(batch = %batch.id, "a batch of a dead host has no processor here");
            return;
        };
        tracing::info!(batch = %batch.id, processor = %entry.row.name, "a batch of a dead host is handed over again");
        let now_ms = self.now_ms();
        self.machine.taken_over(batch.group.clone(), now_ms);
        let shared = Arc::clone(&self.shared);
        let has_room = async move {
            let held = shared.batches.memory.take(batch.group.tenant, batch.bytes()).await;
            Done::HasRoom(Box::new(Orphan { batch, tenure, entry, held }))
        };
        self.doing.push(has_room.boxed());
    }
}

/// Asks the store for a batch.
async fn ask(shared: Arc<Shared>, form: Form, held: Held) -> Done {
    let tenure = shared.tenure();
    let answer = async {
        let id = BatchId(shared.ids.take(1).await?.0);
        let request =
            FormRequest { holder: tenure.holder, id, form: form.clone(), now_ms: shared.clock.now_ms() };
        shared.batches.store.form(request).await
    };
    let formed = answer.await;
    Done::Formed(Box::new(Answer { form, formed, tenure, held }))
}
