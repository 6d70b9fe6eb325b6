//! Group commit: one loop owns the write connection, and whatever waits goes into one transaction.
//!
//! - A write that finds the loop idle runs at once; what comes during its commit waits and shares the next one.
//!   So groups grow with the load, and no write waits for a timer.
//! - Answers leave after the commit. A commit that fails fails every write of the group.
//! - A write the database refuses takes nobody along: the group is rolled back and halved until the offender
//!   stands alone. That is one rollback where it happens, instead of a savepoint (two more statements) for every
//!   write where it does not.
//! - Submits of a group become one: their rows go into the same statements. So do adds of items.
//! - A lease may wait for the next submit and go with it ([`Writer::lease_next`]).
//! - Submits that change little are one statement, if the database can ([`Transactions::at_once`]).
//! - A transaction that another one was in the way of is run again as a whole, [`Transactions::RETRIES`] times.
//! - Who works on what need not outlive a machine whose process is gone with it: a group of nothing but leases is
//!   committed without waiting for the disk where no other host can be left ([`Transactions::begin`]).
//! - Callers may go away at any time. A write that the loop has taken runs to its end; an answer that nobody
//!   waits for any more can ask for something to be undone.
//!
//! Numbers: [`WAITING_MAX`] writes wait per priority, at most [`GROUP_WRITES_MAX`] writes or about
//! [`GROUP_BYTES_MAX`] bytes share a transaction.

use std::any::Any;
use std::collections::HashSet;
use std::future::ready;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use keiko_core::batch::{Add, Added};
use keiko_core::port::{Ask, Lease, LeaseRequest, StoreError, StoreErrorKind};
use keiko_core::task::{Submit, Submitted};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admit::mark_leased;
use crate::entry::{Along, AtOnce, Call, Entry, Kind, LeaseWork, Operation, Pending, Write};
use crate::gather::add_bytes;

