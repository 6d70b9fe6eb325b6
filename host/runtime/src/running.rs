//! Attempts that run on this host now: how to stop them, and through what they speak.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use keiko_core::stop::{Stop, StopReason};
use keiko_core::{TaskId, TenantId, Token};
use parking_lot::Mutex;

use crate::request::Progress;
use crate::voice::{Held, Pieces, Speaker, Voices};

/// The running attempts by task.
#[derive(Debug, Default)]
pub(crate) struct Running {
    entries: Mutex<BTreeMap<TaskId, Arc<Entry>>>,
    /// Where they speak.
    pub(crate) voices: Arc<Voices>,
}

/// One running attempt.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Whose task it is.
    tenant: TenantId,
    task: TaskId,
    /// Whether it is no batch.
    is_task: bool,
    speaker: Speaker,
    /// Set by cancel, drain and a lost lease; seen by the engine.
    pub(crate) stop: Stop,
    voices: Arc<Voices>,
    /// Held once it has something to say: most never do.
    voice: OnceLock<Held>,
    /// What a run on a canary gives out, until it is known to be the one that counts.
    apart: Mutex<Option<Pieces>>,
}

impl Entry {
    /// The guest says how far it is.
    pub(crate) fn report(&self, progress: Progress) {
        self.voice().report(self.speaker, progress);
    }

    /// The guest gives out a piece.
    pub(crate) fn emit(&self, piece: Bytes) {
        match &mut *self.apart.lock() {
            Some(apart) => apart.push(piece),
            None => self.voice().emit(self.speaker, [piece]),
        }
    }

    /// Keeps back what is given out from now on.
    pub(crate) fn try_out(&self) {
        *self.apart.lock() = Some(Pieces::default());
    }

    /// Gives out what was kept back, or forgets it when another run takes the place of that one.
    pub(crate) fn tried(&self, counts: bool) {
        let apart = self.apart.lock().take().filter(|_| counts);
        if let Some(pieces) = apart.and_then(Pieces::kept) {
            self.voice().emit(self.speaker, pieces);
        }
    }

    fn voice(&self) -> &Held {
        self.voice.get_or_init(|| self.voices.hold(self.task))
    }
}

impl Running {
    /// Notes an attempt; `number` is its own, from 1.
    pub(crate) fn insert(&self, tenant: TenantId, task: TaskId, token: Token, number: u32) -> Arc<Entry> {
        self.enter(tenant, task, Speaker { token, attempt: number }, true)
    }

    /// Notes a batch, which has the number of a task.
    pub(crate) fn insert_batch(&self, tenant: TenantId, id: TaskId, token: Token) -> Arc<Entry> {
        self.enter(tenant, id, Speaker { token, attempt: 1 }, false)
    }

