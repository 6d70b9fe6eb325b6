//! What running attempts say of themselves before they end: how far they are, and pieces of output.
//!
//! A [`Voice`] is a task's. An attempt that runs here speaks through it, or one that runs on another host is repeated in it
//! ([`crate::relay`]); who watches the task hears it. It is there while somebody speaks or listens, and nothing of it is stored.
//!
//! - It tells of one attempt: the one under the highest lease that was heard of. An earlier one is not listened to any more.
//! - Of an attempt's output the newest [`OUTPUT_KEPT_BYTES_MAX`] bytes are kept for who begins to listen. Pieces have numbers
//!   from 0, so that a gap shows.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use keiko_core::limit::OUTPUT_KEPT_BYTES_MAX;
use keiko_core::port::{Said, Saying};
use keiko_core::{TaskId, Token};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::request::Progress;

/// Bytes that a piece counts beside its own.
pub(crate) const PIECE_BYTES: usize = 32;

/// The voices that somebody holds.
#[derive(Debug, Default)]
pub(crate) struct Voices(Mutex<HashMap<TaskId, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    holders: usize,
    voice: Arc<Voice>,
}

impl Voices {
    /// Holds the voice of a task.
    pub(crate) fn hold(self: &Arc<Voices>, task: TaskId) -> Held {
        let mut voices = self.0.lock();
        let entry = voices.entry(task).or_default();
        entry.holders += 1;
        Held { voices: Arc::clone(self), task, voice: Arc::clone(&entry.voice) }
    }

    /// The voice of a task, if somebody holds it.
    pub(crate) fn find(&self, task: TaskId) -> Option<Arc<Voice>> {
        self.0.lock().get(&task).map(|entry| Arc::clone(&entry.voice))
    }
}

/// A voice that is there as long as this is.
#[derive(Debug)]
pub(crate) struct Held {
    voices: Arc<Voices>,
    task: TaskId,
    voice: Arc<Voice>,
}

impl Held {
    /// The voice, to be listened to while its holder does something else.
    pub(crate) fn voice(&self) -> Arc<Voice> {
        Arc::clone(&self.voice)
    }
}

impl Deref for Held {
    type Target = Voice;

    fn deref(&self) -> &Voice {
        &self.voice
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut voices = self.voices.0.lock();
        if let Some(entry) = voices.get_mut(&self.task) {
            entry.holders -= 1;
            if entry.holders == 0 {
                voices.remove(&self.task);
            }
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speaker {
    /// The lease under which the attempt runs.
    pub(crate) token: Token,
    /// The attempt's number, from 1.
    pub(crate) attempt: u32,
}

impl Speaker {
    /// Before every lease.
    const NOBODY: Speaker = Speaker { token: Token(0), attempt: 0 };
}

/// What a task says of itself.
#[derive(Debug)]
pub(crate) struct Voice {
    spoken: Mutex<Spoken>,
    /// Something was said.
    pub(crate) changed: Notify,
}

/// By one attempt.
#[derive(Debug)]
struct Spoken {
    speaker: Speaker,
    /// It runs, or ran, on this host: what others say of it is not listened to.
    is_own: bool,
    progress: Option<Progress>,
    /// Reports of progress so far.
    reports: u64,
    pieces: Pieces,
}

/// How far somebody has listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// To which attempt.
    pub(crate) token: Token,
    /// The number of the next piece.
    pub(crate) next: u64,
    /// Reports of progress.
    pub(crate) reports: u64,
}

impl Heard {
    /// Nothing of an attempt.
    pub(crate) fn of(token: Token) -> Heard {
        Heard { token, next: 0, reports: 0 }
    }
}

/// What is new to somebody.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum New {
    /// A piece of output with its number.
    Piece(u64, Bytes),
    /// How far the attempt is.
    Progress(Progress),
}

impl Default for Voice {
    fn default() -> Voice {
        Voice { spoken: Mutex::new(Spoken::of(Speaker::NOBODY)), changed: Notify::new() }
    }
}

impl Voice {
    /// An attempt on this host says how far it is.
    pub(crate) fn report(&self, speaker: Speaker, progress: Progress) {
        self.speak(speaker, |spoken| spoken.report(progress));
    }

    /// An attempt on this host gives out what it has.
    pub(crate) fn emit(&self, speaker: Speaker, pieces: impl IntoIterator<Item = Bytes>) {
        self.speak(speaker, |spoken| pieces.into_iter().for_each(|piece| spoken.pieces.push(piece)));
    }

    fn speak(&self, speaker: Speaker, say: impl FnOnce(&mut Spoken)) {
        let mut spoken = self.spoken.lock();
        spoken.turn_to(speaker);
        // Otherwise another host runs a later attempt, and this one is being stopped.
        if spoken.speaker == speaker {
            spoken.is_own = true;
            say(&mut spoken);
            drop(spoken);
            self.changed.notify_waiters();
        }
    }

