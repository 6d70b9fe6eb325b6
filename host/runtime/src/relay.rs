//! What tasks say of themselves that run on one host, for whoever watches them on another.
//!
//! A host whose callers watch a task that does not run there says so to all others, at once and again every [`ASK_EVERY`], with
//! how much it has heard; the one that runs it tells what is new to it, for [`LISTENED`] after it was last asked. Both are hints
//! between the hosts of one database: nothing of it is stored, and what was lost is told again when it is asked for again, as
//! far as it is kept.
//!
//! - what is new is told every [`ROUND`], and all the rest of an attempt's words when it has ended, before its end is told: no
//!   more than is kept of one attempt
//! - at most [`ROUND_BYTES`] of all tasks each round, in turn: one piece or report of each before the second of any
//! - of at most [`TASKS_MAX`] tasks that others watch, and of as many that are watched here, of one tenant at most
//!   [`TENANT_TASKS_MAX`]; of further ones nothing is told

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use keiko_core::port::{Said, Saying, Signal, Watched};
use keiko_core::{TaskId, TenantId, Token};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::request::Progress;
use crate::shared::Shared;
use crate::voice::{Heard, Held, New, Voices};

/// Between two times that a host says what it watches.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long a host tells others of a task without being asked again, and listens for somebody who asked.
const LISTENED: Duration = Duration::from_secs(15);
/// Between two rounds of telling.
const ROUND: Duration = Duration::from_millis(100);
/// Bytes of what is told in a round: a second of them is little for any database.
const ROUND_BYTES: usize = 16 << 10;
/// Bytes that a piece or a report counts beside its own.
const SAID_BYTES: usize = 64;
/// Tasks that are watched elsewhere, and tasks that are watched here.
const TASKS_MAX: usize = 1_000;
/// Those of them that are one tenant's: its watchers leave places to others.
const TENANT_TASKS_MAX: usize = 250;

/// Who watches what.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    audience: Mutex<Audience>,
    /// There is somebody again, there or here.
    some: Notify,
    /// Tasks that are watched here and do not run here.
    asked: Mutex<BTreeMap<TaskId, Asked>>,
}

/// What others watch.
#[derive(Debug, Default)]
struct Audience {
    tasks: BTreeMap<TaskId, Listener>,
    /// Where the next round begins.
    turn: Option<TaskId>,
}

/// Other hosts that watch a task, as one.
#[derive(Debug)]
struct Listener {
    tenant: TenantId,
    until: Instant,
    voice: Held,
    heard: Heard,
}

/// A task that others were asked of.
#[derive(Debug)]
struct Asked {
    tenant: TenantId,
    at: Instant,
    voice: Held,
}

impl Listener {
    /// What it is told next, with how much it has heard then.
    fn next(&self, task: TaskId) -> Option<(Said, Heard)> {
        // Of an attempt before the one they have heard nobody wants to know.
        let token =
            self.voice.own().map(|speaker| speaker.token).filter(|token| *token >= self.heard.token)?;
        let mut heard = if self.heard.token == token { self.heard } else { Heard::of(token) };
        let (attempt, new) = self.voice.next(&mut heard)?;
        let saying = match new {
            New::Piece(number, bytes) => Saying::Piece { number, bytes },
            New::Progress(Progress { fraction, message }) => {
                Saying::Progress { millionths: (fraction * 1e6).round() as u32, message }
            }
        };
        Some((Said { task, token, attempt, saying }, heard))
    }

    /// Tells again what somebody has not heard.
    fn go_back(&mut self, asked: Watched) {
        let next = match asked.token.cmp(&self.heard.token) {
            Ordering::Less => 0,
            Ordering::Equal => asked.next.min(self.heard.next),
            Ordering::Greater => return,
        };
        self.heard = Heard { token: self.heard.token, next, reports: 0 };
    }
}

impl Audience {
    /// What is to be told of tasks, in turn, as far as there is room; the task whose turn it would be.
    fn round(&mut self, mut order: VecDeque<TaskId>, mut room: usize) -> (Vec<Said>, Option<TaskId>) {
        let mut told = Vec::new();
        while let Some(task) = order.pop_front() {
            let Some(listener) = self.tasks.get_mut(&task) else { continue };
            let Some((said, heard)) = listener.next(task) else { continue };
            let bytes = bytes(&said);
            if bytes > room {
                return (told, Some(task));
            }
            room -= bytes;
            listener.heard = heard;
            told.push(said);
            order.push_back(task);
        }
        (told, None)
    }
}

/// Whether a tenant may have another one of the places that these have.
fn has_place(taken: impl ExactSizeIterator<Item = TenantId>, tenant: TenantId) -> bool {
    taken.len() < TASKS_MAX && taken.filter(|other| *other == tenant).count() < TENANT_TASKS_MAX
}

