//! One attempt: a store, one call under every limit of the budget, and a report of what came of it.
//!
//! A store is used once, unless the plugin's manifest asks for its instances to be kept (`kept`). Fuel bounds what the guest computes, epochs bound how long it computes in one go, and the
//! driving future bounds how long it waits inside a host call, where no epoch reaches it. A run never fails and never
//! panics: whatever happens is an outcome.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use keiko_core::code::Code;
use keiko_core::effect::Effects;
use keiko_core::limit::{HANDLES_MAX, HOSTCALL_BYTES_MAX, WAITABLES_MAX};
use keiko_core::log::LogBuffer;
use keiko_core::outcome::{AttemptReport, Failure, Meter, Outcome, Taint};
use keiko_core::policy::Budget;
use keiko_core::port::{Attempt, BatchOutcome, BatchReport, BatchRun, HostPort, Keep};
use keiko_core::stop::Stop;
use keiko_core::task::Payload;
use parking_lot::Mutex;
use wasmtime::component::ResourceTableError;
use wasmtime::{Store, StoreContextMut, Trap, UpdateDeadline};

use crate::exceeded::Exceeded;
use crate::export::{self, Ended, Ending};
use crate::kept::{Place, Pool};
use crate::registry::{Generation, Tasks};
use crate::state::State;

/// Fuel that a store gets beyond the budget. wasmtime looks at the fuel at function entries and loop heads only, and
/// does not say by how much the last stretch went below zero: nothing left of one unit too many says that it did.
const FUEL_BEYOND: u64 = 1;

/// What wasmtime 48 panics with, in builds with debug assertions, when it lets go of a task of the concurrent profile that ended without an
/// answer: that way out does not count the task as gone. The trap that says so is lost in the panic.
const UNANSWERED: &str = "assertion failed: task.decremented_interesting_task_count";

/// Where attempts of a generation run: in stores of their own, or in those that are kept.
pub(crate) struct Home<'a> {
    pub(crate) generation: &'a Generation,
    pub(crate) pool: &'a Pool,
}

