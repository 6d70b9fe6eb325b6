//! A version that a part of the batches try while items are added.
//!
//! Two lives of the processor `flaky` of the fixture plugin `batches`, whose batches are of one item. In the first the new version
//! panics on three of ten items, behind what it asked for: it is to be taken back before more batches have tried it than the bound
//! allows. In the second the new version is as good as the current one: it is to pass.
//!
//! Promises: no item is lost or becomes a dead letter, none is put off, and what is asked for an item is written once, whichever
//! versions worked it; at most 200 batches try a version before there is a verdict, on all hosts together; the verdict is the
//! right one, and every host follows it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::attack::base64_url;
use super::batch_kill::{self, quiet, rows};
use super::canary::{Plan, judge, tried};
use super::{Report, metric};
use crate::{Client, Host, Options, tree};

/// What is looked at.
pub const INVARIANTS: &[&str] = &[
    "item lost",
    "item doubled",
    "item dead",
    "item put off",
    "processor stopped",
    "bound exceeded",
    "wrong verdict",
    "not followed",
];
/// The configuration of the hosts, of which one is the processor that items come through to.
pub const CONFIG: &str = batch_kill::CONFIG;
/// What the guest says of itself; the digit behind it is how many of ten numbers it panics on.
const MARK: &[u8] = b"of ten numbers, flaky panics on ";
/// Items of one request.
const ITEMS: u64 = 20;
/// Items of one life, at most: those of the bound, and what is worked meanwhile on the current version, twice over.
const ITEMS_MAX: u64 = 5_000;

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let host = Host::start(Options::in_folder(folder)?.with_config(CONFIG)?)?;
    run_on(plan, &[host.client()])
}

/// Runs the check on hosts of one database: each is given items in turn.
pub fn run_on(plan: &Plan, clients: &[Client]) -> Result<Report> {
    let mut report = Report::new("batch-canary", INVARIANTS);
    let (mut added, mut batches, mut most) = (BTreeSet::new(), 0, 0);
    let [client, ..] = clients else { bail!("there is no host") };
    install(client, 0, 0, "")?;
    for round in 0..u64::from(plan.rounds) {
        for (number, traps) in [(2 * round + 1, 3), (2 * round + 2, 0)] {
            install(client, number, traps, &format!("&canary_percent={}", plan.percent))?;
            live(clients, &mut added)?;
            let touched = judge(clients, "batches", "0", traps > 0, &mut report)?;
            let seen = tried(clients, "batches")?;
            report.require(seen["canary"]["batches"] == seen["canary"]["attempts"], "wrong verdict", || {
                seen.to_string()
            });
            batches += touched;
            if traps > 0 {
                most = most.max(touched);
            } else {
                let answer = client.delete("/v1/plugins/batches/canary")?;
                ensure!(answer.status == 204, "the canary is not withdrawn: {answer:.400}");
            }
        }
    }
    look(clients, &added, &mut report)?;
    report.tried("lives", 2 * plan.rounds);
    report.tried("items", added.len());
    report.tried("batches_that_tried", batches);
    report.tried("tried_at_most_by_a_bad_one", most);
    Ok(report)
}

/// Adds items until there is a verdict.
fn live(clients: &[Client], added: &mut BTreeSet<String>) -> Result<()> {
    let mut number = 0;
    while number < ITEMS_MAX && tried(clients, "batches")?["state"] == "trying" {
        let items: Vec<Value> = (number..number + ITEMS).map(|number| json!({ "item": number })).collect();
        let client = &clients[(number / ITEMS) as usize % clients.len()];
        let answer = client.post_json("/v1/batches/flaky/items", &json!({ "items": items }), None)?;
        let answer = answer.expect(&[201])?;
        let ids = answer["ids"].as_array().context("an add that answers without ids")?;
        added.extend(ids.iter().filter_map(Value::as_str).map(str::to_owned));
        number += ITEMS;
        quiet(client, "flaky")?;
    }
    Ok(())
}

/// What became of the items.
fn look(clients: &[Client], added: &BTreeSet<String>, report: &mut Report) -> Result<()> {
    quiet(&clients[0], "flaky")?;
    quiet(&clients[0], "kept")?;
    let mut seen = BTreeSet::new();
    for id in rows(&clients[0])? {
        report.require(added.contains(&id), "item doubled", || format!("{id} was never acknowledged"));
        report.require(seen.insert(id), "item doubled", || {
            "what was asked for it was written twice".to_owned()
        });
    }
    for id in added.iter().filter(|id| !seen.contains(*id)) {
        report.violation("item lost", format!("{id} did not come through"));
    }
    let flaky = clients[0].get("/v1/batches/flaky")?.expect(&[200])?;
    report.require(flaky["dead"] == 0, "item dead", || flaky.to_string());
    report.require(flaky["state"] == "active", "processor stopped", || flaky.to_string());
    for client in clients {
        let again = metric(client, "keiko_batch_items_retried_total")?;
        report.require(again == 0, "item put off", || format!("{again} times on {}", client.address()));
    }
    Ok(())
}

/// Installs a version that panics on so many of ten items.
fn install(client: &Client, version: u64, panics_on: u8, more: &str) -> Result<()> {
    let guest = panicking(tree::guest("batches")?, panics_on)?;
    let manifest = String::from_utf8(tree::fixture("guests/batches/plugin.toml")?)?;
    let manifest = manifest.replacen("version = \"0.1.0\"", &format!("version = \"{version}\""), 1);
    let path = format!("/v1/plugins?manifest={}{more}", base64_url(manifest.as_bytes()));
    client.post(&path, &[("content-type", "application/wasm")], &guest)?.expect(&[201])?;
    Ok(())
}

fn panicking(mut guest: Vec<u8>, on: u8) -> Result<Vec<u8>> {
    let mut places = guest.windows(MARK.len()).enumerate().filter(|(_, bytes)| *bytes == MARK);
    let (Some((at, _)), None) = (places.next(), places.next()) else {
        bail!("the guest does not say once what it panics on");
    };
    guest[at + MARK.len()] = b'0' + on;
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_made_to_panic_where_it_says_once_that_it_does() {
        let guest = |text: &str| text.as_bytes().to_vec();
        let said = "x of ten numbers, flaky panics on 0 y";
        let made = "x of ten numbers, flaky panics on 3 y";
        assert_eq!(panicking(guest(said), 3).unwrap(), guest(made));
        assert!(panicking(guest("x"), 3).is_err());
        assert!(panicking(guest(&said.repeat(2)), 3).is_err());
    }
}
