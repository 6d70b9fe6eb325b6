//! Watching a task or a group: what changes of it, as soon as this host knows.
//!
//! Nothing of it is stored: a watch that begins tells how things stand, and one that goes on behind what it was told before
//! tells what is different now. What happens in between and is over again may stay untold. What a task says of itself comes
//! from the attempt that runs, through its host when that is another one ([`crate::relay`]); of its output the newest is told.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keiko_core::group::{Group, GroupState};
use keiko_core::task::TaskState;
use keiko_core::{GroupId, TaskId, TenantId, Token};
use tokio::time::{Instant, sleep};

use crate::handle::Handle;
use crate::request::{Error, Progress, TaskDetail};
use crate::voice::{Heard, Held, New};

/// Between two tellings of how far a task is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What changed of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// How it stands; nothing follows when it has ended.
    State(Box<TaskDetail>),
    /// How far its attempt says that it is.
    Progress(Progress),
    /// What its attempt gave out.
    Output {
        /// Where the watch goes on behind it.
        place: TaskPlace,
        /// The attempt, from 1.
        attempt: u32,
        /// From 0 in each run of the task; a gap shows what was lost.
        number: u64,
        /// The piece.
        piece: Bytes,
    },
}

/// How much of a task was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPlace {
    /// Its last lease then.
    pub token: Token,
    /// How it stood.
    pub state: TaskState,
    /// The number of the next piece of what the attempt under that lease gives out.
    pub next: u64,
}

/// A task that is watched; dropping it ends the watch.
pub struct TaskWatch {
    handle: Handle,
    tenant: TenantId,
    id: TaskId,
    /// Whether it is known to be the tenant's: before that nothing is told of it.
    is_known: bool,
    /// How the task stood when that was last told.
    told: Option<(Token, TaskState)>,
    voice: Held,
    heard: Heard,
    /// The last progress that was told, and when.
    progress: Option<(Progress, Instant)>,
    /// The last attempt that was heard of.
    speaks: Token,
}

impl TaskWatch {
    /// What changes next; `None` when nothing does any more, or the host stops. Safe to drop while it waits.
    ///
    /// Errors: `not_found`, `storage_*`.
    pub async fn next(&mut self) -> Result<Option<TaskEvent>, Error> {
        let handle = self.handle.clone();
        let shared = &handle.shared;
        // Pieces cost no question to the store.
        let goes_on = self.is_known && self.told.is_some_and(|(_, state)| !state.is_terminal());
        if goes_on && let Some(event) = self.said() {
            return Ok(Some(event));
        }
        loop {
            let waiter = shared.waiters.wait(self.id);
            let mut changed = pin!(waiter.changed());
            let detail = handle.task(self.tenant, self.id).await?;
            self.is_known = true;
            let stands = (detail.view.token, detail.view.summary.state);
            if self.told != Some(stands) {
                return Ok(Some(self.turn_to(stands, detail)));
            }
            if stands.1.is_terminal() || !shared.accepting.load(Ordering::Acquire) {
                return Ok(None);
            }
            let until = Instant::now() + shared.options.look_again;
            while Instant::now() < until {
                shared.listen(self.tenant, self.id);
                let voice = self.voice.voice();
                let mut spoken = pin!(voice.changed.notified());
                spoken.as_mut().enable();
                if let Some(event) = self.said() {
                    return Ok(Some(event));
                }
                let speaks = voice.place().0;
                if speaks > self.speaks.max(stands.0) {
                    // Another attempt than the one that was told of: that it has begun comes first.
                    self.speaks = speaks;
                    break;
                }
                let left = until.saturating_duration_since(Instant::now());
                tokio::select! {
                    () = &mut changed => break,
                    () = &mut spoken => {}
                    () = sleep(left.min(PROGRESS_EVERY)) => {}
                }
            }
        }
    }

