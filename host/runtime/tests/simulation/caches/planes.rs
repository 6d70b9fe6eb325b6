//! The ways between hosts: messages come late, twice and in another order, and a host's line may be cut, which it learns a while
//! later.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use keiko_core::port::{Backplane, Change, Heard, StoreError, StoreErrorKind};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::levels::Process;
use crate::random::Random;

/// Longest way of a message, in milliseconds.
pub const DELIVERY_MAX_MS: u64 = 150;
/// A host knows by then that its line is cut, in milliseconds.
pub const NOTICE_MAX_MS: u64 = 400;

/// A plane.
pub struct Plane {
    lines: Mutex<Vec<Line>>,
    random: Mutex<Random>,
}

/// A place's line to a plane.
#[derive(Default)]
struct Line {
    up: bool,
    /// Whether an outage goes on.
    cut: bool,
    /// Counts what it was connected to: nothing arrives on another connection than it was sent to.
    connection: u64,
    heard: VecDeque<Heard>,
    waiting: Option<Waker>,
}

impl Line {
    fn hear(&mut self, heard: Heard) {
        self.heard.push_back(heard);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl Plane {
    pub fn new(places: usize, random: Random) -> Arc<Plane> {
        let lines = (0..places).map(|_| Line::default()).collect();
        Arc::new(Plane { lines: Mutex::new(lines), random: Mutex::new(random) })
    }

    /// Connects the process that begins at a place, after a while.
    pub async fn connect(self: Arc<Plane>, place: usize, process: Arc<Process>) {
        let (connection, cut) = {
            let line = &mut self.lines.lock()[place];
            *line = Line { cut: line.cut, connection: line.connection + 1, ..Line::default() };
            (line.connection, line.cut)
        };
        let delay_ms = self.random.lock().among(0, 100);
        sleep(Duration::from_millis(delay_ms)).await;
        let line = &mut self.lines.lock()[place];
        if line.connection != connection || !process.lives() {
            return;
        }
        if cut || line.cut {
            line.hear(Heard::Lost);
        } else {
            line.up = true;
            line.hear(Heard::Found);
        }
    }

    /// Cuts the line of a place for so long; whether it was there.
    pub async fn cut(self: Arc<Plane>, place: usize, lasts_ms: u64) -> bool {
        {
            let line = &mut self.lines.lock()[place];
            if line.cut {
                return false;
            }
            (line.up, line.cut) = (false, true);
            line.connection += 1;
        }
        let notice_ms = self.random.lock().among(0, NOTICE_MAX_MS);
        sleep(Duration::from_millis(notice_ms)).await;
        self.lines.lock()[place].hear(Heard::Lost);
        sleep(Duration::from_millis(lasts_ms)).await;
        let line = &mut self.lines.lock()[place];
        (line.up, line.cut) = (true, false);
        line.connection += 1;
        line.hear(Heard::Found);
        true
    }

    #[allow(clippy::disallowed_methods, reason = "messages are under way beside each other")]
    fn send(self: &Arc<Plane>, place: usize, changes: &[Change]) {
        let connection = {
            let lines = self.lines.lock();
            let Some(line) = lines.get(place).filter(|line| line.up) else { return };
            line.connection
        };
        let (copies, delays): (usize, Vec<u64>) = {
            let mut random = self.random.lock();
            let copies = if random.percent(5) { 2 } else { 1 };
            let most = if random.percent(20) { DELIVERY_MAX_MS } else { 3 };
            (copies, (0..copies).map(|_| random.among(0, most)).collect())
        };
        for delay_ms in delays.into_iter().take(copies) {
            let (plane, changes) = (Arc::clone(self), changes.to_vec());
            tokio::spawn(async move {
                sleep(Duration::from_millis(delay_ms)).await;
                let line = &mut plane.lines.lock()[place];
                if line.up && line.connection == connection {
                    line.hear(Heard::Changes(changes));
                }
            });
        }
    }
}

/// A plane as the process of a place has it.
pub struct Ear {
    pub plane: Arc<Plane>,
    pub place: usize,
    pub process: Arc<Process>,
}

#[async_trait]
impl Backplane for Ear {
    async fn tell(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.process.go_on().await;
        let (count, up) = {
            let lines = self.plane.lines.lock();
            (lines.len(), lines[self.place].up)
        };
        if !up {
            if self.plane.random.lock().percent(50) {
                pending::<()>().await;
            }
            return Err(StoreError::new(StoreErrorKind::Down, "nobody hears this host"));
        }
        (0..count).filter(|place| *place != self.place).for_each(|place| self.plane.send(place, changes));
        Ok(())
    }

    async fn next(&self) -> Heard {
        poll_fn(|context| {
            let line = &mut self.plane.lines.lock()[self.place];
            if let Some(heard) = line.heard.pop_front() {
                return Poll::Ready(heard);
            }
            line.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