impl Home<'_> {
    /// Runs an attempt to its end. Must be called inside a tokio runtime that has time enabled.
    pub(crate) async fn run(
        &self,
        mut attempt: Attempt,
        port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> AttemptReport {
        let Some(tasks) = &self.generation.tasks else {
            return refused(Failure::new(Code::Internal, "the component runs no tasks"));
        };
        let is_program = matches!(tasks, Tasks::Program(_));
        // A program runs once: what follows its end is not said anywhere.
        attempt.keep = attempt.keep.filter(|_| !is_program);
        let (run, kind, input) = (Run::of(&attempt), attempt.kind.clone(), attempt.input.clone());
        let mut place = match self.place(attempt, port, &stop).await {
            Ok(place) => place,
            Err(error) => return refused(Failure::new(Code::Internal, format!("{error:#}"))),
        };
        if is_program {
            place.store.data_mut().be_program();
        }
        let deadline = place.store.data().deadline;
        let call = export::task::run(&mut place, self.generation, tasks, &kind, input);
        let ending = drive(call, &stop, deadline, run.heartbeat()).await;
        let report = self.close(run, place, ending, export::task::result, &stop).await;
        let Report { ended, meter, taint, effects, log } = report;
        let outcome = match ended {
            Ended::Answered(payload) => Outcome::Completed(payload),
            Ended::Failed(failure) => Outcome::Failed(failure),
            Ended::Stopped(reason) => Outcome::Stopped(reason),
        };
        AttemptReport { outcome, meter, taint, effects, log }
    }

    /// Works a batch, or a part of one, to its end, as [`Home::run`] does an attempt.
    pub(crate) async fn process(
        &self,
        mut attempt: Attempt,
        batch: BatchRun,
        port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> BatchReport {
        let Some(export) = &self.generation.batch else {
            return unworked(Failure::new(Code::Internal, "the component works no batches"));
        };
        // What makes equal runs equal.
        attempt.input = Payload::json(batch.id.clone());
        let run = Run::of(&attempt);
        let mut place = match self.place(attempt, port, &stop).await {
            Ok(place) => place,
            Err(error) => return unworked(Failure::new(Code::Internal, format!("{error:#}"))),
        };
        let deadline = place.store.data().deadline;
        let call = export::batch::process(&mut place, self.generation, export, batch);
        let ending = drive(call, &stop, deadline, run.heartbeat()).await;
        let read = |returned| Ok(export::batch::outcomes(returned));
        let Report { ended, meter, effects, log, .. } = self.close(run, place, ending, read, &stop).await;
        let outcome = match ended {
            Ended::Answered(outcomes) => BatchOutcome::Answered(outcomes),
            Ended::Failed(failure) => BatchOutcome::Failed(failure),
            Ended::Stopped(reason) => BatchOutcome::Stopped(reason),
        };
        BatchReport { outcome, meter, effects, log }
    }

    /// A kept instance that was reset, or a fresh store.
    async fn place(&self, attempt: Attempt, port: Arc<dyn HostPort>, stop: &Stop) -> wasmtime::Result<Place> {
        let Some(keep) = attempt.keep else {
            return open(self.generation, State::new(attempt, port, stop.clone())).map(Place::fresh);
        };
        let memory = attempt.budget.memory_bytes.value;
        if let Some(mut place) = self.pool.take(self.generation, &attempt.facts.tenant, &keep, memory) {
            place.store.data_mut().renew(attempt.clone(), port.clone(), stop.clone());
            refuel(&mut place.store)?;
            let deadline = place.store.data().deadline;
            let reset = drive(place.reset(self.generation), stop, deadline, None).await;
            if matches!(reset, Ending::Returned(Ok(()))) {
                self.pool.reused.fetch_add(1, Ordering::Relaxed);
                return Ok(place);
            }
            self.pool.resets_failed.fetch_add(1, Ordering::Relaxed);
        }
        self.pool.fresh.fetch_add(1, Ordering::Relaxed);
        open(self.generation, State::new(attempt, port, stop.clone())).map(Place::fresh)
    }

    /// The report of a run that has ended, whatever happens; its instance is kept or gone afterwards.
    async fn close<T, R>(
        &self,
        run: Run,
        mut place: Place,
        ending: Ending<T>,
        read: impl FnOnce(T) -> Result<R, Failure>,
        stop: &Stop,
    ) -> Report<R> {
        let has_returned = matches!(ending, Ending::Returned(Ok(_)));
        let closed = catch_unwind(AssertUnwindSafe(|| {
            let trace = export::trace(&ending);
            (run.report(&mut place.store, ending, read), trace)
        }));
        let (mut report, trace) = closed.unwrap_or_else(|panic| {
            tracing::error!(error = %text(&*panic), "the engine panicked at the end of an attempt");
            let text = "the host is at fault: it panicked at the end of the attempt";
            (Report::of(Failure::new(Code::Internal, text)), Vec::new())
        });
        let is_whole = match &report.ended {
            Ended::Answered(_) => true,
            // By the plugin's own word, that is: whatever met a limit is not used again.
            Ended::Failed(failure) => {
                has_returned && failure.limit.is_none() && failure.code != Code::Internal
            }
            Ended::Stopped(_) => false,
        };
        match run.keep.filter(|_| is_whole) {
            Some(keep) => self.pool.put(self.generation, keep, place, run.budget.memory_bytes.value),
            None => drop(place),
        }
        if let Ended::Failed(failure) = &mut report.ended {
            // The meter is read and the store is gone: this is nobody's time but ours.
            failure.backtrace = self.generation.symbols.describe(trace, stop).await;
        }
        report
    }
}

/// The report of a batch whose run did not begin.
pub(crate) fn unworked(failure: Failure) -> BatchReport {
    let outcome = BatchOutcome::Failed(failure);
    BatchReport { outcome, meter: Meter::default(), effects: Effects::default(), log: LogBuffer::default() }
}

/// The report of an attempt that did not begin, or whose end is lost.
pub(crate) fn refused(failure: Failure) -> AttemptReport {
    AttemptReport::unrun(Outcome::Failed(failure))
}

/// A store with every limit set.
pub(crate) fn open(generation: &Generation, state: State) -> wasmtime::Result<Store<State>> {
    let mut store = Store::new(generation.pre.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.epoch_deadline_callback(tick);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    if let Some(waitables) = store.concurrent_resource_table() {
        waitables.set_max_capacity(WAITABLES_MAX);
    }
    refuel(&mut store)?;
    Ok(store)
}

/// What a store has of the component model's concurrency: tasks, waitables, streams and futures; nothing on the strict profile.
pub(crate) fn waitables(store: &mut Store<State>) -> usize {
    store.concurrent_resource_table().map_or(0, |waitables| waitables.iter_mut().count())
}

/// An ending that says which table was full: wasmtime says the same of the guest's waitables as of its host resources.
pub(crate) fn told<T>(ending: Ending<T>, store: &mut Store<State>) -> Ending<T> {
    let Ending::Returned(Err(error)) = &ending else { return ending };
    let is_full = matches!(error.downcast_ref(), Some(ResourceTableError::Full));
    let state = store.data_mut();
    let has_room = state.resources() < state.table.max_capacity();
    if is_full && has_room { Ending::Exceeded(Exceeded::Waitables) } else { ending }
}

/// Gives a store what an attempt may use of it: beside what it holds, when it is used again.
fn refuel(store: &mut Store<State>) -> wasmtime::Result<()> {
    let fuel = store.data().gate.budget().fuel.value;
    store.set_fuel(fuel.saturating_add(FUEL_BEYOND))?;
    store.set_epoch_deadline(1);
    let held = store.data_mut().resources();
    store.set_max_component_handles(HANDLES_MAX + held);
    Ok(())
}

/// At every epoch tick: may the guest go on? If so, its neighbours on this thread come first.
fn tick(store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data();
    state.check(guest_fuel(state.gate.budget(), store.get_fuel()?))?;
    Ok(UpdateDeadline::Yield(1))
}

/// Polls a call until it returns, panics, is stopped, or its time is over. A call that is given up is dropped, and its
/// store is never used for another.
///
/// With a `heartbeat` it is given up too when nothing has woken it for so long: a host call in which something moves wakes
/// it, one that hangs does not.
pub(crate) async fn drive<T>(
    call: impl Future<Output = wasmtime::Result<T>>,
    stop: &Stop,
    deadline: Instant,
    heartbeat: Option<Duration>,
) -> Ending<T> {
    let mut call = pin!(call);
    let mut stopped = stop.wait();
    // A timer costs more than most calls: it is made only when a call waits.
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    let mut pulse = heartbeat.map(Pulse::new);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| match &mut pulse {
            None => call.as_mut().poll(context),
            Some(pulse) => pulse.poll(call.as_mut(), context),
        }));
        match polled {
            Ok(Poll::Ready(returned)) => return Poll::Ready(Ending::Returned(returned)),
            Ok(Poll::Pending) => {}
            Err(panic) => return Poll::Ready(panicked(text(&*panic))),
        }
        if let Poll::Ready(reason) = Pin::new(&mut stopped).poll(context) {
            return Poll::Ready(Ending::Exceeded(Exceeded::Stopped(reason)));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ending::Exceeded(Exceeded::Deadline));
        }
        let still = pulse.as_mut().map_or(Poll::Pending, |pulse| pulse.still(context));
        still.map(|()| Ending::Exceeded(Exceeded::Heartbeat))
    })
    .await
}

