//! The loads: a bulk of tasks, a steady rate, and as fast as connections allow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;
use futures::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::client::{Connection, Target};
use super::histogram::Latencies;
use crate::cli::exit::Failure;
use crate::wiring::spawn;

const JSON: &str = "application/json";
/// Shortest and longest time between two looks at how many tasks are left.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// A bulk of which no task ends for this long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How late tokio's timer may be: it counts in milliseconds, and so does the wait for events below it.
const TIMER: Duration = Duration::from_millis(2);

/// What is sent, and where.
pub(super) struct Load {
    target: Target,
    /// One task or run as JSON.
    one: Bytes,
    connections: usize,
}

/// What a load came to.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) latencies: Latencies,
    pub(super) elapsed: Duration,
    /// Until the last of a bulk was accepted.
    pub(super) submitted: Option<Duration>,
    pub(super) cpu: Duration,
}

impl Load {
    pub(super) fn new(
        target: Target,
        plugin: &str,
        kind: Option<&str>,
        payload: u64,
        connections: usize,
    ) -> Load {
        // A text of so many bytes with its quotes.
        let input = "x".repeat((payload as usize).saturating_sub(2));
        let mut body = serde_json::json!({ "plugin": plugin, "input": input });
        if let Some(kind) = kind {
            body["kind"] = kind.into();
        }
        Load { target, one: body.to_string().into(), connections }
    }

    pub(super) fn tenants(&self) -> usize {
        self.target.tokens().len()
    }

    /// The tenants take turns.
    fn token(&self, number: u64) -> &Option<HeaderValue> {
        &self.target.tokens()[number as usize % self.tenants()]
    }
}

#[derive(Debug, Default, Deserialize)]
struct Counts {
    pending: u64,
    running: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl Counts {
    /// How many of `tasks` have ended since then, and how many of those did not complete. Whole tenants are counted: whatever
    /// else ends is taken for one of these, and what retention forgets meanwhile is missing until nothing is left to end.
    fn since(&self, before: &Counts, tasks: u64) -> (u64, u64) {
        let failed = (self.failed + self.cancelled).saturating_sub(before.failed + before.cancelled);
        let ended = failed + self.completed.saturating_sub(before.completed);
        let ended = if self.pending + self.running == 0 { tasks } else { ended.min(tasks) };
        (ended, failed.min(ended))
    }
}

/// Submits so many tasks in bulk and waits until all have ended.
pub(super) async fn bulk(load: &Arc<Load>, tasks: u64, batch: u64) -> Result<Done, Failure> {
    let mut looking = Connection::open(&load.target).await?;
    let before = counts(&mut looking, load).await?;
    let measure = Measure::start();
    let next = Arc::new(AtomicU64::new(0));
    let full = Bytes::from([&load.one[..], b"\n"].concat().repeat(batch as usize));
    let submit = |_| {
        let (load, next, full) = (Arc::clone(load), Arc::clone(&next), full.clone());
        beside(async move { submit(&load, &next, &full, tasks, batch).await })
    };
    let latencies = try_join_all((0..load.connections).map(submit)).await?;
    let mut done = Done { submitted: Some(measure.start.elapsed()), ..Done::default() };
    latencies.iter().for_each(|one| done.latencies.merge(one));
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let now = counts(&mut looking, load).await?;
        let (ended, failed) = now.since(&before, tasks);
        if ended == tasks {
            (done.completed, done.failed) = (tasks - failed, failed);
            break;
        }
        if ended > last {
            (last, moved) = (ended, Instant::now());
        } else if moved.elapsed() > PATIENCE {
            let text =
                format!("{} pending, {} running: no task has ended for a minute", now.pending, now.running);
            return Err(Failure::Host(text));
        }
        sleep_until(Instant::now() + next_look(measure.start.elapsed(), ended, tasks)).await;
    }
    Ok(measure.end(done))
}

/// When to look again how many of `tasks` have ended: after half of the time that the rest will take, if it goes on so.
/// A look counts what is pending, so it costs more the more there is left.
fn next_look(elapsed: Duration, ended: u64, tasks: u64) -> Duration {
    let left = elapsed.mul_f64((tasks - ended) as f64 / ended.max(1) as f64 / 2.0);
    left.clamp(LOOK_EVERY.0, LOOK_EVERY.1)
}

/// One connection's part of a bulk.
async fn submit(
    load: &Load,
    next: &AtomicU64,
    full: &Bytes,
    tasks: u64,
    batch: u64,
) -> Result<Latencies, Failure> {
    let mut connection = Connection::open(&load.target).await?;
    let mut latencies = Latencies::default();
    loop {
        let first = next.fetch_add(batch, Ordering::Relaxed);
        if first >= tasks {
            return Ok(latencies);
        }
        let count = batch.min(tasks - first) as usize;
        let body = full.slice(..count * (load.one.len() + 1));
        let began = Instant::now();
        let token = load.token(first / batch);
        connection.post("/v1/tasks", "application/x-ndjson", token, body).await?.success()?;
        latencies.add(began.elapsed().as_micros() as u64);
    }
}

/// What every tenant of the load has, together.
async fn counts(connection: &mut Connection, load: &Load) -> Result<Counts, Failure> {
    let mut sum = Counts::default();
    for token in load.target.tokens() {
        let body = connection.get("/v1/tasks/counts", token).await?.success()?;
        let one: Counts = serde_json::from_slice(&body)
            .map_err(|error| Failure::Host(format!("the host's answer is not understood: {error}")))?;
        sum.pending += one.pending;
        sum.running += one.running;
        sum.completed += one.completed;
        sum.failed += one.failed;
        sum.cancelled += one.cancelled;
    }
    Ok(sum)
}