    /// Another host repeats what an attempt there says.
    pub(crate) fn repeat(&self, said: Said) {
        let speaker = Speaker { token: said.token, attempt: said.attempt };
        let mut spoken = self.spoken.lock();
        spoken.turn_to(speaker);
        if spoken.is_own || spoken.speaker != speaker {
            return;
        }
        match said.saying {
            Saying::Progress { millionths, message } => {
                let progress = Progress { fraction: f64::from(millionths) / 1e6, message };
                if spoken.progress.as_ref() == Some(&progress) {
                    return;
                }
                spoken.report(progress);
            }
            Saying::Piece { number, bytes } => {
                if number < spoken.pieces.next() {
                    return;
                }
                if number > spoken.pieces.next() {
                    // What is between was lost, or is older than what is kept there.
                    spoken.pieces = Pieces { first: number, ..Pieces::default() };
                }
                spoken.pieces.push(bytes);
            }
        }
        drop(spoken);
        self.changed.notify_waiters();
    }

    /// The lease of the last attempt that spoke, and the number of its next piece.
    pub(crate) fn place(&self) -> (Token, u64) {
        let spoken = self.spoken.lock();
        (spoken.speaker.token, spoken.pieces.next())
    }

    /// The last attempt that spoke, if it runs or ran on this host.
    pub(crate) fn own(&self) -> Option<Speaker> {
        let spoken = self.spoken.lock();
        spoken.is_own.then_some(spoken.speaker)
    }

    /// How far an attempt last said that it is.
    pub(crate) fn progress(&self, token: Token) -> Option<Progress> {
        let spoken = self.spoken.lock();
        spoken.progress.clone().filter(|_| spoken.speaker.token == token)
    }

    /// What the attempt that `heard` is about has said since, pieces first, with its number; `heard` goes on. `None` when
    /// there is nothing, or when another attempt speaks.
    pub(crate) fn next(&self, heard: &mut Heard) -> Option<(u32, New)> {
        let spoken = self.spoken.lock();
        if spoken.speaker.token != heard.token {
            return None;
        }
        let attempt = spoken.speaker.attempt;
        if let Some((number, piece)) = spoken.pieces.from(heard.next) {
            heard.next = number + 1;
            return Some((attempt, New::Piece(number, piece.clone())));
        }
        let progress = spoken.progress.clone().filter(|_| spoken.reports > heard.reports)?;
        heard.reports = spoken.reports;
        Some((attempt, New::Progress(progress)))
    }
}

impl Spoken {
    fn of(speaker: Speaker) -> Spoken {
        Spoken { speaker, is_own: false, progress: None, reports: 0, pieces: Pieces::default() }
    }

    fn turn_to(&mut self, speaker: Speaker) {
        if speaker.token > self.speaker.token {
            *self = Spoken::of(speaker);
        }
    }

    fn report(&mut self, progress: Progress) {
        self.progress = Some(progress);
        self.reports += 1;
    }
}

/// The newest pieces of what an attempt gives out.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    list: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
}

