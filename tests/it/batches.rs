//! Batches over HTTP: items, processors of a plugin and of the host, dead letters, and what a kill leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use keiko_tests::check::attack::base64_url;
use keiko_tests::{Client, Random, tree, wait};
use serde_json::{Value, json};

use crate::Running;

/// Everything here is done by then.
const SOON: Duration = Duration::from_secs(60);
/// The processor that `relay` adds to.
const KEPT: &str = "[tenants.default.processors.kept]\nkeep = \"rows\"\nage_ms = 20\n";

fn start() -> Running {
    let running = Running::with_config(KEPT);
    running.client.install(&tree::guest("batches").unwrap()).unwrap();
    running
}

fn add(client: &Client, processor: &str, items: Vec<Value>) -> Vec<String> {
    let items: Vec<Value> = items.into_iter().map(|item| json!({ "item": item })).collect();
    let path = format!("/v1/batches/{processor}/items");
    let answer = client.post_json(&path, &json!({ "items": items }), None).unwrap().expect(&[201]).unwrap();
    texts(&answer["ids"])
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn processor(client: &Client, name: &str) -> Value {
    client.get(&format!("/v1/batches/{name}")).unwrap().expect(&[200]).unwrap()
}

/// Waits until a processor has nothing that waits.
fn until_empty(client: &Client, name: &str) -> Value {
    let look = || {
        let found = processor(client, name);
        Ok((found["items"] == 0 && found["batches"] == 0).then_some(found))
    };
    wait::until("every item to be worked", SOON, look).unwrap()
}

/// All rows or dead letters of a processor, page by page.
fn all(client: &Client, processor: &str, what: &str) -> Vec<Value> {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/batches/{processor}/{what}?limit=100{after}");
        let page = client.get(&path).unwrap().expect(&[200]).unwrap();
        rows.extend(page[what].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return rows,
        }
    }
}

