//! Schedules: submits the tasks of occurrences when their time has come, on whichever host sees it first.
//!
//! It sleeps until the next occurrence that this host knows of. What other hosts were told is looked for when one says so,
//! when one dies or drains, and every few minutes; who comes second at an occurrence changes nothing. A schedule that cannot
//! be read or written is passed over until the look at all that is due is over, so that it holds up no other one.

use std::sync::Arc;
use std::time::Duration;

use keiko_core::TenantId;
use keiko_core::code::{Code, RetryClass};
use keiko_core::limit::{LimitFact, SetBy};
use keiko_core::name::ScheduleName;
use keiko_core::once::{Once, OnceRule};
use keiko_core::port::{self, Created, Fired, Firing, OccurrenceTask, ScheduleKey, Signal};
use keiko_core::schedule::{Calendar, CalendarError, Overlap, Recurrence, Schedule, Template};
use keiko_core::task::Submitted;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::handle::Handle;
use crate::request::{Error, TaskRequest};

/// Schedules of one page of a look.
const DUE_MAX: u32 = 100;
/// Longest time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Wait after the store failed, or a look in which a schedule could not occur.
const AGAIN: Duration = Duration::from_secs(1);
/// What begins the keys under which the tasks of a schedule are unique: nothing that a client can say.
const KEY: char = '\u{1}';

/// Where schedules are kept, and who waits for a change of them.
pub(crate) struct Almanac {
    store: Arc<dyn port::Schedules>,
    changed: Notify,
}

impl Almanac {
    pub(crate) fn new(store: Arc<dyn port::Schedules>) -> Almanac {
        Almanac { store, changed: Notify::new() }
    }

    /// There may be schedules that this host does not know of.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }
}