/// Writes of one priority that wait for the loop; the next caller waits for room.
pub(crate) const WAITING_MAX: usize = 4_096;
/// Writes of one transaction.
const GROUP_WRITES_MAX: usize = 1_000;
/// Payload bytes of one transaction, above which no further write joins; the first one always fits.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// First and longest wait before a transaction is run again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// A connection that the loop writes with.
pub(crate) trait Transactions: Send + Sized + 'static {
    /// How often a transaction is run again when the database was busy with others.
    const RETRIES: u32;
    /// Whether its loop has a thread of its own, because every statement is a hop to a thread and back: between two threads
    /// that wait for nothing else a hop is one wake-up each way.
    const OWN_THREAD: bool;

    /// Makes ready for one statement that is a transaction by itself; connects again when the connection was lost.
    fn alone(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Begins a transaction; connects again when the connection was lost. Unless it `lasts` it may be lost with the
    /// machine, if this process is then lost too.
    fn begin(&mut self, lasts: bool) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the transaction. An error says that nothing of it was stored, or that nobody can know.
    fn commit(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Leaves the transaction, if there is still one.
    fn rollback(&mut self) -> impl Future<Output = ()> + Send;

    /// Stores submits, each with its own now; the answers are in their order.
    fn enqueue(
        &mut self,
        submits: &[(&Submit, i64)],
    ) -> impl Future<Output = Result<Vec<Submitted>, StoreError>> + Send;

    /// The same, and leases behind them for whom is asked, in one statement that is a transaction by itself and may run twice
    /// without harm. `None` when this does not fit into one, or is not granted as a whole: then nothing was stored.
    fn at_once(
        &mut self,
        _submits: &[(&Submit, i64)],
        _lease: Option<&LeaseRequest>,
    ) -> impl Future<Output = Result<AtOnce, StoreError>> + Send {
        ready(Ok(None))
    }

    /// Whether the last statement may be stored though it failed.
    fn is_in_doubt(&self) -> bool {
        false
    }

    /// Stores items, each add with its own now; the answers are in their order.
    fn add(&mut self, adds: &[(&Add, i64)]) -> impl Future<Output = Result<Vec<Added>, StoreError>> + Send;

    /// Ends the connection in order.
    fn close(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Which writes go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// The life of tasks.
    Task,
    /// The catalog, pruning.
    Background,
}

/// How much the writer has done since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterCounts {
    /// Transactions committed.
    pub transactions: u64,
    /// Writes answered, each of which would have been a transaction of its own.
    pub writes: u64,
    /// Calls to the database, `BEGIN` and `COMMIT` included.
    pub statements: u64,
}

/// Where the loop counts; read by [`Writer::counts`].
#[derive(Default)]
pub(crate) struct Counters {
    transactions: AtomicU64,
    writes: AtomicU64,
    /// Written by the session.
    pub(crate) statements: Arc<AtomicU64>,
}

/// The way to the loop. When it is gone, the loop finishes what waits and ends.
pub(crate) struct Writer<S> {
    task: mpsc::Sender<Entry<S>>,
    background: mpsc::Sender<Entry<S>>,
    closing: Arc<watch::Sender<bool>>,
    ended: watch::Receiver<Option<Ended>>,
    counters: Arc<Counters>,
    next: Arc<Next<S>>,
}

/// A lease that waits for a submit.
type Next<S> = Mutex<Option<Box<dyn FnOnce() -> Option<Box<Along<S>>> + Send>>>;

/// How the loop ended, as every caller of [`Writer::close`] learns it.
type Ended = Result<(), (StoreErrorKind, String)>;

impl<S: Transactions> Writer<S> {
    /// Starts the loop. `held` is dropped when it has ended.
    pub(crate) fn start(session: S, counters: Arc<Counters>, held: Box<dyn Any + Send>) -> Writer<S> {
        let (task, task_waiting) = mpsc::channel(WAITING_MAX);
        let (background, background_waiting) = mpsc::channel(WAITING_MAX);
        let (closing, close) = watch::channel(false);
        let (ended_sender, ended) = watch::channel(None);
        let next = Arc::new(Next::default());
        let service = Service {
            session,
            task: task_waiting,
            background: background_waiting,
            counters: Arc::clone(&counters),
            next: Arc::clone(&next),
        };
        let service = async move {
            let outcome = service.run(close).await;
            drop(held);
            ended_sender.send_replace(Some(outcome.map_err(|error| (error.kind(), error.to_string()))));
        };
        if S::OWN_THREAD {
            spawn_thread("keiko-writer", service);
        } else {
            spawn(service);
        }
        Writer { task, background, closing: Arc::new(closing), ended, counters, next }
    }

    /// Runs `work` on `input` in a transaction with others.
    pub(crate) async fn write<I, T, W>(
        &self,
        priority: Priority,
        bytes: usize,
        input: I,
        work: W,
    ) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        W: for<'s> Fn(&'s mut S, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { input, work, undo: |_| None, done: None, reply };
        let queue = match priority {
            Priority::Task => &self.task,
            Priority::Background => &self.background,
        };
        queue.send(Entry::new(Kind::Lasts, bytes, pending)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Runs `work`, which says who works on what from now on, in a transaction with others; `undo` makes the write that
    /// takes back an answer which nobody received.
    pub(crate) async fn lease<I, T, W>(
        &self,
        input: I,
        work: W,
        undo: fn(T) -> Option<Entry<S>>,
    ) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        W: for<'s> Fn(&'s mut S, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { input, work, undo, done: None, reply };
        self.task.send(Entry::new(Kind::Leases, 0, pending)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// The same with the next submit and behind it, for what is asked then. `None` when there was none, or `until` ended
    /// before. One caller at a time.
    pub(crate) async fn lease_next(
        &self,
        ask: Ask,
        work: LeaseWork<S>,
        undo: fn((LeaseRequest, Lease)) -> Option<Entry<S>>,
        until: impl Future<Output = ()>,
    ) -> Result<Option<(LeaseRequest, Lease)>, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        let along = move || Some(Box::new(Pending { input: ask()?, work, undo, done: None, reply }));
        *self.next.lock() = Some(Box::new(along));
        let waiting = Waiting(&self.next);
        tokio::select! {
            biased;
            answer = &mut answer => return answer.map_or(Ok(None), |leased| leased.map(Some)),
            () = until => {}
        }
        match waiting.withdraw() {
            true => Ok(None),
            false => answer.await.map_or(Ok(None), |leased| leased.map(Some)),
        }
    }

    /// Runs `work`, which is one statement that may run twice without harm, as its outcome may get lost: when nothing else
    /// waits, it is a transaction by itself and costs the database one statement instead of three. Payloads of so many
    /// `bytes` are on the disk when it is answered.
    pub(crate) async fn write_plain<I, T, W>(&self, bytes: usize, input: I, work: W) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        W: for<'s> Fn(&'s mut S, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { input, work, undo: |_| None, done: None, reply };
        self.task.send(Entry::new(Kind::Plain, bytes, pending)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Stores submits, together with those of other callers.
    pub(crate) async fn submit(
        &self,
        submits: Vec<Submit>,
        now_ms: i64,
    ) -> Result<Vec<Submitted>, StoreError> {
        let bytes = submits.iter().flat_map(|submit| &submit.tasks).map(|task| task.input.bytes.len()).sum();
        let (call, answer) = Call::new(submits, now_ms);
        let entry = Entry { kind: Kind::Lasts, bytes, write: Write::Submit(call) };
        self.task.send(entry).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Stores items, together with those of other callers.
    pub(crate) async fn add(&self, adds: Vec<Add>, now_ms: i64) -> Result<Vec<Added>, StoreError> {
        let bytes = adds.iter().map(add_bytes).sum();
        let (call, answer) = Call::new(adds, now_ms);
        let entry = Entry { kind: Kind::Lasts, bytes, write: Write::Add(call) };
        self.task.send(entry).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Takes no more writes, finishes those that wait, and ends the loop.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.closing.send_replace(true);
        let mut watched = self.ended.clone();
        let outcome = watched.wait_for(Option::is_some).await.map_err(|_| ended())?.clone();
        outcome.unwrap_or(Ok(())).map_err(|(kind, message)| StoreError::new(kind, message))
    }

    /// Whether writes are still taken.
    pub(crate) fn is_open(&self) -> bool {
        !self.task.is_closed()
    }

    pub(crate) fn counts(&self) -> WriterCounts {
        WriterCounts {
            transactions: self.counters.transactions.load(Ordering::Relaxed),
            writes: self.counters.writes.load(Ordering::Relaxed),
            statements: self.counters.statements.load(Ordering::Relaxed),
        }
    }
}

/// Takes a lease back that waits for a submit.
struct Waiting<'a, S>(&'a Next<S>);

impl<S> Waiting<'_, S> {
    /// Whether it had not begun.
    fn withdraw(&self) -> bool {
        self.0.lock().take().is_some()
    }
}

impl<S> Drop for Waiting<'_, S> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// The loop and what it owns.
struct Service<S> {
    session: S,
    task: mpsc::Receiver<Entry<S>>,
    background: mpsc::Receiver<Entry<S>>,
    counters: Arc<Counters>,
    next: Arc<Next<S>>,
}

impl<S: Transactions> Service<S> {
    async fn run(mut self, mut close: watch::Receiver<bool>) -> Result<(), StoreError> {
        while let Some(first) = self.next(&mut close).await {
            let mut group = self.gather(first);
            let mut undo = self.commit_or_halve(&mut group).await;
            while !undo.is_empty() {
                undo = self.commit_or_halve(&mut undo).await;
            }
        }
        self.session.close().await
    }

    /// The next write; `None` when there will be none.
    async fn next(&mut self, close: &mut watch::Receiver<bool>) -> Option<Entry<S>> {
        loop {
            tokio::select! {
                biased;
                Some(entry) = self.task.recv() => return Some(entry),
                Some(entry) = self.background.recv() => return Some(entry),
                // An error means that every writer is gone; both queues then end by themselves.
                Ok(_) = close.wait_for(|&closing| closing), if !self.task.is_closed() => {
                    self.task.close();
                    self.background.close();
                }
                else => return None,
            }
        }
    }

    /// Everything that waits behind `first`, as far as it fits.
    fn gather(&mut self, first: Entry<S>) -> Vec<Entry<S>> {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while group.len() < GROUP_WRITES_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(entry) = self.task.try_recv().or_else(|_| self.background.try_recv()) else { break };
            bytes += entry.bytes;
            group.push(entry);
        }
        if group.iter().any(|entry| matches!(entry.write, Write::Submit(_))) {
            let along = self.next.lock().take().and_then(|next| next());
            group.extend(along.map(|along| Entry {
                kind: Kind::Leases,
                bytes: 0,
                write: Write::Along(along),
            }));
        }
        group
    }

    /// Commits the group and answers it; returns the writes that take unheard answers back.
    fn commit_or_halve<'a>(&'a mut self, group: &'a mut Vec<Entry<S>>) -> BoxFuture<'a, Vec<Entry<S>>> {
        Box::pin(async move {
            let outcome = self.commit(group).await;
            let alone = group.len() == 1;
            match outcome {
                Err(error) if !alone && blames_one(&error) => {
                    let mut later = group.split_off(group.len() / 2);
                    let mut undo = self.commit_or_halve(group).await;
                    undo.extend(self.commit_or_halve(&mut later).await);
                    undo
                }
                outcome => {
                    self.counters.writes.fetch_add(group.len() as u64, Ordering::Relaxed);
                    let outcome = outcome.as_ref().copied();
                    group.drain(..).filter_map(|entry| entry.answer(outcome)).collect()
                }
            }
        })
    }

    async fn commit(&mut self, group: &mut Vec<Entry<S>>) -> Result<(), StoreError> {
        let mut backoff = BACKOFF.0;
        for again in 0.. {
            let caught = AssertUnwindSafe(transaction(&mut self.session, group)).catch_unwind().await;
            let error = match caught.unwrap_or_else(|_| Err(internal("a write panicked"))) {
                Ok(()) => {
                    self.counters.transactions.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => error,
            };
            tracing::debug!(error = %error, error_kind = ?error.kind(), items = group.len(), "rolled back");
            self.session.rollback().await;
            if error.kind() != StoreErrorKind::Down && leave_behind(group, self.session.is_in_doubt()) {
                continue;
            }
            if error.kind() != StoreErrorKind::Busy || again >= S::RETRIES {
                return Err(error);
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        Ok(())
    }
}

/// Takes out the lease that came along, which may be what failed; whoever waits for it leases alone, or learns that nobody
/// knows what was leased. Whether there was one.
fn leave_behind<S: Transactions>(group: &mut Vec<Entry<S>>, in_doubt: bool) -> bool {
    let Some(at) = group.iter().position(|entry| matches!(entry.write, Write::Along(_))) else {
        return false;
    };
    let along = group.remove(at);
    if in_doubt {
        let message = "the connection was lost while tasks were leased";
        along.answer(Err(&StoreError::new(StoreErrorKind::Down, message)));
    }
    true
}

async fn transaction<S: Transactions>(session: &mut S, group: &mut [Entry<S>]) -> Result<(), StoreError> {
    if let [Entry { kind: Kind::Plain, write: Write::Other(write), .. }] = group {
        session.alone().await?;
        return write.run(session).await;
    }
    if submit_at_once(session, group).await? {
        return Ok(());
    }
    let lasts = group.iter().any(|entry| matches!(entry.kind, Kind::Lasts | Kind::Plain));
    session.begin(lasts).await?;
    // First, so that a lease of the same group finds them.
    submit_all(session, group).await?;
    for entry in group.iter_mut() {
        match &mut entry.write {
            Write::Along(along) => along.run(session).await?,
            Write::Other(write) => write.run(session).await?,
            Write::Submit(_) | Write::Add(_) => {}
        }
    }
    tell_leased(group);
    session.commit().await
}

/// Notes of which submits the lease that came along has taken everything.
fn tell_leased<S>(group: &mut [Entry<S>]) {
    let mut ids = HashSet::new();
    for entry in group.iter() {
        if let Write::Along(along) = &entry.write {
            ids.extend(along.done.iter().flat_map(|(_, lease)| &lease.tasks).map(|task| task.id));
        }
    }
    if ids.is_empty() {
        return;
    }
    for entry in group {
        if let Write::Submit(call) = &mut entry.write {
            mark_leased(&mut call.done, &ids);
        }
    }
}

/// Writes a group of submits, with the lease that came along, in one go if the database can.
async fn submit_at_once<S: Transactions>(
    session: &mut S,
    group: &mut [Entry<S>],
) -> Result<bool, StoreError> {
    let (mut submits, mut along) = (Vec::new(), None);
    for entry in group.iter_mut() {
        match &mut entry.write {
            Write::Submit(call) => submits.push(call),
            Write::Along(with) => along = Some(with),
            Write::Add(_) | Write::Other(_) => return Ok(false),
        }
    }
    let asked = along.as_ref().map(|along| &along.input);
    let Some((answers, lease)) = session.at_once(&inputs(&submits), asked).await? else { return Ok(false) };
    answer_calls(submits, answers);
    if let Some(along) = along {
        along.done = lease.map(|lease| (along.input.clone(), lease));
    }
    Ok(true)
}

async fn submit_all<S: Transactions>(session: &mut S, group: &mut [Entry<S>]) -> Result<(), StoreError> {
    let (mut submits, mut adds) = (Vec::new(), Vec::new());
    for entry in group.iter_mut() {
        match &mut entry.write {
            Write::Submit(call) => submits.push(call),
            Write::Add(call) => adds.push(call),
            Write::Along(_) | Write::Other(_) => {}
        }
    }
    if !submits.is_empty() {
        let answers = session.enqueue(&inputs(&submits)).await?;
        answer_calls(submits, answers);
    }
    if !adds.is_empty() {
        let answers = session.add(&inputs(&adds)).await?;
        answer_calls(adds, answers);
    }
    Ok(())
}

/// What calls ask for, each with its own now.
fn inputs<'a, Q, A>(calls: &'a [&mut Call<Q, A>]) -> Vec<(&'a Q, i64)> {
    calls.iter().flat_map(|call| call.inputs.iter().map(|input| (input, call.now_ms))).collect()
}

fn answer_calls<Q, A>(calls: Vec<&mut Call<Q, A>>, answers: Vec<A>) {
    let mut answers = answers.into_iter();
    for call in calls {
        call.done = answers.by_ref().take(call.inputs.len()).collect();
    }
}

/// Whether the trouble may be one write's own, so that the others succeed without it.
fn blames_one(error: &StoreError) -> bool {
    matches!(error.kind(), StoreErrorKind::Refused | StoreErrorKind::Internal)
}

fn ended() -> StoreError {
    StoreError::new(StoreErrorKind::Down, "the store is closed")
}

pub(crate) fn internal(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Internal, message)
}

#[allow(clippy::disallowed_methods, reason = "the one place of this crate that spawns")]
pub(crate) fn spawn(service: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(service);
}

/// Runs a service on a thread of its own.
fn spawn_thread(name: &str, service: impl Future<Output = ()> + Send + 'static) {
    let body = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime that only waits needs nothing of the system").block_on(service);
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).expect("a store needs its thread to start");
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::future::join_all;
    use sqlx::{ConnectOptions, Row};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::sqlite::session::Session;

    /// A writer on a database in memory with one table, whose rows have to have a parent by the commit.
    async fn writer() -> Writer<Session> {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(":memory:").foreign_keys(true);
        let mut connection = options.connect().await.unwrap();
        let schema = "CREATE TABLE row (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES row DEFERRABLE
            INITIALLY DEFERRED)";
        sqlx::raw_sql(schema).execute(&mut connection).await.unwrap();
        let counters = Arc::new(Counters::default());
        Writer::start(Session::new(connection, Arc::clone(&counters.statements)), counters, Box::new(()))
    }

    async fn insert(session: &mut Session, id: i64, parent: Option<i64>) -> Result<i64, StoreError> {
        let query = "INSERT INTO row (id, parent) VALUES (?1, ?2)";
        session.run(sqlx::query(query).bind(id).bind(parent)).await.map(|()| id)
    }

    async fn add(writer: &Writer<Session>, id: i64, parent: Option<i64>) -> Result<i64, StoreError> {
        add_with(writer, Priority::Task, (), move |session, ()| Box::pin(insert(session, id, parent))).await
    }

    async fn add_with<I, W>(
        writer: &Writer<Session>,
        priority: Priority,
        input: I,
        work: W,
    ) -> Result<i64, StoreError>
    where
        I: Send + Sync + 'static,
        W: for<'s> Fn(&'s mut Session, &'s I) -> BoxFuture<'s, Result<i64, StoreError>> + Send + 'static,
    {
        writer.write(priority, 0, input, work).await
    }

    /// Keeps the loop busy until all that `writes` sends at once has been sent, so that it is one group.
    async fn together<T>(writer: &Writer<Session>, writes: impl Future<Output = T>) -> T {
        let gate = Arc::new(Semaphore::new(0));
        let busy = add_with(writer, Priority::Task, Arc::clone(&gate), |_, gate: &Arc<Semaphore>| {
            Box::pin(async { gate.acquire().await.map(|_| 0).map_err(|_| internal("closed")) })
        });
        let mut writes = pin!(writes);
        let sent = async {
            assert!(futures::poll!(writes.as_mut()).is_pending());
            gate.add_permits(1);
            writes.await
        };
        // What keeps it busy goes alone or with them.
        futures::join!(busy, sent).1
    }

    async fn ids(writer: &Writer<Session>) -> Vec<i64> {
        let read = writer.write(Priority::Task, 0, (), |session, ()| Box::pin(read_ids(session)));
        read.await.unwrap()
    }

    async fn read_ids(session: &mut Session) -> Result<Vec<i64>, StoreError> {
        let rows = session.rows(sqlx::query("SELECT id FROM row ORDER BY id")).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// How a transaction is synced: 1 with a later one, 2 at its commit.
    async fn synced(session: &mut Session) -> Result<i64, StoreError> {
        Ok(session.rows(sqlx::query("PRAGMA synchronous")).await?[0].get(0))
    }

    #[tokio::test]
    async fn only_leases_alone_do_not_wait_for_the_disk() {
        let writer = writer().await;
        let lease = || writer.lease((), |session, ()| Box::pin(synced(session)), |_| None);
        let write = || writer.write(Priority::Task, 0, (), |session, ()| Box::pin(synced(session)));
        for _ in 0..3 {
            assert_eq!((lease().await.unwrap(), lease().await.unwrap()), (1, 1));
            assert_eq!((write().await.unwrap(), write().await.unwrap()), (2, 2));
        }
        let before = writer.counts().transactions;
        let mixed = together(&writer, async { tokio::join!(lease(), lease(), write()) }).await;
        assert_eq!((mixed.0.unwrap(), mixed.1.unwrap(), mixed.2.unwrap()), (2, 2, 2));
        assert!(writer.counts().transactions - before <= 2);
    }

    #[tokio::test]
    async fn a_statement_that_is_refused_takes_nobody_along() {
        let writer = writer().await;
        let adds = join_all((0..100).map(|at| add(&writer, if at == 40 { 39 } else { at }, None)));
        let answers = together(&writer, adds).await;
        for (at, answer) in (0..).zip(answers) {
            match answer {
                Ok(id) => assert_eq!(id, at),
                Err(error) => {
                    assert_eq!((at, error.kind()), (40, StoreErrorKind::Refused));
                }
            }
        }
        assert_eq!(ids(&writer).await.len(), 99);
        assert!(writer.counts().transactions < 20, "{:?}", writer.counts());
    }

    #[tokio::test]
    async fn a_commit_that_fails_takes_nobody_along() {
        let writer = writer().await;
        let parent = |at| if at == 7 { Some(1_000) } else { None };
        let answers = together(&writer, join_all((0..20).map(|at| add(&writer, at, parent(at))))).await;
        let failed: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.is_err()).collect();
        assert!(matches!(failed[..], [(7, Err(_))]), "{failed:?}");
        assert_eq!(ids(&writer).await.len(), 19);
    }

    #[tokio::test]
    async fn trouble_of_the_whole_database_fails_the_whole_group_at_once() {
        let writer = writer().await;
        let full = add_with(&writer, Priority::Task, (), |_, ()| {
            Box::pin(async { Err(StoreError::new(StoreErrorKind::Full, "the disk is full")) })
        });
        let all = async { futures::join!(add(&writer, 1, None), full, add(&writer, 2, None)) };
        let (before, full, after) = together(&writer, all).await;
        for answer in [before, full, after] {
            assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Full);
        }
        assert!(ids(&writer).await.is_empty());
    }

    #[tokio::test]
    async fn a_panic_takes_nobody_along() {
        let writer = writer().await;
        let panic =
            add_with(&writer, Priority::Task, (), |_, ()| Box::pin(async { panic!("a fault of ours") }));
        let all = async { futures::join!(add(&writer, 1, None), panic, add(&writer, 2, None)) };
        let (before, panicked, after) = together(&writer, all).await;
        assert_eq!(panicked.unwrap_err().kind(), StoreErrorKind::Internal);
        assert_eq!((before.unwrap(), after.unwrap()), (1, 2));
        assert_eq!(ids(&writer).await, [1, 2]);
    }

    #[tokio::test]
    async fn tasks_go_before_the_background() {
        let writer = writer().await;
        // The one that comes second in the group fails on the same key.
        let add_one =
            |priority| add_with(&writer, priority, (), |session, ()| Box::pin(insert(session, 1, None)));
        let both = async { futures::join!(add_one(Priority::Background), add_one(Priority::Task)) };
        let (background, task) = together(&writer, both).await;
        assert_eq!(task.unwrap(), 1);
        assert_eq!(background.unwrap_err().kind(), StoreErrorKind::Refused);
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_it_and_nobody_is_dropped() {
        let writer = writer().await;
        let gate = Arc::new(Semaphore::new(0));
        let mut busy =
            pin!(add_with(&writer, Priority::Task, Arc::clone(&gate), |_, gate: &Arc<Semaphore>| {
                Box::pin(async { gate.acquire().await.map(|_| 0).map_err(|_| internal("closed")) })
            }));
        assert!(futures::poll!(busy.as_mut()).is_pending());
        while writer.task.capacity() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        // All of them in one look, which tokio would not grant.
        let most = WAITING_MAX as i64;
        let fits = join_all((0..most).map(|at| add(&writer, at, None)));
        let mut fits = pin!(tokio::task::unconstrained(fits));
        assert!(futures::poll!(fits.as_mut()).is_pending());
        assert_eq!(writer.task.capacity(), 0, "as many wait as may");
        let mut above = pin!(add(&writer, most, None));
        assert!(futures::poll!(above.as_mut()).is_pending(), "one more waits for room");
        let background = add_with(&writer, Priority::Background, (), move |session, ()| {
            Box::pin(insert(session, most + 1, None))
        });
        let mut background = pin!(background);
        assert!(futures::poll!(background.as_mut()).is_pending());
        assert_eq!(writer.background.capacity(), WAITING_MAX - 1, "the others have room of their own");
        gate.add_permits(1);
        let (_, fits, above, background) = futures::join!(busy, fits, above, background);
        assert!(fits.into_iter().zip(0..).all(|(answer, at)| answer.is_ok_and(|id| id == at)));
        assert_eq!((above.unwrap(), background.unwrap()), (most, most + 1));
        assert_eq!(ids(&writer).await.len() as i64, most + 2);
    }

    #[tokio::test]
    async fn a_writer_starts_and_closes_many_times() {
        for count in 0..20 {
            let writer = writer().await;
            let adds = join_all((0..count).map(|at| add(&writer, at, None)));
            let (answers, closed) = futures::join!(adds, writer.close());
            closed.unwrap();
            assert!(answers.iter().all(Result::is_ok), "what was sent before the close is written");
            assert_eq!(add(&writer, 99, None).await.unwrap_err().kind(), StoreErrorKind::Down);
        }
    }
}