/// One number of the host's metrics.
fn metric(client: &Client, name: &str) -> u64 {
    let text = String::from_utf8(client.get("/metrics").unwrap().bytes).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default().to_owned();
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[test]
fn batches() {
    let running = start();
    let client = &running.client;
    let ids = add(client, "plain", vec![json!(1), json!({"a": [2]})]);
    assert!(ids.iter().all(|id| id.starts_with("item_")), "{ids:?}");
    let listed: BTreeSet<String> = ids.into_iter().collect();
    assert_eq!(listed.len(), 2);
    let found = until_empty(client, "plain");
    assert_eq!(
        (&found["plugin"], &found["made_by"], &found["state"]),
        (&json!("batches"), &json!("plugin"), &json!("active"))
    );
    assert_eq!((&found["settings"]["items"], &found["settings"]["age_ms"]), (&json!(1000), &json!(100)));
    let names: Vec<Value> = client.get("/v1/batches").unwrap().json().unwrap()["processors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["clocked", "flaky", "hungry", "kept", "picky", "plain", "relay"].map(|name| json!(name))
    );
}

#[test]
fn batches_run_on_kept_instances_when_the_manifest_asks() {
    let running = Running::with_config(KEPT);
    let client = &running.client;
    let manifest = String::from_utf8(tree::fixture("guests/batches/plugin.toml").unwrap()).unwrap();
    let manifest = manifest.replacen("[[kind]]", "[plugin.reuse]\ninstances = 1\n\n[[kind]]", 1);
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    let component = tree::guest("batches").unwrap();
    client.post(&path, &[("content-type", "application/wasm")], &component).unwrap().expect(&[201]).unwrap();
    for round in 0..3 {
        add(client, "plain", vec![json!(round)]);
        until_empty(client, "plain");
    }
    assert_eq!(metric(client, "keiko_instances_reused_total"), 2);
    assert_eq!(metric(client, "keiko_instances_fresh_total"), 1);
    assert_eq!(metric(client, "keiko_instances_kept"), 1);
}

/// Adds a thousand items of which those at `places` are poison; the ids, and the dead letters.
fn poison_of_a_thousand(client: &Client, places: &[usize]) -> (Vec<String>, Vec<Value>) {
    let item = |n: usize| if places.contains(&n) { json!("poison") } else { json!(n) };
    let ids = add(client, "picky", (0..1_000).map(item).collect());
    assert_eq!(until_empty(client, "picky")["dead"], places.len());
    let done =
        || Ok((metric(client, "keiko_batch_items_done_total") == 1_000 - places.len() as u64).then_some(()));
    // They are counted when they have been written.
    wait::until("every other item to be done", SOON, done).unwrap();
    assert_eq!(metric(client, "keiko_batches_formed_total"), 1, "all of them are one batch");
    assert_eq!(metric(client, "keiko_batch_items_dead_total"), places.len() as u64);
    let runs = metric(client, "keiko_batch_runs_total");
    assert!((2..=21 * places.len() as u64).contains(&runs), "{runs} runs");
    (ids, all(client, "picky", "dead"))
}

#[test]
fn one_poison_item_of_a_thousand_is_the_one_dead_letter() {
    let running = start();
    let (ids, dead) = poison_of_a_thousand(&running.client, &[321]);
    assert_eq!((&dead[0]["id"], &dead[0]["attempts"]), (&json!(ids[321]), &json!(1)));
    assert_eq!(dead[0]["error"]["code"], "trap");
    let message = dead[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("this item is poison"), "{message}");
    let trace = dead[0]["error"]["backtrace"].to_string();
    assert!(trace.contains("picky") && trace.contains("lib.rs"), "{trace}");
}

#[test]
fn ten_poison_items_of_a_thousand_are_the_ten_dead_letters() {
    let running = start();
    let places = [0, 1, 99, 333, 334, 500, 501, 750, 998, 999];
    let (ids, dead) = poison_of_a_thousand(&running.client, &places);
    let expected: Vec<&String> = places.iter().map(|place| &ids[*place]).collect();
    let found: Vec<&str> = dead.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert_eq!(found, expected);
    assert!(dead.iter().all(|letter| letter["error"]["code"] == "trap" && letter["item"] == "poison"));
}

#[test]
fn dead_letters_are_shown_tried_again_and_dropped() {
    let running = start();
    let client = &running.client;
    let ids = add(client, "picky", vec![json!("odd"), json!("poison"), json!(1)]);
    assert_eq!(until_empty(client, "picky")["dead"], 2);
    let path = format!("/v1/batches/picky/dead/{}", ids[0]);
    let shown = client.get(&path).unwrap().expect(&[200]).unwrap();
    assert_eq!((&shown["error"]["code"], &shown["item"]), (&json!("plugin_failed"), &json!("odd")));
    assert_eq!(shown["error"]["message"], "an odd item");
    let retried = client.post(&format!("{path}/retry"), &[], &[]).unwrap().expect(&[200]).unwrap();
    assert_eq!(retried["count"], 1);
    let again = || Ok((until_empty(client, "picky")["dead"] == 2).then_some(()));
    wait::until("the item to be dead again", SOON, again).unwrap();
    assert_eq!(client.delete(&path).unwrap().expect(&[200]).unwrap()["count"], 1);
    assert_eq!(client.get(&path).unwrap().code(), "not_found");
    assert_eq!(client.delete("/v1/batches/picky/dead").unwrap().expect(&[200]).unwrap()["count"], 1);
    assert_eq!(all(client, "picky", "dead"), [] as [Value; 0]);
    assert_eq!(client.get("/v1/batches/picky/dead/item_0000000000001").unwrap().status, 404);
    assert_eq!(client.get("/v1/batches/nobody/dead").unwrap().status, 404);
}

#[test]
fn what_a_batch_adds_comes_with_its_end() {
    let running = start();
    let client = &running.client;
    let ids = add(client, "relay", (0..120).map(|n| json!(n)).collect());
    until_empty(client, "relay");
    until_empty(client, "kept");
    let rows = all(client, "kept", "rows");
    let of: Vec<&str> = rows.iter().map(|row| row["item"]["of"].as_str().unwrap()).collect();
    assert_eq!(of.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>(), ids.into_iter().collect());
    assert_eq!(of.len(), 120);
    let batches: BTreeSet<String> = rows.iter().map(|row| row["item"]["batch"].to_string()).collect();
    assert_eq!(batches.len(), 3, "fifty, fifty and what was left after its time");
}

#[test]
fn items_of_a_failed_task_never_appear() {
    let running = start();
    let client = &running.client;
    let input = |fail| json!({ "processor": "kept", "items": [1, 2], "key": "k", "fail": fail });
    let failed = client.run("batches", "feed", input(true), json!(null)).unwrap();
    assert_eq!(failed["state"], "failed", "{failed}");
    let completed = client.run("batches", "feed", input(false), json!(null)).unwrap();
    let ids = texts(&completed["result"]["ids"]);
    until_empty(client, "kept");
    let rows = all(client, "kept", "rows");
    assert_eq!(rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    assert_eq!((&rows[0]["key"], &rows[0]["item"]), (&json!("k"), &json!(1)));
    let missing =
        client.run("batches", "feed", json!({ "processor": "nobody", "items": [1] }), json!(null)).unwrap();
    assert_eq!(missing["error"]["code"], "plugin_failed");
}

#[test]
fn an_endless_processor_is_stopped_by_its_fuel_and_found_out() {
    let running = start();
    let client = &running.client;
    add(client, "hungry", (0..40).map(|n| json!(n)).collect());
    let stopped = || {
        let found = processor(client, "hungry");
        Ok((found["state"] == "stopped").then_some(found))
    };
    let found = wait::until("the processor to be stopped", SOON, stopped).unwrap();
    assert_eq!(found["error"]["code"], "fuel_exhausted", "{found}");
    assert_eq!(found["items"].as_u64().unwrap() + found["dead"].as_u64().unwrap(), 40, "nothing is lost");
    assert!(metric(client, "keiko_batch_processors_stopped_total") >= 1);
    let resumed = client.post("/v1/batches/hungry/resume", &[], &[]).unwrap().expect(&[200]).unwrap();
    assert_eq!(resumed["name"], "hungry");
}

#[test]
fn adds_are_held_to_their_rules() {
    let running = start();
    let client = &running.client;
    let check = |path: &str, body: Value, status: u16, code: &str| {
        let answer = client.post_json(path, &body, None).unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer}");
    };
    check("/v1/batches/nobody/items", json!({ "item": 1 }), 404, "not_found");
    check("/v1/batches/plain/items", json!({}), 400, "invalid_input");
    check("/v1/batches/plain/items", json!({ "items": [] }), 400, "invalid_input");
    check("/v1/batches/plain/items", json!({ "item": 1, "key": "k".repeat(256) }), 400, "invalid_input");
    check("/v1/batches/plain/items", json!({ "item": "x".repeat(1 << 20) }), 413, "invalid_input");
    let path = "/v1/batches/plain/items";
    let first = client.post_json(path, &json!({ "item": 1 }), Some("once")).unwrap().expect(&[201]).unwrap();
    let second = client.post_json(path, &json!({ "item": 1 }), Some("once")).unwrap().expect(&[200]).unwrap();
    assert_eq!((&first["ids"], &second["duplicate"]), (&second["ids"], &json!(true)));
    let other = client.post_json(path, &json!({ "item": 2 }), Some("once")).unwrap();
    assert_eq!((other.status, other.code().as_str()), (409, "conflict"));
}

#[test]
fn what_was_added_survives_kills_and_is_worked_once() {
    let mut running = start();
    let seed = keiko_tests::seed();
    let mut random = Random::new(seed);
    let mut added = BTreeSet::new();
    for round in 0..6 {
        let client = running.client.clone();
        for part in 0..8 {
            added.extend(add(&client, "relay", (0..40).map(|n| json!([round, part, n])).collect()));
        }
        wait::pause(Duration::from_millis(random.below(120)));
        running.kill().unwrap();
        running.start_again().unwrap();
    }
    let client = running.client.clone();
    until_empty(&client, "relay");
    until_empty(&client, "kept");
    let rows = all(&client, "kept", "rows");
    let of: Vec<String> = rows.iter().map(|row| row["item"]["of"].as_str().unwrap().to_owned()).collect();
    assert_eq!(of.len(), added.len(), "seed {seed}");
    assert_eq!(of.into_iter().collect::<BTreeSet<_>>(), added, "seed {seed}");
}