fn bytes(said: &Said) -> usize {
    let own = match &said.saying {
        Saying::Progress { message, .. } => message.len(),
        Saying::Piece { bytes, .. } => bytes.len(),
    };
    own + SAID_BYTES
}

impl Relay {
    /// Others watch these tasks, and may have missed what they were told.
    pub(crate) fn add(&self, voices: &Arc<Voices>, watched: Vec<Watched>, now: Instant) {
        if watched.is_empty() {
            return;
        }
        let mut audience = self.audience.lock();
        let tasks = &mut audience.tasks;
        for asked in watched {
            let Watched { tenant, task, token, next } = asked;
            if let Some(listener) = tasks.get_mut(&task) {
                listener.until = now + LISTENED;
                listener.go_back(asked);
            } else if has_place(tasks.values().map(|listener| listener.tenant), tenant) {
                let (until, voice) = (now + LISTENED, voices.hold(task));
                tasks.insert(
                    task,
                    Listener { tenant, until, voice, heard: Heard { token, next, reports: 0 } },
                );
            }
        }
        drop(audience);
        self.some.notify_one();
    }

    /// What is to be told in a round; `None` when nobody watches any more.
    fn round(&self, now: Instant) -> Option<Vec<Said>> {
        let mut audience = self.audience.lock();
        audience.tasks.retain(|_, listener| listener.until > now);
        let first = audience.turn.take().unwrap_or(TaskId(i64::MIN));
        let order = audience.tasks.range(first..).chain(audience.tasks.range(..first));
        let order = order.map(|(task, _)| *task).collect();
        let (said, turn) = audience.round(order, ROUND_BYTES);
        audience.turn = turn;
        (!audience.tasks.is_empty()).then_some(said)
    }

    /// All that is still to be told of a task whose attempt has ended.
    fn rest(&self, task: TaskId) -> Vec<Said> {
        let mut audience = self.audience.lock();
        if audience.tasks.is_empty() { Vec::new() } else { audience.round([task].into(), usize::MAX).0 }
    }

    /// Somebody of a tenant listens here to its task that does not run here; what to ask others, when it is time to.
    fn ask(&self, voices: &Arc<Voices>, tenant: TenantId, task: TaskId, now: Instant) -> Option<Watched> {
        let mut all = self.asked.lock();
        let is_new = !all.contains_key(&task);
        if is_new && !has_place(all.values().map(|asked| asked.tenant), tenant) {
            return None;
        }
        let asked = all.entry(task).or_insert_with(|| Asked { tenant, at: now, voice: voices.hold(task) });
        if !is_new && now.duration_since(asked.at) < ASK_EVERY {
            return None;
        }
        asked.at = now;
        let (token, next) = asked.voice.place();
        drop(all);
        if is_new {
            self.some.notify_one();
        }
        Some(Watched { tenant, task, token, next })
    }

    /// Lets go of tasks that nobody here listens to any more; whether there are others.
    fn forget(&self, now: Instant) -> bool {
        let mut asked = self.asked.lock();
        asked.retain(|_, asked| now.duration_since(asked.at) < LISTENED);
        !asked.is_empty()
    }
}

/// Tells others, and forgets who has gone, until stopped.
pub(crate) async fn tell(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let now = Instant::now();
        let said = shared.relay.round(now);
        let every = match (said.is_some(), shared.relay.forget(now)) {
            (true, _) => Some(ROUND),
            (false, true) => Some(LISTENED),
            (false, false) => None,
        };
        shared.say(said.unwrap_or_default());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.relay.some.notified(), if every != Some(ROUND) => {}
            () = tokio::time::sleep(every.unwrap_or_default()), if every.is_some() => {}
        }
    }
}

impl Shared {
    /// Listens to what a task says of itself, wherever it runs: where it does not run here, others are asked to tell, each
    /// few seconds that somebody listens. The task is known to be the tenant's.
    pub(crate) fn listen(&self, tenant: TenantId, task: TaskId) {
        if self.running.tenant(task).is_some() || !self.pulse.has_others() {
            return;
        }
        if let Some(watched) = self.relay.ask(&self.running.voices, tenant, task, Instant::now()) {
            self.signals.tell(Signal { watched: vec![watched], ..Signal::default() });
        }
    }

    /// How far an attempt says it is, as far as anybody here knows.
    pub(crate) fn progress(&self, tenant: TenantId, task: TaskId, token: Token) -> Option<Progress> {
        self.listen(tenant, task);
        self.running.voices.find(task)?.progress(token)
    }

