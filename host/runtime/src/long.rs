//! Attempts that have used up their short time: they go on by turns, on threads of their own and below all others,
//! so that a fresh attempt never waits for more than a slice of theirs. What counts is the time of a processor: whoever had to
//! leave it to others has computed no longer. Where the last attempt was a long one the next
//! begins there ([`Pace`]): its first slice, which is the longest of a guest that fills fresh memory, holds up nobody.
//!
//! While fresh attempts come one of several threads gives no turns: long ones leave a processor to what is short and to
//! whatever else answers somebody. A lower priority alone does not, where the system's own work for a write is held up too.
//!
//! [`Turns`] is the rule, without a clock or a thread; [`Pool`] lets threads wait on it. Every poll of a long attempt
//! is a turn. Tenants take them one after the other, so how long an attempt waits for its next one depends on how many
//! tenants compute, not on how many attempts another tenant has. Who waits in a host call takes no turn, and an attempt
//! that nobody waits for any more is dropped instead of polled. The pool does not limit how many attempts there are:
//! the permits of the local queue do.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use keiko_core::TenantId;
use keiko_core::outcome::AttemptReport;
use keiko_core::port::BatchReport;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

/// How long after a fresh attempt a thread that spares gives no turns: some of a steady client's are never further apart.
const SPARED: Duration = Duration::from_millis(50);

/// What a run leaves behind: an attempt of a task, or a run of a batch.
pub(crate) enum Report {
    /// Of a task.
    Attempt(AttemptReport),
    /// Of a batch.
    Batch(BatchReport),
}

/// An attempt while it runs, on whatever thread.
pub(crate) type Run = BoxFuture<'static, Report>;

/// Whether the last attempt of one kind was a long one, which is the best guess at the next.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicBool);

impl Pace {
    fn is_long(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_long: bool) {
        self.0.store(is_long, Ordering::Relaxed);
    }
}

