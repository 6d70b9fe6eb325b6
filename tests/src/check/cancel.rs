//! A cancel against a completion, over and over: each race has one end, and what the cancel was answered is that end.
//!
//! The pause between a submit and its cancel follows the outcome of the race before it, so that both sides win often and
//! the two meet as closely as a client can make them.
//!
//! Promises: I-2 every task ended, I-3 a result of completed tasks and of no others, I-9 the answer matches the end and the
//! end stays; and both sides win some races, or they were none.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Report;
use crate::{Client, Host, Options, tree};

/// Clients that race at once.
const CLIENTS: usize = 4;
/// A pause changes by this part of itself, and by at least this much.
const STEP: f64 = 0.05;
const STEP_MIN_US: f64 = 5.0;
/// The longest pause.
const PAUSE_MAX_US: f64 = 50_000.0;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Races in all.
    pub races: u64,
}

/// A race as its client saw it.
struct Race {
    id: String,
    end: String,
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    let host = Host::start(Options::in_folder(folder)?)?;
    let client = host.client();
    client.install(&tree::guest("contract")?)?;
    let next = AtomicU64::new(0);
    let mut report = Report::new("cancel", &["I-2", "I-3", "I-9", "both sides win"]);
    let parts: Vec<Result<(Vec<Race>, Report)>> = std::thread::scope(|scope| {
        let race = || scope.spawn(|| race_on(&client, &next, plan.races));
        let racing: Vec<_> = (0..CLIENTS).map(|_| race()).collect();
        let joined = racing.into_iter().map(|one| one.join());
        joined.map(|part| part.unwrap_or_else(|_| bail!("a client panicked"))).collect()
    });
    let mut races = Vec::new();
    for part in parts {
        let (raced, found) = part?;
        report.absorb(found);
        races.extend(raced);
    }
    let mut won = [("cancelled", 0_u64), ("completed", 0)];
    for race in &races {
        // Once more, when nothing runs any more: an end stays.
        let task = client.task(&race.id)?;
        report.require(task["state"] == race.end, "I-9", || format!("{} was {}: {task}", race.id, race.end));
        won.iter_mut().filter(|(state, _)| *state == race.end).for_each(|(_, count)| *count += 1);
    }
    report.require(client.live()? == 0, "I-2", || "tasks are live after their ends".to_owned());
    for (state, count) in won {
        report.tried(state, count);
        report.require(count > 0, "both sides win", || format!("no task of {} is {state}", races.len()));
    }
    report.tried("races", races.len());
    report.tried("seconds", start.elapsed().as_secs());
    Ok(report)
}

fn race_on(client: &Client, next: &AtomicU64, races: u64) -> Result<(Vec<Race>, Report)> {
    let mut report = Report::new("cancel", &[]);
    let (mut raced, mut pause_us) = (Vec::new(), 1_000.0);
    while next.fetch_add(1, Ordering::Relaxed) < races {
        let id = client.submit("contract", "trivial", Value::Null, json!({}))?;
        pause(pause_us);
        let told = cancel(client, &id)?;
        let task = client.ended(&id)?;
        let end = task["state"].as_str().context("a task has a state")?.to_owned();
        report.require(told == end, "I-9", || format!("{id} was told to be {told}: {task}"));
        let has_result = task.get("result").is_some() || task.get("result_base64").is_some();
        report.require(has_result == (end == "completed"), "I-3", || format!("{id}: {task}"));
        let step = (pause_us * STEP).max(STEP_MIN_US);
        pause_us = (pause_us + if end == "cancelled" { step } else { -step }).clamp(0.0, PAUSE_MAX_US);
        raced.push(Race { id, end });
    }
    Ok((raced, report))
}

/// What the answer of a cancel says that the task is.
fn cancel(client: &Client, id: &str) -> Result<String> {
    let answer = client.post(&format!("/v1/tasks/{id}/cancel"), &[], b"")?;
    let body = answer.expect(&[200, 409])?;
    if let Some(state) = body["state"].as_str() {
        return Ok(state.to_owned());
    }
    let text = body["message"].as_str().unwrap_or_default();
    let state = ["completed", "failed", "cancelled"].into_iter().find(|state| text.ends_with(state));
    state.map(str::to_owned).with_context(|| format!("the answer of a cancel names no state: {body}"))
}

/// A pause shorter than the system's own timers.
fn pause(microseconds: f64) {
    let end = Instant::now() + Duration::from_nanos((microseconds * 1e3) as u64);
    while Instant::now() < end {
        std::thread::yield_now();
    }
}
