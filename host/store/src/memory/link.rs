//! A host's way to the store: whether it works, and the news that other hosts have for it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use keiko_core::port::{Signal, Signals, StoreError, StoreErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::MemoryStore;
use super::state::State;

/// What goes wrong between one host and the store. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every call answers `Down` and does nothing. When it ends, the host is told that anything may have changed.
    pub down: bool,
    /// So many calls from now on answer `Busy` and do nothing.
    pub fail_next: u32,
    /// So many calls after those are done, but answer `Down`: the caller cannot know.
    pub lose_next: u32,
    /// A call lets others go first so many times before it looks at the store.
    pub slow: u32,
    /// Calls wait before they look at the store, and so do their answers, as if this host's process were stopped.
    pub stalled: bool,
    /// What this host tells others, and is told, gets lost.
    pub loses_news: bool,
}

/// What the hosts of a store share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// The store has seen itself break a promise.
    pub(super) broken: Notify,
    /// News by host. Taken after the state's lock or without it, never before.
    boxes: Mutex<BTreeMap<u64, Letters>>,
}

impl Shared {
    pub(super) fn of(state: State) -> Shared {
        Shared { state: Mutex::new(state), broken: Notify::new(), boxes: Mutex::default() }
    }
}

/// One host's way to the store; its news end with it.
pub(super) struct Link {
    shared: Arc<Shared>,
    number: u64,
    doing: Mutex<Doing>,
    /// The faults have changed.
    changed: Notify,
}

#[derive(Default)]
struct Doing {
    closed: bool,
    faults: Faults,
    /// Calls until a store that breaks a promise is down, so that whoever goes round and round because of it ends.
    calls_left: Option<u32>,
}

/// What a host was told and has not read, and who waits for more.
#[derive(Default)]
struct Letters {
    news: Signal,
    waiting: Vec<Waker>,
}

impl Letters {
    fn add(&mut self, news: Signal) {
        self.news.add(news);
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>) -> Link {
        let mut boxes = shared.boxes.lock();
        let number = boxes.last_key_value().map_or(0, |(last, _)| last + 1);
        boxes.insert(number, Letters::default());
        drop(boxes);
        Link { shared, number, doing: Mutex::default(), changed: Notify::new() }
    }

    /// Is down after so many calls.
    pub(super) fn limit_calls(&self, calls: u32) {
        self.doing.lock().calls_left = Some(calls);
    }

    pub(super) fn close(&self) {
        self.doing.lock().closed = true;
        self.changed.notify_waiters();
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        let before = std::mem::replace(&mut self.doing.lock().faults, faults);
        self.changed.notify_waiters();
        if before.down && !faults.down {
            self.shared.boxes.lock().entry(self.number).or_default().add(Signal::anything());
        }
    }

    fn works(&self) -> bool {
        let doing = self.doing.lock();
        !doing.closed && !doing.faults.down
    }

    /// Does something with what is stored, unless a fault is in the way.
    pub(super) async fn call<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let slow = self.doing.lock().faults.slow;
        for _ in 0..slow {
            give_way().await;
        }
        self.pass().await;
        let lost = self.begin()?;
        let (answer, is_broken) = {
            let mut state = self.shared.state.lock();
            (work(&mut state), !state.seen_broken.is_empty())
        };
        if is_broken {
            self.shared.broken.notify_one();
        }
        self.pass().await;
        if lost { Err(down("the answer of the store was lost")) } else { answer }
    }

    /// Waits while the host is stalled, which one that is gone is not.
    async fn pass(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let is_stalled = {
                let doing = self.doing.lock();
                doing.faults.stalled && !doing.closed
            };
            if !is_stalled {
                return;
            }
            changed.await;
        }
    }

    /// Whether the answer of a call that begins now is to be lost.
    fn begin(&self) -> Result<bool, StoreError> {
        let mut doing = self.doing.lock();
        let Doing { closed, faults, calls_left } = &mut *doing;
        if let Some(left) = calls_left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| down("a store that breaks a promise was called too often"))?;
        }
        if *closed {
            return Err(down("the store is closed"));
        }
        if faults.down {
            return Err(down("the store cannot be reached"));
        }
        if faults.fail_next > 0 {
            faults.fail_next -= 1;
            return Err(StoreError::new(StoreErrorKind::Busy, "another user of the store is in the way"));
        }
        let lost = faults.lose_next > 0;
        faults.lose_next -= u32::from(lost);
        Ok(lost)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.boxes.lock().remove(&self.number);
    }
}

fn down(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Down, message)
}

/// Is polled twice before it is ready.
async fn give_way() {
    let mut gave = false;
    poll_fn(|context| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[async_trait]
impl Signals for MemoryStore {
    fn tell(&self, signal: Signal) {
        if signal.is_empty() || !self.link.works() || self.link.doing.lock().faults.loses_news {
            return;
        }
        let mut boxes = self.shared.boxes.lock();
        for (_, letters) in boxes.iter_mut().filter(|(number, _)| **number != self.link.number) {
            letters.add(signal.clone());
        }
    }

    async fn next(&self) -> Signal {
        poll_fn(|context| {
            let works = self.link.works();
            let loses = self.link.doing.lock().faults.loses_news;
            let mut boxes = self.shared.boxes.lock();
            let letters = boxes.entry(self.link.number).or_default();
            if loses {
                letters.news = Signal::default();
            }
            if works && !letters.news.is_empty() {
                return Poll::Ready(std::mem::take(&mut letters.news));
            }
            if !letters.waiting.iter().any(|waiting| waiting.will_wake(context.waker())) {
                letters.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
