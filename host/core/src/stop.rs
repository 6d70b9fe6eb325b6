//! A flag that ends an attempt from outside: set once by the runtime, seen by the engine at the guest's next
//! epoch tick, or at once while it waits in a host call.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Why the host ends an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody cancelled the task.
    Cancelled,
    /// The host drains and its time is up: the task goes back to the queue.
    Drained,
    /// The host lost its lease: the task is no longer its own.
    LeaseLost,
}

/// The setting end and the seeing end, shared by clones.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// 0 while not set; written once by [`Stop::set`].
    reason: AtomicU8,
    /// The attempt that waits in [`Stop::wait`], one at most.
    waiter: Mutex<Option<Waker>>,
}

impl Stop {
    /// Ends the attempt for `reason`; the first reason stays.
    pub fn set(&self, reason: StopReason) {
        let number = match reason {
            StopReason::Cancelled => 1,
            StopReason::Drained => 2,
            StopReason::LeaseLost => 3,
        };
        // Failing means that an earlier reason stands, which is what is wanted.
        let _ = self.0.reason.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
        let waiter = self.0.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiter {
            waker.wake();
        }
    }

    /// Why to end, if so.
    pub fn reason(&self) -> Option<StopReason> {
        match self.0.reason.load(Ordering::Acquire) {
            1 => Some(StopReason::Cancelled),
            2 => Some(StopReason::Drained),
            3 => Some(StopReason::LeaseLost),
            _ => None,
        }
    }

    /// Waits until the flag is set. One waiter at a time; a second replaces the first.
    pub fn wait(&self) -> StopWait<'_> {
        StopWait(self)
    }
}

/// See [`Stop::wait`].
#[derive(Debug)]
pub struct StopWait<'a>(&'a Stop);

impl Future for StopWait<'_> {
    type Output = StopReason;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<StopReason> {
        if let Some(reason) = self.0.reason() {
            return Poll::Ready(reason);
        }
        let mut waiter = self.0.0.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        match waiter.as_mut() {
            Some(known) => known.clone_from(context.waker()),
            None => *waiter = Some(context.waker().clone()),
        }
        drop(waiter);
        // Set between the first look and the registration: nobody would wake us.
        self.0.reason().map_or(Poll::Pending, Poll::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let stop = Stop::default();
        assert_eq!(stop.reason(), None);
        stop.set(StopReason::Drained);
        stop.set(StopReason::Cancelled);
        assert_eq!(stop.reason(), Some(StopReason::Drained));
    }

    #[test]
    fn a_waiter_is_woken() {
        let stop = Stop::default();
        let mut wait = stop.wait();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(Pin::new(&mut wait).poll(&mut context), Poll::Pending);
        stop.clone().set(StopReason::LeaseLost);
        assert_eq!(Pin::new(&mut wait).poll(&mut context), Poll::Ready(StopReason::LeaseLost));
    }
}