/// A panic of the engine or of a host function, or the trap that it stands for.
fn panicked<T>(text: String) -> Ending<T> {
    if text == UNANSWERED {
        Ending::Returned(Err(Trap::NoAsyncResult.into()))
    } else {
        Ending::Panicked(text)
    }
}

/// Whether anything moves in a call: it is polled only when it was woken itself, and the clock starts again with that.
struct Pulse {
    limit: Duration,
    woken: Arc<Woken>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Woken by the call, wakes whoever drives it.
struct Woken {
    is_woken: AtomicBool,
    driver: Mutex<Option<Waker>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        let driver = self.driver.lock().take();
        driver.into_iter().for_each(Waker::wake);
    }
}

impl Pulse {
    fn new(limit: Duration) -> Pulse {
        let woken = Woken { is_woken: AtomicBool::new(true), driver: Mutex::default() };
        Pulse { limit, woken: Arc::new(woken), timer: None }
    }

    /// Polls the call if it was woken.
    fn poll<F: Future>(&mut self, call: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        *self.woken.driver.lock() = Some(context.waker().clone());
        if !self.woken.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        self.timer = None;
        call.poll(&mut Context::from_waker(&Waker::from(Arc::clone(&self.woken))))
    }

    /// Ready when the call, which waits, has not been woken for too long.
    fn still(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(context)
    }
}

/// What a run leaves behind.
struct Report<R> {
    ended: Ended<R>,
    meter: Meter,
    taint: Taint,
    effects: Effects,
    log: LogBuffer,
}

impl<R> Report<R> {
    /// Of a run of which nothing is known but that it failed.
    fn of(failure: Failure) -> Report<R> {
        Report {
            ended: Ended::Failed(failure),
            meter: Meter::default(),
            taint: Taint::default(),
            effects: Effects::default(),
            log: LogBuffer::default(),
        }
    }
}

/// What of a run is asked for at its end.
#[derive(Clone, Copy)]
struct Run {
    budget: Budget,
    keep: Option<Keep>,
}

impl Run {
    fn of(attempt: &Attempt) -> Run {
        Run { budget: attempt.budget, keep: attempt.keep }
    }

    fn heartbeat(&self) -> Option<Duration> {
        self.budget.heartbeat_ms.map(|limit| Duration::from_millis(limit.value))
    }

    fn report<T, R>(
        self,
        store: &mut Store<State>,
        ending: Ending<T>,
        read: impl FnOnce(T) -> Result<R, Failure>,
    ) -> Report<R> {
        let budget = self.budget;
        let ending = told(ending, store);
        let guest_fuel = guest_fuel(&budget, store.get_fuel().unwrap_or(0));
        let state = store.data_mut();
        let mut console = state.console.lock();
        let (log, last_words) = console.finish(|| state.port.now_ms());
        state.gate.charge_bytes(console.printed_bytes());
        drop(console);
        let inside = state.gate.check(guest_fuel);
        let ended = export::outcome(ending, inside, &budget, last_words, read);
        let effects = std::mem::take(&mut state.effects);
        let elapsed = state.started().elapsed();
        Report {
            meter: Meter {
                // The unit beyond is no use that anyone pays for.
                fuel_used: state.gate.fuel_used(guest_fuel.min(budget.fuel.value)),
                memory_bytes_peak: state.limiter.memory_bytes_peak(),
                host_calls: state.gate.host_calls(),
                elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            },
            taint: state.gate.taint(),
            effects: if matches!(ended, Ended::Answered(_)) { effects } else { Effects::default() },
            ended,
            log,
        }
    }
}

/// What the guest used when so much of its store's fuel is left.
fn guest_fuel(budget: &Budget, left: u64) -> u64 {
    budget.fuel.value.saturating_add(FUEL_BEYOND).saturating_sub(left)
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