impl Pieces {
    /// Adds one, and lets go of the oldest ones beyond what is kept.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len() + PIECE_BYTES;
        self.list.push_back(piece);
        while self.bytes > OUTPUT_KEPT_BYTES_MAX {
            let Some(oldest) = self.list.pop_front() else { return };
            self.bytes -= oldest.len() + PIECE_BYTES;
            self.first += 1;
        }
    }

    /// Those that are kept; `None` when none ever was there.
    pub(crate) fn kept(self) -> Option<impl Iterator<Item = Bytes>> {
        (!self.list.is_empty()).then(|| self.list.into_iter())
    }

    /// The number of the next one.
    fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }

    /// The first that is kept from a number on, with its own.
    fn from(&self, number: u64) -> Option<(u64, &Bytes)> {
        let number = number.max(self.first);
        let at = usize::try_from(number - self.first).ok()?;
        self.list.get(at).map(|piece| (number, piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Speaker = Speaker { token: Token(5), attempt: 1 };
    const SECOND: Speaker = Speaker { token: Token(6), attempt: 2 };

    fn all(voice: &Voice, heard: &mut Heard) -> Vec<(u32, New)> {
        std::iter::from_fn(|| voice.next(heard)).collect()
    }

    fn half() -> Progress {
        Progress { fraction: 0.5, message: "half".to_owned() }
    }

    fn piece(attempt: u32, number: u64, text: &'static str) -> (u32, New) {
        (attempt, New::Piece(number, Bytes::from_static(text.as_bytes())))
    }

    fn emit(voice: &Voice, speaker: Speaker, text: &'static str) {
        voice.emit(speaker, [Bytes::from_static(text.as_bytes())]);
    }

    #[test]
    fn each_listener_hears_every_piece_once_and_the_latest_progress() {
        let voice = Voice::default();
        let (mut early, mut late) = (Heard::of(FIRST.token), Heard::of(FIRST.token));
        emit(&voice, FIRST, "a");
        assert_eq!(all(&voice, &mut early), [piece(1, 0, "a")]);
        voice.report(FIRST, Progress { fraction: 0.1, message: String::new() });
        voice.report(FIRST, half());
        emit(&voice, FIRST, "b");
        assert_eq!(all(&voice, &mut early), [piece(1, 1, "b"), (1, New::Progress(half()))]);
        let whole = [piece(1, 0, "a"), piece(1, 1, "b"), (1, New::Progress(half()))];
        assert_eq!(all(&voice, &mut late), whole);
        assert_eq!(all(&voice, &mut early), []);
    }

    #[test]
    fn a_later_attempt_begins_anew_and_an_earlier_one_is_not_heard_any_more() {
        let voice = Voice::default();
        emit(&voice, FIRST, "a");
        voice.report(FIRST, half());
        emit(&voice, SECOND, "b");
        emit(&voice, FIRST, "late");
        assert_eq!(all(&voice, &mut Heard::of(FIRST.token)), []);
        assert_eq!(all(&voice, &mut Heard::of(SECOND.token)), [piece(2, 0, "b")]);
        assert_eq!((voice.place(), voice.own()), ((SECOND.token, 1), Some(SECOND)));
        assert_eq!(voice.progress(SECOND.token), None, "the second has not said how far it is");
    }

    #[test]
    fn the_newest_output_is_kept_for_who_comes_late() {
        let numbers = |voice: &Voice| {
            let mut heard = Heard::of(FIRST.token);
            let number = |(_, new)| match new {
                New::Piece(number, _) => number,
                New::Progress(_) => u64::MAX,
            };
            all(voice, &mut heard).into_iter().map(number).collect::<Vec<_>>()
        };
        let voice = Voice::default();
        let quarter = Bytes::from(vec![0; OUTPUT_KEPT_BYTES_MAX / 4 - PIECE_BYTES]);
        voice.emit(FIRST, std::iter::repeat_n(quarter, 4));
        assert_eq!(numbers(&voice), [0, 1, 2, 3]);
        emit(&voice, FIRST, "");
        assert_eq!(numbers(&voice), [1, 2, 3, 4], "one more");
    }

    fn said(speaker: Speaker, number: u64, text: &'static str) -> Said {
        let saying = Saying::Piece { number, bytes: Bytes::from_static(text.as_bytes()) };
        Said { task: TaskId(1), token: speaker.token, attempt: speaker.attempt, saying }
    }

    #[test]
    fn what_is_repeated_is_heard_once_and_shows_its_gaps() {
        let voice = Voice::default();
        let mut heard = Heard::of(SECOND.token);
        let mut hear = |said: Said| {
            voice.repeat(said);
            all(&voice, &mut heard)
        };
        assert_eq!(hear(said(SECOND, 0, "a")), [piece(2, 0, "a")]);
        assert_eq!(hear(said(SECOND, 0, "a")), [], "again");
        assert_eq!(hear(said(SECOND, 3, "d")), [piece(2, 3, "d")]);
        assert_eq!(hear(said(SECOND, 2, "c")), [], "too late");
        assert_eq!(hear(said(FIRST, 4, "e")), [], "of an earlier attempt");
        let saying = Saying::Progress { millionths: 500_000, message: "half".to_owned() };
        let progress = Said { task: TaskId(1), token: SECOND.token, attempt: 2, saying };
        assert_eq!(hear(progress.clone()), [(2, New::Progress(half()))]);
        assert_eq!(hear(progress), [], "no news");
        assert_eq!(voice.own(), None);
        // An attempt that runs here speaks for itself.
        let own = Speaker { token: Token(9), attempt: 3 };
        emit(&voice, own, "x");
        voice.repeat(said(own, 1, "y"));
        assert_eq!(all(&voice, &mut Heard::of(own.token)), [piece(3, 0, "x")]);
    }

    #[test]
    fn a_voice_is_there_while_somebody_holds_it() {
        let voices = Arc::new(Voices::default());
        let (speaks, listens) = (voices.hold(TaskId(1)), voices.hold(TaskId(1)));
        emit(&speaks, FIRST, "a");
        drop(speaks);
        assert_eq!(listens.place(), (FIRST.token, 1), "the end can still be heard");
        drop(listens);
        assert!(voices.find(TaskId(1)).is_none());
    }
}
