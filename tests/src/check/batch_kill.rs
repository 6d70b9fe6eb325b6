//! A host that dies at each named point of a batch's life, again and again, while items are added.
//!
//! Items go to the processor `relay` of the fixture plugin `batches`, which adds each of them to the host's own
//! processor `kept`: a row tells which item came through, in which batch. Adds carry idempotency keys and are sent again
//! when their answer was lost.
//!
//! Promise: I-8, every accepted item is worked and acknowledged once, whatever is killed. A row that is missing was lost,
//! one that is there twice was worked by two batches that both ended. The host's log says which items it handed over, in
//! which batch, and which are done with: one that is handed over after that, under whichever id, is a violation, too; also
//! where that batch never ended. What was open at a kill may be handed over again, under the same id.
//!
//! The host's own processor passes every point as the plugin's does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
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
    let config = format!("[host]\nlog = \"info,keiko_runtime::batch=trace\"\n{CONFIG}");
    let mut host = Host::start(Options::in_folder(folder)?.with_config(&config)?)?;
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
    let log = fs::read_to_string(host.log()).context("the host's log")?;
    // A kill may come before the end is told.
    let done = handed_over_once(&log, &mut report);
    report.require(done >= added.ids.len() / 2, "I-8 lost", || {
        format!("the log tells the end of {done} items")
    });
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

/// Looks for items that are handed over after they were done with, or in another batch while one is open; how many were
/// done with.
fn handed_over_once(log: &str, report: &mut Report) -> usize {
    let (mut open, mut done) = (BTreeMap::new(), BTreeMap::new());
    for line in log.lines() {
        let Some((batch, ids)) = field(line, "batch=").zip(field(line, "ids=")) else { continue };
        let is_end = line.contains("items are done with");
        if !is_end && !line.contains("items are handed over") {
            continue;
        }
        if is_end {
            // What was not done with waits again, and may be in another batch from now on.
            open.retain(|_, of| *of != batch);
        }
        for id in ids.trim_matches('"').split(',').filter(|id| !id.is_empty()) {
            if is_end {
                done.insert(id, batch);
                continue;
            }
            report.require(!done.contains_key(id), "I-8 doubled", || {
                format!("{id} is handed over in {batch} after it was done with in {}", done[id])
            });
            let before = open.insert(id, batch);
            report.require(before.is_none_or(|before| before == batch), "I-8 doubled", || {
                format!("{id} is handed over in {batch} while it is in {}", before.unwrap_or_default())
            });
        }
    }
    done.len()
}

/// What stands behind a name in a line of the log.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name))
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
    fn what_is_handed_over_again_after_its_end_is_a_violation() {
        let check = |lines: &[&str], expected: (usize, u64)| {
            let mut report = Report::new("batch-kill", &[]);
            let done = handed_over_once(&lines.join("\n"), &mut report);
            assert_eq!((done, report.violations()), expected, "{lines:?}");
        };
        let over = "TRACE keiko_runtime::batch: items are handed over batch=b1 ids=\"i1,i2\"";
        let end = "TRACE keiko_runtime::batch: items are done with batch=b1 ids=\"i1,i2\"";
        check(&[over, end], (2, 0));
        check(&[over, over, end], (2, 0));
        check(&[over, end, &over.replace("b1", "b2")], (2, 2));
        check(&[over, end, over], (2, 2));
        check(&[over, &over.replace("b1", "b2"), end], (2, 2));
        let later = "TRACE keiko_runtime::batch: items are done with batch=b1 ids=\"i1\"";
        check(&[over, later, &over.replace("i1,", "").replace("b1", "b2")], (1, 0));
    }

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
