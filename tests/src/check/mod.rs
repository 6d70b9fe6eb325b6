//! The long checks: each drives a real host through something harsh and counts the violations of every invariant.
//!
//! `cargo xtask check NAME [--long]` runs one and prints its [`Report`] as one JSON line; the short form of each
//! runs with the tests.

pub mod attack;
pub mod batch_canary;
pub mod batch_kill;
pub mod bombs;
pub mod cache_faults;
pub mod canary;
pub mod cancel;
pub mod cold_key;
mod crashed;
mod history;
pub mod hostile;
pub mod hosts;
pub mod kill;
pub mod languages;
pub mod load;
pub mod restart;
pub mod swap;
pub mod upload;
pub mod uploading;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::Client;

/// Notes kept of a run; the rest is only counted.
const NOTES_MAX: usize = 20;

/// What was tried and what was found.
#[derive(Clone, Debug)]
pub struct Report {
    check: &'static str,
    tried: Map<String, Value>,
    violations: BTreeMap<&'static str, u64>,
    notes: Vec<String>,
}

impl Report {
    /// An empty report over these invariants, so that a reader sees which were looked at.
    pub fn new(check: &'static str, invariants: &[&'static str]) -> Report {
        let violations = invariants.iter().map(|&name| (name, 0)).collect();
        Report { check, tried: Map::new(), violations, notes: Vec::new() }
    }

    /// Names another invariant that was looked at.
    pub fn look_at(&mut self, invariant: &'static str) {
        self.violations.entry(invariant).or_default();
    }

    /// Says what was tried, or measured.
    pub fn tried(&mut self, name: &str, value: impl Into<Value>) {
        self.tried.insert(name.to_owned(), value.into());
    }

    /// Counts a violation.
    pub fn violation(&mut self, invariant: &'static str, note: impl Into<String>) {
        *self.violations.entry(invariant).or_default() += 1;
        if self.notes.len() < NOTES_MAX {
            self.notes.push(format!("{invariant}: {}", note.into()));
        }
    }

    /// Counts a violation unless `holds`.
    pub fn require(&mut self, holds: bool, invariant: &'static str, note: impl FnOnce() -> String) {
        if !holds {
            self.violation(invariant, note());
        }
    }

    /// Adds what another part of the same check found.
    pub fn absorb(&mut self, other: Report) {
        self.tried.extend(other.tried);
        for (name, count) in other.violations {
            *self.violations.entry(name).or_default() += count;
        }
        let room = NOTES_MAX.saturating_sub(self.notes.len());
        self.notes.extend(other.notes.into_iter().take(room));
    }

    /// Violations of all invariants.
    pub fn violations(&self) -> u64 {
        self.violations.values().sum()
    }

    /// The one line.
    pub fn json(&self) -> Value {
        json!({
            "check": self.check,
            "tried": self.tried,
            "violations": self.violations,
            "notes": self.notes,
        })
    }
}

/// The value of a metric without labels.
fn metric(client: &Client, name: &str) -> Result<u64> {
    let page = client.get("/metrics")?;
    let text = String::from_utf8_lossy(&page.bytes).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    let value = line.with_context(|| format!("there is no metric {name}"))?;
    Ok(value.trim().parse::<f64>().with_context(|| format!("{name} is {value}"))? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_every_violation_and_keeps_the_first_notes() {
        let mut report = Report::new("kill", &["I-1", "I-2"]);
        report.tried("kills", 3);
        report.require(true, "I-1", || unreachable!("it holds"));
        for number in 0..NOTES_MAX + 5 {
            report.require(false, "I-2", || format!("task {number}"));
        }
        let line = report.json();
        assert_eq!(line["violations"], json!({"I-1": 0, "I-2": NOTES_MAX + 5}));
        assert_eq!(line["notes"].as_array().map(Vec::len), Some(NOTES_MAX));
        assert_eq!(report.violations(), NOTES_MAX as u64 + 5);
    }
}
