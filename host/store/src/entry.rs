//! Writes that wait for the loop of a [`crate::transaction::Writer`], and how they are answered.

use futures::future::BoxFuture;
use keiko_core::batch::{Add, Added};
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::task::{Submit, Submitted};
use tokio::sync::oneshot;

use crate::transaction::{Transactions, internal};
use crate::trouble::copy;

/// One write that waits.
pub(crate) struct Entry<S> {
    pub(crate) kind: Kind,
    /// Size of its payloads.
    pub(crate) bytes: usize,
    pub(crate) write: Write<S>,
}

/// What a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is on the disk when it is answered.
    Lasts,
    /// The same, without need of a transaction: it is one statement.
    Plain,
    /// It need not outlive the machine together with the process.
    Leases,
}

/// What a write is.
pub(crate) enum Write<S> {
    Submit(Call<Submit, Submitted>),
    Add(Call<Add, Added>),
    /// A lease that came along with submits.
    Along(Box<Along<S>>),
    Other(Box<dyn Operation<S>>),
}

/// A lease that goes with submits; what it was asked for goes with its answer.
pub(crate) type Along<S> = Pending<S, LeaseRequest, LeaseWork<S>, (LeaseRequest, Lease)>;

/// What was stored at once, and what was leased of it if that was asked for; `None` when nothing was stored.
pub(crate) type AtOnce = Option<(Vec<Submitted>, Option<Lease>)>;

/// Leases, and says for what.
pub(crate) type LeaseWork<S> =
    for<'s> fn(&'s mut S, &'s LeaseRequest) -> BoxFuture<'s, Result<(LeaseRequest, Lease), StoreError>>;

impl<S: Transactions> Entry<S> {
    pub(crate) fn new(kind: Kind, bytes: usize, write: impl Operation<S> + 'static) -> Entry<S> {
        Entry { kind, bytes, write: Write::Other(Box::new(write)) }
    }

    /// A write whose answer nobody waits for.
    pub(crate) fn unheard<I, W>(input: I, work: W) -> Entry<S>
    where
        I: Send + Sync + 'static,
        W: for<'s> Fn(&'s mut S, &'s I) -> BoxFuture<'s, Result<(), StoreError>> + Send + 'static,
    {
        let undo = |()| None;
        Entry::new(Kind::Leases, 0, Pending { input, work, undo, done: None, reply: oneshot::channel().0 })
    }

    /// Tells the caller; returns what takes an answer back that nobody received.
    pub(crate) fn answer(self, outcome: Result<(), &StoreError>) -> Option<Entry<S>> {
        match self.write {
            Write::Submit(call) => call.answer(outcome),
            Write::Add(call) => call.answer(outcome),
            Write::Along(along) => along.answer(outcome),
            Write::Other(write) => write.answer(outcome),
        }
    }
}

/// A write that joins others of its kind in the same statements.
pub(crate) struct Call<Q, A> {
    pub(crate) inputs: Vec<Q>,
    pub(crate) now_ms: i64,
    pub(crate) done: Vec<A>,
    reply: oneshot::Sender<Result<Vec<A>, StoreError>>,
}

impl<Q, A> Call<Q, A> {
    #[allow(clippy::type_complexity, reason = "a call and the way its answer comes")]
    pub(crate) fn new(
        inputs: Vec<Q>,
        now_ms: i64,
    ) -> (Call<Q, A>, oneshot::Receiver<Result<Vec<A>, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Call { inputs, now_ms, done: Vec::new(), reply }, answer)
    }

    fn answer<S>(self, outcome: Result<(), &StoreError>) -> Option<Entry<S>> {
        // Nobody waits: it is stored all the same, as after a lost connection.
        let _ = self.reply.send(outcome.map(|()| self.done).map_err(copy));
        None
    }
}

/// A write of whatever kind.
pub(crate) trait Operation<S>: Send {
    fn run<'s>(&'s mut self, session: &'s mut S) -> BoxFuture<'s, Result<(), StoreError>>;
    fn answer(self: Box<Self>, outcome: Result<(), &StoreError>) -> Option<Entry<S>>;
}

/// A write that runs `work` on `input`; `undo` makes the write that takes back an answer which nobody received.
pub(crate) struct Pending<S, I, W, T> {
    pub(crate) input: I,
    pub(crate) work: W,
    pub(crate) undo: fn(T) -> Option<Entry<S>>,
    pub(crate) done: Option<T>,
    pub(crate) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<S, I, W, T> Operation<S> for Pending<S, I, W, T>
where
    S: Transactions,
    I: Send + Sync,
    T: Send,
    W: for<'s> Fn(&'s mut S, &'s I) -> BoxFuture<'s, Result<T, StoreError>> + Send,
{
    fn run<'s>(&'s mut self, session: &'s mut S) -> BoxFuture<'s, Result<(), StoreError>> {
        let work = (self.work)(session, &self.input);
        let done = &mut self.done;
        Box::pin(async move {
            *done = Some(work.await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, outcome: Result<(), &StoreError>) -> Option<Entry<S>> {
        let Pending { undo, done, reply, .. } = *self;
        let answer = outcome.map_err(copy).and_then(|()| done.ok_or_else(|| internal("a write did not run")));
        match reply.send(answer) {
            Err(Ok(unheard)) => undo(unheard),
            Ok(()) | Err(Err(_)) => None,
        }
    }
}