/// Submits the tasks of occurrences until stopped.
pub(crate) async fn occur(handle: Handle, stop: CancellationToken) {
    let almanac = &handle.shared.schedules;
    let mut look = Look::default();
    loop {
        let changed = almanac.changed.notified();
        let sleep = match round(&handle, &mut look).await {
            Ok(left) => left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY),
            Err(error) => {
                tracing::warn!(error = %error, "schedules could not be looked at");
                AGAIN
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// A look at all that is due, a page at a time.
#[derive(Default)]
struct Look {
    /// What its next pages leave out: schedules that cannot be read, or could not occur.
    passed: Vec<ScheduleKey>,
    /// Whether one could not occur, so that the next look is soon.
    again: bool,
}

/// Submits what is due, up to a page; how long until the next page, or the next occurrence that is known of.
///
/// What could not occur is passed over also when the store is away: what does not go for one tenant may go for others.
async fn round(handle: &Handle, look: &mut Look) -> Result<Option<Duration>, Error> {
    let shared = &handle.shared;
    let now_ms = shared.clock.now_ms();
    let due = shared.schedules.store.due_schedules(now_ms, &look.passed, DUE_MAX).await?;
    let count = due.schedules.len() + due.unreadable.len();
    for (key, error) in due.unreadable {
        let (tenant, name) = (named(handle, key.0), &key.1);
        tracing::warn!(tenant, schedule = %name, error = %error, "a schedule cannot be read");
        look.passed.push(key);
    }
    let mut next_ms = due.next_ms;
    for schedule in &due.schedules {
        match fire(handle, schedule, due.now_ms).await {
            Ok(next) => next_ms = next_ms.into_iter().chain(next).min(),
            Err(error) => {
                let (owner, name) = (schedule.tenant, &schedule.name);
                let tenant = named(handle, owner);
                tracing::warn!(tenant, schedule = %name, error = %error, "a schedule could not occur");
                look.passed.push((owner, name.to_string()));
                look.again = true;
                if matches!(error.code, Code::StorageBusy | Code::StorageDown | Code::StorageFull) {
                    return Err(error);
                }
            }
        }
    }
    if count == DUE_MAX as usize {
        return Ok(Some(Duration::ZERO));
    }
    let again = std::mem::take(look).again.then_some(AGAIN);
    let next = next_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(due.now_ms).max(0) as u64));
    Ok(next.into_iter().chain(again).min())
}

/// What a log calls a tenant.
fn named(handle: &Handle, tenant: TenantId) -> String {
    let known = handle.shared.tenant(tenant);
    known.map_or_else(|| tenant.to_string(), |entry| entry.name.to_string())
}

/// Does what is to be done with a schedule that has come due; when it occurs next.
async fn fire(handle: &Handle, schedule: &Schedule, now_ms: i64) -> Result<Option<i64>, Error> {
    let shared = &handle.shared;
    let Some(due_ms) = schedule.next_ms else { return Ok(None) };
    let Schedule { tenant, name, recurrence, .. } = schedule;
    let (occurrence, next_ms) = match Calendar::new(&recurrence.cron, &recurrence.zone) {
        Ok(calendar) => {
            let due = calendar.due(recurrence.missed, due_ms, now_ms);
            let task = match due.occurrence_ms {
                Some(at_ms) => Some((at_ms, task(handle, schedule).await?)),
                None => None,
            };
            (task, due.next_ms)
        }
        // An earlier release knew the zone.
        Err(error) => (Some((due_ms, Err((Code::InvalidInput, error.to_string())))), None),
    };
    let missed = occurrence.is_none();
    let firing = Firing { tenant: *tenant, name: name.clone(), due_ms, next_ms, occurrence };
    match shared.schedules.store.fire(firing, shared.clock.now_ms()).await? {
        Fired::Submitted(Submitted::Accepted { duplicate: false, .. }) => {
            shared.gauge.change(*tenant, 1);
            shared.time_outs.look();
            shared.ready();
            tracing::debug!(schedule = %name, "the task of an occurrence was submitted");
        }
        Fired::Noted if missed => tracing::info!(schedule = %name, "an occurrence was missed"),
        Fired::Submitted(_) | Fired::Noted => {
            tracing::warn!(schedule = %name, "an occurrence has no task of its own; the schedule says why");
        }
        Fired::NotDue => {}
    }
    Ok(next_ms)
}

/// The task of an occurrence, or why there can be none.
async fn task(handle: &Handle, schedule: &Schedule) -> Result<OccurrenceTask, Error> {
    let tasks = vec![request(schedule.task.clone())];
    let submit = match handle.check_or_read(schedule.tenant, &tasks).await {
        Ok(handlers) => handle.shape(schedule.tenant, tasks, handlers, None, None).await,
        Err(error) => Err(error),
    };
    match submit {
        Ok(mut submit) => {
            if schedule.recurrence.overlap == Overlap::Skip {
                let key = format!("{KEY}schedule/{}", schedule.name);
                let once = Once { key, rule: OnceRule::Unique { refuse: false } };
                submit.tasks.iter_mut().for_each(|task| task.once = Some(once.clone()));
            }
            Ok(Ok(submit))
        }
        // Nothing that waiting for would help.
        Err(error) if error.code.retry_class() == RetryClass::Permanent => {
            Ok(Err((error.code, error.message)))
        }
        Err(error) => Err(error),
    }
}

fn request(task: Template) -> TaskRequest {
    let Template { plugin, kind, input, budget, priority, agent, user, slot_key } = task;
    TaskRequest {
        plugin,
        kind,
        input,
        budget,
        delay_ms: 0,
        run_at_ms: None,
        priority,
        once: None,
        slot_key,
        agent,
        user,
        trace: None,
    }
}

/// A schedule as a client asks for it.
#[derive(Clone, Debug)]
pub struct ScheduleRequest {
    /// Its name, which no other one of the tenant has.
    pub name: ScheduleName,
    /// When it occurs.
    pub recurrence: Recurrence,
    /// The task of every occurrence: nothing of it says when it is due.
    pub task: TaskRequest,
    /// Whether it is paused from the beginning.
    pub paused: bool,
}

impl Handle {
    /// Makes a schedule.
    ///
    /// Errors: `invalid_input`, `not_found`, `conflict`, `quota_exceeded`, `storage_*`.
    pub async fn create_schedule(&self, tenant: TenantId, asked: ScheduleRequest) -> Result<Schedule, Error> {
        let shared = &self.shared;
        let entry = self.entry(tenant)?;
        let ScheduleRequest { name, recurrence, task, paused } = asked;
        let now_ms = shared.clock.now_ms();
        let next_ms = next(&recurrence, now_ms)?;
        let task = template(task)?;
        self.check_or_read(tenant, &[request(task.clone())]).await?;
        let schedule = Schedule {
            tenant,
            name,
            recurrence,
            task,
            created_ms: now_ms,
            paused_ms: paused.then_some(now_ms),
            next_ms: (!paused).then_some(next_ms),
            last: None,
        };
        match shared.schedules.store.create(schedule.clone(), entry.policy.schedules_max).await? {
            Created::Stored => {}
            Created::Taken => {
                let text = format!("there is a schedule `{}` already", schedule.name);
                return Err(Error::new(Code::Conflict, text));
            }
            Created::Full { count } => {
                let fact = LimitFact {
                    name: "schedules".to_owned(),
                    limit: entry.policy.schedules_max,
                    asked: Some(count + 1),
                    set_by: SetBy::Tenant,
                };
                return Err(Error::at_limit(Code::QuotaExceeded, fact));
            }
        }
        self.schedules_changed();
        Ok(schedule)
    }

    /// Up to `limit` schedules of a tenant behind a name, by their names.
    pub async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<&ScheduleName>,
        limit: u32,
    ) -> Result<Vec<Schedule>, Error> {
        Ok(self.shared.schedules.store.schedules(tenant, after, limit).await?)
    }

    /// A schedule.
    pub async fn schedule(&self, tenant: TenantId, name: &str) -> Result<Schedule, Error> {
        let parsed: ScheduleName = name.parse().map_err(|_| no_schedule(name))?;
        let found = self.shared.schedules.store.schedule(tenant, &parsed).await?;
        found.ok_or_else(|| no_schedule(name))
    }

    /// Keeps a schedule from occurring until it is resumed; what it has submitted goes on. Pausing what is paused changes
    /// nothing.
    pub async fn pause_schedule(&self, tenant: TenantId, name: &str) -> Result<Schedule, Error> {
        self.schedule(tenant, name).await?;
        self.set_paused(tenant, name, Some(self.shared.clock.now_ms()), None).await
    }

    /// Lets a schedule occur again, next at the first time from now on. Resuming what is not paused changes nothing.
    pub async fn resume_schedule(&self, tenant: TenantId, name: &str) -> Result<Schedule, Error> {
        let recurrence = self.schedule(tenant, name).await?.recurrence;
        let next_ms = next(&recurrence, self.shared.clock.now_ms())?;
        self.set_paused(tenant, name, None, Some(next_ms)).await
    }

    async fn set_paused(
        &self,
        tenant: TenantId,
        name: &str,
        paused_ms: Option<i64>,
        next_ms: Option<i64>,
    ) -> Result<Schedule, Error> {
        let parsed: ScheduleName = name.parse().map_err(|_| no_schedule(name))?;
        let store = &self.shared.schedules.store;
        if store.pause_schedule(tenant, &parsed, paused_ms, next_ms).await?.is_none() {
            return Err(no_schedule(name));
        }
        self.schedules_changed();
        self.schedule(tenant, name).await
    }

    /// Forgets a schedule; the tasks that it has submitted stay.
    pub async fn remove_schedule(&self, tenant: TenantId, name: &str) -> Result<(), Error> {
        let parsed: ScheduleName = name.parse().map_err(|_| no_schedule(name))?;
        let removed = self.shared.schedules.store.remove_schedule(tenant, &parsed).await?;
        if removed { Ok(()) } else { Err(no_schedule(name)) }
    }

    /// This host and the others look again.
    fn schedules_changed(&self) {
        self.shared.schedules.look();
        self.shared.signals.tell(Signal { items: true, ..Signal::default() });
    }
}

/// The first occurrence from now on.
fn next(recurrence: &Recurrence, now_ms: i64) -> Result<i64, Error> {
    let calendar = Calendar::new(&recurrence.cron, &recurrence.zone);
    let next_ms = calendar.and_then(|calendar| calendar.next(now_ms).ok_or(CalendarError::Never));
    next_ms.map_err(|error| Error::new(Code::InvalidInput, error.to_string()))
}

/// What a task that recurs can say.
fn template(task: TaskRequest) -> Result<Template, Error> {
    if task.delay_ms > 0 || task.run_at_ms.is_some() || task.once.is_some() {
        let text = "`task`: a schedule says when its tasks are due, and what becomes of those that overlap: \
                    `delay_ms`, `run_at`, `unique`, `debounce` and `throttle` do not go with it";
        return Err(Error::new(Code::InvalidInput, text));
    }
    let TaskRequest { plugin, kind, input, budget, priority, agent, user, slot_key, .. } = task;
    Ok(Template { plugin, kind, input, budget, priority, agent, user, slot_key })
}

fn no_schedule(name: &str) -> Error {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(80).collect();
    Error::new(Code::NotFound, format!("there is no schedule `{shown}`"))
}