/// Sends so many a second for so long. A latency begins when its request was due, though it was sent later because all
/// connections were busy: who waits in front of the door waits, too. What the timer alone is late is no part of it.
pub(super) async fn at_rate(
    load: &Arc<Load>,
    path: &'static str,
    rate: u64,
    duration: Duration,
) -> Result<Done, Failure> {
    let total = (rate as f64 * duration.as_secs_f64()) as u64;
    let next = Arc::new(AtomicU64::new(0));
    let measure = Measure::start();
    let start = measure.start;
    let due = move |number: u64| start + Duration::from_secs_f64(number as f64 / rate as f64);
    let parts = (0..load.connections).map(|_| {
        let (load, next) = (Arc::clone(load), Arc::clone(&next));
        beside(async move {
            let mut connection = Connection::open(&load.target).await?;
            let mut done = Done::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok(done);
                }
                let since = wait_until(due(number)).await;
                one(&load, &mut connection, path, number, since, &mut done).await?;
            }
        })
    });
    let parts = try_join_all(parts).await?;
    Ok(measure.end(sum(parts)))
}

/// Waits until a request is due, and says since when it is late: since then, if nothing was waited for; otherwise since the
/// timer said so, which is up to [`TIMER`] later by itself.
async fn wait_until(due: Instant) -> Instant {
    if Instant::now() >= due {
        return due;
    }
    sleep_until(due).await;
    Instant::now().min(due + TIMER)
}

/// Sends one after the other on every connection, for so long.
pub(super) async fn as_fast_as_possible(
    load: &Arc<Load>,
    path: &'static str,
    duration: Duration,
) -> Result<Done, Failure> {
    let measure = Measure::start();
    let until = measure.start + duration;
    let parts = (0..load.connections as u64).map(|number| {
        let load = Arc::clone(load);
        beside(async move {
            let mut connection = Connection::open(&load.target).await?;
            let mut done = Done::default();
            loop {
                let began = Instant::now();
                if began >= until {
                    return Ok(done);
                }
                one(&load, &mut connection, path, number, began, &mut done).await?;
            }
        })
    });
    let parts = try_join_all(parts).await?;
    Ok(measure.end(sum(parts)))
}

async fn one(
    load: &Load,
    connection: &mut Connection,
    path: &str,
    number: u64,
    since: Instant,
    done: &mut Done,
) -> Result<(), Failure> {
    let answer = connection.post(path, JSON, load.token(number), load.one.clone()).await?;
    done.latencies.add(since.elapsed().as_micros() as u64);
    if answer.status.is_success() && is_completed(path, &answer.body) {
        done.completed += 1;
    } else {
        done.failed += 1;
    }
    Ok(())
}

/// A run that is answered has completed; a task says how it ended.
fn is_completed(path: &str, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Task {
        state: String,
    }
    !path.starts_with("/v1/tasks")
        || serde_json::from_slice::<Task>(body).is_ok_and(|task| task.state == "completed")
}

fn sum(parts: Vec<Done>) -> Done {
    let mut done = Done::default();
    for part in parts {
        done.completed += part.completed;
        done.failed += part.failed;
        done.latencies.merge(&part.latencies);
    }
    done
}

/// Runs a part of a load on the runtime's threads, beside the others.
async fn beside<T: Send + 'static>(
    part: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, done) = oneshot::channel();
    spawn(&TaskTracker::new(), async move {
        // Nobody listens when another part has failed.
        let _ = sender.send(part.await);
    });
    done.await.map_err(|_| Failure::Host("a part of the load panicked".to_owned()))?
}

/// From the first request to the last answer.
struct Measure {
    start: Instant,
    cpu: Duration,
}

impl Measure {
    fn start() -> Measure {
        Measure { start: Instant::now(), cpu: cpu() }
    }

    fn end(self, done: Done) -> Done {
        Done { elapsed: self.start.elapsed(), cpu: cpu().saturating_sub(self.cpu), ..done }
    }
}

/// Processor time of this process, all threads.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_else_its_tenants_do_no_more_tasks_end_than_there_are() {
        let counts = |pending, completed, failed| Counts { pending, completed, failed, ..Counts::default() };
        let check = |now: Counts, expected| {
            assert_eq!(now.since(&counts(0, 100, 50), 10), expected, "{now:?}");
        };
        check(counts(10, 100, 50), (0, 0));
        check(counts(4, 105, 51), (6, 1));
        check(counts(0, 109, 51), (10, 1));
        // Others end, or fail, beside them.
        check(counts(3, 130, 50), (10, 0));
        check(counts(3, 101, 90), (10, 10));
        // Retention forgets some that had ended before, or some of these.
        check(counts(3, 90, 20), (0, 0));
        check(counts(3, 90, 52), (2, 2));
        check(counts(0, 90, 20), (10, 0));
    }

    #[test]
    fn looks_come_closer_as_the_end_does() {
        let second = Duration::from_secs(1);
        assert_eq!(next_look(Duration::ZERO, 0, 1_000), LOOK_EVERY.0);
        assert_eq!(next_look(second, 0, 1_000), LOOK_EVERY.1);
        assert_eq!(next_look(second, 800, 1_000), Duration::from_millis(125));
        assert_eq!(next_look(second, 999, 1_000), LOOK_EVERY.0);
    }
}
