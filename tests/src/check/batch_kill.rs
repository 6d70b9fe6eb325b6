//! A host that dies at each named point of a batch's life, again and again, while items are added.
//!
//! Items go to the processor `relay` of the fixture plugin `batches`, which adds each of them to the host's own
//! processor `kept`: a row tells which item came through, in which batch. Adds carry idempotency keys and are sent again
//! when their answer was lost.
//!
//! Promise: I-8, every accepted item is worked and acknowledged once, whatever is killed. A row that is missing was lost,
//! one that is there twice was worked by two batches that both ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Report;
use crate::{Client, Host, Options, Random, tree, wait};

/// The points, by the names that the host knows.
const POINTS: [&str; 4] = ["item-accepted", "batch-formed", "batch-worked", "batch-settled"];
/// The host dies at the latest at this pass.
const PASS_MAX: u64 = 4;
/// Items of one request.
const ITEMS: u64 = 20;
/// A host that was told to die at a point does so by then.
const DEAD_MAX: Duration = Duration::from_secs(60);
/// Everything is worked by then.
const QUIET_MAX: Duration = Duration::from_secs(300);
/// Rows of one page.
const PAGE: u32 = 1_000;

pub(super) const CONFIG: &str = "[tenants.default.processors.kept]\nkeep = \"rows\"\nage_ms = 20\n";

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills at each point.
    pub kills: u64,
    /// Of the random choices.
    pub seed: u64,
}

impl Plan {
    /// For every run of the tests: twice at each point.
    pub fn short(seed: u64) -> Plan {
        Plan { kills: 2, seed }
    }

    /// A hundred times at each point.
    pub fn long(seed: u64) -> Plan {
        Plan { kills: 100, seed }
    }
}

/// What was added, and what is not known to be.
#[derive(Default)]
struct Added {
    ids: BTreeSet<String>,
    /// Bodies whose answer was lost, by key.
    lost: BTreeMap<String, Value>,
    requests: u64,
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    let mut host = Host::start(Options::in_folder(folder)?.with_config(CONFIG)?)?;
    let client = host.client();
    client.install(&tree::guest("batches")?)?;
    let mut report = Report::new("batch-kill", &["I-8 lost", "I-8 doubled", "killed at its point"]);
    let (mut random, mut added) = (Random::new(plan.seed), Added::default());
    for round in 0..plan.kills {
        for point in POINTS {
            host.kill()?;
            host.start_again_until(Some(format!("{point}:{}", 1 + random.below(PASS_MAX))))
                .with_context(|| format!("round {round} of {point}"))?;
            added.until_dead(&client, &mut host, point, &mut report)?;
        }
    }
    host.kill()?;
    host.start_again_until(None)?;
    added.resend(&client)?;
    let (acknowledged, sent) = (added.ids.len() as u64, added.requests * ITEMS);
    report.require(acknowledged == sent, "I-8 lost", || {
        format!("{acknowledged} of {sent} items were acknowledged")
    });
    quiet(&client, "relay")?;
    quiet(&client, "kept")?;
    compare(&added.ids, &rows(&client)?, &mut report);
    report.tried("points", POINTS.len());
    report.tried("kills", plan.kills * POINTS.len() as u64);
    report.tried("items", added.ids.len());
    report.tried("requests", added.requests);
    report.tried("seconds", start.elapsed().as_secs());
    Ok(report)
}

impl Added {
    /// Adds items until the host has died.
    fn until_dead(
        &mut self,
        client: &Client,
        host: &mut Host,
        point: &'static str,
        report: &mut Report,
    ) -> Result<()> {
        self.resend(client).ok();
        let until = Instant::now() + DEAD_MAX;
        while host.is_running()? {
            if Instant::now() > until {
                report.violation("killed at its point", format!("the host lives behind {point}"));
                return Ok(());
            }
            self.add(client);
            wait::pause(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends one request; keeps it when its answer is lost.
    fn add(&mut self, client: &Client) {
        self.requests += 1;
        let key = format!("add-{}", self.requests);
        let item = |at| json!({ "item": [self.requests, at] });
        let body = json!({ "items": (0..ITEMS).map(item).collect::<Vec<_>>() });
        self.send(client, key, body).ok();
    }

    fn send(&mut self, client: &Client, key: String, body: Value) -> Result<()> {
        let sent = client.post_json("/v1/batches/relay/items", &body, Some(&key));
        match sent.and_then(|answer| answer.expect(&[200, 201])) {
            Ok(answer) => {
                let ids = answer["ids"].as_array().context("an add that answers without ids")?;
                self.ids.extend(ids.iter().filter_map(Value::as_str).map(str::to_owned));
                Ok(())
            }
            Err(error) => {
                self.lost.insert(key, body);
                Err(error)
            }
        }
    }

    /// Sends what got no answer again; stops where the host does.
    fn resend(&mut self, client: &Client) -> Result<()> {
        // One that fails is lost again, and the rest stays.
        while let Some((key, body)) = self.lost.pop_first() {
            self.send(client, key, body)?;
        }
        Ok(())
    }
}

/// Waits until a processor has nothing that waits.
pub(super) fn quiet(client: &Client, name: &str) -> Result<()> {
    wait::until("every item to be worked", QUIET_MAX, || {
        let found = client.get(&format!("/v1/batches/{name}"))?.expect(&[200])?;
        Ok((found["items"] == 0 && found["batches"] == 0).then_some(()))
    })
}

/// The item that each row came of, of all rows.
pub(super) fn rows(client: &Client) -> Result<Vec<String>> {
    let (mut of, mut after) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/v1/batches/kept/rows?limit={PAGE}{after}"))?.expect(&[200])?;
        let rows = page["rows"].as_array().context("a page without rows")?;
        of.extend(rows.iter().filter_map(|row| row["item"]["of"].as_str()).map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(of),
        }
    }
}

fn compare(added: &BTreeSet<String>, rows: &[String], report: &mut Report) {
    let mut seen = BTreeSet::new();
    for id in rows {
        report.require(seen.insert(id), "I-8 doubled", || format!("{id} came through twice"));
        report.require(added.contains(id), "I-8 doubled", || format!("{id} was never acknowledged"));
    }
    for id in added.iter().filter(|id| !seen.contains(id)) {
        report.violation("I-8 lost", format!("{id} did not come through"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_there_twice_are_violations() {
        let added = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let mut report = Report::new("batch-kill", &[]);
        compare(&added, &["a".to_owned(), "b".to_owned()], &mut report);
        assert_eq!(report.violations(), 0);
        compare(&added, &["a".to_owned(), "a".to_owned(), "c".to_owned()], &mut report);
        assert_eq!(report.violations(), 3, "{:#}", report.json());
    }
}
