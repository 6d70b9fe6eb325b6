//! Under which names this host holds leases.
//!
//! A call that leases and whose answer gets lost may have leased what nobody here knows of, under a holder that lives: no
//! rescue would ever find it. The host then takes another name for what it leases from now on. What it works on keeps the
//! name that it was leased under; when the last of that is settled, the name is given up, and whatever else it holds goes
//! back to the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keiko_core::Holder;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Names beside the current one. With as many, a further doubt waits until one of them is given up.
const FORMER_MAX: usize = 4;

/// A name that leases are held under. Every job keeps the one that it was leased under.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) holder: Holder,
    /// Set when its leases may have ended: what was leased under it is another host's to run, whenever it comes here.
    lost: AtomicBool,
}

impl Tenure {
    fn new(holder: Holder) -> Arc<Tenure> {
        Arc::new(Tenure { holder, lost: AtomicBool::new(false) })
    }

    /// Whether nothing that was leased under it may run here any more. Ask once the attempt stands among those that a lost
    /// lease stops.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

/// The names of one host.
#[derive(Debug)]
pub(crate) struct Tenures {
    current: Mutex<Arc<Tenure>>,
    /// Written by the heart, read by it and by a drain.
    former: Mutex<Vec<Former>>,
    /// The current name may hold what nobody knows of; set by whoever leases, read by the heart.
    doubted: AtomicBool,
}

/// A name that nothing is leased under any more.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    tenure: Arc<Tenure>,
    /// When its lease was last prolonged.
    pub(crate) proven: Instant,
}

impl Former {
    pub(crate) fn holder(&self) -> Holder {
        self.tenure.holder
    }
}

impl Tenures {
    pub(crate) fn new(holder: Holder) -> Tenures {
        let (current, former) = (Mutex::new(Tenure::new(holder)), Mutex::default());
        Tenures { current, former, doubted: AtomicBool::new(false) }
    }

    /// What is leased from now on is leased under this, and keeps it until it is settled.
    pub(crate) fn current(&self) -> Arc<Tenure> {
        Arc::clone(&self.current.lock())
    }

    /// The current name may hold what nobody knows of.
    pub(crate) fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }

    /// Whether another name should be taken now.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire) && self.former.lock().len() < FORMER_MAX
    }

    /// Takes another name, and keeps the one before while something is worked under it.
    pub(crate) fn succeed(&self, holder: Holder, proven: Instant) {
        self.doubted.store(false, Ordering::Release);
        let before = std::mem::replace(&mut *self.current.lock(), Tenure::new(holder));
        self.former.lock().push(Former { tenure: before, proven });
    }

    /// The leases of all names may have ended. Before the attempts that run are stopped, so that none begins afterwards.
    pub(crate) fn lose(&self) {
        self.current.lock().lost.store(true, Ordering::SeqCst);
        self.former.lock().iter().for_each(|former| former.tenure.lost.store(true, Ordering::SeqCst));
    }

    /// Every name, the current one last.
    pub(crate) fn all(&self) -> Vec<Holder> {
        let former: Vec<Holder> = self.former.lock().iter().map(Former::holder).collect();
        former.into_iter().chain([self.current.lock().holder]).collect()
    }

    /// Takes another name, and forgets all before: their leases are lost.
    pub(crate) fn start_over(&self, holder: Holder) {
        self.doubted.store(false, Ordering::Release);
        *self.current.lock() = Tenure::new(holder);
        self.former.lock().clear();
    }

    /// Names beside the current one: under which something is worked, and under which nothing is.
    pub(crate) fn former(&self) -> (Vec<Former>, Vec<Holder>) {
        let former = self.former.lock();
        let (worked, idle): (Vec<_>, Vec<_>) =
            former.iter().partition(|former| Arc::strong_count(&former.tenure) > 1);
        (worked.into_iter().cloned().collect(), idle.into_iter().map(Former::holder).collect())
    }

    /// Whether there are names beside the current one.
    pub(crate) fn has_former(&self) -> bool {
        !self.former.lock().is_empty()
    }

    /// The lease of a name was prolonged.
    pub(crate) fn prove(&self, holder: Holder, since: Instant) {
        let mut former = self.former.lock();
        if let Some(former) = former.iter_mut().find(|former| former.holder() == holder) {
            former.proven = since;
        }
    }

    /// A name was given up.
    pub(crate) fn forget(&self, holder: Holder) {
        self.former.lock().retain(|former| former.holder() != holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_while_something_is_worked_under_it() {
        let tenures = Tenures::new(Holder(1));
        let job = tenures.current();
        tenures.doubt();
        assert!(tenures.is_doubted());
        tenures.succeed(Holder(2), Instant::now());
        assert!(!tenures.is_doubted());
        assert_eq!((job.holder, tenures.current().holder), (Holder(1), Holder(2)));
        assert_eq!(tenures.all(), [Holder(1), Holder(2)]);
        let idle = |tenures: &Tenures| tenures.former().1;
        assert_eq!(idle(&tenures), []);
        drop(job);
        assert_eq!(idle(&tenures), [Holder(1)]);
        tenures.forget(Holder(1));
        assert!(!tenures.has_former());
    }

    #[test]
    fn what_was_leased_under_a_lost_name_stays_lost() {
        let tenures = Tenures::new(Holder(1));
        let former = tenures.current();
        tenures.succeed(Holder(2), Instant::now());
        let current = tenures.current();
        assert!(!former.is_lost() && !current.is_lost());
        tenures.lose();
        tenures.start_over(Holder(3));
        assert!(former.is_lost() && current.is_lost() && !tenures.current().is_lost());
    }

    #[test]
    fn a_doubt_beyond_the_limit_waits() {
        let tenures = Tenures::new(Holder(0));
        for number in 1..=FORMER_MAX as i64 {
            tenures.doubt();
            assert!(tenures.is_doubted(), "{number}");
            tenures.succeed(Holder(number), Instant::now());
        }
        tenures.doubt();
        assert!(!tenures.is_doubted(), "one above the limit");
        tenures.forget(Holder(0));
        assert!(tenures.is_doubted());
        tenures.start_over(Holder(9));
        assert!(!tenures.is_doubted() && !tenures.has_former());
    }
}