    /// Tells how the task stands now, and before that what was said since it was last told.
    fn turn_to(&mut self, stands: (Token, TaskState), detail: TaskDetail) -> TaskEvent {
        let (token, state) = stands;
        if self.told.is_some() {
            if let Some(event) = self.said() {
                return event;
            }
            // An attempt may have ended before it was told of.
            if state != TaskState::Running
                && let Some(event) = self.listen_to(token)
            {
                return event;
            }
        }
        self.told = Some(stands);
        if token > self.heard.token {
            self.heard = Heard::of(token);
        }
        self.progress = detail.progress.clone().map(|progress| (progress, Instant::now()));
        TaskEvent::State(Box::new(detail))
    }

    /// Turns to a later attempt, and tells what it has said.
    fn listen_to(&mut self, token: Token) -> Option<TaskEvent> {
        if token <= self.heard.token {
            return None;
        }
        self.heard = Heard::of(token);
        self.said()
    }

    /// What the attempt that was told of has said since.
    fn said(&mut self) -> Option<TaskEvent> {
        let before = self.heard;
        let (attempt, new) = self.voice.next(&mut self.heard)?;
        let progress = match new {
            New::Piece(number, piece) => {
                let place =
                    TaskPlace { token: before.token, state: TaskState::Running, next: self.heard.next };
                return Some(TaskEvent::Output { place, attempt, number, piece });
            }
            New::Progress(progress) => progress,
        };
        if let Some((last, at)) = &self.progress {
            if *last == progress {
                return None;
            }
            if at.elapsed() < PROGRESS_EVERY {
                // Later, when it is not yet another one.
                self.heard = before;
                return None;
            }
        }
        self.progress = Some((progress.clone(), Instant::now()));
        Some(TaskEvent::Progress(progress))
    }
}

/// A group that is watched; dropping it ends the watch.
pub struct GroupWatch {
    handle: Handle,
    tenant: TenantId,
    id: GroupId,
    /// The tasks that had ended when that was last told: completed, failed and cancelled ones.
    told: Option<[u32; 3]>,
}

impl GroupWatch {
    /// How the group stands as soon as more of its tasks have ended; `None` when all have and that was told, or the host
    /// stops. Safe to drop while it waits.
    ///
    /// Errors: `not_found`, `storage_*`.
    pub async fn next(&mut self) -> Result<Option<Group>, Error> {
        let shared = &self.handle.shared;
        loop {
            let group = self.handle.group(self.tenant, self.id).await?;
            let stands = [group.completed, group.failed, group.cancelled];
            if self.told != Some(stands) {
                self.told = Some(stands);
                return Ok(Some(group));
            }
            if group.state() != GroupState::Open || !shared.accepting.load(Ordering::Acquire) {
                return Ok(None);
            }
            let next = group.next.unwrap_or(TaskId(group.id.0));
            let waiter = shared.waiters.wait(next);
            // What happened before it waits is found by the look after.
            let _ = tokio::time::timeout(shared.options.look_again, waiter.changed()).await;
        }
    }
}

impl Handle {
    /// Watches a task; `told` is how much of it was told, of which nothing is told again.
    pub fn watch(&self, tenant: TenantId, id: TaskId, told: Option<TaskPlace>) -> TaskWatch {
        TaskWatch {
            handle: self.clone(),
            tenant,
            id,
            is_known: false,
            told: told.map(|told| (told.token, told.state)),
            voice: self.shared.running.voices.hold(id),
            heard: told.map_or(Heard::of(Token(0)), |told| Heard {
                token: told.token,
                next: told.next,
                reports: 0,
            }),
            progress: None,
            speaks: Token(0),
        }
    }

    /// Watches a group; `told` are the completed, failed and cancelled tasks that were told.
    pub fn watch_group(&self, tenant: TenantId, id: GroupId, told: Option<[u32; 3]>) -> GroupWatch {
        GroupWatch { handle: self.clone(), tenant, id, told }
    }
}