    fn enter(&self, tenant: TenantId, task: TaskId, speaker: Speaker, is_task: bool) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            tenant,
            task,
            is_task,
            speaker,
            stop: Stop::default(),
            voices: Arc::clone(&self.voices),
            voice: OnceLock::new(),
            apart: Mutex::new(None),
        });
        let before = self.entries.lock().insert(task, Arc::clone(&entry));
        if let Some(before) = before.filter(|before| before.speaker.token < speaker.token) {
            // Its lease is over, and nobody finds it here any more.
            before.stop.set(StopReason::Cancelled);
        }
        entry
    }

    /// Forgets an attempt, unless a later one has taken its place.
    pub(crate) fn remove(&self, id: TaskId, token: Token) {
        let mut running = self.entries.lock();
        if running.get(&id).is_some_and(|entry| entry.speaker.token == token) {
            running.remove(&id);
        }
    }

    /// Stops the attempt of one task.
    pub(crate) fn stop(&self, id: TaskId, reason: StopReason) {
        let entry = self.entries.lock().get(&id).cloned();
        if let Some(entry) = entry {
            entry.stop.set(reason);
        }
    }

    /// Stops the attempt that runs under a lease, if it does.
    pub(crate) fn stop_leased(&self, id: TaskId, token: Token, reason: StopReason) {
        let entry = self.entries.lock().get(&id).filter(|entry| entry.speaker.token == token).cloned();
        if let Some(entry) = entry {
            entry.stop.set(reason);
        }
    }

    /// The leases under which tasks run.
    pub(crate) fn leases(&self) -> Vec<(TaskId, Token)> {
        let entries = self.entries.lock();
        let tasks = entries.values().filter(|entry| entry.is_task);
        tasks.map(|entry| (entry.task, entry.speaker.token)).collect()
    }

    /// Stops every attempt; says how many.
    pub(crate) fn stop_all(&self, reason: StopReason) -> usize {
        let entries: Vec<_> = self.entries.lock().values().cloned().collect();
        for entry in &entries {
            entry.stop.set(reason);
        }
        entries.len()
    }

    /// Whose task runs here under this id.
    pub(crate) fn tenant(&self, id: TaskId) -> Option<TenantId> {
        self.entries.lock().get(&id).map(|entry| entry.tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voice::{Heard, New};

    #[test]
    fn a_later_attempt_is_not_forgotten_with_an_earlier_one() {
        let running = Running::default();
        running.insert(TenantId(1), TaskId(1), Token(1), 1);
        let later = running.insert(TenantId(1), TaskId(1), Token(2), 1);
        running.remove(TaskId(1), Token(1));
        running.stop(TaskId(1), StopReason::Cancelled);
        assert_eq!(later.stop.reason(), Some(StopReason::Cancelled));
        running.remove(TaskId(1), Token(2));
        assert_eq!(running.stop_all(StopReason::Drained), 0);
    }

    #[test]
    fn what_is_stopped_by_its_lease_is_no_other_attempt_of_its_task() {
        let running = Running::default();
        let earlier = running.insert(TenantId(1), TaskId(1), Token(1), 1);
        running.insert_batch(TenantId(1), TaskId(2), Token(1));
        assert_eq!(running.leases(), [(TaskId(1), Token(1))], "a batch has no lease of a task");
        let later = running.insert(TenantId(1), TaskId(1), Token(3), 1);
        assert_eq!(earlier.stop.reason(), Some(StopReason::Cancelled), "a later lease ends an earlier one");
        assert_eq!(running.leases(), [(TaskId(1), Token(3))]);
        running.stop_leased(TaskId(1), Token(1), StopReason::Cancelled);
        running.stop_leased(TaskId(9), Token(1), StopReason::Cancelled);
        assert_eq!(later.stop.reason(), None);
        running.stop_leased(TaskId(1), Token(3), StopReason::Cancelled);
        assert_eq!(later.stop.reason(), Some(StopReason::Cancelled));
    }

    #[test]
    fn what_a_canary_gives_out_is_told_when_its_run_counts_and_never_otherwise() {
        let told = |counts: bool| {
            let running = Running::default();
            let entry = running.insert(TenantId(1), TaskId(1), Token(1), 1);
            entry.try_out();
            entry.emit(Bytes::from_static(b"canary"));
            assert!(running.voices.find(TaskId(1)).is_none());
            entry.tried(counts);
            entry.emit(Bytes::from_static(b"after"));
            let voice = running.voices.find(TaskId(1)).expect("it has spoken");
            let mut heard = Heard::of(Token(1));
            let pieces = std::iter::from_fn(|| voice.next(&mut heard)).map(|(_, new)| match new {
                New::Piece(number, piece) => (number, piece),
                New::Progress(progress) => panic!("{progress:?}"),
            });
            pieces.collect::<Vec<_>>()
        };
        let (canary, after) = (Bytes::from_static(b"canary"), Bytes::from_static(b"after"));
        assert_eq!(told(true), [(0, canary), (1, after.clone())]);
        assert_eq!(told(false), [(0, after)]);
    }
}