    /// Other hosts listen to these tasks, and say this of their own.
    pub(crate) fn hear(&self, watched: Vec<Watched>, said: Vec<Said>) {
        self.relay.add(&self.running.voices, watched, Instant::now());
        for said in said {
            if let Some(voice) = self.running.voices.find(said.task) {
                voice.repeat(said);
            }
        }
    }

    /// An attempt has ended: whoever listens elsewhere is told the rest of it, before its end.
    pub(crate) fn last_words(&self, task: TaskId) {
        self.say(self.relay.rest(task));
    }

    fn say(&self, said: Vec<Said>) {
        if !said.is_empty() {
            self.signals.tell(Signal { said, ..Signal::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keiko_core::limit::OUTPUT_KEPT_BYTES_MAX;

    use super::*;
    use crate::voice::{PIECE_BYTES, Speaker};

    const FIRST: Speaker = Speaker { token: Token(1), attempt: 1 };
    const ADA: TenantId = TenantId(1);

    /// A host with attempts that speak as the test wants.
    #[derive(Default)]
    struct Host {
        relay: Relay,
        voices: Arc<Voices>,
    }

    impl Host {
        /// Another host asks, having heard so much of the attempt under this lease.
        fn asked(&self, task: i64, token: i64, next: u64, now: Instant) {
            self.asked_by(ADA, task, token, next, now);
        }

        fn asked_by(&self, tenant: TenantId, task: i64, token: i64, next: u64, now: Instant) {
            let watched = Watched { tenant, task: TaskId(task), token: Token(token), next };
            self.relay.add(&self.voices, vec![watched], now);
        }

        /// What a round tells, as text.
        fn round(&self, now: Instant) -> Option<Vec<String>> {
            let told = |said: &Said| {
                let task = said.task.0;
                match &said.saying {
                    Saying::Progress { millionths, .. } => format!("{task}: {millionths}"),
                    Saying::Piece { number, .. } => format!("{task}: {}.{number}", said.attempt),
                }
            };
            Some(self.relay.round(now)?.iter().map(told).collect())
        }
    }

    fn report(voice: &Held, speaker: Speaker, fraction: f64) {
        voice.report(speaker, Progress { fraction, message: String::new() });
    }

    fn emit(voice: &Held, speaker: Speaker, bytes: usize) {
        voice.emit(speaker, [Bytes::from(vec![0; bytes])]);
    }

    #[test]
    fn what_is_said_is_told_once_to_who_listens_and_again_to_who_has_missed_it() {
        let (host, now) = (Host::default(), Instant::now());
        let voice = host.voices.hold(TaskId(7));
        assert_eq!(host.round(now), None, "nobody listens");
        host.asked(7, 0, 0, now);
        host.asked(8, 0, 0, now);
        let round = |at: Instant, expected: &[&str]| {
            assert_eq!(host.round(at), Some(expected.iter().map(|text| (*text).to_owned()).collect()));
        };
        round(now, &[]);
        emit(&voice, FIRST, 1);
        report(&voice, FIRST, 0.25);
        round(now, &["7: 1.0", "7: 250000"]);
        round(now, &[]);
        emit(&voice, FIRST, 1);
        round(now, &["7: 1.1"]);
        // Somebody has not heard the last piece.
        host.asked(7, 1, 1, now + ASK_EVERY);
        round(now + ASK_EVERY, &["7: 1.1", "7: 250000"]);
        // Another attempt begins anew; who has heard of a still later one has no use for it.
        let second = Speaker { token: Token(2), attempt: 2 };
        emit(&voice, second, 1);
        host.asked(7, 3, 1, now + ASK_EVERY);
        round(now + ASK_EVERY, &["7: 2.0"]);
        host.asked(7, 1, 2, now + ASK_EVERY);
        round(now + ASK_EVERY, &["7: 2.0"]);
        assert_eq!(host.round(now + ASK_EVERY + LISTENED), None, "nobody asked again");
    }

    #[test]
    fn who_has_heard_of_a_later_attempt_is_told_of_no_earlier_one() {
        let (host, now) = (Host::default(), Instant::now());
        let voice = host.voices.hold(TaskId(7));
        emit(&voice, FIRST, 1);
        host.asked(7, 2, 0, now);
        assert_eq!(host.round(now), Some(vec![]));
    }

    #[test]
    fn what_another_host_says_is_not_told_again() {
        let (host, now) = (Host::default(), Instant::now());
        let voice = host.voices.hold(TaskId(7));
        host.asked(7, 0, 0, now);
        let saying = Saying::Progress { millionths: 1, message: String::new() };
        voice.repeat(Said { task: TaskId(7), token: Token(1), attempt: 1, saying });
        assert_eq!(host.round(now), Some(vec![]));
    }

    #[test]
    fn a_round_tells_what_fits_by_turns_and_the_rest_of_an_ended_attempt_comes_at_once() {
        let (host, now) = (Host::default(), Instant::now());
        let fit = ROUND_BYTES / (1_024 + SAID_BYTES);
        let voices = [1, 2].map(|task| host.voices.hold(TaskId(task)));
        for (task, voice) in (1..).zip(&voices) {
            host.asked(task, 0, 0, now);
            (0..fit).for_each(|_| emit(voice, FIRST, 1_024));
        }
        let told = host.round(now).expect("somebody listens");
        let of_first = told.iter().filter(|text| text.starts_with("1:")).count();
        assert_eq!((told.len(), of_first), (fit, fit.div_ceil(2)));
        let rest = host.relay.rest(TaskId(1));
        assert_eq!(rest.len(), fit - of_first);
        assert_eq!(host.relay.rest(TaskId(3)), [], "of which nobody asked");
        let told = host.round(now).expect("somebody listens");
        assert!(told.len() == of_first && told.iter().all(|text| text.starts_with("2:")), "{told:?}");
    }

    #[test]
    fn others_are_asked_each_few_seconds_with_what_was_heard() {
        let (host, now) = (Host::default(), Instant::now());
        let ask = |at: Instant| host.relay.ask(&host.voices, ADA, TaskId(7), at);
        let watched =
            |token: i64, next: u64| Some(Watched { tenant: ADA, task: TaskId(7), token: Token(token), next });
        assert_eq!(ask(now), watched(0, 0));
        assert_eq!(ask(now), None);
        let saying = Saying::Piece { number: 0, bytes: Bytes::new() };
        let voice = host.voices.find(TaskId(7)).expect("it is listened to");
        voice.repeat(Said { task: TaskId(7), token: Token(5), attempt: 1, saying });
        assert_eq!(ask(now + ASK_EVERY), watched(5, 1));
        assert!(host.relay.forget(now + LISTENED));
        assert!(!host.relay.forget(now + ASK_EVERY + LISTENED));
        assert!(host.voices.find(TaskId(7)).is_none());
    }

    #[test]
    fn all_that_is_kept_of_an_attempt_that_ends_is_told_at_once() {
        let (host, now) = (Host::default(), Instant::now());
        let voice = host.voices.hold(TaskId(7));
        host.asked(7, 0, 0, now);
        // As much as is kept, each piece with its overhead, in four rounds' worth; then a piece that lets the first go.
        let pieces = OUTPUT_KEPT_BYTES_MAX / 1_024;
        (0..pieces).for_each(|_| emit(&voice, FIRST, 1_024 - PIECE_BYTES));
        assert!(pieces * (1_024 - PIECE_BYTES) > ROUND_BYTES);
        let rest = host.relay.rest(TaskId(7));
        let whole = |said: &[Said], first: u64| {
            let numbers = said.iter().map(|said| match &said.saying {
                Saying::Piece { number, .. } => *number,
                Saying::Progress { .. } => u64::MAX,
            });
            numbers.eq(first..first + pieces as u64)
        };
        assert!(whole(&rest, 0), "{} of {pieces}", rest.len());
        assert_eq!(host.relay.rest(TaskId(7)), [], "once");
        (0..=pieces).for_each(|_| emit(&voice, FIRST, 1_024 - PIECE_BYTES));
        assert!(whole(&host.relay.rest(TaskId(7)), pieces as u64 + 1), "the newest");
    }

    #[test]
    fn a_tenant_has_so_many_places_and_leaves_the_others_to_others() {
        let (host, now) = (Host::default(), Instant::now());
        let of = |tenant: TenantId| {
            let audience = host.relay.audience.lock();
            audience.tasks.values().filter(|listener| listener.tenant == tenant).count()
        };
        let asks = |tenant: TenantId, task: i64| {
            host.asked_by(tenant, task, 0, 0, now);
            host.relay.ask(&host.voices, tenant, TaskId(task), now).is_some()
        };
        let most = TENANT_TASKS_MAX as i64;
        assert!((0..most).all(|task| asks(ADA, task)));
        assert!(!asks(ADA, most), "one more");
        assert_eq!(of(ADA), TENANT_TASKS_MAX);
        let others = TASKS_MAX as i64 / most;
        for other in 1..others {
            let tenant = TenantId(1 + other);
            assert!((other * most..(other + 1) * most).all(|task| asks(tenant, task)), "{other}");
            assert_eq!(of(tenant), TENANT_TASKS_MAX);
        }
        let last = TenantId(1 + others);
        assert!(!asks(last, -1), "there are no more places at all");
        assert_eq!((of(last), host.relay.audience.lock().tasks.len()), (0, TASKS_MAX));
        host.relay.forget(now + LISTENED);
        assert!(host.relay.ask(&host.voices, last, TaskId(-1), now).is_some(), "nobody listens any more");
    }
}