/// How long this thread has had a processor.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Polls an attempt here until it ends, or until its polls computed for `short` in all: then it is a long one.
async fn begin(run: &mut Run, short: Duration) -> Option<Report> {
    let mut spent = Duration::ZERO;
    poll_fn(|context| {
        let start = computed();
        if let Poll::Ready(report) = run.as_mut().poll(context) {
            return Poll::Ready(Some(report));
        }
        spent += computed().saturating_sub(start);
        if spent >= short { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Gives turns to the attempts of `pool` until stopped; a thread that `spares` gives none while fresh attempts come.
pub(crate) async fn work(pool: Arc<Pool>, spares: bool, stop: CancellationToken) {
    loop {
        if let Some(left) = pool.spared(Instant::now()).filter(|_| spares) {
            // Who had a turn here last may want another, and told nobody else.
            pool.ready.notify_one();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(left) => continue,
            }
        }
        let (long, work) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = pool.next() => next,
        };
        long.turn(work);
        // The thread's runtime has work of its own between two turns, wakers that were put off above all.
        tokio::task::yield_now().await;
    }
    pool.close();
}

/// Who waits for a turn: one lane per tenant, served in turn.
#[derive(Debug)]
struct Turns<T> {
    lanes: BTreeMap<TenantId, VecDeque<T>>,
    /// Tenants with a lane, in the order of their turns.
    order: VecDeque<TenantId>,
}

impl<T> Turns<T> {
    fn new() -> Turns<T> {
        Turns { lanes: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Asks for a turn, behind the others of the same tenant.
    fn push(&mut self, tenant: TenantId, item: T) {
        let lane = self.lanes.entry(tenant).or_default();
        if lane.is_empty() {
            self.order.push_back(tenant);
        }
        lane.push_back(item);
    }

    /// Whose turn it is.
    fn pop(&mut self) -> Option<T> {
        let tenant = self.order.pop_front()?;
        let lane = self.lanes.get_mut(&tenant)?;
        let item = lane.pop_front();
        if lane.is_empty() {
            self.lanes.remove(&tenant);
        } else {
            self.order.push_back(tenant);
        }
        item
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// An attempt that wants a turn, with its work.
type Wanted = (Arc<Long>, Work);

/// The long attempts that want a turn.
pub(crate) struct Pool {
    /// `None` once closed.
    turns: Mutex<Option<Turns<Wanted>>>,
    /// Somebody wants a turn whom no thread knows of.
    ready: Notify,
    /// When this pool was made.
    made: Instant,
    /// When the last fresh attempt began, in microseconds since then; 0 is never.
    fresh_us: AtomicU64,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        let turns = Mutex::new(Some(Turns::new()));
        Pool { turns, ready: Notify::new(), made: Instant::now(), fresh_us: AtomicU64::new(0) }
    }

    /// A fresh attempt begins on its worker.
    fn note_fresh(&self, now: Instant) {
        let us = now.saturating_duration_since(self.made).as_micros().max(1);
        self.fresh_us.store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long a thread that spares gives no turns from now on; `None` when it may.
    fn spared(&self, now: Instant) -> Option<Duration> {
        let fresh_us = Some(self.fresh_us.load(Ordering::Relaxed)).filter(|us| *us > 0)?;
        let until = self.made + Duration::from_micros(fresh_us) + SPARED;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Runs an attempt to its end: on the caller's worker while it is short, then here. A long one leaves its `slot` on
    /// the worker to the next. `None` when the pool is closed before the end.
    pub(crate) async fn drive(
        self: &Arc<Pool>,
        tenant: TenantId,
        pace: &Pace,
        short: Duration,
        mut run: Run,
        slot: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<Report> {
        let begins_here = !pace.is_long();
        if begins_here {
            self.note_fresh(Instant::now());
            if let Some(report) = begin(&mut run, short).await {
                return Some(report);
            }
            pace.set(true);
        }
        *slot = None;
        let (report, spent) = self.run(tenant, run).await?;
        if !begins_here {
            pace.set(spent >= short);
        }
        Some(report)
    }

    /// Takes an attempt over from a worker, and waits for its end and for how long its polls computed here; `None` when the
    /// pool is closed before. What the attempt starts from now on (timers, above all) still belongs to the worker's
    /// runtime, which must outlive it.
    async fn run(self: &Arc<Pool>, tenant: TenantId, run: Run) -> Option<(Report, Duration)> {
        let (answer, end) = oneshot::channel();
        let state = Mutex::new(State::Waiting(Work { run, spent: Duration::ZERO, answer }));
        let long = Long { tenant, pool: Arc::clone(self), worker: Handle::current(), state };
        // A first turn, whatever it waits for: it makes the attempt wake this pool instead of the worker's task.
        Arc::new(long).wake();
        end.await.ok()
    }

    /// Waits for somebody's turn.
    async fn next(&self) -> (Arc<Long>, Work) {
        loop {
            let ready = self.ready.notified();
            let popped = {
                let mut turns = self.turns.lock();
                turns.as_mut().and_then(|turns| turns.pop().map(|popped| (popped, !turns.is_empty())))
            };
            if let Some((popped, more)) = popped {
                if more {
                    self.ready.notify_one();
                }
                return popped;
            }
            ready.await;
        }
    }

    /// Asks for a turn. A closed pool drops the work instead.
    fn push(&self, long: Arc<Long>, work: Work) {
        let refused = match &mut *self.turns.lock() {
            Some(turns) => {
                turns.push(long.tenant, (long, work));
                None
            }
            None => Some(work),
        };
        // Outside of the lock, because dropping an attempt may wake others.
        drop(refused);
    }

    /// Drops who wants a turn, now or later.
    fn close(&self) {
        let turns = self.turns.lock().take();
        drop(turns);
    }
}

/// What a long attempt is known by: its wakers hold it while it waits.
struct Long {
    tenant: TenantId,
    pool: Arc<Pool>,
    /// The runtime that the attempt began in.
    worker: Handle,
    state: Mutex<State>,
}

/// What there is to poll.
struct Work {
    run: Run,
    /// How long its polls computed.
    spent: Duration,
    /// Closed when nobody waits for the report any more.
    answer: oneshot::Sender<(Report, Duration)>,
}

enum State {
    /// Waits for something to wake it.
    Waiting(Work),
    /// Stands in a lane, with its work.
    Queued,
    /// Has its turn.
    Polled,
    /// Has its turn, and was woken in it: it wants another.
    Woken,
    /// Has ended.
    Over,
}

impl Wake for Long {
    fn wake(self: Arc<Long>) {
        let work = {
            let mut state = self.state.lock();
            match mem::replace(&mut *state, State::Queued) {
                State::Waiting(work) => work,
                State::Polled => {
                    *state = State::Woken;
                    return;
                }
                same => {
                    *state = same;
                    return;
                }
            }
        };
        let pool = Arc::clone(&self.pool);
        pool.push(self, work);
        pool.ready.notify_one();
    }
}

impl Long {
    /// One poll, and what follows from it.
    fn turn(self: Arc<Long>, mut work: Work) {
        *self.state.lock() = State::Polled;
        let _worker = self.worker.enter();
        if work.answer.is_closed() {
            *self.state.lock() = State::Over;
            return;
        }
        let waker = Waker::from(Arc::clone(&self));
        let start = computed();
        let polled = work.run.as_mut().poll(&mut Context::from_waker(&waker));
        work.spent += computed().saturating_sub(start);
        if let Poll::Ready(report) = polled {
            *self.state.lock() = State::Over;
            // Nobody waits when the host stops without it.
            let _ = work.answer.send((report, work.spent));
            return;
        }
        {
            let mut state = self.state.lock();
            if !matches!(*state, State::Woken) {
                *state = State::Waiting(work);
                return;
            }
            *state = State::Queued;
        }
        // Nobody is told: this thread looks for the next turn now.
        Arc::clone(&self.pool).push(Arc::clone(&self), work);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use keiko_core::effect::Effects;
    use keiko_core::log::LogBuffer;
    use keiko_core::outcome::{Failure, Meter, Outcome, Taint};

    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);
    const C: TenantId = TenantId(3);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Turns of each of these lanes' attempts when all want another one at once and `count` are given.
    fn turns(lanes: &[(TenantId, usize)], count: usize) -> Vec<Vec<usize>> {
        let mut turns = Turns::new();
        let mut had: Vec<Vec<usize>> = lanes.iter().map(|(_, attempts)| vec![0; *attempts]).collect();
        for (lane, (tenant, attempts)) in lanes.iter().enumerate() {
            (0..*attempts).for_each(|attempt| turns.push(*tenant, (lane, attempt)));
        }
        for _ in 0..count {
            let (lane, attempt) = turns.pop().unwrap();
            had[lane][attempt] += 1;
            turns.push(lanes[lane].0, (lane, attempt));
        }
        had
    }

    #[test]
    fn turns_go_tenant_by_tenant_and_in_order_inside_one() {
        assert_eq!(turns(&[(A, 3)], 7), [[3, 2, 2]]);
        assert_eq!(turns(&[(A, 1), (B, 1)], 4), [[2], [2]]);
        assert_eq!(turns(&[(A, 2), (B, 1), (C, 1)], 9), [vec![2, 1], vec![3], vec![3]]);
        let had = turns(&[(A, 60), (B, 1)], 120);
        assert_eq!(had, [vec![1; 60], vec![60]], "one beside sixty has every second turn");
    }

    #[test]
    fn a_tenant_that_comes_later_waits_for_one_turn_of_each_other() {
        let mut turns = Turns::new();
        for item in 0..60 {
            turns.push(A, item);
        }
        assert_eq!(turns.pop(), Some(0));
        turns.push(B, 100);
        assert_eq!([turns.pop(), turns.pop(), turns.pop()], [Some(1), Some(100), Some(2)]);
        assert!(!turns.is_empty());
        assert_eq!(std::iter::from_fn(|| turns.pop()).count(), 57);
        assert!(turns.is_empty());
    }

    fn report() -> Report {
        Report::Attempt(AttemptReport {
            outcome: Outcome::Failed(Failure::new(keiko_core::code::Code::Internal, "as meant")),
            meter: Meter::default(),
            taint: Taint::NONE,
            effects: Effects::default(),
            log: LogBuffer::default(),
        })
    }

    /// Wakes itself once, as a guest does at a tick.
    async fn tick() {
        let mut waits = true;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if mem::replace(&mut waits, false) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Computes for ever, and says who had a slice.
    fn endless(name: &'static str, slices: &Arc<Mutex<Vec<&'static str>>>) -> Run {
        let slices = Arc::clone(slices);
        async move {
            loop {
                slices.lock().push(name);
                tick().await;
            }
        }
        .boxed()
    }

    /// Gives the next turn, which there must be.
    fn turn(pool: &Pool) {
        let (long, work) = pool.next().now_or_never().expect("somebody wants a turn");
        long.turn(work);
    }

    fn nobody_wants_a_turn(pool: &Pool) -> bool {
        pool.turns.lock().as_ref().is_none_or(Turns::is_empty)
    }

    /// Starts to wait for the end of an attempt.
    fn start(
        pool: &Arc<Pool>,
        tenant: TenantId,
        run: Run,
    ) -> std::pin::Pin<Box<impl Future<Output = Option<(Report, Duration)>>>> {
        let pool = Arc::clone(pool);
        let mut end = Box::pin(async move { pool.run(tenant, run).await });
        assert!(end.as_mut().now_or_never().is_none(), "nothing ends without a turn");
        end
    }

    #[tokio::test]
    async fn an_attempt_is_short_until_its_polls_have_computed_for_so_long() {
        let ends_soon = || async { (tick().await, report()).1 }.boxed();
        assert!(begin(&mut ends_soon(), HOUR).await.is_some());
        assert!(begin(&mut ends_soon(), Duration::ZERO).await.is_none());
        let ends_at_once = || async { report() }.boxed();
        assert!(begin(&mut ends_at_once(), Duration::ZERO).await.is_some());
        let mut waits = std::future::pending().boxed();
        assert!(begin(&mut waits, HOUR).now_or_never().is_none(), "who waits spends nothing");
        let is_kept_waiting = async {
            // Nobody sends, and the thread waits with it.
            let (_sender, receiver) = std::sync::mpsc::channel::<()>();
            assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
            (tick().await, report()).1
        };
        let ended = begin(&mut is_kept_waiting.boxed(), Duration::from_millis(40)).await;
        assert!(ended.is_some(), "nor does who has no processor");
    }

    #[tokio::test]
    async fn where_the_last_attempt_was_long_the_next_begins_in_the_pool() {
        let (pool, pace) = (Arc::new(Pool::new()), Pace::default());
        let slots = Arc::new(tokio::sync::Semaphore::new(1));
        let drive = |short: Duration| {
            let (pool, pace) = (Arc::clone(&pool), &pace);
            let mut slot = Arc::clone(&slots).try_acquire_owned().ok();
            async move {
                let run = async { (tick().await, report()).1 }.boxed();
                (pool.drive(A, pace, short, run, &mut slot).await.is_some(), slot.is_some())
            }
        };
        let wants_turns = |end: &mut (dyn Future<Output = (bool, bool)> + Unpin)| {
            assert!(end.now_or_never().is_none(), "it is in the pool");
            while !nobody_wants_a_turn(&pool) {
                turn(&pool);
            }
        };
        assert_eq!(drive(HOUR).await, (true, true), "a short one ends on its worker");
        for (short, why) in
            [(Duration::ZERO, "a long one goes on in the pool"), (HOUR, "and the next begins there")]
        {
            let mut end = Box::pin(drive(short));
            wants_turns(&mut end);
            assert_eq!(end.await, (true, false), "{why}");
        }
        assert_eq!(drive(HOUR).await, (true, true), "which was short: so is the one after it");
    }

    #[test]
    fn a_thread_spares_for_a_while_after_each_fresh_attempt() {
        let (pool, millis) = (Pool::new(), Duration::from_millis);
        let at = |ms| pool.made + millis(ms);
        assert_eq!(pool.spared(at(0)), None, "there was none");
        pool.note_fresh(at(100));
        assert_eq!(pool.spared(at(100)), Some(SPARED));
        assert_eq!(pool.spared(at(149)), Some(millis(1)));
        assert_eq!(pool.spared(at(150)), None);
        pool.note_fresh(at(149));
        assert_eq!(pool.spared(at(150)), Some(millis(49)));
    }

    #[tokio::test]
    async fn attempts_that_compute_are_polled_in_turn() {
        let (pool, slices) = (Arc::new(Pool::new()), Arc::default());
        let _ends = [
            start(&pool, A, endless("a1", &slices)),
            start(&pool, A, endless("a2", &slices)),
            start(&pool, B, endless("b", &slices)),
        ];
        (0..6).for_each(|_| turn(&pool));
        assert_eq!(*slices.lock(), ["a1", "b", "a2", "b", "a1", "b"]);
    }

    #[tokio::test]
    async fn an_attempt_that_waits_takes_no_turn_until_it_is_woken() {
        let pool = Arc::new(Pool::new());
        let (wake, woken) = oneshot::channel::<()>();
        let end = start(&pool, A, async move { (woken.await, report()).1 }.boxed());
        turn(&pool);
        assert!(nobody_wants_a_turn(&pool));
        wake.send(()).unwrap();
        turn(&pool);
        assert!(nobody_wants_a_turn(&pool));
        assert!(end.await.is_some());
    }

    #[tokio::test]
    async fn a_dropped_attempt_is_never_polled_again() {
        let (pool, slices) = (Arc::new(Pool::new()), Arc::default());
        let end = start(&pool, A, endless("a", &slices));
        turn(&pool);
        drop(end);
        turn(&pool);
        assert!(nobody_wants_a_turn(&pool));
        assert_eq!(*slices.lock(), ["a"]);
        assert_eq!(Arc::strong_count(&slices), 1, "and it is gone");
    }

    #[tokio::test]
    async fn a_closed_pool_gives_up_who_wants_a_turn_now_or_later() {
        let (pool, slices) = (Arc::new(Pool::new()), Arc::default());
        let computes = start(&pool, A, endless("a", &slices));
        turn(&pool);
        let (wake, woken) = oneshot::channel::<()>();
        let waits = start(&pool, B, async move { (woken.await, report()).1 }.boxed());
        (0..2).for_each(|_| turn(&pool));
        pool.close();
        assert!(computes.await.is_none());
        wake.send(()).expect("who waits is there until it is woken");
        assert!(waits.await.is_none());
        assert!(pool.run(A, endless("late", &slices)).await.is_none());
        assert_eq!(*slices.lock(), ["a", "a"]);
    }

    #[tokio::test]
    async fn threads_share_the_turns_and_stop_when_told() {
        let pool = Arc::new(Pool::new());
        let services = crate::service::Services::default();
        for number in 0..2 {
            let (pool, stop) = (Arc::clone(&pool), services.stop_signal());
            let standing = crate::service::Standing { nice: 0, core: None, blocking_max: 1 };
            services.thread(format!("test-{number}"), standing, move || work(pool, number == 0, stop));
        }
        let ended = Arc::new(AtomicUsize::new(0));
        let attempt = || {
            let (ended, pool) = (Arc::clone(&ended), Arc::clone(&pool));
            async move {
                for turn in 0..100 {
                    // Now and then one thread leaves all turns to the other.
                    if turn % 10 == 0 {
                        pool.note_fresh(Instant::now());
                    }
                    tick().await;
                }
                ended.fetch_add(1, Ordering::SeqCst);
                report()
            }
            .boxed()
        };
        let ends = (0..20).map(|number| pool.run(TenantId(number), attempt()));
        let reports = futures::future::join_all(ends).await;
        assert!(reports.iter().all(Option::is_some));
        assert_eq!(ended.load(Ordering::SeqCst), 20);
        assert_eq!(services.stop(Duration::from_secs(10)).await, [""; 0]);
        assert!(pool.run(A, attempt()).await.is_none());
    }
}
