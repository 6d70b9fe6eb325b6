//! A lease that waits for the next submit of its host and goes with it, as on PostgreSQL.

use keiko_core::port::{Ask, Lease, LeaseRequest, StoreError, StoreErrorKind, Until};
use keiko_core::task::Submitted;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::link::Shared;
use super::state::State;
use crate::admit::mark_leased;

type Leased = Result<(LeaseRequest, Lease), StoreError>;

/// The lease of a host that waits, if one does.
#[derive(Default)]
pub(super) struct Next(Mutex<Option<Waiting>>);

struct Waiting {
    ask: Ask,
    reply: oneshot::Sender<Leased>,
}

impl Next {
    /// Waits for a submit that the lease goes with, or for `until`.
    pub(super) async fn wait(
        &self,
        ask: Ask,
        until: Until<'_>,
    ) -> Result<Option<(LeaseRequest, Lease)>, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        *self.0.lock() = Some(Waiting { ask, reply });
        let withdrawn = Withdrawn(self);
        tokio::select! {
            biased;
            answer = &mut answer => return answer.map_or(Ok(None), |leased| leased.map(Some)),
            () = until => {}
        }
        // It may have gone already.
        drop(withdrawn);
        answer.await.map_or(Ok(None), |leased| leased.map(Some))
    }

    /// Leases behind a submit if somebody waits for that; of which submits it takes everything is noted on their answers.
    pub(super) fn go(&self, state: &mut State, answers: &mut [Submitted]) -> Option<Along> {
        let Waiting { ask, reply } = self.0.lock().take().filter(|waiting| !waiting.reply.is_closed())?;
        let asked = ask()?;
        let lease = state.lease(&asked);
        state.leased_along += lease.tasks.len() as u64;
        mark_leased(answers, &lease.tasks.iter().map(|task| task.id).collect());
        Some(Along { reply: Some(reply), leased: Some((asked, lease)) })
    }
}

/// Takes a lease back that waits.
struct Withdrawn<'a>(&'a Next);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.0.lock().take();
    }
}

/// A lease that went with a submit. Unless it is told, whoever waits for it learns that nobody knows what was leased.
pub(super) struct Along {
    reply: Option<oneshot::Sender<Leased>>,
    leased: Option<(LeaseRequest, Lease)>,
}

impl Along {
    /// Tells it whoever waits for it; what nobody hears of goes back.
    pub(super) fn tell(mut self, shared: &Shared) {
        let Some((reply, leased)) = self.reply.take().zip(self.leased.take()) else { return };
        let Err(Ok((_, unheard))) = reply.send(Ok(leased)) else { return };
        let mut state = shared.state.lock();
        for task in unheard.tasks {
            state.give_back_unheard(task.id, task.token);
        }
    }
}

impl Drop for Along {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            // Who does not wait any more has ended.
            let _ = reply.send(Err(StoreError::new(StoreErrorKind::Down, "the answer of a lease was lost")));
        }
    }
}
